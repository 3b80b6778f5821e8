//! The logarithm of a determinant, with its gradient.
//!
//! ```text
//! A = L L^T,   log det A = 2 sum_i log L_ii,   d log det A / dA = A^-1     (A symmetric)
//! ```
//!
//! The factor and the inverse are made in f64 on the host, whatever the device: matrices are as
//! small as a batch, and their number is that of an image's views. The result is the value, plus
//! `sum(A^-1 (A - A'))` with `A'` the same numbers without gradient: zero, and its gradient is what
//! is wanted, so that no device needs a kernel for it.

use candle_core::{Result, Tensor, bail};

/// `log det A` of a symmetric positive definite `[K, K]` matrix, a scalar; not a number where one of A's is not
/// finite, as any other function of it would be.
///
/// # Errors
/// A matrix that is not square, or is finite and not positive definite.
pub fn log_det(matrix: &Tensor) -> Result<Tensor> {
    let (size, columns) = matrix.dims2()?;
    if size != columns {
        bail!("a determinant is of a square matrix, not {:?}", matrix.shape())
    }
    let values = matrix.flatten_all()?.to_vec1::<f32>()?;
    let values: Vec<f64> = values.into_iter().map(f64::from).collect();
    if !values.iter().all(|value| value.is_finite()) {
        return matrix.sum_all()? * f64::NAN;
    }
    let Some(factor) = cholesky(&values, size) else {
        bail!("a matrix of side {size} is not positive definite")
    };
    let value: f64 = (0..size).map(|i| 2.0 * factor[i * size + i].ln()).sum();
    let inverse = inverse(&factor, size).into_iter().map(|value| value as f32).collect();
    let inverse = Tensor::from_vec(inverse, (size, size), matrix.device())?;
    let nothing = (matrix - matrix.detach())?;
    nothing.mul(&inverse)?.sum_all()? + value
}

/// The lower triangular L of `L L^T`, row-major; `None` where there is none.
fn cholesky(matrix: &[f64], size: usize) -> Option<Vec<f64>> {
    let mut factor = vec![0.0; size * size];
    for i in 0..size {
        for j in 0..=i {
            let (row_i, row_j) = (&factor[i * size..][..j], &factor[j * size..][..j]);
            let known: f64 = row_i.iter().zip(row_j).map(|(a, b)| a * b).sum();
            let rest = matrix[i * size + j] - known;
            factor[i * size + j] = if i != j {
                rest / factor[j * size + j]
            } else if rest > 0.0 {
                rest.sqrt()
            } else {
                // Not above zero, or not a number.
                return None;
            };
        }
    }
    Some(factor)
}

/// `(L L^T)^-1 = L^-T L^-1`, row-major.
fn inverse(factor: &[f64], size: usize) -> Vec<f64> {
    // Columns of L^-1 by forward substitution, each kept as a row: it begins at its own index.
    let mut columns = vec![0.0; size * size];
    for column in 0..size {
        let solved = &mut columns[column * size..][..size];
        for i in column..size {
            let row = &factor[i * size..][..size];
            let known: f64 = (column..i).map(|k| row[k] * solved[k]).sum();
            let one = if i == column { 1.0 } else { 0.0 };
            solved[i] = (one - known) / row[i];
        }
    }
    let mut inverse = vec![0.0; size * size];
    for i in 0..size {
        for j in 0..=i {
            let (a, b) = (&columns[i * size..][..size], &columns[j * size..][..size]);
            let product = a[i..].iter().zip(&b[i..]).map(|(a, b)| a * b).sum();
            inverse[i * size + j] = product;
            inverse[j * size + i] = product;
        }
    }
    inverse
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};
    use proptest::prelude::*;

    /// `B B^T / n + I / 2`, for B of noise.
    fn matrix(size: usize, seed: usize) -> Vec<f64> {
        let noise = |i: usize| ((i * 7919 + seed * 104_729) % 1009) as f64 / 504.5 - 1.0;
        let mut matrix = vec![0.0; size * size];
        for i in 0..size {
            for j in 0..size {
                let product: f64 =
                    (0..size).map(|k| noise(i * size + k) * noise(j * size + k)).sum();
                matrix[i * size + j] = product / size as f64 + if i == j { 0.5 } else { 0.0 };
            }
        }
        matrix
    }

    fn tensor(values: &[f64], size: usize) -> Tensor {
        let values = values.iter().map(|value| *value as f32).collect();
        Tensor::from_vec(values, (size, size), &Device::Cpu).unwrap()
    }

    fn value(tensor: &Tensor) -> f64 {
        f64::from(log_det(tensor).unwrap().to_scalar::<f32>().unwrap())
    }

    proptest! {
        #[test]
        fn the_inverse_times_the_matrix_is_the_identity(size in 1usize..24, seed in 0usize..1000) {
            let matrix = matrix(size, seed);
            let inverse = inverse(&cholesky(&matrix, size).unwrap(), size);
            for i in 0..size {
                for j in 0..size {
                    let product: f64 =
                        (0..size).map(|k| matrix[i * size + k] * inverse[k * size + j]).sum();
                    let expected = if i == j { 1.0 } else { 0.0 };
                    prop_assert!((product - expected).abs() < 1e-9, "{} {}: {}", i, j, product);
                }
            }
        }
    }

    #[test]
    fn closed_forms() {
        assert!((value(&tensor(&[4.0, 0.0, 0.0, 9.0], 2)) - 36f64.ln()).abs() < 1e-6);
        assert!((value(&tensor(&[2.0, 1.0, 1.0, 2.0], 2)) - 3f64.ln()).abs() < 1e-6);
        assert!(log_det(&tensor(&[1.0, 2.0, 2.0, 1.0], 2)).is_err());
        assert!(value(&tensor(&[f64::NAN], 1)).is_nan());
        assert!(value(&tensor(&[1.0, f64::INFINITY, f64::INFINITY, 1.0], 2)).is_nan());
    }

    #[test]
    fn the_gradient_is_the_slope() {
        let size = 6;
        let values = matrix(size, 3);
        let variable = Var::from_tensor(&tensor(&values, size)).unwrap();
        let gradients = log_det(&variable).unwrap().backward().unwrap();
        let gradient = gradients.get(&variable).unwrap().to_vec2::<f32>().unwrap();
        for (i, j) in [(0, 0), (2, 2), (4, 1)] {
            // Moved on both sides of the diagonal, as it stays symmetric.
            let moved = |by: f64| {
                let mut values = values.clone();
                values[i * size + j] += by;
                values[j * size + i] = values[i * size + j];
                let factor = cholesky(&values, size).unwrap();
                (0..size).map(|k| 2.0 * factor[k * size + k].ln()).sum::<f64>()
            };
            let slope = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            let both = if i == j { 1.0 } else { 2.0 };
            assert!((both * f64::from(gradient[i][j]) - slope).abs() < 1e-4, "{i} {j}");
        }
    }
}
