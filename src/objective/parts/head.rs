//! The projection head: features to the space in which views are compared.
//!
//! Two layers with a batch norm between, `W2 relu(bn(W1 h)) + b2` (SimCLR, arXiv 2002.05709,
//! section 4.2; the batch norm is that of its published code).

use crate::encoder::{Init, Params, WeightSpec};
use crate::ops::candle::{BATCH_NORM_EPSILON, Normalisation, batch_norm};
use crate::setting::{Invalid, within};
use candle_core::{Device, Result, Tensor};
use serde::{Deserialize, Serialize};

/// The seed stream of heads; the encoder's is 0.
const HEAD_STREAM: u64 = 1;

/// `[objective.head]`: the projection head's sizes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Width of its hidden layer.
    pub hidden: usize,
    /// Length of a projection, `P`.
    pub output: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { hidden: 512, output: 128 }
    }
}

impl Config {
    /// Checks every value.
    ///
    /// # Errors
    /// The first value that is not allowed, by key.
    pub fn validate(&self) -> std::result::Result<(), Invalid> {
        let allowed = "from 1 to 16384";
        within("objective.head.hidden", self.hidden, 1..=16_384, allowed)?;
        within("objective.head.output", self.output, 1..=16_384, allowed)
    }
}

/// A two-layer perceptron with batch norm.
#[derive(Clone, Debug)]
pub struct ProjectionHead {
    params: Params,
}

impl ProjectionHead {
    /// A fresh head for features of length `feature_dim`.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn new(config: &Config, feature_dim: usize, seed: u64, device: &Device) -> Result<Self> {
        let Config { hidden, output } = *config;
        let weight = |name: &str, shape: [usize; 2]| WeightSpec {
            name: name.to_owned(),
            shape: shape.to_vec(),
            init: Init::HeNormal { fan: shape[0] },
            decay: true,
            adapt: true,
        };
        let vector = |name: &str, len, init| WeightSpec {
            name: name.to_owned(),
            shape: vec![len],
            init,
            decay: false,
            adapt: false,
        };
        let specs = [
            weight("hidden.weight", [feature_dim, hidden]),
            vector("hidden.norm.gamma", hidden, Init::Ones),
            vector("hidden.norm.beta", hidden, Init::Zeros),
            weight("output.weight", [hidden, output]),
            vector("output.bias", output, Init::Zeros),
        ];
        Ok(Self { params: Params::init(&specs, &[], [seed, HEAD_STREAM], device)? })
    }

    /// Its weights.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// The same, to be restored.
    pub fn params_mut(&mut self) -> &mut Params {
        &mut self.params
    }

    /// `[M, D]` features to `[M, P]` projections, by the batch's own statistics.
    ///
    /// # Errors
    /// Features of another length than the head was made for.
    pub fn project(&self, features: &Tensor) -> Result<Tensor> {
        let [hidden_weight, gamma, beta, output_weight, output_bias] = &self.params.weights[..]
        else {
            candle_core::bail!("a projection head has 5 weights, not {}", self.params.weights.len())
        };
        let hidden = features.matmul(hidden_weight)?; // [M, hidden]
        let norm = Normalisation { relu: true, groups: 1, epsilon: BATCH_NORM_EPSILON };
        let (hidden, _) = batch_norm(&hidden, gamma, beta, None, norm)?;
        hidden.matmul(output_weight)?.broadcast_add(output_bias) // [M, P]
    }
}
