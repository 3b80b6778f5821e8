//! How much images count as negatives of each other: frames of one scene that arrive
//! together are alike, and to push them apart teaches the wrong thing (cf. false negatives in Chuang et
//! al., "Debiased Contrastive Learning", arXiv 2007.00224). An image that is in a batch more than once, as where
//! replay holds few, is no negative of itself.
//!
//! A weight w_ij from 0 to 1 multiplies what image j, of the batch or of a queue of past ones, adds to image
//! i's denominator, or the loss of the pair where each pair has its own:
//!
//! ```text
//! -log [ e^{s_ii} / (e^{s_ii} + sum_{j != i} w_ij e^{s_ij}) ],    sum_{j != i} w_ij l_ij
//! ```

use super::rows::EXCLUDED;
use crate::decode::fingerprint::difference;
use candle_core::{Device, Result, Tensor};

/// The weights of a batch of N images.
#[derive(Clone, Debug, PartialEq)]
pub struct NegativeWeights {
    n_images: usize,
    /// `N` of them, or none where images that are alike count like others.
    fingerprints: Vec<u64>,
    /// Two images are alike where their fingerprints differ in at most so many bits.
    most_bits: u32,
    /// That of two images that are alike.
    weight: f32,
    /// `[N, N]`; 1 on the diagonal.
    weights: Vec<f32>,
}

impl NegativeWeights {
    /// `weight` for each two of the images of `fingerprints` that differ in at most `most_bits` bits, and 1
    /// for others.
    pub fn new(fingerprints: &[u64], most_bits: u32, weight: f32) -> Self {
        let of = |i: usize, j: usize| {
            let are_alike = difference(fingerprints[i], fingerprints[j]) <= most_bits;
            if i != j && are_alike { weight } else { 1.0 }
        };
        let images = 0..fingerprints.len();
        let weights = images.clone().flat_map(|i| images.clone().map(move |j| of(i, j))).collect();
        let (n_images, fingerprints) = (fingerprints.len(), fingerprints.to_vec());
        Self { n_images, fingerprints, most_bits, weight, weights }
    }

    /// 1 for each two of so many images.
    pub fn even(n_images: usize) -> Self {
        let weights = vec![1.0; n_images * n_images];
        Self { n_images, fingerprints: vec![], most_bits: 0, weight: 1.0, weights }
    }

    /// The same, and 0 for two that are one image by their `ids`.
    pub fn without_copies(mut self, ids: &[u64]) -> Self {
        for (i, id) in ids.iter().enumerate() {
            for (j, other) in ids.iter().enumerate().filter(|(j, _)| *j != i) {
                if id == other {
                    self.weights[i * self.n_images + j] = 0.0;
                }
            }
        }
        self
    }

    /// The fingerprint of image `index`, where likeness counts.
    pub fn fingerprint(&self, index: usize) -> Option<u64> {
        self.fingerprints.get(index).copied()
    }

    /// The share of all pairs of images that count, each by its weight.
    pub fn share(&self) -> f32 {
        let n_pairs = self.n_images * self.n_images.saturating_sub(1);
        // In f64: a sum of ones in f32 ends at 2^24, the pairs of 4096 images.
        let counted = self.weights.iter().map(|weight| f64::from(*weight)).sum::<f64>();
        ((counted - self.n_images as f64) / n_pairs.max(1) as f64) as f32
    }

    /// Pairs of images that are alike.
    pub fn n_pairs(&self) -> usize {
        self.weights.iter().filter(|weight| **weight != 1.0).count() / 2
    }

    /// What to add to logits `[rows, columns]`, both whole views of the N images.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn log_weights(&self, [rows, columns]: [usize; 2], device: &Device) -> Result<Tensor> {
        self.tiled([rows, columns], log, device)
    }

    /// What to add to logits `[rows, K]` of whole views of the N images beside K past ones, of which those
    /// without a fingerprint are like no other.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn log_weights_of_past(
        &self,
        rows: usize,
        past: &[Option<u64>],
        device: &Device,
    ) -> Result<Tensor> {
        let of = |image: u64, past: u64| {
            if difference(image, past) <= self.most_bits { log(self.weight) } else { 0.0 }
        };
        let n = self.n_images;
        let values = (0..rows).flat_map(|row| {
            let image = self.fingerprint(row % n);
            past.iter()
                .map(move |past| image.zip(*past).map_or(0.0, |(image, past)| of(image, past)))
        });
        Tensor::from_vec(values.collect::<Vec<f32>>(), (rows, past.len()), device)
    }

    /// What to multiply losses of pairs `[rows, columns]` by.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn factors(&self, sides: [usize; 2], device: &Device) -> Result<Tensor> {
        self.tiled(sides, |weight| weight, device)
    }

    fn tiled(
        &self,
        [rows, columns]: [usize; 2],
        of: impl Fn(f32) -> f32,
        device: &Device,
    ) -> Result<Tensor> {
        let n = self.n_images;
        if rows % n != 0 || columns % n != 0 {
            candle_core::bail!("weights of {n} images are not those of {rows} x {columns} rows")
        }
        let row = |row: usize| &self.weights[row % n * n..][..n];
        let values = (0..rows).flat_map(|i| row(i).iter().cycle().take(columns));
        Tensor::from_vec(values.map(|w| of(*w)).collect::<Vec<f32>>(), (rows, columns), device)
    }
}

fn log(weight: f32) -> f32 {
    if weight > 0.0 { weight.ln() } else { EXCLUDED as f32 }
}

/// `logits` with what the weights of negatives add to them, where there are any.
///
/// # Errors
/// Sides that are no whole views of the images.
pub fn weighted(logits: Tensor, negatives: Option<&NegativeWeights>) -> Result<Tensor> {
    let Some(negatives) = negatives else { return Ok(logits) };
    let (rows, columns) = logits.dims2()?;
    let added = negatives.log_weights([rows, columns], logits.device())?;
    logits + added
}

/// `excluded [M, K]`, which is to be added to logits of whole views beside K past images, with what the weights
/// of those add, where there are any.
///
/// # Errors
/// Whatever the device reports.
pub fn weighted_past(
    excluded: Tensor,
    past: &[Option<u64>],
    negatives: Option<&NegativeWeights>,
) -> Result<Tensor> {
    let Some(negatives) = negatives else { return Ok(excluded) };
    let added = negatives.log_weights_of_past(excluded.dim(0)?, past, excluded.device())?;
    excluded + added
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_symmetric_tiles_with_ones_on_the_diagonal() {
        // The first and the third differ in two bits, the second from both in more.
        let fingerprints = [0b0011, 0b1111_1100, 0b0000];
        let negatives = NegativeWeights::new(&fingerprints, 2, 0.25);
        assert_eq!(negatives.n_pairs(), 1);
        let factors = negatives.factors([6, 3], &Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
        let once = [[1.0, 1.0, 0.25], [1.0, 1.0, 1.0], [0.25, 1.0, 1.0]];
        assert_eq!(factors, [once, once].concat());
        let logs = negatives.log_weights([3, 6], &Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(logs[0], [0.0, 0.0, 0.25_f32.ln(), 0.0, 0.0, 0.25_f32.ln()]);
        let masked = NegativeWeights::new(&fingerprints, 2, 0.0);
        let logs = masked.log_weights([3, 3], &Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(logs[2], [EXCLUDED as f32, 0.0, 0.0]);
        assert_eq!(NegativeWeights::new(&fingerprints, 1, 0.0).n_pairs(), 0);
        assert!(negatives.factors([4, 3], &Device::Cpu).is_err());
    }

    /// Of four images, the second twice, and the third close to it.
    #[test]
    fn copies_of_one_image_count_nothing_and_others_as_they_did() {
        let ids = [1, 2, 3, 2];
        let rows = |negatives: NegativeWeights| {
            negatives.factors([4, 4], &Device::Cpu).unwrap().to_vec2::<f32>().unwrap()
        };
        let [all, apart] = [[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.0]];
        let last = [1.0, 0.0, 1.0, 1.0];
        let plain = NegativeWeights::even(4).without_copies(&ids);
        assert_eq!(plain.share(), 10.0 / 12.0);
        assert_eq!(NegativeWeights::even(4200).share(), 1.0);
        assert_eq!(plain.fingerprint(1), None);
        let past = plain.log_weights_of_past(4, &[Some(7)], &Device::Cpu).unwrap();
        assert_eq!(past.to_vec2::<f32>().unwrap(), [[0.0]; 4]);
        assert_eq!(rows(plain), [all, apart, all, last]);
        let near = NegativeWeights::new(&[0b1111, 0, 1, 0], 1, 0.5).without_copies(&ids);
        let [of_copy, of_near] = [[1.0, 1.0, 0.5, 0.0], [1.0, 0.5, 1.0, 0.5]];
        assert_eq!(rows(near), [all, of_copy, of_near, [1.0, 0.0, 0.5, 1.0]]);
    }

    #[test]
    fn past_images_weigh_less_where_they_are_alike() {
        let past = [Some(0b0001), None, Some(0b1111)];
        for (weight, log) in [(0.25, 0.25_f32.ln()), (0.0, EXCLUDED as f32)] {
            let negatives = NegativeWeights::new(&[0b0000, 0b0111], 1, weight);
            let logs = negatives.log_weights_of_past(4, &past, &Device::Cpu).unwrap();
            let once = [[log, 0.0, 0.0], [0.0, 0.0, log]];
            assert_eq!(logs.to_vec2::<f32>().unwrap(), [once, once].concat());
        }
    }
}
