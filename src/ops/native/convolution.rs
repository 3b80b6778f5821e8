//! One convolution of a plan, for one shape of images: its routes, its packed weights, and the
//! three products of training.

use super::indirection::{Route, Window};
use super::kernel::tiles::{self, Input, Tail};
use super::kernel::weights;
use super::sums::Sums;
use crate::ops::Geometry;
use crate::ops::cpu::convolution as columns;
use crate::ops::isa::Isa;
use rayon::prelude::*;
use std::ops::Range;

/// Inputs with fewer channels are gathered into columns: a tap of theirs alone is too little work.
const CHANNELS_MIN: usize = 8;

/// A convolution without bias over `[N, H, W, C]`, weight `[K, K, C, O]`.
pub(super) struct Convolution {
    isa: Isa,
    shape: columns::Shape,
    /// For the forward pass; over columns where the input is gathered.
    route: Route,
    /// For the gradient of the images, if it is wanted.
    transposed: Option<Route>,
    zeros: Vec<f32>,
}

impl Convolution {
    /// Ready for `shape`; `wants_images` says whether the gradient of the images will be asked for.
    pub(super) fn new(isa: Isa, shape: columns::Shape, wants_images: bool) -> Self {
        let shape = if shape.is_product() { in_a_row(shape) } else { shape };
        let columns::Shape { images, sides, output_sides, channels, outputs, geometry } = shape;
        let is_gathered = is_gathered(&shape);
        let route = if is_gathered {
            let geometry = Geometry { kernel: 1, stride: 1, padding: 0 };
            let (input, output) = (output_sides, output_sides);
            let window = Window { input, output, geometry, is_transposed: false };
            Route::image_by_image(window, images, isa.rows())
        } else {
            let (input, output) = (sides, output_sides);
            let window = Window { input, output, geometry, is_transposed: false };
            Route::new(window, images, isa.rows())
        };
        let taps = geometry.kernel.pow(2);
        let transposed = wants_images.then(|| {
            let window =
                Window { input: output_sides, output: sides, geometry, is_transposed: true };
            Route::new(window, images, isa.rows())
        });
        Self { isa, shape, route, transposed, zeros: vec![0.0; outputs.max(taps * channels)] }
    }

    /// Whether the gradient of the images may be asked for.
    pub(super) fn wants_images(&self) -> bool {
        self.transposed.is_some()
    }

    /// Floats of its packed weight, in whichever direction it has more.
    pub(super) fn packed_len(&self) -> usize {
        self.forward_len().max(self.transposed_len())
    }

    /// Floats of its packed weight for the forward pass.
    pub(super) fn forward_len(&self) -> usize {
        let columns::Shape { channels, outputs, geometry, .. } = self.shape;
        geometry.kernel.pow(2) * channels * outputs.next_multiple_of(self.isa.block())
    }

    fn transposed_len(&self) -> usize {
        let columns::Shape { channels, outputs, geometry, .. } = self.shape;
        geometry.kernel.pow(2) * outputs * channels.next_multiple_of(self.isa.block())
    }

    /// `weight [K, K, C, O]` as the forward pass reads it, `[blocks, taps, C, block]` with zeros past
    /// the last output, at the start of `packed`.
    pub(super) fn pack<'a>(&self, weight: &[f32], packed: &'a mut [f32]) -> &'a [f32] {
        let columns::Shape { channels, outputs, geometry, .. } = self.shape;
        let (block, taps) = (self.isa.block(), geometry.kernel.pow(2));
        let tap = channels * outputs;
        let packed = &mut packed[..self.forward_len()];
        packed.par_chunks_mut(channels * block).enumerate().for_each(|(index, rows)| {
            let (first, weight) = (index / taps * block, &weight[index % taps * tap..][..tap]);
            let columns = block.min(outputs - first);
            for (row, weight) in rows.chunks_exact_mut(block).zip(weight.chunks_exact(outputs)) {
                row[..columns].copy_from_slice(&weight[first..first + columns]);
                row[columns..].fill(0.0);
            }
        });
        packed
    }

    /// `weight [K, K, C, O]` as the gradient of the images reads it, `[blocks, taps, O, block]` with
    /// zeros past the last channel, at the start of `packed`.
    pub(super) fn pack_transposed<'a>(&self, weight: &[f32], packed: &'a mut [f32]) -> &'a [f32] {
        let columns::Shape { channels, outputs, geometry, .. } = self.shape;
        let (block, taps) = (self.isa.block(), geometry.kernel.pow(2));
        let tap = channels * outputs;
        let packed = &mut packed[..self.transposed_len()];
        packed.par_chunks_mut(outputs * block).enumerate().for_each(|(index, rows)| {
            let (first, weight) = (index / taps * block, &weight[index % taps * tap..][..tap]);
            let columns = block.min(channels - first);
            for row in rows.chunks_exact_mut(block) {
                row[columns..].fill(0.0);
            }
            let weight = weight[first * outputs..].chunks_exact(outputs).take(columns);
            for (column, weight) in weight.enumerate() {
                for (row, &value) in rows.chunks_exact_mut(block).zip(weight) {
                    row[column] = value;
                }
            }
        });
        packed
    }

    fn forward_kernel<'a>(&'a self, weights: &'a [f32]) -> tiles::Convolution<'a> {
        tiles::Convolution {
            isa: self.isa,
            route: &self.route,
            channels: if is_gathered(&self.shape) {
                self.shape.column()
            } else {
                self.shape.channels
            },
            outputs: self.shape.outputs,
            weights,
            zeros: &self.zeros,
        }
    }

    fn transposed_kernel<'a>(&'a self, weights: &'a [f32]) -> Option<tiles::Convolution<'a>> {
        Some(tiles::Convolution {
            isa: self.isa,
            route: self.transposed.as_ref()?,
            channels: self.shape.outputs,
            outputs: self.shape.channels,
            weights,
            zeros: &self.zeros,
        })
    }

    /// Floats of the sums of the forward pass, and of the gradient of the images.
    pub(super) fn sums_len(&self) -> usize {
        let transposed = self.transposed_kernel(&[]).map_or(0, |kernel| kernel.sums_len());
        transposed.max(self.forward_kernel(&[]).sums_len())
    }

    /// Floats of scratch that [`Convolution::gradient`] needs.
    pub(super) fn scratch_len(&self) -> usize {
        self.gradient_shape().scratch_len()
    }

    /// `y [N, H', W', O]` of `x [N, H, W, C]`, finished by `tail`; sums of y and its squares per
    /// channel, if they are asked for.
    pub(super) fn forward(
        &self,
        packed: &[f32],
        x: &[f32],
        y: &mut [f32],
        tail: Tail<'_>,
        sums: Option<&mut Sums>,
    ) {
        let kernel = self.forward_kernel(packed);
        self.with_input(x, |input| run(&kernel, input, y, tail, sums));
    }

    /// The gradient of the images, of `dy [N, H', W', O]`, finished by `tail`; sums of it and of it
    /// times `tail.factor`, if they are asked for.
    ///
    /// # Panics
    /// If it was not wanted when this was made.
    pub(super) fn backward(
        &self,
        packed: &[f32],
        dy: &[f32],
        dx: &mut [f32],
        tail: Tail<'_>,
        sums: Option<&mut Sums>,
    ) {
        let kernel = self.transposed_kernel(packed).expect("the gradient of the images was wanted");
        run(&kernel, Input::Images(dy), dx, tail, sums);
    }

    /// The gradient `dw [K, K, C, O]` of the weight, of `x` and `dy`.
    pub(super) fn gradient(&self, x: &[f32], dy: &[f32], dw: &mut [f32], scratch: &mut [f32]) {
        let shape = self.gradient_shape();
        self.with_input(x, |input| weights::gradient(&shape, input, dy, dw, scratch));
    }

    fn gradient_shape(&self) -> weights::Shape {
        let columns::Shape { images, sides, output_sides, channels, outputs, geometry } =
            self.shape;
        let shape = weights::Shape {
            isa: self.isa,
            images,
            sides,
            output_sides,
            channels,
            outputs,
            geometry,
        };
        if is_gathered(&self.shape) {
            let geometry = Geometry { kernel: 1, stride: 1, padding: 0 };
            weights::Shape { sides: output_sides, channels: self.shape.column(), geometry, ..shape }
        } else {
            shape
        }
    }

    /// Calls `work` with `x` as the kernels read it.
    fn with_input(&self, x: &[f32], work: impl FnOnce(Input<'_>)) {
        if !is_gathered(&self.shape) {
            return work(Input::Images(x));
        }
        let [height, width] = self.shape.output_sides;
        let gather = |image: usize, pixels: Range<usize>, columns: &mut [f32]| {
            let first = image * height * width;
            let pixels = first + pixels.start..first + pixels.end;
            self.shape.gather(x, pixels, 0..self.shape.geometry.kernel, columns);
        };
        work(Input::Columns(&gather));
    }
}

/// Every pixel an image of its own. Where each is read alone, neighbours may come from one image: rows
/// of a tile that lie images apart would claim the same few lines of a cache.
fn in_a_row(shape: columns::Shape) -> columns::Shape {
    let images = shape.images * shape.sides[0] * shape.sides[1];
    columns::Shape { images, sides: [1, 1], output_sides: [1, 1], ..shape }
}

fn is_gathered(shape: &columns::Shape) -> bool {
    shape.channels < CHANNELS_MIN && !shape.is_product()
}

fn run(
    kernel: &tiles::Convolution<'_>,
    input: Input<'_>,
    output: &mut [f32],
    tail: Tail<'_>,
    sums: Option<&mut Sums>,
) {
    let Some(sums) = sums else { return tiles::convolve(kernel, input, output, tail, &mut []) };
    let length = kernel.sums_len();
    tiles::convolve(kernel, input, output, tail, &mut sums.parts[..length]);
    let padded = kernel.outputs.next_multiple_of(kernel.isa.block());
    sums.add_up(kernel.outputs, padded, length);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Small integers: every order of summation gives the same numbers.
    fn integers(seed: usize, length: usize) -> Vec<f32> {
        (0..length).map(|i| ((i * 7919 + seed * 31) % 7) as f32 - 3.0).collect()
    }

    fn shape(
        images: usize,
        sides: [usize; 2],
        [channels, outputs]: [usize; 2],
        geometry: Geometry,
    ) -> Option<columns::Shape> {
        let output_sides = [geometry.output_side(sides[0])?, geometry.output_side(sides[1])?];
        Some(columns::Shape { images, sides, output_sides, channels, outputs, geometry })
    }

    /// Squares outgrow the integers that f32 holds.
    fn assert_close(found: f64, expected: f64) {
        assert!((found - expected).abs() <= 1e-5 * expected, "{found} is not {expected}");
    }

    /// Every product and sum of one shape, on every isa, against the loops over columns.
    fn check(shape: columns::Shape) {
        let columns::Shape { images, sides, output_sides, channels, outputs, geometry } = shape;
        let pixels = |sides: [usize; 2]| images * sides[0] * sides[1];
        let x = integers(1, pixels(sides) * channels);
        let weight = integers(2, geometry.kernel.pow(2) * channels * outputs);
        let dy = integers(3, pixels(output_sides) * outputs);
        let y = columns::forward(&shape, &x, &weight);
        let dx = columns::backward_images(&shape, &weight, &dy);
        let dw = columns::backward_weight(&shape, &x, &dy);
        for isa in Isa::available() {
            let convolution = Convolution::new(isa, shape, true);
            // What another product left in the room must not matter.
            let mut packed = integers(8, convolution.packed_len() + 7);
            let forward = convolution.pack(&weight, &mut packed);
            let mut sums = Sums::default();
            sums.grow(channels.max(outputs), convolution.sums_len());
            let mut found = integers(4, y.len());
            convolution.forward(forward, &x, &mut found, Tail::default(), Some(&mut sums));
            assert_eq!(found, y, "forward on {isa:?} of {shape:?}");
            for (channel, total) in sums.first[..outputs].iter().enumerate() {
                let column = || y.iter().skip(channel).step_by(outputs).map(|&y| f64::from(y));
                assert_eq!(*total, column().sum::<f64>(), "sum");
                assert_close(sums.second[channel], column().map(|y| y * y).sum());
            }
            let (before, output, factor) =
                (integers(5, dx.len()), integers(6, dx.len()), integers(7, dx.len()));
            let mut found = before.clone();
            let (passed, factor) = (Some(&*output), Some(&*factor));
            let tail = Tail { accumulates: true, passed, factor, ..Tail::default() };
            let transposed = convolution.pack_transposed(&weight, &mut packed);
            convolution.backward(transposed, &dy, &mut found, tail, Some(&mut sums));
            let expected: Vec<f32> = dx
                .iter()
                .zip(&before)
                .zip(&output)
                .map(|((dx, before), &output)| if output > 0.0 { dx + before } else { 0.0 })
                .collect();
            assert_eq!(found, expected, "backward on {isa:?} of {shape:?}");
            let factor = factor.expect("it was given");
            for channel in 0..channels {
                let product = |i: usize| f64::from(expected[i]) * f64::from(factor[i]);
                let places = || (channel..expected.len()).step_by(channels);
                let size: f64 = places().map(|i| product(i).abs()).sum();
                let error = sums.second[channel] - places().map(product).sum::<f64>();
                assert!(error.abs() <= 1e-5 * size, "products of {shape:?}");
            }
            let mut found = integers(8, dw.len());
            let mut scratch = integers(9, convolution.scratch_len());
            convolution.gradient(&x, &dy, &mut found, &mut scratch);
            assert_eq!(found, dw, "gradient of the weight on {isa:?} of {shape:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_shape_equals_the_loops_over_columns(
            images in 1usize..20, height in 1usize..14, width in 1usize..14,
            channels in 1usize..40, outputs in 1usize..40, kernel in 1usize..5,
            stride in 1usize..4, padding in 0usize..3,
        ) {
            let geometry = Geometry { kernel, stride, padding };
            // A window wholly in the padding is nobody's architecture.
            if padding < kernel && let Some(shape) = shape(images, [height, width], [channels, outputs], geometry) {
                check(shape);
            }
        }
    }

    #[test]
    fn shapes_of_the_architectures_equal_the_loops_over_columns() {
        let window = |kernel, stride| Geometry { kernel, stride, padding: kernel / 2 };
        for (images, side, channels, geometry) in [
            (7, 33, [3, 32], window(3, 1)),
            (1, 60, [3, 64], window(7, 2)),
            (33, 4, [48, 64], window(3, 1)),
            (7, 28, [20, 48], window(3, 2)),
            (33, 8, [64, 128], window(1, 2)),
            (2, 15, [64, 20], window(1, 1)),
        ] {
            check(shape(images, [side, side], channels, geometry).expect("a window fits"));
        }
    }

    /// y = max(c + residual + bias, 0).
    #[test]
    fn a_served_tail_adds_residual_and_bias_and_rectifies() {
        let geometry = Geometry { kernel: 3, stride: 1, padding: 1 };
        let shape = shape(3, [9, 7], [10, 21], geometry).expect("a window fits");
        let x = integers(1, 3 * 63 * 10);
        let weight = integers(2, 9 * 210);
        let plain = columns::forward(&shape, &x, &weight);
        let residual = integers(3, plain.len());
        for isa in Isa::available() {
            let convolution = Convolution::new(isa, shape, false);
            let mut packed = vec![0.0; convolution.forward_len()];
            convolution.pack(&weight, &mut packed);
            let mut bias = integers(4, 21);
            bias.resize(21_usize.next_multiple_of(isa.block()), 0.0);
            let (bias, residual) = (Some(&*bias), Some(&*residual));
            let tail = Tail { bias, residual, relu: true, ..Tail::default() };
            let mut found = vec![f32::NAN; plain.len()];
            convolution.forward(&packed, &x, &mut found, tail, None);
            for (i, &found) in found.iter().enumerate() {
                let sum = plain[i] + residual.expect("given")[i] + bias.expect("given")[i % 21];
                assert_eq!(found, sum.max(0.0), "{isa:?} at {i}");
            }
        }
    }
}
