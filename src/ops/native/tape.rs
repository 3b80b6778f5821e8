//! Training: a pass through a plan that remembers what its backward pass needs.

mod backward;
mod buffers;
mod lifetimes;
mod state;

use self::buffers::Buffers;
use self::lifetimes::Lifetimes;
use self::state::State;
use super::sizes::{Size, sizes};
use super::tokens;
use crate::encoder::{HostParams, Op, Plan, Value};
use crate::ops::cpu::pool::{self, Shape as PoolShape};
use crate::ops::isa::Isa;
use candle_core::{Result, bail};
use std::mem::take;

/// A plan laid out for one shape of images: its kernels, and every buffer that a step needs. After
/// the first step none is allocated.
pub struct Tape {
    plan: Plan,
    sizes: Vec<Size>,
    states: Vec<State>,
    /// The operation that first reads each value: the last one to add to its gradient.
    first_reader: Vec<Option<usize>>,
    lifetimes: Lifetimes,
    /// What each operation made, by [`Value`]; empty while it is not kept.
    values: Vec<Vec<f32>>,
    gradients: Vec<Option<Vec<f32>>>,
    buffers: Buffers,
    /// Of the gradient of a weight.
    scratch: Vec<f32>,
    /// The weight of the product at work, in the order that it is read.
    packed: Vec<f32>,
}

impl Tape {
    /// A tape for batches of `images` images of side `side_px`.
    ///
    /// # Errors
    /// A plan that these kernels can't run at this size: a window that fits nowhere, a norm that
    /// does not directly follow a convolution.
    pub fn new(plan: &Plan, images: usize, side_px: usize) -> Result<Self> {
        Self::on(Isa::best(), plan, images, side_px)
    }

    fn on(isa: Isa, plan: &Plan, images: usize, side_px: usize) -> Result<Self> {
        if images * side_px == 0 || plan.ops.is_empty() {
            bail!("a tape needs images, pixels and operations")
        }
        let sizes = sizes(plan, images, side_px)?;
        let states = (0..plan.ops.len()).map(|index| State::new(isa, plan, index, &sizes));
        let mut this = Self {
            first_reader: plan.first_readers(),
            lifetimes: Lifetimes::new(plan),
            values: sizes.iter().map(|_| vec![]).collect(),
            gradients: sizes.iter().map(|_| None).collect(),
            buffers: Buffers::default(),
            scratch: vec![],
            packed: vec![],
            plan: plan.clone(),
            states: states.collect::<Result<_>>()?,
            sizes,
        };
        this.make_room();
        Ok(this)
    }

    /// Room for the packed form and the gradient of every weight, and in each batch norm for the sums
    /// of the convolution before it, and of every one that reads it.
    fn make_room(&mut self) {
        for (index, op) in self.plan.ops.iter().enumerate() {
            let State::Product(product) = &self.states[index] else { continue };
            let scratch_len = product.convolution.scratch_len().max(self.scratch.len());
            self.scratch.resize(scratch_len, 0.0);
            let packed_len = product.convolution.packed_len().max(self.packed.len());
            self.packed.resize(packed_len, 0.0);
            let parts_len = product.convolution.sums_len();
            let inputs = op.reads().filter_map(|Value(value)| value.checked_sub(1));
            for norm in inputs.chain([index + 1]).collect::<Vec<_>>() {
                if let Some(sums) = self.states.get_mut(norm).and_then(State::norm_sums) {
                    sums.grow(0, parts_len);
                }
            }
        }
    }

    /// Images of a batch.
    pub fn images(&self) -> usize {
        self.sizes[0].images
    }

    /// The features `[N, D]` of `images [N, H, W, C]`, by the batch's own statistics.
    ///
    /// # Errors
    /// Images of another size than the tape is for.
    pub fn forward(&mut self, params: &HostParams, images: Vec<f32>) -> Result<&[f32]> {
        if images.len() != self.sizes[0].len() {
            bail!("a tape for {} floats of images was given {}", self.sizes[0].len(), images.len())
        }
        // What a pass without a backward one has left.
        for value in 1..self.values.len() {
            self.let_go(value);
        }
        self.values[0] = images;
        for index in 0..self.plan.ops.len() {
            self.make(params, index)?;
            for nth in 0..self.lifetimes.let_go[index].len() {
                self.let_go(self.lifetimes.let_go[index][nth]);
            }
        }
        Ok(&self.values[self.plan.ops.len()])
    }

    fn let_go(&mut self, value: usize) {
        self.buffers.take_back(take(&mut self.values[value]));
    }

    /// Makes the value of operation `index`.
    fn make(&mut self, params: &HostParams, index: usize) -> Result<()> {
        let mut output = self.buffers.lend(self.sizes[index + 1].len());
        let result = self.run(params, index, &mut output);
        self.values[index + 1] = output;
        result
    }

    fn run(&mut self, params: &HostParams, index: usize, output: &mut [f32]) -> Result<()> {
        let (states, after) = self.states.split_at_mut(index + 1);
        let read = |Value(value): Value| &*self.values[value];
        let weight = |weight| params.weight(weight);
        match (&self.plan.ops[index], &mut states[index]) {
            (&Op::Convolution { input, weight: kernel, .. }, State::Product(product)) => {
                let sums = after.first_mut().and_then(State::norm_sums);
                product.convolve(weight(kernel), &mut self.packed, read(input), output, sums);
            }
            (&Op::Linear { input, weight: matrix, bias, residual }, State::Product(product)) => {
                let affine = [weight(matrix), weight(bias)];
                let residual = residual.map(read);
                product.multiply(affine, &mut self.packed, read(input), residual, output);
            }
            (&Op::BatchNorm { input, gamma, beta, residual, relu, .. }, State::BatchNorm(norm)) => {
                let affine = [weight(gamma), weight(beta)];
                norm.forward(affine, read(input), residual.map(read), relu, output);
            }
            (&Op::LayerNorm { input, gamma, beta }, State::LayerNorm(norm)) => {
                norm.forward([weight(gamma), weight(beta)], read(input), output);
            }
            (&Op::Attention { input, .. }, State::Attention(attention)) => {
                attention.forward(read(input), output);
            }
            (&Op::Positions { input, bias }, State::Positions(positions)) => {
                positions.forward(weight(bias), read(input), output);
            }
            (&Op::Tokens { input, positions }, _) => {
                let channels = self.sizes[input.0].channels;
                tokens::add_token(weight(positions), channels, read(input), output);
            }
            (&Op::FirstPixel { input }, _) => {
                let size = self.sizes[input.0];
                tokens::first_pixel(read(input), size.pixels(), size.channels, output);
            }
            (&Op::Gelu { input }, _) => tokens::gelu(read(input), output),
            (&Op::MaxPool { input }, _) => {
                pool::maximum(&max_pool(self.sizes[input.0]), read(input), output);
            }
            (&Op::GlobalAveragePool { input }, _) => {
                let size = self.sizes[input.0];
                pool::average(read(input), size.pixels(), size.channels, output);
            }
            _ => bail!("operation {index} was laid out as another"),
        }
        Ok(())
    }

    /// Moves the running moments of `params` by `share` towards the last batch's.
    pub fn absorb(&self, params: &mut HostParams, share: f32) {
        for op in self.plan.ops.iter().zip(&self.states) {
            let (Op::BatchNorm { moments, .. }, State::BatchNorm(norm)) = op else { continue };
            let running = &mut params.moments[*moments];
            let unbiased = norm.rows() as f64 / (norm.rows().max(2) - 1) as f64;
            let blend = |running: &mut f32, batch: f64| {
                *running = *running * (1.0 - share) + batch as f32 * share;
            };
            for channel in 0..running.mean.len() {
                blend(&mut running.mean[channel], norm.mean[channel]);
                blend(&mut running.variance[channel], norm.variance[channel] * unbiased);
            }
        }
    }
}

fn max_pool(size: Size) -> PoolShape {
    PoolShape::max_pool(size.sides, size.channels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoder::{Architecture, Params};
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
                    let mut tape = Tape::on(isa, &plan, n, side).unwrap();
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
            let mut tape = Tape::on(isa, &plan, 4, 17).unwrap();
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
        let gradient = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut tape = Tape::new(&plan, 9, 28).unwrap();
                let mut gradient = vec![0.0; params.values.len()];
                tape.forward(&params, images.clone()).unwrap();
                tape.backward(&params, &pull, &mut gradient).unwrap();
                gradient.iter().map(|value| value.to_bits()).collect::<Vec<_>>()
            })
        };
        let one = gradient(1);
        assert!(one == gradient(2) && one == gradient(3));
    }

    /// Sums in f64 of what f32 kernels made: what is left is their rounding.
    #[test]
    fn a_step_along_the_gradient_lowers_the_loss_by_as_much_as_it_says() {
        let plan = Architecture::SlimResnet.plan();
        let params = HostParams::init(&plan, [1, 0]).unwrap();
        let (images, pull) = (noise(1, 8 * 16 * 16 * 3), noise(2, 8 * plan.feature_dim));
        let mut tape = Tape::new(&plan, 8, 16).unwrap();
        let mut loss = |params: &HostParams| -> f64 {
            let features = tape.forward(params, images.clone()).unwrap();
            features.iter().zip(&pull).map(|(f, p)| f64::from(*f) * f64::from(*p)).sum()
        };
        loss(&params);
        let mut gradient = vec![0.0; params.values.len()];
        let mut trained = Tape::new(&plan, 8, 16).unwrap();
        trained.forward(&params, images.clone()).unwrap();
        trained.backward(&params, &pull, &mut gradient).unwrap();
        let square: f64 = gradient.iter().map(|g| f64::from(*g).powi(2)).sum();
        let step = 1e-3 / square.sqrt();
        let mut moved = |sign: f64| {
            let mut params = params.clone();
            for (weight, gradient) in params.values.iter_mut().zip(&gradient) {
                *weight += (sign * step * f64::from(*gradient)) as f32;
            }
            loss(&params)
        };
        let slope = (moved(1.0) - moved(-1.0)) / (2.0 * step);
        assert!((slope / square - 1.0).abs() < 0.02, "slope {slope}, gradient says {square}");
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
