//! A pass through a plan that remembers what its backward pass needs.

use super::buffers::Buffers;
use super::lifetimes::Lifetimes;
use super::state::State;
use crate::encoder::{HostParams, Op, Plan, Value};
use crate::ops::cpu::pool::{self, Shape as PoolShape};
use crate::ops::isa::Isa;
use crate::ops::native::kernel::stored::Stored;
use crate::ops::native::sizes::{Size, sizes};
use crate::ops::native::tokens;
use crate::ops::simd;
use candle_core::{Result, bail};
use std::mem::take;

/// A plan laid out for one shape of images, with all that a step stores in `E`.
pub(super) struct Recording<E: Stored> {
    pub(super) plan: Plan,
    pub(super) sizes: Vec<Size>,
    pub(super) states: Vec<State<E>>,
    /// The operation that first reads each value: the last one to add to its gradient.
    pub(super) first_reader: Vec<Option<usize>>,
    pub(super) lifetimes: Lifetimes,
    /// What each operation made, by [`Value`]; empty while it is not kept.
    pub(super) values: Vec<Vec<E>>,
    pub(super) gradients: Vec<Option<Vec<E>>>,
    pub(super) buffers: Buffers<E>,
    /// Room for one product at a time: its weight in the order that it is read, or the sums of its gradient.
    pub(super) room: Vec<f32>,
    /// The last value; a pool's means as they were before they were stored.
    pub(super) features: Vec<f32>,
}

impl<E: Stored> Recording<E> {
    /// [`Tape::new`](super::Tape::new), on an isa.
    pub(super) fn new(isa: Isa, plan: &Plan, images: usize, side_px: usize) -> Result<Self> {
        if images * side_px == 0 {
            bail!("a tape needs images and pixels")
        }
        if !matches!(plan.ops.last(), Some(Op::GlobalAveragePool { .. } | Op::FirstPixel { .. })) {
            bail!("a plan ends with the average of its pixels, or the first one")
        }
        let sizes = sizes(plan, images, side_px)?;
        let states = (0..plan.ops.len()).map(|index| State::new(isa, plan, index, &sizes));
        let mut this = Self {
            first_reader: plan.first_readers(),
            lifetimes: Lifetimes::new(plan),
            values: sizes.iter().map(|_| vec![]).collect(),
            gradients: sizes.iter().map(|_| None).collect(),
            buffers: Buffers::default(),
            room: vec![],
            features: vec![],
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
            let convolution = &product.convolution;
            let room_len = convolution.scratch_len().max(convolution.packed_len());
            self.room.resize(room_len.max(self.room.len()), 0.0);
            let parts_len = convolution.sums_len();
            let inputs = op.reads().filter_map(|Value(value)| value.checked_sub(1));
            for norm in inputs.chain([index + 1]).collect::<Vec<_>>() {
                if let Some(sums) = self.states.get_mut(norm).and_then(State::norm_sums) {
                    sums.grow(0, parts_len);
                }
            }
        }
    }

    /// Images of a batch.
    pub(super) fn images(&self) -> usize {
        self.sizes[0].images
    }

    /// [`Tape::forward`](super::Tape::forward).
    pub(super) fn forward(&mut self, params: &HostParams, images: Vec<f32>) -> Result<&[f32]> {
        if images.len() != self.sizes[0].len() {
            bail!("a tape for {} floats of images was given {}", self.sizes[0].len(), images.len())
        }
        // What a pass without a backward one has left.
        for value in 1..self.values.len() {
            self.let_go(value);
        }
        self.values[0] = E::store_all(images, take(&mut self.values[0]));
        for index in 0..self.plan.ops.len() {
            self.make(params, index)?;
            for nth in 0..self.lifetimes.let_go[index].len() {
                self.let_go(self.lifetimes.let_go[index][nth]);
            }
        }
        Ok(&self.features)
    }

    pub(super) fn let_go(&mut self, value: usize) {
        self.buffers.take_back(take(&mut self.values[value]));
    }

    /// Makes the value of operation `index`.
    pub(super) fn make(&mut self, params: &HostParams, index: usize) -> Result<()> {
        let mut output = self.buffers.lend(self.sizes[index + 1].len());
        let result = self.run(params, index, &mut output);
        self.values[index + 1] = output;
        result
    }

    fn run(&mut self, params: &HostParams, index: usize, output: &mut [E]) -> Result<()> {
        let (states, after) = self.states.split_at_mut(index + 1);
        let read = |Value(value): Value| &*self.values[value];
        let weight = |weight| params.weight(weight);
        match (&self.plan.ops[index], &mut states[index]) {
            (&Op::Convolution { input, weight: kernel, .. }, State::Product(product)) => {
                let sums = after.first_mut().and_then(State::norm_sums);
                product.convolve(
                    weight(kernel),
                    E::words_in(&mut self.room),
                    read(input),
                    output,
                    sums,
                );
            }
            (&Op::Linear { input, weight: matrix, bias, residual }, State::Product(product)) => {
                let affine = [weight(matrix), weight(bias)];
                let residual = residual.map(read);
                let room = E::words_in(&mut self.room);
                product.multiply(affine, room, read(input), residual, output);
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
                self.features.resize(output.len(), 0.0);
                simd::widen(Isa::best(), output, &mut self.features);
            }
            (&Op::Gelu { input }, _) => tokens::gelu(read(input), output),
            (&Op::MaxPool { input }, _) => {
                pool::maximum(&max_pool(self.sizes[input.0]), read(input), output);
            }
            (&Op::GlobalAveragePool { input }, _) => {
                let size = self.sizes[input.0];
                self.features.resize(output.len(), 0.0);
                let means = &mut self.features[..];
                pool::average(read(input), size.pixels(), size.channels, means);
                simd::narrow(Isa::best(), means, output);
            }
            _ => bail!("operation {index} was laid out as another"),
        }
        Ok(())
    }

    /// Moves the running moments of `params` by `share` towards the last batch's.
    pub(super) fn absorb(&self, params: &mut HostParams, share: f32) {
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

pub(super) fn max_pool(size: Size) -> PoolShape {
    PoolShape::max_pool(size.sides, size.channels)
}
