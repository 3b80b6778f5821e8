//! MoCo v2 (He et al., "Momentum Contrast", arXiv 1911.05722, section 3.1, equations 1, 2; Chen et
//! al., "Improved Baselines with Momentum Contrastive Learning", arXiv 2003.04297): a query finds
//! its key among those of past batches.
//!
//! With q the query from one view, k+ the key that the target makes of another view of its image,
//! k_j the K keys of the queue, all of unit length, and tau the temperature:
//!
//! ```text
//! loss = mean of -log [ exp(q . k+ / tau) / ( exp(q . k+ / tau) + sum_j exp(q . k_j / tau) ) ]
//! target <- m target + (1 - m) encoder;   the batch's keys replace the oldest of the queue
//! ```
//!
//! The keys of a batch share the statistics of their batch norms, the queue's do not; a query whose
//! own statistics resemble its key's could tell it by them. The paper shuffles keys across GPUs. On
//! one device the target's batch is cut into `norm_groups` parts of other images each, as the
//! authors' single-GPU demonstration splits its norms, and no part holds two views of an image.
//!
//! Differs from the papers: by default both views are query and key in turn (`symmetric`, as in
//! that demonstration); queued keys of the query's own image, which replay brings back, are no
//! negatives, and those of its near-duplicates weigh less where `learner.near_duplicates` says so; the
//! momentum is .99 and the queue 4096, as for short runs in the same demonstration
//! (the papers: .999 and 65,536).

use super::parts::head::{self, Ending};
use super::parts::negatives::weighted_past;
use super::parts::queue::Queue;
use super::parts::rows::{info_nce, normalise, partners};
use super::parts::siamese::{self, Siamese};
use super::parts::target::{Target, validate_momentum};
use super::{Batch, Elapsed, Objective, SeenBy, Views};
use crate::encoder::{NamedArrays, Params};
use crate::setting::{Invalid, within};
use candle_core::{Device, Result, Tensor};
use serde::{Deserialize, Serialize};

/// `[objective]` with `kind = "moco"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Divides the similarities.
    pub temperature: f64,
    /// Share of the target that is kept in a step.
    pub momentum: f64,
    /// Keys of past batches that are negatives, `K`.
    pub queue: usize,
    /// Whether each view is query and key; else the first is query and the second key, and a step
    /// costs half.
    pub symmetric: bool,
    /// Parts of the target's batch that are normalised apart.
    pub norm_groups: usize,
    /// The projection head; v2's has no batch norm.
    pub head: head::Config,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            temperature: 0.2,
            momentum: 0.99,
            queue: 4096,
            symmetric: true,
            norm_groups: 4,
            head: head::Config { norm: false, ..head::Config::default() },
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
        within("objective.queue", self.queue, 1..=1_048_576, "from 1 to 1048576")?;
        within("objective.norm_groups", self.norm_groups, 1..=64, "from 1 to 64")?;
        if self.head.norm && self.norm_groups > 1 {
            // It would see both views of an image at once, which the parts are there to prevent.
            let allowed = "false where objective.norm_groups is above 1";
            return Err(Invalid::new("objective.head.norm", self.head.norm, allowed));
        }
        self.head.validate("objective.head")
    }
}

/// The objective: a head with its average, and the queue.
pub(super) struct Moco {
    config: Config,
    pair: Siamese,
    queue: Queue,
}

impl Moco {
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
        let heads = siamese::Config { head: &config.head, predictor: None, ending: Ending::Bias };
        Ok(Self {
            pair: Siamese::new(&heads, feature_dim, seed, device)?,
            queue: Queue::random([config.queue, config.head.output], seed, device)?,
            config: config.clone(),
        })
    }

    /// Unit keys, a row for each row of the target's features.
    fn keys(&self, batch: &Batch<'_>) -> Result<Tensor> {
        normalise(&self.pair.keys(batch.only_targets()?)?)
    }
}

impl Objective for Moco {
    fn views(&self) -> Vec<Views> {
        if self.config.symmetric {
            return vec![Views { seen_by: SeenBy::Both, ..Views::alike(2) }];
        }
        [SeenBy::Encoder, SeenBy::Target]
            .map(|seen_by| Views { seen_by, ..Views::alike(1) })
            .to_vec()
    }

    fn target(&self, _elapsed: Elapsed) -> Option<Target> {
        let Config { momentum, norm_groups, .. } = self.config;
        Some(Target { momentum, norm_groups })
    }

    fn loss(&self, batch: &Batch<'_>) -> Result<Tensor> {
        let queries = self.pair.queries(batch.only_features()?)?; // [M, P], M is N or 2N
        let keys = self.keys(batch)?; // [M, P]
        let keys = if self.config.symmetric { partners(&keys)? } else { keys };
        let ids = batch.ids.repeat(queries.dim(0)? / batch.n_images);
        let excluded = self.queue.exclude_own(&ids)?; // [M, K]
        let excluded = weighted_past(excluded, &self.queue.fingerprints(), batch.negatives)?; // [M, K]
        info_nce(
            &normalise(&queries)?,
            &keys,
            (self.queue.rows(), &excluded),
            self.config.temperature,
        )
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

    fn after_step(&mut self, batch: &Batch<'_>, _elapsed: Elapsed) -> Result<()> {
        let keys = self.keys(batch)?; // [M, P]
        let images = batch.images().repeat(keys.dim(0)? / batch.n_images);
        self.queue.push(&keys, &images)?;
        self.pair.follow(self.config.momentum)
    }

    fn state(&self) -> Result<NamedArrays> {
        let mut arrays = self.pair.to_arrays()?;
        arrays.extend(self.queue.to_arrays()?);
        Ok(arrays)
    }

    fn load_state(&mut self, arrays: &NamedArrays) -> Result<()> {
        self.pair.load_arrays(arrays)?;
        self.queue.load_arrays(arrays)
    }
}

#[cfg(test)]
mod tests {
    use super::super::golden;
    use super::super::loops::{cosine, rows, tensor};
    use super::super::parts::negatives::NegativeWeights;
    use super::*;
    use candle_core::DType;

    #[test]
    fn golden_values_and_slopes() {
        golden::check("moco", |x, arguments| {
            let nothing = Tensor::zeros((x[0].dim(0)?, x[2].dim(0)?), DType::F32, &Device::Cpu)?;
            let (keys, queue) = (normalise(&x[1].detach())?, normalise(&x[2].detach())?);
            info_nce(&normalise(&x[0])?, &keys, (&queue, &nothing), arguments["temperature"])
        });
    }

    #[test]
    fn closed_forms() {
        let axis = |i: usize| {
            let row: Vec<f32> = (0..4).map(|j| if i == j { 1.0 } else { 0.0 }).collect();
            Tensor::from_vec(row, (1, 4), &Device::Cpu).unwrap()
        };
        let queue = Tensor::cat(&[axis(1), axis(2), axis(3)], 0).unwrap();
        let nothing = Tensor::zeros((1, 3), DType::F32, &Device::Cpu).unwrap();
        let value = |key: &Tensor, excluded: &Tensor| {
            let loss =
                info_nce(&normalise(&axis(0)).unwrap(), key, (&queue, excluded), 0.5).unwrap();
            loss.to_scalar::<f32>().unwrap()
        };
        // The key is the query and the others are orthogonal: log(1 + 3 e^-2).
        assert!((value(&axis(0), &nothing) - (1.0 + 3.0 * (-2f32).exp()).ln()).abs() < 1e-6);
        // All alike: log 4. Two excluded: log 2.
        assert!((value(&axis(1), &nothing) - 4f32.ln()).abs() < 1e-6);
        let excluded = Tensor::new(&[[-1e9f32, 0.0, -1e9]], &Device::Cpu).unwrap();
        assert!((value(&axis(1), &excluded) - 2f32.ln()).abs() < 1e-6);
    }

    #[test]
    fn queued_keys_of_near_duplicates_weigh_as_much_as_they_are_told_to() {
        let config = Config { queue: 2, symmetric: false, norm_groups: 1, ..Config::default() };
        let features: Vec<f32> = (0..12).map(|i| (i * 7 % 11) as f32 - 5.0).collect();
        let features = [Tensor::from_vec(features, (2, 6), &Device::Cpu).unwrap()];
        // The queue holds a key of each fingerprint of the batch before.
        let loss = |fingerprints: [u64; 2], weight: f32| {
            let mut moco = Moco::new(&config, 6, 1, &Device::Cpu).unwrap();
            let before = NegativeWeights::new(&[0x00, 0xff00], 0, weight);
            let now = NegativeWeights::new(&fingerprints, 0, weight);
            let batch = |ids, negatives| Batch {
                features: &features,
                targets: &features,
                n_images: 2,
                ids,
                negatives,
            };
            moco.after_step(&batch(&[1, 2], Some(&before)), Elapsed::default()).unwrap();
            moco.loss(&batch(&[10, 11], Some(&now))).unwrap().to_scalar::<f32>().unwrap()
        };
        let [none_alike, both_alike] = [[0x0f, 0xf0], [0x00, 0xff00]];
        assert!(loss(both_alike, 0.0) < loss(both_alike, 0.5));
        assert!(loss(both_alike, 0.5) < loss(none_alike, 0.5));
        assert_eq!(loss(none_alike, 0.0), loss(none_alike, 1.0));
    }

    #[test]
    fn a_key_of_the_same_image_is_no_negative_when_replay_brings_it_back() {
        let config = Config { queue: 4, norm_groups: 1, ..Config::default() };
        let features: Vec<f32> = (0..24).map(|i| (i * 7 % 11) as f32 - 5.0).collect();
        let features = Tensor::from_vec(features, (4, 6), &Device::Cpu).unwrap();
        let features = [features];
        let loss_after = |id: u64| {
            let mut moco = Moco::new(&config, 6, 1, &Device::Cpu).unwrap();
            let (before, now) = ([id, 11], [10, 11]);
            let batch = |ids| Batch {
                features: &features,
                targets: &features,
                n_images: 2,
                ids,
                negatives: None,
            };
            moco.after_step(&batch(&before), Elapsed::default()).unwrap();
            moco.loss(&batch(&now)).unwrap().to_scalar::<f32>().unwrap()
        };
        // Its own key, the closest there is, would cost the most.
        assert!(loss_after(10) < loss_after(99) - 0.1);
    }

    /// An objective whose heads and their average are the identity.
    fn plain(config: &Config) -> Moco {
        let head = head::Config { layers: 1, output: 4, ..head::Config::default() };
        let config = Config { head, ..config.clone() };
        let mut moco = Moco::new(&config, 4, 1, &Device::Cpu).unwrap();
        let identity = Tensor::eye(4, DType::F32, &Device::Cpu).unwrap();
        moco.heads().weights[0].set(&identity).unwrap();
        moco.pair.follow(0.0).unwrap();
        moco
    }

    /// The formula as plain loops: the key of a query is what the target made of the other view of its
    /// image, and keys of that image in the queue are left out.
    #[test]
    fn the_loss_is_that_of_the_loops_over_each_query_and_its_images_other_view() {
        const N_IMAGES: usize = 3;
        let (past_ids, ids) = ([1, 8, 2], [7, 8, 9]);
        for symmetric in [true, false] {
            // Both views are query and key in turn; or queries are first views and keys second ones.
            let n_rows = if symmetric { 2 * N_IMAGES } else { N_IMAGES };
            let partner = |i: usize| if symmetric { (i + N_IMAGES) % n_rows } else { i };
            let (queries, keys, past) = (rows(n_rows, 1), rows(n_rows, 2), rows(n_rows, 3));
            let of_query = |i: usize| {
                let share = |key: &[f64]| (cosine(&queries[i], key) / 0.2).exp();
                let own = share(&keys[partner(i)]);
                let is_negative = |j: &usize| past_ids[j % N_IMAGES] != ids[i % N_IMAGES];
                let others: f64 = (0..n_rows).filter(is_negative).map(|j| share(&past[j])).sum();
                -(own / (own + others)).ln()
            };
            let expected = (0..n_rows).map(of_query).sum::<f64>() / n_rows as f64;

            // The batch before fills the queue.
            let mut moco = plain(&Config { queue: n_rows, symmetric, ..Config::default() });
            let [queries, keys, past] = [queries, keys, past].map(|rows| [tensor(&rows)]);
            let batch = |targets, ids| Batch {
                features: &queries,
                targets,
                n_images: N_IMAGES,
                ids,
                negatives: None,
            };
            moco.after_step(&batch(&past, &past_ids), Elapsed::default()).unwrap();
            let found = moco.loss(&batch(&keys, &ids)).unwrap().to_scalar::<f32>().unwrap();
            let error = (f64::from(found) - expected).abs();
            assert!(error < 1e-4, "symmetric {symmetric}: {found}, {expected}");
        }
    }
}
