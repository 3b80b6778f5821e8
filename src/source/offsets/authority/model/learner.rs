//! A learner of the model: its state, its checkpoints, and what it may go back to.

use super::RECORDS;
use crate::source::offsets::{NextOffsets, Partition};
use std::collections::BTreeSet;

/// Checkpoints that a learner keeps, beside those since the one that was committed last.
const KEEP: usize = 1;

#[derive(Clone, Debug, Default)]
pub(super) struct State {
    pub(super) next: NextOffsets,
    /// What this learner has done, in order.
    pub(super) done: Vec<(Partition, i64)>,
}

#[derive(Clone, Debug)]
pub(super) struct Checkpoint {
    pub(super) state: State,
    /// What is to be committed of it.
    pub(super) offsets: NextOffsets,
    pub(super) sequence: usize,
}

#[derive(Debug, Default)]
pub(super) struct Learner {
    pub(super) id: String,
    pub(super) disk: Vec<Checkpoint>,
    /// The newest checkpoint that it knows to have been committed.
    pub(super) committed: Option<usize>,
    written: usize,
    /// The first checkpoint to which it may go back for its health: what it has done since an earlier one would be
    /// lost where others have gone on from it.
    floor: usize,
    pub(super) is_alive: bool,
    /// Whether the group counts it in: the broker takes commits of members alone.
    pub(super) is_member: bool,
    pub(super) state: State,
    pub(super) has: BTreeSet<Partition>,
}

impl Learner {
    pub(super) fn new(n: usize) -> Self {
        Self { id: format!("learner-{n}"), ..Self::default() }
    }

    pub(super) fn learn(&mut self, partition: &Partition, n: i64) {
        if self.is_alive && self.has.contains(partition) {
            let next = self.state.next.get_mut(partition).expect("what it has has a place");
            for offset in *next..(*next + n).min(RECORDS) {
                self.state.done.push((partition.clone(), offset));
                *next = offset + 1;
            }
        }
    }

    pub(super) fn die(&mut self) {
        (self.is_alive, self.committed) = (false, None);
        self.has.clear();
    }

    /// Writes a checkpoint of what it has, and of `also`, and removes old ones.
    pub(super) fn checkpoint(&mut self, also: &BTreeSet<Partition>) -> Checkpoint {
        let is_ours = |(p, _): &(&Partition, &i64)| self.has.contains(p) || also.contains(p);
        let offsets =
            self.state.next.iter().filter(is_ours).map(|(p, n)| (p.clone(), *n)).collect();
        let checkpoint = Checkpoint { state: self.state.clone(), offsets, sequence: self.written };
        self.written += 1;
        self.disk.push(checkpoint.clone());
        let known = self.committed;
        if let Some(at) = self.disk.iter().position(|c| Some(c.sequence) == known) {
            let kept = KEEP.max(self.disk.len() - at);
            self.disk.drain(..self.disk.len() - kept);
        }
        checkpoint
    }

    /// Becomes that of the newest checkpoint that is so; false if there is none.
    pub(super) fn go_back(&mut self, is_good: impl Fn(&State) -> bool) -> bool {
        let Some(at) = self.disk.iter().rposition(|c| is_good(&c.state)) else { return false };
        self.become_that_of(at);
        true
    }

    /// Others go on from its work as the checkpoint written last has it.
    pub(super) fn note_others(&mut self) {
        self.floor = self.disk.last().map_or(0, |newest| newest.sequence);
    }

    /// Becomes that of the checkpoint `n` before the newest, or of the first after that which is allowed: others have
    /// gone on from none that is later, and it has a place in each of `first`.
    pub(super) fn go_back_by(&mut self, n: usize, first: &BTreeSet<Partition>) {
        let is_allowed = |checkpoint: &Checkpoint| {
            let next = &checkpoint.state.next;
            checkpoint.sequence >= self.floor && first.iter().all(|p| next.contains_key(p))
        };
        let begin = self.disk.len().saturating_sub(n + 1);
        if let Some(after) = self.disk[begin..].iter().position(is_allowed) {
            self.become_that_of(begin + after);
        }
    }

    fn become_that_of(&mut self, at: usize) {
        self.disk.truncate(at + 1);
        self.state = self.disk[at].state.clone();
    }
}
