//! The one door to the `gemm` crate: a matrix product whose bounds are checked, so that callers
//! stay safe code.

use super::matrix::{Matrix, MatrixMut, check};
use gemm::Parallelism;

/// What becomes of the numbers that are in the output already.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    /// They are replaced.
    Replace,
    /// The product is added to them.
    Add,
}

/// `out (+)= left * right`, `out` being `[left.rows, right.columns]`.
///
/// It runs on the calling thread alone: callers split their work in a way that does not depend on
/// the number of threads.
///
/// # Panics
/// If the three shapes do not fit.
pub(crate) fn multiply(
    mut out: MatrixMut<'_>,
    output: Output,
    left: Matrix<'_>,
    right: Matrix<'_>,
) {
    check(&out, left, right);
    if out.rows() * out.columns() == 0 {
        return;
    }
    let out_stride = out.row_stride();
    // SAFETY: the matrices' constructors checked that every index of each lies in its slice
    // (transposing only swaps the strides), and that rows of `out` do not overlap. `out` is borrowed
    // mutably and therefore overlaps neither operand. Strides are element counts of real slices,
    // so they fit isize.
    unsafe {
        gemm::gemm(
            left.rows(),
            right.columns(),
            left.columns(),
            out.data_mut().as_mut_ptr(),
            1,
            out_stride as isize,
            output == Output::Add,
            left.data().as_ptr(),
            left.column_stride() as isize,
            left.row_stride() as isize,
            right.data().as_ptr(),
            right.column_stride() as isize,
            right.row_stride() as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ramp(length: usize) -> Vec<f32> {
        (0..length).map(|i| ((i * 37 + 11) % 23) as f32 - 11.0).collect()
    }

    proptest! {
        /// Small integers, so every order of summation gives the same numbers: exact equality.
        #[test]
        fn equals_three_loops(rows in 1usize..40, inner in 0usize..40, columns in 1usize..70,
                              turn_left: bool, turn_right: bool, add: bool) {
            let (a, b) = (ramp(rows * inner), ramp(inner * columns));
            let left = if turn_left { Matrix::new(&a, inner, rows).transposed() }
                       else { Matrix::new(&a, rows, inner) };
            let right = if turn_right { Matrix::new(&b, columns, inner).transposed() }
                        else { Matrix::new(&b, inner, columns) };
            let before = ramp(rows * columns);
            let mut out = before.clone();
            let target = MatrixMut::new(&mut out, rows, columns);
            multiply(target, if add { Output::Add } else { Output::Replace }, left, right);
            for r in 0..rows {
                for c in 0..columns {
                    let mut expected = if add { before[r * columns + c] } else { 0.0 };
                    for i in 0..inner {
                        let l = if turn_left { a[i * rows + r] } else { a[r * inner + i] };
                        let m = if turn_right { b[c * inner + i] } else { b[i * columns + c] };
                        expected += l * m;
                    }
                    prop_assert_eq!(out[r * columns + c], expected);
                }
            }
        }
    }

    /// A product of columns out of the middle of wider rows, into others.
    #[test]
    fn rows_of_wider_matrices_keep_what_lies_between_them() {
        let (a, b) = (ramp(3 * 7), ramp(4 * 9));
        let (left, right) = (Matrix::strided(&a[2..], 3, 4, 7), Matrix::strided(&b[1..], 4, 5, 9));
        let before = ramp(3 * 8);
        let mut out = before.clone();
        multiply(MatrixMut::strided(&mut out[3..], 3, 5, 8), Output::Replace, left, right);
        for (at, (&found, &before)) in out.iter().zip(&before).enumerate() {
            let (row, column) = (at / 8, at % 8);
            let product = |c: usize| (0..4).map(|i| a[2 + row * 7 + i] * b[1 + i * 9 + c]).sum();
            let expected = if column < 3 { before } else { product(column - 3) };
            assert_eq!(found, expected, "row {row}, column {column}");
        }
    }

    #[test]
    #[should_panic(expected = "inner dimensions")]
    fn refuses_operands_that_do_not_fit() {
        let data = [0.0; 6];
        let (left, right) = (Matrix::new(&data, 2, 3), Matrix::new(&data, 2, 3));
        multiply(MatrixMut::new(&mut [0.0; 6], 2, 3), Output::Replace, left, right);
    }
}
