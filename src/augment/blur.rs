//! Gaussian blur, as two passes of one dimension each.
//!
//! SimCLR (arXiv 2002.05709, appendix A): the kernel is a tenth of the side wide, and its
//! standard deviation is drawn uniformly. Borders are reflected, as torchvision's
//! `gaussian_blur` does.

use super::canvas::reflect;
use super::{Augmentation, Canvas};
use crate::isa::{Isa, at_every_level};
use crate::seed::Rng;
use rand::RngExt;

/// Beyond this many standard deviations a weight is below 2^-24 of the middle one, the rounding
/// of f32: sqrt(2 * 24 * ln 2) = 5.77. At 224 px that leaves 14
/// of 23 taps on average.
const REACH_SIGMAS: f32 = 5.77;

/// Output pixels whose sums are kept in registers at a time: four registers of AVX2, enough for the
/// sums of one to start while those of another are under way.
const LANES: usize = 32;

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
            kernel: Vec::with_capacity(radius_px + 1),
            padded_row: vec![0.0; side_px + 2 * radius_px],
            blurred_rows: vec![0.0; side_px * side_px],
        }
    }
}

impl Augmentation for Blur {
    fn apply(&mut self, canvas: &mut Canvas, rng: &mut Rng) {
        let [least, most] = self.sigma_px;
        gaussian(rng.random_range(least..=most), self.radius_px, &mut self.kernel);
        let side_px = canvas.side_px();
        let Self { kernel, padded_row, blurred_rows, .. } = self;
        for plane in canvas.planes_mut() {
            blur_plane(Isa::best(), kernel, side_px, padded_row, blurred_rows, plane);
        }
    }
}

/// Makes `kernel` the weights exp(-d^2 / (2 sigma^2)) of the distances d from 0 to `radius_px`, or to
/// where they vanish; both sides together sum to 1.
fn gaussian(sigma_px: f32, radius_px: usize, kernel: &mut Vec<f32>) {
    let radius_px = radius_px.min((REACH_SIGMAS * sigma_px).ceil() as usize);
    let weight = |distance_px: usize| {
        let z = distance_px as f32 / sigma_px;
        (-0.5 * z * z).exp()
    };
    kernel.clear();
    kernel.extend((0..=radius_px).map(weight));
    let total = kernel[0] + 2.0 * kernel[1..].iter().sum::<f32>();
    kernel.iter_mut().for_each(|weight| *weight /= total);
}

at_every_level! {
    /// Blurs `plane`, `[side_px, side_px]`, by `kernel`, with a padded row and a plane to work in.
    fn blur_plane(kernel: &[f32], side_px: usize, padded_row: &mut [f32],
                  blurred_rows: &mut [f32], plane: &mut [f32]) {
        let radius_px = kernel.len() - 1;
        let padded_row = &mut padded_row[..side_px + 2 * radius_px];
        let rows = plane.chunks_exact(side_px);
        for (row, blurred) in rows.zip(blurred_rows.chunks_exact_mut(side_px)) {
            padded_row[radius_px..radius_px + side_px].copy_from_slice(row);
            for i in (0..radius_px).chain(radius_px + side_px..side_px + 2 * radius_px) {
                padded_row[i] = row[reflect(i as isize - radius_px as isize, side_px)];
            }
            let from = |start: usize| &padded_row[start..start + side_px];
            weighted_sum(blurred, kernel, |distance_px| {
                [from(radius_px - distance_px), from(radius_px + distance_px)]
            });
        }
        let row = |y: isize| &blurred_rows[reflect(y, side_px) * side_px..][..side_px];
        for (y, out) in (0_isize..).zip(plane.chunks_exact_mut(side_px)) {
            weighted_sum(out, kernel, |distance_px| {
                [row(y - distance_px as isize), row(y + distance_px as isize)]
            });
        }
    }
}

/// `out[i] = kernel[0] * a[i] + sum over distances of kernel[distance] * (a[i] + b[i])`, at most 1,
/// where `source(distance)` is `[a, b]`, each as long as `out`.
#[inline(always)]
fn weighted_sum<'a>(out: &mut [f32], kernel: &[f32], source: impl Fn(usize) -> [&'a [f32]; 2]) {
    let [middle, _] = source(0);
    let whole = out.len() / LANES * LANES;
    for start in (0..whole).step_by(LANES) {
        let mut sums = [0.0; LANES];
        for (sum, value) in sums.iter_mut().zip(&middle[start..start + LANES]) {
            *sum = kernel[0] * value;
        }
        for (distance_px, &weight) in kernel.iter().enumerate().skip(1) {
            let [before, after] = source(distance_px).map(|side| &side[start..start + LANES]);
            for ((sum, before), after) in sums.iter_mut().zip(before).zip(after) {
                *sum += weight * (before + after);
            }
        }
        // A mean of values up to 1 may round to just above 1.
        for (out, sum) in out[start..start + LANES].iter_mut().zip(sums) {
            *out = sum.min(1.0);
        }
    }
    for i in whole..out.len() {
        let pairs = kernel.iter().enumerate().skip(1).map(|(distance_px, weight)| {
            let [before, after] = source(distance_px);
            weight * (before[i] + after[i])
        });
        out[i] = pairs.fold(kernel[0] * middle[i], |sum, pair| sum + pair).min(1.0);
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
        // 37 pixels are a chunk and a rest; sigma 0.1 shortens the kernel, 2.0 doesn't.
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
