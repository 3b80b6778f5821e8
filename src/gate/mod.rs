//! What an encoder must pass before it answers queries.

use crate::setting::{Invalid, within};
use serde::{Deserialize, Serialize};

/// `[gate]`: what a candidate is checked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The least spread of the candidate's embeddings, see [`spread`]; below it the encoder counts
    /// as collapsed. 0 is a point, 1 fills the sphere evenly.
    pub min_spread: f32,
}

impl Default for Config {
    fn default() -> Self {
        Self { min_spread: 0.02 }
    }
}

impl Config {
    /// Checks every value.
    ///
    /// # Errors
    /// The first value that is not allowed, by key.
    pub fn validate(&self) -> Result<(), Invalid> {
        within("gate.min_spread", self.min_spread, 0.0..1.0, "from 0 to below 1")
    }
}

/// Why a candidate does not go live.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum Refused {
    /// Not every number is finite.
    #[error("its embeddings are not finite")]
    NotFinite,
    /// Its embeddings are (nearly) one point.
    #[error("its embeddings have spread {spread}, at least {min} is wanted")]
    Collapsed {
        /// What it was.
        spread: f32,
        /// What is wanted.
        min: f32,
    },
}

impl Refused {
    /// The bounded reason, a metric's label.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotFinite => "not_finite",
            Self::Collapsed { .. } => "collapsed",
        }
    }
}

/// Checks a candidate by its embeddings of recent images, flat `[N, D]`. Returns their spread.
///
/// # Errors
/// Why it does not go live.
pub fn check(config: &Config, embeddings: &[f32], feature_dim: usize) -> Result<f32, Refused> {
    if embeddings.iter().any(|value| !value.is_finite()) {
        return Err(Refused::NotFinite);
    }
    let spread = spread(embeddings, feature_dim);
    if spread < config.min_spread {
        return Err(Refused::Collapsed { spread, min: config.min_spread });
    }
    Ok(spread)
}

/// The standard deviation of each coordinate of the embeddings of unit length, root-mean-squared
/// over coordinates, times the root of `feature_dim`: 1 for embeddings spread evenly over the
/// sphere, 0 for one point (the monitor of SimSiam, arXiv 2011.10566, section 4.1).
pub fn spread(embeddings: &[f32], feature_dim: usize) -> f32 {
    let n_images = embeddings.len() / feature_dim;
    if n_images == 0 {
        return 0.0;
    }
    let mut sum = vec![0f64; feature_dim];
    let mut n_unit = 0.0;
    for row in embeddings.chunks_exact(feature_dim) {
        let norm = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        if norm > 0.0 {
            n_unit += 1.0;
            for (sum, value) in sum.iter_mut().zip(row) {
                *sum += f64::from(*value) / norm;
            }
        }
    }
    // The variances of unit vectors sum to their mean squared length less their mean's.
    let mean_squared: f64 = sum.iter().map(|sum| (sum / n_images as f64).powi(2)).sum();
    (n_unit / n_images as f64 - mean_squared).max(0.0).sqrt() as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_is_one_on_the_axes_and_zero_at_a_point() {
        let axes = [1.0, 0.0, -2.0, 0.0, 0.0, 3.0, 0.0, -4.0];
        assert!((spread(&axes, 2) - 1.0).abs() < 1e-6);
        assert!(spread(&[1.0, 2.0, 2.0, 4.0, 3.0, 6.0], 2) < 1e-6);
        assert_eq!(spread(&[0.0; 8], 2), 0.0);
    }

    #[test]
    fn spread_equals_the_standard_deviations_it_sums() {
        let rows = [[3.0f32, 1.0, 2.0], [1.0, -1.0, 0.5], [0.2, 0.9, 0.4], [2.0, 2.0, -1.0]];
        let unit: Vec<Vec<f32>> = rows
            .iter()
            .map(|row| {
                let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt();
                row.iter().map(|v| v / norm).collect()
            })
            .collect();
        let variance = |j: usize| {
            let mean = unit.iter().map(|row| row[j]).sum::<f32>() / 4.0;
            unit.iter().map(|row| (row[j] - mean).powi(2)).sum::<f32>() / 4.0
        };
        // Root mean square of the deviations, times the root of D.
        let expected = ((variance(0) + variance(1) + variance(2)) / 3.0).sqrt() * 3f32.sqrt();
        assert!((spread(rows.as_flattened(), 3) - expected).abs() < 1e-6);
    }

    #[test]
    fn a_point_and_what_is_not_finite_are_refused() {
        let config = Config::default();
        assert_eq!(check(&config, &[1.0, f32::NAN], 2), Err(Refused::NotFinite));
        let collapsed = check(&config, &[1.0, 2.0, 1.0, 2.0], 2).unwrap_err();
        assert_eq!(collapsed.reason(), "collapsed");
        assert!(check(&config, &[1.0, 0.0, 0.0, 1.0], 2).is_ok());
    }
}
