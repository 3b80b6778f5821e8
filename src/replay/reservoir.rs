//! Reservoir sampling (Vitter, "Random Sampling with a Reservoir", ACM TOMS 11(1), 1985,
//! algorithm R), under a budget of bytes.
//!
//! Until the budget is first reached every image stays. From then on the n-th image enters with
//! probability k/n, k being the entries held, and random entries leave until it fits. For images
//! of one size that is algorithm R; for mixed sizes k moves and the sample is only nearly uniform.
//! An image that fits where a larger one has left has no better chance: the room that evictions leave
//! would else fill with what is new and small. What a very large one displaces therefore comes back only as fast
//! as the stream goes on: images near the budget's size leave part of it empty.

use super::{Entry, Replay, State, named};
use crate::seed::{self, Purpose};
use rand::RngExt;

/// The name of [`Reservoir::has_been_full`] in its state.
const FULL: &str = "full";

/// A uniform sample of all images offered.
pub(super) struct Reservoir {
    max_bytes: usize,
    seed: u64,
    bytes: usize,
    offered: u64,
    entries: Vec<Entry>,
    /// Whether an image has ever found too little room.
    has_been_full: bool,
}

impl Reservoir {
    /// An empty reservoir of at most `max_bytes` bytes of images.
    pub(super) fn new(max_bytes: usize, seed: u64) -> Self {
        Self { max_bytes, seed, bytes: 0, offered: 0, entries: vec![], has_been_full: false }
    }

    /// Random entries leave until there is room for `len` bytes.
    fn make_room(&mut self, len: usize, rng: &mut seed::Rng) {
        while self.bytes + len > self.max_bytes {
            let leaving = rng.random_range(0..self.entries.len());
            self.bytes -= self.entries.swap_remove(leaving).bytes.len();
        }
    }

    fn rng(&self) -> seed::Rng {
        seed::rng(self.seed, Purpose::Reservoir, &[self.offered])
    }
}

impl Replay for Reservoir {
    fn offer(&mut self, entry: Entry) {
        self.offered += 1;
        let len = entry.bytes.len();
        if len > self.max_bytes {
            return;
        }
        self.has_been_full |= self.bytes + len > self.max_bytes;
        if self.has_been_full {
            let mut rng = self.rng();
            if rng.random_range(0..self.offered) >= self.entries.len() as u64 {
                return;
            }
            self.make_room(len, &mut rng);
        }
        self.bytes += len;
        self.entries.push(entry);
    }

    fn offered(&self) -> u64 {
        self.offered
    }

    fn entries(&self) -> &[Entry] {
        &self.entries
    }

    fn entries_mut(&mut self) -> &mut [Entry] {
        &mut self.entries
    }

    fn retain(&mut self, is_kept: &dyn Fn(&Entry) -> bool) {
        self.entries.retain(is_kept);
        let left: usize = self.entries.iter().map(|entry| entry.bytes.len()).sum();
        // The sample begins again to grow: it would hardly ever fill what is free now.
        self.has_been_full &= left == self.bytes;
        self.bytes = left;
    }

    fn restore(&mut self, entries: Vec<Entry>, offered: u64) {
        let lens = || entries.iter().map(|entry| entry.bytes.len());
        self.bytes = lens().sum();
        self.offered = offered;
        // Where no state says it.
        self.has_been_full = self.bytes + lens().max().unwrap_or(0) > self.max_bytes;
        self.entries = entries;
    }

    fn state(&self) -> State {
        named([(FULL, vec![f32::from(u8::from(self.has_been_full))])])
    }

    fn load_state(&mut self, state: &State) {
        if let Some(full) = state.get(FULL) {
            self.has_been_full = full[..] == [1.0];
        }
        // The budget may be smaller than it was; one that holds nothing has all of it.
        self.has_been_full |= self.bytes > self.max_bytes;
        let mut rng = self.rng();
        self.make_room(0, &mut rng);
        self.has_been_full &= !self.entries.is_empty();
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::entry;
    use super::*;

    #[test]
    fn every_image_is_as_likely_to_stay() {
        const OFFERS: usize = 50;
        const KEPT: usize = 10;
        const RUNS: usize = 4000;
        let mut stays = [0usize; OFFERS];
        for run in 0..RUNS {
            let mut reservoir = Reservoir::new(KEPT * 100, run as u64);
            for offset in 0..OFFERS {
                reservoir.offer(entry(offset as i64, 100));
            }
            assert_eq!(reservoir.entries().len(), KEPT);
            for entry in reservoir.entries() {
                stays[entry.origin.offset as usize] += 1;
            }
        }
        // Binomial: 800 expected, standard deviation 25; five of them.
        for (offset, stays) in stays.iter().enumerate() {
            assert!(stays.abs_diff(RUNS * KEPT / OFFERS) < 127, "offset {offset}: {stays}");
        }
    }

    /// From 20 to 180 bytes, 100 on average: what is kept is as old, and as large, as what was offered.
    #[test]
    fn images_of_mixed_sizes_are_as_likely_to_stay_whatever_their_age_or_size() {
        const OFFERS: usize = 400;
        const RUNS: usize = 500;
        let mut quarters = [0usize; 4];
        let mut bytes = 0;
        for run in 0..RUNS {
            let mut reservoir = Reservoir::new(2000, run as u64);
            for offset in 0..OFFERS {
                let len = 20 + (offset * 7919 + run * 31) % 161;
                reservoir.offer(entry(offset as i64, len));
            }
            for entry in reservoir.entries() {
                quarters[entry.origin.offset as usize * 4 / OFFERS] += 1;
                bytes += entry.bytes.len();
            }
        }
        let kept = quarters.iter().sum::<usize>() as f64;
        // Four deviations of a share of so many.
        let bound = 4.0 * (0.25 * 0.75 / kept).sqrt();
        assert!(quarters.iter().all(|n| (*n as f64 / kept - 0.25).abs() < bound), "{quarters:?}");
        let mean = bytes as f64 / kept;
        assert!((mean - 100.0).abs() < 3.0, "{mean}");
    }

    #[test]
    fn a_smaller_budget_holds_from_the_restart_on() {
        let mut large = Reservoir::new(1000, 1);
        (0..8).for_each(|offset| large.offer(entry(offset, 100)));
        let restarted = |max_bytes| {
            let mut small = Reservoir::new(max_bytes, 1);
            small.restore(large.entries().to_vec(), large.offered());
            small.load_state(&large.state());
            small
        };
        let mut small = restarted(350);
        assert_eq!(small.entries().len(), 3);
        assert!(small.has_been_full, "its room is no new one's");
        // There is room for five; by the lottery all of them enter once in sixty times, and not by this seed.
        (8..13).for_each(|offset| small.offer(entry(offset, 10)));
        assert!(small.entries().len() < 8, "{}", small.entries().len());
        // Nothing that it held fits: it begins anew.
        let mut tiny = restarted(50);
        tiny.offer(entry(8, 10));
        assert_eq!(tiny.entries().len(), 1);
    }

    /// One that has kept nothing, as another policy may have, has room.
    #[test]
    fn an_empty_one_fills_whatever_was_offered_before() {
        let mut reservoir = Reservoir::new(1000, 1);
        reservoir.restore(vec![], 1_000_000);
        (0..10).for_each(|offset| reservoir.offer(entry(offset, 100)));
        assert_eq!(reservoir.entries().len(), 10);
    }
}
