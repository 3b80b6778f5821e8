//! Optimiser updates of contiguous weights, each in one pass.

use super::simd::{self, Level};
use rayon::prelude::*;

/// Weights a task moves.
const CHUNK: usize = 1 << 16;

/// Stochastic gradient descent with momentum, as PyTorch defines it.
#[derive(Clone, Copy, Debug)]
pub struct Sgd {
    /// Learning rate.
    pub rate: f32,
    /// Share of the last direction that is kept.
    pub momentum: f32,
    /// Pull towards zero.
    pub decay: f32,
}

/// AdamW (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2).
#[derive(Clone, Copy, Debug)]
pub struct AdamW {
    /// Learning rate.
    pub rate: f32,
    /// Decay of the gradient's running mean.
    pub beta1: f32,
    /// Decay of the squared gradient's running mean.
    pub beta2: f32,
    /// Keeps the division finite.
    pub epsilon: f32,
    /// Pull towards zero.
    pub decay: f32,
    /// 1 / (1 - beta1^steps).
    pub mean_scale: f32,
    /// 1 / (1 - beta2^steps).
    pub square_scale: f32,
}

/// `v = momentum v + g + decay w`, then `w -= rate v`.
pub fn sgd(rule: Sgd, weights: &mut [f32], velocity: &mut [f32], gradient: &[f32]) {
    let pieces = weights.par_chunks_mut(CHUNK).zip(velocity.par_chunks_mut(CHUNK));
    pieces.zip(gradient.par_chunks(CHUNK)).for_each(|((weights, velocity), gradient)| {
        simd::sgd(Level::best(), rule, weights, velocity, gradient);
    });
}

/// `m = beta1 m + (1 - beta1) g`, `s = beta2 s + (1 - beta2) g^2`, then
/// `w -= rate (m^ / (sqrt(s^) + epsilon) + decay w)` with unbiased m^ and s^.
pub fn adamw(rule: AdamW, weights: &mut [f32], [mean, square]: [&mut [f32]; 2], gradient: &[f32]) {
    let state = mean.par_chunks_mut(CHUNK).zip(square.par_chunks_mut(CHUNK));
    let pieces = weights.par_chunks_mut(CHUNK).zip(state);
    pieces.zip(gradient.par_chunks(CHUNK)).for_each(|((weights, (mean, square)), gradient)| {
        simd::adamw(Level::best(), rule, weights, mean, square, gradient);
    });
}
