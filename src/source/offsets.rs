//! What is done of each partition, and where reading would have to begin again.
//!
//! A record is done when it has been learned, or refused with its dead letter acknowledged. A
//! partition's next offset is the end of the done prefix of what was delivered: transactions and
//! compaction leave gaps in the integers, so the integers themselves are no guide. What is done beyond that
//! prefix (a refused record whose neighbours still wait to be learned) is remembered beside it, so that it is
//! not done again when reading begins at the prefix's end.

mod authority;

pub use authority::{
    Candidate, Committed, Elsewhere, Ended, Place, Start, Tenure, before, ends, start,
};

use super::Origin;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;

/// A partition of a topic.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Partition {
    /// Topic.
    pub topic: Arc<str>,
    /// Number within the topic.
    pub partition: i32,
}

impl From<&Origin> for Partition {
    fn from(origin: &Origin) -> Self {
        Self { topic: Arc::clone(&origin.topic), partition: origin.partition }
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.partition)
    }
}

/// The offset at which each partition would be read again.
pub type NextOffsets = BTreeMap<Partition, i64>;

/// Where a partition was left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// The first offset that is not done.
    pub next: i64,
    /// What is done beyond it.
    pub done_ahead: BTreeSet<i64>,
}

struct Progress {
    generation: u64,
    next: i64,
    /// Offsets that were done before reading began at `next`.
    done_before: BTreeSet<i64>,
    /// Delivered records that are not in the done prefix: offset, and whether it is done.
    pending: VecDeque<(i64, bool)>,
}

impl Progress {
    /// Moves past what is done.
    fn advance(&mut self) {
        while let Some(&(offset, true)) = self.pending.front() {
            self.pending.pop_front();
            self.next = offset + 1;
        }
        // What compaction has removed since is passed without being delivered.
        if self.done_before.first().is_some_and(|first| *first < self.next) {
            self.done_before = self.done_before.split_off(&self.next);
        }
    }

    fn left(&self) -> Left {
        let done = self.pending.iter().filter(|(_, done)| *done).map(|(offset, _)| *offset);
        let done_ahead = self.done_before.iter().copied().chain(done).collect();
        Left { next: self.next, done_ahead }
    }
}

/// Follows every delivered record until it is done.
#[derive(Default)]
pub struct OffsetTracker {
    assigned: BTreeMap<Partition, Progress>,
    /// Partitions that we had and gave up.
    released: BTreeMap<Partition, Left>,
}

impl OffsetTracker {
    /// A tracker that remembers `left` from a checkpoint; nothing is assigned yet.
    pub fn restore(left: BTreeMap<Partition, Left>) -> Self {
        Self { assigned: BTreeMap::new(), released: left }
    }

    /// Where we would go on with `partition`, if we ever had it.
    pub fn next(&self, partition: &Partition) -> Option<i64> {
        let assigned = self.assigned.get(partition).map(|progress| progress.next);
        assigned.or_else(|| self.released.get(partition).map(|left| left.next))
    }

    /// Whether we have `partition` now.
    pub fn has(&self, partition: &Partition) -> bool {
        self.assigned.contains_key(partition)
    }

    /// Begins with `partition` at `next`; records of older generations are stale from now on.
    pub fn assign(&mut self, partition: Partition, generation: u64, next: i64) {
        let assigned = self.assigned.remove(&partition).map(|progress| progress.left());
        let left = assigned.or_else(|| self.released.remove(&partition));
        // Where another learner went on, what we did ahead is no guide.
        let ours = left.filter(|left| left.next == next).map(|left| left.done_ahead);
        let done_before = ours.unwrap_or_default();
        let progress = Progress { generation, next, done_before, pending: VecDeque::new() };
        self.assigned.insert(partition, progress);
    }

    /// Passes what retention has taken of a partition that is about to begin again where our own work on it ends; what
    /// is done beyond stays done. Returns how many offsets were passed that were not done.
    pub fn pass_taken(&mut self, candidate: &Candidate, learner_id: &str) -> u64 {
        let Some(ours) = self.next(&candidate.partition) else { return 0 };
        let Place { offset, lost, .. } = start(candidate, Some(ours), learner_id);
        // Otherwise it does not begin at our work's end, or nothing after that has been taken.
        if lost == 0 || offset - ours != lost as i64 {
            return 0;
        }
        self.revoke(&candidate.partition);
        let Some(left) = self.released.get_mut(&candidate.partition) else { return 0 };
        let beyond = left.done_ahead.split_off(&offset);
        let n_done = std::mem::replace(&mut left.done_ahead, beyond).len() as u64;
        left.next = offset;
        lost - n_done
    }

    /// Gives `partition` up: what is in flight of it is forgotten.
    pub fn revoke(&mut self, partition: &Partition) {
        if let Some(progress) = self.assigned.remove(partition) {
            self.released.insert(partition.clone(), progress.left());
        }
    }

    /// Notes that our work on a partition that we gave up ended at `end`, wherever it was left.
    pub fn ended(&mut self, partition: &Partition, end: i64) {
        if let Some(left) = self.released.get_mut(partition)
            && left.next != end
        {
            *left = Left { next: end, done_ahead: BTreeSet::new() };
        }
    }

    /// Whether a record of `generation` still belongs to us.
    pub fn is_current(&self, origin: &Origin, generation: u64) -> bool {
        let progress = self.assigned.get(&Partition::from(origin));
        progress.is_some_and(|progress| progress.generation == generation)
    }

    /// Notes a delivered record. False if it is stale, was delivered before, or is done already: drop it.
    pub fn delivered(&mut self, origin: &Origin, generation: u64) -> bool {
        let Some(progress) = self.assigned.get_mut(&Partition::from(origin)) else { return false };
        let last = progress.pending.back().map_or(progress.next - 1, |&(offset, _)| offset);
        if progress.generation != generation || origin.offset <= last {
            return false;
        }
        let is_done = progress.done_before.remove(&origin.offset);
        progress.pending.push_back((origin.offset, is_done));
        progress.advance();
        !is_done
    }

    /// Notes that a record is done. False if it is stale.
    pub fn done(&mut self, origin: &Origin, generation: u64) -> bool {
        let Some(progress) = self.assigned.get_mut(&Partition::from(origin)) else { return false };
        if progress.generation != generation {
            return false;
        }
        let found = progress.pending.binary_search_by_key(&origin.offset, |&(offset, _)| offset);
        let Ok(index) = found else { return false };
        progress.pending[index].1 = true;
        progress.advance();
        true
    }

    /// Records delivered and not done.
    pub fn in_flight(&self) -> u64 {
        let pending = self.assigned.values().flat_map(|progress| &progress.pending);
        pending.filter(|(_, done)| !done).count() as u64
    }

    /// Where each partition would go on, those given up included.
    pub fn next_offsets(&self) -> NextOffsets {
        self.left().into_iter().map(|(partition, left)| (partition, left.next)).collect()
    }

    /// The same, with what is done ahead.
    pub fn left(&self) -> BTreeMap<Partition, Left> {
        let assigned = self.assigned.iter().map(|(key, progress)| (key.clone(), progress.left()));
        self.released.clone().into_iter().chain(assigned).collect()
    }

    /// Every partition that we ever had.
    pub fn known(&self) -> Vec<Partition> {
        self.assigned.keys().chain(self.released.keys()).cloned().collect()
    }

    /// The same of the partitions that we have.
    pub fn assigned_offsets(&self) -> NextOffsets {
        self.assigned.iter().map(|(key, progress)| (key.clone(), progress.next)).collect()
    }
}

#[cfg(test)]
mod model;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn origin(offset: i64) -> Origin {
        Origin { topic: Arc::from("images"), partition: 3, offset }
    }

    fn partition() -> Partition {
        Partition::from(&origin(0))
    }

    proptest! {
        /// The model: next is one past the last record before the first that is not done.
        #[test]
        fn next_is_the_end_of_the_done_prefix(
            gaps in prop::collection::vec(1i64..4, 1..40),
            order in prop::collection::vec(any::<prop::sample::Index>(), 0..60),
        ) {
            let offsets: Vec<i64> = gaps.iter().scan(9, |at, gap| { *at += gap; Some(*at) }).collect();
            let mut tracker = OffsetTracker::default();
            tracker.assign(partition(), 1, 10);
            for &offset in &offsets {
                prop_assert!(tracker.delivered(&origin(offset), 1));
                prop_assert!(!tracker.delivered(&origin(offset), 1), "delivered twice");
            }
            let mut done = vec![false; offsets.len()];
            for index in order {
                let index = index.index(offsets.len());
                tracker.done(&origin(offsets[index]), 1);
                done[index] = true;
                let prefix = done.iter().take_while(|done| **done).count();
                let expected = if prefix == 0 { 10 } else { offsets[prefix - 1] + 1 };
                prop_assert_eq!(tracker.next(&partition()), Some(expected));
                let open = done.iter().filter(|done| !**done).count() as u64;
                prop_assert_eq!(tracker.in_flight(), open);
            }
        }
    }

    #[test]
    fn what_is_done_ahead_is_not_done_again_after_a_restart() {
        let mut tracker = OffsetTracker::default();
        tracker.assign(partition(), 1, 0);
        (0..5).for_each(|offset| assert!(tracker.delivered(&origin(offset), 1)));
        [0, 2, 4].into_iter().for_each(|offset| assert!(tracker.done(&origin(offset), 1)));
        let left = tracker.left();
        assert_eq!(left[&partition()], Left { next: 1, done_ahead: [2, 4].into() });
        let mut restored = OffsetTracker::restore(left.clone());
        restored.assign(partition(), 1, 1);
        assert_eq!(restored.left(), left, "nothing is forgotten before it comes again");
        let fresh: Vec<i64> =
            (1..6).filter(|offset| restored.delivered(&origin(*offset), 1)).collect();
        assert_eq!(fresh, [1, 3, 5]);
        fresh.iter().for_each(|offset| assert!(restored.done(&origin(*offset), 1)));
        assert_eq!(restored.next(&partition()), Some(6));
        // Another learner has gone on from 3: what we did ahead of 1 says nothing.
        let mut elsewhere = OffsetTracker::restore(left);
        elsewhere.assign(partition(), 1, 3);
        assert!(elsewhere.delivered(&origin(4), 1));
    }

    /// Where one record is outstanding while all after it are done, and retention takes some of those.
    #[test]
    fn what_retention_passes_was_lost_where_it_was_not_done_and_what_is_done_beyond_stays_done() {
        let left = Left { next: 100, done_ahead: (101..=1000).collect() };
        let restored = || OffsetTracker::restore([(partition(), left.clone())].into());
        let candidate = |committed, low| Candidate {
            partition: partition(),
            committed,
            low,
            high: 2000,
            default: 0,
        };
        let by = |learner_id: &str, offset| {
            let tenure = Tenure { learner_id: learner_id.to_owned(), before: vec![] };
            Some(Committed { offset, tenure: Some(tenure) })
        };
        for committed in [None, by("us", 90)] {
            let mut tracker = restored();
            assert_eq!(tracker.pass_taken(&candidate(committed.clone(), 90), "us"), 0, "all there");
            assert_eq!(tracker.left()[&partition()], left);
            assert_eq!(tracker.pass_taken(&candidate(committed, 500), "us"), 1, "100 alone");
            tracker.assign(partition(), 1, 500);
            assert!(!tracker.delivered(&origin(500), 1), "it is done");
            assert_eq!(tracker.next(&partition()), Some(501));
            assert!(!tracker.delivered(&origin(1000), 1), "it is done");
            assert!(tracker.delivered(&origin(1001), 1));
        }
        // Another learner has gone on, and what retention took was its to do.
        let mut tracker = restored();
        assert_eq!(tracker.pass_taken(&candidate(by("them", 300), 500), "us"), 0);
        assert_eq!(tracker.left()[&partition()], left);
        tracker.assign(partition(), 1, 500);
        assert!(tracker.delivered(&origin(500), 1));
    }

    #[test]
    fn an_older_generation_is_stale_and_a_revoked_partition_keeps_its_place() {
        let mut tracker = OffsetTracker::default();
        tracker.assign(partition(), 1, 0);
        assert!(tracker.delivered(&origin(0), 1));
        assert!(tracker.delivered(&origin(1), 1));
        assert!(tracker.done(&origin(0), 1));
        assert!(tracker.has(&partition()));
        tracker.revoke(&partition());
        assert!(!tracker.has(&partition()));
        assert!(!tracker.done(&origin(1), 1));
        assert!(!tracker.delivered(&origin(2), 1));
        assert_eq!(tracker.next(&partition()), Some(1));
        assert_eq!(tracker.in_flight(), 0);
        assert!(tracker.assigned_offsets().is_empty());
        assert_eq!(tracker.next_offsets()[&partition()], 1);
        tracker.ended(&partition(), 5);
        assert_eq!(tracker.next_offsets()[&partition()], 5);
        tracker.ended(&partition(), 1);

        tracker.assign(partition(), 2, 1);
        assert!(!tracker.is_current(&origin(1), 1));
        assert!(!tracker.delivered(&origin(1), 1));
        assert!(tracker.delivered(&origin(1), 2));
    }
}
