//! Tar archives: a plain one is indexed by position and read in place, a compressed one is
//! unpacked into memory.

use super::{CollectionError, Contents, Labels, Listing, is_image};
use bytes::Bytes;
use std::fs::File;
use std::io::{BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Where each member's bytes lie in the open archive.
pub(super) struct Positions {
    file: File,
    /// First byte and length of each member.
    members: Vec<(u64, usize)>,
}

impl Positions {
    /// Reads at a position, so that threads may share the file.
    pub(super) fn read(&self, index: usize) -> std::io::Result<Bytes> {
        let (start, length_bytes) = self.members[index];
        let mut bytes = vec![0; length_bytes];
        self.file.read_exact_at(&mut bytes, start)?;
        Ok(bytes.into())
    }
}

/// Indexes the plain archive at `path`.
pub(super) fn list(path: &Path) -> Result<Listing, CollectionError> {
    let open = |source| CollectionError::Open { path: path.to_owned(), source };
    let file = File::open(path).map_err(open)?;
    let file_bytes = file.metadata().map_err(open)?.len();
    // A handle of its own: the index is read by seeking, the members by position.
    let mut archive = tar::Archive::new(BufReader::new(File::open(path).map_err(open)?));
    let mut walk = Walk::new(path);
    let mut positions = Vec::new();
    let entries = archive.entries_with_seek().map_err(|source| walk.damaged(source))?;
    for entry in entries {
        let entry = entry.map_err(|source| walk.damaged(source))?;
        if !walk.admit(&entry)? {
            continue;
        }
        let (start, length_bytes) = (entry.raw_file_position(), entry.size());
        // Seeking passes the end of a file without complaint.
        if start.checked_add(length_bytes).is_none_or(|end| end > file_bytes) {
            return Err(walk.cut_off());
        }
        let length_bytes = usize::try_from(length_bytes).map_err(|_| walk.cut_off())?;
        positions.push((start, length_bytes));
    }
    Ok(walk.listing(Contents::Tar(Positions { file, members: positions })))
}

/// Unpacks the archive at `path`, which `decompress` turns into a plain one, into memory.
pub(super) fn unpack(
    path: &Path,
    decompress: fn(BufReader<File>) -> Box<dyn Read>,
) -> Result<Listing, CollectionError> {
    let file = File::open(path)
        .map_err(|source| CollectionError::Open { path: path.to_owned(), source })?;
    let mut archive = tar::Archive::new(decompress(BufReader::new(file)));
    let mut walk = Walk::new(path);
    let mut contents = Vec::new();
    let entries = archive.entries().map_err(|source| walk.damaged(source))?;
    for entry in entries {
        let mut entry = entry.map_err(|source| walk.damaged(source))?;
        if !walk.admit(&entry)? {
            continue;
        }
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).map_err(|source| walk.damaged(source))?;
        if bytes.len() as u64 != entry.size() {
            return Err(walk.cut_off());
        }
        contents.push(bytes.into());
    }
    Ok(walk.listing(Contents::Memory(contents)))
}

/// A walk through an archive: what was found so far, and errors that say where.
struct Walk<'a> {
    path: &'a Path,
    labels: Labels,
    members: Vec<super::Member>,
    skipped: usize,
}

impl<'a> Walk<'a> {
    fn new(path: &'a Path) -> Self {
        Self { path, labels: Labels::default(), members: Vec::new(), skipped: 0 }
    }

    /// Whether `entry` is an image; it is a member from then on. Folders are neither images nor
    /// skipped; links and sparse files are skipped, for their bytes are not where they stand.
    fn admit(&mut self, entry: &tar::Entry<'_, impl Read>) -> Result<bool, CollectionError> {
        let kind = entry.header().entry_type();
        if kind.is_dir() || kind.is_pax_global_extensions() {
            return Ok(false);
        }
        let path = entry.path().map_err(|source| self.damaged(source))?;
        if !(kind.is_file() || kind.is_contiguous()) || !is_image(&path) {
            self.skipped += 1;
            return Ok(false);
        }
        self.members.push(self.labels.member(&path));
        Ok(true)
    }

    fn last_name(&self) -> String {
        self.members.last().map(|member| member.name.clone()).unwrap_or_default()
    }

    fn damaged(&self, source: std::io::Error) -> CollectionError {
        CollectionError::Archive { path: self.path.to_owned(), after: self.last_name(), source }
    }

    /// The member admitted last is incomplete.
    fn cut_off(&self) -> CollectionError {
        CollectionError::CutOff { path: self.path.to_owned(), member: self.last_name() }
    }

    fn listing(self, contents: Contents) -> Listing {
        Listing { members: self.members, contents, skipped: self.skipped }
    }
}
