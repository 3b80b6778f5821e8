//! The encoder in training, on whatever computes it: host memory with the native kernels, or
//! candle tensors on another device.

mod host;
mod tensors;

use super::optimizer::{self, Optimizer};
use crate::encoder::{NamedArrays, Params, Plan};
use crate::ops::native::Precision;
use candle_core::backprop::GradStore;
use candle_core::{Device, Result, Tensor};

/// Share of a running moment that a batch replaces; PyTorch's default.
const RUNNING_SHARE: f64 = 0.1;
/// The seed stream of the encoder's weights.
const ENCODER_STREAM: u64 = 0;
/// Prefix of names in checkpoints.
const ENCODER: &str = "encoder.";

/// Copies of the encoder that no gradient moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shadow {
    /// The moving average that an objective compares with.
    Target,
    /// The encoder of some time ago that the features are aligned with.
    Past,
    /// The moving average that is served. It alone has running moments.
    Served,
}

impl Shadow {
    /// Prefix of its names in checkpoints.
    fn prefix(self) -> &'static str {
        match self {
            Self::Target => "target.encoder.",
            Self::Past => "past.encoder.",
            Self::Served => "served.encoder.",
        }
    }

    /// Whether a checkpoint without it begins it as the encoder is: it changes nothing in training,
    /// so that it can be asked for in the middle of a run.
    fn may_begin_late(self) -> bool {
        self == Self::Served
    }

    fn is_lacking(self, arrays: &NamedArrays) -> bool {
        !arrays.keys().any(|name| name.starts_with(self.prefix()))
    }
}

/// An encoder with its optimiser and the shadows that are asked for. One step is `forward_shadow`,
/// as often as wanted, and `forward`, once for each side of views; then `backward` and `step`; then
/// `follow` and `measure`.
pub(crate) trait Backbone: Send {
    /// The features `[N, D]`, a leaf, of `views`, flat `[N, H, W, C]` of side `side_px`. Passes
    /// over sides that differ wait for one step together; a side's second pass discards all others.
    fn forward(&mut self, views: Vec<f32>, side_px: usize) -> Result<Tensor>;

    /// The features `[N, D]` that a shadow has of `views`, by their own statistics.
    fn forward_shadow(&mut self, shadow: Shadow, views: Vec<f32>, side_px: usize)
    -> Result<Tensor>;

    /// Makes the gradient of the weights from the gradients `[N, D]` of the features that each
    /// waiting pass made, in their order.
    fn backward(&mut self, gradients: &[Tensor]) -> Result<()>;

    /// The sum of the squares of the gradient that waits for a step.
    fn squared_norm(&self) -> Result<f64>;

    /// Moves the weights by that gradient times `gradient_scale`. Running moments follow the views
    /// of the largest side: the nearest to what is served.
    fn step(&mut self, rate: f64, gradient_scale: f64) -> Result<()>;

    /// Moves a shadow's weights towards the encoder's and keeps the share `momentum` of them.
    fn follow(&mut self, shadow: Shadow, momentum: f64) -> Result<()>;

    /// Moves the running moments of [`Shadow::Served`] by `share` towards those it has on `views`.
    /// Not between a forward pass and its step.
    fn measure(&mut self, views: Vec<f32>, side_px: usize, share: f64) -> Result<()>;

    /// The numbers to serve, by name: the served average's where it is kept, or the encoder's.
    fn served(&self) -> Result<NamedArrays>;

    /// Encoder, shadows and optimiser, as checkpoints name them.
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
    /// Copies of it that are kept.
    pub(crate) shadows: &'a [Shadow],
    /// The run's seed.
    pub(crate) seed: u64,
    /// What host memory stores activations as; tensors are f32.
    pub(crate) precision: Precision,
    /// The numbers it begins with, by name; fresh ones where there are none.
    pub(crate) init: Option<&'a NamedArrays>,
}

/// A fresh encoder on `device`; its shadows begin as it does.
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

/// Moves the encoder, whose gradient waits, and its heads one step; the length of both gradients
/// together is what may be cut.
///
/// # Errors
/// A weight without a gradient, by name; whatever the device reports.
pub(crate) fn step_together(
    encoder: &mut dyn Backbone,
    optimizer: &mut Optimizer,
    (heads, mut gradients): (&[&Params], GradStore),
    rate: f64,
) -> Result<()> {
    let squares = || {
        let of_heads = heads.iter().map(|head| optimizer::squared_norm(head, &gradients));
        Ok(encoder.squared_norm()? + of_heads.sum::<Result<f64>>()?)
    };
    let scale = optimizer.gradient_scale(squares)?;
    if scale != 1.0 {
        for head in heads {
            optimizer::scale(head, &mut gradients, scale)?;
        }
    }
    encoder.step(rate, scale)?;
    let groups: Vec<_> = heads.iter().map(|head| (*head, &gradients)).collect();
    optimizer.step(&groups, rate)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::under_test;
    use crate::encoder::Architecture;

    fn pull_and_step(backbone: &mut dyn Backbone, pulls: &[Tensor]) -> Result<()> {
        backbone.backward(pulls)?;
        backbone.step(0.01, 1.0)
    }

    /// The oracle of the whole training step: both take the same one, from either's checkpoint.
    #[test]
    fn host_and_tensors_take_the_same_steps() {
        let plan = Architecture::SlimResnet.plan();
        let config = optimizer::Config::default();
        let spec = spec_with(&plan, &config, &[Shadow::Target]);
        let mut host = host::Host::new(&spec).unwrap();
        let mut tensors = tensors::Tensors::new(&spec, &under_test()).unwrap();
        let views: Vec<f32> = (0..6 * 768).map(|i| ((i * 7919) % 1009) as f32 / 1009.0).collect();
        let pull: Vec<f32> = (0..6 * 256).map(|i| ((i * 31) % 17) as f32 / 17.0 - 0.5).collect();
        let pull = Tensor::from_vec(pull, (6, 256), &under_test()).unwrap();
        let step = |backbone: &mut dyn Backbone| {
            let targets = backbone.forward_shadow(Shadow::Target, views.clone(), 16).unwrap();
            let features = backbone.forward(views.clone(), 16).unwrap();
            pull_and_step(backbone, std::slice::from_ref(&pull)).unwrap();
            backbone.follow(Shadow::Target, 0.9).unwrap();
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

    /// A backbone in f32 with the copies that are asked for.
    fn spec_with<'a>(
        plan: &'a Plan,
        optimizer: &'a optimizer::Config,
        shadows: &'a [Shadow],
    ) -> Spec<'a> {
        Spec { plan, optimizer, shadows, seed: 3, precision: Precision::F32, init: None }
    }

    /// Views of two sides: the gradients add up, and host and tensors agree.
    #[test]
    fn passes_over_two_sides_take_one_step_together() {
        let plan = Architecture::SlimResnet.plan();
        let config =
            optimizer::Config::Sgd { momentum: 0.0, weight_decay: 0.0, max_gradient_norm: None };
        let spec = spec_with(&plan, &config, &[]);
        let noise = |n: usize| (0..n).map(|i| ((i * 7919) % 1009) as f32 / 1009.0).collect();
        let (large, small): (Vec<f32>, Vec<f32>) = (noise(6 * 768), noise(4 * 192));
        let pull = |n: usize| {
            let values = (0..n * 256).map(|i| ((i * 31) % 17) as f32 / 17.0 - 0.5).collect();
            Tensor::from_vec(values, (n, 256), &under_test()).unwrap()
        };
        let weights = |backbone: &dyn Backbone| -> Vec<f32> {
            let arrays = backbone.served().unwrap();
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
            pull_and_step(backbone, &pulls).unwrap();
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
            pull_and_step(host, &pulls).unwrap();
            let after = host.served().unwrap();
            host.load_arrays(&before).unwrap();
            after.into_iter().filter(|(name, _)| name.contains("running")).collect::<Vec<_>>()
        };
        let alone = running(&mut host, &[16]);
        assert_eq!(running(&mut host, &[8, 16]), alone);
        assert_ne!(running(&mut host, &[8]), alone);
        host.forward(large.clone(), 16).unwrap();
        assert!(host.backward(&[pull(6), pull(4)]).is_err());
    }

    #[test]
    fn a_target_pass_is_the_averages_and_leaves_everything_as_it_was() {
        let plan = Architecture::SlimResnet.plan();
        let config = optimizer::Config::default();
        let spec = spec_with(&plan, &config, &[Shadow::Target]);
        let views: Vec<f32> = (0..6 * 768).map(|i| ((i * 7919) % 1009) as f32 / 1009.0).collect();
        let half = views[..3 * 768].to_vec();
        let values = |features: Tensor| features.to_vec2::<f32>().unwrap();
        let mut host = host::Host::new(&spec).unwrap();
        let mut tensors = tensors::Tensors::new(&spec, &under_test()).unwrap();
        for backbone in [&mut host as &mut dyn Backbone, &mut tensors] {
            // It begins as the encoder.
            let features = values(backbone.forward(views.clone(), 16).unwrap());
            let before = backbone.to_arrays().unwrap();
            assert_eq!(
                values(backbone.forward_shadow(Shadow::Target, views.clone(), 16).unwrap()),
                features
            );
            // Of another number of images, between a forward pass and its step.
            backbone.forward_shadow(Shadow::Target, half.clone(), 16).unwrap();
            assert_eq!(backbone.to_arrays().unwrap(), before);
            let pull = Tensor::ones((6, 256), candle_core::DType::F32, &under_test()).unwrap();
            pull_and_step(backbone, std::slice::from_ref(&pull)).unwrap();
            // A step moves the encoder alone, `follow` the average alone.
            assert_eq!(
                values(backbone.forward_shadow(Shadow::Target, views.clone(), 16).unwrap()),
                features
            );
            let stepped = backbone.to_arrays().unwrap();
            backbone.follow(Shadow::Target, 0.75).unwrap();
            for (name, after) in &backbone.to_arrays().unwrap() {
                let Some(weight) = name.strip_prefix(Shadow::Target.prefix()) else {
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
            let before =
                values(backbone.forward_shadow(Shadow::Target, views.clone(), 16).unwrap());
            backbone.follow(Shadow::Target, 1.0).unwrap();
            assert_eq!(
                values(backbone.forward_shadow(Shadow::Target, views.clone(), 16).unwrap()),
                before
            );
            backbone.follow(Shadow::Target, 0.0).unwrap();
            let encoder = values(backbone.forward(views.clone(), 16).unwrap());
            assert_eq!(
                values(backbone.forward_shadow(Shadow::Target, views.clone(), 16).unwrap()),
                encoder
            );
        }
        let spec = Spec { shadows: &[], ..spec };
        let mut without = host::Host::new(&spec).unwrap();
        assert!(without.forward_shadow(Shadow::Target, views, 16).is_err());
        assert!(
            without
                .to_arrays()
                .unwrap()
                .keys()
                .all(|name| !name.starts_with(Shadow::Target.prefix()))
        );
    }

    /// Half the gradient at twice the rate is the same step, where nothing decays.
    #[test]
    fn a_gradient_is_scaled_and_measured_as_it_is() {
        let plan = Architecture::SlimResnet.plan();
        let text = "kind = \"sgd\"\nweight_decay = 0.0";
        let config: optimizer::Config = toml::from_str(text).unwrap();
        let spec = spec_with(&plan, &config, &[]);
        let views: Vec<f32> = (0..6 * 768).map(|i| ((i * 7919) % 1009) as f32 / 1009.0).collect();
        let pull: Vec<f32> = (0..6 * 256).map(|i| ((i * 31) % 17) as f32 / 17.0 - 0.5).collect();
        let mut norms = vec![];
        let mut host = host::Host::new(&spec).unwrap();
        let mut tensors = tensors::Tensors::new(&spec, &under_test()).unwrap();
        for backbone in [&mut host as &mut dyn Backbone, &mut tensors] {
            assert!(backbone.squared_norm().is_err() && backbone.step(0.01, 1.0).is_err());
            let begin = backbone.to_arrays().unwrap();
            let mut stepped = |rate: f64, scale: f64, times: f64| {
                backbone.load_arrays(&begin).unwrap();
                backbone.forward(views.clone(), 16).unwrap();
                let pull = Tensor::from_slice(&pull, (6, 256), &under_test()).unwrap();
                backbone.backward(&[(pull * times).unwrap()]).unwrap();
                norms.push(backbone.squared_norm().unwrap());
                backbone.step(rate, scale).unwrap();
                backbone.to_arrays().unwrap()["encoder.stem.weight"].values.clone()
            };
            let whole = stepped(0.01, 1.0, 1.0);
            for other in [stepped(0.02, 0.5, 1.0), stepped(0.01, 0.5, 2.0)] {
                assert!(whole.iter().zip(&other).all(|(a, b)| (a - b).abs() < 1e-6));
            }
            assert_ne!(stepped(0.01, 0.5, 1.0), whole);
        }
        for (host, tensors) in norms[..4].iter().zip(&norms[4..]) {
            assert!((host / tensors - 1.0).abs() < 0.05, "{host}, {tensors}");
        }
        assert!((norms[2] / norms[0] - 4.0).abs() < 1e-3, "{norms:?}");
    }

    /// The served average is its weights' and its own moments: host and tensors agree, it goes
    /// through arrays, and training does not feel it.
    #[test]
    fn a_served_average_has_moments_of_its_own_and_moves_nothing() {
        let plan = Architecture::SlimResnet.plan();
        let config = optimizer::Config::default();
        let spec = spec_with(&plan, &config, &[Shadow::Served]);
        let views: Vec<f32> = (0..6 * 768).map(|i| ((i * 7919) % 1009) as f32 / 1009.0).collect();
        let mut found = vec![];
        let mut host = host::Host::new(&spec).unwrap();
        let mut tensors = tensors::Tensors::new(&spec, &under_test()).unwrap();
        for backbone in [&mut host as &mut dyn Backbone, &mut tensors] {
            let pull = Tensor::ones((6, 256), candle_core::DType::F32, &under_test()).unwrap();
            let began = backbone.served().unwrap();
            backbone.forward(views.clone(), 16).unwrap();
            pull_and_step(backbone, std::slice::from_ref(&pull)).unwrap();
            assert_eq!(backbone.served().unwrap(), began, "a step moves the encoder alone");
            let encoder = |backbone: &dyn Backbone| -> NamedArrays {
                let arrays = backbone.to_arrays().unwrap();
                arrays.into_iter().filter(|(name, _)| name.starts_with(ENCODER)).collect()
            };
            let stepped = encoder(backbone);
            // Half-way between the two, with all of the moments of its own pass.
            backbone.follow(Shadow::Served, 0.5).unwrap();
            backbone.measure(views.clone(), 16, 1.0).unwrap();
            assert_eq!(encoder(backbone), stepped);
            let served = backbone.served().unwrap();
            let weights = |name: &str| {
                let after = &stepped[&format!("{ENCODER}{name}")].values;
                began[name].values.iter().zip(after).map(|(a, b)| (a + b) / 2.0).collect()
            };
            let expected: Vec<f32> = weights("stage4.block2.conv2.weight");
            let half_way = &served["stage4.block2.conv2.weight"].values;
            assert!(half_way.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-6));
            let name = "stem.norm.running_mean";
            let mean = |arrays: &NamedArrays, name: &str| arrays[name].values.clone();
            assert_ne!(mean(&served, name), mean(&began, name));
            let arrays = backbone.to_arrays().unwrap();
            backbone.follow(Shadow::Served, 0.0).unwrap();
            assert_ne!(backbone.served().unwrap(), served);
            backbone.load_arrays(&arrays).unwrap();
            assert_eq!(backbone.served().unwrap(), served);
            // A checkpoint from before it was asked for begins it as the encoder is.
            let lacking = arrays.into_iter().filter(|(name, _)| !name.starts_with("served."));
            backbone.load_arrays(&lacking.collect()).unwrap();
            let late = backbone.served().unwrap();
            for (name, array) in &late {
                assert_eq!(array, &stepped[&format!("{ENCODER}{name}")], "{name}");
            }
            found.push(served);
        }
        let [host, tensors] = &found[..] else { panic!("two backbones") };
        assert!(host.keys().eq(tensors.keys()));
        for (name, array) in host {
            let largest = tensors[name].values.iter().fold(1e-3_f32, |most, v| most.max(v.abs()));
            for (a, b) in array.values.iter().zip(&tensors[name].values) {
                assert!((a - b).abs() < 0.02 * largest, "{name}: {a}, {b}");
            }
        }
    }

    #[test]
    fn encoder_and_shadows_begin_with_the_numbers_that_are_given() {
        let plan = Architecture::SlimResnet.plan();
        let given = crate::encoder::HostParams::init(&plan, [9, 0]).unwrap().to_arrays("");
        let config = optimizer::Config::default();
        let shadows = &[Shadow::Target, Shadow::Served];
        let spec = Spec {
            plan: &plan,
            optimizer: &config,
            shadows,
            seed: 3,
            precision: Precision::F32,
            init: Some(&given),
        };
        let host = host::Host::new(&spec).unwrap();
        let tensors = tensors::Tensors::new(&spec, &under_test()).unwrap();
        for backbone in [&host as &dyn Backbone, &tensors] {
            assert_eq!(backbone.served().unwrap(), given);
            let arrays = backbone.to_arrays().unwrap();
            for (name, array) in &given {
                assert_eq!(&arrays[&format!("{ENCODER}{name}")], array);
                let target = arrays.get(&format!("target.encoder.{name}"));
                assert!(target.is_none_or(|target| target == array), "{name}");
            }
        }
        let lacking = Spec { init: Some(&NamedArrays::new()), ..spec };
        assert!(host::Host::new(&lacking).is_err());
    }
}
