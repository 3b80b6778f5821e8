//! One convolution of a plan, for one shape of images: how it is computed, its packed weights, and the
//! three products of training.

use super::indirection::{Route, Window};
use super::kernel::stored::Stored;
use super::kernel::tiles::{Input, Tail};
use super::kernel::weights;
use super::kernel::winograd::{Gradient, gradient};
use super::method::{Kernel, Method};
use super::packing::{self, words};
use super::sums::Sums;
use super::winograd::{self, Grid, POINTS, Windows};
use crate::ops::Geometry;
use crate::ops::cpu::convolution as columns;
use crate::ops::isa::Isa;
use std::ops::Range;

/// Inputs with fewer channels are gathered into columns: a tap of theirs alone is too little work.
const CHANNELS_MIN: usize = 8;

/// A convolution without bias over `[N, H, W, C]`, weight `[K, K, C, O]`. Weights come in f32, and are
/// rounded to elements when they are packed; their gradients are f32.
pub(super) struct Convolution<E: Stored> {
    isa: Isa,
    shape: columns::Shape,
    /// For the forward pass.
    forward: Method,
    /// For the gradient of the images, if it is wanted.
    transposed: Option<Method>,
    zeros: Vec<E>,
}

impl<E: Stored> Convolution<E> {
    /// Ready for `shape`; `wants_images` says whether the gradient of the images will be asked for.
    pub(super) fn new(isa: Isa, shape: columns::Shape, wants_images: bool) -> Self {
        let shape = if shape.is_product() { in_a_row(shape) } else { shape };
        let columns::Shape { images, sides, output_sides, channels, outputs, geometry } = shape;
        let taps = geometry.kernel.pow(2);
        let is_fast = winograd::suits(geometry, sides, [channels, outputs]);
        let method = |window, images_alone| {
            if is_fast {
                return Method::Winograd(Grid::new(images, sides));
            }
            let route = if images_alone { Route::image_by_image } else { Route::new };
            Method::Taps(Box::new(route(window, images, isa.rows())))
        };
        let window = Window { input: sides, output: output_sides, geometry, is_transposed: false };
        let gathered = Window {
            input: output_sides,
            geometry: Geometry { kernel: 1, stride: 1, padding: 0 },
            ..window
        };
        let transposed =
            Window { input: output_sides, output: sides, geometry, is_transposed: true };
        let is_gathered = is_gathered(&shape);
        Self {
            isa,
            shape,
            forward: method(if is_gathered { gathered } else { window }, is_gathered),
            transposed: wants_images.then(|| method(transposed, false)),
            zeros: vec![E::default(); outputs.max(taps * channels)],
        }
    }

    /// Whether the gradient of the images may be asked for.
    pub(super) fn wants_images(&self) -> bool {
        self.transposed.is_some()
    }

    /// Words of its packed weight, in whichever direction it has more.
    pub(super) fn packed_len(&self) -> usize {
        self.forward_len().max(self.transposed_len())
    }

    /// Words of its packed weight for the forward pass.
    pub(super) fn forward_len(&self) -> usize {
        let [taps, inputs] = self.forward_sums();
        taps * words::<E>(inputs) * self.shape.outputs.next_multiple_of(self.isa.block())
    }

    fn is_winograd(&self) -> bool {
        matches!(self.forward, Method::Winograd(_))
    }

    fn transposed_len(&self) -> usize {
        let columns::Shape { channels, outputs, geometry, .. } = self.shape;
        let padded = channels.next_multiple_of(self.isa.block());
        let taps = if self.is_winograd() { POINTS } else { geometry.kernel.pow(2) };
        taps * words::<E>(outputs) * padded
    }

    /// Taps (or points) of the forward pass, and the channels that each sums over: a column has one tap.
    fn forward_sums(&self) -> [usize; 2] {
        if self.is_winograd() {
            [POINTS, self.shape.channels]
        } else if is_gathered(&self.shape) {
            [1, self.shape.column()]
        } else {
            [self.shape.geometry.kernel.pow(2), self.shape.channels]
        }
    }

    /// `weight [K, K, C, O]` as the forward pass reads it, `[blocks, taps, words of C, block]` with
    /// zeros past the last output, at the start of `packed`.
    pub(super) fn pack<'a>(&self, weight: &[f32], packed: &'a mut [E::Word]) -> &'a [E::Word] {
        let (outputs, block) = (self.shape.outputs, self.isa.block());
        let [taps, inputs] = self.forward_sums();
        let packed = &mut packed[..self.forward_len()];
        if self.is_winograd() {
            let windows =
                Windows { channels: [inputs, outputs], steps: [outputs, 1], is_turned: false };
            winograd::pack::<E>(weight, windows, block, packed);
            return packed;
        }
        packing::pack::<E>(weight, [taps, inputs, outputs], block, packed);
        packed
    }

    /// `weight [K, K, C, O]` as the gradient of the images reads it, `[blocks, taps, words of O,
    /// block]` with zeros past the last channel, at the start of `packed`.
    pub(super) fn pack_transposed<'a>(
        &self,
        weight: &[f32],
        packed: &'a mut [E::Word],
    ) -> &'a [E::Word] {
        let columns::Shape { channels, outputs, geometry, .. } = self.shape;
        let (block, taps) = (self.isa.block(), geometry.kernel.pow(2));
        let packed = &mut packed[..self.transposed_len()];
        if self.is_winograd() {
            let windows =
                Windows { channels: [outputs, channels], steps: [1, outputs], is_turned: true };
            winograd::pack::<E>(weight, windows, block, packed);
            return packed;
        }
        packing::pack_transposed::<E>(weight, [taps, channels, outputs], block, packed);
        packed
    }

    fn forward_kernel<'a>(&'a self, weights: &'a [E::Word]) -> Kernel<'a, E> {
        let [_, channels] = self.forward_sums();
        self.forward.with(self.isa, [channels, self.shape.outputs], weights, &self.zeros)
    }

    fn transposed_kernel<'a>(&'a self, weights: &'a [E::Word]) -> Option<Kernel<'a, E>> {
        let columns::Shape { channels, outputs, .. } = self.shape;
        let method = self.transposed.as_ref()?;
        Some(method.with(self.isa, [outputs, channels], weights, &self.zeros))
    }

    /// Floats of the sums of the forward pass, and of the gradient of the images.
    pub(super) fn sums_len(&self) -> usize {
        let transposed = self.transposed_kernel(&[]).map_or(0, |kernel| kernel.sums_len());
        transposed.max(self.forward_kernel(&[]).sums_len())
    }

    /// Floats of scratch that [`Convolution::gradient`] needs.
    pub(super) fn scratch_len(&self) -> usize {
        match self.fast_gradient() {
            Some(gradient) => gradient.scratch_len(),
            None => self.gradient_shape().scratch_len(),
        }
    }

    fn fast_gradient(&self) -> Option<Gradient<'_>> {
        let Method::Winograd(grid) = &self.forward else { return None };
        let channels = [self.shape.channels, self.shape.outputs];
        Some(Gradient { isa: self.isa, grid, channels })
    }

    /// `y [N, H', W', O]` of `x [N, H, W, C]`, finished by `tail`; sums of y and its squares per
    /// channel, if they are asked for.
    pub(super) fn forward(
        &self,
        packed: &[E::Word],
        x: &[E],
        y: &mut [E],
        tail: Tail<'_, E>,
        sums: Option<&mut Sums>,
    ) {
        let kernel = self.forward_kernel(packed);
        self.with_input(x, |input| kernel.run(input, y, tail, sums));
    }

    /// The gradient of the images, of `dy [N, H', W', O]`, finished by `tail`; sums of it and of it
    /// times `tail.factor`, if they are asked for.
    ///
    /// # Panics
    /// If it was not wanted when this was made.
    pub(super) fn backward(
        &self,
        packed: &[E::Word],
        dy: &[E],
        dx: &mut [E],
        tail: Tail<'_, E>,
        sums: Option<&mut Sums>,
    ) {
        let kernel = self.transposed_kernel(packed).expect("the gradient of the images was wanted");
        kernel.run(Input::Images(dy), dx, tail, sums);
    }

    /// The gradient `dw [K, K, C, O]` of the weight, of `x` and `dy`.
    pub(super) fn gradient(&self, x: &[E], dy: &[E], dw: &mut [f32], scratch: &mut [f32]) {
        if let Some(fast) = self.fast_gradient() {
            return gradient(&fast, x, dy, dw, scratch);
        }
        let shape = self.gradient_shape();
        self.with_input(x, |input| weights::gradient(&shape, input, dy, dw, scratch));
    }

    fn gradient_shape(&self) -> weights::Shape {
        let columns::Shape { images, sides, output_sides, channels, outputs, geometry } =
            self.shape;
        let shape = weights::Shape {
            isa: self.isa,
            images,
            bundle: E::PER_WORD,
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
    fn with_input(&self, x: &[E], work: impl FnOnce(Input<'_, E>)) {
        if !is_gathered(&self.shape) {
            return work(Input::Images(x));
        }
        let [height, width] = self.shape.output_sides;
        let gather = |image: usize, pixels: Range<usize>, columns: &mut [E]| {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::element::{Bf16, Element};
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

    fn stored<E: Element>(values: &[f32]) -> Vec<E> {
        values.iter().map(|&value| E::narrow(value)).collect()
    }

    fn check(shape: columns::Shape) {
        check_stored::<f32>(shape);
        check_stored::<Bf16>(shape);
    }

    /// Every product and sum of one shape, on every isa, against the loops over columns. Operands are
    /// integers that bf16 holds, and sums of them are exact: what is stored is their rounding.
    fn check_stored<E: Stored>(shape: columns::Shape) {
        let columns::Shape { images, sides, output_sides, channels, outputs, geometry } = shape;
        let pixels = |sides: [usize; 2]| images * sides[0] * sides[1];
        let x = integers(1, pixels(sides) * channels);
        let weight = integers(2, geometry.kernel.pow(2) * channels * outputs);
        let dy = integers(3, pixels(output_sides) * outputs);
        let y = columns::forward(&shape, &x, &weight);
        let dx = columns::backward_images(&shape, &weight, &dy);
        let dw = columns::backward_weight(&shape, &x, &dy);
        let (x, dy) = (stored::<E>(&x), stored::<E>(&dy));
        for isa in Isa::available() {
            let convolution = Convolution::<E>::new(isa, shape, true);
            // What another product left in the room must not matter.
            let left = E::join(E::narrow(7.0), E::narrow(9.0));
            let mut packed = vec![left; convolution.packed_len() + 7];
            let forward = convolution.pack(&weight, &mut packed);
            let mut sums = Sums::default();
            sums.grow(channels.max(outputs), convolution.sums_len());
            let mut found = stored::<E>(&integers(4, y.len()));
            convolution.forward(forward, &x, &mut found, Tail::default(), Some(&mut sums));
            assert_eq!(found, stored::<E>(&y), "forward on {isa:?} of {shape:?}");
            for (channel, total) in sums.first[..outputs].iter().enumerate() {
                let column = || y.iter().skip(channel).step_by(outputs).map(|&y| f64::from(y));
                assert_eq!(*total, column().sum::<f64>(), "sum");
                assert_close(sums.second[channel], column().map(|y| y * y).sum());
            }
            let (before, output, factor) =
                (integers(5, dx.len()), integers(6, dx.len()), integers(7, dx.len()));
            let expected: Vec<f32> = dx
                .iter()
                .zip(&before)
                .zip(&output)
                .map(|((dx, before), &output)| if output > 0.0 { dx + before } else { 0.0 })
                .collect();
            let (mut found, output) = (stored::<E>(&before), stored::<E>(&output));
            let stored_factor = stored::<E>(&factor);
            let (passed, of_sum) = (Some(&*output), Some(&*stored_factor));
            let tail = Tail { accumulates: true, passed, factor: of_sum, ..Tail::default() };
            let transposed = convolution.pack_transposed(&weight, &mut packed);
            convolution.backward(transposed, &dy, &mut found, tail, Some(&mut sums));
            assert_eq!(found, stored::<E>(&expected), "backward on {isa:?} of {shape:?}");
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

    /// y = sum over taps and channels of x w: three loops in f64, of what bf16 holds of the operands.
    /// The error is the output's rounding, at most 2^-8 of it, and that of an f32 sum of `terms` products,
    /// at most `terms` 2^-24 of their sizes.
    #[test]
    fn bf16_of_any_numbers_is_off_by_its_rounding_alone() {
        let geometry = Geometry { kernel: 3, stride: 2, padding: 1 };
        let noise = |seed: usize, length: usize| -> Vec<f32> {
            (0..length).map(|i| ((i * 7919 + seed * 104_729) % 1009) as f32 / 504.5 - 1.0).collect()
        };
        for (images, side, channels, outputs) in [(7, 15, 20, 48), (33, 5, 3, 20), (1, 28, 48, 3)] {
            let shape = shape(images, [side; 2], [channels, outputs], geometry).expect("it fits");
            let output_side = shape.output_sides[0];
            let x = stored::<Bf16>(&noise(1, images * side * side * channels));
            let weight = noise(2, 9 * channels * outputs);
            let held: Vec<f64> =
                weight.iter().map(|&w| f64::from(Bf16::narrow(w).widen())).collect();
            let terms = |index: usize| {
                let (pixel, output) = (index / outputs, index % outputs);
                let (image, pixel) = (pixel / output_side.pow(2), pixel % output_side.pow(2));
                let (x, held) = (&x, &held);
                (0..9).flat_map(move |tap| {
                    let inside = |at: usize| (1..=side).contains(&at);
                    let row = pixel / output_side * 2 + tap / 3;
                    let column = pixel % output_side * 2 + tap % 3;
                    let seen = if inside(row) && inside(column) { channels } else { 0 };
                    (0..seen).map(move |channel| {
                        let place = (image * side + row - 1) * side + column - 1;
                        let x = x[place * channels + channel].widen();
                        f64::from(x) * held[(tap * channels + channel) * outputs + output]
                    })
                })
            };
            for isa in Isa::available() {
                let convolution = Convolution::<Bf16>::new(isa, shape, false);
                let mut packed = vec![0; convolution.forward_len()];
                convolution.pack(&weight, &mut packed);
                let mut y = vec![Bf16::default(); images * output_side.pow(2) * outputs];
                convolution.forward(&packed, &x, &mut y, Tail::default(), None);
                for (index, y) in y.iter().enumerate() {
                    let exact: f64 = terms(index).sum();
                    let size: f64 = terms(index).map(f64::abs).sum();
                    let most = exact.abs() / 256.0 + size * (9 * channels) as f64 / 2f64.powi(24);
                    let error = (f64::from(y.widen()) - exact).abs();
                    assert!(error <= most * 1.01, "{y:?} is not {exact} on {isa}");
                }
            }
        }
    }

    /// What is not a number, or has no end, in one channel of one pixel reaches the outputs that see
    /// it and no others, also where it is the last of an odd number of channels.
    #[test]
    fn what_is_no_number_stays_visible_and_in_its_place() {
        let geometry = Geometry { kernel: 1, stride: 1, padding: 0 };
        let shape = shape(2, [5, 3], [9, 17], geometry).expect("it fits");
        for (spoilt, is_spoilt) in
            [(f32::NAN, f32::is_nan as fn(f32) -> bool), (f32::INFINITY, f32::is_infinite)]
        {
            for isa in Isa::available() {
                let convolution = Convolution::<Bf16>::new(isa, shape, false);
                let mut packed = vec![0; convolution.forward_len()];
                convolution.pack(&[1.0; 9 * 17], &mut packed);
                let mut x = vec![Bf16::narrow(1.0); 2 * 15 * 9];
                x[4 * 9 + 8] = Bf16::narrow(spoilt);
                let mut y = vec![Bf16::default(); 2 * 15 * 17];
                convolution.forward(&packed, &x, &mut y, Tail::default(), None);
                for (index, y) in y.iter().enumerate() {
                    let y = y.widen();
                    assert!(if index / 17 == 4 { is_spoilt(y) } else { y == 9.0 }, "{index}: {y}");
                }
            }
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

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn fewer_products_equal_the_loops_over_columns(
            images in 1usize..8, height in 6usize..18, width in 6usize..18,
            channels in 1usize..5, outputs in 1usize..5,
        ) {
            let geometry = Geometry { kernel: 3, stride: 1, padding: 1 };
            let channels = [channels, outputs].map(|vectors| 16 * vectors);
            let shape = shape(images, [height, width], channels, geometry).expect("a window fits");
            prop_assert!(Convolution::<f32>::new(Isa::PORTABLE, shape, true).is_winograd());
            check(shape);
        }
    }

    /// Root of the mean squared error of all outputs, over that of the outputs themselves, of random
    /// numbers that `E` holds, on every isa.
    fn errors<E: Stored>(channels: usize) -> Vec<f64> {
        let geometry = Geometry { kernel: 3, stride: 1, padding: 1 };
        let shape = shape(2, [12, 14], [channels; 2], geometry).expect("a window fits");
        let noise = |seed: usize, length: usize| -> Vec<f32> {
            let number = |i| ((i * 7919 + seed * 104_729) % 1009) as f32 / 504.5 - 1.0;
            (0..length).map(|i| E::narrow(number(i)).widen()).collect()
        };
        let (x, weight) = (noise(1, 2 * 168 * channels), noise(2, 9 * channels * channels));
        let exact = columns::forward(&shape, &x, &weight);
        let x = stored::<E>(&x);
        let error = |isa| {
            let convolution = Convolution::<E>::new(isa, shape, false);
            let mut packed = vec![E::Word::default(); convolution.forward_len()];
            convolution.pack(&weight, &mut packed);
            let mut y = vec![E::default(); exact.len()];
            convolution.forward(&packed, &x, &mut y, Tail::default(), None);
            let squares = |numbers: &mut dyn Iterator<Item = f32>| -> f64 {
                numbers.map(|number| f64::from(number).powi(2)).sum()
            };
            let off = squares(&mut y.iter().zip(&exact).map(|(y, exact)| y.widen() - exact));
            (off / squares(&mut exact.iter().copied())).sqrt()
        };
        Isa::available().into_iter().map(error).collect()
    }

    /// Products of transformed numbers are rounded where the window's own are: a few of the last places
    /// of f32, and of bf16, in which the transformed are stored.
    #[test]
    fn fewer_products_are_off_by_a_few_roundings() {
        for channels in [16, 64] {
            for error in errors::<f32>(channels) {
                assert!(error < 8.0 / 2f64.powi(24), "{error:e} of f32, {channels} channels");
            }
            for error in errors::<Bf16>(channels) {
                assert!(error < 1.5 / 2f64.powi(8), "{error:e} of bf16, {channels} channels");
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
            (1, 28, [3, 48], window(3, 1)),
            (33, 15, [20, 3], window(3, 1)),
            // By Winograd's products; odd sides leave a part of the last tiles outside.
            (7, 33, [32, 48], window(3, 1)),
            (33, 8, [64, 16], window(3, 1)),
            (1, 28, [48, 64], window(3, 1)),
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
            let convolution = Convolution::<f32>::new(isa, shape, false);
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
