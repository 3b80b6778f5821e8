//! Which classes are taken for which.

use super::EvaluateError;
use serde::{Deserialize, Serialize};

/// Counts of images, `[K, K]` for K classes: row is the true class, column the class found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Confusion(Vec<Vec<u64>>);

/// An image's true class, the class it was taken for, and how many were.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mistake {
    /// The true class.
    pub class: usize,
    /// The class found.
    pub found: usize,
    /// Images.
    pub n_images: u64,
}

impl Confusion {
    /// Counts `found` against `labels`; both are below `n_classes`.
    ///
    /// # Errors
    /// If there is not one label for each class found.
    ///
    /// # Panics
    /// If a class is not below `n_classes`.
    pub fn new(found: &[usize], labels: &[usize], n_classes: usize) -> Result<Self, EvaluateError> {
        if found.len() != labels.len() {
            let (n_embeddings, n_labels) = (found.len(), labels.len());
            return Err(EvaluateError::Labels { n_embeddings, n_labels });
        }
        let mut rows = vec![vec![0; n_classes]; n_classes];
        for (found, label) in found.iter().zip(labels) {
            rows[*label][*found] += 1;
        }
        Ok(Self(rows))
    }

    /// The rows, one a true class.
    pub fn rows(&self) -> &[Vec<u64>] {
        &self.0
    }

    /// The share of all images on the diagonal; none of none is zero.
    pub fn accuracy(&self) -> f64 {
        let correct: u64 = (0..self.0.len()).map(|class| self.0[class][class]).sum();
        let all: u64 = self.0.iter().flatten().sum();
        correct as f64 / all.max(1) as f64
    }

    /// The share of the images of `class` that are found, or `None` if there are none.
    pub fn recall(&self, class: usize) -> Option<f64> {
        let all: u64 = self.0[class].iter().sum();
        (all > 0).then(|| self.0[class][class] as f64 / all as f64)
    }

    /// The pairs of classes that are confused, most images first; equal ones in their order.
    pub fn mistakes(&self) -> Vec<Mistake> {
        let cells = self.0.iter().enumerate().flat_map(|(class, row)| {
            row.iter().enumerate().map(move |(found, n_images)| Mistake {
                class,
                found,
                n_images: *n_images,
            })
        });
        let is_mistake = |cell: &Mistake| cell.class != cell.found && cell.n_images > 0;
        let mut mistakes: Vec<_> = cells.filter(is_mistake).collect();
        mistakes.sort_by_key(|mistake| std::cmp::Reverse(mistake.n_images));
        mistakes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::accuracy;
    use proptest::prelude::*;

    #[test]
    fn a_known_labelling_is_counted_cell_by_cell() {
        let labels = [0, 0, 0, 1, 1, 2];
        let found = [0, 1, 1, 1, 0, 2];
        let confusion = Confusion::new(&found, &labels, 4).unwrap();
        assert_eq!(
            confusion.rows(),
            [vec![1, 2, 0, 0], vec![1, 1, 0, 0], vec![0, 0, 1, 0], vec![0; 4]]
        );
        assert_eq!(confusion.accuracy(), 0.5);
        assert_eq!(confusion.recall(0), Some(1.0 / 3.0));
        assert_eq!((confusion.recall(2), confusion.recall(3)), (Some(1.0), None));
        let mistakes = confusion.mistakes();
        assert_eq!(mistakes[0], Mistake { class: 0, found: 1, n_images: 2 });
        assert_eq!(mistakes[1..], [Mistake { class: 1, found: 0, n_images: 1 }]);
        assert!(Confusion::new(&found, &labels[1..], 4).is_err());
    }

    proptest! {
        #[test]
        fn rows_sum_to_the_classes_and_the_diagonal_to_the_accuracy(
            pairs in prop::collection::vec((0_usize..5, 0_usize..5), 0..60),
        ) {
            let (found, labels): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
            let confusion = Confusion::new(&found, &labels, 5).unwrap();
            for class in 0..5 {
                let n_images = labels.iter().filter(|label| **label == class).count() as u64;
                prop_assert_eq!(confusion.rows()[class].iter().sum::<u64>(), n_images);
            }
            prop_assert_eq!(confusion.accuracy(), accuracy(&found, &labels).unwrap());
            let wrong: u64 = confusion.mistakes().iter().map(|mistake| mistake.n_images).sum();
            let n_wrong = found.iter().zip(&labels).filter(|(a, b)| a != b).count() as u64;
            prop_assert_eq!(wrong, n_wrong);
        }
    }
}
