//! Checkpoints: everything a restart needs, as one atomic unit.
//!
//! A checkpoint is one safetensors file: a manifest (JSON) and arrays. The bytes of
//! replayed images lie beside it in append-only segments that are synced before it is renamed into
//! place; the rename is the atomic act. A file's name carries the hash of its content, so that a
//! damaged one is known and the one before it is used. A file of an older format is migrated as it is
//! read; `migrate.rs` says how to change the format.
//!
//! Files are written by one thread ([`Writer`]) from a copy, while learning goes on.

mod file;
mod known;
mod manifest;
mod migrate;
mod places;
mod segments;
#[cfg(test)]
pub(crate) mod stand_in;
mod writer;

pub use file::Damage;
pub(crate) use file::{from_bytes, to_bytes, write_atomically};
pub use manifest::{Counts, FORMAT, Manifest, PartitionOffset, ReplayEntry, Rollbacks, UsualLoss};
pub use places::{NewSegment, Places};
pub use writer::{Folder, Writer};

use crate::encoder::NamedArrays;
use crate::replay::Entry;
use crate::setting::{Invalid, within};
use crate::source::offsets::NextOffsets;
use anyhow::{Context, Result};
use known::Known;
use segments::Segments;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tracing::warn;

/// `[checkpoint]`: where the state of the run is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Its folder; one running learner only.
    pub dir: PathBuf,
    /// The longest time between two checkpoints while it learns, unless one takes longer to write.
    #[serde(with = "humantime_serde")]
    pub every: Duration,
    /// Checkpoints that are kept.
    pub keep: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { dir: PathBuf::from("checkpoints"), every: Duration::from_secs(30), keep: 3 }
    }
}

impl Config {
    /// Checks every value.
    ///
    /// # Errors
    /// The first value that is not allowed, by key.
    pub fn validate(&self) -> std::result::Result<(), Invalid> {
        if self.dir.as_os_str().is_empty() {
            return Err(Invalid::new("checkpoint.dir", "\"\"", "a folder"));
        }
        within("checkpoint.every", self.every.as_secs_f64(), 0.1..=86_400.0, "from 100ms to 1day")?;
        within("checkpoint.keep", self.keep, 1..=1000, "from 1 to 1000")
    }
}

/// A checkpoint as it is restored.
#[derive(Debug)]
pub struct Checkpoint {
    /// Name of its file, without the extension: what commits name.
    pub id: String,
    /// What is not arrays.
    pub manifest: Manifest,
    /// Weights, running moments, heads and optimiser.
    pub arrays: NamedArrays,
}

/// A checkpoint with the images that its replay buffer held.
#[derive(Debug)]
pub struct Restored {
    /// The checkpoint.
    pub checkpoint: Checkpoint,
    /// What the next batch is drawn from.
    pub entries: Vec<Entry>,
    /// What is offered to the buffer after that draw.
    pub pending: Vec<Entry>,
}

/// A checkpoint that is yet to be written: a copy, which learning changes no more.
#[derive(Debug)]
pub struct Unwritten {
    /// What is not arrays.
    pub manifest: Manifest,
    /// Weights, running moments, heads and optimiser.
    pub arrays: NamedArrays,
    /// The replayed images that `manifest` names and that no segment holds yet.
    pub segment: Option<NewSegment>,
    /// The checkpoint that was committed last, if one is known to have been: it is kept, and those since.
    pub committed: Option<String>,
}

/// What to go back to: the newest checkpoint that is whole and is so.
#[derive(Clone, Debug, PartialEq)]
pub enum Back {
    /// Of at most so many steps; if there is none, the oldest.
    Before(u64),
    /// Where these partitions go on exactly there; if there is none, the newest of all.
    At(NextOffsets),
}

impl Back {
    fn is_good(&self, manifest: &Manifest) -> bool {
        match self {
            Self::Before(step) => manifest.step <= *step,
            Self::At(ends) => {
                let left = manifest.left();
                let next = |partition| left.get(partition).map(|left| left.next);
                ends.iter().all(|(partition, end)| next(partition) == Some(*end))
            }
        }
    }
}

/// A checkpoint that is on disk.
#[derive(Clone, Debug, PartialEq)]
pub struct Written {
    /// Its name.
    pub id: String,
    /// Segments that no checkpoint names any more: [`Places::forget`] them.
    pub removed_segments: Vec<u64>,
    /// How long it took to write.
    pub took: Duration,
}

/// The checkpoint folder of a learner.
pub struct Checkpoints {
    dir: PathBuf,
    keep: usize,
    segments: Segments,
    known: Known,
}

impl Checkpoints {
    /// Opens the folder, making it if need be.
    ///
    /// # Errors
    /// Whatever the file system reports.
    pub fn open(config: &Config) -> Result<(Self, Places)> {
        let segments = Segments::open(&config.dir)?;
        file::discard_half_written(&config.dir)?;
        let places = Places::new(segments.len_bytes().clone());
        let (dir, keep, known) = (config.dir.clone(), config.keep, Known::default());
        Ok((Self { dir, keep, segments, known }, places))
    }

    /// The newest checkpoint that is whole; damaged ones are passed over and logged.
    ///
    /// # Errors
    /// A folder that cannot be read, or one in which every checkpoint is damaged, or one is of a newer
    /// format: a program that does not understand the newest is not to go on from an older one.
    pub fn load_newest(&mut self) -> Result<Option<Restored>> {
        let mut newest = None;
        let paths = list(&self.dir)?;
        for path in &paths {
            match self.load(path) {
                Ok(restored) => {
                    self.known.insert(path.clone(), Some(&restored.checkpoint.manifest));
                    newest.get_or_insert(restored);
                }
                Err(error) if matches!(error.downcast_ref(), Some(Damage::Newer(_))) => {
                    return Err(error).with_context(|| format!("reading {}", path.display()));
                }
                Err(error) => {
                    warn_of_damage(path, &error);
                    self.known.insert(path.clone(), None);
                }
            }
        }
        match (&newest, paths.first()) {
            (None, Some(_)) => {
                anyhow::bail!("every checkpoint in {} is damaged", self.dir.display())
            }
            _ => Ok(newest),
        }
    }

    /// The checkpoint to go back to, if there is any. Newer ones are removed: a restart is not to begin from
    /// what was gone back from.
    ///
    /// # Errors
    /// Whatever the file system reports.
    pub fn go_back(&mut self, back: &Back) -> Result<Option<Restored>> {
        let mut newer = vec![];
        let (mut found, mut is_good) = (None, false);
        for path in list(&self.dir)? {
            match self.load(&path) {
                Ok(restored) => {
                    is_good = back.is_good(&restored.checkpoint.manifest);
                    if let Some((older, _)) = found.replace((path, restored)) {
                        newer.push(older);
                    }
                    if is_good {
                        break;
                    }
                }
                Err(error) => warn_of_damage(&path, &error),
            }
        }
        if matches!(back, Back::At(_)) && !is_good {
            return self.load_newest();
        }
        for path in newer {
            self.remove(&path)?;
        }
        Ok(found.map(|(_, restored)| restored))
    }

    fn load(&self, path: &Path) -> Result<Restored> {
        let checkpoint = file::read(path)?;
        let (entries, pending) = self.segments.load(&checkpoint.manifest)?;
        Ok(Restored { checkpoint, entries, pending })
    }

    fn remove(&mut self, path: &Path) -> Result<()> {
        fs::remove_file(path).with_context(|| format!("removing {}", path.display()))?;
        self.known.remove(path);
        Ok(())
    }

    /// Writes a checkpoint, its new segment first, and removes all but the newest few and those since the one
    /// that was committed last; of the latter, those that go on where the next one does.
    ///
    /// # Errors
    /// Whatever the file system reports; the checkpoints before stay as they were.
    pub fn write(&mut self, unwritten: &Unwritten) -> Result<Written> {
        let began = Instant::now();
        let Unwritten { manifest, arrays, segment, committed } = unwritten;
        if let Some(segment) = segment {
            self.segments.write(segment)?;
        }
        let (id, path) = file::write(&self.dir, manifest, arrays)?;
        self.known.insert(path, Some(manifest));
        let paths = list(&self.dir)?;
        for old in self.known.superfluous(&paths, self.keep, committed.as_deref()) {
            self.remove(old)?;
        }
        let removed_segments = match self.known.segments() {
            Some(named) => self.segments.keep_only(&named)?,
            None => vec![],
        };
        Ok(Written { id, removed_segments, took: began.elapsed() })
    }
}

fn warn_of_damage(path: &Path, error: &anyhow::Error) {
    warn!(path = %path.display(), error = format!("{error:#}"), "damaged checkpoint passed over");
}

/// Paths of every checkpoint of `dir`, newest first.
fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))?;
    let mut paths = vec![];
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == file::EXTENSION) {
            paths.push(path);
        }
    }
    // Names begin with the step and with what is done, in digits of one width.
    paths.sort();
    paths.reverse();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoder::Array;
    use crate::gate;
    use crate::source::Origin;
    use crate::source::offsets::Partition;
    use bytes::Bytes;
    use std::collections::BTreeSet;
    use std::sync::Arc;

    fn entry(offset: i64, len: usize) -> Entry {
        let origin = Origin { topic: Arc::from("images"), partition: 0, offset };
        Entry { origin, bytes: Bytes::from(vec![offset as u8; len]), stored_at: None, sketch: None }
    }

    fn manifest(step: u64, entries: &[Entry], n_pending: usize) -> Manifest {
        let describe = |(index, entry): (usize, &Entry)| {
            ReplayEntry::new(entry, index + n_pending >= entries.len()).unwrap()
        };
        Manifest {
            format: FORMAT,
            learner_id: "tests".into(),
            architecture: "slim-resnet".into(),
            side_px: 32,
            step,
            sequence: 0,
            trained: Duration::from_millis(1500),
            restarted_at: 1,
            counts: Counts { learned: step * 64, refused: 3, skipped: 1 },
            offsets: vec![PartitionOffset {
                partition: Partition { topic: Arc::from("images"), partition: 0 },
                next: 7,
                done_ahead: [9, 12].into(),
            }],
            replay: entries.iter().enumerate().map(describe).collect(),
            replay_offered: entries.len() as u64,
            last_version: None,
            stable_version: Some("abc".to_owned()),
            gate: gate::Memory::default(),
            rollbacks: Rollbacks { count: 1, until_step: 500 },
            changes: 2,
            usual_loss: UsualLoss { n_losses: 9, mean: 4.5, variance: 0.25, above: 1.0 },
        }
    }

    fn arrays(value: f32) -> NamedArrays {
        [("w".to_owned(), Array { shape: vec![2], values: vec![value, -value] })].into()
    }

    fn open(dir: &Path) -> (Checkpoints, Places) {
        Checkpoints::open(&Config { dir: dir.to_owned(), keep: 2, ..Config::default() }).unwrap()
    }

    fn newest(dir: &Path) -> Result<Option<Restored>> {
        open(dir).0.load_newest()
    }

    fn save(folder: &mut (Checkpoints, Places), step: u64, entries: &mut [Entry]) {
        let (checkpoints, places) = folder;
        let segment = places.assign(&mut entries.iter_mut().collect::<Vec<_>>());
        // What was written last has been committed since.
        let newest = list(&checkpoints.dir).unwrap().into_iter().next();
        let committed = newest.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned());
        let (manifest, arrays) = (manifest(step, entries, 1), arrays(step as f32));
        let unwritten = Unwritten { manifest, arrays, segment, committed };
        let written = checkpoints.write(&unwritten).unwrap();
        places.forget(&written.removed_segments);
    }

    fn segment_files(dir: &Path) -> usize {
        let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        files.filter(|path| path.extension().is_some_and(|e| e == "images")).count()
    }

    #[test]
    fn what_was_saved_is_restored() {
        let dir = tempfile::tempdir().unwrap();
        let mut checkpoints = open(dir.path());
        let mut entries = vec![entry(0, 10), entry(1, 20), entry(2, 30)];
        save(&mut checkpoints, 1, &mut entries);
        entries.push(entry(3, 5));
        save(&mut checkpoints, 2, &mut entries);

        let restored = newest(dir.path()).unwrap().unwrap();
        assert_eq!(restored.checkpoint.manifest, manifest(2, &entries, 1));
        assert_eq!(restored.checkpoint.arrays, arrays(2.0));
        assert_eq!(restored.entries, entries[..3]);
        assert_eq!(restored.pending, entries[3..]);
    }

    #[test]
    fn a_damaged_checkpoint_or_segment_falls_back_to_the_one_before() {
        for damage_segment in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let mut checkpoints = open(dir.path());
            let mut entries = vec![entry(0, 10)];
            save(&mut checkpoints, 1, &mut entries);
            entries.push(entry(1, 20));
            save(&mut checkpoints, 2, &mut entries);
            let victim = if damage_segment {
                dir.path().join("000000000001.images")
            } else {
                list(dir.path()).unwrap()[0].clone()
            };
            let mut bytes = fs::read(&victim).unwrap();
            bytes.truncate(bytes.len() - 1);
            fs::write(&victim, bytes).unwrap();

            let restored = newest(dir.path()).unwrap().unwrap();
            assert_eq!(restored.checkpoint.manifest.step, 1, "segment {damage_segment}");
            for path in list(dir.path()).unwrap() {
                fs::write(path, "nothing").unwrap();
            }
            let error = newest(dir.path()).unwrap_err().to_string();
            assert!(error.contains("every checkpoint"), "{error}");
        }
    }

    #[test]
    fn going_back_takes_the_newest_that_is_good_and_removes_newer_ones() {
        let steps = |dir: &Path| -> Vec<u64> {
            list(dir).unwrap().iter().map(|p| file::read(p).unwrap().manifest.step).collect()
        };
        for (good_step, expected) in [(25, 20), (20, 20), (99, 30), (5, 10)] {
            let dir = tempfile::tempdir().unwrap();
            let config = Config { dir: dir.path().to_owned(), keep: 3, ..Config::default() };
            let mut checkpoints = Checkpoints::open(&config).unwrap();
            let mut entries = vec![entry(0, 10), entry(1, 20)];
            [10, 20, 30].into_iter().for_each(|step| save(&mut checkpoints, step, &mut entries));
            let restored = checkpoints.0.go_back(&Back::Before(good_step)).unwrap().unwrap();
            assert_eq!(restored.checkpoint.manifest, manifest(expected, &entries, 1));
            let left: Vec<u64> = (1..=expected / 10).rev().map(|n| 10 * n).collect();
            assert_eq!(steps(dir.path()), left, "good until {good_step}");
            // The folder goes on as if what was gone back from had never been.
            save(&mut checkpoints, 21, &mut entries);
            assert!(newest(dir.path()).unwrap().is_some());
        }
        let empty = tempfile::tempdir().unwrap();
        assert!(open(empty.path()).0.go_back(&Back::Before(10)).unwrap().is_none());
    }

    /// Nothing goes on from an older checkpoint beside one that this program does not understand.
    #[test]
    fn a_checkpoint_of_a_newer_format_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let mut folder = open(dir.path());
        save(&mut folder, 1, &mut [entry(0, 10)]);
        let newer = Manifest { format: FORMAT + 1, ..manifest(2, &[], 0) };
        let (id, _) = file::write(dir.path(), &newer, &arrays(2.0)).unwrap();
        let error = format!("{:#}", newest(dir.path()).unwrap_err());
        let expected = format!("has format {}, newer than {FORMAT}", FORMAT + 1);
        assert!(error.contains(&id) && error.contains(&expected), "{error}");
    }

    #[test]
    fn old_checkpoints_and_dead_segments_go() {
        let dir = tempfile::tempdir().unwrap();
        let mut checkpoints = open(dir.path());
        // Each checkpoint keeps a tenth of the entries before it.
        let mut entries: Vec<Entry> = vec![];
        for step in 0..20 {
            entries.retain(|entry| entry.origin.offset % 10 == 0);
            entries.extend((0..10).map(|i| entry(step * 10 + i, 100)));
            save(&mut checkpoints, step as u64, &mut entries);
        }
        assert_eq!(list(dir.path()).unwrap().len(), 2);
        // Mostly dead segments were copied forward, so only the last few remain.
        assert!(segment_files(dir.path()) <= 4, "{} segments", segment_files(dir.path()));
        let known: Vec<u64> = checkpoints.0.segments.len_bytes().keys().copied().collect();
        assert_eq!(known.len(), segment_files(dir.path()));
        let restored = newest(dir.path()).unwrap().unwrap();
        assert_eq!(restored.entries.len() + restored.pending.len(), entries.len());
    }

    fn unwritten(manifest: Manifest, committed: Option<&str>) -> Unwritten {
        let committed = committed.map(str::to_owned);
        Unwritten { manifest, arrays: arrays(1.0), segment: None, committed }
    }

    /// While records are refused the step stays, and what is done grows; where partitions come and go not
    /// even that does.
    #[test]
    fn of_two_checkpoints_of_one_step_the_later_is_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let mut checkpoints = open(dir.path());
        for sequence in 0..12 {
            let counts = Counts { refused: sequence / 2, ..Counts::default() };
            let manifest = Manifest { counts, sequence, ..manifest(3, &[], 0) };
            checkpoints.0.write(&unwritten(manifest, None)).unwrap();
            let found = newest(dir.path()).unwrap().unwrap().checkpoint.manifest;
            assert_eq!((found.counts, found.sequence), (counts, sequence));
        }
    }

    /// Another learner may have gone on from it.
    #[test]
    fn the_checkpoint_that_was_committed_last_stays_and_can_be_gone_back_to() {
        let dir = tempfile::tempdir().unwrap();
        let (mut checkpoints, _) = open(dir.path());
        let at = |step: u64| Manifest {
            offsets: vec![PartitionOffset {
                partition: Partition { topic: "images".into(), partition: 0 },
                next: 10 * step as i64,
                done_ahead: BTreeSet::new(),
            }],
            ..manifest(step, &[], 0)
        };
        let steps = |dir: &Path| -> Vec<u64> {
            list(dir).unwrap().iter().map(|p| file::read(p).unwrap().manifest.step).collect()
        };
        let mut write = |step, committed: Option<&str>| {
            checkpoints.write(&unwritten(at(step), committed)).unwrap().id
        };
        let ids: Vec<String> = (1..=4).map(|step| write(step, None)).collect();
        assert_eq!(steps(dir.path()), [4, 3, 2, 1], "none is known to have been committed");
        write(5, Some(&ids[1]));
        assert_eq!(steps(dir.path()), [5, 4, 3, 2], "and the second was");
        let ends = |end| Back::At([(at(0).offsets[0].partition.clone(), end)].into());
        let step = |restored: Option<Restored>| restored.unwrap().checkpoint.manifest.step;
        assert_eq!(step(checkpoints.go_back(&ends(25)).unwrap()), 5, "none ends there");
        assert_eq!(steps(dir.path()), [5, 4, 3, 2]);
        assert_eq!(step(checkpoints.go_back(&ends(30)).unwrap()), 3);
        assert_eq!(steps(dir.path()), [3, 2]);
    }

    /// As without partitions, or while no broker answers: checkpoints are due, and none is committed.
    #[test]
    fn of_those_that_go_on_at_the_same_offsets_the_newest_stays_until_one_is_committed() {
        let dir = tempfile::tempdir().unwrap();
        let (mut checkpoints, _) = open(dir.path());
        let partition = Partition { topic: "images".into(), partition: 0 };
        let at = |sequence, next| {
            let (partition, done_ahead) = (partition.clone(), BTreeSet::new());
            let offsets = vec![PartitionOffset { partition, next, done_ahead }];
            Manifest { sequence, offsets, ..manifest(3, &[], 0) }
        };
        let sequences = || -> Vec<u64> {
            let paths = list(dir.path()).unwrap();
            paths.iter().map(|path| file::read(path).unwrap().manifest.sequence).collect()
        };
        let mut write = |sequence, next, committed: Option<&str>| {
            checkpoints.write(&unwritten(at(sequence, next), committed)).unwrap().id
        };
        let ids: Vec<String> = (0..12).map(|n| write(n, n as i64 / 4, None)).collect();
        assert_eq!(sequences(), [11, 10, 7, 3], "the newest two, and one for each end");
        let last = write(12, 2, Some(&ids[7]));
        assert_eq!(sequences(), [12, 11, 7], "those since the one that was committed");
        (13..20).for_each(|n| drop(write(n, 2, Some(&last))));
        assert_eq!(sequences(), [19, 18, 12], "the committed one, though newer ones end there");
    }

    #[test]
    fn what_a_kill_left_half_written_goes_at_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let names = ["000000000012-0123456789abcdef.tmp", "learner-id.tmp", "12-notes.txt"];
        names.iter().for_each(|name| fs::write(dir.path().join(name), "half").unwrap());
        assert!(newest(dir.path()).unwrap().is_none());
        let left = names.map(|name| dir.path().join(name).exists());
        assert_eq!(left, [false, true, true], "of {names:?}");
    }

    #[test]
    fn what_cannot_be_written_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let mut checkpoints = open(dir.path());
        let mut entries = vec![entry(0, 10)];
        save(&mut checkpoints, 1, &mut entries);
        let before = fs::read_dir(dir.path()).unwrap().count();
        // A folder stands where the next file would, so that the rename fails.
        let next = manifest(2, &entries, 1);
        let (id, path) = file::write(dir.path(), &next, &arrays(2.0)).unwrap();
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        let unwritten = Unwritten { arrays: arrays(2.0), ..unwritten(next, None) };
        let error = format!("{:#}", checkpoints.0.write(&unwritten).unwrap_err());
        assert!(error.contains(&id), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), before + 1, "but for that folder");
        fs::remove_dir(&path).unwrap();
        assert_eq!(newest(dir.path()).unwrap().unwrap().checkpoint.manifest.step, 1);
    }

    #[test]
    fn an_empty_folder_has_no_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        assert!(newest(&dir.path().join("new")).unwrap().is_none());
    }
}
