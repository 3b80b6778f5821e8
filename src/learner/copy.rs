//! The copy of the learner that a checkpoint is written from, taken between two steps.

use super::memory::replay_arrays;
use super::schedule::Progress;
use super::trainer::Trainer;
use crate::checkpoint::{
    Counts, FORMAT, Manifest, PartitionOffset, Places, ReplayEntry, Rollbacks, Unwritten, UsualLoss,
};
use crate::gate;
use crate::replay::repeats::Repeats;
use crate::replay::{Entry, Replay};
use crate::source::offsets::{Left, NextOffsets, OffsetTracker};
use anyhow::{Context, Result};

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
    pub(super) usual_loss: UsualLoss,
}

/// A copy, and what may be committed once it is written.
pub(super) struct Copied {
    pub(super) unwritten: Unwritten,
    pub(super) offsets: NextOffsets,
}

impl Parts<'_> {
    /// Copies everything that a step changes. Images that are on no disk yet get their places; their bytes
    /// are shared, as nothing changes them.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub(super) fn copy(
        self,
        places: &mut Places,
        learner_id: &str,
        side_px: usize,
    ) -> Result<Copied> {
        let Self { trainer, replay, repeats, pending, tracker, .. } = self;
        let mut entries: Vec<&mut Entry> =
            replay.entries_mut().iter_mut().chain(pending.iter_mut()).collect();
        let segment = places.assign(&mut entries);
        let held = replay.entries().iter().map(|entry| ReplayEntry::new(entry, false));
        let waiting = pending.iter().map(|entry| ReplayEntry::new(entry, true));
        let described: Option<Vec<_>> = held.chain(waiting).collect();
        let Progress { steps, trained, restarted_at } = trainer.progress();
        let manifest = Manifest {
            format: FORMAT,
            learner_id: learner_id.to_owned(),
            architecture: trainer.plan().architecture.clone(),
            side_px,
            step: steps,
            // Numbered as it is handed over.
            sequence: 0,
            trained,
            restarted_at,
            counts: self.counts,
            offsets: tracker
                .left()
                .into_iter()
                .map(|(partition, Left { next, done_ahead })| PartitionOffset {
                    partition,
                    next,
                    done_ahead,
                })
                .collect(),
            replay: described.context("every replayed image has a place on disk")?,
            replay_offered: replay.offered(),
            last_version: self.last_version,
            stable_version: self.stable_version.map(str::to_owned),
            gate: self.gate.clone(),
            rollbacks: self.rollbacks,
            changes: self.changes,
            usual_loss: self.usual_loss,
        };
        let mut arrays = trainer.to_arrays()?;
        arrays.extend(replay_arrays((replay, repeats), pending));
        let unwritten = Unwritten { manifest, arrays, segment, committed: None };
        Ok(Copied { unwritten, offsets: tracker.assigned_offsets() })
    }
}
