//! SimCLR (Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations",
//! arXiv 2002.05709, section 2.1, equation 1): NT-Xent.
//!
//! With z the `2N` projections, of unit length, tau the temperature and p(i) the other view of i's
//! image:
//!
//! ```text
//! loss = 1/2N sum_i [ -z_i . z_p(i) / tau + log sum_{k != i} exp(z_i . z_k / tau) ]
//! ```
//!
//! Differs from the paper: nothing in the loss. The batch is smaller than the paper's 4096, so the
//! default temperature is 0.2 rather than 0.1 or 0.5 (a choice of the PyTorch run that we compare
//! with; MoCo v2 uses 0.2 as well).

use super::parts::head::{self, ProjectionHead};
use super::{Batch, Objective, ViewGroup};
use crate::encoder::Params;
use crate::setting::{Invalid, within};
use candle_core::{D, Device, Result, Tensor};
use candle_nn::ops::log_softmax;
use serde::{Deserialize, Serialize};

/// `[objective]` with `kind = "simclr"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Divides the similarities; smaller looks harder at near neighbours.
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
        self.head.validate()
    }
}

/// The objective: a head and NT-Xent over its projections.
pub(super) struct Simclr {
    temperature: f64,
    head: ProjectionHead,
}

impl Simclr {
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
        let head = ProjectionHead::new(&config.head, feature_dim, seed, device)?;
        Ok(Self { temperature: config.temperature, head })
    }
}

impl Objective for Simclr {
    fn view_groups(&self) -> Vec<ViewGroup> {
        vec![ViewGroup { views_per_image: 2 }]
    }

    fn loss(&self, batch: &Batch<'_>) -> Result<Tensor> {
        let [features] = batch.features else {
            candle_core::bail!("simclr wants 1 group of views, got {}", batch.features.len())
        };
        nt_xent(&self.head.project(features)?, self.temperature)
    }

    fn heads(&self) -> &Params {
        self.head.params()
    }

    fn heads_mut(&mut self) -> &mut Params {
        self.head.params_mut()
    }
}

/// NT-Xent of `projections` `[2N, P]`, whose rows `i` and `i + N` are views of one image.
///
/// # Errors
/// An odd number of rows.
pub(super) fn nt_xent(projections: &Tensor, temperature: f64) -> Result<Tensor> {
    let (rows, _) = projections.dims2()?;
    if rows % 2 != 0 {
        candle_core::bail!("nt_xent wants two views of each image, got {rows} rows")
    }
    let device = projections.device();
    let unit = normalise(projections)?; // [2N, P]
    let similarity = (unit.matmul(&unit.t()?.contiguous()?)? / temperature)?; // [2N, 2N]
    // A view is no negative of itself. The mask is finite, as infinity times zero is no number.
    let itself = (Tensor::eye(rows, candle_core::DType::F32, device)? * -1e9)?;
    let log_probability = log_softmax(&(similarity + itself)?, D::Minus1)?; // [2N, 2N]
    let partners: Vec<u32> = (0..rows).map(|i| ((i + rows / 2) % rows) as u32).collect();
    let partners = Tensor::from_vec(partners, (rows, 1), device)?;
    log_probability.gather(&partners, 1)?.mean_all()?.neg()
}

/// Rows of unit length; a zero row stays zero.
fn normalise(rows: &Tensor) -> Result<Tensor> {
    let norm = (rows.sqr()?.sum_keepdim(D::Minus1)? + 1e-12)?.sqrt()?;
    rows.broadcast_div(&norm)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Var;

    /// Equation 1 as plain loops in f64.
    fn oracle(rows: &[Vec<f64>], temperature: f64) -> f64 {
        let unit: Vec<Vec<f64>> = rows
            .iter()
            .map(|row| {
                let norm = row.iter().map(|v| v * v).sum::<f64>().sqrt();
                row.iter().map(|v| v / norm).collect()
            })
            .collect();
        let similarity = |i: usize, k: usize| -> f64 {
            unit[i].iter().zip(&unit[k]).map(|(a, b)| a * b).sum::<f64>() / temperature
        };
        let n = rows.len();
        let mut sum = 0.0;
        for i in 0..n {
            let all: f64 = (0..n).filter(|&k| k != i).map(|k| similarity(i, k).exp()).sum();
            sum += all.ln() - similarity(i, (i + n / 2) % n);
        }
        sum / n as f64
    }

    fn random_rows(n: usize, p: usize) -> Vec<Vec<f64>> {
        use rand::RngExt;
        let mut rng = crate::seed::rng(3, crate::seed::Purpose::Evaluate, &[n as u64]);
        (0..n).map(|_| (0..p).map(|_| rng.random::<f64>() * 2.0 - 1.0).collect()).collect()
    }

    fn tensor(rows: &[Vec<f64>]) -> Tensor {
        let values = rows.iter().flatten().map(|&v| v as f32).collect();
        Tensor::from_vec(values, (rows.len(), rows[0].len()), &Device::Cpu).unwrap()
    }

    #[test]
    fn nt_xent_equals_its_loops() {
        for (n, p, temperature) in [(4, 3, 0.5), (16, 8, 0.2), (64, 32, 0.1)] {
            let rows = random_rows(n, p);
            let loss = nt_xent(&tensor(&rows), temperature).unwrap().to_scalar::<f32>().unwrap();
            assert!((f64::from(loss) - oracle(&rows, temperature)).abs() < 1e-4, "n {n}");
        }
    }

    #[test]
    fn nt_xent_has_its_closed_forms() {
        // All projections equal: every one of the 2N - 1 others is as likely.
        let same = vec![vec![1.0, 2.0]; 8];
        let loss = nt_xent(&tensor(&same), 0.2).unwrap().to_scalar::<f32>().unwrap();
        assert!((loss - 7f32.ln()).abs() < 1e-5);
        // Two orthogonal pairs: log(e^{1/t} + 2) - 1/t.
        let pairs = [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]].map(|r| r.to_vec());
        let loss = nt_xent(&tensor(&pairs), 0.5).unwrap().to_scalar::<f32>().unwrap();
        assert!((f64::from(loss) - ((2f64.exp() + 2.0).ln() - 2.0)).abs() < 1e-5);
    }

    #[test]
    fn gradient_equals_finite_differences_of_the_loops() {
        let rows = random_rows(8, 5);
        let projections = Var::from_tensor(&tensor(&rows)).unwrap();
        let gradients = nt_xent(&projections, 0.2).unwrap().backward().unwrap();
        let gradient = gradients.get(&projections).unwrap().to_vec2::<f32>().unwrap();
        for (i, j) in [(0, 0), (3, 2), (7, 4)] {
            let moved = |by: f64| {
                let mut rows = rows.clone();
                rows[i][j] += by;
                oracle(&rows, 0.2)
            };
            let slope = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            assert!((f64::from(gradient[i][j]) - slope).abs() < 1e-4, "{i} {j}");
        }
    }

    #[test]
    fn an_odd_number_of_rows_is_refused() {
        let error = nt_xent(&tensor(&random_rows(3, 2)), 0.2).unwrap_err();
        assert!(error.to_string().contains("3 rows"), "{error}");
    }
}
