//! Pairwise sigmoid loss (Zhai et al., "Sigmoid Loss for Language Image Pre-Training", arXiv
//! 2303.15343, section 3.2, between views rather than images and texts): each pair of views is
//! classified by itself, as two views of one image or not.
//!
//! With d the distance of two of the `2N` projections of unit length, tau the temperature, b a
//! learned bias, and s = +1 for two views of one image, -1 otherwise:
//!
//! ```text
//! loss = 1/2N sum_i sum_{j != i} -log sigmoid(s_ij (b - d_ij^2 / tau))
//! ```
//!
//! As d^2 = 2 - 2 cos, this is the paper's form in the cosine, with temperature tau / 2 and bias
//! b - 2 / tau. At the defaults tau = 0.2, b = 0 it begins where the paper does (10 cos - 10): most
//! pairs are of different images, and the bias says so from the first step on.
//!
//! The sign is what it learns by. Tutorials have it without, as -log sigmoid(d^2) or so of every
//! pair: then each pair asks for the same thing, to lie further apart. Two views of one image repel
//! each other like any two, nothing says which differences between views don't matter, and an
//! encoder that scatters its inputs as a hash does has the least loss of all. With the opposite
//! sign for all pairs one point has. It takes both, and the pairs' labels between them.
//!
//! Differs from the paper: two views of each image take the place of image and text, so that each
//! row has one positive and 2N - 2 negatives; the temperature is fixed, the bias learned.

use super::parts::head::{self, Ending, Head};
use super::parts::negatives::NegativeWeights;
use super::parts::rows::normalise;
use super::{Batch, Objective, Views};
use crate::encoder::{Init, Params};
use crate::setting::{Invalid, within};
use candle_core::{D, Device, Result, Tensor};
use candle_nn::ops::log_softmax;
use serde::{Deserialize, Serialize};

/// `[objective]` with `kind = "sigmoid"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Divides the squared distances.
    pub temperature: f64,
    /// The projection head.
    pub head: head::Config,
}

impl Default for Config {
    fn default() -> Self {
        Self { temperature: 0.2, head: head::Config::default() }
    }
}

impl Config {
    /// Checks every value.
    ///
    /// # Errors
    /// The first value that is not allowed, by key.
    pub fn validate(&self) -> std::result::Result<(), Invalid> {
        within("objective.temperature", self.temperature, 0.01..=10.0, "from 0.01 to 10")?;
        self.head.validate("objective.head")
    }
}

/// The objective: a head and the bias.
pub(super) struct Sigmoid {
    temperature: f64,
    head: Head,
    heads: Params,
}

impl Sigmoid {
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
        specs.push(head::vector("pair.bias".to_owned(), 1, Init::Zeros));
        let heads = head::init(&specs, seed, device)?;
        Ok(Self { temperature: config.temperature, head, heads })
    }
}

impl Objective for Sigmoid {
    fn views(&self) -> Vec<Views> {
        vec![Views::alike(2)]
    }

    fn loss(&self, batch: &Batch<'_>) -> Result<Tensor> {
        let projections = self.head.apply(&self.heads, batch.only_features()?)?; // [2N, P]
        let bias = &self.heads.weights[self.head.end()];
        pairwise([&projections, bias], self.temperature, batch.negatives)
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
}

/// The loss of `projections [2N, P]`, whose rows `i` and `i + N` are views of one image, with
/// `bias [1]`.
///
/// # Errors
/// An odd number of rows.
fn pairwise(
    [projections, bias]: [&Tensor; 2],
    temperature: f64,
    negatives: Option<&NegativeWeights>,
) -> Result<Tensor> {
    let (rows, _) = projections.dims2()?;
    if rows % 2 != 0 {
        candle_core::bail!("pairwise wants two views of each image, got {rows} rows")
    }
    let unit = normalise(projections)?; // [2N, P]
    let squared = (2.0 - (unit.matmul(&unit.t()?)? * 2.0)?)?; // [2N, 2N]
    let logits = (squared / -temperature)?.broadcast_add(bias)?; // [2N, 2N]
    let sign = |i: usize, j: usize| match (i + rows - j) % rows {
        0 => 0.0,
        apart if apart == rows / 2 => 1.0,
        _ => -1.0f32,
    };
    let signs = (0..rows).flat_map(|i| (0..rows).map(move |j| sign(i, j))).collect();
    let signs = Tensor::from_vec(signs, (rows, rows), projections.device())?;
    let signed = logits.mul(&signs)?;
    // log sigmoid(x) is log softmax of x against 0, which is stable and smooth everywhere.
    let against = Tensor::stack(&[&signed, &signed.zeros_like()?], 2)?; // [2N, 2N, 2]
    let log_sigmoid = log_softmax(&against, D::Minus1)?.narrow(2, 0, 1)?.squeeze(2)?;
    // A view makes no pair with itself.
    let mut counts = signs.abs()?;
    if let Some(negatives) = negatives {
        counts = counts.mul(&negatives.factors([rows, rows], projections.device())?)?;
    }
    log_sigmoid.mul(&counts)?.sum_all()? / -(rows as f64)
}

#[cfg(test)]
mod tests {
    use super::super::golden;
    use super::*;

    #[test]
    fn golden_values_and_slopes() {
        golden::check("sigmoid", |x, a| pairwise([&x[0], &x[1]], a["temperature"], None));
    }

    fn value(rows: [[f32; 2]; 4], bias: f32, temperature: f64) -> f64 {
        let rows = Tensor::new(&rows, &Device::Cpu).unwrap();
        let bias = Tensor::new(&[bias], &Device::Cpu).unwrap();
        let loss = pairwise([&rows, &bias], temperature, None).unwrap();
        f64::from(loss.to_scalar::<f32>().unwrap())
    }

    #[test]
    fn closed_forms() {
        let log_sigmoid = |x: f64| -(1.0 + (-x).exp()).ln();
        // Positives at distance 0, negatives at squared distance 2: each row has one and two.
        let pairs = [[1.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 2.0]];
        let expected = -log_sigmoid(0.5) - 2.0 * log_sigmoid(2.0 / 0.4 - 0.5);
        assert!((value(pairs, 0.5, 0.4) - expected).abs() < 1e-5);
        // One point: every pair at distance 0 and bias 0 is even, log 2 each.
        assert!((value([[1.0, 2.0]; 4], 0.0, 0.2) - 3.0 * 2f64.ln()).abs() < 1e-5);
        // Far out it is linear and finite.
        let apart = [[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]];
        let expected = 4.0 / 0.01 + 2f64.ln() + 0.0;
        assert!((value(apart, 0.0, 0.01) / expected - 1.0).abs() < 1e-5);
    }

    /// The sum over pairs as loops, a pair of two images that are alike at its weight.
    #[test]
    fn weights_of_negatives_are_those_of_the_loops() {
        let values =
            [[1.0_f32, 0.5], [0.2, -1.0], [0.9, 0.8], [1.1, 0.3], [0.1, -0.7], [-1.0, 0.2]];
        let rows = Tensor::new(&values, &Device::Cpu).unwrap();
        let bias = Tensor::new(&[0.3_f32], &Device::Cpu).unwrap();
        let unit = values.map(|[x, y]| {
            let norm = f64::from(x).hypot(f64::from(y));
            [f64::from(x) / norm, f64::from(y) / norm]
        });
        for weight in [0.0, 0.3] {
            let negatives = NegativeWeights::new(&[0x0f, 0xf0, 0x0f], 0, weight as f32);
            let mut expected = 0.0;
            for i in 0..6 {
                for j in (0..6).filter(|j| *j != i) {
                    let squared =
                        (unit[i][0] - unit[j][0]).powi(2) + (unit[i][1] - unit[j][1]).powi(2);
                    let is_same = i % 3 == j % 3;
                    let sign = if is_same { 1.0 } else { -1.0 };
                    let logit: f64 = sign * (0.3 - squared / 0.4);
                    let is_alike = !is_same && i % 3 + j % 3 == 2;
                    let factor = if is_alike { weight } else { 1.0 };
                    expected += factor * (1.0 + (-logit).exp()).ln() / 6.0;
                }
            }
            let found = pairwise([&rows, &bias], 0.4, Some(&negatives)).unwrap();
            let found = f64::from(found.to_scalar::<f32>().unwrap());
            assert!((found - expected).abs() < 1e-5, "{weight}: {found}, {expected}");
        }
    }
}
