//! MoCo v3 (Chen, Xie and He, "An Empirical Study of Training Self-Supervised Vision
//! Transformers", arXiv 2104.02057, section 3, equation 1 and algorithm 1): contrast of predictions
//! with a moving average's projections, within the batch.
//!
//! With q_i the prediction from one view of image i and k_i the target's projection of the other,
//! of unit length, and tau the temperature:
//!
//! ```text
//! ctr(q, k) = 2 tau mean over i of -log [ exp(q_i . k_i / tau) / sum_j exp(q_i . k_j / tau) ]
//! loss      = ctr(q(a), k(b)) + ctr(q(b), k(a))
//! ```
//!
//! With `small_views` (multi-crop) the loss is twice the mean of ctr(q(v), k(t)) over every view v
//! and large view t other than v, which without them is the loss above; the target sees the large
//! views alone.
//!
//! The momentum rises to 1 along BYOL's half cosine where an end is declared, as in the published
//! code, and is lower in the first thousand steps (`parts/target.rs`).
//!
//! Differs from the paper: the patch projection of a vision transformer is trained as the rest is;
//! both views of a batch are normalised together; heads are smaller (512 and 128 rather than 4096
//! and 256), and the projection has two layers.

use super::parts::head::{self, Ending};
use super::parts::negatives::{NegativeWeights, weighted};
use super::parts::rows::{cross_entropy, normalise, per_view};
use super::parts::siamese::{self, Siamese};
use super::parts::small_views::{self, mean_over_pairs};
use super::parts::target::{Target, rising_momentum, validate_momentum};
use super::{Batch, Elapsed, Objective, SeenBy, Views};
use crate::encoder::{NamedArrays, Params};
use crate::setting::{Invalid, within};
use candle_core::{Device, Result, Tensor};
use serde::{Deserialize, Serialize};

/// `[objective]` with `kind = "moco-v3"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Divides the similarities.
    pub temperature: f64,
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
            temperature: 0.2,
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
        within("objective.temperature", self.temperature, 0.01..=10.0, "from 0.01 to 10")?;
        validate_momentum(self.momentum)?;
        within("objective.norm_groups", self.norm_groups, 1..=64, "from 1 to 64")?;
        self.small_views.validate()?;
        siamese::validate(&self.head, &self.predictor)
    }
}

/// The objective: heads with their average.
pub(super) struct MocoV3 {
    config: Config,
    pair: Siamese,
}

impl MocoV3 {
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
        let heads = siamese::Config { head, predictor: Some(predictor), ending: Ending::Norm };
        let pair = Siamese::new(&heads, feature_dim, seed, device)?;
        Ok(Self { config: config.clone(), pair })
    }
}

impl Objective for MocoV3 {
    fn views(&self) -> Vec<Views> {
        self.config.small_views.beside_large(SeenBy::Both)
    }

    fn target(&self, elapsed: Elapsed) -> Option<Target> {
        let momentum = rising_momentum(self.config.momentum, elapsed);
        Some(Target { momentum, norm_groups: self.config.norm_groups })
    }

    fn loss(&self, batch: &Batch<'_>) -> Result<Tensor> {
        let keys = per_view(&self.pair.keys(batch.only_targets()?)?, 2)?; // 2 of [N, P]
        let queries = self.pair.queries(&batch.all_features()?)?; // [V * N, P]
        let queries = per_view(&queries, queries.dim(0)? / batch.n_images)?; // V of [N, P]
        let temperature = self.config.temperature;
        let contrast =
            |query: &Tensor, key: &Tensor| contrast([query, key], temperature, batch.negatives);
        mean_over_pairs(&queries, &keys, contrast)? * 2.0
    }

    fn weighs_negatives(&self) -> bool {
        true
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

/// `ctr` of `queries` and `keys`, both `[N, P]`, rows i of one image; no gradient flows into the
/// keys.
///
/// # Errors
/// Shapes that differ.
fn contrast(
    [queries, keys]: [&Tensor; 2],
    temperature: f64,
    negatives: Option<&NegativeWeights>,
) -> Result<Tensor> {
    let (n_images, _) = queries.dims2()?;
    let (queries, keys) = (normalise(queries)?, normalise(&keys.detach())?);
    let similarity = (queries.matmul(&keys.t()?)? / temperature)?; // [N, N]
    let similarity = weighted(similarity, negatives)?;
    cross_entropy(&similarity, (0..n_images as u32).collect())? * (2.0 * temperature)
}

#[cfg(test)]
mod tests {
    use super::super::golden;
    use super::super::loops::{cosine, rows, tensor};
    use super::*;

    #[test]
    fn golden_values_and_slopes() {
        golden::check("moco-v3", |x, a| contrast([&x[0], &x[1]], a["temperature"], None));
    }

    #[test]
    fn closed_forms() {
        let axes = Tensor::eye(3, candle_core::DType::F32, &Device::Cpu).unwrap();
        let value =
            |keys: &Tensor| contrast([&axes, keys], 0.5, None).unwrap().to_scalar::<f32>().unwrap();
        // Each key is its query and the others are orthogonal: 2 tau log(1 + 2 e^{-1/tau}).
        assert!((value(&axes) - (1.0 + 2.0 * (-2f32).exp()).ln()).abs() < 1e-6);
        // All keys alike: 2 tau log N.
        let alike = axes.ones_like().unwrap();
        assert!((value(&alike) - 3f32.ln()).abs() < 1e-6);
    }

    /// Keys of near-duplicates weigh less: the closed form of orthogonal axes.
    #[test]
    fn weights_of_negatives_have_their_closed_form() {
        let axes = Tensor::eye(3, candle_core::DType::F32, &Device::Cpu).unwrap();
        for weight in [0.0, 0.4] {
            // The first two images are alike.
            let negatives = NegativeWeights::new(&[0x0f, 0x0f, 0xf0], 0, weight);
            let found = contrast([&axes, &axes], 0.5, Some(&negatives)).unwrap();
            let one = (-2_f32).exp();
            let of = |weight: f32| (1.0 + (weight + 1.0) * one).ln();
            let expected = (2.0 * of(weight) + of(1.0)) / 3.0;
            assert!((found.to_scalar::<f32>().unwrap() - expected).abs() < 1e-6);
        }
    }

    /// What the identity with a batch norm at its end makes of `rows`.
    fn normed(mut rows: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
        let n = rows.len() as f64;
        for column in 0..4 {
            let mean = rows.iter().map(|row| row[column]).sum::<f64>() / n;
            let variance = rows.iter().map(|row| (row[column] - mean).powi(2)).sum::<f64>() / n;
            for row in &mut rows {
                row[column] = (row[column] - mean) / (variance + 1e-5).sqrt();
            }
        }
        rows
    }

    /// The formulas as plain loops, with identities and the batch norms at their ends for heads: of two
    /// views the sum of both directions, with small views twice the mean over the pairs of views.
    #[test]
    fn the_loss_is_that_of_the_loops_over_views_and_large_views() {
        const N_IMAGES: usize = 3;
        const TAU: f64 = 0.2;
        let head = head::Config { layers: 1, output: 4, ..head::Config::default() };
        for count in [0, 2] {
            let small_views = small_views::Config { count, ..small_views::Config::default() };
            let (head, predictor) = (head.clone(), head.clone());
            let config = Config { small_views, head, predictor, ..Config::default() };
            let mut objective = MocoV3::new(&config, 4, 1, &Device::Cpu).unwrap();
            let identity = Tensor::eye(4, candle_core::DType::F32, &Device::Cpu).unwrap();
            for weight in &objective.heads().weights {
                weight.set(&identity).unwrap();
            }
            objective.pair.follow(0.0).unwrap();

            let (seen, targets) = (rows((2 + count) * N_IMAGES, 1), rows(2 * N_IMAGES, 2));
            // Projection and predictor.
            let (queries, keys) = (normed(normed(seen.clone())), normed(targets.clone()));
            let ctr = |view: usize, target: usize| -> f64 {
                let of_image = |i: usize| {
                    let query = &queries[view * N_IMAGES + i];
                    let share =
                        |j: usize| (cosine(query, &keys[target * N_IMAGES + j]) / TAU).exp();
                    -(share(i) / (0..N_IMAGES).map(share).sum::<f64>()).ln()
                };
                2.0 * TAU * (0..N_IMAGES).map(of_image).sum::<f64>() / N_IMAGES as f64
            };
            let both = ctr(0, 1) + ctr(1, 0);
            let of_small: f64 = (2..2 + count).map(|view| ctr(view, 0) + ctr(view, 1)).sum();
            let expected = 2.0 * (both + of_small) / (2 + 2 * count) as f64;

            let (large, small) = seen.split_at(2 * N_IMAGES);
            let mut features = vec![tensor(large)];
            features.extend((count > 0).then(|| tensor(small)));
            let targets = [tensor(&targets)];
            let batch = Batch {
                features: &features,
                targets: &targets,
                n_images: N_IMAGES,
                ids: &[7, 8, 9],
                negatives: None,
            };
            let found = f64::from(objective.loss(&batch).unwrap().to_scalar::<f32>().unwrap());
            assert!((found - expected).abs() < 1e-4, "{count}: {found}, {expected}");
        }
    }
}
