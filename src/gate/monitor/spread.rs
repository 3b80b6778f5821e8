//! Spread: the standard deviation of the coordinates of embeddings at unit length, as a share of what
//! fills the sphere evenly.
//!
//! ```text
//! spread = sqrt(D) sqrt(1/D sum_j var_i z_ij) = sqrt(1/N sum_i |z_i|^2 - |1/N sum_i z_i|^2)
//! ```
//!
//! 1 for embeddings spread evenly over the sphere, 0 for one point. Source: the monitor of SimSiam
//! (arXiv 2011.10566, section 4.1), which is 1 / sqrt(D) where ours is 1.

use super::UnitRows;

/// The spread of `rows`; 0 if there are none.
pub fn spread(rows: &UnitRows) -> f32 {
    if rows.is_empty() {
        return 0.0;
    }
    let n_rows = rows.len() as f64;
    let mut sum = vec![0f64; rows.dim];
    let mut squares = 0.0;
    for row in rows.rows() {
        for (sum, value) in sum.iter_mut().zip(row) {
            *sum += f64::from(*value);
            squares += f64::from(*value).powi(2);
        }
    }
    let mean_squared: f64 = sum.iter().map(|sum| (sum / n_rows).powi(2)).sum();
    (squares / n_rows - mean_squared).max(0.0).sqrt() as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[f32], dim: usize) -> f32 {
        spread(&UnitRows::new(values.to_vec(), dim))
    }

    #[test]
    fn spread_is_one_on_the_axes_and_zero_at_a_point() {
        let axes = [1.0, 0.0, -2.0, 0.0, 0.0, 3.0, 0.0, -4.0];
        assert!((of(&axes, 2) - 1.0).abs() < 1e-6);
        assert!(of(&[1.0, 2.0, 2.0, 4.0, 3.0, 6.0], 2) < 1e-3);
        assert_eq!(of(&[0.0; 8], 2), 0.0);
        assert_eq!(of(&[], 2), 0.0);
    }
}
