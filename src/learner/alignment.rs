//! Alignment with the past (CaSSLe: Fini et al., "Self-Supervised Models are Continual Learners", arXiv
//! 2112.04215, section 4, equation 3): a predictor g tells from the features z of a view what the
//! encoder of some time ago, frozen, made of it. What could be told then can still be told.
//!
//! ```text
//! loss = objective + weight * mean over views of [2 - 2 cos(g(z), z_past)]
//! past <- encoder    every refresh_steps steps
//! ```
//!
//! A fresh encoder is no past: until the first refresh the second term is left out, unless the encoder
//! began with weights that others trained.
//!
//! The map g serves training alone: it is in checkpoints and not in snapshots, it is fitted to the last
//! past and no older one, and it normalises by its batch. Clients get z and never g(z), so embeddings of
//! two versions are not to be compared as they are: an index of an older version is asked by that
//! version's name, while it answers, or is made anew. Who must keep one can fit a map of their own from
//! images that both versions have embedded; alignment makes for one that fits better, and promises nothing.
//!
//! Differs from the paper: a stream has no tasks, so the past is taken every so many steps; the distance
//! is BYOL's for all objectives, where the paper takes each objective's own; it is between features,
//! which are what is served, not projections; views of the largest side alone are compared.

use crate::encoder::Params;
use crate::objective::parts::head::{self, Ending, Head};
use crate::objective::parts::rows::normalise;
use crate::setting::{Invalid, within};
use candle_core::{Device, Result, Tensor};
use serde::{Deserialize, Serialize};

/// `[learner.alignment]`: how strongly, and with how old a past.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Weight of the distance to the past; 0 keeps none.
    pub weight: f64,
    /// Steps after which the encoder becomes the past.
    pub refresh_steps: u64,
    /// Width of the predictor's hidden layer.
    pub hidden: usize,
}

impl Default for Config {
    fn default() -> Self {
        // The width is that of the other heads; the interval is a guess.
        Self { weight: 0.0, refresh_steps: 2000, hidden: 512 }
    }
}

impl Config {
    /// Checks every value.
    ///
    /// # Errors
    /// The first value that is not allowed, by key.
    pub fn validate(&self) -> std::result::Result<(), Invalid> {
        within("learner.alignment.weight", self.weight, 0.0..=1000.0, "from 0 to 1000")?;
        let key = "learner.alignment.refresh_steps";
        within(key, self.refresh_steps, 1.., "at least 1")?;
        within("learner.alignment.hidden", self.hidden, 1..=16_384, "from 1 to 16384")
    }
}

/// The predictor, and when the past is the encoder.
pub(super) struct Alignment {
    config: Config,
    has_past_at_once: bool,
    head: Head,
    predictor: Params,
}

impl Alignment {
    /// A fresh predictor for features of length `feature_dim`; none at weight 0.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub(super) fn new(
        config: &Config,
        feature_dim: usize,
        (seed, device): (u64, &Device),
        has_past_at_once: bool,
    ) -> Result<Option<Self>> {
        if config.weight == 0.0 {
            return Ok(None);
        }
        let layers =
            head::Config { hidden: config.hidden, output: feature_dim, ..head::Config::default() };
        let mut specs = vec![];
        let head = Head::add(&mut specs, "past", &layers, feature_dim, Ending::Bias);
        let predictor = head::init(&specs, seed, device)?;
        Ok(Some(Self { config: config.clone(), has_past_at_once, head, predictor }))
    }

    /// Whether there is a past in the step after `steps`.
    pub(super) fn has_past(&self, steps: u64) -> bool {
        self.has_past_at_once || steps >= self.config.refresh_steps
    }

    /// Whether the encoder is the past from now on, after `steps`.
    pub(super) fn is_refreshed(&self, steps: u64) -> bool {
        steps.is_multiple_of(self.config.refresh_steps)
    }

    /// What is added to the loss for `features [M, D]` and those of the past, if there is one; no
    /// gradient flows into the past.
    ///
    /// # Errors
    /// Features of another length than the predictor was made for.
    pub(super) fn loss(&self, features: &Tensor, past: Option<&Tensor>) -> Result<Tensor> {
        let Some(past) = past else {
            // The predictor has a gradient in every step, of zeros here. A product with a number that
            // is 0 would have none.
            let sum = self.head.apply(&self.predictor, &features.detach())?.sum_all()?;
            return sum.mul(&sum.detach().zeros_like()?);
        };
        let predicted = self.head.apply(&self.predictor, features)?; // [M, D]
        distance(&predicted, past)? * self.config.weight
    }

    /// The predictor's weights.
    pub(super) fn predictor(&self) -> &Params {
        &self.predictor
    }

    /// The same, to be restored.
    pub(super) fn predictor_mut(&mut self) -> &mut Params {
        &mut self.predictor
    }
}

/// The mean over rows of `2 - 2 cos`, `predicted` and `past` both `[M, D]`.
fn distance(predicted: &Tensor, past: &Tensor) -> Result<Tensor> {
    let (rows, _) = predicted.dims2()?;
    let apart = (normalise(predicted)? - normalise(&past.detach())?)?;
    apart.sqr()?.sum_all()? / rows as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Var;

    #[test]
    fn the_distance_has_its_closed_forms_and_no_gradient_in_the_past() {
        let rows = |values: [[f32; 2]; 2]| {
            Var::from_tensor(&Tensor::new(&values, &Device::Cpu).unwrap()).unwrap()
        };
        let axes = rows([[2.0, 0.0], [0.0, 0.5]]);
        let value =
            |past: [[f32; 2]; 2]| distance(&axes, &rows(past)).unwrap().to_scalar::<f32>().unwrap();
        assert!(value([[3.0, 0.0], [0.0, 1.0]]).abs() < 1e-6);
        assert!((value([[0.0, 1.0], [7.0, 0.0]]) - 2.0).abs() < 1e-6);
        assert!((value([[-1.0, 0.0], [0.0, 9.0]]) - 2.0).abs() < 1e-6);
        let past = rows([[1.0, 1.0], [1.0, 0.0]]);
        let gradients = distance(&axes, &past).unwrap().backward().unwrap();
        assert!(gradients.get(&axes).is_some() && gradients.get(&past).is_none());
    }

    #[test]
    fn without_a_past_the_predictor_has_a_gradient_of_zeros_and_the_features_none() {
        let config = Config { weight: 2.0, ..Config::default() };
        let alignment = Alignment::new(&config, 6, (1, &Device::Cpu), false).unwrap().unwrap();
        assert!(!alignment.has_past(0) && !alignment.has_past(1999) && alignment.has_past(2000));
        let features = Var::randn(0.0_f32, 1.0, (4, 6), &Device::Cpu).unwrap();
        let loss = alignment.loss(&features, None).unwrap();
        assert_eq!(loss.to_scalar::<f32>().unwrap(), 0.0);
        let gradients = loss.backward().unwrap();
        assert!(gradients.get(&features).is_none());
        for weight in &alignment.predictor().weights {
            let gradient = gradients.get(weight).unwrap().abs().unwrap().sum_all().unwrap();
            assert_eq!(gradient.to_scalar::<f32>().unwrap(), 0.0);
        }
        let past = Tensor::ones((4, 6), candle_core::DType::F32, &Device::Cpu).unwrap();
        let gradients = alignment.loss(&features, Some(&past)).unwrap().backward().unwrap();
        assert!(gradients.get(&features).is_some());
        let none = Alignment::new(&Config::default(), 6, (1, &Device::Cpu), true).unwrap();
        assert!(none.is_none());
    }
}
