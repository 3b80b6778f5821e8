//! Convolution as matrix products over columns (Chellapilla, Puri and Simard, "High performance
//! convolutional neural networks for document processing", 2006, section 2.1).
//!
//! A column is what one output pixel sees: its window, `[K, K, C]`, flat. With the columns of some
//! pixels as the rows of a matrix `[P, K K C]` and the weight as `[K K C, O]`,
//!
//! ```text
//! y  = columns w            dw = columns^T dy            dcolumns = dy w^T
//! ```
//!
//! Columns are made for few pixels at a time, to be multiplied while in the second-level cache. With
//! stride 1 the gradient of the images is itself a convolution, of `dy` with the weight turned round.

use crate::ops::element::Element;
use crate::ops::matrix::{Matrix, MatrixMut};
use crate::ops::multiply::{Output, multiply};
use crate::ops::{Geometry, isa::Isa, simd, with_scratch};
use rayon::prelude::*;
use std::cell::Cell;
use std::ops::Range;

/// Floats of columns made at a time: 256 KiB, half of a second-level cache of 512 KiB (a guess).
const BLOCK_FLOATS: usize = 1 << 16;

/// Pixels made at a time, at least: below it the product reads its weights too often.
const BLOCK_PIXELS_MIN: usize = 64;

/// Pixels made at a time, at most: above it tasks get too few (a guess).
const BLOCK_PIXELS_MAX: usize = 1024;

/// Floats of all partial sums of a weight's gradient together: 8 MiB (a guess).
const PARTIAL_FLOATS: usize = 1 << 21;

thread_local! {
    static COLUMNS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    static PARTIALS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// The sizes of one convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Shape {
    /// N.
    pub(crate) images: usize,
    /// H and W.
    pub(crate) sides: [usize; 2],
    /// H' and W'.
    pub(crate) output_sides: [usize; 2],
    /// C.
    pub(crate) channels: usize,
    /// O.
    pub(crate) outputs: usize,
    /// How the window moves.
    pub(crate) geometry: Geometry,
}

/// The part of a window's row of taps that lies inside the image.
struct Overlap {
    /// The taps of the row that do.
    taps: Range<usize>,
    /// Where the first of them reads, in floats from the start of the images.
    start: usize,
}

impl Shape {
    /// Output pixels of all images.
    fn pixels(&self) -> usize {
        self.images * self.output_pixels()
    }

    /// Output pixels of an image, H' W'.
    fn output_pixels(&self) -> usize {
        self.output_sides[0] * self.output_sides[1]
    }

    /// Length of one row of taps, K C.
    fn tap_row(&self) -> usize {
        self.geometry.kernel * self.channels
    }

    /// Length of a column, K K C.
    pub(crate) fn column(&self) -> usize {
        self.geometry.kernel * self.tap_row()
    }

    /// Whether the images are their own columns.
    pub(crate) fn is_product(&self) -> bool {
        self.geometry == Geometry { kernel: 1, stride: 1, padding: 0 }
    }

    /// What row `tap_row` of output pixel `pixel`'s window sees, if anything.
    fn overlap(&self, pixel: usize, tap_row: usize) -> Option<Overlap> {
        let [height, width] = self.sides;
        let Geometry { kernel, stride, padding } = self.geometry;
        let (line, x) = (pixel / self.output_sides[1], pixel % self.output_sides[1]);
        let (image, y) = (line / self.output_sides[0], line % self.output_sides[0]);
        let y = (y * stride + tap_row).checked_sub(padding).filter(|&y| y < height)?;
        let left = x * stride;
        let first = padding.saturating_sub(left).min(kernel);
        let end = (width + padding).saturating_sub(left).min(kernel);
        (first < end).then(|| Overlap {
            taps: first..end,
            start: ((image * height + y) * width + left + first - padding) * self.channels,
        })
    }

    /// Writes `tap_rows` of the columns of `pixels` into `columns`, `[P, tap_rows, K, C]`.
    pub(crate) fn gather<E: Element>(
        &self,
        x: &[E],
        pixels: Range<usize>,
        tap_rows: Range<usize>,
        columns: &mut [E],
    ) {
        let mut taps_of_rows = columns.chunks_exact_mut(self.tap_row());
        for pixel in pixels {
            for (tap_row, taps) in tap_rows.clone().zip(&mut taps_of_rows) {
                let Some(seen) = self.overlap(pixel, tap_row) else {
                    taps.fill(E::default());
                    continue;
                };
                let (first, end) = (seen.taps.start * self.channels, seen.taps.end * self.channels);
                taps[..first].fill(E::default());
                taps[first..end].copy_from_slice(&x[seen.start..][..end - first]);
                taps[end..].fill(E::default());
            }
        }
    }

    /// Adds the columns of `pixels` to where they were gathered from; `dx` starts at float `origin`
    /// of the images.
    fn scatter(&self, columns: &[f32], pixels: Range<usize>, origin: usize, dx: &mut [f32]) {
        let isa = Isa::best();
        let mut taps_of_rows = columns.chunks_exact(self.tap_row());
        for pixel in pixels {
            for (tap_row, taps) in (0..self.geometry.kernel).zip(&mut taps_of_rows) {
                let Some(seen) = self.overlap(pixel, tap_row) else { continue };
                let (first, end) = (seen.taps.start * self.channels, seen.taps.end * self.channels);
                let target = &mut dx[seen.start - origin..][..end - first];
                simd::add(isa, target, &taps[first..end]);
            }
        }
    }
}

/// Pixels whose columns of `column` floats are made at a time.
fn block_pixels(column: usize) -> usize {
    (BLOCK_FLOATS / column.max(1)).clamp(BLOCK_PIXELS_MIN, BLOCK_PIXELS_MAX)
}

/// Cuts `range` into pieces of `length`, the last one shorter.
fn blocks(range: Range<usize>, length: usize) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range.step_by(length).map(move |start| start..(start + length).min(end))
}

/// `y [N, H', W', O]` of `x [N, H, W, C]` and `weight [K, K, C, O]`.
pub(crate) fn forward(shape: &Shape, x: &[f32], weight: &[f32]) -> Vec<f32> {
    let (outputs, column) = (shape.outputs, shape.column());
    let mut y = vec![0.0; shape.pixels() * outputs];
    if y.is_empty() {
        return y;
    }
    let weight = Matrix::new(weight, column, outputs);
    let block = block_pixels(column);
    y.par_chunks_mut(block * outputs).enumerate().for_each(|(index, y)| {
        let (start, length) = (index * block, y.len() / outputs);
        let y = MatrixMut::new(y, length, outputs);
        if shape.is_product() {
            let rows = &x[start * column..][..length * column];
            return multiply(y, Output::Replace, Matrix::new(rows, length, column), weight);
        }
        with_scratch(&COLUMNS, length * column, |columns| {
            shape.gather(x, start..start + length, 0..shape.geometry.kernel, columns);
            multiply(y, Output::Replace, Matrix::new(columns, length, column), weight);
        });
    });
    y
}

/// The gradient `[N, H, W, C]` of the images, of `dy [N, H', W', O]`.
pub(crate) fn backward_images(shape: &Shape, weight: &[f32], dy: &[f32]) -> Vec<f32> {
    let Geometry { kernel, stride, padding } = shape.geometry;
    if stride != 1 || padding >= kernel {
        return scatter_images(shape, weight, dy);
    }
    let turned = Shape {
        sides: shape.output_sides,
        output_sides: shape.sides,
        channels: shape.outputs,
        outputs: shape.channels,
        geometry: Geometry { kernel, stride, padding: kernel - 1 - padding },
        ..*shape
    };
    forward(&turned, dy, &turn(shape, weight))
}

/// The weight with its taps in reverse order and `[C, O]` transposed in each.
fn turn(shape: &Shape, weight: &[f32]) -> Vec<f32> {
    let (channels, outputs) = (shape.channels, shape.outputs);
    let mut turned = vec![0.0; weight.len()];
    let tap = (channels * outputs).max(1);
    let taps = turned.par_chunks_mut(tap).zip(weight.par_chunks(tap).rev());
    taps.for_each(|(turned, weight)| {
        for (output, row) in turned.chunks_exact_mut(channels).enumerate() {
            for (channel, value) in row.iter_mut().enumerate() {
                *value = weight[channel * outputs + output];
            }
        }
    });
    turned
}

/// [`backward_images`] by adding columns back, for windows that step over pixels.
fn scatter_images(shape: &Shape, weight: &[f32], dy: &[f32]) -> Vec<f32> {
    let (outputs, column) = (shape.outputs, shape.column());
    let image = shape.sides[0] * shape.sides[1] * shape.channels;
    let mut dx = vec![0.0; shape.images * image];
    let output_pixels = shape.output_pixels();
    if dx.is_empty() || dy.is_empty() {
        return dx;
    }
    let turned = Matrix::new(weight, column, outputs).transposed();
    let block = block_pixels(column);
    let images_per_task = block.div_ceil(output_pixels);
    dx.par_chunks_mut(images_per_task * image).enumerate().for_each(|(index, dx)| {
        let first = index * images_per_task;
        let end = first + dx.len() / image;
        for pixels in blocks(first * output_pixels..end * output_pixels, block) {
            with_scratch(&COLUMNS, pixels.len() * column, |columns| {
                let dy = &dy[pixels.start * outputs..pixels.end * outputs];
                let product = MatrixMut::new(columns, pixels.len(), column);
                multiply(product, Output::Replace, Matrix::new(dy, pixels.len(), outputs), turned);
                shape.scatter(columns, pixels, first * image, dx);
            });
        }
    });
    dx
}

/// The gradient `[K, K, C, O]` of the weight, of `x [N, H, W, C]` and `dy [N, H', W', O]`.
///
/// A task sums one row of taps over one chunk of the pixels; the chunks, whose number depends on
/// the shape alone, are then added up in order.
pub(crate) fn backward_weight(shape: &Shape, x: &[f32], dy: &[f32]) -> Vec<f32> {
    let (outputs, kernel) = (shape.outputs, shape.geometry.kernel);
    let mut sum = vec![0.0; shape.column() * outputs];
    if sum.is_empty() || dy.is_empty() {
        return sum;
    }
    let row = shape.tap_row();
    let block = block_pixels(row);
    let chunks = (PARTIAL_FLOATS / sum.len()).clamp(4, 16).min(shape.pixels().div_ceil(block));
    let chunk = shape.pixels().div_ceil(chunks).next_multiple_of(block);
    let chunks = shape.pixels().div_ceil(chunk);
    with_scratch(&PARTIALS, chunks * sum.len(), |partials| {
        partials.par_chunks_mut(row * outputs).enumerate().for_each(|(index, partial)| {
            let (start, tap_row) = (index / kernel * chunk, index % kernel);
            let end = (start + chunk).min(shape.pixels());
            sum_tap_row(shape, x, dy, start..end, tap_row, partial);
        });
        let partials = &*partials;
        let length = sum.len();
        let piece = length.div_ceil(16);
        sum.par_chunks_mut(piece).enumerate().for_each(|(index, sum)| {
            for partial in partials.chunks_exact(length) {
                simd::add(Isa::best(), sum, &partial[index * piece..][..sum.len()]);
            }
        });
    });
    sum
}

/// `partial [K, C, O]`: row `tap_row` of the weight's gradient, summed over `pixels`.
fn sum_tap_row(
    shape: &Shape,
    x: &[f32],
    dy: &[f32],
    pixels: Range<usize>,
    tap_row: usize,
    partial: &mut [f32],
) {
    let (row, outputs) = (shape.tap_row(), shape.outputs);
    let mut output = Output::Replace;
    for pixels in blocks(pixels, block_pixels(row)) {
        let length = pixels.len();
        let dy = Matrix::new(&dy[pixels.start * outputs..pixels.end * outputs], length, outputs);
        let out = MatrixMut::new(partial, row, outputs);
        if shape.is_product() {
            let columns = Matrix::new(&x[pixels.start * row..pixels.end * row], length, row);
            multiply(out, output, columns.transposed(), dy);
        } else {
            with_scratch(&COLUMNS, length * row, |columns| {
                shape.gather(x, pixels, tap_row..tap_row + 1, columns);
                multiply(out, output, Matrix::new(columns, length, row).transposed(), dy);
            });
        }
        output = Output::Add;
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

    fn dot(a: &[f32], b: &[f32]) -> f64 {
        assert_eq!(a.len(), b.len());
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    }

    /// Seven loops.
    fn oracle(shape: &Shape, x: &[f32], weight: &[f32]) -> Vec<f32> {
        let ([height, width], [output_height, output_width]) = (shape.sides, shape.output_sides);
        let Geometry { kernel, stride, padding } = shape.geometry;
        let mut y = Vec::new();
        for image in 0..shape.images {
            for (row, column) in
                (0..output_height).flat_map(|row| (0..output_width).map(move |at| (row, at)))
            {
                for output in 0..shape.outputs {
                    let mut sum = 0.0;
                    for (tap_y, tap_x) in (0..kernel).flat_map(|y| (0..kernel).map(move |x| (y, x)))
                    {
                        let (at_y, at_x) = (row * stride + tap_y, column * stride + tap_x);
                        let inside = (padding..padding + height).contains(&at_y)
                            && (padding..padding + width).contains(&at_x);
                        for channel in 0..if inside { shape.channels } else { 0 } {
                            let line = image * height + at_y - padding;
                            let pixel = line * width + at_x - padding;
                            let tap = tap_y * kernel + tap_x;
                            sum += x[pixel * shape.channels + channel]
                                * weight[(tap * shape.channels + channel) * shape.outputs + output];
                        }
                    }
                    y.push(sum);
                }
            }
        }
        y
    }

    proptest! {
        /// Both gradients are the adjoints of the forward pass in one argument:
        /// <dy, conv(x, w)> = <dx(w, dy), x> = <dw(x, dy), w>, for every x, w and dy.
        #[test]
        fn the_passes_are_seven_loops_and_their_adjoints(
            images in 1usize..4, height in 1usize..9, width in 1usize..9,
            channels in 1usize..6, outputs in 1usize..6,
            kernel in 1usize..5, stride in 1usize..4, padding in 0usize..6,
        ) {
            let geometry = Geometry { kernel, stride, padding };
            let (Some(output_height), Some(output_width)) =
                (geometry.output_side(height), geometry.output_side(width))
            else {
                return Ok(());
            };
            let output_sides = [output_height, output_width];
            let sides = [height, width];
            let shape = Shape { images, sides, output_sides, channels, outputs, geometry };
            let x = integers(1, images * height * width * channels);
            let weight = integers(2, shape.column() * outputs);
            let dy = integers(3, shape.pixels() * outputs);
            let y = forward(&shape, &x, &weight);
            prop_assert_eq!(&y, &oracle(&shape, &x, &weight));
            let expected = dot(&dy, &y);
            prop_assert_eq!(dot(&backward_images(&shape, &weight, &dy), &x), expected);
            prop_assert_eq!(dot(&scatter_images(&shape, &weight, &dy), &x), expected);
            prop_assert_eq!(dot(&backward_weight(&shape, &x, &dy), &weight), expected);
        }
    }

    #[test]
    fn blocks_cover_a_range_once_and_in_order() {
        let cut: Vec<_> = blocks(3..12, 4).collect();
        assert_eq!(cut, [3..7, 7..11, 11..12]);
        assert_eq!(blocks(5..5, 4).count(), 0);
    }
}
