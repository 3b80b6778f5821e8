//! A journal of what was done, for tests: one JSON line for each step, refusal, skip and restart.
//!
//! A restart, or going back, says how many records its checkpoint had done; of the records that lines named
//! before, those after so many are void, since they were done again.

use crate::checkpoint::Counts;
use crate::source::Origin;
use anyhow::{Context, Result};
use serde_json::json;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

/// Records that were done as they arrived, and that the journal has not been told of.
#[derive(Default)]
pub(super) struct Unnoted {
    /// The pace passed them over.
    pub(super) skipped: Vec<Origin>,
    /// They were refused, and there is no dead-letter topic.
    pub(super) refused: Vec<Origin>,
}

/// The open journal.
pub(super) struct Journal(File);

impl Journal {
    /// Opens the journal at `path` for appending.
    ///
    /// # Errors
    /// Whatever the file system reports.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path);
        Ok(Self(file.with_context(|| format!("opening journal {}", path.display()))?))
    }

    /// Notes that the run goes on after `step`, with `counts` done.
    ///
    /// # Errors
    /// Whatever the file system reports.
    pub(super) fn restored(&mut self, step: u64, counts: Counts) -> Result<()> {
        let done = counts.done();
        self.write(&json!({ "restored_step": step, "restored_done": done }))
    }

    /// Notes the images whose first step was `step`.
    ///
    /// # Errors
    /// Whatever the file system reports.
    pub(super) fn learned<'a>(
        &mut self,
        step: u64,
        origins: impl Iterator<Item = &'a Origin>,
    ) -> Result<()> {
        let origins: Vec<_> = origins.map(describe).collect();
        self.write(&json!({ "step": step, "learned": origins }))
    }

    /// Notes records that were passed over, or whose step `step` was left out.
    ///
    /// # Errors
    /// Whatever the file system reports.
    pub(super) fn skipped<'a>(
        &mut self,
        step: u64,
        origins: impl Iterator<Item = &'a Origin>,
    ) -> Result<()> {
        let origins: Vec<_> = origins.map(describe).collect();
        self.write(&json!({ "step": step, "skipped": origins }))
    }

    /// Notes a record whose dead letter was acknowledged after `step`.
    ///
    /// # Errors
    /// Whatever the file system reports.
    pub(super) fn refused(&mut self, step: u64, origin: &Origin) -> Result<()> {
        self.write(&json!({ "step": step, "refused": [describe(origin)] }))
    }

    /// Notes what was done on arrival, after `step`.
    ///
    /// # Errors
    /// Whatever the file system reports.
    pub(super) fn note(&mut self, step: u64, unnoted: &Unnoted) -> Result<()> {
        if !unnoted.skipped.is_empty() {
            self.skipped(step, unnoted.skipped.iter())?;
        }
        unnoted.refused.iter().try_for_each(|origin| self.refused(step, origin))
    }

    fn write(&mut self, line: &serde_json::Value) -> Result<()> {
        // One write a line, so that a kill leaves whole lines.
        let line = format!("{line}\n");
        self.0.write_all(line.as_bytes()).context("writing the journal")
    }
}

fn describe(origin: &Origin) -> serde_json::Value {
    json!([*origin.topic, origin.partition, origin.offset])
}
