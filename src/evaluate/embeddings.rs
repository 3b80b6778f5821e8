//! A dense matrix of embeddings.

use super::EvaluateError;
use crate::gate::monitor::UnitRows;

/// Embeddings `[N, D]`, row-major; every entry is finite.
#[derive(Clone, Debug, PartialEq)]
pub struct Embeddings {
    values: Vec<f32>,
    dim: usize,
}

impl Embeddings {
    /// Takes `values` as rows of `dim`.
    ///
    /// # Errors
    /// If `dim` is zero, the values do not fill whole rows, or one is not finite.
    pub fn new(values: Vec<f32>, dim: usize) -> Result<Self, EvaluateError> {
        if dim == 0 || !values.len().is_multiple_of(dim) {
            return Err(EvaluateError::Shape { n_values: values.len(), dim });
        }
        match values.iter().position(|value| !value.is_finite()) {
            Some(position) => Err(EvaluateError::NotFinite {
                row: position / dim,
                column: position % dim,
                value: values[position],
            }),
            None => Ok(Self { values, dim }),
        }
    }

    /// Number of rows, `N`.
    pub fn len(&self) -> usize {
        self.values.len() / self.dim
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Length of a row, `D`.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Row `index`, `[D]`.
    ///
    /// # Panics
    /// If `index` is not below [`len`](Self::len).
    pub fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.dim..][..self.dim]
    }

    /// All rows in order, `[D]` each.
    pub fn rows(&self) -> std::slice::ChunksExact<'_, f32> {
        self.values.chunks_exact(self.dim)
    }

    /// Puts the rows of `other` below these.
    ///
    /// # Errors
    /// If the rows differ in length.
    pub fn append(&mut self, other: Self) -> Result<(), EvaluateError> {
        if other.dim != self.dim {
            return Err(EvaluateError::Dimension { expected: self.dim, found: other.dim });
        }
        self.values.extend(other.values);
        Ok(())
    }

    /// The rows at unit length, as monitors take them.
    pub(super) fn unit_rows(&self) -> UnitRows {
        UnitRows::new(self.values.clone(), self.dim)
    }

    /// The rows divided by their Euclidean length; a row of zeros stays one.
    pub fn normalised(&self) -> Self {
        let mut values = self.values.clone();
        for row in values.chunks_exact_mut(self.dim) {
            // In f64, where no square of an f32 overflows.
            let squares: f64 = row.iter().map(|value| f64::from(*value).powi(2)).sum();
            let length = squares.sqrt();
            if length > 0.0 {
                row.iter_mut().for_each(|value| *value = (f64::from(*value) / length) as f32);
            }
        }
        Self { values, dim: self.dim }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_rows_of_finite_numbers_are_embeddings() {
        let embeddings = Embeddings::new(vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 3).unwrap();
        assert_eq!((embeddings.len(), embeddings.dim()), (2, 3));
        assert_eq!(embeddings.row(1), [4.0, 5.0, 6.0]);
        let refused = |values, dim| Embeddings::new(values, dim).unwrap_err();
        assert!(matches!(refused(vec![1.0], 0), EvaluateError::Shape { .. }));
        assert!(matches!(refused(vec![1.0; 5], 3), EvaluateError::Shape { n_values: 5, dim: 3 }));
        assert!(matches!(
            refused(vec![1.0, 2.0, 3.0, f32::NAN], 2),
            EvaluateError::NotFinite { row: 1, column: 1, .. }
        ));
    }

    #[test]
    fn normalised_rows_have_length_one_whatever_their_scale() {
        let values = vec![3.0, 4.0, 3e38, 3e38, 0.0, 0.0, 1e-40, 0.0];
        let normalised = Embeddings::new(values, 2).unwrap().normalised();
        let half = 0.5_f32.sqrt();
        let expected = [[0.6, 0.8], [half, half], [0.0, 0.0], [1.0, 0.0]];
        for (row, expected) in normalised.rows().zip(expected) {
            assert!((row[0] - expected[0]).abs() < 1e-6 && (row[1] - expected[1]).abs() < 1e-6);
        }
    }

    #[test]
    fn appended_rows_follow_and_must_fit() {
        let mut embeddings = Embeddings::new(vec![1.0, 2.0], 2).unwrap();
        embeddings.append(Embeddings::new(vec![3.0, 4.0], 2).unwrap()).unwrap();
        assert_eq!(embeddings.rows().collect::<Vec<_>>(), [[1.0, 2.0], [3.0, 4.0]]);
        let wider = Embeddings::new(vec![1.0; 3], 3).unwrap();
        assert!(matches!(
            embeddings.append(wider),
            Err(EvaluateError::Dimension { expected: 2, found: 3 })
        ));
    }
}
