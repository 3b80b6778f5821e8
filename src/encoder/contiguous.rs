//! The numbers of a plan in one piece of host memory: what the native kernels and their optimisers
//! walk over.

use super::params::{Array, NamedArrays, Params};
use super::plan::{MomentsSpec, Plan, WeightSpec};
use candle_core::{Device, Result, bail};
use std::ops::Range;

/// Running mean and unbiased variance of a batch norm, each `[C]`.
#[derive(Clone, Debug, PartialEq)]
pub struct HostMoments {
    /// Running mean.
    pub mean: Vec<f32>,
    /// Running variance, unbiased.
    pub variance: Vec<f32>,
}

/// [`Params`] on the host, weights one after another in the plan's order.
#[derive(Clone, Debug, PartialEq)]
pub struct HostParams {
    /// What each weight is.
    pub specs: Vec<WeightSpec>,
    /// Where each weight is in `values`.
    pub ranges: Vec<Range<usize>>,
    /// Every weight.
    pub values: Vec<f32>,
    /// What each batch norm is.
    pub moments_specs: Vec<MomentsSpec>,
    /// Running moments.
    pub moments: Vec<HostMoments>,
}

impl HostParams {
    /// Room for the numbers of `plan`: zeros, and moments of mean 0 and variance 1.
    pub fn zeros(plan: &Plan) -> Self {
        let mut end = 0;
        let ranges: Vec<_> = plan
            .weights
            .iter()
            .map(|spec| {
                let start = end;
                end += spec.shape.iter().product::<usize>();
                start..end
            })
            .collect();
        let moments = plan.moments.iter().map(|spec| HostMoments {
            mean: vec![0.0; spec.channels],
            variance: vec![1.0; spec.channels],
        });
        Self {
            specs: plan.weights.clone(),
            ranges,
            values: vec![0.0; end],
            moments_specs: plan.moments.clone(),
            moments: moments.collect(),
        }
    }

    /// The same fresh numbers as [`Params::init`] makes.
    ///
    /// # Errors
    /// Whatever candle reports.
    pub fn init(plan: &Plan, seed: [u64; 2]) -> Result<Self> {
        let params = Params::init(&plan.weights, &plan.moments, seed, &Device::Cpu)?;
        let mut this = Self::zeros(plan);
        this.load_arrays("", &params.to_arrays("")?)?;
        Ok(this)
    }

    /// Weight `index`, in its own shape's order.
    pub fn weight(&self, index: usize) -> &[f32] {
        &self.values[self.ranges[index].clone()]
    }

    /// Copies every number, each name behind `prefix`.
    pub fn to_arrays(&self, prefix: &str) -> NamedArrays {
        let mut arrays = named(prefix, "", &self.specs, &self.ranges, &self.values);
        for (spec, moments) in self.moments_specs.iter().zip(&self.moments) {
            for (what, values) in
                [("running_mean", &moments.mean), ("running_variance", &moments.variance)]
            {
                let array = Array { shape: vec![spec.channels], values: values.clone() };
                arrays.insert(format!("{prefix}{}.{what}", spec.name), array);
            }
        }
        arrays
    }

    /// Takes every number from `arrays`.
    ///
    /// # Errors
    /// A name that is missing or a shape that differs, by name.
    pub fn load_arrays(&mut self, prefix: &str, arrays: &NamedArrays) -> Result<()> {
        load_named(prefix, &self.specs, &self.ranges, arrays, &mut self.values)?;
        for (spec, moments) in self.moments_specs.iter().zip(&mut self.moments) {
            for (what, values) in
                [("running_mean", &mut moments.mean), ("running_variance", &mut moments.variance)]
            {
                let name = format!("{prefix}{}.{what}", spec.name);
                values.copy_from_slice(find(&name, &[spec.channels], arrays)?);
            }
        }
        Ok(())
    }
}

/// Contiguous `values`, one a weight of `specs`, as arrays named `prefix`, the weight's own name and
/// `suffix`.
pub fn named(
    prefix: &str,
    suffix: &str,
    specs: &[WeightSpec],
    ranges: &[Range<usize>],
    values: &[f32],
) -> NamedArrays {
    let weights = specs.iter().zip(ranges);
    weights
        .map(|(spec, range)| {
            let array = Array { shape: spec.shape.clone(), values: values[range.clone()].to_vec() };
            (format!("{prefix}{}{suffix}", spec.name), array)
        })
        .collect()
}

/// The inverse of [`named`] without a suffix.
///
/// # Errors
/// A name that is missing or a shape that differs, by name.
pub fn load_named(
    prefix: &str,
    specs: &[WeightSpec],
    ranges: &[Range<usize>],
    arrays: &NamedArrays,
    values: &mut [f32],
) -> Result<()> {
    for (spec, range) in specs.iter().zip(ranges) {
        let array = find(&format!("{prefix}{}", spec.name), &spec.shape, arrays)?;
        values[range.clone()].copy_from_slice(array);
    }
    Ok(())
}

fn find<'a>(name: &str, shape: &[usize], arrays: &'a NamedArrays) -> Result<&'a [f32]> {
    match arrays.get(name) {
        None => bail!("array {name} is missing"),
        Some(array) if array.shape != shape => {
            bail!("array {name} has shape {:?}, expected {shape:?}", array.shape)
        }
        Some(array) => Ok(&array.values),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoder::Architecture;

    #[test]
    fn it_holds_the_same_numbers_as_the_tensors() {
        let plan = Architecture::SlimResnet.plan();
        let host = HostParams::init(&plan, [3, 0]).unwrap();
        let tensors = Params::init(&plan.weights, &plan.moments, [3, 0], &Device::Cpu).unwrap();
        assert_eq!(host.to_arrays("encoder."), tensors.to_arrays("encoder.").unwrap());

        let mut other = HostParams::init(&plan, [4, 0]).unwrap();
        assert_ne!(other, host);
        let mut arrays = host.to_arrays("encoder.");
        other.load_arrays("encoder.", &arrays).unwrap();
        assert_eq!(other, host);

        arrays.get_mut("encoder.stem.weight").unwrap().shape = vec![864];
        let error = other.load_arrays("encoder.", &arrays).unwrap_err().to_string();
        assert!(error.contains("encoder.stem.weight"), "{error}");
    }
}
