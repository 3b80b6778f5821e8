//! Checkpoints: everything a restart needs, as one atomic unit.
//!
//! A checkpoint is one file: a manifest (JSON, in the safetensors header) and arrays. The bytes of
//! replayed images lie beside it in append-only segments that are synced before it is renamed into
//! place; the rename is the atomic act. A file's name carries the hash of its content, so that a
//! damaged one is known and the one before it is used.

mod file;
mod segments;

pub use file::Damage;
pub(crate) use file::{from_bytes, to_bytes, write_atomically};

use crate::encoder::NamedArrays;
use crate::replay::{Entry, StoredAt};
use crate::setting::{Invalid, within};
use crate::source::Origin;
use crate::source::offsets::{NextOffsets, Partition};
use anyhow::{Context, Result};
use segments::Segments;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tracing::warn;

/// Version of the manifest's form.
pub const FORMAT: u32 = 1;

/// `[checkpoint]`: where the state of the run is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Its folder; one running learner only.
    pub dir: PathBuf,
    /// The longest time between two checkpoints while it learns.
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

/// The part of a checkpoint that is not arrays.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this form.
    pub format: u32,
    /// Who wrote it; commits carry the same name.
    pub learner_id: String,
    /// Architecture of the encoder.
    pub architecture: String,
    /// Side of the encoder's input.
    pub side_px: usize,
    /// Steps taken.
    pub step: u64,
    /// Time spent training, over restarts.
    #[serde(with = "humantime_serde")]
    pub trained: Duration,
    /// Steps taken when the learning rate last warmed up again.
    #[serde(default)]
    pub restarted_at: u64,
    /// Counts since the run began.
    pub counts: Counts,
    /// Where each partition goes on.
    pub offsets: Vec<PartitionOffset>,
    /// What the replay buffer holds.
    pub replay: Vec<ReplayEntry>,
    /// What the replay buffer was ever offered.
    pub replay_offered: u64,
    /// The version published last.
    pub last_version: Option<String>,
}

/// Counts since the run began, over restarts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Images learned at least once.
    pub learned: u64,
    /// Records refused, with their dead letters acknowledged.
    pub refused: u64,
}

/// Where a partition goes on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PartitionOffset {
    /// Topic and number.
    #[serde(flatten)]
    pub partition: Partition,
    /// The first offset that is not done.
    pub next: i64,
}

/// A replayed image: where it came from and where its bytes lie.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplayEntry {
    /// Topic.
    pub topic: Arc<str>,
    /// Partition.
    pub partition: i32,
    /// Offset.
    pub offset: i64,
    /// Where the bytes begin.
    #[serde(flatten)]
    pub stored_at: StoredAt,
    /// How many they are.
    pub len_bytes: u32,
    /// Accepted after the buffer was last drawn from: it is offered again on restoring.
    pub is_pending: bool,
}

impl ReplayEntry {
    /// The description of an entry whose bytes lie on disk; `None` if they don't.
    pub fn new(entry: &Entry, is_pending: bool) -> Option<Self> {
        let Origin { topic, partition, offset } = entry.origin.clone();
        let stored_at = entry.stored_at?;
        let len_bytes = entry.bytes.len() as u32;
        Some(Self { topic, partition, offset, stored_at, len_bytes, is_pending })
    }

    /// Where the image came from.
    pub fn origin(&self) -> Origin {
        let Self { topic, partition, offset, .. } = self;
        Origin { topic: Arc::clone(topic), partition: *partition, offset: *offset }
    }
}

impl Manifest {
    /// The offsets as a map.
    pub fn next_offsets(&self) -> NextOffsets {
        self.offsets.iter().map(|o| (o.partition.clone(), o.next)).collect()
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

/// The checkpoint folder of a learner.
pub struct Checkpoints {
    dir: PathBuf,
    keep: usize,
    segments: Segments,
    /// The segments that each checkpoint names; `None` for a damaged one, which may name any.
    named: BTreeMap<PathBuf, Option<BTreeSet<u64>>>,
}

impl Checkpoints {
    /// Opens the folder, making it if need be.
    ///
    /// # Errors
    /// Whatever the file system reports.
    pub fn open(config: &Config) -> Result<Self> {
        let segments = Segments::open(&config.dir)?;
        Ok(Self { dir: config.dir.clone(), keep: config.keep, segments, named: BTreeMap::new() })
    }

    /// The newest checkpoint that is whole; damaged ones are passed over and logged.
    ///
    /// # Errors
    /// A folder that cannot be read, or one in which every checkpoint is damaged.
    pub fn load_newest(&mut self) -> Result<Option<Restored>> {
        let mut newest = None;
        let paths = list(&self.dir)?;
        for path in &paths {
            let loaded = file::read(path).map_err(anyhow::Error::from).and_then(|checkpoint| {
                let (entries, pending) = self.segments.load(&checkpoint.manifest)?;
                Ok(Restored { checkpoint, entries, pending })
            });
            let named = match loaded {
                Ok(restored) => {
                    let named = segments::named_by(&restored.checkpoint.manifest);
                    newest.get_or_insert(restored);
                    Some(named)
                }
                Err(error) => {
                    let path = path.display();
                    warn!(%path, error = format!("{error:#}"), "damaged checkpoint passed over");
                    None
                }
            };
            self.named.insert(path.clone(), named);
        }
        match (&newest, paths.first()) {
            (None, Some(_)) => {
                anyhow::bail!("every checkpoint in {} is damaged", self.dir.display())
            }
            _ => Ok(newest),
        }
    }

    /// Puts the bytes of every new entry on disk; call it before [`Checkpoints::save`].
    ///
    /// # Errors
    /// Whatever the file system reports.
    pub fn store(&mut self, entries: &mut [&mut Entry]) -> Result<()> {
        self.segments.store(entries)
    }

    /// Writes a checkpoint and removes all but the newest few; returns its id.
    ///
    /// # Errors
    /// Whatever the file system reports; the checkpoints before stay as they were.
    pub fn save(&mut self, manifest: &Manifest, arrays: &NamedArrays) -> Result<String> {
        let (id, path) = file::write(&self.dir, manifest, arrays)?;
        self.named.insert(path, Some(segments::named_by(manifest)));
        for old in list(&self.dir)?.into_iter().skip(self.keep) {
            fs::remove_file(&old).with_context(|| format!("removing {}", old.display()))?;
            self.named.remove(&old);
        }
        let named: Option<Vec<_>> = self.named.values().cloned().collect();
        if let Some(named) = named {
            self.segments.keep_only(&named.into_iter().flatten().collect())?;
        }
        Ok(id)
    }
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
    // Names begin with the step, in digits of one width.
    paths.sort();
    paths.reverse();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoder::Array;
    use bytes::Bytes;

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
            trained: Duration::from_millis(1500),
            restarted_at: 1,
            counts: Counts { learned: step * 64, refused: 3 },
            offsets: vec![PartitionOffset {
                partition: Partition { topic: Arc::from("images"), partition: 0 },
                next: 7,
            }],
            replay: entries.iter().enumerate().map(describe).collect(),
            replay_offered: entries.len() as u64,
            last_version: None,
        }
    }

    fn arrays(value: f32) -> NamedArrays {
        [("w".to_owned(), Array { shape: vec![2], values: vec![value, -value] })].into()
    }

    fn open(dir: &Path) -> Checkpoints {
        Checkpoints::open(&Config { dir: dir.to_owned(), keep: 2, ..Config::default() }).unwrap()
    }

    fn save(checkpoints: &mut Checkpoints, step: u64, entries: &mut [Entry]) {
        checkpoints.store(&mut entries.iter_mut().collect::<Vec<_>>()).unwrap();
        checkpoints.save(&manifest(step, entries, 1), &arrays(step as f32)).unwrap();
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

        let restored = open(dir.path()).load_newest().unwrap().unwrap();
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

            let restored = open(dir.path()).load_newest().unwrap().unwrap();
            assert_eq!(restored.checkpoint.manifest.step, 1, "segment {damage_segment}");
            for path in list(dir.path()).unwrap() {
                fs::write(path, "nothing").unwrap();
            }
            let error = open(dir.path()).load_newest().unwrap_err().to_string();
            assert!(error.contains("every checkpoint"), "{error}");
        }
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
        let restored = open(dir.path()).load_newest().unwrap().unwrap();
        assert_eq!(restored.entries.len() + restored.pending.len(), entries.len());
    }

    #[test]
    fn an_empty_folder_has_no_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        assert!(open(&dir.path().join("new")).load_newest().unwrap().is_none());
    }
}
