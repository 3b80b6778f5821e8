//! Fresh images in the order in which they are learned: as they arrive, or merged.

use super::merge::Merge;
use crate::batch::assemble::Fresh;
use crate::source::offsets::Partition;
use anyhow::Result;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The fresh images that wait.
#[derive(Default)]
pub(super) struct Lineup {
    fresh: VecDeque<Fresh>,
    /// Orders what comes, where that must not depend on what comes first.
    merge: Option<Merge>,
    first_at: Option<Instant>,
}

impl Lineup {
    /// One that merges partitions in one order.
    pub(super) fn merging() -> Self {
        Self { merge: Some(Merge::default()), ..Self::default() }
    }

    /// Lines an image up, or notes that there is none at this place.
    ///
    /// # Errors
    /// Too many images that wait for another partition.
    pub(super) fn push(
        &mut self,
        (partition, offset): &(Partition, i64),
        image: Option<Fresh>,
    ) -> Result<()> {
        match &mut self.merge {
            Some(merge) => {
                merge.push(partition, *offset, image)?;
                self.fresh.extend(std::iter::from_fn(|| merge.pop()));
            }
            None => self.fresh.extend(image),
        }
        if !self.fresh.is_empty() {
            self.first_at.get_or_insert_with(Instant::now);
        }
        Ok(())
    }

    /// Takes the first `n`.
    pub(super) fn take(&mut self, n: usize) -> Vec<Fresh> {
        let taken = self.fresh.drain(..n.min(self.fresh.len())).collect();
        self.first_at = (!self.fresh.is_empty()).then(Instant::now);
        taken
    }

    /// Puts back what was taken.
    pub(super) fn give_back(&mut self, images: Vec<Fresh>) {
        images.into_iter().rev().for_each(|image| self.fresh.push_front(image));
        if !self.fresh.is_empty() {
            self.first_at.get_or_insert_with(Instant::now);
        }
    }

    /// Drops all others.
    pub(super) fn retain(&mut self, is_kept: impl Fn(&Fresh) -> bool) {
        self.fresh.retain(is_kept);
        self.first_at = self.first_at.filter(|_| !self.fresh.is_empty());
    }

    /// Begins with `partition` at `offset`.
    pub(super) fn assign(&mut self, partition: &Partition, offset: i64) {
        if let Some(merge) = &mut self.merge {
            merge.assign(partition.clone(), offset);
        }
    }

    /// Forgets what is not in order yet of `partition`.
    pub(super) fn revoke(&mut self, partition: &Partition) {
        if let Some(merge) = &mut self.merge {
            merge.revoke(partition);
        }
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        (self.fresh, self.first_at) = (VecDeque::new(), None);
        self.merge = self.merge.as_ref().map(|_| Merge::default());
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.fresh.len()
    }

    /// How long the first has waited.
    pub(super) fn waited(&self) -> Duration {
        self.first_at.map_or(Duration::ZERO, |at| at.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::Pixels;
    use crate::source::Origin;

    fn image(offset: i64) -> ((Partition, i64), Option<Fresh>) {
        let origin = Origin { topic: "images".into(), partition: 0, offset };
        let pixels = Pixels { width_px: 0, height_px: 0, rgb: vec![] };
        let partition = Partition { topic: "images".into(), partition: 0 };
        let bytes = vec![].into();
        let fresh = Fresh { origin, generation: 1, bytes, pixels, timestamp_ms: None };
        ((partition, offset), Some(fresh))
    }

    /// Time passes for what waits, however it came to, and for nothing else.
    #[test]
    fn an_image_waits_from_when_it_is_there() {
        let mut lineup = Lineup::default();
        for offset in 0..2 {
            let (place, image) = image(offset);
            lineup.push(&place, image).unwrap();
        }
        assert!(lineup.first_at.is_some());
        let taken = lineup.take(2);
        assert!(lineup.first_at.is_none());
        lineup.give_back(taken);
        assert!(lineup.first_at.is_some());
        assert_eq!(lineup.fresh[0].origin.offset, 0);
        lineup.retain(|image| image.origin.offset == 1);
        assert!(lineup.first_at.is_some());
        lineup.retain(|_| false);
        assert!(lineup.first_at.is_none());
        lineup.give_back(vec![]);
        assert!(lineup.first_at.is_none());
    }
}
