//! The kernel of [`winograd`](crate::ops::native::winograd): some tiles at a time are transformed into
//! 16 matrices, multiplied by those of the weights, and transformed back onto their pixels, where the
//! tail finishes them.

#![expect(
    clippy::needless_range_loop,
    reason = "counted loops over arrays unroll, which keeps a tile in registers"
)]

mod gradient;
mod rows;
mod transform;

pub(in crate::ops::native) use gradient::{Gradient, gradient};

use self::transform::{Images, Points};
use super::stored::Stored;
use super::tail::{Finish, Place, Tail};
use super::tiles::Shared;
use super::{Kernel, Lanes};
use crate::ops::isa::Isa;
use crate::ops::native::winograd::{Grid, POINTS};
use crate::ops::with_scratch;
use rayon::prelude::*;
use std::cell::Cell;
use std::ops::Range;

thread_local! {
    /// Results before they are transformed back, `[16, tiles, block]`.
    static RESULTS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// A convolution with transformed and packed weights.
pub(in crate::ops::native) struct Winograd<'a, E: Stored> {
    pub(in crate::ops::native) isa: Isa,
    pub(in crate::ops::native) grid: &'a Grid,
    /// Input channels, a multiple of 16.
    pub(in crate::ops::native) channels: usize,
    /// Output channels, O.
    pub(in crate::ops::native) outputs: usize,
    /// `[blocks, 16, words of channels, block]`, zero past the last output.
    pub(in crate::ops::native) weights: &'a [E::Word],
}

impl<E: Stored> Winograd<'_, E> {
    fn blocks(&self) -> usize {
        self.outputs.div_ceil(self.isa.block())
    }

    /// Floats that [`convolve`] writes sums into: `[parts, 2, blocks, block]`.
    pub(in crate::ops::native) fn sums_len(&self) -> usize {
        self.grid.parts().len() * self.part_sums()
    }

    fn part_sums(&self) -> usize {
        2 * self.blocks() * self.isa.block()
    }

    /// Panics unless every index that the kernel uses lies in its slice.
    fn check(&self, input: &[E], output: &[E], tail: &Tail<'_, E>) {
        let Self { isa, grid, channels, outputs, weights } = *self;
        let (padded, words) = (self.blocks() * isa.block(), channels / E::PER_WORD);
        assert_eq!(channels % 16, 0, "channels of whole vectors");
        assert_eq!(input.len(), grid.pixels() * channels, "input of a convolution");
        assert_eq!(output.len(), grid.pixels() * outputs, "output of a convolution");
        assert!(u32::try_from(grid.pixels()).is_ok(), "targets are of 32 bits");
        assert_eq!(weights.len(), padded * POINTS * words, "packed weights");
        tail.check(output.len(), padded);
    }
}

/// `output [N, H, W, O]` of the convolution of `input [N, H, W, C]`, finished by `tail`. If `sums` is
/// not empty, each part's sums over its pixels of the outputs, and of the outputs times `tail.factor`,
/// go into its place there.
///
/// # Panics
/// If a length does not fit.
pub(in crate::ops::native) fn convolve<E: Stored>(
    winograd: &Winograd<'_, E>,
    input: &[E],
    output: &mut [E],
    tail: Tail<'_, E>,
    sums: &mut [f32],
) {
    let Winograd { isa, grid, channels, outputs, .. } = *winograd;
    let blocks = winograd.blocks();
    winograd.check(input, output, &tail);
    let part_sums = winograd.part_sums();
    assert!(sums.is_empty() || sums.len() == winograd.sums_len(), "sums");
    let parts = grid.parts();
    // Few tiles, as of one image to be served, are shared out by their blocks too.
    let splits = (8 / parts.len().max(1)).clamp(1, blocks);
    let shared = Shared(output.as_mut_ptr());
    let shared_sums = Shared(sums.as_mut_ptr());
    let takes_sums = !sums.is_empty();
    (0..parts.len() * splits).into_par_iter().with_max_len(1).for_each(|task| {
        let (index, split) = (task / splits, task % splits);
        let blocks = split * blocks / splits..(split + 1) * blocks / splits;
        let points = Points::of(channels);
        with_scratch(E::columns(), points.len(), |transformed| {
            with_scratch(&RESULTS, POINTS * points.rows * isa.block(), |results| {
                // SAFETY: where sums are asked for there are `part_sums` for each part, checked above.
                let sums =
                    takes_sums.then(|| unsafe { shared_sums.pointer().add(index * part_sums) });
                let finish = Finish { tail: &tail, output: shared.pointer(), outputs, takes_sums };
                let (tiles, transformed) = (parts[index].clone(), &mut *transformed);
                let work = Task {
                    winograd,
                    input,
                    tiles,
                    blocks: blocks.clone(),
                    transformed,
                    points,
                    results,
                    finish,
                    sums,
                };
                // SAFETY: the lengths are checked above, and the scratch is that of a chunk. Each
                // output pixel is in one tile, each tile in one part, and each task has its own blocks
                // of them, so no two tasks write the same element of the output or the sums.
                unsafe { isa.run(work) }
            });
        });
    });
}

/// The tiles of one part, some blocks of their outputs.
struct Task<'a, E: Stored> {
    winograd: &'a Winograd<'a, E>,
    input: &'a [E],
    tiles: Range<usize>,
    blocks: Range<usize>,
    /// `[16, tiles, C]`.
    transformed: &'a mut [E],
    points: Points,
    /// `[16, tiles, block]`.
    results: &'a mut [f32],
    finish: Finish<'a, E>,
    /// The part's place for sums.
    sums: Option<*mut f32>,
}

impl<E: Stored> Kernel for Task<'_, E> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(mut self) {
        let Range { start, end } = self.tiles;
        let chunk = self.points.rows;
        for first in (start..end).step_by(chunk) {
            let tiles = first..(first + chunk).min(end);
            // SAFETY: the caller's contract.
            unsafe {
                let Winograd { grid, channels, .. } = *self.winograd;
                let images = Images { grid, pixels: self.input, channels };
                transform::inputs::<L, E>(images, tiles.clone(), self.transformed, self.points);
                for block in self.blocks.clone() {
                    match L::ROWS {
                        6 => self.multiply::<L, 6, 4, 2>(tiles.len(), block),
                        12 => self.multiply::<L, 12, 8, 4>(tiles.len(), block),
                        rows => unreachable!("no tile of {rows} rows is compiled"),
                    }
                    self.restore::<L>(tiles.clone(), block, first == start);
                }
            }
        }
    }
}

/// # Safety
/// The lengths are those that `convolve` checked; the processor has the unit's instructions. So for the
/// functions below.
impl<E: Stored> Task<'_, E> {
    /// The results of `tiles` tiles, one block, at each point: runs of A rows, then of B or C.
    #[inline(always)]
    unsafe fn multiply<L: Lanes, const A: usize, const B: usize, const C: usize>(
        &mut self,
        tiles: usize,
        block: usize,
    ) {
        let Points { rows: chunk, row } = self.points;
        let words = self.winograd.channels / E::PER_WORD;
        for point in 0..POINTS {
            // SAFETY: a matrix has `chunk` rows, a multiple of A; those past the last tile hold what
            // they held, and their results are not read.
            unsafe {
                let weights = self.winograd.weights.as_ptr();
                let weights = weights.add((block * POINTS + point) * words * 2 * L::WIDTH);
                let from = self.transformed.as_ptr().add(point * chunk * row);
                let to = self.results.as_mut_ptr().add(point * chunk * 2 * L::WIDTH);
                let mut first = 0;
                while first < tiles {
                    let (from, to) = (from.add(first * row), to.add(first * 2 * L::WIDTH));
                    let left = tiles - first;
                    if left > B {
                        rows::multiply::<L, E, A>(from, row, weights, words, to);
                        first += A;
                    } else if left > C {
                        rows::multiply::<L, E, B>(from, row, weights, words, to);
                        first += B;
                    } else {
                        rows::multiply::<L, E, C>(from, row, weights, words, to);
                        first += C;
                    }
                }
            }
        }
    }

    /// `A^T m A` of each tile's results, finished and stored.
    #[inline(always)]
    unsafe fn restore<L: Lanes>(&mut self, tiles: Range<usize>, block: usize, is_first: bool) {
        let Winograd { grid, outputs, .. } = *self.winograd;
        let ([height, width], chunk) = (grid.sides(), self.points.rows);
        let column = block * 2 * L::WIDTH;
        let columns = (2 * L::WIDTH).min(outputs - column);
        let second = self.winograd.part_sums() / 2;
        // SAFETY: sums hold two runs of whole blocks; targets are pixels of the output.
        unsafe {
            let mut sums = [[L::splat(0.0); 2]; 2];
            if let (Some(place), false) = (self.sums, is_first) {
                for (nth, at) in [0, second].into_iter().enumerate() {
                    let place = place.add(at + column);
                    sums[nth] = [L::load(place), L::load(place.add(L::WIDTH))];
                }
            }
            for (nth, tile) in tiles.enumerate() {
                let from = self.results.as_ptr().add(nth * 2 * L::WIDTH);
                let mut restored = [[L::splat(0.0); 2]; 4];
                for half in 0..2 {
                    let mut m = [[L::splat(0.0); 4]; 2];
                    for j in 0..4 {
                        let at = |i: usize| {
                            from.add((i * 4 + j) * chunk * 2 * L::WIDTH + half * L::WIDTH)
                        };
                        let [a, b, c, d] =
                            [L::load(at(0)), L::load(at(1)), L::load(at(2)), L::load(at(3))];
                        m[0][j] = L::add(L::add(a, b), c);
                        m[1][j] = L::subtract(L::subtract(b, c), d);
                    }
                    for i in 0..2 {
                        let [a, b, c, d] = m[i];
                        restored[i * 2][half] = L::add(L::add(a, b), c);
                        restored[i * 2 + 1][half] = L::subtract(L::subtract(b, c), d);
                    }
                }
                let (image, [top, left]) = grid.place(tile);
                let first = (image * height + top) * width + left;
                let (mut targets, mut valid) = ([0, 1, width as u32, width as u32 + 1], 4);
                if top + 1 == height || left + 1 == width {
                    valid = 0;
                    for pixel in 0..4 {
                        if top + pixel / 2 < height && left + pixel % 2 < width {
                            restored[valid] = restored[pixel];
                            targets[valid] = targets[pixel];
                            valid += 1;
                        }
                    }
                    targets[valid..].fill(0);
                }
                let place = Place { first, targets: &targets, valid, column, columns };
                self.finish.tile::<L, 4>(restored, place, &mut sums);
            }
            if let Some(place) = self.sums {
                for (nth, at) in [0, second].into_iter().enumerate() {
                    let place = place.add(at + column);
                    L::store(place, sums[nth][0]);
                    L::store(place.add(L::WIDTH), sums[nth][1]);
                }
            }
        }
    }
}
