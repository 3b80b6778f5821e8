//! How much the images of a batch count as negatives of each other: frames of one scene that arrive
//! together are alike, and to push them apart teaches the wrong thing (cf. false negatives in Chuang et
//! al., "Debiased Contrastive Learning", arXiv 2007.00224).
//!
//! A weight w_ij from 0 to 1 multiplies what image j adds to image i's denominator, or the loss of the
//! pair where each pair has its own:
//!
//! ```text
//! -log [ e^{s_ii} / (e^{s_ii} + sum_{j != i} w_ij e^{s_ij}) ],    sum_{j != i} w_ij l_ij
//! ```

use super::rows::EXCLUDED;
use candle_core::{Device, Result, Tensor};

/// The weights of a batch of N images.
#[derive(Clone, Debug, PartialEq)]
pub struct NegativeWeights {
    n_images: usize,
    /// `[N, N]`; 1 on the diagonal.
    weights: Vec<f32>,
}

impl NegativeWeights {
    /// `weight` for each two of `n_images` that `are_alike`, which is symmetric, and 1 for others;
    /// `None` where no two are.
    pub fn new(
        n_images: usize,
        weight: f32,
        are_alike: impl Fn(usize, usize) -> bool,
    ) -> Option<Self> {
        let mut weights = vec![1.0; n_images * n_images];
        let mut n_alike = 0;
        for i in 0..n_images {
            for j in 0..i {
                if are_alike(i, j) {
                    (weights[i * n_images + j], weights[j * n_images + i]) = (weight, weight);
                    n_alike += 1;
                }
            }
        }
        (n_alike > 0).then_some(Self { n_images, weights })
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
        let log = |weight: f32| if weight > 0.0 { weight.ln() } else { EXCLUDED as f32 };
        self.tiled([rows, columns], log, device)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_symmetric_tiles_with_ones_on_the_diagonal() {
        let alike = |i: usize, j: usize| i.min(j) == 0 && i.max(j) == 2;
        let negatives = NegativeWeights::new(3, 0.25, alike).unwrap();
        assert_eq!(negatives.n_pairs(), 1);
        let factors = negatives.factors([6, 3], &Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
        let once = [[1.0, 1.0, 0.25], [1.0, 1.0, 1.0], [0.25, 1.0, 1.0]];
        assert_eq!(factors, [once, once].concat());
        let logs = negatives.log_weights([3, 6], &Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(logs[0], [0.0, 0.0, 0.25_f32.ln(), 0.0, 0.0, 0.25_f32.ln()]);
        let masked = NegativeWeights::new(3, 0.0, alike).unwrap();
        let logs = masked.log_weights([3, 3], &Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(logs[2], [EXCLUDED as f32, 0.0, 0.0]);
        assert!(NegativeWeights::new(3, 0.0, |_, _| false).is_none());
        assert!(negatives.factors([4, 3], &Device::Cpu).is_err());
    }
}
