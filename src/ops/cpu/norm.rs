//! Batch normalisation of rows `[R, C]`, with residual addition and rectifier in the same pass.
//!
//! Sums run in f32 over [`BLOCK_ROWS`] rows and in f64 above that, over chunks fixed by shape.

use crate::ops::isa::Isa;
use crate::ops::simd;
use rayon::prelude::*;
use std::ops::Range;

/// Floats a task handles: 256 KiB of each operand (a guess: enough work to be worth a task).
const CHUNK_FLOATS: usize = 1 << 16;

/// Rows summed in f32 before the sums go to f64: their rounding stays below 64 units of the last
/// place, whatever the number of rows.
const BLOCK_ROWS: usize = 64;

/// Mean and biased variance of each group, `[G, C]`.
#[derive(Clone, Debug)]
pub(crate) struct Statistics {
    /// Rows a group has.
    pub(crate) rows: usize,
    /// C.
    pub(crate) channels: usize,
    /// Mean of each group and channel.
    pub(crate) mean: Vec<f32>,
    /// Biased variance of each group and channel.
    pub(crate) variance: Vec<f32>,
}

/// The gradients of one normalisation.
pub(crate) struct Gradients {
    /// Of `x`, if asked for.
    pub(crate) x: Option<Vec<f32>>,
    /// Of gamma, then of beta: `[2, C]`.
    pub(crate) affine: Vec<f32>,
}

/// What the backward pass needs of the forward one.
pub(crate) struct Saved<'a> {
    /// Input, `[G R, C]`.
    pub(crate) x: &'a [f32],
    /// Output, if a rectifier made it.
    pub(crate) rectified: Option<&'a [f32]>,
    /// Scale of each channel, `[C]`.
    pub(crate) gamma: &'a [f32],
    /// Moments of the input.
    pub(crate) statistics: &'a Statistics,
    /// Added to the variance.
    pub(crate) epsilon: f64,
}

impl Statistics {
    /// The moments of `groups` equal runs of the rows of `x`.
    pub(crate) fn of(x: &[f32], channels: usize, groups: usize) -> Self {
        let rows = x.len() / channels / groups;
        let (mut mean, mut variance) = (Vec::new(), Vec::new());
        for x in x.chunks_exact(rows * channels) {
            // Sums about the first row keep the difference of squares below from cancelling.
            let shift = &x[..channels];
            let [sums, squares] = sum_rows(rows, channels, |block, sums, squares| {
                let x = &x[block.start * channels..block.end * channels];
                simd::add_moments(Isa::best(), x, shift, sums, squares);
            });
            for ((sum, square), &shift) in sums.iter().zip(squares).zip(shift) {
                let centre = sum / rows as f64;
                mean.push((f64::from(shift) + centre) as f32);
                let spread = square / rows as f64 - centre * centre;
                // Rounding may leave a constant channel slightly below zero; what is not a
                // number stays so.
                variance.push(if spread < 0.0 { 0.0 } else { spread as f32 });
            }
        }
        Self { rows, channels, mean, variance }
    }

    /// 1 / standard deviation of channel `index` of `[G, C]`.
    fn inverse_deviation(&self, index: usize, epsilon: f64) -> f64 {
        1.0 / (f64::from(self.variance[index]) + epsilon).sqrt()
    }
}

/// Sums over `rows` of two quantities a channel: `add` adds a block's share to zeroed f32 sums.
fn sum_rows(
    rows: usize,
    channels: usize,
    add: impl Fn(Range<usize>, &mut [f32], &mut [f32]) + Sync,
) -> [Vec<f64>; 2] {
    let chunk = (CHUNK_FLOATS / channels).max(1);
    let sum_chunk = |index: usize| {
        let mut totals = [vec![0.0; channels], vec![0.0; channels]];
        let mut sums = [vec![0.0; channels], vec![0.0; channels]];
        let end = ((index + 1) * chunk).min(rows);
        for start in (index * chunk..end).step_by(BLOCK_ROWS) {
            let [first, second] = &mut sums;
            add(start..(start + BLOCK_ROWS).min(end), first, second);
            for (totals, sums) in totals.iter_mut().zip(&mut sums) {
                for (total, sum) in totals.iter_mut().zip(sums) {
                    *total += f64::from(std::mem::take(sum));
                }
            }
        }
        totals
    };
    let chunks: Vec<_> = (0..rows.div_ceil(chunk)).into_par_iter().map(sum_chunk).collect();
    let mut totals = [vec![0.0; channels], vec![0.0; channels]];
    for chunk in &chunks {
        for (totals, sums) in totals.iter_mut().zip(chunk) {
            for (total, sum) in totals.iter_mut().zip(sums) {
                *total += sum;
            }
        }
    }
    totals
}

/// Calls `work` with each group's number and, in parallel, each chunk of `out` in it with the
/// range of floats it covers.
fn for_chunks(
    out: &mut [f32],
    statistics: &Statistics,
    work: impl Fn(usize, Range<usize>, &mut [f32]) + Sync,
) {
    let group_floats = statistics.rows * statistics.channels;
    let chunk = (CHUNK_FLOATS / statistics.channels).max(1) * statistics.channels;
    out.par_chunks_mut(group_floats).enumerate().for_each(|(group, out)| {
        out.par_chunks_mut(chunk).enumerate().for_each(|(index, out)| {
            let start = group * group_floats + index * chunk;
            work(group, start..start + out.len(), out);
        });
    });
}

/// `(x - mean) / sqrt(variance + epsilon) * gamma + beta + residual`, rectified if `relu`.
pub(crate) fn normalise(
    x: &[f32],
    statistics: &Statistics,
    epsilon: f64,
    [gamma, beta]: [&[f32]; 2],
    residual: Option<&[f32]>,
    relu: bool,
) -> Vec<f32> {
    let channels = statistics.channels;
    let scales = (0..statistics.mean.len()).map(|index| {
        (f64::from(gamma[index % channels]) * statistics.inverse_deviation(index, epsilon)) as f32
    });
    let scales: Vec<f32> = scales.collect();
    let offsets = (0..scales.len()).map(|index| {
        let shift = f64::from(statistics.mean[index]) * f64::from(scales[index]);
        (f64::from(beta[index % channels]) - shift) as f32
    });
    let offsets: Vec<f32> = offsets.collect();
    let floor = if relu { 0.0 } else { f32::NEG_INFINITY };
    let isa = Isa::best();
    let mut y = vec![0.0; x.len()];
    for_chunks(&mut y, statistics, |group, range, y| {
        let scale = &scales[group * channels..][..channels];
        let offset = &offsets[group * channels..][..channels];
        let x = &x[range.clone()];
        match residual {
            None => simd::affine(isa, x, scale, offset, floor, y),
            Some(residual) => {
                simd::affine_onto(isa, x, scale, offset, floor, &residual[range], y);
            }
        }
    });
    y
}

/// The gradients of [`normalise`] with batch moments, of `dy`. With d the part of dy that passed
/// the rectifier, x^ the normalised input and s its inverse deviation, per group and channel
/// (Ioffe and Szegedy 2015, arXiv:1502.03167, section 3):
///
/// ```text
/// dbeta = sum d      dgamma = sum d x^      dx = gamma s (d - dbeta / R - x^ dgamma / R)
/// ```
pub(crate) fn backward(saved: &Saved<'_>, dy: &[f32], wants_x: bool) -> Gradients {
    let Saved { x, rectified, gamma, statistics, epsilon } = *saved;
    let (rows, channels) = (statistics.rows, statistics.channels);
    let isa = Isa::best();
    let (mut dgamma, mut dbeta) = (vec![0.0; channels], vec![0.0; channels]);
    // Per group: of dy, of x, constant; [G, 3, C].
    let mut coefficients = vec![0.0; statistics.mean.len() * 3];
    let groups = coefficients.chunks_exact_mut(3 * channels).enumerate();
    for (group, coefficients) in groups {
        let mean = &statistics.mean[group * channels..][..channels];
        let [sums, products] = sum_rows(rows, channels, |block, sums, products| {
            let first_row = group * rows;
            let range = (first_row + block.start) * channels..(first_row + block.end) * channels;
            let (x, dy) = (&x[range.clone()], &dy[range.clone()]);
            match rectified {
                None => simd::add_products(isa, x, dy, mean, sums, products),
                Some(y) => {
                    simd::add_passed_products(isa, x, &y[range], dy, mean, sums, products);
                }
            }
        });
        for channel in 0..channels {
            let inverse = statistics.inverse_deviation(group * channels + channel, epsilon);
            let (sum, product) = (sums[channel], products[channel] * inverse);
            dbeta[channel] += sum;
            dgamma[channel] += product;
            let of_dy = f64::from(gamma[channel]) * inverse;
            let of_x = -of_dy * inverse * product / rows as f64;
            let constant = -of_dy * sum / rows as f64 - of_x * f64::from(mean[channel]);
            coefficients[channel] = of_dy as f32;
            coefficients[channels + channel] = of_x as f32;
            coefficients[2 * channels + channel] = constant as f32;
        }
    }
    let dx = wants_x.then(|| {
        let mut dx = vec![0.0; x.len()];
        for_chunks(&mut dx, statistics, |group, range, dx| {
            let coefficients = &coefficients[group * 3 * channels..][..3 * channels];
            let (x, dy) = (&x[range.clone()], &dy[range.clone()]);
            match rectified {
                None => simd::combine(isa, x, dy, coefficients, dx),
                Some(y) => simd::combine_passed(isa, x, &y[range], dy, coefficients, dx),
            }
        });
        dx
    });
    let affine = dgamma.into_iter().chain(dbeta).map(|value: f64| value as f32).collect();
    Gradients { x: dx, affine }
}

/// The part of `dy` that passed the rectifier whose outputs are `y`: a residual's gradient.
pub(crate) fn pass(y: &[f32], dy: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0; dy.len()];
    out.par_chunks_mut(CHUNK_FLOATS).enumerate().for_each(|(index, out)| {
        let start = index * CHUNK_FLOATS;
        let range = start..start + out.len();
        simd::pass(Isa::best(), &y[range.clone()], &dy[range], out);
    });
    out
}
