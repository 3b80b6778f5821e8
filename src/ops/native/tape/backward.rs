//! The backward pass of a [`Recording`]: from the gradient of the features to that of every weight.
//!
//! The last operation to add to a value's gradient also lets it pass the rectifier that made the value
//! and takes the sums that its norm needs; a convolution does so while the numbers are in registers.

use super::recording::{Recording, max_pool};
use super::state::State;
use crate::encoder::{HostParams, Op, Value};
use crate::ops::cpu::pool;
use crate::ops::element::Element;
use crate::ops::isa::Isa;
use crate::ops::native::kernel::stored::Stored;
use crate::ops::native::kernel::tiles::Tail;
use crate::ops::native::tokens;
use crate::ops::simd;
use candle_core::{Error, Result, bail};
use rayon::prelude::*;
use std::ops::Range;

impl<E: Stored> Recording<E> {
    /// The gradient of every weight, in the order of [`HostParams::values`], of the gradient
    /// `[N, D]` of the features that [`Recording::forward`] made last.
    ///
    /// # Errors
    /// Gradients of another size.
    pub(super) fn backward(
        &mut self,
        params: &HostParams,
        features: &[f32],
        gradient: &mut [f32],
    ) -> Result<()> {
        let last = self.plan.ops.len();
        if features.len() != self.sizes[last].len() || gradient.len() != params.values.len() {
            bail!("gradients of another size than the features and the weights")
        }
        if self.values[last].is_empty() {
            bail!("a backward pass without a forward one before it")
        }
        let mut seed = self.buffers.lend(features.len());
        simd::narrow(Isa::best(), features, &mut seed);
        self.gradients[last] = Some(seed);
        for index in (0..last).rev() {
            for nth in 0..self.lifetimes.made_again[index].len() {
                self.make(params, self.lifetimes.made_again[index][nth] - 1)?;
            }
            // A value that nothing reads has no gradient, nor has what made it.
            if let Some(dy) = self.gradients[index + 1].take() {
                self.pull(params, index, dy, gradient)?;
            }
            for nth in 0..self.lifetimes.done[index].len() {
                self.let_go(self.lifetimes.done[index][nth]);
            }
        }
        Ok(())
    }

    /// Operation `index`: from the gradient `dy` of its output to those of its weights and inputs.
    fn pull(
        &mut self,
        params: &HostParams,
        index: usize,
        mut dy: Vec<E>,
        gradient: &mut [f32],
    ) -> Result<()> {
        let of = |weight: usize| params.ranges[weight].clone();
        let op = self.plan.ops[index].clone();
        match (&op, &mut self.states[index]) {
            (&Op::Convolution { input, weight, .. }, _) => {
                self.pull_product(params, index, (input, weight), &dy, gradient)?;
                self.buffers.take_back(dy);
            }
            (&Op::Linear { input, weight, bias, residual }, State::Product(product)) => {
                product.pull_bias(&dy, &mut gradient[of(bias)]);
                self.pull_product(params, index, (input, weight), &dy, gradient)?;
                match residual {
                    Some(residual) => self.add_gradient(index, residual, dy),
                    None => self.buffers.take_back(dy),
                }
            }
            (&Op::BatchNorm { input, gamma, beta, residual, .. }, State::BatchNorm(norm)) => {
                let [dgamma, dbeta] = pair(gradient, [of(gamma), of(beta)])?;
                norm.backward(params.weight(gamma), dgamma, dbeta);
                self.pull_norm(index, input, residual, dy)?;
            }
            (&Op::LayerNorm { input, gamma, beta }, State::LayerNorm(norm)) => {
                let length = self.sizes[input.0].len();
                let mut dx = self.gradients[input.0].take().unwrap_or_else(|| {
                    let mut dx = self.buffers.lend(length);
                    dx.fill(E::default());
                    dx
                });
                let x = &*self.values[input.0];
                let weights = pair(gradient, [of(gamma), of(beta)])?;
                norm.backward(params.weight(gamma), x, &dy, &mut dx, weights);
                self.buffers.take_back(dy);
                self.add_gradient(index, input, dx);
            }
            (&Op::Attention { input, .. }, State::Attention(attention)) => {
                let length = self.sizes[input.0].len();
                let mut dx = self.buffers.lend(length);
                attention.backward(&self.values[input.0], &dy, &mut dx);
                self.buffers.take_back(dy);
                self.add_gradient(index, input, dx);
            }
            (&Op::Positions { input, bias }, State::Positions(positions)) => {
                positions.backward(&dy, &mut gradient[of(bias)]);
                self.add_gradient(index, input, dy);
            }
            (&Op::Gelu { input }, _) => {
                if !self.lifetimes.made_beside[index + 1] {
                    tokens::pull_gelu(&self.values[input.0], &mut dy);
                }
                self.add_gradient(index, input, dy);
            }
            (&Op::Tokens { input, positions }, _) => {
                let size = self.sizes[input.0];
                let mut dx = self.buffers.lend(size.len());
                tokens::pull_token(&dy, size.channels, &mut gradient[of(positions)], &mut dx);
                self.buffers.take_back(dy);
                self.add_gradient(index, input, dx);
            }
            (&Op::MaxPool { input }, _) => self.pull_maximum(index, input, dy),
            (&(Op::GlobalAveragePool { input } | Op::FirstPixel { input }), _) => {
                self.pull_pixels(&op, index, input, dy);
            }
            _ => bail!("operation {index} was laid out as another"),
        }
        Ok(())
    }

    /// That of the mean of an image's pixels, or of the first one.
    fn pull_pixels(&mut self, op: &Op, index: usize, input: Value, dy: Vec<E>) {
        let size = self.sizes[input.0];
        let mut dx = self.buffers.lend(size.len());
        if let Op::FirstPixel { .. } = op {
            tokens::pull_first_pixel(&dy, size.pixels(), size.channels, &mut dx);
        } else {
            pool::backward_average(&dy, size.pixels(), size.channels, &mut dx);
        }
        self.buffers.take_back(dy);
        self.add_gradient(index, input, dx);
    }

    fn pull_maximum(&mut self, index: usize, input: Value, dy: Vec<E>) {
        let size = self.sizes[input.0];
        let mut dx = self.buffers.lend(size.len());
        let mut unclaimed = self.buffers.lend(size.images * size.channels);
        let tensors = [&*self.values[input.0], &*self.values[index + 1], &*dy];
        pool::backward_maximum(&max_pool(size), tensors, &mut unclaimed, &mut dx);
        self.buffers.take_back(dy);
        self.buffers.take_back(unclaimed);
        self.add_gradient(index, input, dx);
    }

    /// That of a product's weight, and of what it reads.
    fn pull_product(
        &mut self,
        params: &HostParams,
        index: usize,
        (input, weight): (Value, usize),
        dy: &[E],
        gradient: &mut [f32],
    ) -> Result<()> {
        if input != self.plan.images() {
            let mut dx = self.pull_input(params.weight(weight), index, input, dy)?;
            if self.lifetimes.made_beside[input.0] {
                self.make_beside(input, &mut dx);
            }
            self.gradients[input.0] = Some(dx);
        }
        let State::Product(product) = &self.states[index] else {
            bail!("operation {index} was laid out as another")
        };
        let dw = &mut gradient[params.ranges[weight].clone()];
        product.convolution.gradient(&self.values[input.0], dy, dw, &mut self.room);
        Ok(())
    }

    /// The gradient of what product `index` reads, with that of its other readers if there are any.
    fn pull_input(
        &mut self,
        weight: &[f32],
        index: usize,
        Value(input): Value,
        dy: &[E],
    ) -> Result<Vec<E>> {
        let (mut dx, accumulates) = match self.gradients[input].take() {
            Some(dx) => (dx, true),
            None => (self.buffers.lend(self.sizes[input].len()), false),
        };
        let (before, states) = self.states.split_at_mut(index);
        let State::Product(product) = &states[0] else {
            bail!("operation {index} was laid out as another")
        };
        let mut tail = Tail { accumulates, ..Tail::default() };
        let mut sums = None;
        // The last to add also takes the norm's sums, while the numbers are in registers.
        if self.first_reader[input] == Some(index)
            && let Some(maker) = input.checked_sub(1)
            && let Op::BatchNorm { input: Value(normalised), relu, .. } = self.plan.ops[maker]
        {
            tail.passed = relu.then_some(&*self.values[input]);
            tail.factor = Some(&*self.values[normalised]);
            sums = before[maker].norm_sums();
        }
        product.pull((weight, E::words_in(&mut self.room)), dy, &mut dx, tail, sums);
        Ok(dx)
    }

    /// Makes a GELU's value again, and lets its gradient `dy` pass the GELU.
    fn make_beside(&mut self, Value(value): Value, dy: &mut [E]) {
        let mut made = self.buffers.lend(dy.len());
        for Value(x) in self.plan.ops[value - 1].reads() {
            tokens::gelu_again(&self.values[x], &mut made, dy);
        }
        self.values[value] = made;
    }

    fn pull_norm(
        &mut self,
        index: usize,
        Value(input): Value,
        residual: Option<Value>,
        mut dy: Vec<E>,
    ) -> Result<()> {
        let length = self.sizes[index + 1].len();
        let State::BatchNorm(norm) = &self.states[index] else {
            bail!("operation {index} was laid out as another")
        };
        let x = &*self.values[input];
        if let Some(residual) = residual {
            let mut dx = self.buffers.lend(length);
            norm.pull(x, &dy, &mut dx);
            self.gradients[input] = Some(dx);
            self.add_gradient(index, residual, dy);
        } else {
            norm.pull_in_place(x, &mut dy);
            self.gradients[input] = Some(dy);
        }
        Ok(())
    }

    /// Adds what operation `reader` has for the gradient of `value`; if it is the last to, the
    /// gradient passes the rectifier that made the value, and its norm takes its sums.
    fn add_gradient(&mut self, reader: usize, Value(value): Value, added: Vec<E>) {
        let mut gradient = match self.gradients[value].take() {
            None => added,
            Some(mut gradient) => {
                add(&mut gradient, &added);
                self.buffers.take_back(added);
                gradient
            }
        };
        if self.first_reader[value] == Some(reader)
            && let Some(before) = value.checked_sub(1)
            && let (Op::BatchNorm { input: Value(input), relu, .. }, State::BatchNorm(norm)) =
                (&self.plan.ops[before], &mut self.states[before])
        {
            let rectified = relu.then_some(&*self.values[value]);
            norm.receive(&self.values[*input], rectified, &mut gradient);
        }
        self.gradients[value] = Some(gradient);
    }
}

/// The gradients of two weights.
fn pair(gradient: &mut [f32], ranges: [Range<usize>; 2]) -> Result<[&mut [f32]; 2]> {
    gradient.get_disjoint_mut(ranges).map_err(|_| Error::msg("two weights share their place"))
}

/// `sum += values`, in pieces for the threads.
fn add<E: Element>(sum: &mut [E], values: &[E]) {
    const PIECE: usize = 1 << 16;
    let pieces = sum.par_chunks_mut(PIECE).zip(values.par_chunks(PIECE));
    pieces.for_each(|(sum, values)| simd::accumulate(Isa::best(), sum, values));
}
