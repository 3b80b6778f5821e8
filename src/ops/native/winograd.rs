//! Three by three windows by Winograd's minimal filtering F(2 x 2, 3 x 3) (Lavin and Gray 2015, "Fast
//! Algorithms for Convolutional Neural Networks", arXiv:1509.09308, section 4.1): a tile of 2 x 2
//! outputs sees 4 x 4 inputs, and takes 16 products for each pair of channels where the window itself
//! takes 36.
//!
//! ```text
//! Y = A^T [ (G g G^T) . (B^T d B) ] A      d: 4 x 4 inputs, g: 3 x 3 weights, Y: 2 x 2 outputs
//!
//!       | 1  0 -1  0 |        |  1    0    0  |          | 1  1  1  0 |
//! B^T = | 0  1  1  0 |    G = | 1/2  1/2  1/2 |    A^T = | 0  1 -1 -1 |
//!       | 0 -1  1  0 |        | 1/2 -1/2  1/2 |
//!       | 0  1  0 -1 |        |  0    0    1  |
//! ```
//!
//! The products are summed over the input channels before the last transform, so that each of the 16
//! points is a product of matrices.

use super::kernel::stored::Stored;
use crate::ops::Geometry;
use rayon::prelude::*;
use std::ops::Range;

/// Points of a transformed tile: 4 x 4.
pub(super) const POINTS: usize = 16;

/// Channels come in so many at a time: vectors of any instruction set.
const CHANNELS: usize = 16;

/// Smaller images are left to the window itself: at 4 px a side it leaves out 31 % of its taps.
const SIDE_MIN: usize = 6;

/// Tiles of a task, about: 512 output pixels.
const TASK_TILES: usize = 128;

/// How the output pixels of a batch are cut into tiles of 2 x 2, row after row and image after image.
#[derive(Clone, Debug)]
pub(super) struct Grid {
    images: usize,
    /// H and W, of the input and of the output.
    sides: [usize; 2],
    /// The tiles of each task. The cut depends on shapes alone.
    parts: Vec<Range<usize>>,
}

/// Whether windows like these can be computed, and faster than by themselves.
pub(super) fn suits(geometry: Geometry, sides: [usize; 2], channels: [usize; 2]) -> bool {
    let Geometry { kernel, stride, padding } = geometry;
    [kernel, stride, padding] == [3, 1, 1]
        && sides.into_iter().all(|side| side >= SIDE_MIN)
        && channels.into_iter().all(|channels| channels > 0 && channels % CHANNELS == 0)
}

impl Grid {
    pub(super) fn new(images: usize, sides: [usize; 2]) -> Self {
        let mut this = Self { images, sides, parts: vec![] };
        let tiles = this.tiles();
        let parts = tiles.div_ceil(TASK_TILES);
        this.parts.extend((0..parts).map(|part| part * tiles / parts..(part + 1) * tiles / parts));
        this
    }

    /// Tiles of an image, along each side.
    fn tile_sides(&self) -> [usize; 2] {
        self.sides.map(|side| side.div_ceil(2))
    }

    fn image_tiles(&self) -> usize {
        self.tile_sides().into_iter().product()
    }

    pub(super) fn parts(&self) -> &[Range<usize>] {
        &self.parts
    }

    pub(super) fn sides(&self) -> [usize; 2] {
        self.sides
    }

    /// Tiles of the batch.
    pub(super) fn tiles(&self) -> usize {
        self.images * self.image_tiles()
    }

    /// Pixels of the batch.
    pub(super) fn pixels(&self) -> usize {
        self.images * self.sides[0] * self.sides[1]
    }

    /// The image of a tile, and the row and column of its first output pixel.
    #[inline(always)]
    pub(super) fn place(&self, tile: usize) -> (usize, [usize; 2]) {
        let [_, wide] = self.tile_sides();
        let (image, within) = (tile / self.image_tiles(), tile % self.image_tiles());
        (image, [within / wide * 2, within % wide * 2])
    }
}

/// How the window of an input and an output channel lies in a weight.
#[derive(Clone, Copy)]
pub(super) struct Windows {
    /// Channels that are summed over, and channels of the result.
    pub(super) channels: [usize; 2],
    /// Numbers from one of them to the next, in the same order.
    pub(super) steps: [usize; 2],
    /// Whether the taps are read from the last to the first, as the gradient of the images does.
    pub(super) is_turned: bool,
}

/// Transformed `weight [3, 3, C, O]` as the kernel reads it, `[blocks, 16, words of C, block]`, zero
/// past the last output.
pub(super) fn pack<E: Stored>(
    weight: &[f32],
    windows: Windows,
    block: usize,
    packed: &mut [E::Word],
) {
    // A length that is known makes the loops over a block a few instructions.
    match block {
        8 => pack_blocks::<E, 8>(weight, windows, packed),
        16 => pack_blocks::<E, 16>(weight, windows, packed),
        32 => pack_blocks::<E, 32>(weight, windows, packed),
        block => unreachable!("no block of {block} outputs is compiled"),
    }
}

/// [`pack`] for blocks of `BLOCK` outputs.
fn pack_blocks<E: Stored, const BLOCK: usize>(
    weight: &[f32],
    windows: Windows,
    packed: &mut [E::Word],
) {
    let Windows { channels: [inputs, outputs], steps: [step, output_step], is_turned } = windows;
    let (words, tap) = (inputs / E::PER_WORD, inputs * outputs);
    packed.par_chunks_mut(POINTS * words * BLOCK).enumerate().for_each(|(index, packed)| {
        let first = index * BLOCK;
        let columns = BLOCK.min(outputs - first);
        let points = |input: usize| {
            let place = input * step + first * output_step;
            let mut window = [[[0.0; BLOCK]; 3]; 3];
            for (nth, values) in window.iter_mut().flatten().enumerate() {
                let from = &weight[if is_turned { 8 - nth } else { nth } * tap + place..];
                for (value, from) in
                    values[..columns].iter_mut().zip(from.iter().step_by(output_step))
                {
                    *value = *from;
                }
            }
            transform(window)
        };
        let (packed, _) = packed.as_chunks_mut::<BLOCK>();
        for word in 0..words {
            let first = points(word * E::PER_WORD);
            let second = (E::PER_WORD > 1).then(|| points(word * E::PER_WORD + 1));
            for point in 0..POINTS {
                let (row, column) = (point / 4, point % 4);
                let second = second.as_ref().map(|second| &second[row][column]);
                let to = &mut packed[point * words + word];
                for (nth, to) in to.iter_mut().enumerate() {
                    let next = second.map_or(E::default(), |second| E::narrow(second[nth]));
                    *to = E::join(E::narrow(first[row][column][nth]), next);
                }
            }
        }
    });
}

/// `G g G^T [4, 4]` of windows `g [3, 3]`, N at a time.
fn transform<const N: usize>(windows: [[[f32; N]; 3]; 3]) -> [[[f32; N]; 4]; 4] {
    let along = |[a, b, c]: [[f32; N]; 3]| {
        let ends: [f32; N] = std::array::from_fn(|n| a[n] + c[n]);
        let with = std::array::from_fn(|n| (ends[n] + b[n]) / 2.0);
        [a, with, std::array::from_fn(|n| (ends[n] - b[n]) / 2.0), c]
    };
    let rows = windows.map(along);
    let columns: [_; 4] =
        std::array::from_fn(|column| along([0, 1, 2].map(|row: usize| rows[row][column])));
    std::array::from_fn(|row| std::array::from_fn(|column| columns[column][row]))
}

/// What each tap's gradient has of the gradients of the points along a side: the rows of `G^T`, without
/// their zeros.
const SHARES: [&[(usize, f32)]; 3] =
    [&[(0, 1.0), (1, 0.5), (2, 0.5)], &[(1, 0.5), (2, -0.5)], &[(1, 0.5), (2, 0.5), (3, 1.0)]];

/// `dw = G^T p G [3, 3, C, O]` of the partial sums of its points, each `[blocks, 16, C, block]`, added up
/// in order.
pub(super) fn restore_weight(
    partials: &[f32],
    [channels, outputs]: [usize; 2],
    block: usize,
    dw: &mut [f32],
) {
    let partial_len = outputs.div_ceil(block) * POINTS * channels * block;
    // All rows of a task are of one tap.
    dw.par_chunks_mut(CHANNELS * outputs).enumerate().for_each(|(task, dw)| {
        let (tap, first) = (task * CHANNELS / channels, task * CHANNELS % channels);
        dw.fill(0.0);
        for partial in partials.chunks_exact(partial_len) {
            for &(row, share) in SHARES[tap / 3] {
                for &(column, other) in SHARES[tap % 3] {
                    let (point, share) = (row * 4 + column, share * other);
                    for index in 0..outputs.div_ceil(block) {
                        let from = ((index * POINTS + point) * channels + first) * block;
                        let from = partial[from..][..CHANNELS * block].chunks_exact(block);
                        let columns = index * block..outputs.min((index + 1) * block);
                        for (dw, values) in dw.chunks_exact_mut(outputs).zip(from) {
                            let sums = dw[columns.clone()].iter_mut().zip(values);
                            sums.for_each(|(sum, value)| *sum += share * value);
                        }
                    }
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `A^T m A` of the products of one channel: the last step of the formula, in full matrices.
    fn outputs(points: [[f32; 4]; 4]) -> [[f32; 2]; 2] {
        let a = [[1.0, 0.0], [1.0, 1.0], [1.0, -1.0], [0.0, -1.0]];
        let sum = |y: usize, x: usize| {
            let terms = (0..16).map(|at| a[at / 4][y] * points[at / 4][at % 4] * a[at % 4][x]);
            terms.sum()
        };
        [0, 1].map(|y| [0, 1].map(|x| sum(y, x)))
    }

    /// `B^T d B`, in full matrices.
    fn inputs(d: [[f32; 4]; 4]) -> [[f32; 4]; 4] {
        let b = [[1., 0., 0., 0.], [0., 1., -1., 1.], [-1., 1., 1., 0.], [0., 0., 0., -1.]];
        let sum = |y: usize, x: usize| {
            (0..16).map(|at| b[at / 4][y] * d[at / 4][at % 4] * b[at % 4][x]).sum()
        };
        [0, 1, 2, 3].map(|y| [0, 1, 2, 3].map(|x| sum(y, x)))
    }

    /// Of each pixel and each tap alone, so of all by linearity.
    #[test]
    fn the_formula_is_the_window() {
        for (pixel, tap) in (0..16).flat_map(|pixel| (0..9).map(move |tap| (pixel, tap))) {
            let mut d = [[0.0; 4]; 4];
            d[pixel / 4][pixel % 4] = 1.0;
            let mut window = [[[0.0]; 3]; 3];
            window[tap / 3][tap % 3] = [1.0];
            let (seen, weights) = (inputs(d), transform(window));
            let products =
                std::array::from_fn(|y| std::array::from_fn(|x| seen[y][x] * weights[y][x][0]));
            for (at, found) in outputs(products).into_iter().flatten().enumerate() {
                let [y, x] = [at / 2 + tap / 3, at % 2 + tap % 3];
                let expected = if [y, x] == [pixel / 4, pixel % 4] { 1.0 } else { 0.0 };
                assert_eq!(found, expected, "output {at} of pixel {pixel} by tap {tap}");
            }
        }
    }

    #[test]
    fn tiles_cover_each_pixel_once() {
        let grid = Grid::new(3, [7, 10]);
        let mut seen = vec![0; grid.pixels()];
        for tile in grid.parts().iter().cloned().flatten() {
            let (image, [top, left]) = grid.place(tile);
            for (y, x) in (top..(top + 2).min(7))
                .flat_map(|y| (left..(left + 2).min(10)).map(move |x| (y, x)))
            {
                seen[(image * 7 + y) * 10 + x] += 1;
            }
        }
        assert!(seen.into_iter().all(|times| times == 1));
        assert_eq!(grid.tiles(), 3 * 4 * 5);
    }

    #[test]
    fn other_windows_and_few_channels_are_left_to_the_taps() {
        let geometry = Geometry { kernel: 3, stride: 1, padding: 1 };
        assert!(suits(geometry, [32, 6], [16, 48]));
        assert!(!suits(geometry, [32, 5], [16, 48]));
        assert!(!suits(geometry, [32, 32], [3, 48]));
        assert!(!suits(geometry, [32, 32], [16, 20]));
        assert!(!suits(Geometry { stride: 2, ..geometry }, [32, 32], [16, 16]));
        assert!(!suits(Geometry { padding: 0, ..geometry }, [32, 32], [16, 16]));
        assert!(!suits(Geometry { kernel: 1, stride: 1, padding: 0 }, [32, 32], [16, 16]));
    }
}
