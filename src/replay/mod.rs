//! The replay buffer: images seen before, kept as bytes, that top up later batches.
//!
//! A policy decides which images stay. It holds bytes, never pixels; views are made anew at each
//! use. All its randomness comes from counters, so a restored buffer goes on as it would have.
//!
//! To add a policy:
//! 1. write `src/replay/NAME.rs` with an impl of [`Replay`];
//! 2. add `mod NAME;` and a variant to [`Policy`];
//! 3. add its row to [`Config::build`];
//! 4. run `scripts/test replay`: the contract tests walk [`Policy::ALL`].

mod fifo;
mod none;
mod reservoir;

use crate::seed::{self, Purpose, Rng};
use crate::setting::{Invalid, within};
use crate::source::Origin;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// `[replay]`: which images are kept, and how many.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How the buffer chooses: `reservoir` keeps a uniform sample of all images ever learned, `fifo`
    /// the newest, `none` nothing.
    pub policy: Policy,
    /// The most bytes of images it holds, in memory and again on disk.
    pub max_bytes: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { policy: Policy::default(), max_bytes: 256 * 1024 * 1024 }
    }
}

/// The policies there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// A uniform sample of the past.
    #[default]
    Reservoir,
    /// The newest images.
    Fifo,
    /// No images.
    None,
}

impl Policy {
    /// Every kind, for tests that walk them.
    pub const ALL: [Self; 3] = [Self::Reservoir, Self::Fifo, Self::None];
}

impl Config {
    /// Checks every value.
    ///
    /// # Errors
    /// The first value that is not allowed, by key.
    pub fn validate(&self) -> Result<(), Invalid> {
        within("replay.max_bytes", self.max_bytes, 1_000_000.., "at least 1000000")
    }

    /// An empty buffer.
    pub fn build(&self, seed: u64) -> Box<dyn Replay> {
        match self.policy {
            Policy::Reservoir => Box::new(reservoir::Reservoir::new(self.max_bytes, seed)),
            Policy::Fifo => Box::new(fifo::Fifo::new(self.max_bytes)),
            Policy::None => Box::<none::None>::default(),
        }
    }
}

/// Where an entry's bytes lie on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredAt {
    /// Number of the segment file.
    pub segment: u64,
    /// First byte within it.
    pub position: u64,
}

/// One image in the buffer.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Where it came from.
    pub origin: Origin,
    /// Its encoded bytes.
    pub bytes: Bytes,
    /// Where they lie on disk, once they do.
    pub stored_at: Option<StoredAt>,
}

/// A buffer of past images.
pub trait Replay: Send {
    /// Offers an image that has just been learned for the first time.
    fn offer(&mut self, entry: Entry);

    /// How many images it has ever been offered.
    fn offered(&self) -> u64;

    /// What it holds.
    fn entries(&self) -> &[Entry];

    /// The same, so that the places of their bytes on disk can be noted.
    fn entries_mut(&mut self) -> &mut [Entry];

    /// Becomes the buffer that held `entries` after `offered` offers.
    fn restore(&mut self, entries: Vec<Entry>, offered: u64);
}

/// Draws `n` entries uniformly: different ones, unless the buffer holds fewer than `n`.
pub fn draw(replay: &dyn Replay, n: usize, seed: u64, step: u64) -> Vec<Entry> {
    let entries = replay.entries();
    if entries.is_empty() {
        return vec![];
    }
    let mut rng = seed::rng(seed, Purpose::Draw, &[step]);
    let mut drawn = Vec::with_capacity(n);
    while drawn.len() < n {
        let round = (n - drawn.len()).min(entries.len());
        drawn.extend(sample(&mut rng, entries.len(), round).map(|i| entries[i].clone()));
    }
    drawn
}

fn sample(rng: &mut Rng, from: usize, n: usize) -> impl Iterator<Item = usize> {
    rand::seq::index::sample(rng, from, n).into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;
    use std::sync::Arc;

    pub(super) fn entry(offset: i64, len: usize) -> Entry {
        let origin = Origin { topic: Arc::from("images"), partition: 0, offset };
        Entry { origin, bytes: Bytes::from(vec![offset as u8; len]), stored_at: None }
    }

    proptest! {
        #[test]
        fn every_policy_keeps_its_byte_budget_and_only_what_it_was_offered(
            lens in prop::collection::vec(1usize..400, 1..200),
        ) {
            for policy in Policy::ALL {
                let config = Config { policy, max_bytes: 2000 };
                let mut replay = config.build(5);
                for (offset, len) in lens.iter().enumerate() {
                    replay.offer(entry(offset as i64, *len));
                    let bytes: usize = replay.entries().iter().map(|e| e.bytes.len()).sum();
                    prop_assert!(bytes <= 2000);
                    prop_assert_eq!(replay.offered(), offset as u64 + 1);
                }
                let offsets: HashSet<i64> = replay.entries().iter().map(|e| e.origin.offset).collect();
                prop_assert_eq!(offsets.len(), replay.entries().len());
                for entry in replay.entries() {
                    prop_assert_eq!(entry.bytes.len(), lens[entry.origin.offset as usize]);
                }
            }
        }

        #[test]
        fn a_restored_buffer_goes_on_as_it_would_have(
            lens in prop::collection::vec(1usize..400, 2..120), cut in 0.0..1.0f64,
        ) {
            let cut = (lens.len() as f64 * cut) as usize;
            for policy in Policy::ALL {
                let config = Config { policy, max_bytes: 2000 };
                let mut straight = config.build(5);
                let mut resumed = config.build(5);
                for (offset, len) in lens.iter().enumerate() {
                    straight.offer(entry(offset as i64, *len));
                    if offset == cut {
                        resumed.restore(straight.entries().to_vec(), straight.offered());
                    } else if offset > cut {
                        resumed.offer(entry(offset as i64, *len));
                    }
                }
                prop_assert_eq!(straight.entries(), resumed.entries());
            }
        }
    }

    #[test]
    fn a_draw_has_no_entry_twice_unless_it_must() {
        let mut replay = Config::default().build(5);
        for offset in 0..10 {
            replay.offer(entry(offset, 8));
        }
        let offsets = |n, step| -> Vec<i64> {
            draw(&*replay, n, 1, step).iter().map(|e| e.origin.offset).collect()
        };
        assert_eq!(offsets(10, 3).into_iter().collect::<HashSet<_>>().len(), 10);
        assert_eq!(offsets(25, 3).len(), 25);
        assert_eq!(offsets(5, 3), offsets(5, 3));
        assert_ne!(offsets(5, 3), offsets(5, 4));
        assert!(draw(&*Config::default().build(5), 4, 1, 0).is_empty());
    }
}
