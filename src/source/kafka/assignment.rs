//! Partitions come and go: where each begins, and what is kept of it.

use super::StartAt;
use super::commit::commit_now;
use super::context::Context;
use super::holding::Held;
use crate::source::Assigned;
use crate::source::offsets::{Candidate, Committed, Elsewhere, Partition, Place, Start};
use metrics::counter;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaResult;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::sync::Arc;
use std::time::Duration;
use tracing::{error, info, warn};

/// How long one question to the broker may take before it is asked again.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(10);

/// What the broker has of the partitions that we are given, and of those that we had.
struct Asked {
    candidates: Vec<Candidate>,
    elsewhere: Vec<Elsewhere>,
}

impl Context {
    /// Asks the learner where each partition of `list` starts, commits what it says, and writes it into
    /// `list`. Says whether all that went well; if not, and we go on, it has to be done again.
    pub(super) fn place(&self, consumer: &BaseConsumer<Self>, list: &TopicPartitionList) -> bool {
        let is_placed = self.try_to_place(consumer, list);
        self.holding.owe_placing(!is_placed);
        is_placed
    }

    fn try_to_place(&self, consumer: &BaseConsumer<Self>, list: &TopicPartitionList) -> bool {
        // None where the run is ending.
        let Ok(known) = self.learner.known() else { return false };
        let Some(asked) = self.ask_until_answered(consumer, list, &known) else { return false };
        let Asked { candidates, elsewhere } = asked;
        if candidates.is_empty() && elsewhere.is_empty() {
            return true;
        }
        let Ok(assigned) = self.learner.assign(candidates, elsewhere) else { return false };
        let Assigned { starts, commit } = assigned;
        let before = |partition: &Partition| {
            let new = starts.iter().find(|start| start.partition == *partition);
            new.map_or_else(|| self.holding.before(partition), |start| start.before.clone())
        };
        // Whoever had them before is to know where its work ended, before we do any.
        if let Err(error) = commit_now(consumer, &commit, before) {
            warn!(%error, "where partitions begin could not be committed; it is tried again");
            return false;
        }
        starts.into_iter().for_each(|start| self.take_up(start, list));
        true
    }

    fn take_up(&self, start: Start, list: &TopicPartitionList) {
        let Start { partition, generation, place, before } = start;
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
        self.holding.take_up(partition, Held { generation, before });
    }

    /// What the broker knows of the partitions; asked until it answers or we are to stop.
    fn ask_until_answered(
        &self,
        consumer: &BaseConsumer<Self>,
        list: &TopicPartitionList,
        known: &[Partition],
    ) -> Option<Asked> {
        while !self.stop.is_cancelled() {
            match self.ask(consumer, list, known) {
                Ok(asked) => return Some(asked),
                Err(error) => warn!(%error, "waiting for the broker to say what it has of us"),
            }
        }
        None
    }

    fn ask(
        &self,
        consumer: &BaseConsumer<Self>,
        list: &TopicPartitionList,
        known: &[Partition],
    ) -> KafkaResult<Asked> {
        let is_listed = |p: &&Partition| list.find_partition(&p.topic, p.partition).is_some();
        let is_kept = |p: &&Partition| self.holding.generation(p).is_some();
        let others: Vec<&Partition> =
            known.iter().filter(|p| !is_listed(p) && !is_kept(p)).collect();
        let mut asked = TopicPartitionList::new();
        for element in list.elements() {
            asked.add_partition(element.topic(), element.partition());
        }
        for other in &others {
            asked.add_partition(&other.topic, other.partition);
        }
        let found = if asked.count() == 0 {
            asked
        } else {
            consumer.committed_offsets(asked, QUESTION_TIMEOUT)?
        };
        let candidates = self.candidates(consumer, list, &found)?;
        let elsewhere = others.into_iter().filter_map(|partition| {
            Some((partition.clone(), committed(&found, &partition.topic, partition.partition)?))
        });
        Ok(Asked { candidates, elsewhere: elsewhere.collect() })
    }

    fn candidates(
        &self,
        consumer: &BaseConsumer<Self>,
        list: &TopicPartitionList,
        found: &TopicPartitionList,
    ) -> KafkaResult<Vec<Candidate>> {
        let at_time = match self.start_at {
            StartAt::Time(ms) if list.count() > 0 => Some(offsets_at(consumer, list, ms)?),
            _ => None,
        };
        let mut candidates = vec![];
        for element in list.elements() {
            let (topic, number) = (element.topic(), element.partition());
            let (low, high) = consumer.fetch_watermarks(topic, number, QUESTION_TIMEOUT)?;
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
            let committed = committed(found, topic, number);
            let partition = Partition { topic: Arc::from(topic), partition: number };
            candidates.push(Candidate { partition, committed, low, high, default });
        }
        Ok(candidates)
    }

    /// Gives the partitions of `list` up: checkpoint first, then commit.
    pub(super) fn release(&self, consumer: &BaseConsumer<Self>, list: &TopicPartitionList) {
        let partitions: Vec<Partition> = list
            .elements()
            .iter()
            .map(|e| Partition { topic: Arc::from(e.topic()), partition: e.partition() })
            .collect();
        // A learner that has ended says no more: what was not committed by then others do again, and it gives way
        // when it comes back.
        if let Ok(commit) = self.learner.revoke(partitions.clone())
            && let Err(error) = commit_now(consumer, &commit, |p| self.holding.before(p))
        {
            // Our checkpoint holds them. Whoever has them now begins before it: then we give way.
            warn!(%error, "offsets of revoked partitions could not be committed");
        }
        for partition in &partitions {
            info!(%partition, "revoked");
            self.holding.let_go(partition);
        }
    }
}

/// What `found` says of a partition.
fn committed(found: &TopicPartitionList, topic: &str, number: i32) -> Option<Committed> {
    let element = found.find_partition(topic, number)?;
    match element.offset() {
        Offset::Offset(offset) => {
            Some(Committed { offset, tenure: super::metadata::tenure(element.metadata()) })
        }
        _ => None,
    }
}

/// The first offsets of a time or later.
fn offsets_at(
    consumer: &BaseConsumer<Context>,
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
