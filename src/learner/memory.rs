//! What the learner remembers beside its weights: the replay buffer, offsets, counts; afresh, or as a
//! checkpoint held it.

use super::state::restore_trainer;
use super::trainer::Trainer;
use crate::checkpoint::{Checkpoint, Counts, Manifest, Restored};
use crate::encoder::{Array, NamedArrays};
use crate::replay::repeats::Repeats;
use crate::replay::sketch::{self, Sketch};
use crate::replay::{self, Entry, Replay};
use crate::source::offsets::OffsetTracker;
use anyhow::Result;

/// Prefix of the buffer's names in checkpoints, and the name of the sketches of what it holds and of
/// what waits for it, in their order.
const REPLAY: &str = "replay.";
const SKETCHES: &str = "sketches";

/// What a memory is made from.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) replay: replay::Config,
    pub(super) seed: u64,
    /// Bits in which the fingerprints of near-duplicates may differ.
    pub(super) duplicate_bits: u32,
    /// Side of the encoder's input.
    pub(super) side_px: usize,
}

/// The memory of a learner.
pub(super) struct Memory {
    pub(super) replay: Box<dyn Replay>,
    pub(super) repeats: Repeats,
    /// Images learned in the last step: offered to the buffer after the next draw, so that a batch
    /// can be drawn while the one before it is learned. Where nothing is kept, as many of those learned last
    /// as a batch has stay.
    pub(super) pending: Vec<Entry>,
    pub(super) tracker: OffsetTracker,
    pub(super) counts: Counts,
}

impl Memory {
    /// An empty one.
    pub(super) fn fresh(shape: &Shape) -> Self {
        let Shape { replay, seed, duplicate_bits, .. } = shape;
        Self {
            replay: replay.build(*seed),
            repeats: Repeats::new(replay.duplicate_window, *duplicate_bits),
            pending: vec![],
            tracker: OffsetTracker::default(),
            counts: Counts::default(),
        }
    }

    /// What a checkpoint held, whose weights go into `trainer`; with the rest of its manifest.
    ///
    /// # Errors
    /// A checkpoint of another encoder.
    pub(super) fn restored(
        shape: &Shape,
        trainer: &mut Trainer,
        restored: Restored,
    ) -> Result<(Self, Manifest)> {
        restore_trainer(trainer, &restored, shape.side_px)?;
        let mut memory = Self::fresh(shape);
        let manifest = memory.fill(restored);
        memory.tracker = OffsetTracker::restore(manifest.left());
        memory.counts = manifest.counts;
        Ok((memory, manifest))
    }

    /// Fills the buffer with what a checkpoint held.
    fn fill(&mut self, restored: Restored) -> Manifest {
        let Restored { checkpoint, mut entries, mut pending } = restored;
        let Checkpoint { manifest, arrays, .. } = checkpoint;
        let ours = arrays.into_iter().filter_map(|(name, array)| {
            Some((name.strip_prefix(REPLAY)?.to_owned(), array.values))
        });
        let state: replay::State = ours.collect();
        let sketches = state.get(SKETCHES).map_or(&[][..], |values| values);
        let (rows, _) = sketches.as_chunks::<{ sketch::LEN }>();
        for (entry, row) in entries.iter_mut().chain(&mut pending).zip(rows) {
            let is_there = row.iter().any(|value| *value != 0.0);
            entry.sketch = is_there.then(|| Sketch::restored(*row));
        }
        self.replay.restore(entries, manifest.replay_offered);
        self.replay.load_state(&state);
        self.repeats.load_state(&state);
        self.pending = pending;
        manifest
    }
}

/// What a checkpoint holds of the buffer beside its images.
pub(super) fn replay_arrays(
    (replay, repeats): (&dyn Replay, &Repeats),
    pending: &[Entry],
) -> NamedArrays {
    let mut columns = replay.state();
    columns.extend(repeats.state());
    if replay.wants_sketches() {
        // An image without a sketch has zeros.
        let values = |entry: &Entry| match &entry.sketch {
            Some(sketch) => *sketch.values(),
            None => [0.0; sketch::LEN],
        };
        let entries = replay.entries().iter().chain(pending);
        columns.insert(SKETCHES.to_owned(), entries.flat_map(values).collect());
    }
    let is_whole = |(_, values): &(String, Vec<f32>)| !values.is_empty();
    let columns = columns.into_iter().filter(is_whole);
    columns
        .map(|(name, values)| {
            (format!("{REPLAY}{name}"), Array { shape: vec![values.len()], values })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Buffer, pending images and their looks come back as they were.
    #[test]
    fn a_buffer_goes_through_a_checkpoint() {
        use crate::source::Origin;
        for policy in replay::Policy::ALL {
            let config =
                replay::Config { policy, duplicate_window: 9, ..replay::Config::default() };
            let mut buffer = config.build(5);
            let entry = |offset: i64| {
                let mut values = [0.0; sketch::LEN];
                (values[offset as usize % 5], values[40]) = (1.0, offset as f32 / 100.0);
                let origin = Origin { topic: "images".into(), partition: 0, offset };
                let sketch = buffer.wants_sketches().then(|| Sketch::new(values));
                Entry { origin, bytes: vec![1; 10].into(), stored_at: None, sketch }
            };
            let (held, pending): (Vec<Entry>, Vec<Entry>) =
                ((0..20).map(entry).collect(), (20..23).map(entry).collect());
            held.into_iter().for_each(|entry| buffer.offer(entry));
            let mut repeats = Repeats::new(9, 3);
            assert!(!repeats.is_repeat(u64::MAX / 3));
            let arrays = replay_arrays((&*buffer, &repeats), &pending);
            let bare = |entry: &Entry| Entry { sketch: None, ..entry.clone() };
            let manifest = Manifest { replay_offered: 20, ..Manifest::default() };
            let shape = Shape { replay: config, seed: 5, duplicate_bits: 3, side_px: 32 };
            let mut restored = Memory::fresh(&shape);
            restored.fill(Restored {
                checkpoint: Checkpoint { id: String::new(), manifest, arrays },
                entries: buffer.entries().iter().map(bare).collect(),
                pending: pending.iter().map(bare).collect(),
            });
            assert_eq!(restored.pending, pending, "{policy:?}");
            assert_eq!(restored.replay.entries(), buffer.entries());
            assert_eq!(restored.replay.state(), buffer.state());
            assert_eq!(restored.repeats.state(), repeats.state());
        }
    }
}
