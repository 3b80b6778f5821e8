//! The linear classifier of a supervised run: on tensors while it learns, on the host at its end.

use super::Embeddings;
use super::linear::dot;
use crate::encoder::{Array, Init, Params, WeightSpec};
use anyhow::{Context, Result};
use candle_core::{Device, Tensor};

/// A classifier to which all of `n_classes` are alike.
pub(super) fn head(
    n_classes: usize,
    feature_dim: usize,
    device: &Device,
) -> candle_core::Result<Params> {
    let spec = |name: &str, shape: &[usize], is_kernel| WeightSpec {
        name: name.to_owned(),
        shape: shape.to_vec(),
        init: Init::Zeros,
        decay: is_kernel,
        adapt: is_kernel,
    };
    let specs =
        [spec("weight", &[n_classes, feature_dim], true), spec("bias", &[n_classes], false)];
    // Nothing of it is drawn.
    Params::init(&specs, &[], [0, 0], device)
}

/// `features W' + b`, `[N, K]`.
pub(super) fn logits(head: &Params, features: &Tensor) -> Result<Tensor> {
    let [weight, bias] = &head.weights[..] else {
        anyhow::bail!("a classifier has 2 weights, not {}", head.weights.len())
    };
    Ok(features.matmul(&weight.t()?)?.broadcast_add(bias)?)
}

/// The trained head on the host.
pub(super) struct Classifier {
    /// `[K, D]`, with a row a class.
    weight: Array,
    /// `[K]`.
    bias: Array,
}

impl Classifier {
    pub(super) fn new(head: &Params) -> Result<Self> {
        let mut arrays = head.to_arrays("")?;
        let mut take = |name| arrays.remove(name).with_context(|| format!("no {name} in the head"));
        Ok(Self { weight: take("weight")?, bias: take("bias")? })
    }

    /// The class of the largest logit of each row; of equal ones the lowest.
    pub(super) fn classify(&self, features: &Embeddings) -> Vec<usize> {
        let class = |row: &[f32]| {
            let rows = self.weight.values.chunks_exact(features.dim()).zip(&self.bias.values);
            let (mut best, mut highest) = (0, f32::MIN);
            for (class, (weights, bias)) in rows.enumerate() {
                let logit = dot(weights, row) + bias;
                if logit > highest {
                    (best, highest) = (class, logit);
                }
            }
            best
        };
        features.rows().map(class).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::{self, Purpose};
    use rand::RngExt;

    #[test]
    fn the_host_classifies_as_the_logits_say() {
        let mut rng = seed::rng(1, Purpose::Evaluate, &[]);
        let mut draw =
            |n: usize| -> Vec<f32> { (0..n).map(|_| rng.random_range(-1.0..1.0)).collect() };
        let (n, k, d) = (30, 4, 7);
        let mut head = head(k, d, &Device::Cpu).unwrap();
        let mut arrays = head.to_arrays("").unwrap();
        for array in arrays.values_mut() {
            array.values = draw(array.values.len());
        }
        head.load_arrays("", &arrays).unwrap();
        let features = draw(n * d);
        let tensor = Tensor::from_slice(&features, (n, d), &Device::Cpu).unwrap();
        let expected = logits(&head, &tensor).unwrap().argmax(1).unwrap();
        let expected: Vec<u32> = expected.to_vec1().unwrap();
        let features = Embeddings::new(features, d).unwrap();
        let found = Classifier::new(&head).unwrap().classify(&features);
        assert!(found.iter().map(|class| *class as u32).eq(expected));
    }
}
