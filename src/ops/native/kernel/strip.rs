//! One tap's rows of a weight's gradient: a register tile of R input channels by two vectors of output
//! channels sums over the pixels that the tap sees, images, rows and columns alike. A word holds the
//! same pixel and channel of as many images as it has elements, so that no tap, stride or padding
//! parts them: a bundle of images.

#![expect(
    clippy::needless_range_loop,
    reason = "counted loops over arrays unroll, which keeps a tile in registers"
)]

use super::shape::{Chunk, Shape};
use super::stored::Stored;
use super::{Kernel, Lanes};
use crate::ops::Geometry;
use std::ops::Range;

/// One loop of a [`Walk`]: how often, and how many words further in the input and in the panel.
#[derive(Clone, Copy, Debug)]
struct Loop {
    times: usize,
    x: usize,
    panel: usize,
}

/// The pixels that one tap sees, as three nested loops, the innermost last.
#[derive(Clone, Copy, Debug)]
pub(super) struct Walk {
    /// Where the first input pixel is, in words.
    x: usize,
    /// Where its gradient is in the panel, in words.
    panel: usize,
    loops: [Loop; 3],
}

impl Walk {
    /// Over `pixels` that lie one after another, in the input and in the panel.
    pub(super) fn in_a_row(pixels: usize, [x, panel]: [usize; 2]) -> Self {
        let once = Loop { times: 1, x: 0, panel: 0 };
        Self { x: 0, panel: 0, loops: [once, once, Loop { times: pixels, x, panel }] }
    }

    /// One past the last word of the input and of the panel that are read, given the words of a
    /// pixel.
    fn end(&self, [x, panel]: [usize; 2]) -> [usize; 2] {
        let last = |first: usize, step: fn(&Loop) -> usize| -> usize {
            first + self.loops.iter().map(|l| (l.times - 1) * step(l)).sum::<usize>()
        };
        [last(self.x, |l| l.x) + x, last(self.panel, |l| l.panel) + panel]
    }
}

/// The outputs `0..n` along a side whose tap `tap` lies inside the input.
fn inside(geometry: Geometry, tap: usize, side: usize, outputs: Range<usize>) -> Range<usize> {
    let Geometry { stride, padding, .. } = geometry;
    let first = padding.saturating_sub(tap).div_ceil(stride);
    let end = (side + padding).saturating_sub(tap).div_ceil(stride);
    first.max(outputs.start)..end.min(outputs.end)
}

/// The walk of tap `tap` over `chunk`, unless it sees nothing. Its input begins with the batch, or
/// with what the chunk sees of it.
pub(super) fn walk(shape: &Shape, chunk: &Chunk, tap: usize, is_chunk: bool) -> Option<Walk> {
    let (channels, block, kernel) = (shape.channels, shape.isa.block(), shape.geometry.kernel);
    let Geometry { stride, padding, .. } = shape.geometry;
    let ([height, width], output_width) = (shape.sides, shape.output_sides[1]);
    let (tap_row, tap_column) = (tap / kernel, tap % kernel);
    let rows = inside(shape.geometry, tap_row, height, chunk.rows.clone());
    let columns = inside(shape.geometry, tap_column, width, 0..output_width);
    if rows.is_empty() || columns.is_empty() {
        return None;
    }
    let first_row = rows.start * stride + tap_row - padding;
    let (first_bundle, first_row, image) = if is_chunk {
        let seen = shape.input_rows(&chunk.rows);
        (0, first_row - seen.start, seen.len() * width)
    } else {
        (chunk.bundles.start, first_row, height * width)
    };
    let first_column = columns.start * stride + tap_column - padding;
    let n_bundles = chunk.bundles.len();
    let (panel_pixel, panel_bundle) = if shape.is_narrow() {
        (n_bundles * block, block)
    } else {
        (block, chunk.rows.len() * output_width * block)
    };
    let bundles = Loop { times: n_bundles, x: image * channels, panel: panel_bundle };
    let rows_loop =
        Loop { times: rows.len(), x: stride * width * channels, panel: output_width * panel_pixel };
    let columns_loop = Loop { times: columns.len(), x: stride * channels, panel: panel_pixel };
    let nth_pixel = (rows.start - chunk.rows.start) * output_width + columns.start;
    Some(Walk {
        x: (first_bundle * image + first_row * width + first_column) * channels,
        panel: nth_pixel * panel_pixel,
        loops: if shape.is_narrow() {
            [rows_loop, columns_loop, bundles]
        } else {
            [bundles, rows_loop, columns_loop]
        },
    })
}

/// The channels of each tile: nearly equally many, at most `rows`, since a low tile waits for its sums.
pub(super) fn tiles(channels: usize, rows: usize) -> impl Iterator<Item = Range<usize>> {
    let tiles = channels.div_ceil(rows);
    (0..tiles).map(move |index| index * channels / tiles..(index + 1) * channels / tiles)
}

/// One tap's rows of the gradient, one block wide.
pub(super) struct Strip<'a, E: Stored> {
    pub(super) channels: usize,
    pub(super) x: &'a [E::Word],
    pub(super) panel: &'a [E::Word],
    pub(super) walk: Walk,
    /// `[channels, block]`.
    pub(super) sums: &'a mut [f32],
}

impl<E: Stored> Strip<'_, E> {
    /// Panics unless the walk stays in its slices.
    pub(super) fn check(&self, block: usize) {
        let [x, panel] = self.walk.end([self.channels, block]);
        assert!(
            x <= self.x.len() && panel <= self.panel.len(),
            "{:?} leaves its slices",
            self.walk
        );
        assert_eq!(self.sums.len(), self.channels * block, "sums of a strip");
    }
}

impl<E: Stored> Kernel for Strip<'_, E> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Self { channels, x, panel, walk, sums } = self;
        let sums = sums.as_mut_ptr();
        for Range { start: first, end } in tiles(channels, L::ROWS) {
            let rows = end - first;
            // SAFETY: `check`; `rows` channels from `first` on lie in every pixel.
            unsafe {
                let x = x.as_ptr().add(walk.x + first);
                let panel = panel.as_ptr().add(walk.panel);
                let sums = sums.add(first * 2 * L::WIDTH);
                let loops = &walk.loops;
                match rows {
                    1 => tile::<L, E, 1>(x, panel, sums, loops),
                    2 => tile::<L, E, 2>(x, panel, sums, loops),
                    3 => tile::<L, E, 3>(x, panel, sums, loops),
                    4 => tile::<L, E, 4>(x, panel, sums, loops),
                    5 => tile::<L, E, 5>(x, panel, sums, loops),
                    6 => tile::<L, E, 6>(x, panel, sums, loops),
                    7 => tile::<L, E, 7>(x, panel, sums, loops),
                    8 => tile::<L, E, 8>(x, panel, sums, loops),
                    9 => tile::<L, E, 9>(x, panel, sums, loops),
                    10 => tile::<L, E, 10>(x, panel, sums, loops),
                    11 => tile::<L, E, 11>(x, panel, sums, loops),
                    12 => tile::<L, E, 12>(x, panel, sums, loops),
                    rows => unreachable!("no tile of {rows} rows is compiled"),
                }
            }
        }
    }
}

/// Adds `R` channels of `x`, times a block of the panel, over the loops, to `sums [R, block]`.
///
/// # Safety
/// The loops stay in the slices that the pointers are into; the processor has the instructions.
#[inline(always)]
unsafe fn tile<L: Lanes, E: Stored, const R: usize>(
    x: *const E::Word,
    panel: *const E::Word,
    sums: *mut f32,
    loops: &[Loop; 3],
) {
    // SAFETY: the contract above.
    unsafe {
        let place = |row: usize, half: usize| sums.add(row * 2 * L::WIDTH + half * L::WIDTH);
        let mut totals = [[L::splat(0.0); 2]; R];
        for row in 0..R {
            totals[row] = [L::load(place(row, 0)), L::load(place(row, 1))];
        }
        let [outer, middle, inner] = *loops;
        for i in 0..outer.times {
            for j in 0..middle.times {
                let mut x = x.add(i * outer.x + j * middle.x);
                let mut panel = panel.add(i * outer.panel + j * middle.panel);
                for _ in 0..inner.times {
                    let d = [E::load_words::<L>(panel), E::load_words::<L>(panel.add(L::WIDTH))];
                    for row in 0..R {
                        let x = E::splat_joined::<L>(*x.add(row));
                        totals[row][0] = E::dot::<L>(x, d[0], totals[row][0]);
                        totals[row][1] = E::dot::<L>(x, d[1], totals[row][1]);
                    }
                    // The last step may point past the slice, where nothing is read.
                    x = x.wrapping_add(inner.x);
                    panel = panel.wrapping_add(inner.panel);
                }
            }
        }
        for row in 0..R {
            L::store(place(row, 0), totals[row][0]);
            L::store(place(row, 1), totals[row][1]);
        }
    }
}
