//! A journal of what was done, for tests: one JSON line for each step, refusal and restart.
//!
//! Lines carry the step. Those after a restored step are void, since the work was done again.

use crate::source::Origin;
use anyhow::{Context, Result};
use serde_json::json;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

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

    /// Notes that the run goes on after `step`.
    ///
    /// # Errors
    /// Whatever the file system reports.
    pub(super) fn restored(&mut self, step: u64) -> Result<()> {
        self.write(&json!({ "restored_step": step }))
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

    /// Notes a record whose dead letter was acknowledged after `step`.
    ///
    /// # Errors
    /// Whatever the file system reports.
    pub(super) fn refused(&mut self, step: u64, origin: &Origin) -> Result<()> {
        self.write(&json!({ "step": step, "refused": [describe(origin)] }))
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
