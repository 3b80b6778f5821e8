//! A fixed pool of plain threads that keeps the order of what passes through it.
//!
//! Item `i` goes to worker `i mod N`, and results are taken from the workers in the same turn: the
//! order out is the order in, by construction, with nothing to sort and nothing to look up. Each
//! worker has a bounded queue on either side, so a full pool pushes back and memory stays bounded:
//! at most `threads * (2 * queue_items + 1)` items are inside. The price is that one slow item
//! holds up those behind it once the queues are full; images differ little enough in cost.
//!
//! ```text
//!             .-> queue -> worker 0 -> queue -.
//!     Intake -+-> queue -> worker 1 -> queue -+-> Outcomes
//!             '-> queue -> worker 2 -> queue -'
//! ```
//!
//! The pool ends from either side. Dropping the [`Intake`] lets the workers finish what is inside,
//! then [`Outcomes::recv`] returns `None`. Dropping the [`Outcomes`] ends the workers after the
//! item at hand, and sending fails with [`Rejected::Closed`].

use super::{Config, Decoded, park};
use crate::claim::Arrival;
use crate::fault;
use crate::source::{Downstream, Offer};
use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;
use tokio::sync::mpsc::{self, error::TrySendError};

/// How large a pool is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Number of worker threads.
    pub threads: NonZeroUsize,
    /// Length of each of a worker's two queues.
    pub queue_items: NonZeroUsize,
}

/// A running pool: its two ends and its threads.
#[derive(Debug)]
pub struct Pool<T, U> {
    /// Where items go in.
    pub intake: Intake<T>,
    /// Where results come out.
    pub outcomes: Outcomes<U>,
    /// The threads.
    pub workers: Workers,
}

impl Pool<Arrival, Decoded> {
    /// Starts a pool that decodes records. Fails if the system has no more threads.
    pub fn decoding(config: Config, size: Size) -> io::Result<Self> {
        Self::start("decode", size, move |arrival| {
            fault::panic_at("decode_thread");
            Decoded::new(arrival, &config)
        })
    }
}

impl<T: Send + 'static, U: Send + 'static> Pool<T, U> {
    /// Starts threads called `name`-0, `name`-1, ... that apply `work` to each item.
    ///
    /// `work` should not panic: a worker that does ends, everything after it is lost, and
    /// [`Workers::join`] tells.
    pub fn start(
        name: &str,
        size: Size,
        work: impl Fn(T) -> U + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let work = Arc::new(work);
        let (mut inputs, mut outputs, mut threads) = (Vec::new(), Vec::new(), Vec::new());
        for worker in 0..size.threads.get() {
            let (input_sender, input) = mpsc::channel(size.queue_items.get());
            let (output, output_receiver) = mpsc::channel(size.queue_items.get());
            let work = Arc::clone(&work);
            let thread = thread::Builder::new()
                .name(format!("{name}-{worker}"))
                .spawn(move || run_worker(input, &output, &*work))?;
            inputs.push(input_sender);
            outputs.push(output_receiver);
            threads.push(thread);
        }
        Ok(Self {
            intake: Intake { inputs, next: 0 },
            outcomes: Outcomes { outputs, next: 0 },
            workers: Workers { threads },
        })
    }
}

/// Works until the intake is dropped and the queue empty, or the outcomes are dropped.
fn run_worker<T, U>(mut input: mpsc::Receiver<T>, output: &mpsc::Sender<U>, work: impl Fn(T) -> U) {
    let mut next_item = || {
        park::wait(async {
            tokio::select! {
                biased;
                () = output.closed() => None,
                item = input.recv() => item,
            }
        })
    };
    while let Some(item) = next_item() {
        if output.blocking_send(work(item)).is_err() {
            return;
        }
    }
}

/// Why an item was not taken; it comes back to the sender.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected<T> {
    /// The worker whose turn it is has no space yet.
    #[error("the pool is full")]
    Full(T),
    /// The outcomes were dropped, or the worker whose turn it is has died.
    #[error("the pool is closed")]
    Closed(T),
}

impl<T> From<TrySendError<T>> for Rejected<T> {
    fn from(error: TrySendError<T>) -> Self {
        match error {
            TrySendError::Full(item) => Self::Full(item),
            TrySendError::Closed(item) => Self::Closed(item),
        }
    }
}

/// The end of a [`Pool`] where items go in. Dropping it drains and ends the pool.
#[derive(Debug)]
pub struct Intake<T> {
    inputs: Vec<mpsc::Sender<T>>,
    next: usize,
}

impl<T> Intake<T> {
    /// Sends `item`, blocking the thread until there is space; never [`Rejected::Full`].
    ///
    /// # Panics
    /// If called within an asynchronous task, which must not block.
    pub fn send(&mut self, item: T) -> Result<(), Rejected<T>> {
        self.inputs[self.next].blocking_send(item).map_err(|error| Rejected::Closed(error.0))?;
        self.advance();
        Ok(())
    }

    /// Sends `item`, blocking the thread for at most `limit`. Not for asynchronous tasks.
    pub fn send_within(&mut self, item: T, limit: Duration) -> Result<(), Rejected<T>> {
        match park::wait_within(self.inputs[self.next].reserve(), limit) {
            Some(Ok(space)) => space.send(item),
            Some(Err(_)) => return Err(Rejected::Closed(item)),
            None => return Err(Rejected::Full(item)),
        }
        self.advance();
        Ok(())
    }

    /// Sends `item` if there is space now.
    pub fn try_send(&mut self, item: T) -> Result<(), Rejected<T>> {
        self.inputs[self.next].try_send(item)?;
        self.advance();
        Ok(())
    }

    /// Waits until there is space, then sends `item`; never [`Rejected::Full`]. If the future is
    /// dropped before it is ready, nothing was sent and `item` is dropped with it.
    pub async fn send_async(&mut self, item: T) -> Result<(), Rejected<T>> {
        match self.inputs[self.next].reserve().await {
            Ok(space) => space.send(item),
            Err(_) => return Err(Rejected::Closed(item)),
        }
        self.advance();
        Ok(())
    }

    fn advance(&mut self) {
        self.next = (self.next + 1) % self.inputs.len();
    }
}

impl Downstream<Arrival> for Intake<Arrival> {
    fn offer(&mut self, arrival: Arrival, wait: Duration) -> Offer<Arrival> {
        match self.send_within(arrival, wait) {
            Ok(()) => Offer::Taken,
            Err(Rejected::Full(arrival)) => Offer::Full(arrival),
            Err(Rejected::Closed(_)) => Offer::Closed,
        }
    }
}

/// Why [`Outcomes::try_recv`] has nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Nothing {
    /// The next result is not finished yet, or not begun.
    #[error("the next result is not ready")]
    Yet,
    /// The pool has ended.
    #[error("the pool has ended")]
    More,
}

/// The end of a [`Pool`] where results come out, in the order their items went in. Dropping it
/// ends the pool.
#[derive(Debug)]
pub struct Outcomes<U> {
    outputs: Vec<mpsc::Receiver<U>>,
    next: usize,
}

impl<U> Outcomes<U> {
    /// Waits for the next result; `None` once the pool has ended. A future that is dropped before
    /// it is ready has taken nothing.
    pub async fn recv(&mut self) -> Option<U> {
        let result = self.outputs[self.next].recv().await?;
        self.advance();
        Some(result)
    }

    /// The same, blocking the thread.
    ///
    /// # Panics
    /// If called within an asynchronous task, which must not block.
    pub fn recv_blocking(&mut self) -> Option<U> {
        let result = self.outputs[self.next].blocking_recv()?;
        self.advance();
        Some(result)
    }

    /// The same, blocking the thread for at most `limit`. Not for asynchronous tasks.
    pub fn recv_within(&mut self, limit: Duration) -> Result<U, Nothing> {
        park::wait_within(self.recv(), limit).ok_or(Nothing::Yet)?.ok_or(Nothing::More)
    }

    /// The next result if it is ready now.
    pub fn try_recv(&mut self) -> Result<U, Nothing> {
        let result = self.outputs[self.next].try_recv().map_err(|error| match error {
            mpsc::error::TryRecvError::Empty => Nothing::Yet,
            mpsc::error::TryRecvError::Disconnected => Nothing::More,
        })?;
        self.advance();
        Ok(result)
    }

    // Item `next` is this worker's or nobody's, so when this worker has ended, all is received.
    fn advance(&mut self) {
        self.next = (self.next + 1) % self.outputs.len();
    }
}

/// The threads of a [`Pool`]. Dropping this lets them run on.
#[derive(Debug)]
pub struct Workers {
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// Waits for all threads to end; one end of the pool should have been dropped. Fails with the
    /// payload of the first panic if a worker panicked.
    pub fn join(self) -> thread::Result<()> {
        // All are joined before a panic is reported.
        let ends: Vec<_> = self.threads.into_iter().map(JoinHandle::join).collect();
        ends.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures;
    use super::*;
    use crate::source::{Origin, Record};
    use proptest::prelude::*;
    use std::sync::mpsc as std_mpsc;

    fn size(threads: usize, queue_items: usize) -> Size {
        let nonzero = |n| NonZeroUsize::new(n).unwrap();
        Size { threads: nonzero(threads), queue_items: nonzero(queue_items) }
    }

    /// Work whose cost differs by item, so that workers overtake each other.
    fn uneven(item: u64) -> u64 {
        let rounds = item.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48;
        (0..rounds).fold(item, |hash, _| hash.rotate_left(7).wrapping_add(1))
    }

    #[derive(Debug, Clone, Copy)]
    enum Way {
        Blocking,
        Within,
        Try,
        Async,
    }

    fn send(intake: &mut Intake<u64>, mut item: u64, way: Way) {
        loop {
            let sent = match way {
                Way::Blocking => intake.send(item),
                Way::Within => intake.send_within(item, Duration::from_millis(1)),
                Way::Try => intake.try_send(item),
                Way::Async => park::wait(intake.send_async(item)),
            };
            match sent {
                Ok(()) => return,
                Err(Rejected::Full(back)) => item = back,
                Err(Rejected::Closed(_)) => panic!("nobody closed the pool"),
            }
        }
    }

    fn receive(outcomes: &mut Outcomes<u64>, way: Way) -> Option<u64> {
        loop {
            let received = match way {
                Way::Blocking => outcomes.recv_blocking().ok_or(Nothing::More),
                Way::Within => outcomes.recv_within(Duration::from_millis(1)),
                Way::Try => outcomes.try_recv(),
                Way::Async => park::wait(outcomes.recv()).ok_or(Nothing::More),
            };
            match received {
                Ok(result) => return Some(result),
                Err(Nothing::Yet) => {}
                Err(Nothing::More) => return None,
            }
        }
    }

    fn any_way() -> impl Strategy<Value = Way> {
        prop_oneof![Just(Way::Blocking), Just(Way::Within), Just(Way::Try), Just(Way::Async)]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn out_is_in_mapped_none_lost_none_doubled_order_kept(
            items in prop::collection::vec(any::<u64>(), 0..200),
            threads in 1..6usize,
            queue_items in 1..4usize,
            ways_in in prop::collection::vec(any_way(), 1..5),
            ways_out in prop::collection::vec(any_way(), 1..5),
        ) {
            let Pool { mut intake, mut outcomes, workers } =
                Pool::start("test", size(threads, queue_items), uneven).unwrap();
            let expected: Vec<u64> = items.iter().copied().map(uneven).collect();
            let sender = thread::spawn(move || {
                for (item, &way) in items.into_iter().zip(ways_in.iter().cycle()) {
                    send(&mut intake, item, way);
                }
            });
            let mut ways_out = ways_out.iter().cycle();
            let mut received = Vec::new();
            while let Some(result) = receive(&mut outcomes, *ways_out.next().unwrap()) {
                received.push(result);
            }
            sender.join().unwrap();
            prop_assert_eq!(received, expected);
            prop_assert!(workers.join().is_ok());
        }
    }

    #[test]
    fn a_full_pool_pushes_back_and_returns_the_item() {
        let (permit, permits) = std_mpsc::channel::<()>();
        let permits = std::sync::Mutex::new(permits);
        let Pool { mut intake, mut outcomes, workers } =
            Pool::start("test", size(1, 2), move |item: u32| {
                permits.lock().unwrap().recv().unwrap();
                item
            })
            .unwrap();
        // One is being worked on, two are queued; the fourth finds no space.
        for item in 0..3 {
            intake.send(item).unwrap();
        }
        let limit = Duration::from_millis(10);
        assert_eq!(intake.send_within(3, limit), Err(Rejected::Full(3)));
        assert_eq!(intake.try_send(3), Err(Rejected::Full(3)));
        assert_eq!(outcomes.try_recv(), Err(Nothing::Yet));
        assert_eq!(outcomes.recv_within(limit), Err(Nothing::Yet));
        permit.send(()).unwrap();
        assert_eq!(outcomes.recv_blocking(), Some(0));
        intake.send(3).unwrap();
        drop(intake);
        for expected in 1..4 {
            permit.send(()).unwrap();
            assert_eq!(outcomes.recv_blocking(), Some(expected));
        }
        assert_eq!(outcomes.recv_within(Duration::from_secs(60)), Err(Nothing::More));
        assert!(workers.join().is_ok());
    }

    #[test]
    fn dropping_the_outcomes_ends_idle_and_blocked_workers() {
        let Pool { mut intake, outcomes, workers } =
            Pool::start("test", size(2, 1), |item: u32| item).unwrap();
        // Worker 0 finishes two: one fills its output queue, the other blocks it. Worker 1 idles
        // after its first.
        for item in 0..3 {
            intake.send(item).unwrap();
        }
        drop(outcomes);
        assert!(workers.join().is_ok());
        assert_eq!(intake.try_send(9), Err(Rejected::Closed(9)));
        assert_eq!(intake.send_within(9, Duration::from_secs(60)), Err(Rejected::Closed(9)));
        assert_eq!(intake.send(9), Err(Rejected::Closed(9)));
    }

    #[test]
    fn a_panic_in_the_work_is_told_by_join() {
        let Pool { mut intake, mut outcomes, workers } =
            Pool::start("test", size(2, 1), |item: u32| assert_ne!(item, 0, "zero")).unwrap();
        intake.send(0).unwrap();
        assert_eq!(outcomes.recv_blocking(), None);
        drop(intake);
        assert!(workers.join().is_err());
    }

    #[test]
    fn decoding_keeps_record_and_outcome_together() {
        let mut pool = Pool::decoding(Config::default(), size(3, 2)).unwrap();
        let png = bytes::Bytes::from(fixtures::png(&fixtures::picture()));
        let n_records = 50;
        let sender = thread::spawn(move || {
            for offset in 0..n_records {
                let good = offset % 3 != 0;
                let record = Record {
                    origin: Origin { topic: "images".into(), partition: 0, offset },
                    generation: 1,
                    is_skipped: false,
                    bytes: if good { png.clone() } else { png.slice(..40) },
                    omitted_bytes: 0,
                    timestamp_ms: None,
                    key: None,
                    headers: vec![("Content-Type".to_owned(), Some("image/png".into()))],
                };
                pool.intake.send(record.into()).unwrap();
            }
        });
        for offset in 0..n_records {
            let Decoded { record, outcome } = pool.outcomes.recv_blocking().unwrap();
            assert_eq!(record.origin.offset, offset);
            match outcome {
                Ok(pixels) => assert!(offset % 3 != 0 && pixels == fixtures::picture()),
                Err(refusal) => assert!(offset % 3 == 0 && refusal.reason() == "damaged"),
            }
        }
        assert!(pool.outcomes.recv_blocking().is_none());
        sender.join().unwrap();
        assert!(pool.workers.join().is_ok());
    }
}
