//! The history of a run, for the report of an evaluation: `history.jsonl` in the snapshot folder, a
//! JSON line for each candidate of a snapshot.
//!
//! Lines are appended. A restart appends `{"restored_step": N}`, which voids the lines of later steps,
//! since they were done again; 0 voids all. A last line that a kill cut off is passed over, and
//! removed before the next one is written. When there are [`MAX_LINES`], every second one goes, so
//! that the file stays below a few megabytes however long the run, and covers all of it.

use super::Observer;
use super::trainer::StepReport;
use crate::checkpoint::write_atomically;
use crate::gate::monitor::Figures;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The file's name in the snapshot folder.
pub const FILE_NAME: &str = "history.jsonl";
/// Lines that make room for new ones: a day of snapshots every 20 s at full resolution. A guess.
const MAX_LINES: usize = 4096;

/// The run at the time of a candidate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Steps taken.
    pub step: u64,
    /// Images learned at least once.
    pub images_learned: u64,
    /// Mean loss of the steps since the line before, where it is finite.
    pub loss: Option<f32>,
    /// Learning rate of the last step.
    pub rate: f64,
    /// Spread of the candidate's embeddings ([`crate::gate::monitor::spread`]): the standard deviation
    /// of their coordinates as a share of what fills the sphere evenly. Unset where it is not finite.
    pub spread: Option<f32>,
    /// Monitors of the embeddings that training made last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub monitors: Option<Figures>,
    /// Prequential kNN accuracy, where it is measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    /// The share of nearest neighbours, among images that stay the same for a process, that the candidate has in
    /// common with the version that is stable then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stable_overlap: Option<f64>,
    /// The version that went live; unset if the gate refused it.
    pub version: Option<String>,
    /// When, milliseconds since the Unix epoch.
    pub time_ms: i64,
}

/// What a line says.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    Restored { restored_step: u64 },
    Entry(Entry),
}

/// The open history.
pub(super) struct History {
    path: PathBuf,
    file: File,
    n_lines: usize,
    losses: Losses,
    observers: Vec<Arc<dyn Observer>>,
}

/// What happened since the last line.
#[derive(Default)]
struct Losses {
    sum: f64,
    n_steps: u64,
    rate: f64,
}

/// What a candidate adds to what the steps told.
pub(super) struct Candidate {
    pub(super) step: u64,
    pub(super) images_learned: u64,
    pub(super) spread: f32,
    pub(super) version: Option<String>,
    pub(super) time_ms: i64,
    pub(super) monitors: Option<Figures>,
    pub(super) overlap: Option<f64>,
}

impl History {
    /// Opens the history in `dir` to go on after `step`.
    ///
    /// # Errors
    /// Whatever the file system reports.
    pub(super) fn open(dir: &Path, step: u64, observers: Vec<Arc<dyn Observer>>) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
        let path = dir.join(FILE_NAME);
        let file = append(&path)?;
        let text = text(&path)?;
        file.set_len(text.len() as u64).context("cutting the history's broken line off")?;
        let mut history = Self {
            n_lines: text.lines().count(),
            path,
            file,
            losses: Losses::default(),
            observers,
        };
        if history.n_lines > 0 {
            history.restored(step)?;
        }
        Ok(history)
    }

    /// Voids the lines after `step`.
    ///
    /// # Errors
    /// Whatever the file system reports.
    pub(super) fn restored(&mut self, step: u64) -> Result<()> {
        self.losses = Losses::default();
        self.write(&Line::Restored { restored_step: step })
    }

    /// Notes a step.
    pub(super) fn stepped(&mut self, report: &StepReport) {
        self.losses.sum += f64::from(report.loss);
        self.losses.n_steps += 1;
        self.losses.rate = report.rate;
    }

    /// Writes a line, unless no step was taken since the last.
    ///
    /// # Errors
    /// Whatever the file system reports.
    pub(super) fn note(&mut self, candidate: Candidate) -> Result<()> {
        let Losses { sum, n_steps, rate } = std::mem::take(&mut self.losses);
        if n_steps == 0 {
            return Ok(());
        }
        let Candidate { step, images_learned, spread, version, time_ms, monitors, overlap } =
            candidate;
        let loss = Some((sum / n_steps as f64) as f32).filter(|loss| loss.is_finite());
        let spread = Some(spread).filter(|spread| spread.is_finite());
        let accuracy = self.observers.iter().find_map(|observer| observer.accuracy());
        let entry = Entry {
            step,
            images_learned,
            loss,
            rate,
            spread,
            monitors,
            accuracy,
            stable_overlap: overlap,
            version,
            time_ms,
        };
        self.write(&Line::Entry(entry))
    }

    fn write(&mut self, line: &Line) -> Result<()> {
        if self.n_lines >= MAX_LINES {
            self.thin()?;
        }
        // One write a line, so that a kill leaves whole lines.
        let line = serde_json::to_string(line)? + "\n";
        self.file.write_all(line.as_bytes()).context("writing the history")?;
        self.n_lines += 1;
        Ok(())
    }

    /// Drops every second line, the newest one kept.
    fn thin(&mut self) -> Result<()> {
        let entries = read(&self.path)?;
        let is_kept = |index: &usize| (entries.len() - index) % 2 == 1;
        let mut text = String::new();
        for index in (0..entries.len()).filter(is_kept) {
            text += &serde_json::to_string(&entries[index])?;
            text.push('\n');
        }
        write_atomically(&self.path, text.as_bytes())?;
        self.file = append(&self.path)?;
        self.n_lines = text.lines().count();
        Ok(())
    }
}

/// The lines of a history that are not void, in the order of their steps.
///
/// # Errors
/// A file that cannot be read, or a line that is none of a history, by its number.
pub fn read(path: &Path) -> Result<Vec<Entry>> {
    let mut entries: Vec<Entry> = vec![];
    for (index, line) in text(path)?.lines().enumerate() {
        let line = serde_json::from_str(line)
            .with_context(|| format!("line {} of {} is no history", index + 1, path.display()))?;
        match line {
            Line::Restored { restored_step: 0 } => entries.clear(),
            Line::Restored { restored_step } => entries.retain(|e| e.step <= restored_step),
            Line::Entry(entry) => entries.push(entry),
        }
    }
    Ok(entries)
}

/// The whole lines of the file.
fn text(path: &Path) -> Result<String> {
    let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
    String::from_utf8(bytes[..end].to_vec())
        .with_context(|| format!("{} is no text", path.display()))
}

fn append(path: &Path) -> Result<File> {
    let file = OpenOptions::new().create(true).append(true).open(path);
    file.with_context(|| format!("opening the history {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Takes a step of `loss` and notes a candidate at `step`.
    fn note(history: &mut History, step: u64, loss: f32) {
        history.stepped(&StepReport { loss, rate: 0.5, took: Duration::ZERO, is_taken: true });
        let version = Some(format!("v{step}"));
        let (images_learned, spread, time_ms) = (10 * step, 0.25, 7);
        let monitors = Some(Figures { rankme: 3.5, ..Figures::default() });
        let overlap = Some(0.5);
        let candidate =
            Candidate { step, images_learned, spread, version, time_ms, monitors, overlap };
        history.note(candidate).unwrap();
    }

    fn steps(dir: &Path) -> Vec<u64> {
        read(&dir.join(FILE_NAME)).unwrap().iter().map(|entry| entry.step).collect()
    }

    #[test]
    fn what_was_noted_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("snapshots");
        let mut history = History::open(&folder, 0, vec![]).unwrap();
        history.stepped(&StepReport { loss: 1.0, rate: 0.1, took: Duration::ZERO, is_taken: true });
        note(&mut history, 2, 4.0);
        note(&mut history, 3, f32::NAN);
        let entries = read(&folder.join(FILE_NAME)).unwrap();
        let first = Entry {
            step: 2,
            images_learned: 20,
            loss: Some(2.5),
            rate: 0.5,
            spread: Some(0.25),
            monitors: Some(Figures { rankme: 3.5, ..Figures::default() }),
            accuracy: None,
            stable_overlap: Some(0.5),
            version: Some("v2".to_owned()),
            time_ms: 7,
        };
        let mut second = Entry { step: 3, images_learned: 30, loss: None, ..first.clone() };
        second.version = Some("v3".to_owned());
        assert_eq!(entries, [first, second]);
    }

    #[test]
    fn steps_after_a_restored_one_are_void() {
        let dir = tempfile::tempdir().unwrap();
        let mut history = History::open(dir.path(), 0, vec![]).unwrap();
        [10, 20, 30].into_iter().for_each(|step| note(&mut history, step, 1.0));
        drop(history);
        let mut history = History::open(dir.path(), 20, vec![]).unwrap();
        assert_eq!(steps(dir.path()), [10, 20]);
        // Published as it was restored: nothing has happened, so there is nothing to note.
        let candidate = Candidate {
            step: 20,
            images_learned: 0,
            spread: 0.0,
            version: None,
            time_ms: 0,
            monitors: None,
            overlap: None,
        };
        history.note(candidate).unwrap();
        note(&mut history, 25, 1.0);
        drop(history);
        assert_eq!(steps(dir.path()), [10, 20, 25]);
        // A run that begins afresh in the folder of another has a history of its own.
        let mut history = History::open(dir.path(), 0, vec![]).unwrap();
        note(&mut history, 5, 1.0);
        assert_eq!(steps(dir.path()), [5]);
    }

    #[test]
    fn a_line_that_was_cut_off_is_passed_over_and_the_next_stands_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        let mut history = History::open(dir.path(), 0, vec![]).unwrap();
        [10, 20].into_iter().for_each(|step| note(&mut history, step, 1.0));
        drop(history);
        let whole = fs::read(&path).unwrap();
        for len in 0..whole.len() {
            fs::write(&path, &whole[..len]).unwrap();
            let n_whole = whole[..len].iter().filter(|byte| **byte == b'\n').count();
            assert_eq!(steps(dir.path()).len(), n_whole);
            let mut history = History::open(dir.path(), 15, vec![]).unwrap();
            note(&mut history, 16, 1.0);
            let expected: &[u64] = if n_whole == 0 { &[16] } else { &[10, 16] };
            assert_eq!(steps(dir.path()), expected, "cut off at {len}");
        }
    }

    #[test]
    fn a_damaged_line_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        note(&mut History::open(dir.path(), 0, vec![]).unwrap(), 1, 1.0);
        fs::write(&path, fs::read_to_string(&path).unwrap() + "{\"step\": 2}\n").unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("line 2 of"), "{error}");
    }

    #[test]
    fn a_long_history_is_thinned_and_keeps_both_ends() {
        let dir = tempfile::tempdir().unwrap();
        let mut history = History::open(dir.path(), 0, vec![]).unwrap();
        let last = 2 * MAX_LINES as u64;
        (1..=last).for_each(|step| note(&mut history, step, 1.0));
        let kept = steps(dir.path());
        assert!(kept.len() <= MAX_LINES && kept.len() > MAX_LINES / 4, "{}", kept.len());
        assert!(kept.is_sorted_by(|a, b| a < b));
        assert!(kept[0] <= 8 && kept.last() == Some(&last), "{:?}", (kept[0], kept.last()));
        let lines = fs::read_to_string(dir.path().join(FILE_NAME)).unwrap().lines().count();
        assert_eq!(lines, kept.len());
    }
}
