//! What an encoder begins as where it is not fresh: the weights of a file.

use crate::encoder::{Array, NamedArrays, Plan, pretrained};
use anyhow::{Context, Result};
use candle_core::{DType, Device, safetensors};
use std::fs;
use std::path::Path;

/// The weights of `plan` from a safetensors file: torchvision's, timm's or DINO's, or ours. Numbers
/// of other kinds, half-precision ones among them, are read as f32.
///
/// # Errors
/// A file that cannot be read, or the first tensor that does not fit, by name.
pub fn read(path: &Path, plan: &Plan) -> Result<NamedArrays> {
    let shown = path.display();
    let bytes = fs::read(path).with_context(|| format!("reading encoder.init, {shown}"))?;
    let tensors = safetensors::load_buffer(&bytes, &Device::Cpu)
        .with_context(|| format!("encoder.init, {shown}, is no safetensors file"))?;
    let mut arrays = NamedArrays::new();
    for (name, tensor) in tensors {
        let converted = tensor.to_dtype(DType::F32).and_then(|t| Array::from_tensor(&t));
        let array = converted.with_context(|| format!("tensor {name} of {shown}"))?;
        arrays.insert(name, array);
    }
    pretrained::adopt(plan, arrays).with_context(|| format!("encoder.init, {shown}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoder::{Architecture, HostParams};
    use std::collections::HashMap;

    #[test]
    fn files_of_any_precision_are_read_and_others_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weights.safetensors");
        let plan = Architecture::SlimResnet.plan();
        let expected = HostParams::init(&plan, [3, 0]).unwrap().to_arrays("");
        let write = |dtype: DType, left_out: &str| {
            let named =
                expected.iter().filter(|(name, _)| *name != left_out).map(|(name, array)| {
                    let tensor = array.to_tensor(&Device::Cpu).unwrap().to_dtype(dtype).unwrap();
                    (name.clone(), tensor)
                });
            safetensors::save(&named.collect::<HashMap<_, _>>(), &path).unwrap();
        };
        for (dtype, rounding) in [(DType::F32, 0.0), (DType::F16, 1e-3), (DType::BF16, 1e-2)] {
            write(dtype, "");
            let found = read(&path, &plan).unwrap();
            assert!(found.keys().eq(expected.keys()));
            for (name, array) in &found {
                for (found, expected) in array.values.iter().zip(&expected[name].values) {
                    assert!((found - expected).abs() <= rounding * expected.abs() + 1e-7, "{name}");
                }
            }
        }
        write(DType::F32, "stem.norm.gamma");
        let error = format!("{:#}", read(&path, &plan).unwrap_err());
        assert!(error.contains("stem.norm.gamma is missing"), "{error}");
        assert!(error.contains("weights.safetensors"), "{error}");
        fs::write(&path, "nothing").unwrap();
        let error = format!("{:#}", read(&path, &plan).unwrap_err());
        assert!(error.contains("no safetensors file"), "{error}");
        assert!(read(&dir.path().join("none"), &plan).is_err());
    }
}
