//! BYOL (Grill et al., "Bootstrap Your Own Latent", arXiv 2006.07733, section 3.1, equations 1, 2):
//! one network predicts what its own moving average makes of another view.
//!
//! With q(z(a)) the prediction from view a, z'(b) the projection of view b by the target, and a bar
//! for unit length:
//!
//! ```text
//! L(a, b) = | q(z(a))^ - z'(b)^ |^2 = 2 - 2 cos(q(z(a)), z'(b))
//! loss    = mean over images of L(a, b) + L(b, a)
//! target <- m target + (1 - m) network,    m = 1 - (1 - base) (cos(pi k / K) + 1) / 2
//! ```
//!
//! With `small_views` (multi-crop) the loss is twice the mean of L(v, t) over every view v and
//! large view t other than v, which without them is the loss above; the target sees the large views
//! alone.
//!
//! Differs from the paper: where no end is declared, m stays at its base; the base is .99 and not
//! .996, as a stream's run is shorter than their 1000 epochs, and lower in its first thousand steps
//! (`parts/target.rs`); heads are smaller (512 and 128 rather than 4096 and 256); both views of a
//! batch are normalised together.

use super::parts::head::{self, Ending};
use super::parts::rows::{normalise, per_view};
use super::parts::siamese::{self, Siamese};
use super::parts::small_views::{self, mean_over_pairs};
use super::parts::target::{Target, rising_momentum, validate_momentum};
use super::{Batch, Elapsed, Objective, SeenBy, Views};
use crate::encoder::{NamedArrays, Params};
use crate::setting::{Invalid, within};
use candle_core::{Device, Result, Tensor};
use serde::{Deserialize, Serialize};

/// `[objective]` with `kind = "byol"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Share of the target that is kept in a step; it rises to 1 at a declared end.
    pub momentum: f64,
    /// Parts of the target's batch that are normalised apart.
    pub norm_groups: usize,
    /// Further views that are small.
    pub small_views: small_views::Config,
    /// The projection head.
    pub head: head::Config,
    /// The predictor, from projections to as long rows.
    pub predictor: head::Config,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            momentum: 0.99,
            norm_groups: 1,
            small_views: small_views::Config::default(),
            head: head::Config::default(),
            predictor: head::Config::default(),
        }
    }
}

impl Config {
    /// Checks every value.
    ///
    /// # Errors
    /// The first value that is not allowed, by key.
    pub fn validate(&self) -> std::result::Result<(), Invalid> {
        validate_momentum(self.momentum)?;
        within("objective.norm_groups", self.norm_groups, 1..=64, "from 1 to 64")?;
        self.small_views.validate()?;
        siamese::validate(&self.head, &self.predictor)
    }
}

/// The objective: heads with their average.
pub(super) struct Byol {
    config: Config,
    pair: Siamese,
}

impl Byol {
    /// A fresh one for features of length `feature_dim`.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub(super) fn new(
        config: &Config,
        feature_dim: usize,
        seed: u64,
        device: &Device,
    ) -> Result<Self> {
        let Config { head, predictor, .. } = config;
        let predictor = Some(predictor);
        let heads = siamese::Config { head, predictor, ending: Ending::Bias };
        let pair = Siamese::new(&heads, feature_dim, seed, device)?;
        Ok(Self { config: config.clone(), pair })
    }
}

impl Objective for Byol {
    fn views(&self) -> Vec<Views> {
        self.config.small_views.beside_large(SeenBy::Both)
    }

    fn target(&self, elapsed: Elapsed) -> Option<Target> {
        let momentum = rising_momentum(self.config.momentum, elapsed);
        Some(Target { momentum, norm_groups: self.config.norm_groups })
    }

    fn loss(&self, batch: &Batch<'_>) -> Result<Tensor> {
        let predictions = self.pair.queries(&batch.all_features()?)?; // [V * N, P]
        let projections = self.pair.keys(batch.only_targets()?)?; // [2N, P]
        regression(&predictions, &projections)
    }

    fn heads(&self) -> &Params {
        self.pair.heads()
    }

    fn heads_mut(&mut self) -> &mut Params {
        self.pair.heads_mut()
    }

    fn after_step(&mut self, _batch: &Batch<'_>, elapsed: Elapsed) -> Result<()> {
        self.pair.follow(rising_momentum(self.config.momentum, elapsed))
    }

    fn state(&self) -> Result<NamedArrays> {
        self.pair.to_arrays()
    }

    fn load_state(&mut self, arrays: &NamedArrays) -> Result<()> {
        self.pair.load_arrays(arrays)
    }
}

/// Twice the mean over images and pairs of views of the squared distance: `predictions` are
/// `[V * N, P]` and `targets` `[2N, P]`, of the first two of the V views; no gradient flows into
/// them.
///
/// # Errors
/// Shapes that don't fit.
fn regression(predictions: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let targets = per_view(&normalise(&targets.detach())?, 2)?; // 2 of [N, P]
    let n_images = targets[0].dim(0)?;
    let views = per_view(&normalise(predictions)?, predictions.dim(0)? / n_images)?; // V of [N, P]
    let squared = mean_over_pairs(&views, &targets, |view, target| {
        (view - target)?.sqr()?.sum_all()? / n_images as f64
    })?;
    squared * 2.0
}

#[cfg(test)]
mod tests {
    use super::super::golden;
    use super::*;

    #[test]
    fn golden_values_and_slopes() {
        golden::check("byol", |x, _| regression(&x[0], &x[1]));
    }

    fn rows(values: [[f32; 2]; 4]) -> Tensor {
        Tensor::new(&values, &Device::Cpu).unwrap()
    }

    #[test]
    fn closed_forms() {
        let value = |a: &Tensor, b: &Tensor| regression(a, b).unwrap().to_scalar::<f32>().unwrap();
        // Each view's prediction is the other view's target, whatever their lengths: nothing left.
        let predictions = rows([[1.0, 0.0], [0.0, 2.0], [0.0, 3.0], [1.0, 1.0]]);
        let targets = rows([[0.0, 5.0], [2.0, 2.0], [4.0, 0.0], [0.0, 1.0]]);
        assert!(value(&predictions, &targets).abs() < 1e-6);
        // Opposite: 4 a view, 8 an image. Orthogonal: 2 and 4.
        assert!((value(&predictions, &targets.neg().unwrap()) - 8.0).abs() < 1e-5);
        let axes = rows([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]);
        assert!((value(&axes, &axes) - 4.0).abs() < 1e-5);
    }

    #[test]
    fn the_momentum_of_the_step_is_byols() {
        let byol = Byol::new(&Config::default(), 4, 0, &Device::Cpu).unwrap();
        let target = |share| byol.target(Elapsed { steps: 1000, share });
        assert_eq!(target(0.0), Some(Target { momentum: 0.99, norm_groups: 1 }));
        assert!((target(0.5).unwrap().momentum - 0.995).abs() < 1e-12);
    }
}
