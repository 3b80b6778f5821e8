//! EMP-SSL (Tong et al., "EMP-SSL: Towards Self-Supervised Learning in One Training Epoch", arXiv
//! 2304.03977, section 2.2, equations 1 to 3): many small crops of few images; crops of an image
//! agree with their mean, and the crops of different images fill as many dimensions as they can.
//!
//! With Z_v the `[P, N]` unit projections of all images' v-th crops, of V, and z̄ an image's mean:
//!
//! ```text
//! R(Z) = 1/2 log det(I + P / (N epsilon^2) Z Z^T)                  total coding rate
//! D    = mean over crops and images of cos(z_v, z̄)
//! loss = -D - 1/lambda mean over v of R(Z_v)
//! ```
//!
//! `det(I + c Z Z^T) = det(I + c Z^T Z)`, so the smaller of both matrices is taken.
//!
//! Differs from the paper: the whole is divided by lambda and multiplied by [`SLOPE`], so that it can
//! share the learning rate of the other losses (the paper's optimiser, LARS, does not see the scale); 4
//! crops of a fifth of the image to all of it rather than 20 to 200 of a quarter, which is what a few
//! cores can learn from in minutes (docs/LEARNING.md); heads are smaller. `epsilon_squared` is the
//! published code's .2. Lambda is 60 and not 200: R of N images is N/2 log(1 + P / (N epsilon^2)) at
//! most, for N < P, which is 77 for batches of 64 and projections of 128.

use super::parts::head::{self, Ending, Head};
use super::parts::log_det::log_det;
use super::parts::rows::{normalise, per_view};
use super::{Batch, Objective, SeenBy, Views};
use crate::augment::{Side, ViewGroup};
use crate::encoder::Params;
use crate::setting::{Invalid, ordered_pair, within};
use candle_core::{D, DType, Device, Result, Tensor};
use serde::{Deserialize, Serialize};

/// How steep the loss is. In 3 minutes of CIFAR-10 on 2 cores (November 2026) at rates of .006 and .06 without
/// it, with 8 crops of a quarter and a lambda of 200, kNN came to .27 and .30, an untrained encoder's; at .5, and
/// the crops below, to .44.
const SLOPE: f64 = 8.0;

/// `[objective]` with `kind = "emp"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Crops of each image, `V`.
    pub crops: usize,
    /// Side of a crop; unset, that of other views.
    pub crop_side_px: Option<usize>,
    /// Least and largest share of the area that a crop shows.
    pub crop_area: [f32; 2],
    /// Weight of the agreement against the coding rate, lambda.
    pub invariance: f64,
    /// The square of the coding precision.
    pub epsilon_squared: f64,
    /// The projection head.
    pub head: head::Config,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            crops: 4,
            crop_side_px: None,
            crop_area: [0.2, 1.0],
            invariance: 60.0,
            epsilon_squared: 0.2,
            head: head::Config::default(),
        }
    }
}

impl Config {
    /// Checks every value.
    ///
    /// # Errors
    /// The first value that is not allowed, by key.
    pub fn validate(&self) -> std::result::Result<(), Invalid> {
        within("objective.crops", self.crops, 2..=256, "from 2 to 256")?;
        if let Some(side_px) = self.crop_side_px {
            within("objective.crop_side_px", side_px, 8..=1024, "from 8 to 1024")?;
        }
        let area = "two shares of the area above 0 and up to 1, the smaller one first";
        ordered_pair("objective.crop_area", self.crop_area, 0.001..=1.0, area)?;
        within("objective.invariance", self.invariance, 0.01..=1e6, "from 0.01 to 1000000")?;
        let key = "objective.epsilon_squared";
        within(key, self.epsilon_squared, 1e-4..=100.0, "from 0.0001 to 100")?;
        self.head.validate("objective.head")
    }

    /// Side of a crop, beside views of the usual one.
    pub fn crop_side(&self) -> Side {
        self.crop_side_px.map_or(Side::Usual, Side::Px)
    }
}

/// The objective: a head and both terms over its projections.
pub(super) struct Emp {
    config: Config,
    head: Head,
    heads: Params,
}

impl Emp {
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
        Ok(Self { config: config.clone(), head, heads })
    }
}

impl Objective for Emp {
    fn views(&self) -> Vec<Views> {
        let Config { crops, crop_area, .. } = self.config;
        let side = self.config.crop_side();
        let group = ViewGroup { side, crop_area: Some(crop_area), ..ViewGroup::alike(crops) };
        vec![Views { group, seen_by: SeenBy::Encoder }]
    }

    fn loss(&self, batch: &Batch<'_>) -> Result<Tensor> {
        let projections = self.head.apply(&self.heads, batch.only_features()?)?; // [V * N, P]
        let Config { crops, invariance, epsilon_squared, .. } = self.config;
        emp(&projections, crops, [invariance, epsilon_squared])? * SLOPE
    }

    fn heads(&self) -> &Params {
        &self.heads
    }

    fn heads_mut(&mut self) -> &mut Params {
        &mut self.heads
    }
}

/// The loss of `projections [V * N, P]`: all images' first crops, then all second ones, and so on.
///
/// # Errors
/// A number of rows that `crops` don't divide.
fn emp(
    projections: &Tensor,
    crops: usize,
    [invariance, epsilon_squared]: [f64; 2],
) -> Result<Tensor> {
    let unit = normalise(projections)?; // [V * N, P]
    let views = per_view(&unit, crops)?; // V of [N, P]
    let stacked = Tensor::stack(&views, 0)?; // [V, N, P]
    let mean = normalise(&stacked.mean(0)?)?; // [N, P]
    let agreement = stacked.broadcast_mul(&mean)?.sum(D::Minus1)?.mean_all()?;
    let rates = views.iter().map(|view| coding_rate(view, epsilon_squared));
    let rates = Tensor::stack(&rates.collect::<Result<Vec<_>>>()?, 0)?; // [V]
    (agreement + (rates.mean_all()? / invariance)?)?.neg()
}

/// R of `unit [N, P]`, which is Z^T.
///
/// # Errors
/// Numbers that are not finite.
fn coding_rate(unit: &Tensor, epsilon_squared: f64) -> Result<Tensor> {
    let (n_images, width) = unit.dims2()?;
    let scale = width as f64 / (n_images as f64 * epsilon_squared);
    let products = if n_images < width {
        unit.matmul(&unit.t()?)? // [N, N]
    } else {
        unit.t()?.matmul(unit)? // [P, P]
    };
    let identity = Tensor::eye(n_images.min(width), DType::F32, unit.device())?;
    log_det(&(identity + (products * scale)?)?)? / 2.0
}

#[cfg(test)]
mod tests {
    use super::super::golden;
    use super::*;

    #[test]
    fn golden_values_and_slopes() {
        golden::check("emp", |x, a| {
            emp(&x[0], a["crops"] as usize, [a["invariance"], a["epsilon_squared"]])
        });
    }

    fn rate(rows: &Tensor) -> f32 {
        coding_rate(rows, 0.5).unwrap().to_scalar::<f32>().unwrap()
    }

    #[test]
    fn closed_forms_of_the_coding_rate() {
        // P orthogonal directions of P: each eigenvalue is 1 + 1 / epsilon^2.
        let axes = Tensor::eye(4, DType::F32, &Device::Cpu).unwrap();
        assert!((rate(&axes) - 2.0 * 3f32.ln()).abs() < 1e-5);
        // One direction of 4: one eigenvalue, 1 + 4 / epsilon^2. Rank 1 is the least there is.
        let one = axes.narrow(0, 0, 1).unwrap().repeat((4, 1)).unwrap();
        assert!((rate(&one) - 0.5 * 9f32.ln()).abs() < 1e-5);
        assert!(rate(&one) < rate(&axes));
    }

    #[test]
    fn the_smaller_matrix_has_the_same_determinant() {
        let values: Vec<f32> = (0..40).map(|i| ((i * 7919) % 101) as f32 / 50.0 - 1.0).collect();
        let rows = normalise(&Tensor::from_vec(values, (5, 8), &Device::Cpu).unwrap()).unwrap();
        let scale = 8.0 / (5.0 * 0.5);
        let wide = (rows.t().unwrap().matmul(&rows).unwrap() * scale).unwrap(); // [P, P]
        let identity = Tensor::eye(8, DType::F32, &Device::Cpu).unwrap();
        let whole = (log_det(&(identity + wide).unwrap()).unwrap() / 2.0).unwrap();
        assert!((rate(&rows) - whole.to_scalar::<f32>().unwrap()).abs() < 1e-5);
    }

    #[test]
    fn crops_that_agree_have_all_of_the_agreement() {
        let axes = Tensor::eye(3, DType::F32, &Device::Cpu).unwrap();
        let twice = Tensor::cat(&[&axes, &axes], 0).unwrap();
        let value = emp(&twice, 2, [10.0, 0.5]).unwrap().to_scalar::<f32>().unwrap();
        assert!((value - (-1.0 - 0.1 * 1.5 * 3f32.ln())).abs() < 1e-5);
    }
}
