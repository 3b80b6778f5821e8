//! What librdkafka calls back: rebalances, logs, errors, statistics.

use super::{Lag, StartAt};
use crate::fault;
use crate::source::offsets::{Candidate, Partition, Place, Start};
use crate::source::{Commit, LearnerLink};
use metrics::{counter, gauge};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::statistics::Statistics;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

/// How long one question to the broker may take before it is asked again.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(10);
/// At most one line of librdkafka's in this time, per kind; a guess at what an operator can read.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// The consumer's context.
pub(super) struct Context {
    pub(super) learner: LearnerLink,
    pub(super) stop: CancellationToken,
    pub(super) start_at: StartAt,
    pub(super) lag: Lag,
    pub(super) lag_alarm_records: u64,
    pub(super) generations: Mutex<HashMap<Partition, u64>>,
    pub(super) quiet: RateLimit,
}

impl Context {
    /// The generation of records of `partition`, if we have it.
    pub(super) fn generation(&self, partition: &Partition) -> Option<u64> {
        self.lock().get(partition).copied()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Partition, u64>> {
        self.generations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the learner where each partition of `list` starts, and writes it into `list`. Says whether it
    /// did: a run that is ending has no answer.
    pub(super) fn place(&self, consumer: &BaseConsumer<Self>, list: &TopicPartitionList) -> bool {
        let Some(candidates) = self.candidates(consumer, list) else { return false };
        let Ok(starts) = self.learner.assign(candidates) else { return false };
        for Start { partition, generation, place } in starts {
            let Place { offset, lost, is_anew } = place;
            if is_anew {
                warn!(%partition, offset, "its topic was made anew, it seems: read from its beginning");
            }
            if lost > 0 {
                error!(%partition, lost, offset, "the broker no longer has records we never read");
                counter!("selfstream_lost_records_total").increment(lost);
            }
            info!(%partition, offset, "assigned");
            if let Some(mut element) = list.find_partition(&partition.topic, partition.partition)
                && let Err(error) = element.set_offset(Offset::Offset(offset))
            {
                error!(%partition, %error, "its offset could not be set");
            }
            self.lock().insert(partition, generation);
        }
        true
    }

    /// What the broker knows of the partitions; asked until it answers or we are to stop.
    fn candidates(
        &self,
        consumer: &BaseConsumer<Self>,
        list: &TopicPartitionList,
    ) -> Option<Vec<Candidate>> {
        while !self.stop.is_cancelled() {
            match self.ask(consumer, list) {
                Ok(candidates) => return Some(candidates),
                Err(error) => warn!(%error, "waiting for the broker to say what it has of us"),
            }
        }
        None
    }

    fn ask(
        &self,
        consumer: &BaseConsumer<Self>,
        list: &TopicPartitionList,
    ) -> KafkaResult<Vec<Candidate>> {
        let committed = consumer.committed_offsets(list.clone(), QUESTION_TIMEOUT)?;
        let at_time = match self.start_at {
            StartAt::Time(ms) => Some(self.offsets_at(consumer, list, ms)?),
            StartAt::Earliest | StartAt::Latest => None,
        };
        let mut candidates = vec![];
        for element in list.elements() {
            let (topic, number) = (element.topic(), element.partition());
            let (low, high) = consumer.fetch_watermarks(topic, number, QUESTION_TIMEOUT)?;
            let found = committed.find_partition(topic, number);
            let committed = found.and_then(|found| match found.offset() {
                Offset::Offset(offset) => Some((offset, committer(found.metadata()))),
                _ => None,
            });
            let default = match self.start_at {
                StartAt::Earliest => low,
                StartAt::Latest => high,
                StartAt::Time(_) => {
                    let found = at_time.as_ref().and_then(|l| l.find_partition(topic, number));
                    // Without a message of that time or later, the end.
                    found
                        .and_then(|found| found.offset().to_raw())
                        .filter(|o| *o >= 0)
                        .unwrap_or(high)
                }
            };
            let partition = Partition { topic: Arc::from(topic), partition: number };
            candidates.push(Candidate { partition, committed, low, high, default });
        }
        Ok(candidates)
    }

    /// The first offsets of a time or later.
    fn offsets_at(
        &self,
        consumer: &BaseConsumer<Self>,
        list: &TopicPartitionList,
        ms: i64,
    ) -> KafkaResult<TopicPartitionList> {
        let mut times = TopicPartitionList::new();
        for element in list.elements() {
            let (topic, number) = (element.topic(), element.partition());
            times.add_partition_offset(topic, number, Offset::Offset(ms))?;
        }
        consumer.offsets_for_times(times, QUESTION_TIMEOUT)
    }

    /// Gives the partitions of `list` up: checkpoint first, then commit.
    pub(super) fn release(&self, consumer: &BaseConsumer<Self>, list: &TopicPartitionList) {
        let partitions: Vec<Partition> = list
            .elements()
            .iter()
            .map(|e| Partition { topic: Arc::from(e.topic()), partition: e.partition() })
            .collect();
        for partition in &partitions {
            info!(%partition, "revoked");
            self.lock().remove(partition);
        }
        // Nothing is in flight once the learner has ended; its last checkpoint is committed already.
        let Ok(commit) = self.learner.revoke(partitions) else { return };
        if let Err(error) = commit_offsets(consumer, &commit, CommitMode::Sync) {
            // Our checkpoint holds them, so nothing is learned twice by us.
            warn!(%error, "offsets of revoked partitions could not be committed");
        }
    }
}

/// Commit metadata: who committed, and which checkpoint holds the offsets.
fn metadata(commit: &Commit) -> String {
    format!("{} {}", commit.learner_id, commit.checkpoint_id)
}

/// The learner that wrote `metadata`, if one did.
fn committer(metadata: &str) -> Option<String> {
    let (learner_id, _) = metadata.split_once(' ')?;
    Some(learner_id.to_owned())
}

/// Commits the offsets of a checkpoint.
pub(super) fn commit_offsets(
    consumer: &BaseConsumer<Context>,
    commit: &Commit,
    mode: CommitMode,
) -> KafkaResult<()> {
    if commit.offsets.is_empty() {
        return Ok(());
    }
    let metadata = metadata(commit);
    let mut list = TopicPartitionList::new();
    for (partition, next) in &commit.offsets {
        list.add_partition_offset(&partition.topic, partition.partition, Offset::Offset(*next))?;
        if let Some(mut element) = list.find_partition(&partition.topic, partition.partition) {
            element.set_metadata(&metadata);
        }
    }
    fault::die_at("commit");
    consumer.commit(&list, mode)
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

    fn commit_callback(&self, result: KafkaResult<()>, _: &TopicPartitionList) {
        if let Err(error) = result {
            // The next checkpoint commits again; our checkpoint is the authority until then.
            warn!(%error, "commit failed");
            counter!("selfstream_commit_failures_total").increment(1);
        }
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
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
                if self.is_ours(&topic.topic, partition.partition) && partition.hi_offset >= 0 {
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
        self.lag.set(total);
        let is_alarming = total >= self.lag_alarm_records;
        gauge!("selfstream_kafka_lag_alarm").set(f64::from(u8::from(is_alarming)));
        if is_alarming && self.quiet.admits("lag") {
            warn!(lag_records = total, "the topic is faster than the learner");
        }
    }
}

impl Context {
    fn is_ours(&self, topic: &str, partition: i32) -> bool {
        self.lock().keys().any(|key| key.partition == partition && *key.topic == *topic)
    }
}

/// Lets one line of each kind through in a while.
#[derive(Default)]
pub(super) struct RateLimit(Mutex<HashMap<String, Instant>>);

impl RateLimit {
    /// Whether a line of this kind may be written now.
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
    fn commit_metadata_names_its_learner() {
        let commit = Commit {
            offsets: Default::default(),
            learner_id: "line-7".into(),
            checkpoint_id: "000000000042-abc".into(),
        };
        assert_eq!(committer(&metadata(&commit)).as_deref(), Some("line-7"));
        assert_eq!(committer(""), None);
        assert_eq!(committer("something-else"), None);
    }

    #[test]
    fn one_line_of_a_kind_at_a_time() {
        let limit = RateLimit::default();
        assert!(limit.admits("a"));
        assert!(!limit.admits("a"));
        assert!(limit.admits("b"));
    }
}
