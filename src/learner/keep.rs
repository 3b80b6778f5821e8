//! When the learner's state is kept, and what may be committed by it.

use super::Learner;
use super::copy::Parts;
use super::page_hinkley::PageHinkley;
use crate::source::{Commit, Told};
use anyhow::{Context, Result};
use tokio::sync::mpsc::error::TrySendError;
use tracing::warn;

impl Learner {
    pub(super) fn is_checkpoint_due(&self) -> bool {
        self.state.is_due() && self.is_worth_keeping()
    }

    /// What may have to be gone back from is no state to begin again from.
    pub(super) fn is_worth_keeping(&self) -> bool {
        !self.health.is_in_doubt() && !self.health.is_lost()
    }

    /// Begins a checkpoint, which is written while learning goes on; or leaves it due where the last one is
    /// still being written.
    ///
    /// # Errors
    /// Whatever the device reports, or befell the checkpoint before.
    pub(super) fn checkpoint(&mut self) -> Result<()> {
        self.hear_of_checkpoint()?;
        if self.state.must_wait() { Ok(()) } else { self.begin_checkpoint() }
    }

    /// Lets the source commit what a checkpoint holds, if one has come to disk.
    ///
    /// # Errors
    /// Whatever befell its writing.
    pub(super) fn hear_of_checkpoint(&mut self) -> Result<()> {
        if let Some(commit) = self.state.poll()? {
            self.tell_written(commit);
        }
        Ok(())
    }

    /// Waits for the checkpoint in flight, if one is.
    ///
    /// # Errors
    /// Whatever befell its writing.
    pub(super) fn finish_checkpoint(&mut self) -> Result<()> {
        if let Some(commit) = self.state.finish()? {
            self.tell_written(commit);
        }
        Ok(())
    }

    /// Writes a checkpoint and waits until it is on disk, after the one in flight; returns what may be
    /// committed now.
    ///
    /// # Errors
    /// Whatever the device or the file system report.
    pub(super) fn write_checkpoint(&mut self) -> Result<Commit> {
        self.finish_checkpoint()?;
        self.begin_checkpoint()?;
        self.state.finish()?.context("a checkpoint that was begun is in flight")
    }

    fn begin_checkpoint(&mut self) -> Result<()> {
        let counts = self.counts();
        self.state.begin(Parts {
            trainer: &self.trainer,
            replay: &mut *self.replay,
            repeats: &self.repeats,
            pending: &mut self.pending,
            tracker: self.arrivals.tracker(),
            counts,
            last_version: self.publisher.version(),
            stable_version: self.publisher.stable_version(),
            gate: self.publisher.gate_memory(),
            rollbacks: self.health.rollbacks(),
            changes: self.on_drift.changes(),
            usual_loss: self.page_hinkley.as_ref().map(PageHinkley::usual).unwrap_or_default(),
        })
    }

    /// Tells the source of a checkpoint that is on disk.
    pub(super) fn tell_written(&mut self, mut commit: Commit) {
        // What was given up while it was being written is another's to commit.
        let tracker = self.arrivals.tracker();
        commit.offsets.retain(|partition, _| tracker.has(partition));
        // A full channel has older news under way; the next checkpoint's commit holds all of ours.
        if let Err(TrySendError::Full(_)) = self.told.try_send(Told::Written(commit)) {
            warn!("the source has not committed the last checkpoints yet");
        }
    }
}
