//! Replay bytes on disk: segments that are only ever appended whole.
//!
//! Each checkpoint writes the images that are new since the last one into one new segment, synced
//! before the checkpoint is. A segment that has become mostly dead is copied forward: its living
//! images count as new. Segments that no kept checkpoint names are removed.

use super::Manifest;
use super::file::discard;
use crate::fault;
use crate::replay::{Entry, StoredAt};
use anyhow::{Context, Result};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

const EXTENSION: &str = "images";
/// A segment with less than this share alive is copied forward: a guess that bounds the folder at
/// about twice the budget.
const MIN_ALIVE: f64 = 0.5;

/// The segments of one checkpoint folder.
pub(super) struct Segments {
    dir: PathBuf,
    next: u64,
    len_bytes: BTreeMap<u64, u64>,
}

impl Segments {
    /// The segments that lie in `dir` already.
    ///
    /// # Errors
    /// Whatever the file system reports.
    pub(super) fn open(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
        let mut len_bytes = BTreeMap::new();
        for entry in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
            let entry = entry?;
            if let Some(number) = segment_number(&entry.path()) {
                len_bytes.insert(number, entry.metadata()?.len());
            }
        }
        let next = len_bytes.last_key_value().map_or(0, |(last, _)| last + 1);
        Ok(Self { dir: dir.to_owned(), next, len_bytes })
    }

    /// Writes and syncs every entry that is not on disk yet, and notes where it lies.
    ///
    /// # Errors
    /// Whatever the file system reports; entries keep their old places then.
    pub(super) fn store(&mut self, entries: &mut [&mut Entry]) -> Result<()> {
        let worn = self.worn_out(entries);
        let is_new = |entry: &Entry| entry.stored_at.is_none_or(|at| worn.contains(&at.segment));
        if !entries.iter().any(|entry| is_new(entry)) {
            return Ok(());
        }
        let path = self.path(self.next);
        let mut content = vec![];
        let mut places = vec![];
        for (index, entry) in entries.iter().enumerate() {
            if is_new(entry) {
                let position = content.len() as u64;
                places.push((index, StoredAt { segment: self.next, position }));
                content.extend_from_slice(&entry.bytes);
            }
        }
        let written = || -> std::io::Result<()> {
            let mut file = File::create(&path)?;
            file.write_all(&content)?;
            fault::die_at("segment_sync");
            file.sync_all()?;
            File::open(&self.dir)?.sync_all()
        };
        let written = written().inspect_err(|_| discard(&path));
        written.with_context(|| format!("writing {}", path.display()))?;
        for (index, place) in places {
            entries[index].stored_at = Some(place);
        }
        self.len_bytes.insert(self.next, content.len() as u64);
        self.next += 1;
        Ok(())
    }

    fn worn_out(&self, entries: &[&mut Entry]) -> BTreeSet<u64> {
        let mut alive = BTreeMap::<u64, u64>::new();
        for entry in entries {
            if let Some(at) = entry.stored_at {
                *alive.entry(at.segment).or_default() += entry.bytes.len() as u64;
            }
        }
        let is_worn = |segment: &u64, alive: u64| {
            let len = self.len_bytes.get(segment).copied().unwrap_or(0);
            (alive as f64) < MIN_ALIVE * len as f64
        };
        alive.iter().filter(|(segment, alive)| is_worn(segment, **alive)).map(|(s, _)| *s).collect()
    }

    /// Removes every segment that is not in `named`.
    ///
    /// # Errors
    /// Whatever the file system reports.
    pub(super) fn keep_only(&mut self, named: &BTreeSet<u64>) -> Result<()> {
        let dead: Vec<u64> =
            self.len_bytes.keys().copied().filter(|number| !named.contains(number)).collect();
        for number in dead {
            let path = self.path(number);
            fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
            self.len_bytes.remove(&number);
        }
        Ok(())
    }

    /// Reads back the entries that `manifest` names: those drawn from, then those pending.
    ///
    /// # Errors
    /// A segment that is missing or too short.
    pub(super) fn load(&self, manifest: &Manifest) -> Result<(Vec<Entry>, Vec<Entry>)> {
        let mut contents = BTreeMap::new();
        for segment in named_by(manifest) {
            let path = self.path(segment);
            let content = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
            contents.insert(segment, Bytes::from(content));
        }
        let (mut drawn, mut pending) = (vec![], vec![]);
        for entry in &manifest.replay {
            let content = &contents[&entry.stored_at.segment];
            let begin = entry.stored_at.position as usize;
            let end = begin + entry.len_bytes as usize;
            if end > content.len() {
                let path = self.path(entry.stored_at.segment);
                anyhow::bail!("{} is shorter than its checkpoint says", path.display());
            }
            let bytes = Bytes::copy_from_slice(&content[begin..end]);
            let stored_at = Some(entry.stored_at);
            let list = if entry.is_pending { &mut pending } else { &mut drawn };
            list.push(Entry { origin: entry.origin(), bytes, stored_at, sketch: None });
        }
        Ok((drawn, pending))
    }

    fn path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{number:012}.{EXTENSION}"))
    }
}

/// The segments that `manifest` names.
pub(super) fn named_by(manifest: &Manifest) -> BTreeSet<u64> {
    manifest.replay.iter().map(|entry| entry.stored_at.segment).collect()
}

fn segment_number(path: &Path) -> Option<u64> {
    path.extension().filter(|extension| *extension == EXTENSION)?;
    path.file_stem()?.to_str()?.parse().ok()
}
