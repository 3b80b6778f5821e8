//! When the last images no longer look like those before.
//!
//! A reference of embeddings is compared with windows of the last ones by their energy distance: a short window
//! tells a large change soon, a long one a small change that lasts. What a distance is worth is told by the
//! reference itself: drawn apart at random into a window and the rest, many times, it gives the deviation that
//! the distance has where nothing changes (its mean is 0). A change is told once a few checks of a window in a
//! row lie `threshold` of those deviations above 0. Then a new reference is taken, of what comes after.

use super::energy::{Distances, distance};
use crate::seed::{self, Purpose};
use rand::seq::SliceRandom;
use std::collections::VecDeque;

/// Images of the reference, of the windows, and between two checks, and checks in a row: chosen on PACS and
/// CIFAR-10, see docs/RELIABILITY.md.
const REFERENCE: usize = 384;
const SHORTEST: usize = 64;
const LONGEST: usize = 192;
const EVERY: usize = 4;
const IN_A_ROW: u32 = 3;
/// The most images that a detector holds: one more has come before the oldest goes.
pub(super) const MOST_IMAGES: usize = REFERENCE + LONGEST + 1;
/// How often the reference is drawn apart.
const DRAWS: u64 = 200;

/// A window of the last images.
struct Window {
    images: usize,
    /// Its threshold, as a multiple of the detector's. A long window shares more of its error with the
    /// reference, and that goes on for as long as the reference does.
    threshold: f64,
}

const WINDOWS: [Window; 2] =
    [Window { images: SHORTEST, threshold: 1.0 }, Window { images: LONGEST, threshold: 4.0 / 3.0 }];

/// What a check found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Check {
    /// How many deviations a window's distance is, over the window's own `threshold`; of the windows the most.
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

/// An image of the windows.
struct Recent<I> {
    seen: Seen<I>,
    /// The mean of its distances to the reference.
    to_reference: f64,
    /// Its distances to those before it, the last one first.
    to_older: Vec<f32>,
}

/// What the reference tells of itself.
#[derive(Clone, Copy)]
struct Usual {
    /// The mean distance of two of its images.
    within: f64,
    /// The deviation of the energy distance of [`SHORTEST`] of its images from the others.
    deviation: f64,
}

/// A detector over images `I`, which it keeps so that another encoder can embed them.
pub(super) struct Detector<I> {
    threshold: f64,
    seed: u64,
    reference: Vec<Seen<I>>,
    /// At most [`LONGEST`], the oldest first.
    window: VecDeque<Recent<I>>,
    usual: Option<Usual>,
    since_check: usize,
    /// By window.
    in_a_row: [u32; WINDOWS.len()],
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
            in_a_row: [0; WINDOWS.len()],
        }
    }

    /// Takes the next image; a check every few of them, once there is enough to compare.
    pub(super) fn push(&mut self, seen: Seen<I>) -> Option<Check> {
        if self.reference.len() < REFERENCE {
            self.reference.push(seen);
            return None;
        }
        self.remember(seen);
        self.since_check += 1;
        if self.window.len() < SHORTEST || self.since_check < EVERY {
            return None;
        }
        self.since_check = 0;
        let usual = self.usual();
        let mut greatest = f64::NEG_INFINITY;
        for (nth, Window { images, threshold }) in WINDOWS.into_iter().enumerate() {
            if self.window.len() < images {
                continue;
            }
            let deviations = self.energy(images, usual.within) / deviation(usual, images);
            let score = deviations / threshold;
            greatest = greatest.max(score);
            self.in_a_row[nth] = if score > self.threshold { self.in_a_row[nth] + 1 } else { 0 };
        }
        let is_change = self.in_a_row.iter().any(|&checks| checks >= IN_A_ROW);
        if is_change {
            self.begin_anew();
        }
        Some(Check { score: greatest, is_change })
    }

    /// Adds an image to the windows, with its distances.
    fn remember(&mut self, seen: Seen<I>) {
        if self.window.len() == LONGEST {
            self.window.pop_front();
        }
        let to = |other: &Seen<I>| distance(&seen.embedding, &other.embedding);
        let to_older = self.window.iter().rev().map(|recent| to(&recent.seen)).collect();
        let sum: f64 = self.reference.iter().map(|other| f64::from(to(other))).sum();
        let to_reference = sum / self.reference.len() as f64;
        self.window.push_back(Recent { seen, to_reference, to_older });
    }

    /// The newest images are what the new reference begins with; older ones may be from before the change.
    fn begin_anew(&mut self) {
        let newest = self.window.split_off(self.window.len() - SHORTEST / 2);
        self.reference = newest.into_iter().map(|recent| recent.seen).collect();
        self.window.clear();
        (self.usual, self.in_a_row, self.since_check) = (None, [0; WINDOWS.len()], 0);
    }

    /// Embeds all images anew; where one fails, all are as they were.
    pub(super) fn embed_anew<E>(
        &mut self,
        mut embed: impl FnMut(&I) -> Result<Vec<f32>, E>,
    ) -> Result<(), E> {
        let recent = self.window.iter().map(|recent| &recent.seen);
        let kept = self.reference.iter().chain(recent).map(|seen| embed(&seen.image));
        let mut embeddings = kept.collect::<Result<Vec<_>, E>>()?.into_iter();
        for (seen, embedding) in self.reference.iter_mut().zip(&mut embeddings) {
            seen.embedding = embedding;
        }
        for (recent, embedding) in std::mem::take(&mut self.window).into_iter().zip(embeddings) {
            self.remember(Seen { embedding, ..recent.seen });
        }
        self.usual = None;
        Ok(())
    }

    /// The energy distance of the last `length` images from the reference, whose own mean distance is
    /// `within_reference`.
    fn energy(&self, length: usize, within_reference: f64) -> f64 {
        let n = length as f64;
        let (mut between, mut within) = (0.0, 0.0);
        for (age, recent) in self.window.iter().rev().take(length).enumerate() {
            between += recent.to_reference / n;
            let pairs = recent.to_older.iter().take(length - 1 - age);
            within += pairs.map(|&distance| f64::from(distance)).sum::<f64>();
        }
        2.0 * between - 2.0 * within / (n * (n - 1.0)) - within_reference
    }

    /// What the reference tells of itself.
    fn usual(&mut self) -> Usual {
        if let Some(usual) = self.usual {
            return usual;
        }
        let rows: Vec<&[f32]> = self.reference.iter().map(|seen| &seen.embedding[..]).collect();
        let distances = Distances::new(&rows);
        let draw = |number: u64| {
            let mut order: Vec<usize> = (0..rows.len()).collect();
            order.shuffle(&mut seed::rng(self.seed, Purpose::Drift, &[number]));
            let (y, x) = order.split_at(SHORTEST);
            distances.energy(x, y)
        };
        let square = (0..DRAWS).map(|number| draw(number).powi(2)).sum::<f64>() / DRAWS as f64;
        let usual = Usual { within: distances.mean(), deviation: square.sqrt() };
        self.usual = Some(usual);
        usual
    }
}

/// The deviation of the energy distance of a window of `length` from the whole reference: of samples of n and m
/// it is as 1 / n + 1 / m, for the distance is a degenerate statistic of second order (Székely and Rizzo 2013,
/// section 7).
fn deviation(usual: Usual, length: usize) -> f64 {
    let scale = |n: usize, m: usize| 1.0 / n as f64 + 1.0 / m as f64;
    let share = scale(REFERENCE, length) / scale(REFERENCE - SHORTEST, SHORTEST);
    // Equal images have no deviation: any other is a change.
    (usual.deviation * share).max(1e-6)
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

    /// Where changes are told among 1,800 images, the 500 from the 600th on of which lie `centre` away.
    fn told(centre: f32) -> Vec<u64> {
        let mut detector = Detector::new(9.0, 1);
        let is_told = |number: &u64| {
            let centre = if (600..1100).contains(number) { centre } else { 0.0 };
            detector.push(seen(*number, centre)).is_some_and(|check| check.is_change)
        };
        (0..1800).filter(is_told).collect()
    }

    #[test]
    fn a_large_change_is_told_soon_and_once() {
        let told = told(1.5);
        assert_eq!(told.len(), 2, "{told:?}");
        assert!((600..650).contains(&told[0]) && (1100..1150).contains(&told[1]), "{told:?}");
    }

    #[test]
    fn a_small_change_is_told_by_the_long_window() {
        let told = told(0.7);
        assert_eq!(told.len(), 2, "{told:?}");
        assert!((650..800).contains(&told[0]) && (1150..1300).contains(&told[1]), "{told:?}");
    }

    /// The sums that are kept with each image, and the formula over all pairs.
    #[test]
    fn a_windows_energy_is_that_of_the_formula() {
        let mut detector = Detector::new(9.0, 1);
        (0..700).for_each(|number| {
            detector.push(seen(number, 0.3));
        });
        let within = detector.usual().within;
        for Window { images: length, .. } in WINDOWS {
            let last = detector.window.iter().skip(LONGEST - length).map(|recent| &recent.seen);
            let rows: Vec<&[f32]> =
                detector.reference.iter().chain(last).map(|seen| &seen.embedding[..]).collect();
            let (x, y) =
                ((0..REFERENCE).collect::<Vec<_>>(), (REFERENCE..rows.len()).collect::<Vec<_>>());
            let expected = Distances::new(&rows).energy(&x, &y);
            let found = detector.energy(length, within);
            assert!((found - expected).abs() < 1e-6, "{found}, {expected} of {length}");
        }
    }

    #[test]
    fn where_nothing_changes_nothing_is_told() {
        let mut detector = Detector::new(9.0, 1);
        let checks = (0..20_000).filter_map(|number| detector.push(seen(number, 0.0)));
        let scores: Vec<f64> = checks
            .map(|c| {
                assert!(!c.is_change);
                c.score
            })
            .collect();
        assert!(scores.len() > 4800);
    }

    #[test]
    fn another_encoder_embeds_what_is_kept() {
        let mut detector = Detector::new(9.0, 1);
        (0..700).for_each(|number| {
            detector.push(seen(number, 0.0));
        });
        // An encoder to which all images are one point, and then one that is another.
        detector.embed_anew(|_| Ok::<_, ()>(vec![1.0; DIM])).unwrap();
        let same = |n| Seen { image: n, embedding: vec![1.0; DIM] };
        assert!((700..1000).filter_map(|n| detector.push(same(n))).all(|c| c.score.abs() < 1.0));
        let failed =
            detector.embed_anew(|number| if *number < 50 { Err("no") } else { Ok(vec![]) });
        assert_eq!(failed, Err("no"));
    }
}
