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

mod centroid;
mod fifo;
mod held;
mod min_red;
mod none;
pub mod repeats;
mod reservoir;
pub mod sketch;

use crate::seed::{self, Purpose, Rng};
use crate::setting::{Invalid, within};
use crate::source::Origin;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sketch::Sketch;
use std::collections::BTreeMap;

/// `[replay]`: which images are kept, and how many.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How the buffer chooses: `reservoir` keeps a uniform sample of all images ever learned, `fifo`
    /// the newest, `min-red` those that look least like another, `centroid` as many of each kind of
    /// look, `none` nothing.
    pub policy: Policy,
    /// The most bytes of images it holds, in memory and again on disk. An image counts 256 bytes
    /// more with `min-red` and `centroid`, for what it looks like.
    pub max_bytes: usize,
    /// Kinds of look that `centroid` tells apart.
    pub centroids: usize,
    /// An image is not kept where it is a near-duplicate of one of so many that were kept last; 0
    /// keeps all.
    pub duplicate_window: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            policy: Policy::default(),
            max_bytes: 256 * 1024 * 1024,
            centroids: 64,
            duplicate_window: 0,
        }
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
    /// The least redundant images.
    MinRed,
    /// As many images of each cluster.
    Centroid,
    /// No images.
    None,
}

impl Policy {
    /// Every kind, for tests that walk them.
    pub const ALL: [Self; 5] =
        [Self::Reservoir, Self::Fifo, Self::MinRed, Self::Centroid, Self::None];
}

impl Config {
    /// Checks every value.
    ///
    /// # Errors
    /// The first value that is not allowed, by key.
    pub fn validate(&self) -> Result<(), Invalid> {
        within("replay.max_bytes", self.max_bytes, 1_000_000.., "at least 1000000")?;
        within("replay.centroids", self.centroids, 1..=4096, "from 1 to 4096")?;
        let key = "replay.duplicate_window";
        within(key, self.duplicate_window, 0..=100_000, "from 0 to 100000")
    }

    /// An empty buffer.
    pub fn build(&self, seed: u64) -> Box<dyn Replay> {
        match self.policy {
            Policy::Reservoir => Box::new(reservoir::Reservoir::new(self.max_bytes, seed)),
            Policy::Fifo => Box::new(fifo::Fifo::new(self.max_bytes)),
            Policy::MinRed => Box::new(min_red::MinRed::new(self.max_bytes, seed)),
            Policy::Centroid => {
                Box::new(centroid::Balanced::new(self.max_bytes, self.centroids, seed))
            }
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
    /// What it looks like to the encoder, where the policy wants to know.
    pub sketch: Option<Sketch>,
}

impl Entry {
    /// Its origin's hash, by which a step tells what its images look like.
    pub fn id(&self) -> u64 {
        self.origin.seed()
    }
}

/// What a policy keeps beside its entries, by name, for checkpoints.
pub type State = BTreeMap<String, Vec<f32>>;

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

    /// Drops the entries that `is_kept` says no to. Their room is for what is offered next.
    fn retain(&mut self, is_kept: &dyn Fn(&Entry) -> bool);

    /// Becomes the buffer that held `entries` after `offered` offers.
    fn restore(&mut self, entries: Vec<Entry>, offered: u64);

    /// Whether entries are to be offered with their sketches, and later ones told by `seen`.
    fn wants_sketches(&self) -> bool {
        false
    }

    /// Tells what a step made of the image `id`, which may have left already.
    fn seen(&mut self, _id: u64, _sketch: &Sketch) {}

    /// What it needs to go on exactly as it would have, beside its entries.
    fn state(&self) -> State {
        State::new()
    }

    /// Takes what `state` gave, after `restore`; what does not fit, as another policy's, is passed
    /// over.
    fn load_state(&mut self, _state: &State) {}
}

fn named<const N: usize>(columns: [(&str, Vec<f32>); N]) -> State {
    columns.map(|(name, values)| (name.to_owned(), values)).into()
}

/// Draws `n` entries uniformly: different ones, unless the buffer holds fewer than `n`.
pub fn draw(replay: &dyn Replay, n: usize, seed: u64, step: u64) -> Vec<Entry> {
    draw_from(replay.entries(), n, seed, step)
}

/// The same of `entries`, whoever holds them.
pub fn draw_from(entries: &[Entry], n: usize, seed: u64, step: u64) -> Vec<Entry> {
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

/// Offers `pending` to the buffer in its order, but for the last `n_stay`.
pub fn offer_all_but(replay: &mut dyn Replay, pending: &mut Vec<Entry>, n_stay: usize) {
    let n_offered = pending.len().saturating_sub(n_stay);
    pending.drain(..n_offered).for_each(|entry| replay.offer(entry));
}

fn sample(rng: &mut Rng, from: usize, n: usize) -> impl Iterator<Item = usize> {
    rand::seq::index::sample(rng, from, n).into_iter()
}

#[cfg(test)]
mod model;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;
    use std::sync::Arc;

    /// The budget of a small buffer.
    pub(super) const MAX_BYTES: usize = 5000;

    pub(super) fn entry(offset: i64, len: usize) -> Entry {
        let origin = Origin { topic: Arc::from("images"), partition: 0, offset };
        let bytes = Bytes::from(vec![offset as u8; len]);
        Entry { origin, bytes, stored_at: None, sketch: None }
    }

    /// The same with a look of one of seven kinds.
    fn looking(offset: i64, len: usize) -> Entry {
        Entry { sketch: Some(look(offset as usize)), ..entry(offset, len) }
    }

    pub(super) fn look(number: usize) -> Sketch {
        let mut values = [0.0; sketch::LEN];
        values[number % 7] = 1.0;
        values[7 + number % 11] = 0.3;
        Sketch::new(values)
    }

    pub(super) fn small(policy: Policy) -> Box<dyn Replay> {
        Config { policy, max_bytes: MAX_BYTES, centroids: 3, duplicate_window: 0 }.build(5)
    }

    proptest! {
        #[test]
        fn every_policy_keeps_its_byte_budget_and_only_what_it_was_offered(
            lens in prop::collection::vec(1usize..400, 1..200),
        ) {
            for policy in Policy::ALL {
                let mut replay = small(policy);
                let sketch = if replay.wants_sketches() { sketch::BYTES } else { 0 };
                for (offset, len) in lens.iter().enumerate() {
                    replay.offer(looking(offset as i64, *len));
                    let costs = replay.entries().iter().map(|e| e.bytes.len() + sketch);
                    prop_assert!(costs.sum::<usize>() <= MAX_BYTES);
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
                let (mut straight, mut resumed) = (small(policy), small(policy));
                for (offset, len) in lens.iter().enumerate() {
                    // Every offer is followed by a step that sees an older image.
                    let seen = entry((offset * 7919 % (offset + 1)) as i64, 1).id();
                    let go_on = |replay: &mut dyn Replay| {
                        replay.offer(looking(offset as i64, *len));
                        replay.seen(seen, &look(offset * 31));
                    };
                    go_on(&mut *straight);
                    if offset == cut {
                        resumed.restore(straight.entries().to_vec(), straight.offered());
                        resumed.load_state(&straight.state());
                    } else if offset > cut {
                        go_on(&mut *resumed);
                    }
                }
                prop_assert_eq!(straight.entries(), resumed.entries());
                prop_assert_eq!(straight.state(), resumed.state());
            }
        }
    }

    /// After a change of policy: entries without looks, and another policy's state.
    #[test]
    fn every_policy_takes_anothers_checkpoint() {
        for from in Policy::ALL {
            for to in Policy::ALL {
                let (mut old, mut new) = (small(from), small(to));
                (0..40).for_each(|offset| old.offer(looking(offset, 100)));
                let bare = |entry: &Entry| Entry { sketch: None, ..entry.clone() };
                let entries: Vec<Entry> = old.entries().iter().map(bare).collect();
                new.restore(entries, old.offered());
                new.load_state(&old.state());
                (40..90).for_each(|offset| new.offer(looking(offset, 100)));
                let kept = new.entries().len();
                assert!(kept > 10 || to == Policy::None, "{from:?} to {to:?}: {kept}");
            }
        }
    }

    fn offsets(entries: &[Entry]) -> Vec<i64> {
        let mut offsets: Vec<i64> = entries.iter().map(|entry| entry.origin.offset).collect();
        offsets.sort_unstable();
        offsets
    }

    #[test]
    fn every_policy_drops_what_it_is_told_to_and_fills_the_room_again() {
        let is_kept = |entry: &Entry| entry.origin.offset % 4 == 0;
        for policy in Policy::ALL {
            let mut replay = small(policy);
            (0..200).for_each(|offset| replay.offer(looking(offset, 100)));
            let before = offsets(replay.entries());
            replay.retain(&is_kept);
            let expected: Vec<i64> = before.iter().copied().filter(|o| o % 4 == 0).collect();
            assert_eq!(offsets(replay.entries()), expected, "{policy:?}");
            // A restart goes on from there.
            let mut restored = small(policy);
            restored.restore(replay.entries().to_vec(), replay.offered());
            restored.load_state(&replay.state());
            for offset in 200..300 {
                replay.offer(looking(offset, 100));
                restored.offer(looking(offset, 100));
            }
            assert_eq!(replay.entries(), restored.entries(), "{policy:?}");
            assert_eq!(replay.entries().len(), before.len(), "{policy:?}");
        }
    }

    #[test]
    fn all_but_the_last_are_offered_in_their_order() {
        let (mut fifo, mut pending) = (small(Policy::Fifo), vec![]);
        for batch in 0..5 {
            pending.extend((3 * batch..3 * batch + 3).map(|offset| entry(offset, 10)));
            offer_all_but(&mut *fifo, &mut pending, 4);
        }
        let held: Vec<i64> = fifo.entries().iter().map(|entry| entry.origin.offset).collect();
        assert_eq!(held, (0..11).collect::<Vec<_>>());
        assert_eq!(offsets(&pending), [11, 12, 13, 14]);
        offer_all_but(&mut *fifo, &mut pending, 0);
        assert!(pending.is_empty() && fifo.entries().len() == 15);
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
