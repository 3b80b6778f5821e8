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
//! With `small_views` (multi-crop) each of them looks for each large view of its image among the
//! large views of all others, and the loss is the mean over all views.
//!
//! Near-duplicates of an image weigh less among its negatives where `learner.near_duplicates` says so.
//!
//! Differs from the paper: nothing in the loss of two views. The batch is smaller than the paper's
//! 4096, so the default temperature is 0.2 rather than 0.1 or 0.5 (a choice of the PyTorch run that
//! we compare with; MoCo v2 uses 0.2 as well).

use super::parts::head::{self, Ending, Head};
use super::parts::negatives::{NegativeWeights, weighted};
use super::parts::rows::{EXCLUDED, cross_entropy, normalise, off_diagonal};
use super::parts::small_views;
use super::{Batch, Objective, SeenBy, Views};
use crate::encoder::Params;
use crate::setting::{Invalid, within};
use candle_core::{Device, Result, Tensor};
use serde::{Deserialize, Serialize};

/// `[objective]` with `kind = "simclr"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Divides the similarities; smaller looks harder at near neighbours.
    pub temperature: f64,
    /// Further views that are small.
    pub small_views: small_views::Config,
    /// The projection head.
    pub head: head::Config,
}

impl Default for Config {
    fn default() -> Self {
        let small_views = small_views::Config::default();
        Self { temperature: 0.2, small_views, head: head::Config::default() }
    }
}

impl Config {
    /// Checks every value.
    ///
    /// # Errors
    /// The first value that is not allowed, by key.
    pub fn validate(&self) -> std::result::Result<(), Invalid> {
        within("objective.temperature", self.temperature, 0.01..=10.0, "from 0.01 to 10")?;
        self.small_views.validate()?;
        self.head.validate("objective.head")
    }
}

/// The objective: a head and NT-Xent over its projections.
pub(super) struct Simclr {
    temperature: f64,
    small_views: small_views::Config,
    head: Head,
    heads: Params,
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
        let mut specs = vec![];
        let head = Head::add(&mut specs, "projection", &config.head, feature_dim, Ending::Bias);
        let heads = head::init(&specs, seed, device)?;
        let Config { temperature, small_views, .. } = config.clone();
        Ok(Self { temperature, small_views, head, heads })
    }
}

impl Objective for Simclr {
    fn views(&self) -> Vec<Views> {
        self.small_views.beside_large(SeenBy::Encoder)
    }

    fn loss(&self, batch: &Batch<'_>) -> Result<Tensor> {
        let projections = self.head.apply(&self.heads, &batch.all_features()?)?; // [V * N, P]
        let n_large = 2 * batch.n_images;
        let large = projections.narrow(0, 0, n_large)?; // [2N, P]
        let (temperature, negatives) = (self.temperature, batch.negatives);
        let loss = nt_xent(&large, temperature, negatives)?;
        let n_small = projections.dim(0)? - n_large;
        if n_small == 0 {
            return Ok(loss);
        }
        let small = projections.narrow(0, n_large, n_small)?; // [K * N, P]
        let of_small = small_xent([&small, &large], temperature, negatives)?;
        ((loss * n_large as f64)? + (of_small * n_small as f64)?)? / (n_large + n_small) as f64
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

/// NT-Xent of `projections` `[2N, P]`, whose rows `i` and `i + N` are views of one image.
///
/// # Errors
/// An odd number of rows.
fn nt_xent(
    projections: &Tensor,
    temperature: f64,
    negatives: Option<&NegativeWeights>,
) -> Result<Tensor> {
    let (rows, _) = projections.dims2()?;
    if rows % 2 != 0 {
        candle_core::bail!("nt_xent wants two views of each image, got {rows} rows")
    }
    let unit = normalise(projections)?; // [2N, P]
    let similarity = (unit.matmul(&unit.t()?)? / temperature)?; // [2N, 2N]
    let similarity = weighted(similarity, negatives)?;
    // A view is no negative of itself.
    let similarity = (similarity + off_diagonal(rows, projections.device())?)?;
    cross_entropy(&similarity, (0..rows).map(|i| ((i + rows / 2) % rows) as u32).collect())
}

/// The mean over `small [K * N, P]` of how well each finds each large view of its image among the
/// other images' and that one, `large [2N, P]`.
///
/// # Errors
/// A number of small views that is no multiple of N.
fn small_xent(
    [small, large]: [&Tensor; 2],
    temperature: f64,
    negatives: Option<&NegativeWeights>,
) -> Result<Tensor> {
    let (n_small, n_large) = (small.dim(0)?, large.dim(0)?);
    let n_images = n_large / 2;
    if n_images == 0 || n_large % 2 != 0 || n_small % n_images != 0 {
        candle_core::bail!("{n_small} small views don't belong to {n_large} large ones")
    }
    let similarity = normalise(small)?.matmul(&normalise(large)?.t()?)?; // [K * N, 2N]
    let similarity = weighted((similarity / temperature)?, negatives)?;
    let own = |row: usize, view: usize| row % n_images + view * n_images;
    let one_of_both = |view: usize| {
        // The other large view of its image is neither the answer nor a negative.
        let mask = (0..n_small).flat_map(|row| {
            let other = own(row, 1 - view);
            (0..n_large).map(move |column| if column == other { EXCLUDED as f32 } else { 0.0 })
        });
        let mask = Tensor::from_vec(mask.collect::<Vec<_>>(), (n_small, n_large), small.device())?;
        let answers = (0..n_small).map(|row| own(row, view) as u32).collect();
        cross_entropy(&(&similarity + mask)?, answers)
    };
    (one_of_both(0)? + one_of_both(1)?)? / 2.0
}

#[cfg(test)]
mod tests {
    use super::super::golden;
    use super::super::loops::{cosine, tensor};
    use super::*;
    use candle_core::Var;

    #[test]
    fn golden_values_and_slopes() {
        golden::check("simclr", |x, a| nt_xent(&x[0], a["temperature"], None));
        golden::check("simclr-small", |x, a| small_xent([&x[0], &x[1]], a["temperature"], None));
    }

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

    #[test]
    fn nt_xent_equals_its_loops() {
        for (n, p, temperature) in [(4, 3, 0.5), (16, 8, 0.2), (64, 32, 0.1)] {
            let rows = random_rows(n, p);
            let loss =
                nt_xent(&tensor(&rows), temperature, None).unwrap().to_scalar::<f32>().unwrap();
            assert!((f64::from(loss) - oracle(&rows, temperature)).abs() < 1e-4, "n {n}");
        }
    }

    #[test]
    fn nt_xent_has_its_closed_forms() {
        // All projections equal: every one of the 2N - 1 others is as likely.
        let same = vec![vec![1.0, 2.0]; 8];
        let loss = nt_xent(&tensor(&same), 0.2, None).unwrap().to_scalar::<f32>().unwrap();
        assert!((loss - 7f32.ln()).abs() < 1e-5);
        // Two orthogonal pairs: log(e^{1/t} + 2) - 1/t.
        let pairs = [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]].map(|r| r.to_vec());
        let loss = nt_xent(&tensor(&pairs), 0.5, None).unwrap().to_scalar::<f32>().unwrap();
        assert!((f64::from(loss) - ((2f64.exp() + 2.0).ln() - 2.0)).abs() < 1e-5);
    }

    #[test]
    fn gradient_equals_finite_differences_of_the_loops() {
        let rows = random_rows(8, 5);
        let projections = Var::from_tensor(&tensor(&rows)).unwrap();
        let gradients = nt_xent(&projections, 0.2, None).unwrap().backward().unwrap();
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
        let error = nt_xent(&tensor(&random_rows(3, 2)), 0.2, None).unwrap_err();
        assert!(error.to_string().contains("3 rows"), "{error}");
    }

    /// Every other image is one of three scenes; images of a scene weigh `weight` for each other.
    fn weight_of(i: usize, j: usize, n_images: usize, weight: f64) -> f64 {
        let (i, j) = (i % n_images, j % n_images);
        if i != j && i % 3 == j % 3 { weight } else { 1.0 }
    }

    #[test]
    fn weights_of_negatives_are_those_of_the_loops() {
        let n_images = 6;
        let (rows, small) = (random_rows(2 * n_images, 5), random_rows(3 * n_images, 5));
        let unit = |rows: &[Vec<f64>]| -> Vec<Vec<f64>> {
            let norm = |row: &Vec<f64>| row.iter().map(|v| v * v).sum::<f64>().sqrt();
            rows.iter().map(|row| row.iter().map(|v| v / norm(row)).collect()).collect()
        };
        let (large, views) = (unit(&rows), unit(&small));
        let s = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>() / 0.2;
        for weight in [0.0, 0.3] {
            // Alike where `weight_of` has i % 3 == j % 3.
            let fingerprints = [0x00, 0x0f, 0xf0].repeat(n_images / 3);
            let negatives = NegativeWeights::new(&fingerprints, 0, weight as f32);
            let expected: f64 = (0..2 * n_images)
                .map(|i| {
                    let others = (0..2 * n_images)
                        .filter(|k| *k != i)
                        .map(|k| weight_of(i, k, n_images, weight) * s(&large[i], &large[k]).exp());
                    let partner = (i + n_images) % (2 * n_images);
                    others.sum::<f64>().ln() - s(&large[i], &large[partner])
                })
                .sum();
            let found = nt_xent(&tensor(&rows), 0.2, Some(&negatives)).unwrap();
            let found = f64::from(found.to_scalar::<f32>().unwrap());
            assert!((found - expected / 12.0).abs() < 1e-4, "{weight}: {found}, {expected}");

            let mut expected = 0.0;
            for (i, view) in views.iter().enumerate() {
                for answer in [i % n_images, i % n_images + n_images] {
                    let other = (answer + n_images) % (2 * n_images);
                    let others = (0..2 * n_images)
                        .filter(|k| *k != other)
                        .map(|k| weight_of(i, k, n_images, weight) * s(view, &large[k]).exp());
                    expected += others.sum::<f64>().ln() - s(view, &large[answer]);
                }
            }
            let found = small_xent([&tensor(&small), &tensor(&rows)], 0.2, Some(&negatives));
            let found = f64::from(found.unwrap().to_scalar::<f32>().unwrap());
            assert!((found - expected / 36.0).abs() < 1e-4, "{weight}: {found}, {expected}");
        }
    }

    /// A masked negative is not pushed away: no gradient flows between the two images.
    #[test]
    fn a_masked_negative_is_as_if_it_were_not_there() {
        let rows = random_rows(8, 5);
        let negatives = NegativeWeights::new(&[0; 4], 0, 0.0);
        // With all masked, the positive is all there is.
        let loss = nt_xent(&tensor(&rows), 0.2, Some(&negatives)).unwrap();
        assert!(loss.to_scalar::<f32>().unwrap().abs() < 1e-6);
    }

    /// The formulas as plain loops, with the identity for a head: each view looks for its partners, and
    /// the loss is the mean over all views, of which there are more small ones than large ones here.
    #[test]
    fn the_loss_with_small_views_is_the_mean_of_the_loops_over_all_views() {
        const N_IMAGES: usize = 4;
        let head = head::Config { layers: 1, output: 5, ..head::Config::default() };
        let small_views = small_views::Config { count: 3, ..small_views::Config::default() };
        let config = Config { small_views, head, ..Config::default() };
        let objective = Simclr::new(&config, 5, 1, &Device::Cpu).unwrap();
        let identity = Tensor::eye(5, candle_core::DType::F32, &Device::Cpu).unwrap();
        objective.heads.weights[0].set(&identity).unwrap();

        let (large, small) = (random_rows(2 * N_IMAGES, 5), random_rows(3 * N_IMAGES, 5));
        let share = |a: &[f64], b: &[f64]| (cosine(a, b) / 0.2).exp();
        // How well `view` finds the large view `answer` among those that are `seen`.
        let term = |view: &[f64], answer: usize, is_seen: &dyn Fn(usize) -> bool| -> f64 {
            let seen = (0..2 * N_IMAGES).filter(|k| is_seen(*k));
            let sum: f64 = seen.map(|k| share(view, &large[k])).sum();
            -(share(view, &large[answer]) / sum).ln()
        };
        let mut sum = 0.0;
        for (i, view) in large.iter().enumerate() {
            sum += term(view, (i + N_IMAGES) % (2 * N_IMAGES), &|k| k != i);
        }
        for (i, view) in small.iter().enumerate() {
            let both = [i % N_IMAGES, i % N_IMAGES + N_IMAGES];
            let of_one = |at: usize| term(view, both[at], &|k| k != both[1 - at]);
            sum += (of_one(0) + of_one(1)) / 2.0;
        }
        let expected = sum / (5 * N_IMAGES) as f64;

        let features = [tensor(&large), tensor(&small)];
        let batch = Batch {
            features: &features,
            targets: &[],
            n_images: N_IMAGES,
            ids: &[6, 7, 8, 9],
            negatives: None,
        };
        let found = f64::from(objective.loss(&batch).unwrap().to_scalar::<f32>().unwrap());
        assert!((found - expected).abs() < 1e-4, "{found}, {expected}");
    }
}
