//! The partitions that we have.

use crate::source::offsets::{Ended, Partition};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

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
    owes_placing: AtomicBool,
    sent: AtomicU64,
}

impl Holding {
    /// The generation of records of `partition`, if we have it.
    pub(super) fn generation(&self, partition: &Partition) -> Option<u64> {
        self.lock().get(partition).map(|held| held.generation)
    }

    /// Who had `partition` before us.
    pub(super) fn before(&self, partition: &Partition) -> Vec<Ended> {
        self.lock().get(partition).map(|held| held.before.clone()).unwrap_or_default()
    }

    pub(super) fn has(&self, topic: &str, number: i32) -> bool {
        self.lock().keys().any(|key| key.partition == number && *key.topic == *topic)
    }

    pub(super) fn take_up(&self, partition: Partition, held: Held) {
        self.lock().insert(partition, held);
    }

    pub(super) fn let_go(&self, partition: &Partition) {
        self.lock().remove(partition);
    }

    /// Notes whether partitions are assigned to us that could not be begun, and are to be begun again.
    pub(super) fn owe_placing(&self, owes: bool) {
        self.owes_placing.store(owes, Ordering::Relaxed);
    }

    pub(super) fn owes_placing(&self) -> bool {
        self.owes_placing.load(Ordering::Relaxed)
    }

    /// Whether nothing later than the commit of this number has been sent; then it counts as sent.
    pub(super) fn is_newest(&self, sequence: u64) -> bool {
        self.sent.fetch_max(sequence, Ordering::Relaxed) <= sequence
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Partition, Held>> {
        self.partitions.lock().unwrap_or_else(PoisonError::into_inner)
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
}
