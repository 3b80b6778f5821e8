//! Partitions merged in one order, whatever order they arrive in: by offset, then by partition.
//!
//! With partitions that fill alike that is round-robin, and since it is a function of the offsets alone, a
//! learner that begins in the middle goes on in the same order. An image is let through once no partition can
//! bring one that comes before it, so a partition without new records holds the others up.

use crate::batch::assemble::Fresh;
use crate::source::offsets::Partition;
use anyhow::{Result, ensure};
use std::collections::{BTreeMap, VecDeque};

/// Images that may wait for a partition that brings nothing. A guess: some fetches of a few partitions.
const MOST_IMAGES: usize = 20_000;

/// The partitions that are read.
#[derive(Default)]
pub(super) struct Merge {
    lines: BTreeMap<Partition, Line>,
    n_waiting: usize,
}

/// What waits of one partition.
struct Line {
    /// The least offset that its next record can have.
    next: i64,
    images: VecDeque<Fresh>,
}

impl Merge {
    /// Begins with `partition` at `offset`.
    pub(super) fn assign(&mut self, partition: Partition, offset: i64) {
        self.revoke(&partition);
        self.lines.insert(partition, Line { next: offset, images: VecDeque::new() });
    }

    /// Forgets `partition`.
    pub(super) fn revoke(&mut self, partition: &Partition) {
        if let Some(line) = self.lines.remove(partition) {
            self.n_waiting -= line.images.len();
        }
    }

    /// Notes that a record of `partition` at `offset` has come, with its image if it has one.
    ///
    /// # Errors
    /// Too many images that wait for another partition.
    pub(super) fn push(
        &mut self,
        partition: &Partition,
        offset: i64,
        image: Option<Fresh>,
    ) -> Result<()> {
        if let Some(line) = self.lines.get_mut(partition) {
            line.next = offset + 1;
            self.n_waiting += usize::from(image.is_some());
            line.images.extend(image);
        }
        ensure!(
            self.n_waiting <= MOST_IMAGES,
            "run.deterministic: {MOST_IMAGES} images wait for a partition without new records"
        );
        Ok(())
    }

    /// The next image in order, once it is known to be that.
    pub(super) fn pop(&mut self) -> Option<Fresh> {
        // What a partition brings next, or may bring at the earliest.
        let first = |(partition, line): (&Partition, &Line)| {
            let offset = line.images.front().map_or(line.next, |image| image.origin.offset);
            (offset, partition.clone())
        };
        let (_, partition) = self.lines.iter().map(first).min()?;
        let image = self.lines.get_mut(&partition)?.images.pop_front()?;
        self.n_waiting -= 1;
        Some(image)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::Pixels;
    use crate::source::Origin;
    use proptest::prelude::*;

    fn partition(number: i32) -> Partition {
        Partition { topic: "images".into(), partition: number }
    }

    fn image(number: i32, offset: i64) -> Fresh {
        let origin = Origin { topic: "images".into(), partition: number, offset };
        let pixels = Pixels { width_px: 0, height_px: 0, rgb: vec![] };
        Fresh { origin, generation: 1, bytes: vec![].into(), pixels, timestamp_ms: None }
    }

    /// Merges what `lines` hold of partitions 0, 1, ...: an offset, and whether it is an image. They
    /// arrive in turns that `turns` draws.
    fn merged(lines: &[Vec<(i64, bool)>], turns: &[usize]) -> Vec<(i64, i32)> {
        let mut merge = Merge::default();
        (0..lines.len()).for_each(|number| merge.assign(partition(number as i32), 0));
        let mut at = vec![0; lines.len()];
        let mut order = vec![];
        let all: usize = lines.iter().map(Vec::len).sum();
        for turn in turns.iter().cycle().take(100 * all) {
            let number = turn % lines.len();
            let Some((offset, is_image)) = lines[number].get(at[number]) else { continue };
            at[number] += 1;
            let image = is_image.then(|| image(number as i32, *offset));
            merge.push(&partition(number as i32), *offset, image).unwrap();
            while let Some(image) = merge.pop() {
                order.push((image.origin.offset, image.origin.partition));
            }
        }
        order
    }

    proptest! {
        #[test]
        fn the_order_is_that_of_offsets_however_records_arrive(
            lines in prop::collection::vec(prop::collection::vec((1i64..3, any::<bool>()), 1..20), 1..4),
            turns in prop::collection::vec(0usize..4, 1..30),
        ) {
            let lines: Vec<Vec<(i64, bool)>> = lines
                .iter()
                .map(|line| {
                    let mut at = -1;
                    line.iter().map(|(gap, is_image)| { at += gap; (at, *is_image) }).collect()
                })
                .collect();
            // Every partition has its turn in the end.
            let turns: Vec<usize> = turns.into_iter().chain(0..lines.len()).collect();
            let order = merged(&lines, &turns);
            prop_assert!(order.is_sorted(), "{:?}", order);
            // All but those that a partition that has ended still holds up.
            let end = lines.iter().enumerate().map(|(n, l)| (l[l.len() - 1].0 + 1, n as i32)).min();
            let mut all: Vec<(i64, i32)> = lines
                .iter()
                .enumerate()
                .flat_map(|(n, line)| line.iter().filter(|r| r.1).map(move |r| (r.0, n as i32)))
                .filter(|at| Some(*at) < end)
                .collect();
            all.sort_unstable();
            prop_assert_eq!(order, all);
        }
    }

    #[test]
    fn a_partition_given_up_holds_nothing_up_and_too_many_that_wait_are_an_error() {
        let mut merge = Merge::default();
        (0..2).for_each(|number| merge.assign(partition(number), 0));
        merge.push(&partition(1), 0, Some(image(1, 0))).unwrap();
        assert!(merge.pop().is_none());
        merge.revoke(&partition(0));
        assert!(merge.pop().is_some());
        merge.assign(partition(0), 0);
        let pushed = (1..).map(|at| merge.push(&partition(1), at, Some(image(1, at))));
        let n_taken = pushed.take_while(Result::is_ok).count();
        assert_eq!(n_taken, MOST_IMAGES);
        merge.revoke(&partition(1));
        assert_eq!(merge.n_waiting, 0);
    }
}
