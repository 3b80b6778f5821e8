//! A folder and all below it: names are listed once, bytes are read when asked for.

use super::{CollectionError, Contents, Labels, Listing, is_image};
use bytes::Bytes;
use std::path::{Path, PathBuf};

/// Where each member's file is.
pub(super) struct Files(Vec<PathBuf>);

impl Files {
    pub(super) fn read(&self, index: usize) -> std::io::Result<Bytes> {
        std::fs::read(&self.0[index]).map(Bytes::from)
    }
}

/// Lists the images below `root`, sorted by path; links are followed, as data sets are often
/// folders of links into a cache.
pub(super) fn list(root: &Path) -> Result<Listing, CollectionError> {
    let mut labels = Labels::default();
    let mut members = Vec::new();
    let mut files = Vec::new();
    let mut skipped = 0;
    for entry in walkdir::WalkDir::new(root).follow_links(true).sort_by_file_name() {
        let entry =
            entry.map_err(|source| CollectionError::List { path: root.to_owned(), source })?;
        if entry.file_type().is_dir() {
            continue;
        }
        if !entry.file_type().is_file() || !is_image(entry.path()) {
            skipped += 1;
            continue;
        }
        let within = entry.path().strip_prefix(root).unwrap_or(entry.path());
        members.push(labels.member(within));
        files.push(entry.into_path());
    }
    Ok(Listing { members, contents: Contents::Directory(Files(files)), skipped })
}
