//! The encoder in training, on whatever computes it: host memory with the native kernels, or
//! candle tensors on another device.

mod host;
mod tensors;

use super::optimizer;
use crate::encoder::{NamedArrays, Plan};
use crate::ops::native::Precision;
use candle_core::{Device, Result, Tensor};

/// Share of a running moment that a batch replaces; PyTorch's default.
const RUNNING_SHARE: f64 = 0.1;
/// The seed stream of the encoder's weights.
const ENCODER_STREAM: u64 = 0;
/// Prefixes of names in checkpoints.
const ENCODER: &str = "encoder.";
const TARGET: &str = "target.encoder.";

/// An encoder with its optimiser, and its moving average where one is asked for. One step is
/// `forward_target`, as often as wanted, and `forward`, once for each side of views; then `step`;
/// then `follow`.
pub(crate) trait Backbone: Send {
    /// The features `[N, D]`, a leaf, of `views`, flat `[N, H, W, C]` of side `side_px`. Passes
    /// over sides that differ wait for one step together; a side's second pass discards all others.
    fn forward(&mut self, views: Vec<f32>, side_px: usize) -> Result<Tensor>;

    /// The features `[N, D]` that the moving average has of `views`, by their own statistics.
    fn forward_target(&mut self, views: Vec<f32>, side_px: usize) -> Result<Tensor>;

    /// Moves the weights by the gradients `[N, D]` of the features that each waiting pass made, in
    /// their order. Running moments follow the views of the largest side: the nearest to what is
    /// served.
    fn step(&mut self, gradients: &[Tensor], rate: f64) -> Result<()>;

    /// Moves the average towards the weights and keeps the share `momentum` of it.
    fn follow(&mut self, momentum: f64) -> Result<()>;

    /// The encoder's numbers, by name.
    fn encoder(&self) -> Result<NamedArrays>;

    /// Encoder, moving average and optimiser, as checkpoints name them.
    fn to_arrays(&self) -> Result<NamedArrays>;

    /// The inverse; names or shapes that differ are errors.
    fn load_arrays(&mut self, arrays: &NamedArrays) -> Result<()>;
}

/// What an encoder in training is made from.
pub(crate) struct Spec<'a> {
    /// Its operations.
    pub(crate) plan: &'a Plan,
    /// How gradients become steps.
    pub(crate) optimizer: &'a optimizer::Config,
    /// Whether a moving average of it is kept.
    pub(crate) has_target: bool,
    /// The run's seed.
    pub(crate) seed: u64,
    /// What host memory stores activations as; tensors are f32.
    pub(crate) precision: Precision,
}

/// A fresh encoder on `device`; its moving average begins as it does.
///
/// # Errors
/// Whatever the device reports.
pub(crate) fn open(spec: &Spec<'_>, device: &Device) -> Result<Box<dyn Backbone>> {
    Ok(if device.is_cpu() {
        Box::new(host::Host::new(spec)?)
    } else {
        Box::new(tensors::Tensors::new(spec, device)?)
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
        let spec = Spec {
            plan: &plan,
            optimizer: &config,
            has_target: true,
            seed: 3,
            precision: Precision::F32,
        };
        let mut host = host::Host::new(&spec).unwrap();
        let mut tensors = tensors::Tensors::new(&spec, &under_test()).unwrap();
        let views: Vec<f32> = (0..6 * 768).map(|i| ((i * 7919) % 1009) as f32 / 1009.0).collect();
        let pull: Vec<f32> = (0..6 * 256).map(|i| ((i * 31) % 17) as f32 / 17.0 - 0.5).collect();
        let pull = Tensor::from_vec(pull, (6, 256), &under_test()).unwrap();
        let step = |backbone: &mut dyn Backbone| {
            let targets = backbone.forward_target(views.clone(), 16).unwrap();
            let features = backbone.forward(views.clone(), 16).unwrap();
            backbone.step(std::slice::from_ref(&pull), 0.01).unwrap();
            backbone.follow(0.9).unwrap();
            let both = Tensor::cat(&[features, targets], 0).unwrap();
            both.flatten_all().unwrap().to_vec1::<f32>().unwrap()
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

    /// Views of two sides: the gradients add up, and host and tensors agree.
    #[test]
    fn passes_over_two_sides_take_one_step_together() {
        let plan = Architecture::SlimResnet.plan();
        let config = optimizer::Config::Sgd { momentum: 0.0, weight_decay: 0.0 };
        let spec = Spec {
            plan: &plan,
            optimizer: &config,
            has_target: false,
            seed: 3,
            precision: Precision::F32,
        };
        let noise = |n: usize| (0..n).map(|i| ((i * 7919) % 1009) as f32 / 1009.0).collect();
        let (large, small): (Vec<f32>, Vec<f32>) = (noise(6 * 768), noise(4 * 192));
        let pull = |n: usize| {
            let values = (0..n * 256).map(|i| ((i * 31) % 17) as f32 / 17.0 - 0.5).collect();
            Tensor::from_vec(values, (n, 256), &under_test()).unwrap()
        };
        let weights = |backbone: &dyn Backbone| -> Vec<f32> {
            let arrays = backbone.encoder().unwrap();
            arrays
                .iter()
                .filter(|(name, _)| !name.contains("running"))
                .flat_map(|(_, array)| array.values.clone())
                .collect()
        };
        // What a step over these passes moves the weights by.
        let moved = |backbone: &mut dyn Backbone, sides: &[usize]| -> Vec<f32> {
            let (before, start) = (backbone.to_arrays().unwrap(), weights(backbone));
            let mut pulls = vec![];
            for side_px in sides {
                let views = if *side_px == 16 { &large } else { &small };
                let n = backbone.forward(views.clone(), *side_px).unwrap().dim(0).unwrap();
                pulls.push(pull(n));
            }
            backbone.step(&pulls, 0.01).unwrap();
            let end = weights(backbone);
            backbone.load_arrays(&before).unwrap();
            start.iter().zip(end).map(|(start, end)| end - start).collect()
        };
        let distance = |a: &[f32], b: &[f32]| {
            let square = |x: f32| f64::from(x) * f64::from(x);
            let apart: f64 = a.iter().zip(b).map(|(a, b)| square(a - b)).sum();
            (apart / b.iter().map(|b| square(*b)).sum::<f64>()).sqrt()
        };
        let mut host = host::Host::new(&spec).unwrap();
        let mut tensors = tensors::Tensors::new(&spec, &under_test()).unwrap();
        let mut both = vec![];
        for backbone in [&mut host as &mut dyn Backbone, &mut tensors] {
            let (alone, with) = (moved(backbone, &[16]), moved(backbone, &[8]));
            let sum: Vec<f32> = alone.iter().zip(&with).map(|(a, b)| a + b).collect();
            both.push(moved(backbone, &[16, 8]));
            assert!(distance(&both[both.len() - 1], &sum) < 1e-4);
            // A pass that no step followed is forgotten once its side is run again.
            backbone.forward(small.clone(), 8).unwrap();
            backbone.forward(large.clone(), 16).unwrap();
            assert_eq!(moved(backbone, &[16]), alone);
        }
        assert!(distance(&both[0], &both[1]) < 0.03);

        // Running moments are the same beside small views as without.
        let running = |host: &mut host::Host, sides: &[usize]| {
            let before = host.to_arrays().unwrap();
            let mut pulls = vec![];
            for side_px in sides {
                let views = if *side_px == 16 { &large } else { &small };
                let n = host.forward(views.clone(), *side_px).unwrap().dim(0).unwrap();
                pulls.push(pull(n));
            }
            host.step(&pulls, 0.01).unwrap();
            let after = host.encoder().unwrap();
            host.load_arrays(&before).unwrap();
            after.into_iter().filter(|(name, _)| name.contains("running")).collect::<Vec<_>>()
        };
        let alone = running(&mut host, &[16]);
        assert_eq!(running(&mut host, &[8, 16]), alone);
        assert_ne!(running(&mut host, &[8]), alone);
        host.forward(large.clone(), 16).unwrap();
        assert!(host.step(&[pull(6), pull(4)], 0.01).is_err());
    }

    #[test]
    fn a_target_pass_is_the_averages_and_leaves_everything_as_it_was() {
        let plan = Architecture::SlimResnet.plan();
        let config = optimizer::Config::default();
        let spec = Spec {
            plan: &plan,
            optimizer: &config,
            has_target: true,
            seed: 3,
            precision: Precision::F32,
        };
        let views: Vec<f32> = (0..6 * 768).map(|i| ((i * 7919) % 1009) as f32 / 1009.0).collect();
        let half = views[..3 * 768].to_vec();
        let values = |features: Tensor| features.to_vec2::<f32>().unwrap();
        let mut host = host::Host::new(&spec).unwrap();
        let mut tensors = tensors::Tensors::new(&spec, &under_test()).unwrap();
        for backbone in [&mut host as &mut dyn Backbone, &mut tensors] {
            // It begins as the encoder.
            let features = values(backbone.forward(views.clone(), 16).unwrap());
            let before = backbone.to_arrays().unwrap();
            assert_eq!(values(backbone.forward_target(views.clone(), 16).unwrap()), features);
            // Of another number of images, between a forward pass and its step.
            backbone.forward_target(half.clone(), 16).unwrap();
            assert_eq!(backbone.to_arrays().unwrap(), before);
            let pull = Tensor::ones((6, 256), candle_core::DType::F32, &under_test()).unwrap();
            backbone.step(std::slice::from_ref(&pull), 0.01).unwrap();
            // A step moves the encoder alone, `follow` the average alone.
            assert_eq!(values(backbone.forward_target(views.clone(), 16).unwrap()), features);
            let stepped = backbone.to_arrays().unwrap();
            backbone.follow(0.75).unwrap();
            for (name, after) in &backbone.to_arrays().unwrap() {
                let Some(weight) = name.strip_prefix(TARGET) else {
                    assert_eq!(after, &stepped[name]);
                    continue;
                };
                let weights = &stepped[&format!("{ENCODER}{weight}")].values;
                for ((after, was), weight) in
                    after.values.iter().zip(&stepped[name].values).zip(weights)
                {
                    assert!((after - (0.75 * was + 0.25 * weight)).abs() < 1e-6, "{name}");
                }
            }
            // Kept whole it stays, and of nothing it becomes the encoder.
            let before = values(backbone.forward_target(views.clone(), 16).unwrap());
            backbone.follow(1.0).unwrap();
            assert_eq!(values(backbone.forward_target(views.clone(), 16).unwrap()), before);
            backbone.follow(0.0).unwrap();
            let encoder = values(backbone.forward(views.clone(), 16).unwrap());
            assert_eq!(values(backbone.forward_target(views.clone(), 16).unwrap()), encoder);
        }
        let spec = Spec { has_target: false, ..spec };
        let mut without = host::Host::new(&spec).unwrap();
        assert!(without.forward_target(views, 16).is_err());
        assert!(without.to_arrays().unwrap().keys().all(|name| !name.starts_with(TARGET)));
    }
}
