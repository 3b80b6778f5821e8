//! Energy distance: how far apart two samples of embeddings are.
//!
//! ```text
//! D(X, Y) = 2 E|x - y| - E|x - x'| - E|y - y'|
//! ```
//!
//! with means over all pairs of two rows, x and x' two different rows of X, y and y' of Y: an unbiased estimate
//! that is 0 in the mean for two samples of one distribution, and grows as they part. Source: Székely and
//! Rizzo, "Energy statistics: A class of statistics based on distances" (2013), section 2.

/// Distances between all pairs of rows, `[N, N]`.
pub(super) struct Distances {
    n_rows: usize,
    values: Vec<f32>,
}

impl Distances {
    /// Of `rows`, each as long as the others.
    pub(super) fn new(rows: &[&[f32]]) -> Self {
        let n_rows = rows.len();
        let mut values = vec![0.0; n_rows * n_rows];
        for (i, a) in rows.iter().enumerate() {
            for (j, b) in rows.iter().enumerate().skip(i + 1) {
                let distance = distance(a, b);
                values[i * n_rows + j] = distance;
                values[j * n_rows + i] = distance;
            }
        }
        Self { n_rows, values }
    }

    /// The mean distance of two different rows.
    pub(super) fn mean(&self) -> f64 {
        let n = self.n_rows as f64;
        self.values.iter().map(|&value| f64::from(value)).sum::<f64>() / (n * (n - 1.0))
    }

    /// The energy distance of two disjoint sets of rows, each of two or more.
    pub(super) fn energy(&self, x: &[usize], y: &[usize]) -> f64 {
        let between = |a: &[usize], b: &[usize]| -> f64 {
            let row = |i: usize| &self.values[i * self.n_rows..][..self.n_rows];
            let sums = a.iter().map(|i| b.iter().map(|j| f64::from(row(*i)[*j])).sum::<f64>());
            sums.sum()
        };
        let (n, m) = (x.len() as f64, y.len() as f64);
        let within = |rows: &[usize], n: f64| between(rows, rows) / (n * (n - 1.0));
        2.0 * between(x, y) / (n * m) - within(x, n) - within(y, m)
    }
}

/// That of two rows, which are equally long.
pub(super) fn distance(a: &[f32], b: &[f32]) -> f32 {
    // Sums of eight lanes, so that the loop can be vectorised.
    let mut sums = [0.0_f32; 8];
    let (a_chunks, b_chunks) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest = a_chunks.remainder().iter().zip(b_chunks.remainder());
    let rest: f32 = rest.map(|(a, b)| (a - b) * (a - b)).sum();
    for (a, b) in a_chunks.zip(b_chunks) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += (a - b) * (a - b);
        }
    }
    (sums.iter().sum::<f32>() + rest).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_pairs_of_points_have_the_distance_of_the_formula() {
        // On a line: X at 0 and 1, Y at 3 and 5.
        let rows = [[0.0], [1.0], [3.0], [5.0]];
        let rows: Vec<&[f32]> = rows.iter().map(|row| &row[..]).collect();
        let distances = Distances::new(&rows);
        let between = (3.0 + 5.0 + 2.0 + 4.0) / 4.0;
        let expected = 2.0 * between - 1.0 - 2.0;
        assert!((distances.energy(&[0, 1], &[2, 3]) - expected).abs() < 1e-6);
        assert!((distances.energy(&[2, 3], &[0, 1]) - expected).abs() < 1e-6);
        assert!((distances.mean() - (1.0 + 3.0 + 5.0 + 2.0 + 4.0 + 2.0) / 6.0).abs() < 1e-6);
    }

    #[test]
    fn distances_are_euclidean_whatever_the_length() {
        for len in [1, 7, 8, 19] {
            let a: Vec<f32> = (0..len).map(|i| i as f32 * 0.5).collect();
            let b: Vec<f32> = (0..len).map(|i| (i as f32).sin()).collect();
            let expected: f32 = a.iter().zip(&b).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt();
            assert!((distance(&a, &b) - expected).abs() < 1e-5);
        }
    }
}
