//! What the broker has of partitions' logs, as far as it says so in time.

use super::context::Context;
use rdkafka::consumer::{BaseConsumer, Consumer};
use std::time::{Duration, Instant};
use tracing::warn;

/// A broker that is well answers sooner. A guess.
const LEAST: Duration = Duration::from_millis(100);

/// Asks for the extent of one partition after another.
pub(super) struct Extents<'a> {
    consumer: &'a BaseConsumer<Context>,
    patience: Duration,
}

impl<'a> Extents<'a> {
    /// Questions that fail may take `patience` in all, and little each once it is spent: behind another broker there
    /// may be an answer. That nothing is known of a partition without a leader is said
    /// at once; but behind a broker that is silent each question would take all of its time.
    pub(super) fn new(consumer: &'a BaseConsumer<Context>, patience: Duration) -> Self {
        Self { consumer, patience }
    }

    /// The first offset that the broker has of a partition, and one past its last; `None` if it does not say.
    pub(super) fn of(&mut self, topic: &str, number: i32) -> Option<(i64, i64)> {
        let began = Instant::now();
        match self.consumer.fetch_watermarks(topic, number, self.patience.max(LEAST)) {
            Ok(extent) => Some(extent),
            Err(error) => {
                self.patience = self.patience.saturating_sub(began.elapsed());
                if self.consumer.context().quiet.admits("extent") {
                    warn!(topic, partition = number, %error, "the broker does not say what it has");
                }
                None
            }
        }
    }
}
