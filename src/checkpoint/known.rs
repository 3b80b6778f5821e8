//! What is known of the checkpoints in a folder, and which of them nobody will go back to.

use super::Manifest;
use super::segments::named_by;
use crate::source::offsets::NextOffsets;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What is known of each checkpoint, by its path; `None` of a damaged one.
#[derive(Default)]
pub(super) struct Known(BTreeMap<PathBuf, Option<Content>>);

struct Content {
    segments: BTreeSet<u64>,
    /// Where each partition goes on.
    next: NextOffsets,
}

impl Known {
    /// Notes a checkpoint, whose manifest cannot be had if it is damaged.
    pub(super) fn insert(&mut self, path: PathBuf, manifest: Option<&Manifest>) {
        let content = |manifest: &Manifest| Content {
            segments: named_by(manifest),
            next: manifest.offsets.iter().map(|at| (at.partition.clone(), at.next)).collect(),
        };
        self.0.insert(path, manifest.map(content));
    }

    pub(super) fn remove(&mut self, path: &Path) {
        self.0.remove(path);
    }

    /// The segments that they name; `None` where one is damaged, and may name any.
    pub(super) fn segments(&self) -> Option<BTreeSet<u64>> {
        let mut all = BTreeSet::new();
        for content in self.0.values() {
            all.extend(&content.as_ref()?.segments);
        }
        Some(all)
    }

    /// Those of `paths`, which are all, newest first, that are not kept: all but the newest `keep`, the one whose
    /// name is `committed`, and those since. Where some of the latter, one after the other, go on at the same
    /// offsets, the newest stands for them: where others have gone on, it is the one that is gone back to.
    pub(super) fn superfluous<'a>(
        &self,
        paths: &'a [PathBuf],
        keep: usize,
        committed: Option<&str>,
    ) -> Vec<&'a Path> {
        let is_committed =
            |path: &PathBuf| path.file_stem().is_some_and(|id| committed == id.to_str());
        let committed = paths.iter().position(is_committed);
        let next = |index: usize| Some(&self.0.get(&paths[index])?.as_ref()?.next);
        let is_superfluous = |index: &usize| match committed {
            Some(committed) if *index >= committed => *index > committed,
            _ => next(*index).is_some_and(|at| next(*index - 1) == Some(at)),
        };
        let old = (keep.max(1)..paths.len()).filter(is_superfluous);
        old.map(|index| &*paths[index]).collect()
    }
}
