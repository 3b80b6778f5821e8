//! RankMe: over how many directions the embeddings are spread, told without labels.
//!
//! With sigma_k the singular values of the matrix Z `[N, D]` of embeddings,
//!
//! ```text
//! p_k = sigma_k / sum_j sigma_j + epsilon,    RankMe(Z) = exp(-sum_k p_k ln p_k)
//! ```
//!
//! from 1, where all embeddings lie on a line, to min(N, D). Source: Garrido, Balestriero, Najman,
//! LeCun: "RankMe: Assessing the Downstream Performance of Pretrained Self-Supervised
//! Representations by Their Rank" (arXiv 2210.02885), equations 1 and 2, with its epsilon of 1e-7; the
//! effective rank of Roy and Vetterli (2007).
//!
//! Differs from the paper: embeddings are scaled to unit length, as a server hands them out and as
//! neighbours are compared, so that a snapshot and the server that serves it have the same rank.
//! Singular values are the roots of the eigenvalues of Z'Z in f64, which loses those below 1e-8 of
//! the largest: less than the rounding of f32 embeddings leaves of them.

use super::UnitRows;

/// Keeps the logarithm finite; the paper's, for f32.
const EPSILON: f64 = 1e-7;

/// RankMe of `rows`; 0 if there are none, or all are zero.
pub fn rankme(rows: &UnitRows) -> f64 {
    if rows.is_empty() {
        return 0.0;
    }
    let eigenvalues = rows.gram(None).symmetric_eigenvalues();
    let singular: Vec<f64> = eigenvalues.iter().map(|value| value.max(0.0).sqrt()).collect();
    effective_rank(&singular)
}

/// The exponential of the entropy of `singular` values, as shares of their sum.
fn effective_rank(singular: &[f64]) -> f64 {
    let sum: f64 = singular.iter().sum();
    if sum <= 0.0 {
        return 0.0;
    }
    let shares = singular.iter().map(|value| value / sum + EPSILON);
    (-shares.map(|share| share * share.ln()).sum::<f64>()).exp()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::{self, Purpose};
    use nalgebra::DMatrix;
    use proptest::prelude::*;
    use rand::RngExt;

    /// The first `n_axes` unit vectors of `dim`, each `times` and at another scale.
    fn axes(n_axes: usize, dim: usize, times: usize) -> UnitRows {
        let mut values = vec![0.0; n_axes * times * dim];
        for row in 0..n_axes * times {
            values[row * dim + row % n_axes] = 1.0 + row as f32;
        }
        UnitRows::new(values, dim)
    }

    #[test]
    fn an_orthonormal_set_has_its_rank() {
        // Epsilon adds min(N, D) 1e-7 ln(1e7) to the entropy of what is zero: 1e-4 for 64.
        for (n_axes, dim, times) in [(1, 8, 5), (5, 8, 3), (8, 8, 1), (5, 64, 1), (40, 64, 20)] {
            let found = rankme(&axes(n_axes, dim, times));
            assert!((found / n_axes as f64 - 1.0).abs() < 2e-4, "{found}, not {n_axes}");
        }
    }

    #[test]
    fn two_directions_of_unequal_weight_have_the_entropy_of_their_shares() {
        // Nine rows along one axis and four along another: singular values 3 and 2.
        let row = |row| if row < 9 { [1.0, 0.0] } else { [0.0, 1.0] };
        let values = (0..13).flat_map(row).collect();
        let expected = (-(0.6 * 0.6_f64.ln() + 0.4 * 0.4_f64.ln())).exp();
        let found = rankme(&UnitRows::new(values, 2));
        assert!((found - expected).abs() < 1e-5, "{found}, not {expected}");
    }

    #[test]
    fn nothing_has_no_rank() {
        assert_eq!(rankme(&UnitRows::new(vec![0.0; 12], 3)), 0.0);
        assert_eq!(rankme(&UnitRows::new(vec![], 3)), 0.0);
    }

    proptest! {
        #[test]
        fn it_is_that_of_the_singular_values_whichever_side_is_longer(
            n in 1_usize..30,
            dim in 1_usize..30,
            seed in any::<u64>(),
        ) {
            let mut rng = seed::rng(seed, Purpose::Evaluate, &[]);
            let values = (0..n * dim).map(|_| rng.random_range(-1.0..1.0)).collect();
            let unit = UnitRows::new(values, dim);
            let rows: Vec<&[f32]> = unit.rows().collect();
            let matrix = DMatrix::from_fn(n, dim, |row, column| f64::from(rows[row][column]));
            let expected = effective_rank(matrix.singular_values().as_slice());
            let found = rankme(&unit);
            prop_assert!((found - expected).abs() < 1e-4, "{} is not {}", found, expected);
            prop_assert!(found > 0.999 && found < n.min(dim) as f64 * 1.001);
        }
    }
}
