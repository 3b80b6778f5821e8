//! The learner's state to and from checkpoints.

use super::memory::replay_arrays;
use super::schedule::Progress;
use super::trainer::Trainer;
use crate::checkpoint::{
    self, Checkpoints, Counts, FORMAT, Manifest, PartitionOffset, ReplayEntry, Restored, Rollbacks,
};
use crate::gate;
use crate::replay::repeats::Repeats;
use crate::replay::{Entry, Replay};
use crate::source::Commit;
use crate::source::offsets::{Left, OffsetTracker};
use anyhow::{Context, Result, ensure};
use metrics::histogram;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::time::Instant;
use tracing::{debug, info};

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
    pub(super) stable_version: Option<&'a str>,
    pub(super) gate: &'a gate::Memory,
    pub(super) rollbacks: Rollbacks,
    pub(super) changes: u64,
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

    /// The checkpoint to go back to when what came after step `good_step` has gone wrong.
    pub(super) fn go_back(&mut self, good_step: u64) -> Result<Restored> {
        let restored = self.checkpoints.go_back(good_step)?;
        restored.context("no checkpoint is there to go back to")
    }

    pub(super) fn is_due(&self) -> bool {
        self.written_at.elapsed() >= self.every
    }

    /// Writes a checkpoint; returns what may be committed now.
    pub(super) fn save(&mut self, parts: Parts<'_>) -> Result<Commit> {
        let began = Instant::now();
        let Parts { trainer, replay, repeats, pending, tracker, counts, .. } = parts;
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
                .left()
                .into_iter()
                .map(|(partition, Left { next, done_ahead })| PartitionOffset {
                    partition,
                    next,
                    done_ahead,
                })
                .collect(),
            replay: described.context("every replayed image lies on disk")?,
            replay_offered: replay.offered(),
            last_version: parts.last_version,
            stable_version: parts.stable_version.map(str::to_owned),
            gate: parts.gate.clone(),
            rollbacks: parts.rollbacks,
            changes: parts.changes,
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
    let mut hasher = blake3::Hasher::new();
    // The system's randomness: two machines may have the same clock, or none.
    hasher.update(&RandomState::new().hash_one(0).to_le_bytes());
    hasher.update(&std::process::id().to_le_bytes());
    hasher.update(path.as_os_str().as_encoded_bytes());
    let id = hasher.finalize().to_hex()[..16].to_owned();
    checkpoint::write_atomically(path, id.as_bytes())?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_learner_keeps_its_name() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let id = learner_id(dir.path()).unwrap();
        assert_eq!(id, learner_id(dir.path()).unwrap());
        assert_ne!(id, learner_id(other.path()).unwrap());
    }
}
