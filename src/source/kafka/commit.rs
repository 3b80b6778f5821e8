//! Offsets of a checkpoint, told to the broker.

use super::context::Context;
use super::metadata;
use crate::fault;
use crate::source::Commit;
use crate::source::offsets::{Ended, Partition};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::KafkaResult;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tracing::{debug, warn};

/// Sends a commit; its answer is heard by the consumer's context.
pub(super) fn commit_later(consumer: &BaseConsumer<Context>, mut commit: Commit) {
    let holding = &consumer.context().holding;
    // What was given up after this was told has been committed since, or is another's.
    commit.offsets.retain(|partition, _| holding.generation(partition).is_some());
    let checkpoint = &commit.checkpoint_id;
    if !holding.is_newest(commit.sequence) {
        debug!(checkpoint, "not committed: a later one has been");
    } else if let Err(error) = send(consumer, &commit, |p| holding.before(p), CommitMode::Async) {
        warn!(%error, checkpoint, "commit failed; the next one follows");
    }
}

/// Commits, and waits for the broker's word. `before` says who had a partition before us.
///
/// # Errors
/// What the broker says, or that it says nothing.
pub(super) fn commit_now(
    consumer: &BaseConsumer<Context>,
    commit: &Commit,
    before: impl Fn(&Partition) -> Vec<Ended>,
) -> KafkaResult<()> {
    consumer.context().holding.is_newest(commit.sequence);
    send(consumer, commit, before, CommitMode::Sync)
}

/// One request for all partitions: either all of a checkpoint is committed, or nothing.
fn send(
    consumer: &BaseConsumer<Context>,
    commit: &Commit,
    before: impl Fn(&Partition) -> Vec<Ended>,
    mode: CommitMode,
) -> KafkaResult<()> {
    if commit.offsets.is_empty() {
        return Ok(());
    }
    let mut list = TopicPartitionList::new();
    for (partition, next) in &commit.offsets {
        list.add_partition_offset(&partition.topic, partition.partition, Offset::Offset(*next))?;
        if let Some(mut element) = list.find_partition(&partition.topic, partition.partition) {
            element.set_metadata(metadata::text(commit, &before(partition)));
        }
    }
    fault::die_at("commit");
    consumer.commit(&list, mode)
}
