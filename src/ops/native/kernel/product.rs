//! A small matrix product on the calling thread, such as one head's of an image: one operand is packed
//! block by block on the way, the other is read where it is.

use super::tail::store_pair;
use super::{Kernel, Lanes};
use crate::ops::isa::Isa;
use crate::ops::matrix::{Matrix, MatrixMut, check};

/// `out = left * right`; `panel` holds a block of `right` at a time.
///
/// # Panics
/// If the shapes do not fit, or the panel is shorter than [`panel_len`].
pub(in crate::ops::native) fn multiply(
    isa: Isa,
    mut out: MatrixMut<'_>,
    left: Matrix<'_>,
    right: Matrix<'_>,
    panel: &mut [f32],
) {
    check(&out, left, right);
    let (block, columns) = (isa.block(), right.columns());
    let panel = &mut panel[..panel_len(isa, right.rows())];
    for first in (0..columns).step_by(block) {
        let valid = block.min(columns - first);
        fill(panel, block, right, first, valid);
        let work = Block { out: &mut out, left, panel, first, valid };
        // SAFETY: the matrices' invariant: every index lies in its slice. The panel has a block for
        // each row of `right`, which are as many as `left` has columns; `out` has `valid` columns
        // from `first` on, and as many rows as `left`.
        unsafe { isa.run(work) };
    }
}

/// Floats of the panel of a product that sums over `inner` numbers.
pub(in crate::ops::native) fn panel_len(isa: Isa, inner: usize) -> usize {
    inner * isa.block()
}

/// `panel [inner, block]`: the `valid` columns of `right` from `first` on, then zeros.
fn fill(panel: &mut [f32], block: usize, right: Matrix<'_>, first: usize, valid: usize) {
    let (row_stride, column_stride) = (right.row_stride(), right.column_stride());
    for (row, packed) in panel.chunks_exact_mut(block).enumerate() {
        let from = &right.data()[row * row_stride + first * column_stride..];
        let (taken, past) = packed.split_at_mut(valid);
        if column_stride == 1 {
            taken.copy_from_slice(&from[..valid]);
        } else {
            for (column, value) in taken.iter_mut().enumerate() {
                *value = from[column * column_stride];
            }
        }
        past.fill(0.0);
    }
}

/// One block of columns of a product.
struct Block<'a, 'out> {
    out: &'a mut MatrixMut<'out>,
    left: Matrix<'a>,
    panel: &'a [f32],
    first: usize,
    valid: usize,
}

impl Kernel for Block<'_, '_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        // Tiles of nearly equal height, since a low one waits for its sums.
        let tiles = self.left.rows().div_ceil(L::ROWS);
        let out_stride = self.out.row_stride();
        for index in 0..tiles {
            let first = index * self.left.rows() / tiles;
            let rows = (index + 1) * self.left.rows() / tiles - first;
            // SAFETY: `multiply`; the rows from `first` on lie in both matrices.
            unsafe {
                let out = self.out.data_mut().as_mut_ptr().add(first * out_stride + self.first);
                let left = self.left.data().as_ptr().add(first * self.left.row_stride());
                let steps = [self.left.row_stride(), self.left.column_stride(), out_stride];
                match rows {
                    1 => tile::<L, 1>(out, left, self.panel, steps, self.valid),
                    2 => tile::<L, 2>(out, left, self.panel, steps, self.valid),
                    3 => tile::<L, 3>(out, left, self.panel, steps, self.valid),
                    4 => tile::<L, 4>(out, left, self.panel, steps, self.valid),
                    5 => tile::<L, 5>(out, left, self.panel, steps, self.valid),
                    6 => tile::<L, 6>(out, left, self.panel, steps, self.valid),
                    7 => tile::<L, 7>(out, left, self.panel, steps, self.valid),
                    8 => tile::<L, 8>(out, left, self.panel, steps, self.valid),
                    9 => tile::<L, 9>(out, left, self.panel, steps, self.valid),
                    10 => tile::<L, 10>(out, left, self.panel, steps, self.valid),
                    11 => tile::<L, 11>(out, left, self.panel, steps, self.valid),
                    12 => tile::<L, 12>(out, left, self.panel, steps, self.valid),
                    rows => unreachable!("no tile of {rows} rows is compiled"),
                }
            }
        }
    }
}

/// `R` rows of `left` times the panel.
///
/// # Safety
/// `left` can be read at `R` rows, `row_step` apart, of as many numbers, `inner_step` apart, as the
/// panel has blocks; `out` can be written at `valid` columns of `R` rows, `out_step` apart; the
/// processor has the instructions.
#[inline(always)]
unsafe fn tile<L: Lanes, const R: usize>(
    out: *mut f32,
    left: *const f32,
    panel: &[f32],
    [row_step, inner_step, out_step]: [usize; 3],
    valid: usize,
) {
    let inner = panel.len() / (2 * L::WIDTH);
    // SAFETY: the contract above.
    unsafe {
        let mut totals = [[L::splat(0.0); 2]; R];
        for k in 0..inner {
            let panel = panel.as_ptr().add(k * 2 * L::WIDTH);
            let right = [L::load(panel), L::load(panel.add(L::WIDTH))];
            #[expect(clippy::needless_range_loop, reason = "counted loops over arrays unroll")]
            for row in 0..R {
                let x = L::splat(*left.add(row * row_step + k * inner_step));
                totals[row][0] = L::multiply_add(x, right[0], totals[row][0]);
                totals[row][1] = L::multiply_add(x, right[1], totals[row][1]);
            }
        }
        for (row, totals) in totals.into_iter().enumerate() {
            store_pair::<L, f32>(out.add(row * out_step), totals, valid);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Small integers: every order of summation gives the same numbers.
    fn integers(seed: usize, length: usize) -> Vec<f32> {
        (0..length).map(|i| ((i * 7919 + seed * 31) % 7) as f32 - 3.0).collect()
    }

    proptest! {
        #[test]
        fn every_product_is_that_of_three_loops(
            rows in 0usize..30, inner in 0usize..40, columns in 0usize..70,
            gap in 0usize..5, turn_left: bool, turn_right: bool,
        ) {
            // Rows that lie `gap` apart, turned or not.
            let lengths = |a: usize, b: usize, turn: bool| if turn { (b, a) } else { (a, b) };
            let (left_rows, left_columns) = lengths(rows, inner, turn_left);
            let (right_rows, right_columns) = lengths(inner, columns, turn_right);
            let a = integers(1, left_rows * (left_columns + gap));
            let b = integers(2, right_rows * (right_columns + gap));
            let view = |data, rows, columns, turn| {
                let matrix = Matrix::strided(data, rows, columns, columns + gap);
                if turn { matrix.transposed() } else { matrix }
            };
            let left = view(&a[..], left_rows, left_columns, turn_left);
            let right = view(&b[..], right_rows, right_columns, turn_right);
            let at = |m: Matrix<'_>, row: usize, column: usize| {
                m.data()[row * m.row_stride() + column * m.column_stride()]
            };
            let before = integers(3, rows * (columns + gap));
            for isa in Isa::available() {
                let mut found = before.clone();
                let out = MatrixMut::strided(&mut found, rows, columns, columns + gap);
                multiply(isa, out, left, right, &mut vec![f32::NAN; panel_len(isa, inner)]);
                for (place, &found) in found.iter().enumerate() {
                    let (row, column) = (place / (columns + gap), place % (columns + gap));
                    let product = (0..inner).map(|k| at(left, row, k) * at(right, k, column));
                    let expected = if column < columns { product.sum() } else { before[place] };
                    prop_assert_eq!(found, expected);
                }
            }
        }
    }
}
