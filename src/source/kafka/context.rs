//! What librdkafka calls back: rebalances, logs, errors, statistics.

use super::commit::{UnderWay, count_failure};
use super::holding::Holding;
use super::{Lag, StartAt};
use crate::source::LearnerLink;
use crate::source::offsets::Partition;
use metrics::{counter, gauge};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, ConsumerContext, Rebalance};
use rdkafka::error::KafkaError;
use rdkafka::statistics::Statistics;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// At most one line of librdkafka's in this time, per kind; a guess at what an operator can read.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// The consumer's context.
pub(super) struct Context {
    pub(super) learner: LearnerLink,
    pub(super) stop: CancellationToken,
    pub(super) runtime: Handle,
    pub(super) start_at: StartAt,
    pub(super) lag: Lag,
    pub(super) lag_alarm_records: u64,
    pub(super) holding: Holding,
    pub(super) under_way: UnderWay,
    pub(super) quiet: RateLimit,
}

impl ConsumerContext for Context {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Assign(list) => {
                self.place(consumer, list);
            }
            Rebalance::Revoke(list) => self.release(consumer, list),
            Rebalance::Error(error) => warn!(%error, "rebalance failed; the group tries again"),
        }
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        // The only word that there is of a commit that nobody waits for. The next one holds more.
        if facility == "COMMITFAIL" {
            count_failure();
        }
        match level {
            RDKafkaLogLevel::Info | RDKafkaLogLevel::Notice | RDKafkaLogLevel::Debug => {
                debug!(target: "librdkafka", facility, message);
            }
            _ if self.quiet.admits(facility) => warn!(target: "librdkafka", facility, message),
            _ => debug!(target: "librdkafka", facility, message),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let code = error.rdkafka_error_code().map_or_else(String::new, |code| format!("{code:?}"));
        if self.quiet.admits(&code) {
            warn!(code, reason, "Kafka is in trouble; it is tried again until it passes");
        }
        counter!("selfstream_kafka_errors_total").increment(1);
    }

    fn stats(&self, statistics: Statistics) {
        let mut total = 0;
        for topic in statistics.topics.values() {
            for partition in topic.partitions.values() {
                if self.holding.has(&topic.topic, partition.partition) && partition.hi_offset >= 0 {
                    let read = partition.app_offset.max(partition.lo_offset).max(0);
                    let lag = (partition.hi_offset - read).max(0) as u64;
                    let labels = [
                        ("topic", topic.topic.clone()),
                        ("partition", partition.partition.to_string()),
                    ];
                    gauge!("selfstream_kafka_lag_records", &labels).set(lag as f64);
                    total += lag;
                }
            }
        }
        let committed = |partition: &Partition| {
            let topic = statistics.topics.get(&*partition.topic)?;
            Some(topic.partitions.get(&partition.partition)?.committed_offset)
        };
        if let Some(checkpoint_id) = self.under_way.acknowledged(committed) {
            // A learner that has ended keeps no more checkpoints.
            drop(self.learner.committed(checkpoint_id));
        }
        self.lag.set(total);
        let is_alarming = total >= self.lag_alarm_records;
        gauge!("selfstream_kafka_lag_alarm").set(f64::from(u8::from(is_alarming)));
        if is_alarming && self.quiet.admits("lag") {
            warn!(lag_records = total, "the topic is faster than the learner");
        }
    }
}

/// Waits for `time`, or until the run is to end.
pub(super) fn wait_or_stop(runtime: &Handle, stop: &CancellationToken, time: Duration) {
    runtime.block_on(async {
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(time) => {}
        }
    });
}

/// Lets one thing of each kind through in a while, as a line in the log.
#[derive(Default)]
pub(super) struct RateLimit(Mutex<HashMap<String, Instant>>);

impl RateLimit {
    /// Whether one of this kind is let through now.
    pub(super) fn admits(&self, kind: &str) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = last.get(kind).is_none_or(|last| last.elapsed() >= LOG_EVERY);
        if is_due {
            last.insert(kind.to_owned(), Instant::now());
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_of_a_kind_at_a_time() {
        let limit = RateLimit::default();
        assert!(limit.admits("a"));
        assert!(!limit.admits("a"));
        assert!(limit.admits("b"));
    }
}
