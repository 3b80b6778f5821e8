//! Gaussian blur, as two passes of one dimension each.
//!
//! SimCLR (arXiv 2002.05709, appendix A): the kernel is a tenth of the side wide, and its
//! standard deviation is drawn uniformly. Borders are reflected, as torchvision's
//! `gaussian_blur` does.

use super::canvas::reflect;
use super::{Augmentation, Canvas};
use crate::seed::Rng;
use rand::RngExt;

/// Beyond this many standard deviations a weight is below 2^-24 of the middle one, the rounding
/// of f32: sqrt(2 * 24 * ln 2) = 5.77. At 224 px that leaves 14
/// of 23 taps on average.
const REACH_SIGMAS: f32 = 5.77;

/// Output pixels whose sums are kept in registers at a time: four registers of SSE2, which leaves
/// room to load ahead. A guess.
const LANES: usize = 16;

/// Blurs by a random width.
pub(super) struct Blur {
    sigma_px: [f32; 2],
    radius_px: usize,
    kernel: Vec<f32>,
    padded_row: Vec<f32>,
    blurred_rows: Vec<f32>,
}

impl Blur {
    /// A blur of images of `side_px`, whose standard deviation is drawn from `sigma_px`.
    pub(super) fn new(sigma_px: [f32; 2], side_px: usize) -> Self {
        // 23 taps at 224 px, as both papers state. An image reflects less than its own side.
        let radius_px = (side_px / 20).max(1).min(side_px.saturating_sub(1));
        Self::with_radius(sigma_px, radius_px, side_px)
    }

    pub(super) fn with_radius(sigma_px: [f32; 2], radius_px: usize, side_px: usize) -> Self {
        Self {
            sigma_px,
            radius_px,
            kernel: Vec::with_capacity(2 * radius_px + 1),
            padded_row: vec![0.0; side_px + 2 * radius_px],
            blurred_rows: vec![0.0; side_px * side_px],
        }
    }

    /// Blurs `plane`, `[side_px, side_px]`, by the kernel of the moment.
    fn blur_plane(&mut self, plane: &mut [f32], side_px: usize) {
        let radius_px = self.kernel.len() / 2;
        let inside = |tap: usize| reflect(tap as isize - radius_px as isize, side_px);
        let padded_row = &mut self.padded_row[..side_px + 2 * radius_px];
        let rows = plane.chunks_exact(side_px);
        for (row, blurred) in rows.zip(self.blurred_rows.chunks_exact_mut(side_px)) {
            padded_row[radius_px..radius_px + side_px].copy_from_slice(row);
            for i in (0..radius_px).chain(radius_px + side_px..side_px + 2 * radius_px) {
                padded_row[i] = row[inside(i)];
            }
            weighted_sum(blurred, &self.kernel, |tap| &padded_row[tap..tap + side_px]);
        }
        for (y, out) in plane.chunks_exact_mut(side_px).enumerate() {
            weighted_sum(out, &self.kernel, |tap| {
                let start = inside(y + tap) * side_px;
                &self.blurred_rows[start..start + side_px]
            });
        }
    }
}

impl Augmentation for Blur {
    fn apply(&mut self, canvas: &mut Canvas, rng: &mut Rng) {
        let [least, most] = self.sigma_px;
        gaussian(rng.random_range(least..=most), self.radius_px, &mut self.kernel);
        let side_px = canvas.side_px();
        for plane in canvas.planes_mut() {
            self.blur_plane(plane, side_px);
        }
        // A mean of values up to 1 may round to just above 1.
        canvas.values_mut().iter_mut().for_each(|value| *value = value.min(1.0));
    }
}

/// Makes `kernel` the weights exp(-d^2 / (2 sigma^2)), scaled to a sum of 1, for |d| up to
/// `radius_px` or to where they vanish.
fn gaussian(sigma_px: f32, radius_px: usize, kernel: &mut Vec<f32>) {
    let radius_px = radius_px.min((REACH_SIGMAS * sigma_px).ceil() as usize);
    let weight = |tap: usize| {
        let z = (tap as f32 - radius_px as f32) / sigma_px;
        (-0.5 * z * z).exp()
    };
    kernel.clear();
    kernel.extend((0..=2 * radius_px).map(weight));
    let total: f32 = kernel.iter().sum();
    kernel.iter_mut().for_each(|weight| *weight /= total);
}

/// `out[i] = sum over taps of kernel[tap] * source(tap)[i]`; sources are as long as `out`.
fn weighted_sum<'a>(out: &mut [f32], kernel: &[f32], source: impl Fn(usize) -> &'a [f32]) {
    let len = out.len();
    let (chunks, rest) = out.as_chunks_mut::<LANES>();
    for (chunk_index, chunk) in chunks.iter_mut().enumerate() {
        let mut sums = [0.0; LANES];
        for (tap, &weight) in kernel.iter().enumerate() {
            let values = &source(tap)[chunk_index * LANES..][..LANES];
            for (sum, value) in sums.iter_mut().zip(values) {
                *sum += weight * value;
            }
        }
        *chunk = sums;
    }
    let start = len - rest.len();
    rest.fill(0.0);
    for (tap, &weight) in kernel.iter().enumerate() {
        for (sum, value) in rest.iter_mut().zip(&source(tap)[start..]) {
            *sum += weight * value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::canvas::tests::{distance, noise};
    use super::*;
    use crate::seed::{Purpose, rng};

    fn blur(canvas: &Canvas, sigma_px: f32, radius_px: usize) -> Canvas {
        let mut blurred = canvas.clone();
        Blur::with_radius([sigma_px; 2], radius_px, canvas.side_px())
            .apply(&mut blurred, &mut rng(1, Purpose::View, &[]));
        blurred
    }

    /// The two-dimensional sum over the whole kernel, in f64.
    fn oracle(canvas: &Canvas, sigma_px: f64, radius_px: usize) -> Vec<f32> {
        let side_px = canvas.side_px();
        let radius = radius_px as isize;
        let inside = |at: usize, offset: isize| reflect(at as isize + offset, side_px);
        let mut out = Vec::new();
        for plane in canvas.planes() {
            for y in 0..side_px {
                for x in 0..side_px {
                    let (mut sum, mut total) = (0.0, 0.0);
                    for dy in -radius..=radius {
                        for dx in -radius..=radius {
                            let squared = (dy * dy + dx * dx) as f64;
                            let weight = (-squared / (2.0 * sigma_px * sigma_px)).exp();
                            let value = plane[inside(y, dy) * side_px + inside(x, dx)];
                            sum += weight * f64::from(value);
                            total += weight;
                        }
                    }
                    out.push((sum / total) as f32);
                }
            }
        }
        out
    }

    #[test]
    fn two_passes_agree_with_the_two_dimensional_sum() {
        let mut rng = rng(2, Purpose::View, &[]);
        // 37 pixels are two chunks and a rest; sigma 0.1 shortens the kernel, 2.0 doesn't.
        for (side_px, radius_px) in [(1, 0), (2, 1), (5, 4), (37, 5)] {
            let canvas = noise(side_px, &mut rng);
            for sigma_px in [0.1, 0.5, 2.0] {
                let exact = oracle(&canvas, f64::from(sigma_px), radius_px);
                let blurred = blur(&canvas, sigma_px, radius_px);
                assert!(distance(blurred.values(), &exact) < 1e-6);
            }
        }
    }

    #[test]
    fn a_constant_stays_constant() {
        let mut canvas = Canvas::new(20);
        canvas.values_mut().fill(0.3);
        assert!(distance(blur(&canvas, 1.7, 9).values(), canvas.values()) < 1e-6);
    }

    #[test]
    fn an_impulse_keeps_its_mass_and_becomes_the_bell() {
        let (side_px, middle) = (21, 10);
        let mut canvas = Canvas::new(side_px);
        canvas.planes_mut()[1][middle * side_px + middle] = 1.0;
        let blurred = blur(&canvas, 1.0, 5);
        let [red, green, _] = blurred.planes();
        assert!(red.iter().all(|&value| value == 0.0));
        assert!((green.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        let at = |dy: usize, dx: usize| green[(middle + dy) * side_px + middle + dx];
        assert!((at(0, 1) / at(0, 0) - (-0.5_f32).exp()).abs() < 1e-6);
        assert!((at(2, 1) / at(0, 0) - (-2.5_f32).exp()).abs() < 1e-6);
    }

    #[test]
    fn the_kernel_is_a_tenth_of_the_side_wide() {
        assert_eq!(Blur::new([0.1, 2.0], 224).radius_px, 11);
        assert_eq!(Blur::new([0.1, 2.0], 32).radius_px, 1);
        assert_eq!(Blur::new([0.1, 2.0], 1).radius_px, 0);
    }
}
