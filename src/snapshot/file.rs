//! A snapshot as bytes: one safetensors file named by its hash, its provenance beside it.

use super::folder::{self, path_of};
use super::{Encode, Provenance, Snapshot};
use crate::augment::Preprocess;
use crate::checkpoint::{from_bytes, to_bytes};
use crate::encoder::{Architecture, HostParams, NamedArrays, Params, Plan};
use crate::ops::candle::interpreter::forward_inference;
use crate::ops::native::Served;
use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::Path;

const DEFINITION_KEY: &str = "selfstream.snapshot";

/// What is hashed beside the weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Definition {
    format: u32,
    architecture: String,
    preprocess: Preprocess,
}

/// Version of the file's form.
const FORMAT: u32 = 1;

/// A plan with its numbers on a device other than the CPU: the function that a snapshot is.
struct OnDevice {
    plan: Plan,
    params: Params,
    side_px: usize,
}

impl Encode for OnDevice {
    fn feature_dim(&self) -> usize {
        self.plan.feature_dim
    }

    fn embed(&self, images: Vec<f32>, n_images: usize) -> candle_core::Result<Vec<f32>> {
        let shape = (n_images, self.side_px, self.side_px, 3);
        let images = Tensor::from_vec(images, shape, &self.params.device())?; // [N, H, W, C]
        let features = forward_inference(&self.plan, &self.params, &images)?; // [N, D]
        features.flatten_all()?.to_vec1()
    }
}

/// The same on the CPU.
struct OnHost {
    feature_dim: usize,
    served: Served,
}

impl Encode for OnHost {
    fn feature_dim(&self) -> usize {
        self.feature_dim
    }

    fn embed(&self, images: Vec<f32>, n_images: usize) -> candle_core::Result<Vec<f32>> {
        self.served.embed(&images, n_images)
    }
}

/// A snapshot with the bytes that its name is the hash of.
pub struct Encoded {
    /// The snapshot.
    pub snapshot: Snapshot,
    bytes: Vec<u8>,
}

impl Encoded {
    /// The encoder of `arrays` at this moment, to run on `device`. Equal numbers give equal versions.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn new(
        architecture: Architecture,
        preprocess: &Preprocess,
        arrays: &NamedArrays,
        provenance: Provenance,
        device: &Device,
    ) -> Result<Self> {
        let definition = Definition {
            format: FORMAT,
            architecture: architecture.to_string(),
            preprocess: preprocess.clone(),
        };
        let bytes = to_bytes(DEFINITION_KEY, &serde_json::to_string(&definition)?, arrays)?;
        let version = blake3::hash(&bytes).to_hex().to_string();
        let snapshot = snapshot(version, definition, arrays, provenance, device)?;
        Ok(Self { snapshot, bytes })
    }

    /// Writes the snapshot into `dir` as its newest, and removes all but the newest `keep` and those that are `spared`
    /// by name. One that lies there already takes the provenance with which it was published first.
    ///
    /// # Errors
    /// Whatever the file system reports.
    pub fn write(&mut self, dir: &Path, keep: usize, spared: &[&str]) -> Result<()> {
        let path = path_of(dir, &self.snapshot.version);
        self.snapshot.provenance = folder::put(&path, &self.bytes, &self.snapshot.provenance)?;
        folder::prune(dir, keep, spared)
    }
}

/// Reads a snapshot file, or the newest one of a folder.
///
/// # Errors
/// A path that cannot be read, or a file whose content is not what its name says.
pub fn read(path: &Path, device: &Device) -> Result<Snapshot> {
    if path.is_dir() {
        return read(&folder::newest(path)?, device);
    }
    let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let version = blake3::hash(&bytes).to_hex().to_string();
    let named = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    ensure!(named == version, "{} is damaged: its content has hash {version}", path.display());
    let (definition, arrays) = from_bytes(DEFINITION_KEY, &bytes)
        .with_context(|| format!("{} is no snapshot", path.display()))?;
    let definition: Definition = serde_json::from_str(&definition)
        .with_context(|| format!("{} is no snapshot of this program", path.display()))?;
    let provenance = folder::provenance_of(path)?;
    snapshot(version, definition, &arrays, provenance, device)
        .with_context(|| format!("loading {}", path.display()))
}

fn snapshot(
    version: String,
    definition: Definition,
    arrays: &NamedArrays,
    provenance: Provenance,
    device: &Device,
) -> Result<Snapshot> {
    ensure!(definition.format == FORMAT, "snapshot format {} is unknown", definition.format);
    let architecture: Architecture = definition.architecture.parse()?;
    let plan = architecture.plan();
    let side_px = definition.preprocess.side_px;
    let encoder: Box<dyn Encode> = if device.is_cpu() {
        let mut params = HostParams::zeros(&plan);
        params.load_arrays("", arrays)?;
        let served = Served::new(&plan, &params, side_px)?;
        Box::new(OnHost { feature_dim: plan.feature_dim, served })
    } else {
        let mut params = Params::init(&plan.weights, &plan.moments, [0, 0], device)?;
        params.load_arrays("", arrays)?;
        Box::new(OnDevice { plan, params, side_px })
    };
    Ok(Snapshot {
        version,
        architecture: definition.architecture,
        preprocess: definition.preprocess,
        provenance,
        encoder,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::list;

    fn encoded(seed: u64, step: u64) -> Encoded {
        let plan = Architecture::SlimResnet.plan();
        let arrays = HostParams::init(&plan, [seed, 0]).unwrap().to_arrays("");
        let provenance = Provenance { step, ..Provenance::default() };
        let preprocess = Preprocess::imagenet(16);
        Encoded::new(Architecture::SlimResnet, &preprocess, &arrays, provenance, &Device::Cpu)
            .unwrap()
    }

    #[test]
    fn equal_numbers_have_equal_names_and_others_differ() {
        assert_eq!(encoded(1, 3).snapshot.version, encoded(1, 4).snapshot.version);
        assert_ne!(encoded(1, 3).snapshot.version, encoded(2, 3).snapshot.version);
    }

    #[test]
    fn a_read_snapshot_embeds_as_the_written_one_did() {
        let dir = tempfile::tempdir().unwrap();
        let mut old = encoded(1, 3);
        let mut new = encoded(2, 5);
        old.write(dir.path(), 10, &[]).unwrap();
        new.write(dir.path(), 10, &[]).unwrap();
        let read = read(dir.path(), &Device::Cpu).unwrap();
        assert_eq!(read.version, new.snapshot.version, "the newest of the folder");
        assert_eq!(read.provenance, new.snapshot.provenance);
        let image: Vec<f32> = (0..16 * 16 * 3).map(|i| (i % 17) as f32 / 17.0).collect();
        let embed = |snapshot: &Snapshot| snapshot.encoder.embed(image.clone(), 1).unwrap();
        assert_eq!(embed(&read), embed(&new.snapshot));
    }

    #[test]
    fn the_later_version_of_a_step_is_the_newer_however_the_clock_jumps() {
        let dir = tempfile::tempdir().unwrap();
        let clock_ms = [5000, 100, 5000, 0];
        for (seed, created_ms) in clock_ms.into_iter().enumerate() {
            let mut version = encoded(seed as u64, 7);
            version.snapshot.provenance.created_ms = created_ms;
            version.write(dir.path(), 10, &[]).unwrap();
            let newest = read(dir.path(), &Device::Cpu).unwrap();
            assert_eq!(newest.version, version.snapshot.version, "at {created_ms}");
        }
    }

    #[test]
    fn only_the_newest_are_kept_and_a_damaged_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for step in 0..4 {
            encoded(step, step).write(dir.path(), 2, &[]).unwrap();
        }
        let kept = list(dir.path()).unwrap();
        assert_eq!(kept.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [3, 2]);
        let other = tempfile::tempdir().unwrap();
        let stable = encoded(0, 0).snapshot.version;
        let write = |step| encoded(step, step).write(other.path(), 2, &[&stable[..]]).unwrap();
        (0..4).for_each(write);
        let steps: Vec<u64> = list(other.path()).unwrap().iter().map(|(step, _)| *step).collect();
        assert_eq!(steps, [3, 2, 0], "the stable one stays");
        let mut bytes = fs::read(&kept[0].1).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs::write(&kept[0].1, bytes).unwrap();
        let error = read(&kept[0].1, &Device::Cpu).err().unwrap().to_string();
        assert!(error.contains("is damaged"), "{error}");
    }
}
