//! Few-shot accuracy: how well classes are told by the embeddings of a few labelled images.
//!
//! For each of several draws, k training images of every class are drawn and each test image gets
//! the class whose mean embedding is nearest. Embeddings are centred by the mean of all training
//! embeddings, which takes no labels, and scaled to unit length before. Source: Wang, Chao,
//! Weinberger, van der Maaten: "SimpleShot: Revisiting Nearest-Neighbor Classification for
//! Few-Shot Learning" (arXiv 1911.04623), its CL2N. Differs from the paper: all classes at
//! once and all test images, rather than many small tasks.
//!
//! The class mean, not the linear probe: it has nothing to tune, so that one label a class is
//! measured as fairly as ten. The probe's 60 epochs would be 60 steps on ten images.

use super::linear::dot;
use super::{Embeddings, EvaluateError, Labelled, accuracy};
use crate::seed::{self, Purpose, Rng};
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

/// The numbers of labels a class that are measured.
pub const LABELS_PER_CLASS: [usize; 3] = [1, 5, 10];
/// Draws of each. A guess: at one label a class draws differ by some .04, so that the mean of 50 is
/// known to .006.
pub const DRAWS: usize = 50;

/// The seed counter of the draws, see `report`.
const COUNTER: u64 = 3;

/// What a number of labels gave.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct FewShot {
    /// Labelled training images of each class.
    pub labels_per_class: usize,
    /// Mean share of the test images whose class is found, over draws.
    pub accuracy: f64,
    /// Standard error of that mean: the draws' standard deviation over the root of their number.
    /// The test images are the same in each, so what they add is not in it.
    pub standard_error: f64,
    /// Draws.
    pub draws: usize,
}

/// Few-shot accuracies on `test` by labels of `train`, for each of [`LABELS_PER_CLASS`] of which
/// every class has as many training images. `seed` seeds the draws.
///
/// # Errors
/// If the two differ in dimension.
pub fn few_shot(
    train: &Labelled,
    test: &Labelled,
    n_classes: usize,
    seed: u64,
) -> Result<Vec<FewShot>, EvaluateError> {
    if train.embeddings.dim() != test.embeddings.dim() {
        let (expected, found) = (train.embeddings.dim(), test.embeddings.dim());
        return Err(EvaluateError::Dimension { expected, found });
    }
    let mean = mean(train.embeddings.rows(), train.embeddings.dim());
    let references = centred(&train.embeddings, &mean);
    let queries = centred(&test.embeddings, &mean);
    let mut members = vec![vec![]; n_classes];
    for (index, label) in train.labels.iter().enumerate() {
        members[*label].push(index);
    }
    let fewest = members.iter().map(Vec::len).min().unwrap_or(0);
    let measured = LABELS_PER_CLASS.into_iter().filter(|n_labels| *n_labels <= fewest);
    let measure = |n_labels: usize| {
        let mut accuracies = Vec::with_capacity(DRAWS);
        for draw in 0..DRAWS as u64 {
            let counters = [COUNTER, n_labels as u64, draw];
            let mut rng = seed::rng(seed, Purpose::Evaluate, &counters);
            let means = Means::draw(&references, &mut members, n_labels, &mut rng);
            let found: Vec<_> = queries.rows().map(|query| means.nearest(query)).collect();
            accuracies.push(accuracy(&found, &test.labels)?);
        }
        let (accuracy, standard_error) = mean_and_error(&accuracies);
        Ok(FewShot { labels_per_class: n_labels, accuracy, standard_error, draws: DRAWS })
    };
    measured.map(measure).collect()
}

/// A mean embedding a class, with what makes their nearest one that of the largest product:
/// `|q - c|^2` is least where `q . c - |c|^2 / 2` is largest.
struct Means {
    means: Embeddings,
    half_squares: Vec<f32>,
}

impl Means {
    /// Means of `n_labels` of each class's `members`, which are reordered.
    fn draw(
        references: &Embeddings,
        members: &mut [Vec<usize>],
        n_labels: usize,
        rng: &mut Rng,
    ) -> Self {
        let mut values = Vec::with_capacity(members.len() * references.dim());
        for members in members {
            // From the same order each time, so that a draw depends on its generator alone.
            members.sort_unstable();
            let (drawn, _) = members.partial_shuffle(rng, n_labels);
            let rows = drawn.iter().map(|index| references.row(*index));
            values.extend(mean(rows, references.dim()).into_iter().map(|value| value as f32));
        }
        let means = Embeddings::new(values, references.dim()).expect("means of finite unit rows");
        let half_squares = means.rows().map(|mean| dot(mean, mean) / 2.0).collect();
        Self { means, half_squares }
    }

    /// The class of the nearest mean; of equally near ones the lowest.
    fn nearest(&self, query: &[f32]) -> usize {
        let (mut best, mut highest) = (0, f32::MIN);
        for (class, (mean, half_square)) in self.means.rows().zip(&self.half_squares).enumerate() {
            let score = dot(query, mean) - half_square;
            if score > highest {
                (best, highest) = (class, score);
            }
        }
        best
    }
}

/// The mean of `rows`, `[D]`.
fn mean<'a>(rows: impl ExactSizeIterator<Item = &'a [f32]>, dim: usize) -> Vec<f64> {
    let n_rows = rows.len().max(1) as f64;
    let mut mean = vec![0.0; dim];
    for row in rows {
        mean.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value) / n_rows);
    }
    mean
}

/// Rows less `mean`, of unit length.
fn centred(rows: &Embeddings, mean: &[f64]) -> Embeddings {
    let mut values = Vec::with_capacity(rows.len() * rows.dim());
    for row in rows.rows() {
        values.extend(row.iter().zip(mean).map(|(value, mean)| {
            // The difference of two finite f32 may lie beyond them.
            (f64::from(*value) - mean).clamp(f64::from(f32::MIN), f64::from(f32::MAX)) as f32
        }));
    }
    Embeddings::new(values, rows.dim()).expect("clamped values in the same shape").normalised()
}

/// Mean of `values`, and its standard error.
fn mean_and_error(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (mean, (squares / (n - 1.0).max(1.0) / n).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::RngExt;

    /// `n_each` rows of each of `n_classes` around their axes, as far as `noise`.
    fn clusters(n_each: usize, n_classes: usize, noise: f32, seed: u64) -> Labelled {
        let mut rng = seed::rng(seed, Purpose::Evaluate, &[]);
        let labels: Vec<_> = (0..n_each * n_classes).map(|index| index % n_classes).collect();
        let mut values = vec![];
        for label in &labels {
            let row = (0..n_classes + 3).map(|column| if column == *label { 1.0 } else { 0.0 });
            values.extend(row.map(|centre: f32| centre + noise * rng.random_range(-1.0..1.0)));
        }
        let embeddings = Embeddings::new(values, n_classes + 3).unwrap();
        Labelled { positions: (0..labels.len()).collect(), embeddings, labels }
    }

    #[test]
    fn separable_clusters_are_told_by_a_single_label() {
        let (train, test) = (clusters(12, 5, 0.1, 1), clusters(4, 5, 0.1, 2));
        let found = few_shot(&train, &test, 5, 0).unwrap();
        assert_eq!(found.len(), 3);
        for (few, n_labels) in found.into_iter().zip(LABELS_PER_CLASS) {
            let draws = DRAWS;
            let (accuracy, standard_error) = (1.0, 0.0);
            let expected = FewShot { labels_per_class: n_labels, accuracy, standard_error, draws };
            assert_eq!(few, expected);
        }
    }

    #[test]
    fn more_labels_tell_more_and_a_seed_gives_the_same() {
        let (train, test) = (clusters(40, 5, 1.5, 1), clusters(60, 5, 1.5, 2));
        let found = few_shot(&train, &test, 5, 7).unwrap();
        assert!(found.windows(2).all(|pair| pair[0].accuracy < pair[1].accuracy), "{found:?}");
        assert!(found.iter().all(|few| few.standard_error > 0.0 && few.accuracy > 0.2));
        assert_eq!(found, few_shot(&train, &test, 5, 7).unwrap());
        assert_ne!(found, few_shot(&train, &test, 5, 8).unwrap());
    }

    #[test]
    fn with_too_few_images_of_a_class_it_is_not_measured() {
        let (train, test) = (clusters(7, 3, 0.1, 1), clusters(2, 3, 0.1, 2));
        let n_labels = |n_classes| {
            let found = few_shot(&train, &test, n_classes, 0).unwrap();
            found.into_iter().map(|few| few.labels_per_class).collect::<Vec<_>>()
        };
        assert_eq!(n_labels(3), [1, 5]);
        assert!(n_labels(4).is_empty(), "of the fourth class there are no images");
    }

    #[test]
    fn the_nearest_mean_is_that_of_plain_distances() {
        let train = clusters(10, 4, 1.0, 3);
        let mut members: Vec<Vec<usize>> =
            (0..4).map(|class| (0..40).filter(|index| index % 4 == class).collect()).collect();
        let mut rng = seed::rng(1, Purpose::Evaluate, &[]);
        let means = Means::draw(&train.embeddings, &mut members, 5, &mut rng);
        let distance = |query: &[f32], class: usize| -> f32 {
            query.iter().zip(means.means.row(class)).map(|(a, b)| (a - b).powi(2)).sum()
        };
        for query in train.embeddings.rows() {
            let nearest =
                (0..4).min_by(|a, b| distance(query, *a).total_cmp(&distance(query, *b))).unwrap();
            assert_eq!(means.nearest(query), nearest);
        }
    }

    #[test]
    fn the_error_of_a_mean_is_that_of_the_textbook() {
        // Variance of 1, 2, 3, 4 as a sample: 5/3; over 4, its root.
        let (mean, error) = mean_and_error(&[1.0, 2.0, 3.0, 4.0]);
        assert_eq!(mean, 2.5);
        assert!((error - (5.0_f64 / 12.0).sqrt()).abs() < 1e-12);
    }
}
