//! A checkpoint folder that waits to be let, for tests of what happens meanwhile.

use super::{
    Back, Checkpoints, Config, FORMAT, Folder, Manifest, Restored, Unwritten, Writer, Written,
};
use crate::encoder::NamedArrays;
use anyhow::{Context, Result};
use std::path::Path;
use tokio::sync::mpsc;

struct Gated {
    checkpoints: Checkpoints,
    gate: mpsc::Receiver<Result<()>>,
}

impl Folder for Gated {
    fn write(&mut self, unwritten: &Unwritten) -> Result<Written> {
        self.gate.blocking_recv().context("the test has ended")??;
        self.checkpoints.write(unwritten)
    }

    fn go_back(&mut self, back: &Back) -> Result<Option<Restored>> {
        self.checkpoints.go_back(back)
    }
}

/// A writer to `dir`, each of whose writes waits for an `Ok` through the gate, or fails with what comes.
/// The gate is given second, so that a test that fails drops it first, and the writer does not wait.
pub(crate) fn gated(dir: &Path) -> (Writer, mpsc::Sender<Result<()>>) {
    let config = Config { dir: dir.to_owned(), ..Config::default() };
    let (checkpoints, _) = Checkpoints::open(&config).unwrap();
    let (open, gate) = mpsc::channel(1);
    (Writer::start(Gated { checkpoints, gate }).unwrap(), open)
}

/// A checkpoint of step `step` with nothing else in it.
pub(crate) fn unwritten(step: u64) -> Unwritten {
    let manifest = Manifest { format: FORMAT, step, ..Manifest::default() };
    Unwritten { manifest, arrays: NamedArrays::new(), segment: None, committed: None }
}

/// Whether `dir` holds the checkpoint `id`, under its own name.
pub(crate) fn is_there(dir: &Path, id: &str) -> bool {
    dir.join(format!("{id}.{}", super::file::EXTENSION)).is_file()
}
