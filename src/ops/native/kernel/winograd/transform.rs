//! Tiles as 16 points: `B^T d B` of what they see, and `A dy A^T` of their gradients.

#![expect(
    clippy::needless_range_loop,
    reason = "counted loops over arrays unroll, which keeps a tile in registers"
)]

use super::super::stored::Stored;
use super::super::{Kernel, Lanes};
use crate::ops::native::winograd::{Grid, POINTS};
use std::ops::Range;

/// Numbers between the rows of a matrix beyond its channels, so that the rows of a register tile do not
/// claim the same few lines of a cache.
const ROW_GAP: usize = 16;

/// Tiles that are transformed together, at least, of which the others are multiples: any unit's rows
/// divide them.
const ROWS_MIN: usize = 12;

/// Tiles that are transformed together, at most.
const ROWS_MAX: usize = 48;

/// Numbers that they are transformed to, about: 256 KiB, a part of a second-level cache.
const NUMBERS: usize = 1 << 16;

/// Matrices of transformed tiles `[16, rows, C]`, one for each point.
#[derive(Clone, Copy, Debug)]
pub(super) struct Points {
    /// Rows there is room for in each.
    pub(super) rows: usize,
    /// Numbers from a row to the next.
    pub(super) row: usize,
}

impl Points {
    /// Those of `channels` channels, of as many rows as are worked on together.
    pub(super) fn of(channels: usize) -> Self {
        let most = NUMBERS / (POINTS * channels) / ROWS_MIN * ROWS_MIN;
        Self { rows: most.clamp(ROWS_MIN, ROWS_MAX), row: channels + ROW_GAP }
    }

    /// Numbers of one matrix.
    pub(super) fn matrix(self) -> usize {
        self.rows * self.row
    }

    /// Numbers of all.
    pub(super) fn len(self) -> usize {
        POINTS * self.matrix()
    }
}

/// Images `[N, H, W, C]` over a grid.
#[derive(Clone, Copy)]
pub(super) struct Images<'a, E> {
    pub(super) grid: &'a Grid,
    pub(super) pixels: &'a [E],
    pub(super) channels: usize,
}

/// The 16 points of a tile, row after row.
type Tile<L> = [[<L as Lanes>::Vector; 4]; 4];

/// # Safety
/// The grid's pixels are in the slice; a vector of channels from `channel` on is left in each; the processor
/// has the unit's instructions. So for the functions below.
impl<E: Stored> Images<'_, E> {
    /// `B^T d B` of a tile, one vector of its channels.
    #[inline(always)]
    unsafe fn input<L: Lanes>(&self, tile: usize, channel: usize) -> Tile<L> {
        let (channels, [height, width]) = (self.channels, self.grid.sides());
        let (image, [top, left]) = self.grid.place(tile);
        let is_inner = top > 0 && left > 0 && top + 3 <= height && left + 3 <= width;
        // SAFETY: pixels inside the image are read.
        unsafe {
            let image = self.pixels.as_ptr().add(image * height * width * channels + channel);
            let mut d = [[L::splat(0.0); 4]; 4];
            for i in 0..4 {
                for j in 0..4 {
                    // One more than the coordinates, by the padding.
                    let (y, x) = (top + i, left + j);
                    if is_inner || (1..=height).contains(&y) && (1..=width).contains(&x) {
                        d[i][j] = E::load::<L>(image.add(((y - 1) * width + x - 1) * channels));
                    }
                }
            }
            let mut rows = [[L::splat(0.0); 4]; 4];
            for j in 0..4 {
                rows[0][j] = L::subtract(d[0][j], d[2][j]);
                rows[1][j] = L::add(d[1][j], d[2][j]);
                rows[2][j] = L::subtract(d[2][j], d[1][j]);
                rows[3][j] = L::subtract(d[1][j], d[3][j]);
            }
            for i in 0..4 {
                let [a, b, c, d] = rows[i];
                rows[i] = [L::subtract(a, c), L::add(b, c), L::subtract(c, b), L::subtract(b, d)];
            }
            rows
        }
    }

    /// `A dy A^T` of a tile, one vector of its channels.
    #[inline(always)]
    unsafe fn gradient<L: Lanes>(&self, tile: usize, channel: usize) -> Tile<L> {
        let (channels, [height, width]) = (self.channels, self.grid.sides());
        let (image, [top, left]) = self.grid.place(tile);
        // SAFETY: pixels inside the image are read.
        unsafe {
            let zero = L::splat(0.0);
            let image = self.pixels.as_ptr().add(image * height * width * channels + channel);
            let mut d = [[zero; 2]; 2];
            for i in 0..2 {
                for j in 0..2 {
                    let (y, x) = (top + i, left + j);
                    if y < height && x < width {
                        d[i][j] = E::load::<L>(image.add((y * width + x) * channels));
                    }
                }
            }
            let mut rows = [[zero; 2]; 4];
            for j in 0..2 {
                rows[0][j] = d[0][j];
                rows[1][j] = L::add(d[0][j], d[1][j]);
                rows[2][j] = L::subtract(d[0][j], d[1][j]);
                rows[3][j] = L::subtract(zero, d[1][j]);
            }
            let mut points = [[zero; 4]; 4];
            for i in 0..4 {
                let [a, b] = rows[i];
                points[i] = [a, L::add(a, b), L::subtract(a, b), L::subtract(zero, b)];
            }
            points
        }
    }
}

/// Writes `B^T d B` of `tiles`, all channels: `to [16, tiles, C]`.
///
/// # Safety
/// As of [`Images`]; C is a multiple of the unit's width; `to` is as long as `points` says, which has room
/// for the tiles.
#[inline(always)]
pub(super) unsafe fn inputs<L: Lanes, E: Stored>(
    images: Images<'_, E>,
    tiles: Range<usize>,
    to: &mut [E],
    points: Points,
) {
    for (nth, tile) in tiles.enumerate() {
        for channel in (0..images.channels).step_by(L::WIDTH) {
            // SAFETY: the contract above.
            unsafe {
                let tile = images.input::<L>(tile, channel);
                let to = to.as_mut_ptr().add(nth * points.row + channel);
                for i in 0..4 {
                    for j in 0..4 {
                        E::store::<L>(to.add((i * 4 + j) * points.matrix()), tile[i][j]);
                    }
                }
            }
        }
    }
}

/// Writes the points of bundles of tiles, those that share a word: `to [16, bundles, C]`.
pub(super) struct Bundles<'a, E: Stored> {
    pub(super) images: Images<'a, E>,
    /// Whether the images are gradients of the output.
    pub(super) are_gradients: bool,
    pub(super) tiles: Range<usize>,
    /// The channels that are written.
    pub(super) columns: Range<usize>,
    pub(super) to: &'a mut [E::Word],
    pub(super) points: Points,
}

impl<E: Stored> Kernel for Bundles<'_, E> {
    /// # Safety
    /// As of [`inputs`]: both ends of `columns` are multiples of the unit's width.
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Self { images, are_gradients, tiles, columns, to, points } = self;
        for (nth, first) in tiles.clone().step_by(E::PER_WORD).enumerate() {
            for channel in columns.clone().step_by(L::WIDTH) {
                // SAFETY: the contract above.
                unsafe {
                    let mut tile = [[[L::splat(0.0); 4]; 4]; 2];
                    for next in 0..E::PER_WORD {
                        if first + next < tiles.end {
                            tile[next] = if are_gradients {
                                images.gradient::<L>(first + next, channel)
                            } else {
                                images.input::<L>(first + next, channel)
                            };
                        }
                    }
                    let to = to.as_mut_ptr().add(nth * points.row + channel - columns.start);
                    for i in 0..4 {
                        for j in 0..4 {
                            let to = to.add((i * 4 + j) * points.matrix());
                            E::store_joined::<L>(to, tile[0][i][j], tile[1][i][j]);
                        }
                    }
                }
            }
        }
    }
}
