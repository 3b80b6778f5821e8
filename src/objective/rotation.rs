//! Rotation prediction (Gidaris, Singh and Komodakis, "Unsupervised Representation Learning by
//! Predicting Image Rotations", arXiv 1803.07728, section 2, equations 1 to 3): which of four ways
//! up a view is.
//!
//! With `g(x, y)` view x turned by y quarter turns, and F the classifier's probabilities:
//!
//! ```text
//! loss = 1/N sum_i 1/4 sum_{y = 0..3} -log F^y(g(x_i, y))
//! ```
//!
//! All four turns of an image are in one batch, as in the paper. There is nothing to learn in
//! images without an up, such as microscope's or aerial ones.
//!
//! Differs from the paper: each of the four is a view of its own, cropped and coloured by
//! `[augment]` before it is turned; the classifier reads the pooled features through a head.

use super::parts::head::{self, Ending, Head};
use super::parts::rows::cross_entropy;
use super::{Batch, Objective, SeenBy, Views};
use crate::augment::ViewGroup;
use crate::encoder::Params;
use crate::setting::Invalid;
use candle_core::{Device, Result, Tensor};
use serde::{Deserialize, Serialize};

/// The classes: 0, 90, 180 and 270 degrees.
const TURNS: usize = 4;

/// `[objective]` with `kind = "rotation"`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The classifier; its output is always 4 long.
    pub head: Classifier,
}

/// `[objective.head]` of a classifier.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Classifier {
    /// Linear layers; 1 is a linear classifier.
    pub layers: usize,
    /// Width of the layers before the last.
    pub hidden: usize,
}

impl Default for Classifier {
    fn default() -> Self {
        Self { layers: 2, hidden: 512 }
    }
}

impl Classifier {
    fn layers(&self) -> head::Config {
        head::Config { layers: self.layers, hidden: self.hidden, output: TURNS, norm: true }
    }
}

impl Config {
    /// Checks every value.
    ///
    /// # Errors
    /// The first value that is not allowed, by key.
    pub fn validate(&self) -> std::result::Result<(), Invalid> {
        self.head.layers().validate("objective.head")
    }
}

/// The objective: a classifier of turns.
pub(super) struct Rotation {
    head: Head,
    heads: Params,
}

impl Rotation {
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
        let layers = config.head.layers();
        let head = Head::add(&mut specs, "classifier", &layers, feature_dim, Ending::Bias);
        Ok(Self { head, heads: head::init(&specs, seed, device)? })
    }
}

impl Objective for Rotation {
    fn views(&self) -> Vec<Views> {
        let group = ViewGroup { is_turned: true, ..ViewGroup::alike(TURNS) };
        vec![Views { group, seen_by: SeenBy::Encoder }]
    }

    fn loss(&self, batch: &Batch<'_>) -> Result<Tensor> {
        let logits = self.head.apply(&self.heads, batch.only_features()?)?; // [4N, 4]
        turn_entropy(&logits)
    }

    fn heads(&self) -> &Params {
        &self.heads
    }

    fn heads_mut(&mut self) -> &mut Params {
        &mut self.heads
    }
}

/// The cross-entropy of `logits [4N, 4]`: N rows of views not turned, then N of one turn, and so
/// on.
///
/// # Errors
/// A number of rows that is no multiple of 4.
fn turn_entropy(logits: &Tensor) -> Result<Tensor> {
    let (rows, _) = logits.dims2()?;
    if rows % TURNS != 0 {
        candle_core::bail!("rotation wants {TURNS} views of each image, got {rows} rows")
    }
    cross_entropy(logits, (0..rows).map(|row| (row / (rows / TURNS)) as u32).collect())
}

#[cfg(test)]
mod tests {
    use super::super::golden;
    use super::*;

    #[test]
    fn golden_values_and_slopes() {
        golden::check("rotation", |x, _| turn_entropy(&x[0]));
    }

    #[test]
    fn closed_forms() {
        let value = |logits: &Tensor| turn_entropy(logits).unwrap().to_scalar::<f32>().unwrap();
        let even = Tensor::zeros((8, 4), candle_core::DType::F32, &Device::Cpu).unwrap();
        assert!((value(&even) - 4f32.ln()).abs() < 1e-6);
        // Right by a margin of 3 for both images of each turn: log(1 + 3 e^-3).
        let right =
            (0..8).flat_map(|row| (0..4).map(move |c| if row / 2 == c { 3.0f32 } else { 0.0 }));
        let right = Tensor::from_vec(right.collect::<Vec<_>>(), (8, 4), &Device::Cpu).unwrap();
        assert!((value(&right) - (1.0 + 3.0 * (-3f32).exp()).ln()).abs() < 1e-6);
        assert!(turn_entropy(&even.narrow(0, 0, 6).unwrap()).is_err());
    }
}
