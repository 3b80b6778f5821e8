//! Offsets of a checkpoint, told to the broker, and what it has acknowledged of them.

use super::context::Context;
use super::metadata;
use crate::fault;
use crate::source::Commit;
use crate::source::offsets::{Ended, Partition};
use metrics::counter;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::KafkaResult;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use tracing::{debug, warn};

/// Commits under way that are remembered: while the broker is away there may be more, and the last one counts.
const UNDER_WAY: usize = 16;

/// Commits that have been sent and not been seen acknowledged.
///
/// librdkafka's events, on which rdkafka polls, do not tell how a commit ended that nobody waits for. Its
/// statistics tell of each partition what has been committed last.
#[derive(Debug, Default)]
pub(super) struct UnderWay(Mutex<VecDeque<Commit>>);

impl UnderWay {
    fn sent(&self, commit: Commit) {
        let mut commits = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        commits.truncate(UNDER_WAY - 1);
        commits.push_front(commit);
    }

    /// The checkpoint of the last commit that is acknowledged, where `committed` says what is of a partition.
    /// It is told once.
    pub(super) fn acknowledged(
        &self,
        committed: impl Fn(&Partition) -> Option<i64>,
    ) -> Option<String> {
        let mut commits = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_acknowledged = |commit: &Commit| {
            commit.offsets.iter().all(|(partition, next)| committed(partition) == Some(*next))
        };
        let at = commits.iter().position(is_acknowledged)?;
        let checkpoint_id = commits[at].checkpoint_id.clone();
        commits.truncate(at);
        Some(checkpoint_id)
    }
}

/// Sends a commit; the consumer's context hears when it has been acknowledged.
pub(super) fn commit_later(consumer: &BaseConsumer<Context>, mut commit: Commit) {
    let holding = &consumer.context().holding;
    // What was given up after this was told has been committed since, or is another's.
    commit.offsets.retain(|partition, _| holding.generation(partition).is_some());
    let checkpoint = &commit.checkpoint_id;
    if commit.offsets.is_empty() || !holding.is_newest(commit.sequence) {
        debug!(checkpoint, "not committed: a later one has been, or nothing is ours any more");
        return;
    }
    let listed = list(&commit, |p| holding.before(p));
    match listed.and_then(|list| send(consumer, &list, CommitMode::Async)) {
        Ok(()) => consumer.context().under_way.sent(commit),
        Err(error) => warn!(%error, checkpoint, "commit failed; the next one follows"),
    }
}

/// Commits, and waits for the broker's word. `before` says who had a partition before us; it says nothing of those
/// that we have not begun, and they are left as they are.
///
/// # Errors
/// What the broker says, or that it says nothing.
pub(super) fn commit_now(
    consumer: &BaseConsumer<Context>,
    commit: &Commit,
    before: impl Fn(&Partition) -> Option<Vec<Ended>>,
) -> KafkaResult<()> {
    let list = list(commit, before)?;
    if list.count() == 0 {
        return Ok(());
    }
    let context = consumer.context();
    context.holding.is_newest(commit.sequence);
    let sent = send(consumer, &list, CommitMode::Sync);
    match &sent {
        // A learner that has ended keeps no more checkpoints.
        Ok(()) => drop(context.learner.committed(commit.checkpoint_id.clone())),
        Err(_) => count_failure(),
    }
    sent
}

/// Counts a commit that came to nothing.
pub(super) fn count_failure() {
    counter!("selfstream_commit_failures_total").increment(1);
}

/// What is sent of a commit: the partitions that have been begun, with who had them before. Of one that has not been,
/// the broker alone knows that.
fn list(
    commit: &Commit,
    before: impl Fn(&Partition) -> Option<Vec<Ended>>,
) -> KafkaResult<TopicPartitionList> {
    let mut list = TopicPartitionList::new();
    for (partition, next) in &commit.offsets {
        let Some(before) = before(partition) else { continue };
        list.add_partition_offset(&partition.topic, partition.partition, Offset::Offset(*next))?;
        if let Some(mut element) = list.find_partition(&partition.topic, partition.partition) {
            element.set_metadata(metadata::text(commit, &before));
        }
    }
    Ok(list)
}

/// One request for all partitions: either all of a checkpoint is committed, or nothing.
fn send(
    consumer: &BaseConsumer<Context>,
    list: &TopicPartitionList,
    mode: CommitMode,
) -> KafkaResult<()> {
    fault::die_at("commit");
    consumer.commit(list, mode)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::kafka::holding::{Held, Holding};

    /// Where others' work on it ended is known from then on alone: committed before, it would be forgotten.
    #[test]
    fn nothing_is_committed_of_a_partition_that_has_not_been_begun() {
        let partition = |partition| Partition { topic: "images".into(), partition };
        let before = vec![Ended { learner_id: "them".into(), at: 7 }];
        let holding = Holding::default();
        holding.take_up(partition(0), Held { generation: 1, before: before.clone() });
        holding.owe(vec![partition(1)]);
        let commit = Commit {
            offsets: [(partition(0), 10), (partition(1), 100)].into(),
            learner_id: "us".into(),
            checkpoint_id: "c".into(),
            sequence: 3,
        };
        let list = list(&commit, |partition| holding.before(partition)).unwrap();
        assert_eq!(list.count(), 1);
        let element = list.find_partition("images", 0).unwrap();
        assert_eq!(element.offset(), Offset::Offset(10));
        assert_eq!(element.metadata(), metadata::text(&commit, &before));
    }

    #[test]
    fn the_last_commit_that_is_whole_at_the_broker_is_acknowledged_once() {
        let partition = |partition| Partition { topic: "images".into(), partition };
        let under_way = UnderWay::default();
        for n in 1..=40 {
            under_way.sent(Commit {
                offsets: [(partition(0), n), (partition(1), 10 * n)].into(),
                learner_id: "us".into(),
                checkpoint_id: n.to_string(),
                sequence: n as u64,
            });
        }
        let at = |of_0, of_1| {
            let committed = [Some(of_0), of_1];
            under_way.acknowledged(|partition| committed[partition.partition as usize])
        };
        assert_eq!(at(30, Some(290)), None, "one partition alone");
        assert_eq!(at(30, None), None, "nothing is known of the other");
        assert_eq!(at(3, Some(30)), None, "it is forgotten: there are too many");
        assert_eq!(at(30, Some(300)).as_deref(), Some("30"));
        assert_eq!(at(30, Some(300)), None, "told once");
        assert_eq!(at(29, Some(290)), None, "overtaken");
        assert_eq!(at(40, Some(400)).as_deref(), Some("40"));
    }
}
