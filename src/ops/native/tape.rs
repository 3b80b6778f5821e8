//! Training: a pass through a plan that remembers what its backward pass needs, in f32 or bf16.

mod backward;
mod buffers;
mod lifetimes;
mod recording;
mod state;

use self::lifetimes::Lifetimes;
use self::recording::Recording;
use super::sizes::sizes;
use crate::encoder::{HostParams, Plan};
use crate::ops::element::{Bf16, Precision};
use crate::ops::isa::Isa;
use candle_core::Result;

/// A plan laid out for one shape of images: its kernels, and every buffer that a step needs. After
/// the first step none is allocated.
pub struct Tape(Stores);

/// What it stores.
enum Stores {
    F32(Recording<f32>),
    Bf16(Recording<Bf16>),
}

impl Tape {
    /// A tape for batches of `images` images of side `side_px`, which stores f32.
    ///
    /// # Errors
    /// A plan that these kernels can't run at this size: a window that fits nowhere, a norm that
    /// does not directly follow a convolution.
    pub fn new(plan: &Plan, images: usize, side_px: usize) -> Result<Self> {
        Self::storing(Precision::F32, plan, images, side_px)
    }

    /// [`Tape::new`] that stores activations and their gradients as `precision` says.
    ///
    /// # Errors
    /// As [`Tape::new`].
    pub fn storing(
        precision: Precision,
        plan: &Plan,
        images: usize,
        side_px: usize,
    ) -> Result<Self> {
        Self::on(Isa::best(), precision, plan, images, side_px)
    }

    /// The most numbers that it stores beside the weights: what is kept for the backward pass, and half as
    /// many again for gradients and what is made again. That half is a guess; that the whole is above the
    /// peaks in docs/PERFORMANCE.md is tested.
    ///
    /// # Errors
    /// As [`Tape::new`].
    pub fn most_numbers(plan: &Plan, images: usize, side_px: usize) -> Result<usize> {
        let sizes = sizes(plan, images, side_px)?;
        let let_go = Lifetimes::new(plan).let_go.concat();
        let values = sizes.iter().enumerate();
        let kept: usize =
            values.filter(|(value, _)| !let_go.contains(value)).map(|(_, size)| size.len()).sum();
        Ok(kept + kept / 2)
    }

    fn on(
        isa: Isa,
        precision: Precision,
        plan: &Plan,
        images: usize,
        side_px: usize,
    ) -> Result<Self> {
        Ok(Self(match precision {
            Precision::F32 => Stores::F32(Recording::new(isa, plan, images, side_px)?),
            Precision::Bf16 => Stores::Bf16(Recording::new(isa, plan, images, side_px)?),
        }))
    }

    /// Images of a batch.
    pub fn images(&self) -> usize {
        match &self.0 {
            Stores::F32(recording) => recording.images(),
            Stores::Bf16(recording) => recording.images(),
        }
    }

    /// The features `[N, D]` of `images [N, H, W, C]`, by the batch's own statistics.
    ///
    /// # Errors
    /// Images of another size than the tape is for.
    pub fn forward(&mut self, params: &HostParams, images: Vec<f32>) -> Result<&[f32]> {
        match &mut self.0 {
            Stores::F32(recording) => recording.forward(params, images),
            Stores::Bf16(recording) => recording.forward(params, images),
        }
    }

    /// The gradient of every weight, in the order of [`HostParams::values`], of the gradient
    /// `[N, D]` of the features that [`Tape::forward`] made last.
    ///
    /// # Errors
    /// Gradients of another size, or no features since the last backward pass.
    pub fn backward(
        &mut self,
        params: &HostParams,
        features: &[f32],
        gradient: &mut [f32],
    ) -> Result<()> {
        match &mut self.0 {
            Stores::F32(recording) => recording.backward(params, features, gradient),
            Stores::Bf16(recording) => recording.backward(params, features, gradient),
        }
    }

    /// Moves the running moments of `params` by `share` towards the last batch's.
    pub fn absorb(&self, params: &mut HostParams, share: f32) {
        match &self.0 {
            Stores::F32(recording) => recording.absorb(params, share),
            Stores::Bf16(recording) => recording.absorb(params, share),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoder::{Architecture, Op, Params};
    use crate::ops::candle::interpreter::forward_train;
    use candle_core::{Device, Tensor};

    /// Images and a gradient of features that differ from pixel to pixel.
    fn noise(seed: usize, length: usize) -> Vec<f32> {
        let number = |i: usize| ((i * 7919 + seed * 104_729) % 1009) as f32 / 504.5 - 1.0;
        (0..length).map(number).collect()
    }

    /// |a - b| / |b|, Euclidean.
    fn distance(a: &[f32], b: &[f32]) -> f64 {
        assert_eq!(a.len(), b.len());
        let square = |x: f64| x * x;
        let difference: f64 =
            a.iter().zip(b).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
        let size: f64 = b.iter().map(|b| square(f64::from(*b))).sum();
        (difference / size).sqrt()
    }

    /// Features, then the gradient of each weight, by the interpreter on tensors.
    fn oracle(
        plan: &Plan,
        params: &HostParams,
        images: &[f32],
        n: usize,
        pull: &[f32],
    ) -> Vec<Vec<f32>> {
        let mut tensors = Params::init(&plan.weights, &plan.moments, [0, 0], &Device::Cpu).unwrap();
        tensors.load_arrays("", &params.to_arrays("")).unwrap();
        let side = ((images.len() / n / 3) as f64).sqrt() as usize;
        let images = Tensor::from_slice(images, (n, side, side, 3), &Device::Cpu).unwrap();
        let trained = forward_train(plan, &tensors, &images).unwrap();
        let pull = Tensor::from_slice(pull, trained.features.shape(), &Device::Cpu).unwrap();
        let loss = trained.features.mul(&pull).unwrap().sum_all().unwrap();
        let gradients = loss.backward().unwrap();
        let flat = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let mut all = vec![flat(&trained.features)];
        all.extend(tensors.weights.iter().map(|weight| flat(gradients.get(weight).unwrap())));
        all
    }

    /// docs/PERFORMANCE.md, Memory: 128 images of 32 px, MiB in f32 and in bf16; gradient and packed
    /// weights count there too.
    #[test]
    fn no_more_numbers_have_been_measured_than_are_told_of() {
        for (architecture, f32_mib, bf16_mib) in
            [("slim-resnet", 328, 177), ("resnet18", 619, 331), ("vit-tiny-patch4", 895, 491)]
        {
            let plan = architecture.parse::<Architecture>().unwrap().plan();
            let weights = HostParams::init(&plan, [1, 0]).unwrap().values.len();
            let numbers = Tape::most_numbers(&plan, 128, 32).unwrap();
            let told_mib = |bytes: usize| (bytes * numbers + 2 * 4 * weights) >> 20;
            let told = [told_mib(4), told_mib(2)];
            println!("{architecture}: {told:?} MiB for {f32_mib} and {bf16_mib}");
            assert!(told[0] >= f32_mib && told[1] >= bf16_mib, "{architecture}: {told:?} MiB");
            assert!(told[0] <= 2 * f32_mib, "{architecture}: {told:?} MiB is more than generous");
        }
    }

    #[test]
    fn every_architecture_has_the_features_and_gradients_of_the_interpreter() {
        for architecture in Architecture::ALL {
            let plan = architecture.plan();
            let params = HostParams::init(&plan, [1, 0]).unwrap();
            let is_small = plan.weights.len() < 200 && plan.feature_dim <= 256;
            let shapes: &[_] = if is_small { &[(7, 33), (33, 15), (4, 28)] } else { &[(9, 15)] };
            let most = if is_small { 3e-2 } else { 1e-1 };
            // Rounding grows with the layers.
            let depth = plan.ops.len() as f64;
            for &(n, side) in shapes {
                let images = noise(1, n * side * side * 3);
                let pull = noise(2, n * plan.feature_dim);
                let expected = oracle(&plan, &params, &images, n, &pull);
                for isa in Isa::available() {
                    let mut tape = Tape::on(isa, Precision::F32, &plan, n, side).unwrap();
                    let mut gradient = vec![f32::NAN; params.values.len()];
                    // Twice: the second pass meets buffers that the first one used.
                    for _ in 0..2 {
                        let features = tape.forward(&params, images.clone()).unwrap();
                        assert!(
                            distance(features, &expected[0]) < 1e-5 * depth,
                            "{architecture} {n} x {side}"
                        );
                        tape.backward(&params, &pull, &mut gradient).unwrap();
                    }
                    let mut errors: Vec<(f64, &str)> = plan
                        .weights
                        .iter()
                        .zip(&params.ranges)
                        .zip(&expected[1..])
                        .map(|((spec, range), expected)| {
                            (distance(&gradient[range.clone()], expected), &*spec.name)
                        })
                        .collect();
                    errors.sort_by(|a, b| a.0.total_cmp(&b.0));
                    // A rectifier that rounding turns over moves the gradients of its layer, and of
                    // all before it, by 1 / sqrt(the layer's numbers): fifty layers, the last of a
                    // pixel each, turn many. A wrong formula is off by about 1.
                    let (median, worst) = (errors[errors.len() / 2], errors[errors.len() - 1]);
                    assert!(
                        median.0 < most && worst.0 < 2.0 * most,
                        "{architecture} {n} x {side} on {isa}: {median:?}, {worst:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_max_pool_has_the_gradients_of_the_interpreter() {
        let mut plan = Plan::new("toy");
        let geometry = crate::encoder::Geometry { kernel: 7, stride: 2, padding: 3 };
        let images = plan.images();
        let convolved = plan.convolution("stem", images, [3, 20], geometry);
        let normed = plan.batch_norm("stem.norm", convolved, 20, None, true);
        let pooled = plan.max_pool(normed);
        plan.global_average_pool(pooled, 20);
        let params = HostParams::init(&plan, [1, 0]).unwrap();
        let (images, pull) = (noise(1, 5 * 27 * 27 * 3), noise(2, 5 * 20));
        let expected = oracle(&plan, &params, &images, 5, &pull);
        let mut tape = Tape::new(&plan, 5, 27).unwrap();
        let mut gradient = vec![f32::NAN; params.values.len()];
        let features = tape.forward(&params, images).unwrap();
        assert!(distance(features, &expected[0]) < 1e-5);
        tape.backward(&params, &pull, &mut gradient).unwrap();
        for (range, expected) in params.ranges.iter().zip(&expected[1..]) {
            assert!(distance(&gradient[range.clone()], expected) < 1e-3);
        }
    }

    #[test]
    fn a_class_token_has_the_gradients_of_the_interpreter_and_wants_its_grid() {
        let plan = "vit-tiny-patch5-grid3".parse::<Architecture>().unwrap().plan();
        let mut params = HostParams::init(&plan, [1, 0]).unwrap();
        // Positions of every size, so that each must stand where it belongs.
        let positions = params.ranges[1].clone();
        assert_eq!(plan.weights[1].name, "tokens.positions");
        params.values[positions].copy_from_slice(&noise(3, 10 * 192));
        let (images, pull) = (noise(1, 4 * 17 * 17 * 3), noise(2, 4 * plan.feature_dim));
        let expected = oracle(&plan, &params, &images, 4, &pull);
        for isa in Isa::available() {
            let mut tape = Tape::on(isa, Precision::F32, &plan, 4, 17).unwrap();
            let mut gradient = vec![f32::NAN; params.values.len()];
            for _ in 0..2 {
                let features = tape.forward(&params, images.clone()).unwrap();
                assert!(distance(features, &expected[0]) < 1e-4);
                tape.backward(&params, &pull, &mut gradient).unwrap();
            }
            for ((spec, range), expected) in
                plan.weights.iter().zip(&params.ranges).zip(&expected[1..])
            {
                let error = distance(&gradient[range.clone()], expected);
                // The bias of the keys has no gradient but for rounding.
                let is_key = spec.name.ends_with("qkv.bias");
                assert!(error < if is_key { 3e-2 } else { 1e-2 }, "{}: {error}", spec.name);
            }
        }
        let error = Tape::new(&plan, 4, 20).err().unwrap().to_string();
        assert!(error.contains("[10, 192]") && error.contains("16 patches"), "{error}");
    }

    /// a . b / (|a| |b|).
    fn cosine(a: &[f32], b: &[f32]) -> f64 {
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
    }

    /// The features and the gradient of every weight, on `isa`.
    fn step(
        isa: Isa,
        precision: Precision,
        (plan, params): (&Plan, &HostParams),
        [n, side]: [usize; 2],
    ) -> [Vec<f32>; 2] {
        let (images, pull) = (noise(1, n * side * side * 3), noise(2, n * plan.feature_dim));
        let mut tape = Tape::on(isa, precision, plan, n, side).unwrap();
        let mut gradient = vec![f32::NAN; params.values.len()];
        let mut found = vec![];
        // Twice: the second pass meets buffers that the first one used.
        for _ in 0..2 {
            found = tape.forward(params, images.clone()).unwrap().to_vec();
            tape.backward(params, &pull, &mut gradient).unwrap();
        }
        [found, gradient]
    }

    fn window(kernel: usize, stride: usize) -> crate::encoder::Geometry {
        crate::encoder::Geometry { kernel, stride, padding: kernel / 2 }
    }

    /// A stem with a pool, and a convolution beside which its input is added.
    fn pooled() -> Plan {
        let mut plan = Plan::new("pooled");
        let images = plan.images();
        let stem = plan.convolution("stem", images, [3, 20], window(7, 2));
        let stem = plan.batch_norm("stem.norm", stem, 20, None, true);
        let pooled = plan.max_pool(stem);
        let inner = plan.convolution("inner", pooled, [20, 20], window(3, 1));
        let normed = plan.batch_norm("inner.norm", inner, 20, Some(pooled), true);
        plan.global_average_pool(normed, 20);
        plan
    }

    /// A block with a bottleneck of stride 2 and an odd number of channels.
    fn bottleneck() -> Plan {
        let mut plan = Plan::new("bottleneck");
        let images = plan.images();
        let stem = plan.convolution("stem", images, [3, 48], window(3, 1));
        let stem = plan.batch_norm("stem.norm", stem, 48, None, true);
        let first = plan.convolution("first", stem, [48, 15], window(1, 1));
        let first = plan.batch_norm("first.norm", first, 15, None, true);
        let second = plan.convolution("second", first, [15, 15], window(3, 2));
        let second = plan.batch_norm("second.norm", second, 15, None, true);
        let shortcut = plan.convolution("shortcut", stem, [48, 64], window(1, 2));
        let shortcut = plan.batch_norm("shortcut.norm", shortcut, 64, None, false);
        let third = plan.convolution("third", second, [15, 64], window(1, 1));
        let last = plan.batch_norm("third.norm", third, 64, Some(shortcut), true);
        plan.global_average_pool(last, 64);
        plan
    }

    /// Every operation's formula. Rounding turns rectifiers over, and which of a window's pixels is
    /// the greatest, and each moves a gradient: by a tenth or two in plans this shallow, where a
    /// wrong formula moves it by about 1.
    #[test]
    fn shallow_plans_in_bf16_have_the_gradients_of_f32() {
        for plan in [pooled(), bottleneck()] {
            let params = HostParams::init(&plan, [1, 0]).unwrap();
            for (shape, isa) in [[1, 33], [7, 28], [33, 15]]
                .into_iter()
                .flat_map(|shape| Isa::available().into_iter().map(move |isa| (shape, isa)))
            {
                let [expected, gradient] = step(isa, Precision::F32, (&plan, &params), shape);
                let [features, found] = step(isa, Precision::Bf16, (&plan, &params), shape);
                let what = format!("{} of {shape:?} on {isa}", plan.architecture);
                let error = distance(&features, &expected);
                assert!(error < 1e-2, "features of {what}: {error}");
                let error = distance(&found, &gradient);
                assert!(error < 0.3, "{what}: {error}");
                for (spec, range) in plan.weights.iter().zip(&params.ranges) {
                    let error = distance(&found[range.clone()], &gradient[range.clone()]);
                    assert!(error < 0.5, "{} of {what}: {error}", spec.name);
                }
            }
        }
    }

    /// At random weights the gradients of deep rectified networks differ by a third in norm, as those
    /// of PyTorch's autocast do: rounding turns rectifiers over in each layer. Fifty layers of so few
    /// pixels leave nothing of them (the test of f32 above allows a tenth for its own rounding, 2^-16
    /// of bf16's), so that ResNet-50 is told by its block above.
    #[test]
    fn bf16_has_the_features_of_f32_and_gradients_that_point_its_way() {
        let with_class_token = "vit-tiny-patch5-grid3".parse::<Architecture>().unwrap();
        for architecture in Architecture::ALL.into_iter().chain([with_class_token]) {
            let plan = architecture.plan();
            let is_transformer = plan.ops.iter().any(|op| matches!(op, Op::Gelu { .. }));
            if !is_transformer && plan.weights.len() > 100 {
                continue;
            }
            let params = HostParams::init(&plan, [1, 0]).unwrap();
            let is_small = plan.weights.len() < 200 && plan.feature_dim <= 256;
            let shapes: &[_] = match architecture.only_side_px() {
                Some(side) => &[[4, side]],
                None if is_small => &[[7, 33]],
                None => &[[9, 15]],
            };
            let (most, least) = if is_transformer { (2e-2, 0.99) } else { (0.15, 0.8) };
            for &shape in shapes {
                for isa in Isa::available() {
                    let of = (&plan, &params);
                    let [expected, gradient] = step(isa, Precision::F32, of, shape);
                    let [features, found] = step(isa, Precision::Bf16, of, shape);
                    let (error, cosine) =
                        (distance(&features, &expected), cosine(&found, &gradient));
                    println!("{architecture} {shape:?} on {isa}: {error:.4}, {cosine:.4}");
                    assert!(error < most && cosine > least, "{architecture} {shape:?} on {isa}");
                }
            }
        }
    }

    #[test]
    fn running_moments_are_those_of_the_interpreter() {
        let plan = Architecture::SlimResnet.plan();
        let mut params = HostParams::init(&plan, [1, 0]).unwrap();
        let images = noise(1, 6 * 20 * 20 * 3);
        let tensors = Params::init(&plan.weights, &plan.moments, [1, 0], &Device::Cpu).unwrap();
        let shaped = Tensor::from_slice(&images, (6, 20, 20, 3), &Device::Cpu).unwrap();
        let moments = forward_train(&plan, &tensors, &shaped).unwrap().moments;
        let mut tape = Tape::new(&plan, 6, 20).unwrap();
        tape.forward(&params, images).unwrap();
        tape.absorb(&mut params, 0.5);
        for (found, batch) in params.moments.iter().zip(moments) {
            let unbiased = batch.count as f32 / (batch.count - 1) as f32;
            let expected: Vec<f32> = batch.variance.to_vec1::<f32>().unwrap();
            let expected: Vec<f32> = expected.iter().map(|v| 0.5 + 0.5 * v * unbiased).collect();
            assert!(distance(&found.variance, &expected) < 1e-5);
            let mean = batch.mean.to_vec1::<f32>().unwrap();
            let doubled: Vec<f32> = found.mean.iter().map(|mean| 2.0 * mean).collect();
            assert!(distance(&doubled, &mean) < 1e-4);
        }
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let plan = Architecture::SlimResnet.plan();
        let params = HostParams::init(&plan, [1, 0]).unwrap();
        let (images, pull) = (noise(1, 9 * 28 * 28 * 3), noise(2, 9 * plan.feature_dim));
        let gradient = |precision: Precision, threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut tape = Tape::storing(precision, &plan, 9, 28).unwrap();
                let mut gradient = vec![0.0; params.values.len()];
                tape.forward(&params, images.clone()).unwrap();
                tape.backward(&params, &pull, &mut gradient).unwrap();
                gradient.iter().map(|value| value.to_bits()).collect::<Vec<_>>()
            })
        };
        for precision in [Precision::F32, Precision::Bf16] {
            let one = gradient(precision, 1);
            assert!(one == gradient(precision, 2) && one == gradient(precision, 3));
        }
    }

    /// Sums in f64 of what f32 kernels made: what is left is their rounding.
    #[test]
    fn a_step_along_the_gradient_lowers_the_loss_by_as_much_as_it_says() {
        for architecture in Architecture::ALL {
            a_step_lowers_the_loss(architecture);
        }
    }

    fn a_step_lowers_the_loss(architecture: Architecture) {
        let plan = architecture.plan();
        let params = HostParams::init(&plan, [1, 0]).unwrap();
        // A last grid of 4 x 4 pixels: norms over fewer bend the loss within a step, and make its rounding large.
        let side = if architecture.to_string().ends_with("-imagenet") { 128 } else { 32 };
        let (images, pull) = (noise(1, 8 * side * side * 3), noise(2, 8 * plan.feature_dim));
        let mut tape = Tape::new(&plan, 8, side).unwrap();
        let mut loss = |params: &HostParams| -> f64 {
            let features = tape.forward(params, images.clone()).unwrap();
            features.iter().zip(&pull).map(|(f, p)| f64::from(*f) * f64::from(*p)).sum()
        };
        loss(&params);
        let mut gradient = vec![0.0; params.values.len()];
        let mut trained = Tape::new(&plan, 8, side).unwrap();
        trained.forward(&params, images.clone()).unwrap();
        trained.backward(&params, &pull, &mut gradient).unwrap();
        // By a quarter of the unit: far above the rounding of the loss, and few rectifiers turn on the way.
        let square: f64 = gradient.iter().map(|g| f64::from(*g).powi(2)).sum();
        let moved = |sign: f64| {
            let mut params = params.clone();
            for (weight, gradient) in params.values.iter_mut().zip(&gradient) {
                *weight += (sign * 0.25 / square * f64::from(*gradient)) as f32;
            }
            params
        };
        let (up, down) = (moved(1.0), moved(-1.0));
        let found = loss(&up) - loss(&down);
        // Weights that are far larger than their step have not moved by all of it.
        let moves = up.values.iter().zip(&down.values).map(|(up, down)| f64::from(up - down));
        let expected: f64 = moves.zip(&gradient).map(|(moved, g)| moved * f64::from(*g)).sum();
        println!("{architecture}: {found} for {expected}");
        assert!((found / expected - 1.0).abs() < 0.02, "{architecture}: {found} for {expected}");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let plan = Architecture::SlimResnet.plan();
        let params = HostParams::init(&plan, [1, 0]).unwrap();
        assert!(Tape::new(&plan, 0, 28).is_err());
        let mut tape = Tape::new(&plan, 2, 28).unwrap();
        assert!(tape.forward(&params, vec![0.0; 7]).is_err());
        assert!(tape.backward(&params, &[0.0; 3], &mut []).is_err());
        // The values that a gradient is made from last for one backward pass.
        let (pull, mut gradient) = (vec![0.0; 2 * plan.feature_dim], params.values.clone());
        assert!(tape.backward(&params, &pull, &mut gradient).is_err());
        tape.forward(&params, vec![0.0; 2 * 28 * 28 * 3]).unwrap();
        assert!(tape.backward(&params, &pull, &mut gradient).is_ok());
        assert!(tape.backward(&params, &pull, &mut gradient).is_err());
    }
}
