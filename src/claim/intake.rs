//! The stage itself: where records go in, and the thread that hands them on.

use super::fetch::Fetcher;
use super::prefix::{self, Place};
use super::unfetched::Unfetched;
use super::{Arrival, Config, Image, uri};
use crate::source::{Downstream, Offer, Record};
use anyhow::{Context as _, Result};
use bytes::Bytes;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};

/// How long the thread offers a record to the next stage before it offers it again; any time does.
const OFFER: Duration = Duration::from_secs(1);

/// Starts the stage before `next`; objects may have `image_max_bytes` where `config` says nothing else.
///
/// # Errors
/// A folder that is not there, or settings of a store that cannot be used.
pub fn start(
    config: &Config,
    image_max_bytes: usize,
    next: impl Downstream<Arrival> + 'static,
    runtime: Handle,
) -> Result<Box<dyn Downstream>> {
    if config.prefixes.is_empty() {
        return Ok(Box::new(Refusing(next)));
    }
    let fetcher = Arc::new(Fetcher::open(config, image_max_bytes)?);
    // One more is in the hands of the thread.
    let (slots, queue) = mpsc::channel(config.concurrency - 1);
    let run = move || hand_on(queue, next);
    thread::Builder::new().name("claim".to_owned()).spawn(run).context("starting its thread")?;
    Ok(Box::new(Intake { fetcher, slots, runtime }))
}

/// Where a claim check's image comes from, or what a record is without one.
fn claimed(
    record: &Record,
    place: impl FnOnce(&[u8]) -> Result<Place, Unfetched>,
) -> Result<Place, Image> {
    if !uri::is_claim(record) {
        return Err(Image::Inline);
    }
    place(&record.bytes).map_err(Image::Missing)
}

/// The stage without prefixes.
struct Refusing<D>(D);

impl<D: Downstream<Arrival>> Downstream for Refusing<D> {
    fn offer(&mut self, record: Record, wait: Duration) -> Offer {
        let image = match claimed(&record, |list| prefix::place(list, [].iter())) {
            Err(image) => image,
            Ok(place) => unreachable!("{place:?} lies below none of no prefixes"),
        };
        match self.0.offer(Arrival { record, image }, wait) {
            Offer::Taken => Offer::Taken,
            Offer::Full(arrival) => Offer::Full(arrival.record),
            Offer::Closed => Offer::Closed,
        }
    }
}

/// The stage's end where records go in. Dropping it lets the thread hand on what is inside.
struct Intake {
    fetcher: Arc<Fetcher>,
    slots: mpsc::Sender<Slot>,
    runtime: Handle,
}

/// A record in the queue.
enum Slot {
    Ready(Arrival),
    Fetching { place: Place, record: Record, image: oneshot::Receiver<Result<Bytes, Unfetched>> },
}

impl Downstream for Intake {
    fn offer(&mut self, record: Record, wait: Duration) -> Offer {
        let reserved = match self.slots.try_reserve() {
            Err(TrySendError::Full(())) => {
                let reserve = async { tokio::time::timeout(wait, self.slots.reserve()).await };
                match self.runtime.block_on(reserve) {
                    Ok(reserved) => reserved.ok(),
                    Err(_) => return Offer::Full(record),
                }
            }
            reserved => reserved.ok(),
        };
        let Some(reserved) = reserved else { return Offer::Closed };
        reserved.send(self.slot(record));
        Offer::Taken
    }
}

impl Intake {
    /// Begins to fetch what `record` names, if it is a claim check that may.
    fn slot(&self, record: Record) -> Slot {
        let place = match claimed(&record, |list| self.fetcher.place(list)) {
            Ok(place) => place,
            Err(image) => return Slot::Ready(Arrival { record, image }),
        };
        let (mut answer, image) = oneshot::channel();
        let (fetcher, asked) = (Arc::clone(&self.fetcher), place.clone());
        self.runtime.spawn(async move {
            let fetched = tokio::select! {
                fetched = fetcher.fetch(&asked) => fetched,
                // Nobody waits for it any more.
                () = answer.closed() => return,
            };
            drop(answer.send(fetched));
        });
        Slot::Fetching { place, record, image }
    }
}

impl Slot {
    /// Waits for its image. Blocks the thread.
    fn wait(self) -> Arrival {
        match self {
            Self::Ready(arrival) => arrival,
            Self::Fetching { place, record, image } => {
                let image = match image.blocking_recv() {
                    Ok(Ok(bytes)) => Image::Fetched(bytes),
                    Ok(Err(unfetched)) => Image::Missing(unfetched),
                    // A panic of a store must not stop the stream.
                    Err(error) => Image::Missing(Unfetched::unreachable(&place.uri, error)),
                };
                Arrival { record, image }
            }
        }
    }
}

/// Hands records on in their order, until there are no more or nobody takes them.
fn hand_on(mut queue: mpsc::Receiver<Slot>, mut next: impl Downstream<Arrival>) {
    while let Some(slot) = queue.blocking_recv() {
        let mut arrival = slot.wait();
        loop {
            match next.offer(arrival, OFFER) {
                Offer::Taken => break,
                Offer::Full(same) => arrival = same,
                Offer::Closed => return,
            }
        }
    }
}

#[cfg(test)]
mod tests;
