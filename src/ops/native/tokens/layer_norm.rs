//! Layer norm: each pixel over its channels.

use crate::ops::candle::LAYER_NORM_EPSILON;
use crate::ops::isa::Isa;
use crate::ops::native::sums::{PART_ROWS, Sums};
use crate::ops::simd::tokens as simd;
use rayon::prelude::*;

/// A layer norm over rows of `C` channels.
pub(in crate::ops::native) struct LayerNorm {
    channels: usize,
    /// Mean and inverse deviation of each row of the last forward pass.
    statistics: Vec<[f32; 2]>,
    /// Of the gradients of gamma and beta.
    sums: Sums,
}

impl LayerNorm {
    /// For at most `rows` rows.
    pub(in crate::ops::native) fn new(rows: usize, channels: usize) -> Self {
        let mut sums = Sums::default();
        sums.grow_rows(rows, channels);
        Self { channels, statistics: vec![[0.0; 2]; rows], sums }
    }

    /// `y = (x - mean) / deviation * gamma + beta`, all `[R, C]`.
    pub(in crate::ops::native) fn forward(
        &mut self,
        [gamma, beta]: [&[f32]; 2],
        x: &[f32],
        y: &mut [f32],
    ) {
        let chunk = PART_ROWS * self.channels;
        let rows = y.par_chunks_mut(chunk).zip(x.par_chunks(chunk));
        rows.zip(self.statistics.par_chunks_mut(PART_ROWS)).for_each(|((y, x), statistics)| {
            let epsilon = LAYER_NORM_EPSILON as f32;
            simd::layer_norm(Isa::best(), x, gamma, beta, epsilon, y, statistics);
        });
    }

    /// Adds the gradient of the `x` of the last forward pass to `dx`, and makes those of gamma and
    /// beta.
    pub(in crate::ops::native) fn backward(
        &mut self,
        gamma: &[f32],
        x: &[f32],
        dy: &[f32],
        dx: &mut [f32],
        [dgamma, dbeta]: [&mut [f32]; 2],
    ) {
        let channels = self.channels;
        let chunk = PART_ROWS * channels;
        let parts_len = dx.len().div_ceil(chunk) * 2 * channels;
        let parts = self.sums.parts[..parts_len].par_chunks_mut(2 * channels);
        let rows = dx.par_chunks_mut(chunk).zip(x.par_chunks(chunk).zip(dy.par_chunks(chunk)));
        let rows = rows.zip(self.statistics.par_chunks(PART_ROWS));
        rows.zip(parts).for_each(|(((dx, (x, dy)), statistics), sums)| {
            sums.fill(0.0);
            let (dgamma, dbeta) = sums.split_at_mut(channels);
            simd::layer_norm_pull(Isa::best(), x, statistics, gamma, dy, dx, dgamma, dbeta);
        });
        self.sums.add_up(channels, channels, parts_len);
        let totals = dgamma.iter_mut().zip(&self.sums.first);
        totals.for_each(|(gradient, &sum)| *gradient = sum as f32);
        let totals = dbeta.iter_mut().zip(&self.sums.second);
        totals.for_each(|(gradient, &sum)| *gradient = sum as f32);
    }
}
