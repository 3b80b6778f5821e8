//! VICReg (Bardes, Ponce and LeCun, arXiv 2105.04906, section 4.1, equations 1 to 6): views of an
//! image agree, each coordinate keeps its variance, coordinates don't repeat each other.
//!
//! With Z, Z' the `[N, P]` projections of both views, z_j a column of one, and var and cov over the
//! batch with N - 1:
//!
//! ```text
//! s(Z, Z') = mean over images and coordinates of (z - z')^2
//! v(Z)     = 1/P sum_j max(0, 1 - sqrt(var(z_j) + 1e-4))
//! c(Z)     = 1/P sum_{i != j} cov(Z)_ij^2
//! loss     = invariance s(Z, Z') + variance (v(Z) + v(Z')) / 2 + covariance (c(Z) + c(Z'))
//! ```
//!
//! Differs from the paper: s is a mean over coordinates too, and v a mean over the views, as in the
//! authors' published code, which the coefficients 25, 25 and 1 belong to; the expander is 512 wide
//! rather than 8192; the coefficients are 8, 64 and .32. Of N images fewer than P, the covariances
//! cannot all be 0: c is at least about P / N - 1 where the variances are 1, and less only where they
//! are. It pulls lengths down as s does, and at 25, 25 and 1 the variances lose: in three minutes of
//! batches of 64 kNN stayed below raw pixels' (docs/LEARNING.md, "sweep vicreg").

use super::parts::head::{self, Ending, Head};
use super::parts::rows::per_view;
use super::{Batch, Objective, Views};
use crate::encoder::Params;
use crate::setting::{Invalid, within};
use candle_core::{D, DType, Device, Result, Tensor};
use serde::{Deserialize, Serialize};

/// Keeps the slope of a standard deviation finite; the paper's.
const EPSILON: f64 = 1e-4;

/// `[objective]` with `kind = "vicreg"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Weight of the views' agreement, lambda.
    pub invariance: f64,
    /// Weight of the variances, mu.
    pub variance: f64,
    /// Weight of the covariances, nu.
    pub covariance: f64,
    /// The projection head, which the paper calls expander.
    pub head: head::Config,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            invariance: 8.0,
            variance: 64.0,
            covariance: 0.32,
            head: head::Config { layers: 3, output: 512, ..head::Config::default() },
        }
    }
}

impl Config {
    /// Checks every value.
    ///
    /// # Errors
    /// The first value that is not allowed, by key.
    pub fn validate(&self) -> std::result::Result<(), Invalid> {
        for (key, weight) in [
            ("objective.invariance", self.invariance),
            ("objective.variance", self.variance),
            ("objective.covariance", self.covariance),
        ] {
            within(key, weight, 0.0..=1000.0, "from 0 to 1000")?;
        }
        self.head.validate("objective.head")
    }
}

/// The objective: a head and the three terms over its projections.
pub(super) struct Vicreg {
    weights: [f64; 3],
    head: Head,
    heads: Params,
}

impl Vicreg {
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
        // No term sees where the batch's mean is: a bias would get no gradient.
        let head = Head::add(&mut specs, "projection", &config.head, feature_dim, Ending::Plain);
        let heads = head::init(&specs, seed, device)?;
        Ok(Self { weights: [config.invariance, config.variance, config.covariance], head, heads })
    }
}

impl Objective for Vicreg {
    fn views(&self) -> Vec<Views> {
        vec![Views::alike(2)]
    }

    fn loss(&self, batch: &Batch<'_>) -> Result<Tensor> {
        let projections = self.head.apply(&self.heads, batch.only_features()?)?; // [2N, P]
        let views = per_view(&projections, 2)?; // [N, P] each
        vicreg(&views[0], &views[1], self.weights)
    }

    fn heads(&self) -> &Params {
        &self.heads
    }

    fn heads_mut(&mut self) -> &mut Params {
        &mut self.heads
    }
}

/// The weighted sum of the three terms for views `a` and `b`, both `[N, P]`, rows i of one image.
///
/// # Errors
/// Shapes that differ, or fewer than 2 images.
fn vicreg(a: &Tensor, b: &Tensor, [invariance, variance, covariance]: [f64; 3]) -> Result<Tensor> {
    let agreement = ((a - b)?.sqr()?.mean_all()? * invariance)?;
    let (a, b) = (spread(a)?, spread(b)?);
    let hinge = ((a.hinge + b.hinge)? * (variance / 2.0))?;
    agreement + hinge + ((a.redundancy + b.redundancy)? * covariance)?
}

/// What one view adds.
struct Spread {
    /// v(Z), a scalar.
    hinge: Tensor,
    /// c(Z), a scalar.
    redundancy: Tensor,
}

/// v and c of `rows [N, P]`.
fn spread(rows: &Tensor) -> Result<Spread> {
    let (n_images, width) = rows.dims2()?;
    if n_images < 2 {
        candle_core::bail!("variances need at least 2 images, not {n_images}")
    }
    let centred = rows.broadcast_sub(&rows.mean_keepdim(0)?)?; // [N, P]
    let covariance = (centred.t()?.matmul(&centred)? / (n_images - 1) as f64)?; // [P, P]
    let diagonal = Tensor::eye(width, DType::F32, rows.device())?; // [P, P]
    let variance = covariance.mul(&diagonal)?.sum(D::Minus1)?; // [P]
    let deviation = (variance + EPSILON)?.sqrt()?;
    let hinge = (1.0 - deviation)?.relu()?.mean_all()?;
    let off_diagonal = covariance.mul(&(1.0 - diagonal)?)?;
    let redundancy = (off_diagonal.sqr()?.sum_all()? / width as f64)?;
    Ok(Spread { hinge, redundancy })
}

#[cfg(test)]
mod tests {
    use super::super::golden;
    use super::*;

    #[test]
    fn golden_values_and_slopes() {
        golden::check("vicreg", |x, a| {
            vicreg(&x[0], &x[1], [a["invariance"], a["variance"], a["covariance"]])
        });
    }

    #[test]
    fn closed_forms() {
        let value = |a: &[[f32; 2]; 2], b: &[[f32; 2]; 2], weights| {
            let [a, b] = [a, b].map(|rows| Tensor::new(rows, &Device::Cpu).unwrap());
            vicreg(&a, &b, weights).unwrap().to_scalar::<f32>().unwrap()
        };
        let (point, spread) = ([[3.0, 3.0]; 2], [[1.0, 2.0], [-1.0, -2.0]]);
        // Off by 1 in each coordinate: 1. A point has no variance: 1 - sqrt(1e-4) = .99.
        assert!((value(&point, &[[2.0, 4.0]; 2], [1.0, 0.0, 0.0]) - 1.0).abs() < 1e-6);
        assert!((value(&point, &point, [0.0, 1.0, 0.0]) - 0.99).abs() < 1e-6);
        // Variances 2 and 8 are above 1; the covariance is 4, twice: (16 + 16) / 2 a view.
        assert!(value(&spread, &spread, [0.0, 1.0, 0.0]).abs() < 1e-6);
        assert!((value(&spread, &spread, [0.0, 0.0, 1.0]) - 32.0).abs() < 1e-4);
    }

    #[test]
    fn a_single_image_is_refused() {
        let row = Tensor::new(&[[1.0f32, 2.0]], &Device::Cpu).unwrap();
        let error = vicreg(&row, &row, [1.0; 3]).unwrap_err().to_string();
        assert!(error.contains("at least 2 images"), "{error}");
    }
}
