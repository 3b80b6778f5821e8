//! The learner's state to and from checkpoints.

use super::copy::{Copied, Parts};
use super::schedule::Progress;
use super::trainer::Trainer;
use super::vitals::CheckpointCost;
use crate::checkpoint::{self, Back, Checkpoints, Manifest, Places, Restored, Writer, Written};
use crate::source::Commit;
use crate::source::offsets::NextOffsets;
use anyhow::{Context, Result, ensure};
use metrics::histogram;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::time::{Duration, Instant};
use tracing::{debug, info};

/// The checkpoint folder as the learner sees it: what is in flight, when the next is due, and what they cost.
pub(super) struct State {
    writer: Writer,
    places: Places,
    learner_id: String,
    side_px: usize,
    every: Duration,
    /// When the last copy was taken.
    copied_at: Instant,
    /// What may be committed once the checkpoint in flight is written, and how many were written before.
    in_flight: Option<(NextOffsets, u64)>,
    /// Checkpoints written, over restarts.
    sequence: u64,
    /// The checkpoint that was committed last.
    committed: Option<String>,
    has_said_late: bool,
    opened_at: Instant,
    cost: CheckpointCost,
}

impl State {
    pub(super) fn open(
        config: &checkpoint::Config,
        learner_id: &str,
        side_px: usize,
    ) -> Result<(Self, Option<Restored>)> {
        let (mut checkpoints, places) = Checkpoints::open(config)?;
        let restored = checkpoints.load_newest()?;
        let writer = Writer::start(checkpoints)?;
        let mut state = Self::new((writer, places), config.every, learner_id, side_px);
        let sequence = |restored: &Restored| restored.checkpoint.manifest.sequence + 1;
        state.sequence = restored.as_ref().map_or(0, sequence);
        Ok((state, restored))
    }

    fn new(
        (writer, places): (Writer, Places),
        every: Duration,
        learner_id: &str,
        side_px: usize,
    ) -> Self {
        Self {
            writer,
            places,
            learner_id: learner_id.to_owned(),
            side_px,
            every,
            copied_at: Instant::now(),
            in_flight: None,
            sequence: 0,
            committed: None,
            has_said_late: false,
            opened_at: Instant::now(),
            cost: CheckpointCost::default(),
        }
    }

    /// The checkpoint to go back to. The one in flight is waited for, and never committed: it may be what is
    /// gone back from.
    pub(super) fn go_back(&mut self, back: Back) -> Result<Restored> {
        self.finish()?;
        let restored = self.writer.go_back(back)?;
        restored.context("no checkpoint is there to go back to")
    }

    pub(super) fn learner_id(&self) -> &str {
        &self.learner_id
    }

    /// Notes that what the checkpoint of this name holds has been committed.
    pub(super) fn committed(&mut self, checkpoint_id: String) {
        self.committed = Some(checkpoint_id);
    }

    pub(super) fn is_due(&self) -> bool {
        self.copied_at.elapsed() >= self.every
    }

    /// Whether a checkpoint that is due has to wait, as the last is still being written.
    pub(super) fn must_wait(&mut self) -> bool {
        let must_wait = self.writer.is_busy();
        if must_wait && !self.has_said_late {
            debug!("a checkpoint is due while the last is still being written: it waits its turn");
        }
        self.has_said_late = must_wait;
        must_wait
    }

    /// Takes a copy and hands it to the checkpoint thread; none may be in flight.
    pub(super) fn begin(&mut self, parts: Parts<'_>) -> Result<()> {
        let began = Instant::now();
        let copied = parts.copy(&mut self.places, &self.learner_id, self.side_px)?;
        self.hand_over(copied)?;
        self.copied_at = Instant::now();
        self.note_held_up(began);
        Ok(())
    }

    fn hand_over(&mut self, Copied { mut unwritten, offsets }: Copied) -> Result<()> {
        unwritten.manifest.sequence = self.sequence;
        unwritten.committed.clone_from(&self.committed);
        self.writer.begin(unwritten)?;
        self.in_flight = Some((offsets, self.sequence));
        self.sequence += 1;
        Ok(())
    }

    /// What may be committed, if the checkpoint in flight is on disk now.
    pub(super) fn poll(&mut self) -> Result<Option<Commit>> {
        let written = self.writer.poll()?;
        Ok(written.map(|written| self.note_written(written)))
    }

    /// Waits for the checkpoint in flight, for ever where there is none; returns what may be committed.
    /// Nothing is lost when it is dropped before.
    pub(super) async fn written(&mut self) -> Result<Commit> {
        let written = self.writer.written().await?;
        Ok(self.note_written(written))
    }

    /// Blocks until nothing is in flight; returns what may be committed by then, if something was.
    pub(super) fn finish(&mut self) -> Result<Option<Commit>> {
        if !self.writer.is_busy() {
            return Ok(None);
        }
        let began = Instant::now();
        let written = self.writer.finish()?;
        self.note_held_up(began);
        Ok(written.map(|written| self.note_written(written)))
    }

    fn note_written(&mut self, written: Written) -> Commit {
        let Written { id: checkpoint_id, removed_segments, took } = written;
        self.places.forget(&removed_segments);
        self.cost.writing += took;
        histogram!("selfstream_checkpoint_seconds").record(took.as_secs_f64());
        debug!(checkpoint_id, ?took, "checkpoint written");
        let in_flight = self.in_flight.take();
        let (offsets, sequence) = in_flight.expect("a copy is handed over with its offsets");
        Commit { offsets, learner_id: self.learner_id.clone(), checkpoint_id, sequence }
    }

    fn note_held_up(&mut self, began: Instant) {
        let held_up = began.elapsed();
        self.cost.held_up += held_up;
        histogram!("selfstream_checkpoint_held_up_seconds").record(held_up.as_secs_f64());
    }

    /// What checkpoints have cost this process.
    pub(super) fn cost(&self) -> CheckpointCost {
        self.cost
    }

    /// Since the folder was opened.
    pub(super) fn age(&self) -> Duration {
        self.opened_at.elapsed()
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
    trainer.restore(&restored.checkpoint.arrays, progress).with_context(|| {
        format!(
            "checkpoint {} was not written with this [objective] and [learner]: choose another \
             checkpoint.dir, or the old settings",
            restored.checkpoint.id
        )
    })?;
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

    use crate::checkpoint::stand_in::{gated, is_there, unwritten};
    use crate::source::offsets::Partition;
    use anyhow::anyhow;
    use std::sync::Arc;
    use tokio::sync::mpsc;

    /// A state whose writes wait for the gate; the gate is dropped first where a test fails.
    fn state(dir: &Path) -> (State, mpsc::Sender<Result<()>>) {
        let (writer, gate) = gated(dir);
        let places = Places::default();
        (State::new((writer, places), Duration::from_secs(30), "us", 32), gate)
    }

    fn copied(step: u64) -> Copied {
        Copied { unwritten: unwritten(step), offsets: offsets(step) }
    }

    fn offsets(step: u64) -> NextOffsets {
        let partition = Partition { topic: Arc::from("images"), partition: 0 };
        [(partition, 10 * step as i64)].into()
    }

    /// Invariant: offsets are committed only after the checkpoint that holds them.
    #[test]
    fn no_commit_is_told_before_its_checkpoint_has_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let (mut state, gate) = state(dir.path());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for step in 1..=6 {
            assert!(!state.must_wait());
            state.hand_over(copied(step)).unwrap();
            assert_eq!(state.poll().unwrap(), None, "nothing is written, so nothing is told");
            assert!(state.must_wait());
            gate.blocking_send(Ok(())).unwrap();
            let commit = match step % 3 {
                0 => runtime.block_on(state.written()).unwrap(),
                1 => state.finish().unwrap().unwrap(),
                _ => loop {
                    if let Some(commit) = state.poll().unwrap() {
                        break commit;
                    }
                    std::thread::yield_now();
                },
            };
            assert!(is_there(dir.path(), &commit.checkpoint_id), "step {step}");
            assert!(commit.checkpoint_id.starts_with(&format!("{step:012}-")));
            assert_eq!((commit.offsets, commit.learner_id), (offsets(step), "us".to_owned()));
        }
        assert_eq!(state.finish().unwrap(), None, "a commit is told once");
    }

    #[test]
    fn a_checkpoint_that_fails_is_an_error_and_no_commit() {
        let dir = tempfile::tempdir().unwrap();
        let (mut state, gate) = state(dir.path());
        state.hand_over(copied(1)).unwrap();
        gate.blocking_send(Err(anyhow!("the disk is full"))).unwrap();
        assert_eq!(state.finish().unwrap_err().to_string(), "the disk is full");
        assert!(fs::read_dir(dir.path()).unwrap().next().is_none());
    }

    #[test]
    fn going_back_waits_for_what_is_in_flight_and_commits_nothing_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let (mut state, gate) = state(dir.path());
        for step in [1, 9] {
            state.finish().unwrap();
            state.hand_over(copied(step)).unwrap();
            gate.blocking_send(Ok(())).unwrap();
        }
        assert_eq!(state.go_back(Back::Before(5)).unwrap().checkpoint.manifest.step, 1);
        assert_eq!(state.poll().unwrap(), None);
        let left = fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(left, 1, "what was in flight came to disk, and was gone back from");
    }

    #[test]
    fn only_standing_still_counts_as_held_up() {
        let dir = tempfile::tempdir().unwrap();
        let (mut state, gate) = state(dir.path());
        state.hand_over(copied(1)).unwrap();
        gate.blocking_send(Ok(())).unwrap();
        while state.poll().unwrap().is_none() {
            std::thread::yield_now();
        }
        let beside = state.cost();
        assert_eq!(beside.held_up, Duration::ZERO);
        assert!(beside.writing > Duration::ZERO);
        state.hand_over(copied(2)).unwrap();
        gate.blocking_send(Ok(())).unwrap();
        assert!(state.finish().unwrap().is_some());
        assert!(state.cost().held_up > Duration::ZERO && state.cost().writing > beside.writing);
        assert!(state.cost().held_up < state.age());
    }

    #[test]
    fn a_learner_keeps_its_name() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let id = learner_id(dir.path()).unwrap();
        assert_eq!(id, learner_id(dir.path()).unwrap());
        assert_ne!(id, learner_id(other.path()).unwrap());
    }
}
