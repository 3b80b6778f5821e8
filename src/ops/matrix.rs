//! Flat slices as matrices. Every index of one lies in its slice, which is what kernels rely on.

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

    /// The first `columns` of each row of `data`, whose rows begin `row_stride` apart.
    ///
    /// # Panics
    /// If `data` ends before the last row does, or rows overlap.
    pub(crate) fn strided(data: &'a [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        assert!(fits(data.len(), rows, columns, row_stride), "a {rows} x {columns} matrix");
        Self { data, rows, columns, row_stride, column_stride: 1 }
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

    pub(crate) fn data(&self) -> &'a [f32] {
        self.data
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    pub(crate) fn row_stride(&self) -> usize {
        self.row_stride
    }

    pub(crate) fn column_stride(&self) -> usize {
        self.column_stride
    }
}

/// Whether `rows` of `columns`, `row_stride` apart, lie in `length` numbers without overlapping.
fn fits(length: usize, rows: usize, columns: usize, row_stride: usize) -> bool {
    let end = rows.checked_sub(1).map_or(0, |last| last * row_stride + columns);
    columns <= row_stride && end <= length
}

/// A strided view of a flat slice as a matrix to be written.
pub(crate) struct MatrixMut<'a> {
    data: &'a mut [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
}

impl<'a> MatrixMut<'a> {
    /// As [`Matrix::new`].
    pub(crate) fn new(data: &'a mut [f32], rows: usize, columns: usize) -> Self {
        assert_eq!(data.len(), rows * columns, "a {rows} x {columns} matrix");
        Self { data, rows, columns, row_stride: columns }
    }

    /// As [`Matrix::strided`].
    pub(crate) fn strided(
        data: &'a mut [f32],
        rows: usize,
        columns: usize,
        row_stride: usize,
    ) -> Self {
        assert!(fits(data.len(), rows, columns, row_stride), "a {rows} x {columns} matrix");
        Self { data, rows, columns, row_stride }
    }

    pub(crate) fn data_mut(&mut self) -> &mut [f32] {
        self.data
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    pub(crate) fn row_stride(&self) -> usize {
        self.row_stride
    }
}

/// Panics unless `out` has the shape of `left * right`.
pub(crate) fn check(out: &MatrixMut<'_>, left: Matrix<'_>, right: Matrix<'_>) {
    assert_eq!(left.columns, right.rows, "inner dimensions");
    assert_eq!([out.rows, out.columns], [left.rows, right.columns], "output of a product");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "a 3 x 4 matrix")]
    fn refuses_rows_that_end_outside() {
        Matrix::strided(&[0.0; 17], 3, 4, 7);
    }
}
