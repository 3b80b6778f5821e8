//! One checkpoint file: written by tmp, fsync, rename; read with its hash checked.

use super::migrate::{self, Form};
use super::{Checkpoint, FORMAT, Manifest};
use crate::encoder::{Array, NamedArrays};
use crate::fault;
use anyhow::{Context, Result};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use tracing::warn;

/// Extension of checkpoint files.
pub(super) const EXTENSION: &str = "safetensors";
/// Extension of files that are being written.
const TEMPORARY: &str = "tmp";
/// The manifest's format in the header, and the array of bytes that is the manifest. A header has an upper bound,
/// which a buffer of many small images would pass; formats before 2 had all of the manifest there.
const MANIFEST_KEY: &str = "selfstream.checkpoint";
/// Hex digits of the content's hash in a file's name: 64 bits tell damage, not malice.
const HASH_DIGITS: usize = 16;

/// Why a file is not a whole checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    /// It cannot be read.
    #[error("it cannot be read")]
    Unreadable(#[from] std::io::Error),
    /// Its name does not carry its content's hash.
    #[error("its content has hash {found}, its name says {named}")]
    Hash {
        /// The content's.
        found: String,
        /// The name's.
        named: String,
    },
    /// It is no safetensors file.
    #[error("it is no safetensors file")]
    Form(#[from] safetensors::SafeTensorError),
    /// An array of it is not of 32-bit floats.
    #[error("its array {name} is of {dtype:?}, allowed is F32")]
    Dtype {
        /// The array.
        name: String,
        /// What its numbers are.
        dtype: Dtype,
    },
    /// It has no manifest.
    #[error("it has no manifest")]
    NoManifest,
    /// Its manifest cannot be understood.
    #[error("its manifest cannot be understood")]
    Manifest(#[from] serde_json::Error),
    /// It was written by a newer version of this program.
    #[error(
        "its manifest has format {0}, newer than {FORMAT}, the newest that this program reads: use \
         the version of selfstream that wrote it, or another checkpoint.dir"
    )]
    Newer(u64),
    /// It says that it was written by a version of this program that there was not.
    #[error("its manifest has format {0}, which is none of 1 to {FORMAT}")]
    Format(u64),
}

/// Writes a checkpoint file; returns its id and path. The rename is the atomic act.
///
/// # Errors
/// Whatever the file system reports.
pub(super) fn write(
    dir: &Path,
    manifest: &Manifest,
    arrays: &NamedArrays,
) -> Result<(String, PathBuf)> {
    let format = json!({ "format": manifest.format }).to_string();
    let json = serde_json::to_vec(manifest)?;
    let bytes = serialize(MANIFEST_KEY, &format, arrays, Some(&json))?;
    let hash = blake3::hash(&bytes).to_hex();
    // Names are in the order of time: of two of one step more is done by the later, or it was written later.
    let (done, sequence) = (manifest.counts.done(), manifest.sequence);
    let id = format!("{:012}-{done:012}-{sequence:08}-{}", manifest.step, &hash[..HASH_DIGITS]);
    let path = dir.join(format!("{id}.{EXTENSION}"));
    write_atomically(&path, &bytes)?;
    Ok((id, path))
}

/// Writes `bytes` to `path` so that it holds either all of them or what it held before.
///
/// # Errors
/// Whatever the file system reports.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let dir = path.parent().context("a file's path has a folder")?;
    fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    let tmp = path.with_extension(TEMPORARY);
    let written = || -> std::io::Result<()> {
        let mut file = File::create(&tmp)?;
        let (first, rest) = bytes.split_at(bytes.len() / 2);
        file.write_all(first)?;
        fault::die_at("temporary_write");
        file.write_all(rest)?;
        fault::die_at("sync");
        file.sync_all()?;
        fault::die_at("rename");
        fs::rename(&tmp, path)?;
        fault::die_at("renamed");
        File::open(dir)?.sync_all()
    };
    let written = written().inspect_err(|_| discard(&tmp));
    written.with_context(|| format!("writing {}", path.display()))
}

/// Removes what could not be written whole: the disk may be full of it.
pub(super) fn discard(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            warn!(path = %path.display(), %error, "a half-written file could not be removed");
        }
        _ => {}
    }
}

/// Removes the checkpoints of `dir` that a kill left half-written.
///
/// # Errors
/// A folder that cannot be read.
pub(super) fn discard_half_written(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let path = entry?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let step = stem.split_once('-').map_or("", |(step, _)| step);
        let is_ours = !step.is_empty() && step.bytes().all(|byte| byte.is_ascii_digit());
        if is_ours && path.extension().is_some_and(|extension| extension == TEMPORARY) {
            discard(&path);
        }
    }
    Ok(())
}

/// Arrays and one text as a safetensors file. Equal input gives equal bytes.
///
/// # Errors
/// A text or shapes that the form cannot hold.
pub(crate) fn to_bytes(key: &str, text: &str, arrays: &NamedArrays) -> Result<Vec<u8>> {
    serialize(key, text, arrays, None)
}

/// Of `key` there is a text in the header, and an array of `bytes` where some are given.
fn serialize(key: &str, text: &str, arrays: &NamedArrays, bytes: Option<&[u8]>) -> Result<Vec<u8>> {
    let little_endian: Vec<(&String, &Array, Vec<u8>)> = arrays
        .iter()
        .map(|(name, array)| {
            (name, array, array.values.iter().flat_map(|v| v.to_le_bytes()).collect())
        })
        .collect();
    let mut views = vec![];
    for (name, array, bytes) in &little_endian {
        views.push((name.as_str(), TensorView::new(Dtype::F32, array.shape.clone(), bytes)?));
    }
    if let Some(bytes) = bytes {
        views.push((key, TensorView::new(Dtype::U8, vec![bytes.len()], bytes)?));
    }
    let metadata = HashMap::from([(key.to_owned(), text.to_owned())]);
    Ok(safetensors::serialize(views, Some(metadata))?)
}

/// The inverse of [`to_bytes`].
pub(crate) fn from_bytes(key: &str, bytes: &[u8]) -> Result<(String, NamedArrays), Damage> {
    Ok((text_of(key, bytes)?, arrays_of(bytes)?))
}

fn text_of(key: &str, bytes: &[u8]) -> Result<String, Damage> {
    let (_, metadata) = SafeTensors::read_metadata(bytes)?;
    let text = metadata.metadata().as_ref().and_then(|texts| texts.get(key));
    Ok(text.ok_or(Damage::NoManifest)?.clone())
}

/// The manifest of a file of any format.
fn manifest_of(bytes: &[u8]) -> Result<Value, Damage> {
    let header = serde_json::from_str(&text_of(MANIFEST_KEY, bytes)?)?;
    // Before anything else of it is looked at: another format may mean anything by it.
    if migrate::known_format(&header)? < 2 {
        return Ok(header);
    }
    let file = SafeTensors::deserialize(bytes)?;
    let json = file.tensor(MANIFEST_KEY).map_err(|_| Damage::NoManifest)?;
    let manifest = serde_json::from_slice(json.data())?;
    migrate::known_format(&manifest)?;
    Ok(manifest)
}

fn arrays_of(bytes: &[u8]) -> Result<NamedArrays, Damage> {
    SafeTensors::deserialize(bytes)?
        .tensors()
        .into_iter()
        .filter(|(name, _)| name != MANIFEST_KEY)
        .map(|(name, view)| {
            let dtype = view.dtype();
            if dtype != Dtype::F32 {
                return Err(Damage::Dtype { name, dtype });
            }
            let words = view.data().chunks_exact(4);
            let values = words.map(|w| f32::from_le_bytes([w[0], w[1], w[2], w[3]])).collect();
            Ok((name, Array { shape: view.shape().to_vec(), values }))
        })
        .collect()
}

/// Reads a checkpoint file and checks that it is whole. One of an older format comes back in today's.
///
/// # Errors
/// What is wrong with it.
pub(super) fn read(path: &Path) -> Result<Checkpoint, Damage> {
    let bytes = fs::read(path)?;
    let id = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let found = blake3::hash(&bytes).to_hex()[..HASH_DIGITS].to_owned();
    let named = id.rsplit('-').next().unwrap_or_default().to_owned();
    if found != named {
        return Err(Damage::Hash { found, named });
    }
    let manifest = manifest_of(&bytes)?;
    let form = migrate::to_newest(Form { manifest, arrays: arrays_of(&bytes)? })?;
    Ok(Checkpoint { id, manifest: serde_json::from_value(form.manifest)?, arrays: form.arrays })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::ReplayEntry;
    use crate::replay::StoredAt;
    use std::sync::Arc;

    fn arrays() -> NamedArrays {
        [("w".to_owned(), Array { shape: vec![2], values: vec![1.0, -1.0] })].into()
    }

    /// A header holds 100 MB at most, as does that of a million small images.
    #[test]
    fn a_manifest_may_be_longer_than_a_header() {
        let dir = tempfile::tempdir().unwrap();
        let entry = ReplayEntry {
            topic: Arc::from("t".repeat(4000)),
            partition: 0,
            offset: 0,
            stored_at: StoredAt { segment: 0, position: 0 },
            len_bytes: 1,
            is_pending: false,
        };
        let replay = vec![entry; 25_000];
        let manifest = Manifest { format: FORMAT, replay, ..Manifest::default() };
        assert!(serde_json::to_vec(&manifest).unwrap().len() > 100_000_000);
        let (_, path) = write(dir.path(), &manifest, &arrays()).unwrap();
        let checkpoint = read(&path).unwrap();
        assert!(checkpoint.manifest == manifest && checkpoint.arrays == arrays());
    }

    /// What was a file's form before its manifest moved.
    #[test]
    fn a_manifest_in_the_header_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let manifest = Manifest { format: 1, step: 7, ..Manifest::default() };
        let text = serde_json::to_string(&manifest).unwrap();
        let bytes = to_bytes(MANIFEST_KEY, &text, &arrays()).unwrap();
        let hash = blake3::hash(&bytes).to_hex();
        let path = dir.path().join(format!("000000000007-{}.safetensors", &hash[..HASH_DIGITS]));
        fs::write(&path, bytes).unwrap();
        let checkpoint = read(&path).unwrap();
        assert_eq!(checkpoint.manifest, Manifest { format: FORMAT, ..manifest });
        assert_eq!(checkpoint.arrays, arrays());
    }
}
