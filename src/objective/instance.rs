//! Non-parametric instance classification (Wu et al., "Unsupervised Feature Learning via
//! Non-Parametric Instance Discrimination", arXiv 1805.01978, section 3.1, equation 2): each image
//! is a class of its own, and a memory bank holds a vector v of each.
//!
//! With f the projection of a view of image i, of unit length, and tau the temperature:
//!
//! ```text
//! loss = mean of -log [ exp(v_i . f / tau) / sum_j exp(v_j . f / tau) ]
//! v_i <- m v_i + (1 - m) mean of its f, of unit length              after the step
//! ```
//!
//! The bank holds the newest images that were learned, fresh or replayed; the oldest leave. An
//! image that it does not hold yet has no vector: each of its two views is compared with the
//! other's projection instead, and both together are its vector for the others of the batch. Near-duplicates
//! weigh less among an image's negatives where `learner.near_duplicates` says so.
//!
//! Differs from the paper: a stream has no fixed set of images to hold, so the bank has a length of its own, and an
//! image that replay brings back after it has left begins anew; the sum runs over the whole bank rather than a
//! sample of it (its noise-contrastive estimate is for a million images; with 4096 the sum is a small product), so
//! there is no proximal term either; two views of each image; the temperature is .1 rather than .07; vectors are
//! written by the head as the step leaves it.

use super::parts::head::{self, Ending, Head};
use super::parts::negatives::{weighted, weighted_past};
use super::parts::queue::Queue;
use super::parts::rows::{EXCLUDED, info_nce, normalise, partners, per_view};
use super::{Batch, Elapsed, Objective, Views};
use crate::encoder::{NamedArrays, Params};
use crate::setting::{Invalid, within};
use candle_core::{Device, Result, Tensor};
use serde::{Deserialize, Serialize};

/// `[objective]` with `kind = "instance"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Divides the similarities.
    pub temperature: f64,
    /// Images that the bank holds.
    pub bank: usize,
    /// Share of an image's vector that is kept when the image is seen again.
    pub momentum: f64,
    /// The projection head.
    pub head: head::Config,
}

impl Default for Config {
    fn default() -> Self {
        Self { temperature: 0.1, bank: 4096, momentum: 0.5, head: head::Config::default() }
    }
}

impl Config {
    /// Checks every value.
    ///
    /// # Errors
    /// The first value that is not allowed, by key.
    pub fn validate(&self) -> std::result::Result<(), Invalid> {
        within("objective.temperature", self.temperature, 0.01..=10.0, "from 0.01 to 10")?;
        within("objective.bank", self.bank, 1..=1_048_576, "from 1 to 1048576")?;
        within("objective.momentum", self.momentum, 0.0..1.0, "from 0 to below 1")?;
        self.head.validate("objective.head")
    }
}

/// The objective: a head, and the bank.
pub(super) struct Instance {
    temperature: f64,
    momentum: f64,
    head: Head,
    heads: Params,
    bank: Queue,
}

impl Instance {
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
        let mut specs = vec![];
        let head = Head::add(&mut specs, "projection", &config.head, feature_dim, Ending::Bias);
        let heads = head::init(&specs, seed, device)?;
        let bank = Queue::empty([config.bank, config.head.output], device)?;
        Ok(Self { temperature: config.temperature, momentum: config.momentum, head, heads, bank })
    }

    /// Unit projections `[2N, P]`.
    fn project(&self, batch: &Batch<'_>) -> Result<Tensor> {
        normalise(&self.head.apply(&self.heads, batch.only_features()?)?)
    }

    /// Each row's own class vector `[2N, P]`, without gradient: the bank's, or the other view.
    fn own(&self, unit: &Tensor, batch: &Batch<'_>) -> Result<Tensor> {
        let others = partners(&unit.detach())?; // [2N, P]
        let table = Tensor::cat(&[self.bank.rows(), &others], 0)?; // [K + 2N, P]
        let n_held = self.bank.rows().dim(0)?;
        let rows = 0..2 * batch.n_images;
        let places: Vec<u32> = rows
            .map(|row| self.bank.find(batch.ids[row % batch.n_images]).unwrap_or(n_held + row))
            .map(|place| place as u32)
            .collect();
        let places = Tensor::from_vec(places, 2 * batch.n_images, unit.device())?;
        table.index_select(&places, 0)
    }

    /// `[2N, N]` that excludes, of the batch's vectors, a row's own and those that the bank has.
    fn exclude_in_batch(&self, batch: &Batch<'_>, device: &Device) -> Result<Tensor> {
        let n_images = batch.n_images;
        let is_held: Vec<bool> = batch.ids.iter().map(|id| self.bank.find(*id).is_some()).collect();
        let is_out = |row: usize, other: usize| {
            is_held[other] || batch.ids[row % n_images] == batch.ids[other]
        };
        let mask = (0..2 * n_images).flat_map(|row| {
            let is_out = &is_out;
            (0..n_images).map(move |other| if is_out(row, other) { EXCLUDED as f32 } else { 0.0 })
        });
        Tensor::from_vec(mask.collect::<Vec<_>>(), (2 * n_images, n_images), device)
    }
}

impl Objective for Instance {
    fn views(&self) -> Vec<Views> {
        vec![Views::alike(2)]
    }

    fn loss(&self, batch: &Batch<'_>) -> Result<Tensor> {
        let unit = self.project(batch)?; // [2N, P]
        let own = self.own(&unit, batch)?; // [2N, P]
        let fresh = mean_of_views(&unit)?; // [N, P]
        let others = Tensor::cat(&[self.bank.rows(), &fresh], 0)?; // [K + N, P]
        let held = self.bank.exclude_own_and_empty(&batch.ids.repeat(2))?; // [2N, K]
        let held = weighted_past(held, &self.bank.fingerprints(), batch.negatives)?; // [2N, K]
        let in_batch = self.exclude_in_batch(batch, unit.device())?; // [2N, N]
        let in_batch = weighted(in_batch, batch.negatives)?; // [2N, N]
        let excluded = Tensor::cat(&[&held, &in_batch], 1)?; // [2N, K + N]
        info_nce(&unit, &own, (&others, &excluded), self.temperature)
    }

    fn weighs_negatives(&self) -> bool {
        true
    }

    fn heads(&self) -> &Params {
        &self.heads
    }

    fn heads_mut(&mut self) -> &mut Params {
        &mut self.heads
    }

    fn after_step(&mut self, batch: &Batch<'_>, _elapsed: Elapsed) -> Result<()> {
        let means = mean_of_views(&self.project(batch)?)?; // [N, P]
        for (index, image) in batch.images().into_iter().enumerate() {
            let mean = means.narrow(0, index, 1)?; // [1, P]
            match self.bank.find(image.id) {
                None => self.bank.push(&mean, &[image])?,
                Some(place) => {
                    let held = (self.bank.rows().narrow(0, place, 1)? * self.momentum)?;
                    let moved = normalise(&(held + (mean * (1.0 - self.momentum))?)?)?;
                    self.bank.replace(place, &moved)?;
                }
            }
        }
        Ok(())
    }

    fn state(&self) -> Result<NamedArrays> {
        self.bank.to_arrays()
    }

    fn load_state(&mut self, arrays: &NamedArrays) -> Result<()> {
        self.bank.load_arrays(arrays)
    }
}

/// The mean of both views' rows `[2N, P]`, of unit length and without gradient: `[N, P]`.
fn mean_of_views(unit: &Tensor) -> Result<Tensor> {
    let views = per_view(&unit.detach(), 2)?;
    normalise(&((&views[0] + &views[1])? / 2.0)?)
}

#[cfg(test)]
mod tests {
    use super::super::golden;
    use super::super::parts::negatives::NegativeWeights;
    use super::*;
    use candle_core::DType;

    #[test]
    fn golden_values_and_slopes() {
        golden::check("instance", |x, arguments| {
            let nothing = Tensor::zeros((x[0].dim(0)?, x[2].dim(0)?), DType::F32, &Device::Cpu)?;
            let (own, others) = (normalise(&x[1].detach())?, normalise(&x[2].detach())?);
            let temperature = arguments["temperature"];
            info_nce(&normalise(&x[0])?, &own, (&others, &nothing), temperature)
        });
    }

    /// An objective whose head is the identity, and features of two images' two views.
    fn plain() -> (Instance, Tensor) {
        let head = head::Config { layers: 1, output: 3, ..head::Config::default() };
        let config = Config { bank: 2, head, ..Config::default() };
        let instance = Instance::new(&config, 3, 1, &Device::Cpu).unwrap();
        let identity = Tensor::eye(3, DType::F32, &Device::Cpu).unwrap();
        instance.heads.weights[0].set(&identity).unwrap();
        let rows = [[1.0f32, 0.0, 0.0], [0.0, 1.0, 0.0], [0.6, 0.0, 0.8], [0.0, 0.8, 0.6]];
        (instance, Tensor::new(&rows, &Device::Cpu).unwrap())
    }

    #[test]
    fn closed_forms_before_and_after_the_bank_knows_the_images() {
        let (mut instance, rows) = plain();
        let features = [rows];
        let batch =
            Batch { features: &features, targets: &[], n_images: 2, ids: &[7, 8], negatives: None };
        let value =
            |instance: &Instance| instance.loss(&batch).unwrap().to_scalar::<f32>().unwrap();
        // By hand, in f64: tau 0.1; row against its own vector, and against the other image's.
        let unit = |v: [f64; 3]| {
            let norm = v.iter().map(|x| x * x).sum::<f64>().sqrt();
            v.map(|x| x / norm)
        };
        let dot = |a: [f64; 3], b: [f64; 3]| -> f64 { (0..3).map(|i| a[i] * b[i]).sum::<f64>() };
        let rows = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.6, 0.0, 0.8], [0.0, 0.8, 0.6]];
        let vectors = [unit([1.6, 0.0, 0.8]), unit([0.0, 1.8, 0.6])];
        let loss = |own: &dyn Fn(usize) -> [f64; 3]| -> f64 {
            let term = |row: usize| {
                let (own, other) = (dot(rows[row], own(row)), dot(rows[row], vectors[1 - row % 2]));
                (1.0 + ((other - own) / 0.1).exp()).ln()
            };
            (0..4).map(term).sum::<f64>() / 4.0
        };
        let first = loss(&|row| rows[(row + 2) % 4]);
        assert!((f64::from(value(&instance)) - first).abs() < 1e-5);
        instance.after_step(&batch, Elapsed::default()).unwrap();
        let second = loss(&|row| vectors[row % 2]);
        assert!((f64::from(value(&instance)) - second).abs() < 1e-5);
        assert!((first - second).abs() > 1e-3, "the bank makes a difference");
    }

    /// Two images, each the other's only negative, in the batch and then in the bank: masked, nothing is left.
    #[test]
    fn near_duplicates_are_no_negatives_where_they_are_masked() {
        let (mut instance, rows) = plain();
        let features = [rows];
        let masked = NegativeWeights::new(&[0x0f, 0x0f], 0, 0.0);
        let value = |instance: &Instance, ids: &[u64]| {
            let negatives = Some(&masked);
            let batch = Batch { features: &features, targets: &[], n_images: 2, ids, negatives };
            instance.loss(&batch).unwrap().to_scalar::<f32>().unwrap()
        };
        assert_eq!(value(&instance, &[7, 8]), 0.0);
        let negatives = Some(&masked);
        let batch =
            Batch { features: &features, targets: &[], n_images: 2, ids: &[7, 8], negatives };
        instance.after_step(&batch, Elapsed::default()).unwrap();
        assert_eq!(value(&instance, &[7, 8]), 0.0);
        assert_eq!(value(&instance, &[9, 10]), 0.0);
    }

    #[test]
    fn a_vector_moves_by_its_momentum_and_keeps_its_place() {
        let (mut instance, rows) = plain();
        let features = [rows];
        let step = |instance: &mut Instance, ids: [u64; 2]| {
            let batch = Batch {
                features: &features,
                targets: &[],
                n_images: 2,
                ids: &ids,
                negatives: None,
            };
            instance.after_step(&batch, Elapsed::default()).unwrap();
            instance.bank.rows().to_vec2::<f32>().unwrap()
        };
        let first = step(&mut instance, [7, 8]);
        let again = step(&mut instance, [7, 8]);
        let apart = first.iter().flatten().zip(again.iter().flatten()).map(|(a, b)| (a - b).abs());
        assert!(apart.fold(0.0, f32::max) < 1e-6, "a vector that is its own mean stays");
        // Image 8 shows what 7 did: it goes half of the way there, and back to unit length.
        let moved = step(&mut instance, [8, 9]);
        let norm = |v: &[f32]| v.iter().map(|x| x * x).sum::<f32>().sqrt();
        let half: Vec<f32> = (0..3).map(|i| (first[0][i] + first[1][i]) / 2.0).collect();
        for (moved, half_way) in moved[1].iter().zip(&half) {
            assert!((moved - half_way / norm(&half)).abs() < 1e-5);
        }
        assert_eq!(instance.bank.find(7), None, "the oldest image left");
        assert_eq!(instance.bank.find(9), Some(0), "the new one took its place");
    }
}
