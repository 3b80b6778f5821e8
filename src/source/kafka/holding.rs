//! The partitions that we have.

use crate::source::offsets::{Ended, Partition};
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Time between two attempts to begin what is owed. A guess.
pub(super) const AGAIN: Duration = Duration::from_secs(1);

/// What we have of a partition.
#[derive(Clone, Debug)]
pub(super) struct Held {
    /// Records carry this number.
    pub(super) generation: u64,
    /// Who had it before: our commits say so.
    pub(super) before: Vec<Ended>,
}

/// What we have of the group's partitions, and what of it the broker knows.
#[derive(Debug, Default)]
pub(super) struct Holding {
    partitions: Mutex<HashMap<Partition, Held>>,
    owed: Mutex<Owed>,
    sent: AtomicU64,
}

/// Partitions that are assigned to us and could not be begun yet, or not begun again.
#[derive(Debug, Default)]
struct Owed {
    partitions: HashSet<Partition>,
    tried_at: Option<Instant>,
}

impl Holding {
    /// The generation of records of `partition`, if we have it.
    pub(super) fn generation(&self, partition: &Partition) -> Option<u64> {
        self.lock().get(partition).map(|held| held.generation)
    }

    /// Who had `partition` before us, if we have it.
    pub(super) fn before(&self, partition: &Partition) -> Option<Vec<Ended>> {
        self.lock().get(partition).map(|held| held.before.clone())
    }

    pub(super) fn has(&self, topic: &str, number: i32) -> bool {
        self.lock().keys().any(|key| key.partition == number && *key.topic == *topic)
    }

    pub(super) fn take_up(&self, partition: Partition, held: Held) {
        self.lock_owed().partitions.remove(&partition);
        self.lock().insert(partition, held);
    }

    pub(super) fn let_go(&self, partition: &Partition) {
        self.lock_owed().partitions.remove(partition);
        self.lock().remove(partition);
    }

    /// Notes partitions that are to be begun, or begun again; each is owed until it is taken up or let go.
    pub(super) fn owe(&self, partitions: Vec<Partition>) {
        let mut owed = self.lock_owed();
        owed.partitions.extend(partitions);
        owed.tried_at = Some(Instant::now());
    }

    pub(super) fn owes(&self, partition: &Partition) -> bool {
        self.lock_owed().partitions.contains(partition)
    }

    /// Whether some are owed, and it is time to try again.
    pub(super) fn is_time_to_begin(&self) -> bool {
        let mut owed = self.lock_owed();
        let is_time = !owed.partitions.is_empty()
            && owed.tried_at.is_none_or(|tried_at| tried_at.elapsed() >= AGAIN);
        if is_time {
            owed.tried_at = Some(Instant::now());
        }
        is_time
    }

    /// Whether nothing later than the commit of this number has been sent; then it counts as sent.
    pub(super) fn is_newest(&self, sequence: u64) -> bool {
        self.sent.fetch_max(sequence, Ordering::Relaxed) <= sequence
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Partition, Held>> {
        self.partitions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_owed(&self) -> MutexGuard<'_, Owed> {
        self.owed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_that_was_overtaken_is_none() {
        let holding = Holding::default();
        let sent = [3, 5, 4, 5, 6].map(|sequence| holding.is_newest(sequence));
        assert_eq!(sent, [true, true, false, true, true]);
    }

    /// Whatever becomes of others meanwhile: a later assignment says nothing of those that are kept.
    #[test]
    fn a_partition_is_owed_until_it_is_taken_up_or_let_go() {
        let partition = |number| Partition { topic: "images".into(), partition: number };
        let take_up = |holding: &Holding, number| {
            holding.take_up(partition(number), Held { generation: 1, before: vec![] });
        };
        let holding = Holding::default();
        assert!(!holding.is_time_to_begin(), "nothing is owed");
        holding.owe(vec![partition(0), partition(1)]);
        assert!(!holding.is_time_to_begin(), "it has just been tried");
        holding.owe(vec![]);
        holding.owe(vec![partition(2)]);
        take_up(&holding, 2);
        let owed = || [0, 1, 2].map(|number| holding.owes(&partition(number)));
        assert_eq!(owed(), [true, true, false]);
        holding.lock_owed().tried_at = None;
        assert!(holding.is_time_to_begin());
        assert!(!holding.is_time_to_begin(), "it has just been tried");
        take_up(&holding, 0);
        holding.let_go(&partition(1));
        assert_eq!(owed(), [false; 3]);
        holding.lock_owed().tried_at = None;
        assert!(!holding.is_time_to_begin(), "nothing is owed");
    }
}
