//! Alpha-ReQ: how fast the eigenvalues of the embeddings' covariance fall.
//!
//! With lambda_1 >= lambda_2 >= ... its eigenvalues, alpha is what makes lambda_k ~ k^-alpha fit best:
//!
//! ```text
//! alpha = -slope of ln lambda_k over ln k,  by least squares with weights 1 / k
//! ```
//!
//! About 1 in encoders that do well; far above it, few directions carry everything. Source: Agrawal,
//! Mondal, Ghosh, Richards, "alpha-ReQ: Assessing Representation Quality in Self-Supervised Learning by
//! measuring eigenspectrum decay" (NeurIPS 2022), which fits as Stringer et al. (Nature 571, 2019) do.
//!
//! Differs from both: embeddings are at unit length, and ranks from the first to the fiftieth are fitted,
//! not from the eleventh, since a window of a few hundred embeddings bends the spectrum down beyond it.

use super::UnitRows;

/// The last rank that is fitted.
const LAST_RANK: usize = 50;
/// Eigenvalues below this share of the first are rounding.
const LEAST_SHARE: f64 = 1e-9;

/// Alpha of `rows`; none where fewer than three directions are left.
pub fn alpha_req(rows: &UnitRows) -> Option<f64> {
    let n_rows = rows.len();
    if n_rows < 2 {
        return None;
    }
    let mut mean = vec![0f64; rows.dim];
    for row in rows.rows() {
        mean.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value));
    }
    mean.iter_mut().for_each(|sum| *sum /= n_rows as f64);
    let eigenvalues = rows.gram(Some(&mean)).symmetric_eigenvalues();
    let mut eigenvalues: Vec<f64> = eigenvalues.iter().map(|v| v / (n_rows - 1) as f64).collect();
    eigenvalues.sort_by(|a, b| b.total_cmp(a));
    let least = eigenvalues[0] * LEAST_SHARE;
    let fitted: Vec<f64> =
        eigenvalues.into_iter().take(LAST_RANK).take_while(|v| *v > least).collect();
    (fitted.len() >= 3).then(|| -slope(&fitted))
}

/// The slope of the logarithms of `values` over those of their ranks, from 1, weighted by 1 / rank.
fn slope(values: &[f64]) -> f64 {
    let points = values.iter().enumerate().map(|(index, value)| {
        let rank = (index + 1) as f64;
        (rank.ln(), value.ln(), 1.0 / rank)
    });
    let (mut w, mut x, mut y, mut xx, mut xy) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for (log_rank, log_value, weight) in points {
        w += weight;
        x += weight * log_rank;
        y += weight * log_value;
        xx += weight * log_rank * log_rank;
        xy += weight * log_rank * log_value;
    }
    (w * xy - x * y) / (w * xx - x * x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_power_law_has_its_exponent() {
        for alpha in [0.5, 1.0, 2.5] {
            let values: Vec<f64> = (1..=40).map(|k| 3.0 * f64::from(k).powf(-alpha)).collect();
            assert!((slope(&values) + alpha).abs() < 1e-9);
        }
    }

    #[test]
    fn a_point_has_none() {
        assert_eq!(alpha_req(&UnitRows::new(vec![1.0; 40], 4)), None);
        assert_eq!(alpha_req(&UnitRows::new(vec![], 4)), None);
    }
}
