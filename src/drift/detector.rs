//! When the last images no longer look like those before.
//!
//! A reference of embeddings is compared with a window of the last ones by their energy distance. What the
//! distance is worth is told by the reference itself: drawn apart at random into a window and the rest, many
//! times, it gives the mean and the standard deviation that the distance has where nothing changes. A change
//! is told once a few checks in a row lie `threshold` of those deviations above the mean. Then a new reference
//! is taken, of what comes after.

use super::energy::Distances;
use crate::seed::{self, Purpose};
use rand::seq::SliceRandom;
use std::collections::VecDeque;

/// Images of the reference and of the window, images between two checks, and checks in a row: chosen on PACS
/// and CIFAR-10, see docs/RELIABILITY.md.
const REFERENCE: usize = 192;
const WINDOW: usize = 64;
const EVERY: usize = 4;
const IN_A_ROW: u32 = 3;
/// The most images that a detector holds: one more has come before the oldest goes.
pub(super) const MOST_IMAGES: usize = REFERENCE + WINDOW + 1;
/// How often the reference is drawn apart.
const DRAWS: u64 = 200;

/// What a check found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Check {
    /// How many deviations the distance lies above the mean.
    pub(super) score: f64,
    /// Whether it is the one that tells a change.
    pub(super) is_change: bool,
}

/// Images with their embeddings at unit length.
#[derive(Clone, Debug)]
pub(super) struct Seen<I> {
    pub(super) image: I,
    pub(super) embedding: Vec<f32>,
}

/// A detector over images `I`, which it keeps so that another encoder can embed them.
pub(super) struct Detector<I> {
    threshold: f64,
    seed: u64,
    reference: Vec<Seen<I>>,
    window: VecDeque<Seen<I>>,
    usual: Option<(f64, f64)>,
    since_check: usize,
    in_a_row: u32,
}

impl<I> Detector<I> {
    pub(super) fn new(threshold: f64, seed: u64) -> Self {
        Self {
            threshold,
            seed,
            reference: vec![],
            window: VecDeque::new(),
            usual: None,
            since_check: 0,
            in_a_row: 0,
        }
    }

    /// Takes the next image; a check every few of them, once there is enough to compare.
    pub(super) fn push(&mut self, seen: Seen<I>) -> Option<Check> {
        if self.reference.len() < REFERENCE {
            self.reference.push(seen);
            return None;
        }
        self.window.push_back(seen);
        if self.window.len() > WINDOW {
            self.window.pop_front();
        }
        self.since_check += 1;
        if self.window.len() < WINDOW || self.since_check < EVERY {
            return None;
        }
        self.since_check = 0;
        let (mean, deviation) = self.usual();
        let score = (self.distance() - mean) / deviation;
        self.in_a_row = if score > self.threshold { self.in_a_row + 1 } else { 0 };
        let is_change = self.in_a_row >= IN_A_ROW;
        if is_change {
            self.begin_anew();
        }
        Some(Check { score, is_change })
    }

    /// The window is what the new reference begins with.
    fn begin_anew(&mut self) {
        // Its older half may be from before the change.
        self.reference = self.window.split_off(WINDOW / 2).into();
        self.window.clear();
        (self.usual, self.in_a_row, self.since_check) = (None, 0, 0);
    }

    /// Embeds all images anew.
    pub(super) fn embed_anew<E>(
        &mut self,
        mut embed: impl FnMut(&I) -> Result<Vec<f32>, E>,
    ) -> Result<(), E> {
        for seen in self.reference.iter_mut().chain(&mut self.window) {
            seen.embedding = embed(&seen.image)?;
        }
        self.usual = None;
        Ok(())
    }

    fn distance(&self) -> f64 {
        let all = self.reference.iter().chain(&self.window);
        let rows: Vec<&[f32]> = all.map(|seen| &seen.embedding[..]).collect();
        let order: Vec<usize> = (0..rows.len()).collect();
        let (x, y) = order.split_at(self.reference.len());
        Distances::new(&rows).energy(x, y)
    }

    /// Mean and standard deviation of the distance where nothing changes.
    fn usual(&mut self) -> (f64, f64) {
        if let Some(usual) = self.usual {
            return usual;
        }
        let rows: Vec<&[f32]> = self.reference.iter().map(|seen| &seen.embedding[..]).collect();
        let distances = Distances::new(&rows);
        let draw = |number: u64| {
            let mut order: Vec<usize> = (0..rows.len()).collect();
            order.shuffle(&mut seed::rng(self.seed, Purpose::Drift, &[number]));
            let (y, x) = order.split_at(WINDOW);
            distances.energy(x, y)
        };
        let drawn: Vec<f64> = (0..DRAWS).map(draw).collect();
        let mean = drawn.iter().sum::<f64>() / DRAWS as f64;
        let variance = drawn.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / (DRAWS - 1) as f64;
        // Equal images have no deviation: any other is a change.
        let usual = (mean, variance.sqrt().max(1e-6));
        self.usual = Some(usual);
        usual
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::RngExt;

    const DIM: usize = 16;

    /// Points about `centre` on one axis; the image is its number.
    fn seen(number: u64, centre: f32) -> Seen<u64> {
        let mut rng = seed::rng(7, Purpose::Drift, &[number, 1]);
        let mut embedding: Vec<f32> = (0..DIM).map(|_| rng.random_range(-1.0..1.0)).collect();
        embedding[0] += centre;
        let norm = embedding.iter().map(|v| v * v).sum::<f32>().sqrt();
        embedding.iter_mut().for_each(|v| *v /= norm);
        Seen { image: number, embedding }
    }

    #[test]
    fn a_change_is_told_soon_and_once() {
        let mut detector = Detector::new(7.0, 1);
        let changes: Vec<u64> = (0..1200)
            .filter(|number| {
                let centre = if (500..900).contains(number) { 1.5 } else { 0.0 };
                detector.push(seen(*number, centre)).is_some_and(|check| check.is_change)
            })
            .collect();
        assert_eq!(changes.len(), 2, "{changes:?}");
        assert!(
            (500..600).contains(&changes[0]) && (900..1000).contains(&changes[1]),
            "{changes:?}"
        );
    }

    #[test]
    fn where_nothing_changes_nothing_is_told() {
        let mut detector = Detector::new(7.0, 1);
        let checks = (0..20_000).filter_map(|number| detector.push(seen(number, 0.0)));
        let scores: Vec<f64> = checks
            .map(|c| {
                assert!(!c.is_change);
                c.score
            })
            .collect();
        assert!(scores.len() > 4900);
    }

    #[test]
    fn another_encoder_embeds_what_is_kept() {
        let mut detector = Detector::new(7.0, 1);
        (0..300).for_each(|number| {
            detector.push(seen(number, 0.0));
        });
        // An encoder to which all images are one point, and then one that is another.
        detector.embed_anew(|_| Ok::<_, ()>(vec![1.0; DIM])).unwrap();
        let same = |n| Seen { image: n, embedding: vec![1.0; DIM] };
        assert!((300..500).filter_map(|n| detector.push(same(n))).all(|c| c.score.abs() < 1.0));
        let failed =
            detector.embed_anew(|number| if *number < 50 { Err("no") } else { Ok(vec![]) });
        assert_eq!(failed, Err("no"));
    }
}
