//! Optimiser updates of contiguous weights, and their moving average, each in one pass.

use super::isa::Isa;
use super::simd;
use candle_core::{Result, Var};
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
    /// What gradient and pull are multiplied by: 1, but for [`lars`].
    pub trust: f32,
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

/// `v = momentum v + trust (g + decay w)`, then `w -= rate v`.
pub fn sgd(rule: Sgd, weights: &mut [f32], velocity: &mut [f32], gradient: &[f32]) {
    let pieces = weights.par_chunks_mut(CHUNK).zip(velocity.par_chunks_mut(CHUNK));
    pieces.zip(gradient.par_chunks(CHUNK)).for_each(|((weights, velocity), gradient)| {
        simd::sgd(Isa::best(), rule, weights, velocity, gradient);
    });
}

/// [`sgd`] of one layer's weights at `rule.trust` times |w| / (|g| + decay |w|), so that its step is
/// in proportion to them (LARS: You et al. 2017, arXiv 1708.03888, eq. 6). Where either is zero, the
/// trust is 1.
pub fn lars(rule: Sgd, weights: &mut [f32], velocity: &mut [f32], gradient: &[f32]) {
    let norm = |values: &[f32]| sum_of_squares(values).sqrt();
    let (weights_norm, gradient_norm) = (norm(weights), norm(gradient));
    let trust = if weights_norm > 0.0 && gradient_norm > 0.0 {
        let pulled = gradient_norm + f64::from(rule.decay) * weights_norm;
        (f64::from(rule.trust) * weights_norm / pulled) as f32
    } else {
        1.0
    };
    sgd(Sgd { trust, ..rule }, weights, velocity, gradient);
}

/// The sum of squares, in f64 over pieces of fixed length: the same on any number of threads.
pub fn sum_of_squares(values: &[f32]) -> f64 {
    const PIECE: usize = 1 << 10;
    let of = |piece: &[f32]| f64::from(simd::sum_of_squares(Isa::best(), piece));
    let chunks = values.par_chunks(CHUNK).map(|chunk| chunk.chunks(PIECE).map(of).sum::<f64>());
    chunks.collect::<Vec<_>>().iter().sum()
}

/// `values *= factor`.
pub fn scale(values: &mut [f32], factor: f32) {
    let chunks = values.par_chunks_mut(CHUNK);
    chunks.for_each(|chunk| chunk.iter_mut().for_each(|value| *value *= factor));
}

/// `m = beta1 m + (1 - beta1) g`, `s = beta2 s + (1 - beta2) g^2`, then
/// `w -= rate (m^ / (sqrt(s^) + epsilon) + decay w)` with unbiased m^ and s^.
pub fn adamw(rule: AdamW, weights: &mut [f32], [mean, square]: [&mut [f32]; 2], gradient: &[f32]) {
    let state = mean.par_chunks_mut(CHUNK).zip(square.par_chunks_mut(CHUNK));
    let pieces = weights.par_chunks_mut(CHUNK).zip(state);
    pieces.zip(gradient.par_chunks(CHUNK)).for_each(|((weights, (mean, square)), gradient)| {
        simd::adamw(Isa::best(), rule, weights, mean, square, gradient);
    });
}

/// `sum += values`.
pub fn add(sum: &mut [f32], values: &[f32]) {
    let pieces = sum.par_chunks_mut(CHUNK).zip(values.par_chunks(CHUNK));
    pieces.for_each(|(sum, values)| simd::add(Isa::best(), sum, values));
}

/// `average = momentum average + (1 - momentum) weights`.
pub fn average(momentum: f64, average: &mut [f32], weights: &[f32]) {
    let (kept, taken) = (momentum as f32, (1.0 - momentum) as f32);
    let pieces = average.par_chunks_mut(CHUNK).zip(weights.par_chunks(CHUNK));
    pieces.for_each(|(average, weights)| {
        simd::average(Isa::best(), average, weights, kept, taken);
    });
}

/// The same of tensors, on any device; weights beyond the averages stay out of it.
///
/// # Errors
/// Whatever the device reports.
pub fn average_tensors(momentum: f64, averages: &[Var], weights: &[Var]) -> Result<()> {
    for (average, weight) in averages.iter().zip(weights) {
        let kept = (average.as_tensor() * momentum)?;
        average.set(&(kept + (weight.as_tensor() * (1.0 - momentum))?)?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};

    #[test]
    fn averages_of_slices_and_tensors_are_the_same_numbers() {
        let numbers = |seed: usize| -> Vec<f32> {
            (0..CHUNK + 77).map(|i| ((i * 7919 + seed) % 1009) as f32 / 504.5 - 1.0).collect()
        };
        let variable =
            |values: &[f32]| Var::from_slice(values, values.len(), &Device::Cpu).unwrap();
        let (mut mean, weights) = (numbers(1), numbers(2));
        let tensors = [variable(&mean), variable(&weights)];
        for momentum in [0.99, 0.0, 1.0] {
            average(momentum, &mut mean, &weights);
            average_tensors(momentum, &tensors[..1], &tensors[1..]).unwrap();
            assert_eq!(Tensor::to_vec1::<f32>(&tensors[0]).unwrap(), mean, "{momentum}");
        }
        assert_eq!(mean, weights);
    }

    #[test]
    fn squares_add_up_over_all_chunks_and_scale_as_squares_do() {
        let mut values: Vec<f32> = (0..3 * CHUNK + 77).map(|i| (i % 13) as f32 - 6.0).collect();
        // Whole numbers: each sum is exact.
        let expected: f64 = values.iter().map(|value| f64::from(value * value)).sum();
        assert_eq!(sum_of_squares(&values), expected);
        scale(&mut values, -0.5);
        assert_eq!(sum_of_squares(&values), 0.25 * expected);
        assert_eq!(sum_of_squares(&[]), 0.0);
    }
}
