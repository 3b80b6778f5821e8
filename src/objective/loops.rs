//! What tests write losses as plain loops in f64 with.

use candle_core::{Device, Tensor};

/// Rows of 4 numbers from -1 to 1, others for each seed.
pub(super) fn rows(n_rows: usize, seed: usize) -> Vec<Vec<f64>> {
    let value = |i: usize| ((i + 37 * seed) * 7919 % 101) as f64 / 50.0 - 1.0;
    (0..n_rows).map(|row| (0..4).map(|i| value(4 * row + i)).collect()).collect()
}

/// The same as a tensor.
pub(super) fn tensor(rows: &[Vec<f64>]) -> Tensor {
    let values = rows.iter().flatten().map(|value| *value as f32).collect();
    Tensor::from_vec(values, (rows.len(), rows[0].len()), &Device::Cpu).unwrap()
}

/// The cosine of two rows.
pub(super) fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}
