//! Replay bytes on disk: segments that are written whole, once.
//!
//! Each checkpoint writes the images that are new since the last one into one new segment, synced
//! before the checkpoint is. Segments that no kept checkpoint names are removed. Where an image will lie
//! is [`Places`](super::Places)' to say, before anything is written.

use super::file::discard;
use super::places::NewSegment;
use super::{Manifest, ReplayEntry};
use crate::fault;
use crate::replay::Entry;
use anyhow::{Context, Result};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const EXTENSION: &str = "images";

/// The segments of one checkpoint folder.
pub(super) struct Segments {
    dir: PathBuf,
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
        Ok(Self { dir: dir.to_owned(), len_bytes })
    }

    /// The length of each segment, by its number.
    pub(super) fn len_bytes(&self) -> &BTreeMap<u64, u64> {
        &self.len_bytes
    }

    /// Writes a segment and syncs it.
    ///
    /// # Errors
    /// Whatever the file system reports.
    pub(super) fn write(&mut self, segment: &NewSegment) -> Result<()> {
        let path = self.path(segment.number);
        let written = || -> std::io::Result<()> {
            let mut file = BufWriter::new(File::create(&path)?);
            for image in &segment.images {
                file.write_all(image)?;
            }
            file.flush()?;
            fault::die_at("segment_sync");
            file.get_ref().sync_all()?;
            File::open(&self.dir)?.sync_all()
        };
        let written = written().inspect_err(|_| discard(&path));
        written.with_context(|| format!("writing {}", path.display()))?;
        self.len_bytes.insert(segment.number, segment.len_bytes());
        Ok(())
    }

    /// Removes every segment that is not in `named`; returns their numbers.
    ///
    /// # Errors
    /// Whatever the file system reports.
    pub(super) fn keep_only(&mut self, named: &BTreeSet<u64>) -> Result<Vec<u64>> {
        let dead: Vec<u64> =
            self.len_bytes.keys().copied().filter(|number| !named.contains(number)).collect();
        for number in &dead {
            let path = self.path(*number);
            fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
            self.len_bytes.remove(number);
        }
        Ok(dead)
    }

    /// Reads back the entries that `manifest` names: those drawn from, then those pending.
    ///
    /// # Errors
    /// A segment that is missing or too short.
    pub(super) fn load(&self, manifest: &Manifest) -> Result<(Vec<Entry>, Vec<Entry>)> {
        let mut in_segments = BTreeMap::<u64, Vec<usize>>::new();
        for (index, entry) in manifest.replay.iter().enumerate() {
            in_segments.entry(entry.stored_at.segment).or_default().push(index);
        }
        let mut contents = vec![Bytes::new(); manifest.replay.len()];
        for (segment, indices) in in_segments {
            let path = self.path(segment);
            let reading = || format!("reading {}", path.display());
            let file = File::open(&path).with_context(reading)?;
            let file_bytes = file.metadata().with_context(reading)?.len();
            // One by one, so that no segment lies in memory beside its images.
            for index in indices {
                let ReplayEntry { stored_at, len_bytes, .. } = &manifest.replay[index];
                if stored_at.position.saturating_add(u64::from(*len_bytes)) > file_bytes {
                    anyhow::bail!("{} is shorter than its checkpoint says", path.display());
                }
                let mut bytes = vec![0; *len_bytes as usize];
                file.read_exact_at(&mut bytes, stored_at.position).with_context(reading)?;
                contents[index] = bytes.into();
            }
        }
        let (mut drawn, mut pending) = (vec![], vec![]);
        for (entry, bytes) in manifest.replay.iter().zip(contents) {
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
