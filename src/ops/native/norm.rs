//! One batch norm of a plan, for one shape of images. Its sums come from the convolutions before
//! and after it, which make them in their tiles: a norm is one pass over its tensors in each
//! direction. The formulas are those of [`cpu::norm`](crate::ops::cpu::norm).

use super::sums::{PART_ROWS, Sums};
use crate::ops::candle::BATCH_NORM_EPSILON;
use crate::ops::element::Element;
use crate::ops::isa::Isa;
use crate::ops::simd;
use rayon::prelude::*;

/// Floats a task handles: 256 KiB of each operand (a guess: enough work to be worth a task).
const CHUNK_FLOATS: usize = 1 << 16;

/// A batch norm over `rows` pixels of `C` channels.
pub(super) struct Norm {
    rows: usize,
    channels: usize,
    /// Mean of the batch, `[C]`.
    pub(super) mean: Vec<f64>,
    /// Biased variance of the batch, `[C]`.
    pub(super) variance: Vec<f64>,
    scale: Vec<f32>,
    offset: Vec<f32>,
    /// Of the gradient, of the input, and the constant: `[3, C]`.
    coefficients: Vec<f32>,
    zeros: Vec<f32>,
    /// Forward: of the input and its squares. Backward: of the gradient and its product with the
    /// input.
    pub(super) sums: Sums,
}

impl Norm {
    pub(super) fn new(rows: usize, channels: usize) -> Self {
        let mut sums = Sums::default();
        sums.grow_rows(rows, channels);
        Self {
            rows,
            channels,
            mean: vec![0.0; channels],
            variance: vec![0.0; channels],
            scale: vec![0.0; channels],
            offset: vec![0.0; channels],
            coefficients: vec![0.0; 3 * channels],
            zeros: vec![0.0; channels],
            sums,
        }
    }

    /// Values that a mean is taken of.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    fn chunk(&self) -> usize {
        (CHUNK_FLOATS / self.channels).max(1) * self.channels
    }

    fn inverse_deviation(&self, channel: usize) -> f64 {
        1.0 / (self.variance[channel] + BATCH_NORM_EPSILON).sqrt()
    }

    /// `y = (x - mean) / deviation * gamma + beta + residual`, rectified if `relu`, by the moments
    /// that the sums say.
    pub(super) fn forward<E: Element>(
        &mut self,
        [gamma, beta]: [&[f32]; 2],
        x: &[E],
        residual: Option<&[E]>,
        relu: bool,
        y: &mut [E],
    ) {
        let rows = self.rows as f64;
        for channel in 0..self.channels {
            let mean = self.sums.first[channel] / rows;
            let spread = self.sums.second[channel] / rows - mean * mean;
            self.mean[channel] = mean;
            // Rounding may leave a constant channel slightly below zero; what is no number stays.
            self.variance[channel] = if spread < 0.0 { 0.0 } else { spread };
            let scale = f64::from(gamma[channel]) * self.inverse_deviation(channel);
            self.scale[channel] = scale as f32;
            self.offset[channel] = (f64::from(beta[channel]) - mean * scale) as f32;
        }
        let floor = if relu { 0.0 } else { f32::NEG_INFINITY };
        let (isa, chunk) = (Isa::best(), self.chunk());
        let (scale, offset) = (&*self.scale, &*self.offset);
        y.par_chunks_mut(chunk).enumerate().for_each(|(index, y)| {
            let range = index * chunk..index * chunk + y.len();
            let x = &x[range.clone()];
            match residual {
                None => simd::affine(isa, x, scale, offset, floor, y),
                Some(residual) => {
                    simd::affine_onto(isa, x, scale, offset, floor, &residual[range], y);
                }
            }
        });
    }

    /// The gradients of gamma and beta by the sums of the gradient that passed the rectifier; then
    /// [`Norm::pull`] can be called.
    pub(super) fn backward(&mut self, gamma: &[f32], dgamma: &mut [f32], dbeta: &mut [f32]) {
        let (channels, rows) = (self.channels, self.rows as f64);
        for channel in 0..channels {
            let (mean, inverse) = (self.mean[channel], self.inverse_deviation(channel));
            let sum = self.sums.first[channel];
            let product = (self.sums.second[channel] - mean * sum) * inverse;
            dbeta[channel] = sum as f32;
            dgamma[channel] = product as f32;
            let of_gradient = f64::from(gamma[channel]) * inverse;
            let of_x = -of_gradient * inverse * product / rows;
            self.coefficients[channel] = of_gradient as f32;
            self.coefficients[channels + channel] = of_x as f32;
            self.coefficients[2 * channels + channel] =
                (-of_gradient * sum / rows - of_x * mean) as f32;
        }
    }

    /// The gradient of the input `x`, of the `gradient` that passed the rectifier.
    pub(super) fn pull<E: Element>(&self, x: &[E], gradient: &[E], dx: &mut [E]) {
        let chunk = self.chunk();
        dx.par_chunks_mut(chunk).enumerate().for_each(|(index, dx)| {
            let range = index * chunk..index * chunk + dx.len();
            let (x, gradient) = (&x[range.clone()], &gradient[range]);
            simd::combine(Isa::best(), x, gradient, &self.coefficients, dx);
        });
    }

    /// [`Norm::pull`] in place of the gradient.
    pub(super) fn pull_in_place<E: Element>(&self, x: &[E], gradient: &mut [E]) {
        let chunk = self.chunk();
        gradient.par_chunks_mut(chunk).enumerate().for_each(|(index, gradient)| {
            let x = &x[index * chunk..][..gradient.len()];
            simd::combine_in_place(Isa::best(), x, &self.coefficients, gradient);
        });
    }

    /// Makes the sums of a `gradient` that no convolution has made: it first passes the rectifier
    /// whose output is `rectified`, if there is one.
    pub(super) fn receive<E: Element>(
        &mut self,
        x: &[E],
        rectified: Option<&[E]>,
        gradient: &mut [E],
    ) {
        let (channels, zeros, isa) = (self.channels, &*self.zeros, Isa::best());
        let part = PART_ROWS * channels;
        let parts_len = self.rows.div_ceil(PART_ROWS) * 2 * channels;
        let parts = self.sums.parts[..parts_len].par_chunks_mut(2 * channels);
        gradient.par_chunks_mut(part).zip(parts).enumerate().for_each(
            |(index, (gradient, sums))| {
                let range = index * part..index * part + gradient.len();
                if let Some(output) = rectified {
                    simd::pass_in_place(isa, &output[range.clone()], gradient);
                }
                sums.fill(0.0);
                let (sums, products) = sums.split_at_mut(channels);
                simd::add_products(isa, &x[range], gradient, zeros, sums, products);
            },
        );
        self.sums.add_up(channels, channels, parts_len);
    }
}
