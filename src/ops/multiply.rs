//! The one door to the `gemm` crate: a matrix product whose bounds are checked, so that callers
//! stay safe code.

use gemm::Parallelism;

/// A strided view of a flat slice as a matrix.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// `data` as `[rows, columns]`, row after row.
    ///
    /// # Panics
    /// If `data` has another length.
    pub(crate) fn new(data: &'a [f32], rows: usize, columns: usize) -> Self {
        assert_eq!(data.len(), rows * columns, "a {rows} x {columns} matrix");
        Self { data, rows, columns, row_stride: columns, column_stride: 1 }
    }

    /// The transposed view of the same numbers.
    pub(crate) fn transposed(self) -> Self {
        Self {
            data: self.data,
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
        }
    }
}

/// What becomes of the numbers that are in the output already.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    /// They are replaced.
    Replace,
    /// The product is added to them.
    Add,
}

/// `out (+)= left * right`, `out` being `[left.rows, right.columns]`, row after row.
///
/// It runs on the calling thread alone: callers split their work in a way that does not depend on
/// the number of threads.
///
/// # Panics
/// If the three shapes do not fit.
pub(crate) fn multiply(out: &mut [f32], output: Output, left: Matrix<'_>, right: Matrix<'_>) {
    assert_eq!(left.columns, right.rows, "inner dimensions");
    assert_eq!(out.len(), left.rows * right.columns, "output of a product");
    if out.is_empty() {
        return;
    }
    // SAFETY: `Matrix::new` checked that every index of each operand lies in its slice (transposing
    // only swaps the strides), and the assertion above does so for `out`, which is borrowed
    // mutably and therefore overlaps neither operand. Strides are element counts of real slices,
    // so they fit isize.
    unsafe {
        gemm::gemm(
            left.rows,
            right.columns,
            left.columns,
            out.as_mut_ptr(),
            1,
            right.columns as isize,
            output == Output::Add,
            left.data.as_ptr(),
            left.column_stride as isize,
            left.row_stride as isize,
            right.data.as_ptr(),
            right.column_stride as isize,
            right.row_stride as isize,
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
            multiply(&mut out, if add { Output::Add } else { Output::Replace }, left, right);
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

    #[test]
    #[should_panic(expected = "inner dimensions")]
    fn refuses_operands_that_do_not_fit() {
        let data = [0.0; 6];
        let (left, right) = (Matrix::new(&data, 2, 3), Matrix::new(&data, 2, 3));
        multiply(&mut [0.0; 6], Output::Replace, left, right);
    }
}
