//! The encoder in training, on whatever computes it: host memory with the native kernels, or
//! candle tensors on another device.

mod host;
mod tensors;

use super::optimizer;
use crate::encoder::{NamedArrays, Plan};
use candle_core::{Device, Result, Tensor};

/// Share of a running moment that a batch replaces; PyTorch's default.
const RUNNING_SHARE: f64 = 0.1;
/// The seed stream of the encoder's weights.
const ENCODER_STREAM: u64 = 0;
/// Prefix of names in checkpoints.
const ENCODER: &str = "encoder.";

/// An encoder with its optimiser. One step is `forward`, then `step`.
pub(crate) trait Backbone: Send {
    /// The features `[N, D]`, a leaf, of `views`, flat `[N, H, W, C]`.
    fn forward(&mut self, views: Vec<f32>) -> Result<Tensor>;

    /// Moves the weights by the gradient `[N, D]` of the features that `forward` made last.
    fn step(&mut self, features: &Tensor, rate: f64) -> Result<()>;

    /// The encoder's numbers, by name.
    fn encoder(&self) -> Result<NamedArrays>;

    /// Encoder and optimiser, as checkpoints name them.
    fn to_arrays(&self) -> Result<NamedArrays>;

    /// The inverse; names or shapes that differ are errors.
    fn load_arrays(&mut self, arrays: &NamedArrays) -> Result<()>;
}

/// A fresh encoder of `plan` for square images of side `side_px`, on `device`.
///
/// # Errors
/// Whatever the device reports.
pub(crate) fn open(
    plan: &Plan,
    side_px: usize,
    optimizer: &optimizer::Config,
    seed: u64,
    device: &Device,
) -> Result<Box<dyn Backbone>> {
    Ok(if device.is_cpu() {
        Box::new(host::Host::new(plan, side_px, optimizer, seed)?)
    } else {
        Box::new(tensors::Tensors::new(plan, side_px, optimizer, seed, device)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::under_test;
    use crate::encoder::Architecture;

    /// The oracle of the whole training step: both take the same one, from either's checkpoint.
    #[test]
    fn host_and_tensors_take_the_same_steps() {
        let plan = Architecture::SlimResnet.plan();
        let config = optimizer::Config::default();
        let mut host = host::Host::new(&plan, 16, &config, 3).unwrap();
        let mut tensors = tensors::Tensors::new(&plan, 16, &config, 3, &under_test()).unwrap();
        let views: Vec<f32> = (0..6 * 768).map(|i| ((i * 7919) % 1009) as f32 / 1009.0).collect();
        let pull: Vec<f32> = (0..6 * 256).map(|i| ((i * 31) % 17) as f32 / 17.0 - 0.5).collect();
        let pull = Tensor::from_vec(pull, (6, 256), &under_test()).unwrap();
        let step = |backbone: &mut dyn Backbone| {
            let features = backbone.forward(views.clone()).unwrap();
            backbone.step(&pull, 0.01).unwrap();
            features.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        for _ in 0..2 {
            let (a, b) = (step(&mut host), step(&mut tensors));
            let largest = b.iter().fold(0.0_f32, |largest, b| largest.max(b.abs()));
            assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-3 * largest));
            // Rounding grows from step to step; the next one begins at the same numbers.
            host.load_arrays(&tensors.to_arrays().unwrap()).unwrap();
        }
        let (a, b) = (host.to_arrays().unwrap(), tensors.to_arrays().unwrap());
        assert!(a.keys().eq(b.keys()));
        assert_eq!(a, b);
    }
}
