//! Monitors of an encoder that need no labels: what its embeddings look like, figure by figure.
//!
//! Each is a function of embeddings at unit length, in a file with its formula. [`Window`] keeps the
//! last ones that training made, so that the figures cost it nothing but their own arithmetic.
//!
//! To add a monitor:
//! 1. write `src/gate/monitor/NAME.rs` with its formula and its case of `tests/golden/monitor.py`;
//! 2. add its field to [`Figures`] and its line to [`Window::figures`];
//! 3. add its row to the table of `metrics.rs` and its line to [`Figures::show`].

mod alignment;
mod alpha_req;
mod rankme;
mod spread;
mod uniformity;
mod window;

pub use alignment::alignment;
pub use alpha_req::alpha_req;
pub use rankme::rankme;
pub use spread::spread;
pub use uniformity::uniformity;
pub use window::{Figures, Window};

use nalgebra::DMatrix;

/// Rows that are added to a product at a time: a guess that keeps them in the cache.
const BLOCK_ROWS: usize = 512;

/// Embeddings at unit length, flat `[N, D]`; a row of zeros stays one.
#[derive(Clone, Debug, PartialEq)]
pub struct UnitRows {
    values: Vec<f32>,
    dim: usize,
}

impl UnitRows {
    /// Scales each row of `embeddings`, flat `[N, D]` with `dim` numbers a row.
    pub fn new(mut embeddings: Vec<f32>, dim: usize) -> Self {
        let dim = dim.max(1);
        for row in embeddings.chunks_exact_mut(dim) {
            let norm = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
            if norm > 0.0 {
                row.iter_mut().for_each(|value| *value = (f64::from(*value) / norm) as f32);
            }
        }
        Self { values: embeddings, dim }
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.values.len() / self.dim
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The rows, in order.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.values.chunks_exact(self.dim)
    }

    /// Z'Z `[D, D]`, or ZZ' `[N, N]` where that is smaller, in f64, of the rows less `mean`: the
    /// eigenvalues other than 0 of both are the same.
    fn gram(&self, mean: Option<&[f64]>) -> DMatrix<f64> {
        let zeros = vec![0.0; self.dim];
        let mean = mean.unwrap_or(&zeros);
        let block = |rows: &[f32]| {
            let values = rows.iter().zip(mean.iter().cycle()).map(|(v, mean)| f64::from(*v) - mean);
            // One column a row: matrices are stored by column.
            DMatrix::from_iterator(self.dim, rows.len() / self.dim, values)
        };
        if self.len() < self.dim {
            let columns = block(&self.values); // [D, N]
            return columns.transpose() * columns;
        }
        let mut gram = DMatrix::zeros(self.dim, self.dim);
        for rows in self.values.chunks(BLOCK_ROWS * self.dim) {
            let columns = block(rows); // [D, B]
            gram.gemm(1.0, &columns, &columns.transpose(), 1.0);
        }
        gram
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    // Sums of eight lanes, so that the loop can be vectorised.
    let mut sums = [0.0_f32; 8];
    let (a_chunks, b_chunks) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest = a_chunks.remainder().iter().zip(b_chunks.remainder()).map(|(a, b)| a * b);
    let rest: f32 = rest.sum();
    for (a, b) in a_chunks.zip(b_chunks) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += a * b;
        }
    }
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod golden {
    //! Every monitor on the cases of `tests/golden/monitor.json`, which NumPy made.

    use super::*;
    use serde::Deserialize;

    #[derive(Deserialize)]
    struct Case {
        dim: usize,
        /// `[V, N, D]`, as encoders give them.
        views: Vec<Vec<f32>>,
        spread: f64,
        alignment: f64,
        uniformity: f64,
        rankme: f64,
        alpha_req: f64,
    }

    #[test]
    fn monitors_are_those_of_numpy() {
        let text = include_str!("../../../tests/golden/monitor.json");
        let cases: Vec<Case> = serde_json::from_str(text).unwrap();
        assert!(cases.len() >= 3);
        for (index, case) in cases.iter().enumerate() {
            let views: Vec<UnitRows> =
                case.views.iter().map(|view| UnitRows::new(view.clone(), case.dim)).collect();
            let first = &views[0];
            for (name, found, expected) in [
                ("spread", f64::from(spread(first)), case.spread),
                ("alignment", alignment(&views).unwrap(), case.alignment),
                ("uniformity", uniformity(first).unwrap(), case.uniformity),
                ("rankme", rankme(first), case.rankme),
                ("alpha_req", alpha_req(first).unwrap(), case.alpha_req),
            ] {
                let close = 1e-4 * expected.abs().max(1e-2);
                assert!((found - expected).abs() < close, "{index} {name}: {found}, {expected}");
            }
        }
    }
}
