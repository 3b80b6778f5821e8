//! Reservoir sampling (Vitter, "Random Sampling with a Reservoir", ACM TOMS 11(1), 1985,
//! algorithm R), under a budget of bytes.
//!
//! Until the budget is first reached every image stays. From then on the n-th image enters with
//! probability k/n, k being the entries held, and random entries leave until it fits. For images
//! of one size that is algorithm R; for mixed sizes k moves and the sample is only nearly uniform.

use super::{Entry, Replay};
use crate::seed::{self, Purpose};
use rand::RngExt;

/// A uniform sample of all images offered.
pub(super) struct Reservoir {
    max_bytes: usize,
    seed: u64,
    bytes: usize,
    offered: u64,
    entries: Vec<Entry>,
}

impl Reservoir {
    /// An empty reservoir of at most `max_bytes` bytes of images.
    pub(super) fn new(max_bytes: usize, seed: u64) -> Self {
        Self { max_bytes, seed, bytes: 0, offered: 0, entries: vec![] }
    }
}

impl Replay for Reservoir {
    fn offer(&mut self, entry: Entry) {
        self.offered += 1;
        let len = entry.bytes.len();
        if len > self.max_bytes {
            return;
        }
        if self.bytes + len > self.max_bytes {
            let mut rng = seed::rng(self.seed, Purpose::Reservoir, &[self.offered]);
            if rng.random_range(0..self.offered) >= self.entries.len() as u64 {
                return;
            }
            while self.bytes + len > self.max_bytes {
                let leaving = rng.random_range(0..self.entries.len());
                self.bytes -= self.entries.swap_remove(leaving).bytes.len();
            }
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

    fn restore(&mut self, entries: Vec<Entry>, offered: u64) {
        self.bytes = entries.iter().map(|entry| entry.bytes.len()).sum();
        self.offered = offered;
        self.entries = entries;
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
}
