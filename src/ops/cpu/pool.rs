//! Pooling over images `[H, W, C]`, one image a task.

use crate::ops::Geometry;
use crate::ops::element::Element;
use crate::ops::isa::Isa;
use crate::ops::simd;
use rayon::prelude::*;

/// The sizes of one pooling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// H and W.
    pub(crate) sides: [usize; 2],
    /// H' and W'.
    pub(crate) output_sides: [usize; 2],
    /// C.
    pub(crate) channels: usize,
    /// How the window moves.
    pub(crate) geometry: Geometry,
}

/// The stem of a residual network for ImageNet (He et al. 2015, arXiv:1512.03385, table 1).
pub(crate) const MAX_POOL: Geometry = Geometry { kernel: 3, stride: 2, padding: 1 };

impl Shape {
    /// [`MAX_POOL`] over images of these sides, which it halves and rounds up.
    pub(crate) fn max_pool(sides: [usize; 2], channels: usize) -> Self {
        let output_sides = sides.map(|side| side.div_ceil(MAX_POOL.stride));
        Self { sides, output_sides, channels, geometry: MAX_POOL }
    }

    /// Floats of an image.
    pub(crate) fn image(&self) -> usize {
        self.sides[0] * self.sides[1] * self.channels
    }

    /// Floats of an image's result.
    pub(crate) fn output(&self) -> usize {
        self.output_sides[0] * self.output_sides[1] * self.channels
    }

    /// Where the pixels of output pixel `pixel`'s window start in an image, padding left out.
    fn window(&self, pixel: usize) -> impl Iterator<Item = usize> {
        let Self { sides: [height, width], output_sides, channels, geometry } = *self;
        let Geometry { kernel, stride, padding } = geometry;
        let (y, x) = (pixel / output_sides[1] * stride, pixel % output_sides[1] * stride);
        let inside = move |position: usize, side: usize| {
            position.saturating_sub(padding)..(position + kernel).saturating_sub(padding).min(side)
        };
        inside(y, height)
            .flat_map(move |y| inside(x, width).map(move |x| (y * width + x) * channels))
    }
}

/// The mean over the pixels of each image: `means [N, C]` of `x [N, P, C]`.
pub(crate) fn average<E: Element>(x: &[E], pixels: usize, channels: usize, means: &mut [f32]) {
    let images = means.par_chunks_mut(channels).zip(x.par_chunks(pixels * channels));
    images.for_each(|(mean, image)| {
        mean.fill(0.0);
        for pixel in image.chunks_exact(channels) {
            simd::add(Isa::best(), mean, pixel);
        }
        mean.iter_mut().for_each(|value| *value /= pixels as f32);
    });
}

/// The gradient `dx [N, P, C]` of [`average`]'s input, of `dy [N, C]`.
pub(crate) fn backward_average<E: Element>(dy: &[E], pixels: usize, channels: usize, dx: &mut [E]) {
    let images = dx.par_chunks_mut(pixels * channels).zip(dy.par_chunks(channels));
    images.for_each(|(image, dy)| {
        for pixel in image.chunks_exact_mut(channels) {
            for (dx, dy) in pixel.iter_mut().zip(dy) {
                *dx = E::narrow(dy.widen() / pixels as f32);
            }
        }
    });
}

/// The greatest value of each window and channel: `y [N, H', W', C]` of `x [N, H, W, C]`.
pub(crate) fn maximum<E: Element>(shape: &Shape, x: &[E], y: &mut [E]) {
    let images = y.par_chunks_mut(shape.output()).zip(x.par_chunks(shape.image()));
    images.for_each(|(y, x)| {
        y.fill(E::narrow(f32::NEG_INFINITY));
        for (pixel, best) in y.chunks_exact_mut(shape.channels).enumerate() {
            for start in shape.window(pixel) {
                simd::raise(Isa::best(), best, &x[start..][..shape.channels]);
            }
        }
    });
}

/// The gradient `dx [N, H, W, C]` of [`maximum`]'s input; among equals the first pixel gets it.
/// `unclaimed [N, C]` is scratch.
pub(crate) fn backward_maximum<E: Element>(
    shape: &Shape,
    [x, y, dy]: [&[E]; 3],
    unclaimed: &mut [E],
    dx: &mut [E],
) {
    let channels = shape.channels;
    let images = dx.par_chunks_mut(shape.image()).zip(x.par_chunks(shape.image()));
    let outputs = y.par_chunks(shape.output()).zip(dy.par_chunks(shape.output()));
    let images = images.zip(unclaimed.par_chunks_mut(channels));
    images.zip(outputs).for_each(|(((dx, x), unclaimed), (y, dy))| {
        dx.fill(E::default());
        let pixels = y.chunks_exact(channels).zip(dy.chunks_exact(channels));
        for (pixel, (y, dy)) in pixels.enumerate() {
            unclaimed.copy_from_slice(dy);
            for start in shape.window(pixel) {
                let range = start..start + channels;
                simd::claim(Isa::best(), &x[range.clone()], y, unclaimed, &mut dx[range]);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::element::Bf16;

    /// Small integers with many equal ones: bf16 holds them, and sums of a few.
    fn integers<E: Element>(seed: usize, length: usize) -> Vec<E> {
        (0..length).map(|i| E::narrow(((i * 7919 + seed * 31) % 7) as f32 - 3.0)).collect()
    }

    /// Everything that is pooled, forward and backward, and the means.
    fn pool<E: Element>(images: usize, side: usize, channels: usize) -> (Vec<E>, Vec<f32>) {
        let shape = Shape::max_pool([side; 2], channels);
        let x = integers::<E>(1, images * shape.image());
        let mut y = vec![E::default(); images * shape.output()];
        maximum(&shape, &x, &mut y);
        let dy = integers::<E>(2, y.len());
        let (mut unclaimed, mut dx) = (integers(3, images * channels), integers(4, x.len()));
        backward_maximum(&shape, [&x, &y, &dy], &mut unclaimed, &mut dx);
        let mut means = vec![0.0; images * channels];
        average(&x, side * side, channels, &mut means);
        let mut dmeans = integers(5, x.len());
        backward_average(&dy[..images * channels], side * side, channels, &mut dmeans);
        ([y, dx, dmeans].concat(), means)
    }

    /// The f32 pools are held to candle's in `candle/pool.rs`.
    #[test]
    fn pools_of_bf16_round_those_of_f32() {
        for (images, side, channels) in [(1, 15, 3), (7, 28, 20), (3, 33, 48)] {
            let (expected, expected_means) = pool::<f32>(images, side, channels);
            let (found, means) = pool::<Bf16>(images, side, channels);
            let rounded: Vec<Bf16> = expected.into_iter().map(Bf16::narrow).collect();
            assert!(found == rounded && means == expected_means, "{images} x {side} x {channels}");
        }
    }
}
