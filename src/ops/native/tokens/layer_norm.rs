//! Layer norm: each pixel over its channels.

use super::with_two;
use crate::ops::candle::LAYER_NORM_EPSILON;
use crate::ops::element::Element;
use crate::ops::isa::Isa;
use crate::ops::native::sums::{PART_ROWS, Sums};
use crate::ops::simd::tokens as simd;
use crate::ops::with_scratch;
use rayon::prelude::*;
use std::cell::Cell;

thread_local! {
    /// Gradients that are not stored in f32.
    static GRADIENTS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

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
    pub(in crate::ops::native) fn forward<E: Element>(
        &mut self,
        [gamma, beta]: [&[f32]; 2],
        x: &[E],
        y: &mut [E],
    ) {
        let chunk = PART_ROWS * self.channels;
        let rows = y.par_chunks_mut(chunk).zip(x.par_chunks(chunk));
        rows.zip(self.statistics.par_chunks_mut(PART_ROWS)).for_each(|((y, x), statistics)| {
            let epsilon = LAYER_NORM_EPSILON as f32;
            with_two(x, y, |x, y| {
                simd::layer_norm(Isa::best(), x, gamma, beta, epsilon, y, statistics);
            });
        });
    }

    /// Adds the gradient of the `x` of the last forward pass to `dx`, and makes those of gamma and
    /// beta.
    pub(in crate::ops::native) fn backward<E: Element>(
        &mut self,
        gamma: &[f32],
        x: &[E],
        dy: &[E],
        dx: &mut [E],
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
            let length = E::scratch_len(x.len());
            with_scratch(&GRADIENTS, length, |scratch| {
                let dy = E::floats(dy, scratch);
                with_two(x, dx, |x, dx| {
                    simd::layer_norm_pull(Isa::best(), x, statistics, gamma, dy, dx, dgamma, dbeta);
                });
            });
        });
        self.sums.add_up(channels, channels, parts_len);
        let totals = dgamma.iter_mut().zip(&self.sums.first);
        totals.for_each(|(gradient, &sum)| *gradient = sum as f32);
        let totals = dbeta.iter_mut().zip(&self.sums.second);
        totals.for_each(|(gradient, &sum)| *gradient = sum as f32);
    }
}
