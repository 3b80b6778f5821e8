//! The learner's state to and from checkpoints.

use super::schedule::Progress;
use super::trainer::Trainer;
use crate::checkpoint::{
    self, Checkpoint, Checkpoints, Counts, FORMAT, Manifest, PartitionOffset, ReplayEntry, Restored,
};
use crate::encoder::{Array, NamedArrays};
use crate::replay::repeats::Repeats;
use crate::replay::sketch::{self, Sketch};
use crate::replay::{self, Entry, Replay};
use crate::source::Commit;
use crate::source::offsets::OffsetTracker;
use anyhow::{Context, Result, ensure};
use metrics::histogram;
use std::fs;
use std::path::Path;
use std::time::Instant;
use tracing::{debug, info};

/// Prefix of the buffer's names in checkpoints, and the name of the sketches of what it holds and of
/// what waits for it, in their order.
const REPLAY: &str = "replay.";
const SKETCHES: &str = "sketches";

/// The checkpoint folder, and what a restart needs that is not in the trainer.
pub(super) struct State {
    checkpoints: Checkpoints,
    learner_id: String,
    side_px: usize,
    written_at: Instant,
    every: std::time::Duration,
}

/// The parts of the learner that a checkpoint is made of.
pub(super) struct Parts<'a> {
    pub(super) trainer: &'a Trainer,
    pub(super) replay: &'a mut dyn Replay,
    pub(super) repeats: &'a Repeats,
    /// Images learned in the last step, which the buffer is offered after the next draw.
    pub(super) pending: &'a mut [Entry],
    pub(super) tracker: &'a OffsetTracker,
    pub(super) counts: Counts,
    pub(super) last_version: Option<String>,
}

impl State {
    pub(super) fn open(
        config: &checkpoint::Config,
        learner_id: &str,
        side_px: usize,
    ) -> Result<(Self, Option<Restored>)> {
        let mut checkpoints = Checkpoints::open(config)?;
        let restored = checkpoints.load_newest()?;
        let state = Self {
            checkpoints,
            learner_id: learner_id.to_owned(),
            side_px,
            written_at: Instant::now(),
            every: config.every,
        };
        Ok((state, restored))
    }

    pub(super) fn is_due(&self) -> bool {
        self.written_at.elapsed() >= self.every
    }

    /// Writes a checkpoint; returns what may be committed now.
    pub(super) fn save(&mut self, parts: Parts<'_>) -> Result<Commit> {
        let began = Instant::now();
        let Parts { trainer, replay, repeats, pending, tracker, counts, last_version } = parts;
        let mut entries: Vec<&mut Entry> =
            replay.entries_mut().iter_mut().chain(pending.iter_mut()).collect();
        self.checkpoints.store(&mut entries)?;
        let held = replay.entries().iter().map(|entry| ReplayEntry::new(entry, false));
        let waiting = pending.iter().map(|entry| ReplayEntry::new(entry, true));
        let described: Option<Vec<_>> = held.chain(waiting).collect();
        let Progress { steps, trained, restarted_at } = trainer.progress();
        let manifest = Manifest {
            format: FORMAT,
            learner_id: self.learner_id.clone(),
            architecture: trainer.plan().architecture.clone(),
            side_px: self.side_px,
            step: steps,
            trained,
            restarted_at,
            counts,
            offsets: tracker
                .next_offsets()
                .into_iter()
                .map(|(partition, next)| PartitionOffset { partition, next })
                .collect(),
            replay: described.context("every replayed image lies on disk")?,
            replay_offered: replay.offered(),
            last_version,
        };
        let mut arrays = trainer.to_arrays()?;
        arrays.extend(replay_arrays((replay, repeats), pending));
        let checkpoint_id = self.checkpoints.save(&manifest, &arrays)?;
        self.written_at = Instant::now();
        histogram!("selfstream_checkpoint_seconds").record(began.elapsed().as_secs_f64());
        debug!(checkpoint_id, took = ?began.elapsed(), "checkpoint written");
        Ok(Commit {
            offsets: tracker.assigned_offsets(),
            learner_id: self.learner_id.clone(),
            checkpoint_id,
        })
    }
}

/// Puts a restored checkpoint into the trainer; checks that it fits.
pub(super) fn restore_trainer(
    trainer: &mut Trainer,
    restored: &Restored,
    side_px: usize,
) -> Result<()> {
    let manifest = &restored.checkpoint.manifest;
    let architecture = &trainer.plan().architecture;
    ensure!(
        manifest.architecture == *architecture && manifest.side_px == side_px,
        "checkpoint {} holds {} at {} px, the configuration asks for {architecture} at {side_px} \
         px: choose another checkpoint.dir, or the old settings",
        restored.checkpoint.id,
        manifest.architecture,
        manifest.side_px,
    );
    let Manifest { step: steps, trained, restarted_at, .. } = *manifest;
    let progress = Progress { steps, trained, restarted_at };
    trainer
        .restore(&restored.checkpoint.arrays, progress)
        .with_context(|| format!("checkpoint {}", restored.checkpoint.id))?;
    info!(
        checkpoint = restored.checkpoint.id,
        step = manifest.step,
        learned = manifest.counts.learned,
        replay = manifest.replay.len(),
        "restored"
    );
    Ok(())
}

/// What a checkpoint holds of the buffer beside its images.
fn replay_arrays((replay, repeats): (&dyn Replay, &Repeats), pending: &[Entry]) -> NamedArrays {
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

/// What a restored buffer leaves over.
pub(super) struct Buffer {
    pub(super) manifest: Manifest,
    pub(super) pending: Vec<Entry>,
}

/// Fills the buffer with what a checkpoint held.
pub(super) fn restore_replay(
    (replay, repeats): (&mut dyn Replay, &mut Repeats),
    restored: Restored,
) -> Buffer {
    let Restored { checkpoint, mut entries, mut pending } = restored;
    let Checkpoint { manifest, arrays, .. } = checkpoint;
    let ours = arrays
        .into_iter()
        .filter_map(|(name, array)| Some((name.strip_prefix(REPLAY)?.to_owned(), array.values)));
    let state: replay::State = ours.collect();
    let sketches = state.get(SKETCHES).map_or(&[][..], |values| values);
    let (rows, _) = sketches.as_chunks::<{ sketch::LEN }>();
    for (entry, row) in entries.iter_mut().chain(&mut pending).zip(rows) {
        let is_there = row.iter().any(|value| *value != 0.0);
        entry.sketch = is_there.then(|| Sketch::restored(*row));
    }
    replay.restore(entries, manifest.replay_offered);
    replay.load_state(&state);
    repeats.load_state(&state);
    Buffer { manifest, pending }
}

/// The name of this learner, kept in its checkpoint folder: commits carry it.
///
/// # Errors
/// Whatever the file system reports.
pub fn learner_id(dir: &Path) -> Result<String> {
    let path = dir.join("learner-id");
    match fs::read_to_string(&path) {
        Ok(id) if !id.trim().is_empty() => Ok(id.trim().to_owned()),
        Ok(_) => make_learner_id(&path),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => make_learner_id(&path),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

fn make_learner_id(path: &Path) -> Result<String> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(&now.as_nanos().to_le_bytes());
    hasher.update(&std::process::id().to_le_bytes());
    hasher.update(path.as_os_str().as_encoded_bytes());
    let id = hasher.finalize().to_hex()[..16].to_owned();
    checkpoint::write_atomically(path, id.as_bytes())?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Buffer, pending images and their looks come back as they were.
    #[test]
    fn a_buffer_goes_through_a_checkpoint() {
        use crate::source::Origin;
        for policy in replay::Policy::ALL {
            let config = replay::Config { policy, ..replay::Config::default() };
            let (mut buffer, mut restored) = (config.build(5), config.build(5));
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
            let mut restored_repeats = Repeats::new(9, 3);
            let bare = |entry: &Entry| Entry { sketch: None, ..entry.clone() };
            let manifest = Manifest { replay_offered: 20, ..Manifest::default() };
            let found = restore_replay(
                (&mut *restored, &mut restored_repeats),
                Restored {
                    checkpoint: Checkpoint { id: String::new(), manifest, arrays },
                    entries: buffer.entries().iter().map(bare).collect(),
                    pending: pending.iter().map(bare).collect(),
                },
            );
            assert_eq!(found.pending, pending, "{policy:?}");
            assert_eq!(restored.entries(), buffer.entries());
            assert_eq!(restored.state(), buffer.state());
            assert_eq!(restored_repeats.state(), repeats.state());
        }
    }

    #[test]
    fn a_learner_keeps_its_name() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let id = learner_id(dir.path()).unwrap();
        assert_eq!(id, learner_id(dir.path()).unwrap());
        assert_ne!(id, learner_id(other.path()).unwrap());
    }
}
