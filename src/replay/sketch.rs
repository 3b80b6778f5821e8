//! What an image looks like to the encoder, in a few numbers: enough to tell how alike two images of a
//! buffer are.
//!
//! A sketch is a random projection of the features (Achlioptas, "Database-friendly random projections",
//! 2003: signs for entries), at unit length. Squared distances keep their ratios to about
//! sqrt(2 / LEN), 18 %, which is fine for telling neighbours from strangers, and an image costs 256
//! bytes of memory, however long its features.

use crate::seed::{self, Purpose};
use rand::RngExt;
use std::sync::Arc;

/// Numbers of a sketch.
pub const LEN: usize = 64;
/// What a sketch takes of a buffer's budget.
pub(super) const BYTES: usize = LEN * size_of::<f32>();
/// Share of a sketch that a newer one of the same image replaces: a guess.
const FRESH_SHARE: f32 = 0.5;

/// A sketch, of unit length; an image that has none is at distance 1 from all.
#[derive(Clone, Debug, PartialEq)]
pub struct Sketch(Arc<[f32; LEN]>);

impl Sketch {
    /// The sketch of these numbers.
    pub fn new(mut values: [f32; LEN]) -> Self {
        normalise(&mut values);
        Self(Arc::new(values))
    }

    /// The sketch that had these numbers.
    pub fn restored(values: [f32; LEN]) -> Self {
        Self(Arc::new(values))
    }

    /// Its numbers.
    pub fn values(&self) -> &[f32; LEN] {
        &self.0
    }

    /// 1 less the cosine: 0 to 2.
    pub fn distance(&self, other: &Self) -> f32 {
        // Sums of eight lanes, so that the loop can be vectorised.
        let mut sums = [0.0_f32; 8];
        for (a, b) in self.0.chunks_exact(8).zip(other.0.chunks_exact(8)) {
            for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
                *sum += a * b;
            }
        }
        1.0 - sums.iter().sum::<f32>()
    }

    /// The moving average with a `newer` sketch of the same image.
    pub(super) fn followed_by(&self, newer: &Self) -> Self {
        let mut values = *self.0;
        for (value, newer) in values.iter_mut().zip(newer.values()) {
            *value += FRESH_SHARE * (newer - *value);
        }
        Self::new(values)
    }
}

fn normalise(values: &mut [f32]) {
    let norm = values.iter().map(|value| value * value).sum::<f32>().sqrt();
    if norm > 0.0 {
        values.iter_mut().for_each(|value| *value /= norm);
    }
}

/// Makes sketches of features.
pub struct Sketcher {
    feature_dim: usize,
    /// `[LEN, D]`, each 1 or -1.
    signs: Vec<f32>,
}

impl Sketcher {
    /// For features of length `feature_dim`, the same for a seed.
    pub fn new(feature_dim: usize, seed: u64) -> Self {
        let mut rng = seed::rng(seed, Purpose::Sketch, &[]);
        let sign = |is_positive: bool| if is_positive { 1.0 } else { -1.0 };
        let signs = (0..LEN * feature_dim).map(|_| sign(rng.random())).collect();
        Self { feature_dim, signs }
    }

    /// A sketch of each row of `features [N, D]`.
    pub fn sketches(&self, features: &[f32]) -> Vec<Sketch> {
        features.chunks_exact(self.feature_dim).map(|row| self.sketch(row)).collect()
    }

    fn sketch(&self, features: &[f32]) -> Sketch {
        let mut values = [0.0; LEN];
        for (value, signs) in values.iter_mut().zip(self.signs.chunks_exact(self.feature_dim)) {
            *value = signs.iter().zip(features).map(|(sign, feature)| sign * feature).sum();
        }
        Sketch::new(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(seed: usize, len: usize) -> Vec<f32> {
        (0..len).map(|i| (((i + seed * 77) * 7919) % 1009) as f32 / 504.5 - 1.0).collect()
    }

    fn cosine(a: &[f32], b: &[f32]) -> f32 {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
    }

    #[test]
    fn a_distance_is_nearly_that_of_the_features() {
        let sketcher = Sketcher::new(256, 1);
        let base = noise(1, 256);
        let mut last = 0.0;
        for share in [0.05, 0.2, 0.5, 1.0] {
            let other: Vec<f32> =
                base.iter().zip(noise(2, 256)).map(|(a, b)| a + share * b).collect();
            let sketches = sketcher.sketches(&[base.clone(), other.clone()].concat());
            let distance = sketches[0].distance(&sketches[1]);
            let expected = 1.0 - cosine(&base, &other);
            // Three deviations of 18 %.
            assert!((distance / expected - 1.0).abs() < 0.54, "{distance}, {expected}");
            assert!(distance > last);
            last = distance;
        }
    }

    #[test]
    fn distances_are_one_less_the_cosine_and_averages_lie_between() {
        let values = |seed| -> [f32; LEN] { noise(seed, LEN).try_into().unwrap() };
        let (a, b) = (Sketch::new(values(1)), Sketch::new(values(2)));
        assert!((a.distance(&b) - (1.0 - cosine(a.values(), b.values()))).abs() < 1e-5);
        assert!(a.distance(&a).abs() < 1e-5);
        let between = a.followed_by(&b);
        assert!((between.distance(&a) - between.distance(&b)).abs() < 1e-5);
        assert!(between.distance(&a) < a.distance(&b));
        let none = Sketch::new([0.0; LEN]);
        assert_eq!(none.distance(&a), 1.0);
    }
}
