//! The embedded broker and the producer that feeds it.
//!
//! librdkafka's mock cluster keeps 5 MiB a partition and drops older messages without a word, so
//! the producer keeps what the learner has not received well inside that.

use super::images::{self, DemoImages};
use crate::learner::Vitals;
use crate::sink::images::ImageProducer;
use crate::source::collection::shuffled;
use anyhow::{Context, Result};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The demo's topic.
pub(super) const TOPIC: &str = "images";
/// Bytes that may be unread: well under the broker's 5 MiB a partition.
const WINDOW_BYTES: usize = 2 * 1024 * 1024;
/// Messages that may be unread, whatever their size: what waits longer is served later.
const WINDOW_MESSAGES: u64 = 500;
/// How long the last messages may take to be acknowledged.
const FINISH: Duration = Duration::from_secs(10);

/// A broker inside this process.
pub(super) struct EmbeddedBroker(MockCluster<'static, DefaultProducerContext>);

impl EmbeddedBroker {
    /// Starts it with an empty topic.
    pub(super) fn start() -> Result<Self> {
        let cluster = MockCluster::new(1).context("starting the embedded broker")?;
        cluster.create_topic(TOPIC, 1, 1).context("creating the demo's topic")?;
        Ok(Self(cluster))
    }

    /// Its bootstrap address.
    pub(super) fn address(&self) -> String {
        self.0.bootstrap_servers()
    }

    /// Streams the images over and over, each pass in an order of its own, until `stop`.
    pub(super) fn feed(
        &self,
        images: Arc<DemoImages>,
        vitals: watch::Receiver<Vitals>,
        stop: CancellationToken,
    ) -> Result<JoinHandle<Result<()>>> {
        let mut producer = ImageProducer::open(&self.address(), TOPIC, &[], false)?;
        let runtime = Handle::current();
        let feed = move || {
            let mut window = Window { vitals, runtime, stop, unread_bytes: Default::default() };
            let fed = feed(&images, &mut producer, &mut window);
            if fed.is_err() {
                window.stop.cancel();
            }
            fed?;
            producer.finish(FINISH).map(drop)
        };
        std::thread::Builder::new().name("demo-producer".to_owned()).spawn(feed).map_err(Into::into)
    }
}

/// What has been sent and not received.
struct Window {
    vitals: watch::Receiver<Vitals>,
    runtime: Handle,
    stop: CancellationToken,
    unread_bytes: std::collections::VecDeque<usize>,
}

impl Window {
    /// Waits for room for `len` bytes after `sent` messages. False if the demo ends.
    fn wait(&mut self, sent: u64, len: usize) -> bool {
        loop {
            let received = self.vitals.borrow_and_update().received;
            let unread = sent.saturating_sub(received);
            while self.unread_bytes.len() as u64 > unread {
                self.unread_bytes.pop_front();
            }
            let bytes: usize = self.unread_bytes.iter().sum();
            if unread < WINDOW_MESSAGES && bytes + len <= WINDOW_BYTES {
                self.unread_bytes.push_back(len);
                return !self.stop.is_cancelled();
            }
            let (vitals, stop) = (&mut self.vitals, &self.stop);
            let goes_on = self.runtime.block_on(async {
                tokio::select! {
                    changed = vitals.changed() => changed.is_ok(),
                    () = stop.cancelled() => false,
                }
            });
            if !goes_on {
                return false;
            }
        }
    }
}

fn feed(demo: &DemoImages, producer: &mut ImageProducer, window: &mut Window) -> Result<()> {
    let streamed = demo.streamed();
    for pass in 0.. {
        let order = shuffled(streamed.len(), images::SEED, pass);
        for position in order {
            let index = streamed[position];
            let len = demo.collection().read(index)?.len();
            if !window.wait(producer.sent(), len) {
                return Ok(());
            }
            // The window is far smaller than librdkafka's local queue.
            anyhow::ensure!(producer.send(demo.collection(), index)?, "the local queue is full");
        }
    }
    Ok(())
}
