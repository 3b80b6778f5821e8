//! Losses: what makes an encoder learn from unlabelled views.
//!
//! An objective says which views it wants, and makes a scalar loss of their features. It owns its
//! heads. It changes nothing in `loss`; what moves (averages, queues) moves in `after_step`.
//!
//! To add an objective:
//! 1. write `src/objective/NAME.rs`: paper and equations, `Config`, the [`Objective`] impl, the
//!    pure mathematics as free functions, tests;
//! 2. add `mod NAME;` and a variant to [`Config`];
//! 3. add its row to [`Config::build`];
//! 4. run `scripts/test objective`: the contract tests walk [`Config::every_kind`].

pub mod parts;
mod simclr;

use crate::encoder::Params;
use crate::setting::Invalid;
use candle_core::{Device, Result, Tensor};
use serde::{Deserialize, Serialize};

/// Views that an objective wants of each image, made alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ViewGroup {
    /// Views of each image in the group.
    pub views_per_image: usize,
}

/// What an objective gets of a batch.
pub struct Batch<'a> {
    /// Features of each group, `[views_per_image * N, D]`: all images' first views, then all
    /// images' second views, and so on.
    pub features: &'a [Tensor],
    /// Images in the batch, `N`.
    pub n_images: usize,
    /// The origin hash of each image, `N` of them.
    pub ids: &'a [u64],
}

/// A self-supervised loss with the heads it trains.
pub trait Objective: Send {
    /// The groups of views to make of each image.
    fn view_groups(&self) -> Vec<ViewGroup>;

    /// The loss, a scalar, differentiable in the features and in the heads' weights.
    ///
    /// # Errors
    /// Features of another shape than [`Batch`] says.
    fn loss(&self, batch: &Batch<'_>) -> Result<Tensor>;

    /// The heads that learn with the encoder.
    fn heads(&self) -> &Params;

    /// The same, to be restored.
    fn heads_mut(&mut self) -> &mut Params;

    /// Called once after each optimiser step.
    ///
    /// # Errors
    /// Whatever tensor operations report.
    fn after_step(&mut self) -> Result<()> {
        Ok(())
    }
}

/// `[objective]`: the loss, chosen by `kind`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Config {
    /// SimCLR's NT-Xent.
    Simclr(simclr::Config),
}

impl Default for Config {
    fn default() -> Self {
        Self::Simclr(simclr::Config::default())
    }
}

impl Config {
    /// One of every kind at its defaults, for tests that walk them.
    pub fn every_kind() -> Vec<Self> {
        vec![Self::Simclr(simclr::Config::default())]
    }

    /// Checks every value.
    ///
    /// # Errors
    /// The first value that is not allowed, by key.
    pub fn validate(&self) -> std::result::Result<(), Invalid> {
        match self {
            Self::Simclr(config) => config.validate(),
        }
    }

    /// The objective for features of length `feature_dim`.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn build(
        &self,
        feature_dim: usize,
        seed: u64,
        device: &Device,
    ) -> Result<Box<dyn Objective>> {
        Ok(match self {
            Self::Simclr(config) => {
                Box::new(simclr::Simclr::new(config, feature_dim, seed, device)?)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Var;

    /// Two clusters of features that no objective may find already solved.
    fn toy_features(n_images: usize, feature_dim: usize) -> Tensor {
        let values = (0..2 * n_images * feature_dim)
            .map(|i| ((i * 2_654_435_761) % 1000) as f32 / 500.0 - 1.0)
            .collect();
        Tensor::from_vec(values, (2 * n_images, feature_dim), &Device::Cpu).unwrap()
    }

    #[test]
    fn every_objective_is_finite_and_its_gradient_reaches_features_and_heads() {
        for config in Config::every_kind() {
            let objective = config.build(24, 1, &Device::Cpu).unwrap();
            let features = Var::from_tensor(&toy_features(8, 24)).unwrap();
            let ids: Vec<u64> = (0..8).collect();
            let batch = Batch { features: &[features.as_tensor().clone()], n_images: 8, ids: &ids };
            let loss = objective.loss(&batch).unwrap();
            assert!(loss.to_scalar::<f32>().unwrap().is_finite(), "{config:?}");
            let gradients = loss.backward().unwrap();
            let norm = |tensor: &Tensor| -> f32 {
                let gradient = gradients.get(tensor).expect("a gradient");
                gradient.sqr().unwrap().sum_all().unwrap().to_scalar().unwrap()
            };
            assert!(norm(&features) > 0.0, "{config:?}: features");
            for (spec, weight) in objective.heads().specs.iter().zip(&objective.heads().weights) {
                assert!(norm(weight) > 0.0, "{config:?}: {}", spec.name);
            }
        }
    }

    #[test]
    fn every_objective_falls_when_features_follow_its_gradient() {
        for config in Config::every_kind() {
            let objective = config.build(24, 1, &Device::Cpu).unwrap();
            let features = Var::from_tensor(&toy_features(8, 24)).unwrap();
            let ids: Vec<u64> = (0..8).collect();
            let mut losses = vec![];
            for _ in 0..30 {
                let batch =
                    Batch { features: &[features.as_tensor().clone()], n_images: 8, ids: &ids };
                let loss = objective.loss(&batch).unwrap();
                losses.push(loss.to_scalar::<f32>().unwrap());
                let gradients = loss.backward().unwrap();
                let step = (gradients.get(&features).unwrap() * 2.0).unwrap();
                features.set(&features.sub(&step).unwrap()).unwrap();
            }
            assert!(losses[29] < 0.8 * losses[0], "{config:?}: {losses:?}");
        }
    }
}
