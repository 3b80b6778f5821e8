//! What becomes of a tile's sums before they are stored.

#![expect(
    clippy::needless_range_loop,
    reason = "counted loops over arrays unroll, which keeps a tile in registers"
)]

use super::Lanes;
use super::stored::Stored;

/// Channels of the widest block of any instruction set.
const BLOCK_MAX: usize = 32;

/// A tile's rows by its two vectors.
pub(super) type Accumulators<L, const R: usize> = [[<L as Lanes>::Vector; 2]; R];

/// What happens to a finished output before it is stored, in this order. The tensors have the
/// output's shape.
#[derive(Clone, Copy, Default)]
pub(in crate::ops::native) struct Tail<'a, E> {
    /// Added to each channel, zero past the last one up to a whole block.
    pub(in crate::ops::native) bias: Option<&'a [f32]>,
    /// Whether the output's present numbers are added.
    pub(in crate::ops::native) accumulates: bool,
    /// Added.
    pub(in crate::ops::native) residual: Option<&'a [E]>,
    /// Whether numbers below zero become zero.
    pub(in crate::ops::native) relu: bool,
    /// Zero where this is zero or below: the gradient of a rectifier with this output.
    pub(in crate::ops::native) passed: Option<&'a [E]>,
    /// What the outputs are multiplied by in the second sum; themselves if nothing.
    pub(in crate::ops::native) factor: Option<&'a [E]>,
}

impl<E> Tail<'_, E> {
    /// Panics unless its tensors are `length` long, and its bias `padded`.
    pub(super) fn check(&self, length: usize, padded: usize) {
        assert!(self.bias.is_none_or(|bias| bias.len() == padded), "bias");
        for tensor in [self.residual, self.passed, self.factor].into_iter().flatten() {
            assert_eq!(tensor.len(), length, "a tensor of the tail");
        }
    }
}

/// Finishes tiles of an output `[..., O]`.
pub(super) struct Finish<'a, E> {
    pub(super) tail: &'a Tail<'a, E>,
    pub(super) output: *mut E,
    /// O.
    pub(super) outputs: usize,
    pub(super) takes_sums: bool,
}

/// Where a tile's rows go.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    /// The pixel that targets count from.
    pub(super) first: usize,
    /// The output pixel of each row.
    pub(super) targets: &'a [u32],
    /// Rows that are stored; the targets of the others are pixels of the output too.
    pub(super) valid: usize,
    /// The first channel.
    pub(super) column: usize,
    /// Channels that are left from there, at most two vectors of them.
    pub(super) columns: usize,
}

impl Place<'_> {
    /// # Safety
    /// There is such a row.
    #[inline(always)]
    unsafe fn pixel(&self, row: usize) -> usize {
        // SAFETY: the contract above.
        self.first + unsafe { *self.targets.get_unchecked(row) } as usize
    }
}

impl<E: Stored> Finish<'_, E> {
    /// Asks for the lines that [`Finish::tile`] will write, so that they come while its sums are taken.
    ///
    /// # Safety
    /// As of [`Finish::tile`].
    #[inline(always)]
    pub(super) unsafe fn announce<L: Lanes, const R: usize>(&self, place: Place<'_>) {
        for row in 0..R {
            // SAFETY: the contract above.
            unsafe {
                let to = self.output.add(place.pixel(row) * self.outputs + place.column);
                L::will_write(to.cast());
                L::will_write(to.add(place.columns - 1).cast());
            }
        }
    }

    /// Finishes one tile by the tail and stores it; `sums` grow by it.
    ///
    /// # Safety
    /// `place` has `R` targets, pixels of the output, whose shape the tail's tensors have; `columns`
    /// channels from `column` on are left in each; nobody else writes those. The processor has the
    /// unit's instructions.
    #[inline(always)]
    pub(super) unsafe fn tile<L: Lanes, const R: usize>(
        &self,
        mut tile: Accumulators<L, R>,
        place: Place<'_>,
        sums: &mut [[L::Vector; 2]; 2],
    ) {
        let Place { first, targets, valid, column, columns } = place;
        // SAFETY: the contract above.
        unsafe {
            let place =
                |row: usize| (first + *targets.get_unchecked(row) as usize) * self.outputs + column;
            // Not a closure, which would be compiled without the unit's instructions.
            let accumulated = self.tail.accumulates.then_some(self.output.cast_const());
            let residual = self.tail.residual.map(<[E]>::as_ptr);
            for added in [accumulated, residual].into_iter().flatten() {
                for row in 0..R {
                    let values = load_pair::<L, E>(added.add(place(row)), columns);
                    tile[row] = add_pair::<L>(tile[row], values);
                }
            }
            if let Some(bias) = self.tail.bias {
                let bias = load_pair::<L, f32>(bias.as_ptr().add(column), 2 * L::WIDTH);
                for row in 0..R {
                    tile[row] = add_pair::<L>(tile[row], bias);
                }
            }
            if self.tail.relu {
                let zero = L::splat(0.0);
                for row in 0..R {
                    tile[row] = tile[row].map(
                        #[inline(always)]
                        |value| L::at_least(value, zero),
                    );
                }
            }
            if let Some(output) = self.tail.passed {
                for row in 0..R {
                    let output = load_pair::<L, E>(output.as_ptr().add(place(row)), columns);
                    for half in 0..2 {
                        tile[row][half] = L::passed(tile[row][half], output[half]);
                    }
                }
            }
            if self.takes_sums {
                // Kept in registers: the reference would be written in every round.
                let mut totals = *sums;
                for row in 0..R {
                    if row < valid {
                        let factor = match self.tail.factor {
                            Some(factor) => {
                                load_pair::<L, E>(factor.as_ptr().add(place(row)), columns)
                            }
                            None => tile[row],
                        };
                        totals[0] = add_pair::<L>(totals[0], tile[row]);
                        for half in 0..2 {
                            totals[1][half] =
                                L::multiply_add(tile[row][half], factor[half], totals[1][half]);
                        }
                    }
                }
                *sums = totals;
            }
            for row in 0..R {
                if row < valid {
                    store_pair::<L, E>(self.output.add(place(row)), tile[row], columns);
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn add_pair<L: Lanes>(a: [L::Vector; 2], b: [L::Vector; 2]) -> [L::Vector; 2] {
    // SAFETY: the caller has the isa.
    unsafe { [L::add(a[0], b[0]), L::add(a[1], b[1])] }
}

/// `columns` elements, and zeros up to two vectors.
#[inline(always)]
unsafe fn load_pair<L: Lanes, E: Stored>(from: *const E, columns: usize) -> [L::Vector; 2] {
    // SAFETY: `columns` elements can be read at `from`; a block has at most `BLOCK_MAX`.
    unsafe {
        if columns == 2 * L::WIDTH {
            return [E::load::<L>(from), E::load::<L>(from.add(L::WIDTH))];
        }
        let mut block = [E::default(); BLOCK_MAX];
        std::ptr::copy_nonoverlapping(from, block.as_mut_ptr(), columns);
        [E::load::<L>(block.as_ptr()), E::load::<L>(block.as_ptr().add(L::WIDTH))]
    }
}

/// The first `columns` elements of two vectors.
#[inline(always)]
pub(super) unsafe fn store_pair<L: Lanes, E: Stored>(
    to: *mut E,
    pair: [L::Vector; 2],
    columns: usize,
) {
    // SAFETY: `columns` elements can be written at `to`; a block has at most `BLOCK_MAX`.
    unsafe {
        if columns == 2 * L::WIDTH {
            E::store::<L>(to, pair[0]);
            E::store::<L>(to.add(L::WIDTH), pair[1]);
            return;
        }
        let mut block = [E::default(); BLOCK_MAX];
        E::store::<L>(block.as_mut_ptr(), pair[0]);
        E::store::<L>(block.as_mut_ptr().add(L::WIDTH), pair[1]);
        std::ptr::copy_nonoverlapping(block.as_ptr(), to, columns);
    }
}
