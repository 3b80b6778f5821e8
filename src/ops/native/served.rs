//! Serving: a plan with its batch norms folded into the convolutions before them, so that a block of
//! a residual network is two passes.

mod fold;
mod layout;

use self::fold::{Weights, fold};
use self::layout::{Layout, Stage};
use super::kernel::tiles::Tail;
use super::sizes::{Size, sizes};
use super::tokens;
use crate::encoder::{HostParams, Op, Plan, Value};
use crate::ops::cpu::pool::{self, Shape as PoolShape};
use crate::ops::isa::Isa;
use candle_core::{Result, bail};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Mutex, PoisonError};

/// Images that go through together, at most; more are cut up. A cache holds their activations.
const BATCH_MAX: usize = 32;

/// The numbers of a plan, ready to embed images of one size.
pub struct Served {
    isa: Isa,
    plan: Plan,
    side_px: usize,
    /// By operation.
    weights: Vec<Weights>,
    last_reader: Vec<Option<usize>>,
    workspace: Mutex<Workspace>,
}

/// What passes leave behind for the next one.
#[derive(Default)]
struct Workspace {
    /// The layouts by number of images, powers of two.
    layouts: BTreeMap<usize, Layout>,
    spare: Vec<Vec<f32>>,
}

impl Served {
    /// The encoder of `params` for images of side `side_px`.
    ///
    /// # Errors
    /// A plan that these kernels can't run at this size.
    pub fn new(plan: &Plan, params: &HostParams, side_px: usize) -> Result<Self> {
        Self::on(Isa::best(), plan, params, side_px)
    }

    fn on(isa: Isa, plan: &Plan, params: &HostParams, side_px: usize) -> Result<Self> {
        let one = Layout::new(isa, plan, 1, side_px)?;
        let weights = (0..plan.ops.len()).map(|index| fold(isa, plan, params, &one, index));
        Ok(Self {
            isa,
            plan: plan.clone(),
            side_px,
            weights: weights.collect(),
            last_reader: plan.last_readers(),
            workspace: Mutex::new(Workspace { layouts: BTreeMap::from([(1, one)]), spare: vec![] }),
        })
    }

    /// The most numbers that it stores beside the weights: as many buffers as are in use at once, each as
    /// long as the largest value.
    ///
    /// # Errors
    /// As [`Served::new`].
    pub fn most_numbers(plan: &Plan, side_px: usize) -> Result<usize> {
        let sizes = sizes(plan, BATCH_MAX, side_px)?;
        let last_reader = plan.last_readers();
        let is_used = |value: usize, at: usize| {
            value <= at + 1 && last_reader[value].is_none_or(|last| last >= at)
        };
        let in_use = |at: usize| (1..sizes.len()).filter(|&value| is_used(value, at)).count();
        let buffers = (0..plan.ops.len()).map(in_use).max().unwrap_or(0);
        Ok(buffers * sizes.iter().map(Size::len).max().unwrap_or(0))
    }

    /// The features `[N, D]` of `images [N, H, W, C]`; each image's are its own, whatever else is
    /// in the batch.
    ///
    /// # Errors
    /// Images of another size.
    pub fn embed(&self, images: &[f32], n_images: usize) -> Result<Vec<f32>> {
        let image = self.side_px * self.side_px * 3;
        if images.len() != n_images * image {
            bail!("{n_images} images of {} px are not {} floats", self.side_px, images.len())
        }
        let mut workspace = self.workspace.lock().unwrap_or_else(PoisonError::into_inner);
        let mut features = Vec::with_capacity(n_images * self.plan.feature_dim);
        let mut done = 0;
        while done < n_images {
            let left = n_images - done;
            let batch = if left >= BATCH_MAX { BATCH_MAX } else { 1 << left.ilog2() };
            let Workspace { layouts, spare } = &mut *workspace;
            let layout = match layouts.entry(batch) {
                Entry::Occupied(layout) => layout.into_mut(),
                Entry::Vacant(place) => {
                    place.insert(Layout::new(self.isa, &self.plan, batch, self.side_px)?)
                }
            };
            let images = &images[done * image..][..batch * image];
            self.run(layout, spare, images, &mut features)?;
            done += batch;
        }
        Ok(features)
    }

    /// Adds the features of `images` to `features`.
    fn run(
        &self,
        layout: &mut Layout,
        spare: &mut Vec<Vec<f32>>,
        images: &[f32],
        features: &mut Vec<f32>,
    ) -> Result<()> {
        let mut values: Vec<Option<Vec<f32>>> = vec![None; self.plan.ops.len() + 1];
        for (index, op) in self.plan.ops.iter().enumerate() {
            // A folded norm's value is the one that its convolution has made.
            if let Op::BatchNorm { input: Value(input), .. } = op {
                values[index + 1] = values[*input].take();
                continue;
            }
            let length = layout.sizes[index + 1].len();
            let mut output = spare.pop().unwrap_or_default();
            output.resize(length.max(output.len()), 0.0);
            self.compute(layout, index, images, &values, &mut output[..length])?;
            values[index + 1] = Some(output);
            for (at, value) in values.iter_mut().enumerate() {
                // The norm behind a convolution reads its residual here already.
                if self.last_reader[at].is_some_and(|last| last <= index) {
                    spare.extend(value.take());
                }
            }
        }
        if let Some(Some(last)) = values.pop() {
            features.extend_from_slice(&last[..layout.sizes[self.plan.ops.len()].len()]);
            spare.push(last);
        }
        Ok(())
    }

    /// The output of operation `index`.
    fn compute(
        &self,
        layout: &mut Layout,
        index: usize,
        images: &[f32],
        values: &[Option<Vec<f32>>],
        output: &mut [f32],
    ) -> Result<()> {
        let sizes = &layout.sizes;
        let read = |Value(at): Value| match &values[at] {
            Some(value) => &value[..sizes[at].len()],
            None => images,
        };
        let stage = (&mut layout.stages[index], &self.weights[index]);
        match (&self.plan.ops[index], stage) {
            (
                &(Op::Convolution { input, .. } | Op::Linear { input, .. }),
                (Stage::Product(product), Weights::Product { packed, bias }),
            ) => {
                let mut tail = self.tail(index, read);
                tail.bias = Some(bias);
                product.forward(packed, read(input), output, tail, None);
            }
            (
                &Op::LayerNorm { input, .. },
                (Stage::LayerNorm(norm), Weights::Affine { gamma, beta }),
            ) => norm.forward([gamma, beta], read(input), output),
            (&Op::Attention { input, .. }, (Stage::Attention(attention), _)) => {
                attention.forward(read(input), output);
            }
            (&Op::Positions { input, .. }, (Stage::Positions(positions), Weights::Bias(bias))) => {
                positions.forward(bias, read(input), output)
            }
            (&Op::Tokens { input, .. }, (_, Weights::Bias(positions))) => {
                tokens::add_token(positions, sizes[input.0].channels, read(input), output);
            }
            (&Op::FirstPixel { input }, _) => {
                let size = sizes[input.0];
                tokens::first_pixel(read(input), size.pixels(), size.channels, output);
            }
            (&Op::Gelu { input }, _) => tokens::gelu(read(input), output),
            (&Op::MaxPool { input }, _) => {
                let size = sizes[input.0];
                let shape = PoolShape::max_pool(size.sides, size.channels);
                pool::maximum(&shape, read(input), output);
            }
            (&Op::GlobalAveragePool { input }, _) => {
                let size = sizes[input.0];
                pool::average(read(input), size.pixels(), size.channels, output);
            }
            _ => bail!("operation {index} was laid out as another"),
        }
        Ok(())
    }

    /// What happens to the numbers of product `index` before they are stored.
    fn tail<'a>(&self, index: usize, read: impl Fn(Value) -> &'a [f32]) -> Tail<'a, f32> {
        let (residual, relu) = match (&self.plan.ops[index], self.plan.ops.get(index + 1)) {
            (&Op::Linear { residual, .. }, _) => (residual, false),
            (_, Some(&Op::BatchNorm { residual, relu, .. })) => (residual, relu),
            _ => (None, false),
        };
        Tail { residual: residual.map(read), relu, ..Tail::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoder::{Architecture, Params};
    use crate::ops::candle::interpreter::forward_inference;
    use candle_core::{Device, Tensor};

    /// Fresh weights, with running moments that a fold must not lose.
    fn params(plan: &Plan) -> HostParams {
        let mut params = HostParams::init(plan, [1, 0]).unwrap();
        for moments in &mut params.moments {
            for (channel, mean) in moments.mean.iter_mut().enumerate() {
                *mean = (channel % 5) as f32 / 10.0 - 0.2;
                moments.variance[channel] = 0.5 + (channel % 7) as f32 / 4.0;
            }
        }
        params
    }

    #[test]
    fn every_architecture_serves_what_the_interpreter_serves() {
        for architecture in Architecture::ALL {
            let plan = architecture.plan();
            let params = params(&plan);
            let mut tensors =
                Params::init(&plan.weights, &plan.moments, [0, 0], &Device::Cpu).unwrap();
            tensors.load_arrays("", &params.to_arrays("")).unwrap();
            for (n, side) in [(1, 28), (7, 33), (41, 8)] {
                let images: Vec<f32> = (0..n * side * side * 3)
                    .map(|i| ((i * 7919) % 1009) as f32 / 504.5 - 1.0)
                    .collect();
                let shaped = Tensor::from_slice(&images, (n, side, side, 3), &Device::Cpu).unwrap();
                let expected = forward_inference(&plan, &tensors, &shaped).unwrap();
                let expected = expected.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                let largest = expected.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
                for isa in Isa::available() {
                    let served = Served::on(isa, &plan, &params, side).unwrap();
                    for _ in 0..2 {
                        let found = served.embed(&images, n).unwrap();
                        assert_eq!(found.len(), expected.len());
                        for (found, expected) in found.iter().zip(&expected) {
                            let error = (found - expected).abs() / largest;
                            assert!(error < 1e-5, "{architecture:?} {n} x {side}: {error}");
                        }
                    }
                }
            }
        }
    }

    /// The batch that an image comes in must not show in its embedding: clients compare them.
    #[test]
    fn an_image_has_the_same_bits_in_any_batch() {
        let plan = Architecture::SlimResnet.plan();
        let served = Served::new(&plan, &params(&plan), 16).unwrap();
        let images: Vec<f32> = (0..37 * 768).map(|i| ((i * 31) % 97) as f32 / 97.0).collect();
        let together = served.embed(&images, 37).unwrap();
        for image in [0, 5, 36] {
            let alone = served.embed(&images[image * 768..][..768], 1).unwrap();
            assert!(alone == together[image * plan.feature_dim..][..plan.feature_dim]);
        }
    }

    #[test]
    fn images_of_another_size_are_refused() {
        let plan = Architecture::SlimResnet.plan();
        let served = Served::new(&plan, &params(&plan), 16).unwrap();
        assert!(served.embed(&[0.0; 5], 1).is_err());
        assert!(served.embed(&[], 0).unwrap().is_empty());
    }
}
