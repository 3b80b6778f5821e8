//! Partitions come and go: where each begins, and what is kept of it.

use super::StartAt;
use super::commit::commit_now;
use super::context::{Context, wait_or_stop};
use super::extent::Extents;
use super::holding::{AGAIN, Held};
use crate::source::Assigned;
use crate::source::offsets::{Candidate, Committed, Elsewhere, Partition, Place, Start};
use metrics::counter;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaResult;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList, TopicPartitionListElem};
use std::sync::Arc;
use std::time::Duration;
use tracing::{error, info, warn};

/// How long one question to the broker may take before it is asked again.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the broker may take to say whether what is owed can be begun: others are not read meanwhile.
const OWED_TIMEOUT: Duration = Duration::from_millis(200);
/// As if the broker had all that there could be of a partition.
const ALL_THERE_COULD_BE: (i64, i64) = (0, i64::MAX);

/// What the broker has of the partitions that we are given, and of those that we had.
struct Asked {
    candidates: Vec<Candidate>,
    elsewhere: Vec<Elsewhere>,
}

impl Context {
    /// Asks the learner where each partition of `list` starts, commits what it says, and writes it into
    /// `list`. Says whether that went well; if not, or for those of which too little is known, it is to be done
    /// again, and is owed meanwhile.
    pub(super) fn place(&self, consumer: &BaseConsumer<Self>, list: &TopicPartitionList) -> bool {
        let partitions = partitions_of(list);
        for partition in &partitions {
            // What comes of one that has not been begun is dropped, so the less the better.
            set_offset(list, partition, Offset::End);
        }
        self.holding.owe(partitions);
        self.try_to_place(consumer, list)
    }

    /// The partitions of `assigned` that are owed, as far as the broker says by now what it has of them.
    pub(super) fn owed(
        &self,
        consumer: &BaseConsumer<Self>,
        assigned: &TopicPartitionList,
    ) -> TopicPartitionList {
        let mut extents = Extents::new(consumer, OWED_TIMEOUT);
        let mut owed = TopicPartitionList::new();
        for partition in partitions_of(assigned) {
            let Partition { topic, partition: number } = &partition;
            if self.holding.owes(&partition) && extents.of(topic, *number).is_some() {
                owed.add_partition(topic, *number);
            }
        }
        // What took long is not asked again at once.
        self.holding.owe(vec![]);
        owed
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
            new.map(|start| start.before.clone()).or_else(|| self.holding.before(partition))
        };
        // Whoever had them before is to know where its work ended, before we do any.
        if let Err(error) = commit_now(consumer, &commit, before) {
            if self.quiet.admits("placing") {
                warn!(%error, "where partitions begin could not be committed; it is tried again");
            }
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
        set_offset(list, &partition, Offset::Offset(offset));
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
                Err(error) => {
                    if self.quiet.admits("asking") {
                        warn!(%error, "waiting for the broker to say what it has of us");
                    }
                    wait_or_stop(&self.runtime, &self.stop, AGAIN);
                }
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
        let is_ours = |p: &Partition| self.holding.generation(p).is_some() || self.holding.owes(p);
        let others: Vec<&Partition> =
            known.iter().filter(|p| !is_listed(p) && !is_ours(p)).collect();
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
        let candidates = self.candidates(consumer, list, (&found, known))?;
        let elsewhere = others.into_iter().filter_map(|partition| {
            Some((partition.clone(), committed(&found, &partition.topic, partition.partition)?))
        });
        Ok(Asked { candidates, elsewhere: elsewhere.collect() })
    }

    /// What is known of each partition of `list`, whose commits are `found`. Where the broker does not say what it has
    /// of one, as without a leader, it begins where it was left all the same: if that is gone, reading it will tell.
    /// One that nobody ever read is left out.
    fn candidates(
        &self,
        consumer: &BaseConsumer<Self>,
        list: &TopicPartitionList,
        (found, known): (&TopicPartitionList, &[Partition]),
    ) -> KafkaResult<Vec<Candidate>> {
        let mut extents = Extents::new(consumer, QUESTION_TIMEOUT);
        let mut candidates = vec![];
        for partition in partitions_of(list) {
            let (topic, number) = (&*partition.topic, partition.partition);
            let committed = committed(found, topic, number);
            let was_read = committed.is_some() || known.contains(&partition);
            let extent = extents.of(topic, number);
            let Some((low, high)) = extent.or(was_read.then_some(ALL_THERE_COULD_BE)) else {
                continue;
            };
            let default = match self.start_at {
                StartAt::Latest if !was_read => high,
                // Without a message of that time or later, the end.
                StartAt::Time(ms) if !was_read => {
                    offset_at(consumer, &partition, ms)?.unwrap_or(high)
                }
                _ => low,
            };
            candidates.push(Candidate { partition, committed, low, high, default });
        }
        Ok(candidates)
    }

    /// Gives the partitions of `list` up: checkpoint first, then commit.
    pub(super) fn release(&self, consumer: &BaseConsumer<Self>, list: &TopicPartitionList) {
        let partitions = partitions_of(list);
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

fn partitions_of(list: &TopicPartitionList) -> Vec<Partition> {
    let partition = |element: &TopicPartitionListElem<'_>| Partition {
        topic: Arc::from(element.topic()),
        partition: element.partition(),
    };
    list.elements().iter().map(partition).collect()
}

fn set_offset(list: &TopicPartitionList, partition: &Partition, offset: Offset) {
    if let Some(mut element) = list.find_partition(&partition.topic, partition.partition)
        && let Err(error) = element.set_offset(offset)
    {
        error!(%partition, ?offset, %error, "its offset could not be set");
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

/// The first offset of a time or later, if there is any.
fn offset_at(
    consumer: &BaseConsumer<Context>,
    Partition { topic, partition }: &Partition,
    ms: i64,
) -> KafkaResult<Option<i64>> {
    let mut times = TopicPartitionList::new();
    times.add_partition_offset(topic, *partition, Offset::Offset(ms))?;
    let found = consumer.offsets_for_times(times, QUESTION_TIMEOUT)?;
    let found = found.find_partition(topic, *partition);
    Ok(found.and_then(|found| found.offset().to_raw()).filter(|offset| *offset >= 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::kafka::client::client_config;
    use crate::source::kafka::commit::UnderWay;
    use crate::source::kafka::context::RateLimit;
    use crate::source::kafka::holding::Holding;
    use crate::source::kafka::{Config, Lag};
    use crate::source::offsets::{NextOffsets, start};
    use crate::source::{Commit, Control, LearnerLink};
    use rdkafka::mocking::MockCluster;
    use tokio_util::sync::CancellationToken;

    fn partition(number: i32) -> Partition {
        Partition { topic: "images".into(), partition: number }
    }

    /// The way to a learner that had `left`, and answers for as long as it is asked.
    fn learner(left: NextOffsets) -> LearnerLink {
        let (link, mut controls) = LearnerLink::new();
        let begin = move |candidate: Candidate| {
            let ours = left.get(&candidate.partition).copied();
            let place = start(&candidate, ours, "us");
            Start { partition: candidate.partition, generation: 1, place, before: vec![] }
        };
        let known = vec![partition(1)];
        std::thread::spawn(move || {
            while let Some(control) = controls.blocking_recv() {
                match control {
                    Control::Known { reply } => reply.send(known.clone()).unwrap(),
                    Control::Assign { candidates, reply, .. } => {
                        let starts: Vec<Start> = candidates.into_iter().map(&begin).collect();
                        let at = |start: &Start| (start.partition.clone(), start.place.offset);
                        let commit = Commit {
                            offsets: starts.iter().map(at).collect(),
                            learner_id: "us".into(),
                            checkpoint_id: "c".into(),
                            sequence: 0,
                        };
                        reply.send(Assigned { starts, commit }).unwrap();
                    }
                    Control::Revoke { .. } | Control::Committed { .. } => {}
                }
            }
        });
        link
    }

    /// One of them may have none for hours.
    #[test]
    fn where_partitions_have_no_leader_those_begin_that_have_one_or_were_read_before() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("images", 3, 1).unwrap();
        for number in [1, 2] {
            cluster.partition_leader("images", number, None).unwrap();
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_time()
            .build()
            .unwrap();
        let context = Context {
            learner: learner([(partition(1), 50)].into()),
            stop: CancellationToken::new(),
            runtime: runtime.handle().clone(),
            start_at: StartAt::Earliest,
            lag: Lag::default(),
            lag_alarm_records: 1,
            holding: Holding::default(),
            under_way: UnderWay::default(),
            quiet: RateLimit::default(),
        };
        let config = Config { brokers: cluster.bootstrap_servers(), ..Config::default() };
        let consumer: BaseConsumer<Context> =
            client_config(&config).create_with_context(context).unwrap();
        let mut list = TopicPartitionList::new();
        list.add_partition_range("images", 0, 2);
        let context = consumer.context();
        assert!(context.place(&consumer, &list));
        let offset = |number| list.find_partition("images", number).unwrap().offset();
        let expected = [Offset::Offset(0), Offset::Offset(50), Offset::End];
        assert_eq!([0, 1, 2].map(offset), expected);
        let is_held = |number| context.holding.generation(&partition(number)).is_some();
        assert_eq!([0, 1, 2].map(is_held), [true, true, false]);
        let owes = |number| context.holding.owes(&partition(number));
        assert_eq!([0, 1, 2].map(owes), [false, false, true]);
        // It can be begun no sooner than it has a leader.
        assert_eq!(context.owed(&consumer, &list).count(), 0);
    }
}
