//! The folder of published versions: which is the newest, which of them stay, and what a kill has left there.

use super::Provenance;
use crate::checkpoint::write_atomically;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};

const EXTENSION: &str = "safetensors";
const PROVENANCE: &str = "json";
/// Of a file that is being written.
const TEMPORARY: &str = "tmp";
/// A version's name is a hash in hex.
const NAME_DIGITS: usize = 2 * blake3::OUT_LEN;

/// What lies beside a version.
#[derive(Serialize, Deserialize)]
struct Beside {
    /// Counts what is published into the folder: the highest is the newest, whatever its step and the clock. Files
    /// from before there were numbers have 0.
    #[serde(default)]
    publication: u64,
    #[serde(flatten)]
    provenance: Provenance,
}

/// A version in the folder.
struct Kept {
    path: PathBuf,
    beside: Beside,
}

impl Kept {
    /// What puts versions in order.
    fn place(&self) -> (u64, i64, u64, &Path) {
        let Provenance { created_ms, step, .. } = &self.beside.provenance;
        (self.beside.publication, *created_ms, *step, self.path.as_path())
    }
}

/// Where a version lies in `dir`.
pub fn path_of(dir: &Path, version: &str) -> PathBuf {
    dir.join(format!("{version}.{EXTENSION}"))
}

/// Versions of `dir` with their steps, the one published last first. One of as many steps as a newer one, or more, is
/// of an earlier run in the folder, or was gone back from, and is left out.
///
/// # Errors
/// A folder that cannot be read, or a damaged provenance in it.
pub fn list(dir: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut versions: Vec<(u64, PathBuf)> = vec![];
    for Kept { path, beside } in kept(dir)? {
        let step = beside.provenance.step;
        if versions.last().is_none_or(|(newer, _)| step < *newer) {
            versions.push((step, path));
        }
    }
    Ok(versions)
}

/// The version of `dir` that was published last.
pub(super) fn newest(dir: &Path) -> Result<PathBuf> {
    let newest = kept(dir)?.into_iter().next();
    Ok(newest.with_context(|| format!("{} holds no snapshot", dir.display()))?.path)
}

/// Versions of `dir`, the one published last first.
fn kept(dir: &Path) -> Result<Vec<Kept>> {
    let mut kept = vec![];
    for entry in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let path = entry?.path();
        if has(&path, EXTENSION) && !is_half(&path) {
            kept.push(Kept { beside: beside(&path)?, path });
        }
    }
    kept.sort_by(|a, b| b.place().cmp(&a.place()));
    Ok(kept)
}

fn has(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found == extension)
}

/// Whether a version lacks its provenance, which is written last and removed first.
fn is_half(version: &Path) -> bool {
    !version.with_extension(PROVENANCE).exists()
}

/// The provenance of the version at `path`.
pub(super) fn provenance_of(path: &Path) -> Result<Provenance> {
    Ok(beside(path)?.provenance)
}

fn beside(path: &Path) -> Result<Beside> {
    let path = path.with_extension(PROVENANCE);
    let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is no provenance", path.display()))
}

/// Writes a version to `path`, as the newest of its folder. Returns its provenance: where it lies there already, of
/// the same step, that with which it was published first.
pub(super) fn put(path: &Path, bytes: &[u8], provenance: &Provenance) -> Result<Provenance> {
    let dir = path.parent().context("a version's path has a folder")?;
    write_atomically(path, bytes)?;
    let kept = kept(dir)?;
    let before = kept.iter().find(|kept| kept.path == path).map(|kept| &kept.beside.provenance);
    let mut provenance = match before {
        Some(before) if before.step == provenance.step => before.clone(),
        _ => provenance.clone(),
    };
    if provenance.parent.is_none() {
        // It has not moved since, and comes after what it came after then.
        provenance.parent = before.and_then(|before| before.parent.clone());
    }
    let publication = kept.first().map_or(0, |newest| newest.beside.publication) + 1;
    let beside = Beside { publication, provenance };
    write_atomically(&path.with_extension(PROVENANCE), &serde_json::to_vec_pretty(&beside)?)?;
    Ok(beside.provenance)
}

/// Removes all versions of `dir` but the newest `keep`, and those that are `spared` by name.
pub(super) fn prune(dir: &Path, keep: usize, spared: &[&str]) -> Result<()> {
    let spared: Vec<PathBuf> = spared.iter().map(|version| path_of(dir, version)).collect();
    for Kept { path, .. } in kept(dir)?.into_iter().skip(keep) {
        if !spared.contains(&path) {
            remove(&path.with_extension(PROVENANCE))?;
            remove(&path)?;
        }
    }
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    fs::remove_file(path).with_context(|| format!("removing {}", path.display()))
}

/// Removes what a kill left of versions in `dir`: half-written ones, and those that it was about to remove.
///
/// # Errors
/// Whatever the file system reports.
pub fn discard_half_written(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let path = entry?.path();
        let is_left = has(&path, TEMPORARY) || (has(&path, EXTENSION) && is_half(&path));
        if is_left && is_named_as_a_version(&path) {
            remove(&path)?;
        }
    }
    Ok(())
}

fn is_named_as_a_version(path: &Path) -> bool {
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    stem.len() == NAME_DIGITS && stem.bytes().all(is_digit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(number: u8) -> String {
        blake3::hash(&[number]).to_hex().to_string()
    }

    fn provenance(step: u64, created_ms: i64) -> Provenance {
        Provenance { step, created_ms, ..Provenance::default() }
    }

    /// Publishes version `number` of `step`, as a run does that keeps two.
    fn publish(dir: &Path, number: u8, step: u64) {
        put(&path_of(dir, &name(number)), b"weights", &provenance(step, 0)).unwrap();
        prune(dir, 2, &[]).unwrap();
    }

    fn steps(dir: &Path) -> Vec<u64> {
        list(dir).unwrap().into_iter().map(|(step, _)| step).collect()
    }

    /// A run that begins anew in the folder of a longer one, and one that goes back.
    #[test]
    fn what_was_published_last_is_the_newest_and_stays_whatever_its_step() {
        let dir = tempfile::tempdir().unwrap();
        for (number, step) in [9800, 10_000, 10_200, 200, 400, 600, 300].into_iter().enumerate() {
            publish(dir.path(), number as u8, step);
            let path = path_of(dir.path(), &name(number as u8));
            assert_eq!(newest(dir.path()).unwrap(), path, "step {step}");
            assert!(path.exists() && provenance_of(&path).unwrap().step == step);
        }
        assert_eq!(kept(dir.path()).unwrap().len(), 2);
    }

    #[test]
    fn only_versions_that_the_newest_comes_after_are_listed() {
        let dir = tempfile::tempdir().unwrap();
        for (number, step) in [9000, 100, 200, 300, 150, 250].into_iter().enumerate() {
            let path = path_of(dir.path(), &name(number as u8));
            put(&path, b"weights", &provenance(step, 0)).unwrap();
        }
        assert_eq!(steps(dir.path()), [250, 150, 100]);
    }

    #[test]
    fn files_without_a_number_are_in_the_order_of_their_times_before_those_with_one() {
        let dir = tempfile::tempdir().unwrap();
        for (number, step, created_ms) in [(0, 100, 1000), (1, 300, 3000), (2, 200, 2000)] {
            let path = path_of(dir.path(), &name(number));
            fs::write(&path, "weights").unwrap();
            let older = serde_json::to_vec(&provenance(step, created_ms)).unwrap();
            fs::write(path.with_extension(PROVENANCE), older).unwrap();
        }
        assert_eq!(steps(dir.path()), [300, 200, 100]);
        publish(dir.path(), 3, 50);
        assert_eq!(newest(dir.path()).unwrap(), path_of(dir.path(), &name(3)));
        assert!(path_of(dir.path(), &name(1)).exists(), "the newest of the older ones");
        assert_eq!(kept(dir.path()).unwrap().len(), 2);
    }

    /// As a restart does.
    #[test]
    fn a_version_published_again_is_the_newest_and_keeps_its_provenance() {
        let dir = tempfile::tempdir().unwrap();
        let [path, other] = [0, 1].map(|number| path_of(dir.path(), &name(number)));
        let first = Provenance { parent: Some(name(7)), ..provenance(5, 1000) };
        assert_eq!(put(&path, b"weights", &first).unwrap(), first);
        put(&other, b"weights", &provenance(9, 2000)).unwrap();
        assert_eq!(put(&path, b"weights", &provenance(5, 3000)).unwrap(), first);
        assert_eq!(provenance_of(&path).unwrap(), first);
        assert_eq!(newest(dir.path()).unwrap(), path);
        // Equal weights of another step are another run's, or have not moved.
        let later = Provenance { parent: Some(name(8)), ..provenance(6, 4000) };
        assert_eq!(put(&path, b"weights", &later).unwrap(), later);
        let unmoved = put(&path, b"weights", &provenance(7, 5000)).unwrap();
        assert_eq!(unmoved, Provenance { parent: later.parent, ..provenance(7, 5000) });
    }

    #[test]
    fn those_that_are_spared_stay_however_old() {
        let dir = tempfile::tempdir().unwrap();
        let [first, third] = [name(0), name(2)];
        for number in 0..9 {
            let path = path_of(dir.path(), &name(number));
            put(&path, b"weights", &provenance(u64::from(number), 0)).unwrap();
            prune(dir.path(), 1, &[&first[..], &third[..]]).unwrap();
        }
        assert_eq!(steps(dir.path()), [8, 2, 0]);
    }

    #[test]
    fn what_a_kill_left_goes_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        publish(dir.path(), 0, 1);
        let left = [format!("{}.tmp", name(1)), format!("{}.{EXTENSION}", name(2))];
        let others = ["history.jsonl", "notes.tmp", "pretrained.safetensors", "abc.safetensors"];
        let all = left.iter().map(String::as_str).chain(others);
        all.for_each(|name| fs::write(dir.path().join(name), "half").unwrap());
        discard_half_written(dir.path()).unwrap();
        assert!(left.iter().all(|name| !dir.path().join(name).exists()));
        assert!(others.iter().all(|name| dir.path().join(name).exists()));
        let version = newest(dir.path()).unwrap();
        assert!(version == path_of(dir.path(), &name(0)) && version.exists());
    }
}
