//! What is true of one partition, by sets of offsets.

use crate::source::Origin;
use crate::source::offsets::{Left, Partition};
use std::collections::BTreeSet;

/// What is true of one partition.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) partition: Partition,
    /// Offsets of the records that the broker has.
    pub(super) log: Vec<i64>,
    /// Where reading began last.
    pub(super) begin: i64,
    /// How many records of the log lie before the next one to be delivered.
    pub(super) n_read: usize,
    /// The assignment; `None` while we don't have the partition.
    pub(super) generation: Option<u64>,
    /// All that was ever done, as far as it is known.
    pub(super) done: BTreeSet<i64>,
}

impl Line {
    pub(super) fn new(number: i32, gaps: &[i64]) -> Self {
        let step = |at: &mut i64, gap: &i64| {
            *at += gap;
            Some(*at)
        };
        Self {
            partition: Partition { topic: "images".into(), partition: number },
            log: gaps.iter().scan(9, step).collect(),
            begin: 10,
            n_read: 0,
            generation: None,
            done: BTreeSet::new(),
        }
    }

    pub(super) fn origin(&self, offset: i64) -> Origin {
        let Partition { topic, partition } = self.partition.clone();
        Origin { topic, partition, offset }
    }

    /// What has been delivered since reading began.
    pub(super) fn delivered(&self) -> &[i64] {
        &self.log[self.log.partition_point(|offset| *offset < self.begin)..self.n_read]
    }

    /// One past the last record of the done prefix of what was delivered.
    pub(super) fn next(&self) -> i64 {
        let prefix = self.delivered().iter().take_while(|offset| self.done.contains(*offset));
        prefix.last().map_or(self.begin, |last| last + 1)
    }

    pub(super) fn left(&self) -> Left {
        let next = self.next();
        Left { next, done_ahead: self.done.range(next..).copied().collect() }
    }

    pub(super) fn in_flight(&self) -> usize {
        self.delivered().iter().filter(|offset| !self.done.contains(*offset)).count()
    }

    pub(super) fn begin_at(&mut self, offset: i64, generation: Option<u64>) {
        self.begin = offset;
        self.n_read = self.log.partition_point(|record| *record < offset);
        self.generation = generation;
    }
}
