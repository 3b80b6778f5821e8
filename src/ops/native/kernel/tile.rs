//! The register tile of a convolution: R output pixels by two vectors of output channels sum over taps
//! and input channels, and are finished before they are stored.

#![expect(
    clippy::needless_range_loop,
    reason = "counted loops over arrays unroll, which keeps a tile in registers"
)]

use super::stored::Stored;
use super::tail::{Accumulators, Finish, Place, Tail};
use super::tiles::Convolution;
use super::{Kernel, Lanes};
use crate::ops::native::indirection::{Indirection, OUTSIDE, Part};
use std::ops::Range;

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
        let (tail, output, takes_sums) = (self.tail, self.output, self.sums.is_some());
        let finish = Finish { tail, output, outputs, takes_sums };
        let [height, width] = route.window().output;
        let first = self.part.first_image * height * width;
        let block = 2 * L::WIDTH;
        let group = route.indirection(self.part.first_image);
        // SAFETY: above; sums hold two runs of whole blocks.
        unsafe {
            let mut sums = [[[L::splat(0.0); 2]; 2]; GROUP_BLOCKS];
            for tile in self.part.tiles.clone() {
                let (targets, valid) = (group.targets(tile), group.tiles()[tile].valid);
                for (index, sums) in blocks.clone().zip(&mut sums) {
                    let column = index * block;
                    let columns = block.min(outputs - column);
                    let place = Place { first, targets, valid, column, columns };
                    finish.announce::<L, R>(place);
                    finish.tile::<L, R>(self.accumulate::<L, R>(group, tile, index), place, sums);
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
}
