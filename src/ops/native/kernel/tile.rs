//! The register tile of a convolution: R output pixels by two vectors of output channels sum over taps
//! and input channels, and are finished before they are stored.

#![expect(
    clippy::needless_range_loop,
    reason = "counted loops over arrays unroll, which keeps a tile in registers"
)]

use super::stored::Stored;
use super::tiles::{Convolution, Tail};
use super::{Kernel, Lanes};
use crate::ops::native::indirection::{Indirection, OUTSIDE, Part};
use std::ops::Range;

/// Channels of the widest block of any instruction set.
const BLOCK_MAX: usize = 32;

/// Blocks that tiles are taken through together, at most. A transformer's matrices sum over few channels,
/// so that reading and writing tells: docs/PERFORMANCE.md has what four blocks gained, and what did not help.
const GROUP_BLOCKS: usize = 4;

/// Words of their weights, at most: 256 KiB, half of a second-level cache.
const GROUP_WORDS: usize = 1 << 16;

/// The tiles of one part, some blocks of their outputs.
pub(super) struct Tiles<'a, E: Stored> {
    pub(super) convolution: &'a Convolution<'a, E>,
    pub(super) part: &'a Part,
    pub(super) blocks: Range<usize>,
    /// Where the first pixel of the group's first image is, or would be.
    pub(super) input: *const E,
    pub(super) output: *mut E,
    pub(super) tail: &'a Tail<'a, E>,
    /// The part's place for sums.
    pub(super) sums: Option<*mut f32>,
}

impl<E: Stored> Kernel for Tiles<'_, E> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        // SAFETY: the caller's contract; `check` compared the route's rows with the unit's.
        unsafe {
            match L::ROWS {
                6 => self.rows::<L, 6>(),
                12 => self.rows::<L, 12>(),
                rows => unreachable!("no tile of {rows} rows is compiled"),
            }
        }
    }
}

/// A tile's rows by its two vectors.
type Accumulators<L, const R: usize> = [[<L as Lanes>::Vector; 2]; R];

impl<E: Stored> Tiles<'_, E> {
    /// # Safety
    /// Every pixel of the part lies in its tensor; nobody else writes the part's blocks; the
    /// processor has the unit's instructions. So for the functions below.
    #[inline(always)]
    unsafe fn rows<L: Lanes, const R: usize>(&self) {
        let Convolution { route, channels, .. } = *self.convolution;
        let taps = route.window().geometry.kernel.pow(2);
        let block_words = taps * channels.div_ceil(E::PER_WORD) * 2 * L::WIDTH;
        let together = (GROUP_WORDS / block_words.max(1)).clamp(1, GROUP_BLOCKS);
        for first in self.blocks.clone().step_by(together) {
            let blocks = first..(first + together).min(self.blocks.end);
            // SAFETY: above.
            unsafe { self.group::<L, R>(blocks) }
        }
    }

    /// At most `GROUP_BLOCKS` blocks of every tile: what a tile reads is read again while it is near, and
    /// what it writes are neighbouring lines.
    #[inline(always)]
    unsafe fn group<L: Lanes, const R: usize>(&self, blocks: Range<usize>) {
        let Convolution { route, outputs, .. } = *self.convolution;
        let block = 2 * L::WIDTH;
        let group = route.indirection(self.part.first_image);
        // SAFETY: above; sums hold two runs of whole blocks.
        unsafe {
            let mut sums = [[[L::splat(0.0); 2]; 2]; GROUP_BLOCKS];
            for tile in self.part.tiles.clone() {
                let (targets, valid) = (group.targets(tile), group.tiles()[tile].valid);
                for (index, sums) in blocks.clone().zip(&mut sums) {
                    let columns = block.min(outputs - index * block);
                    let accumulators = self.accumulate::<L, R>(group, tile, index);
                    self.finish::<L, R>(accumulators, targets, valid, (index, columns), sums);
                }
            }
            if let Some(place) = self.sums {
                let second = self.convolution.part_sums() / 2;
                for (index, sums) in blocks.zip(&sums) {
                    for (at, sums) in [(0, sums[0]), (second, sums[1])] {
                        let place = place.add(at + index * block);
                        L::store(place, sums[0]);
                        L::store(place.add(L::WIDTH), sums[1]);
                    }
                }
            }
        }
    }

    /// The sums of one tile over its taps and all input channels.
    #[inline(always)]
    unsafe fn accumulate<L: Lanes, const R: usize>(
        &self,
        group: &Indirection,
        tile: usize,
        block: usize,
    ) -> Accumulators<L, R> {
        let Convolution { route, channels, weights, zeros, .. } = *self.convolution;
        let window = route.window();
        let taps = window.geometry.kernel.pow(2);
        let tap_words = channels.div_ceil(E::PER_WORD) * 2 * L::WIDTH;
        // SAFETY: the route's pixels lie in the input (where that is columns its start may not,
        // hence the wrapping arithmetic); packed weights hold `taps * tap_words` for each block.
        unsafe {
            let weights = weights.as_ptr().add(block * taps * tap_words);
            let mut sums = [[L::splat(0.0); 2]; R];
            for listed in group.tiles().get_unchecked(tile).taps.clone() {
                let (tap, sources) = group.tap(listed);
                let mut pixels = [zeros.as_ptr(); R];
                for row in 0..R {
                    let source = *sources.get_unchecked(row);
                    if source != OUTSIDE {
                        pixels[row] = self.input.wrapping_add(source as usize * channels);
                    }
                }
                let mut weight = weights.add(tap * tap_words);
                for word in 0..channels / E::PER_WORD {
                    let w = [E::load_words::<L>(weight), E::load_words::<L>(weight.add(L::WIDTH))];
                    for row in 0..R {
                        let x = E::splat_word::<L>(pixels[row].add(word * E::PER_WORD));
                        sums[row][0] = E::dot::<L>(x, w[0], sums[row][0]);
                        sums[row][1] = E::dot::<L>(x, w[1], sums[row][1]);
                    }
                    weight = weight.add(2 * L::WIDTH);
                }
                // The last channel of an odd number, with zero beside it.
                if channels % E::PER_WORD != 0 {
                    let w = [E::load_words::<L>(weight), E::load_words::<L>(weight.add(L::WIDTH))];
                    for row in 0..R {
                        let last = E::join(*pixels[row].add(channels - 1), E::default());
                        let x = E::splat_joined::<L>(last);
                        sums[row][0] = E::dot::<L>(x, w[0], sums[row][0]);
                        sums[row][1] = E::dot::<L>(x, w[1], sums[row][1]);
                    }
                }
            }
            sums
        }
    }

    /// Finishes one tile by the tail and stores it; `sums` grow by it.
    #[inline(always)]
    unsafe fn finish<L: Lanes, const R: usize>(
        &self,
        mut tile: Accumulators<L, R>,
        targets: &[u32],
        valid: usize,
        (block, columns): (usize, usize),
        sums: &mut [[L::Vector; 2]; 2],
    ) {
        let Convolution { route, outputs, .. } = *self.convolution;
        let window = route.window();
        let image = window.output[0] * window.output[1] * outputs;
        let column = block * 2 * L::WIDTH;
        let first = self.part.first_image * image + column;
        // SAFETY: targets are pixels of the output, whose shape the tail's tensors have; `columns`
        // channels from `column` on are left in each.
        unsafe {
            let place = |row: usize| first + *targets.get_unchecked(row) as usize * outputs;
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
            if self.sums.is_some() {
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
