//! The numbers of a plan or a head: trainable weights and running moments.

use super::plan::{Init, MomentsSpec, WeightSpec};
use crate::seed::{self, Purpose};
use candle_core::{Device, Result, Tensor, Var, bail};
use rand::RngExt;
use std::collections::BTreeMap;
use std::f32::consts::TAU;

/// A named dense array on the host: how weights travel to files and back.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its elements, row-major.
    pub values: Vec<f32>,
}

impl Array {
    /// Copies a tensor to the host.
    pub fn from_tensor(tensor: &Tensor) -> Result<Self> {
        let values = tensor.flatten_all()?.to_vec1::<f32>()?;
        Ok(Self { shape: tensor.dims().to_vec(), values })
    }

    /// Copies the array to `device`.
    pub fn to_tensor(&self, device: &Device) -> Result<Tensor> {
        Tensor::from_slice(&self.values, self.shape.clone(), device)
    }
}

/// Arrays by name, in the order of their names.
pub type NamedArrays = BTreeMap<String, Array>;

/// Running mean and variance of a batch norm, each `[C]`.
#[derive(Clone, Debug)]
pub struct RunningMoments {
    /// Running mean.
    pub mean: Tensor,
    /// Running variance, unbiased.
    pub variance: Tensor,
}

/// Weights and running moments, aligned with the specifications that made them.
#[derive(Clone, Debug)]
pub struct Params {
    /// What each weight is.
    pub specs: Vec<WeightSpec>,
    /// Trainable weights, in the order of `specs`.
    pub weights: Vec<Var>,
    /// What each batch norm is.
    pub moments_specs: Vec<MomentsSpec>,
    /// Running moments, in the order of `moments_specs`.
    pub moments: Vec<RunningMoments>,
}

impl Params {
    /// Fresh parameters, a function of `seed` and of `stream`, which tells encoder from heads.
    pub fn init(
        specs: &[WeightSpec],
        moments_specs: &[MomentsSpec],
        [seed, stream]: [u64; 2],
        device: &Device,
    ) -> Result<Self> {
        let weights = specs
            .iter()
            .enumerate()
            .map(|(index, spec)| {
                let values = initial_values(spec, seed, [stream, index as u64]);
                Var::from_tensor(&Tensor::from_vec(values, spec.shape.clone(), device)?)
            })
            .collect::<Result<_>>()?;
        let moments = moments_specs
            .iter()
            .map(|spec| {
                let zeros = Tensor::zeros(spec.channels, candle_core::DType::F32, device)?;
                Ok(RunningMoments { variance: zeros.ones_like()?, mean: zeros })
            })
            .collect::<Result<_>>()?;
        Ok(Self { specs: specs.to_vec(), weights, moments_specs: moments_specs.to_vec(), moments })
    }

    /// The same numbers in variables of their own.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn duplicate(&self) -> Result<Self> {
        // Detached, or each would be the very weight that it is a copy of.
        let copies = self.weights.iter().map(|weight| Var::from_tensor(&weight.detach()));
        Ok(Self { weights: copies.collect::<Result<_>>()?, ..self.clone() })
    }

    /// The device they live on.
    pub fn device(&self) -> Device {
        self.weights.first().map_or(Device::Cpu, |weight| weight.device().clone())
    }

    /// Copies every number to the host, each name behind `prefix`.
    pub fn to_arrays(&self, prefix: &str) -> Result<NamedArrays> {
        let mut arrays = NamedArrays::new();
        for (spec, weight) in self.specs.iter().zip(&self.weights) {
            arrays.insert(format!("{prefix}{}", spec.name), Array::from_tensor(weight)?);
        }
        for (spec, moments) in self.moments_specs.iter().zip(&self.moments) {
            let key = |what| format!("{prefix}{}.{what}", spec.name);
            arrays.insert(key("running_mean"), Array::from_tensor(&moments.mean)?);
            arrays.insert(key("running_variance"), Array::from_tensor(&moments.variance)?);
        }
        Ok(arrays)
    }

    /// Takes every number from `arrays`.
    ///
    /// # Errors
    /// A name that is missing or a shape that differs, by name.
    pub fn load_arrays(&mut self, prefix: &str, arrays: &NamedArrays) -> Result<()> {
        let device = self.device();
        let find = |name: String, shape: &[usize]| -> Result<Tensor> {
            match arrays.get(&name) {
                None => bail!("array {name} is missing"),
                Some(array) if array.shape != shape => {
                    bail!("array {name} has shape {:?}, expected {shape:?}", array.shape)
                }
                Some(array) => array.to_tensor(&device),
            }
        };
        for (spec, weight) in self.specs.iter().zip(&self.weights) {
            weight.set(&find(format!("{prefix}{}", spec.name), &spec.shape)?)?;
        }
        for (spec, moments) in self.moments_specs.iter().zip(&mut self.moments) {
            let find = |what| find(format!("{prefix}{}.{what}", spec.name), &[spec.channels]);
            *moments =
                RunningMoments { mean: find("running_mean")?, variance: find("running_variance")? };
        }
        Ok(())
    }
}

fn initial_values(spec: &WeightSpec, seed: u64, counters: [u64; 2]) -> Vec<f32> {
    let len = spec.shape.iter().product();
    match spec.init {
        Init::Zeros => vec![0.0; len],
        Init::Ones => vec![1.0; len],
        Init::Normal { deviation } => normal(len, deviation * deviation, seed, counters),
        Init::HeNormal { fan } => normal(len, 2.0 / fan as f32, seed, counters),
        Init::GlorotNormal { inputs, outputs } => {
            normal(len, 2.0 / (inputs + outputs) as f32, seed, counters)
        }
    }
}

fn normal(len: usize, variance: f32, seed: u64, counters: [u64; 2]) -> Vec<f32> {
    let mut rng = seed::rng(seed, Purpose::Init, &counters);
    let std = variance.sqrt();
    (0..len).map(|_| std * standard_normal(&mut rng)).collect()
}

/// Box and Muller's transform.
fn standard_normal(rng: &mut seed::Rng) -> f32 {
    let radius = (-2.0 * (1.0 - rng.random::<f32>()).ln()).sqrt();
    radius * (TAU * rng.random::<f32>()).cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn specs() -> Vec<WeightSpec> {
        let shape = vec![3, 3, 16, 32];
        let init = Init::HeNormal { fan: 288 };
        vec![WeightSpec { name: "stem.weight".into(), shape, init, decay: true, adapt: true }]
    }

    fn moments() -> Vec<MomentsSpec> {
        vec![MomentsSpec { name: "stem".into(), channels: 32 }]
    }

    #[test]
    fn he_normal_has_its_variance() {
        let params = Params::init(&specs(), &moments(), [1, 0], &Device::Cpu).unwrap();
        let values = params.weights[0].flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let n = values.len() as f32;
        let mean = values.iter().sum::<f32>() / n;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / n;
        assert!(mean.abs() < 4.0 * (2.0f32 / 288.0 / n).sqrt(), "mean {mean}");
        assert!((variance * 144.0 - 1.0).abs() < 0.1, "variance {variance}");
    }

    #[test]
    fn arrays_round_trip_and_refuse_what_is_missing_or_misshapen() {
        let source = Params::init(&specs(), &moments(), [1, 0], &Device::Cpu).unwrap();
        let mut target = Params::init(&specs(), &moments(), [2, 0], &Device::Cpu).unwrap();
        let mut arrays = source.to_arrays("encoder.").unwrap();
        assert_ne!(target.to_arrays("encoder.").unwrap(), arrays);
        target.load_arrays("encoder.", &arrays).unwrap();
        assert_eq!(target.to_arrays("encoder.").unwrap(), arrays);

        arrays.get_mut("encoder.stem.weight").unwrap().shape = vec![4608];
        let error = target.load_arrays("encoder.", &arrays).unwrap_err().to_string();
        assert!(error.contains("encoder.stem.weight"), "{error}");
        arrays.remove("encoder.stem.running_mean");
        arrays.get_mut("encoder.stem.weight").unwrap().shape = vec![3, 3, 16, 32];
        let error = target.load_arrays("encoder.", &arrays).unwrap_err().to_string();
        assert!(error.contains("encoder.stem.running_mean is missing"), "{error}");
    }
}
