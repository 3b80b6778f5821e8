//! The backward pass of a [`Tape`]: from the gradient of the features to that of every weight.
//!
//! The last operation to add to a value's gradient also lets it pass the rectifier that made the value
//! and takes the sums that its norm needs; a convolution does so while the numbers are in registers.

use super::state::State;
use super::{Tape, max_pool};
use crate::encoder::{HostParams, Op, Value};
use crate::ops::cpu::pool;
use crate::ops::isa::Isa;
use crate::ops::native::kernel::tiles::Tail;
use crate::ops::native::tokens;
use crate::ops::simd;
use candle_core::{Error, Result, bail};
use rayon::prelude::*;
use std::ops::Range;

impl Tape {
    /// The gradient of every weight, in the order of [`HostParams::values`], of the gradient
    /// `[N, D]` of the features that [`Tape::forward`] made last.
    ///
    /// # Errors
    /// Gradients of another size.
    pub fn backward(
        &mut self,
        params: &HostParams,
        features: &[f32],
        gradient: &mut [f32],
    ) -> Result<()> {
        let last = self.plan.ops.len();
        if features.len() != self.sizes[last].len() || gradient.len() != params.values.len() {
            bail!("gradients of another size than the features and the weights")
        }
        let mut seed = self.lend(features.len());
        seed[..features.len()].copy_from_slice(features);
        self.gradients[last] = Some(seed);
        for index in (0..last).rev() {
            // A value that nothing reads has no gradient, nor has what made it.
            if let Some(dy) = self.gradients[index + 1].take() {
                self.pull(params, index, dy, gradient)?;
            }
        }
        Ok(())
    }

    /// Operation `index`: from the gradient `dy` of its output to those of its weights and inputs.
    fn pull(
        &mut self,
        params: &HostParams,
        index: usize,
        mut dy: Vec<f32>,
        gradient: &mut [f32],
    ) -> Result<()> {
        let output = self.sizes[index + 1].len();
        let of = |weight: usize| params.ranges[weight].clone();
        let op = self.plan.ops[index].clone();
        match (&op, &mut self.states[index]) {
            (&Op::Convolution { input, weight, .. }, _) => {
                self.pull_product(index, input, &dy[..output], &mut gradient[of(weight)])?;
                self.spare.push(dy);
            }
            (&Op::Linear { input, weight, bias, residual }, State::Product(product)) => {
                product.pull_bias(&dy[..output], &mut gradient[of(bias)]);
                self.pull_product(index, input, &dy[..output], &mut gradient[of(weight)])?;
                match residual {
                    Some(residual) => self.add_gradient(index, residual, dy),
                    None => self.spare.push(dy),
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
                    let mut dx = lend(&mut self.spare, length);
                    dx[..length].fill(0.0);
                    dx
                });
                let x = &*self.values[input.0];
                let weights = pair(gradient, [of(gamma), of(beta)])?;
                norm.backward(params.weight(gamma), x, &dy[..output], &mut dx[..length], weights);
                self.spare.push(dy);
                self.add_gradient(index, input, dx);
            }
            (&Op::Attention { input, .. }, State::Attention(attention)) => {
                let length = self.sizes[input.0].len();
                let mut dx = lend(&mut self.spare, length);
                attention.backward(&self.values[input.0], &dy[..output], &mut dx[..length]);
                self.spare.push(dy);
                self.add_gradient(index, input, dx);
            }
            (&Op::Positions { input, bias }, State::Positions(positions)) => {
                positions.backward(&dy[..output], &mut gradient[of(bias)]);
                self.add_gradient(index, input, dy);
            }
            (&Op::Gelu { input }, _) => {
                tokens::pull_gelu(&self.values[input.0], &mut dy[..output]);
                self.add_gradient(index, input, dy);
            }
            (&Op::Tokens { input, positions }, _) => {
                self.pull_tokens(index, input, dy, &mut gradient[of(positions)]);
            }
            (&Op::FirstPixel { input }, _) => self.pull_first_pixel(index, input, dy),
            (&Op::MaxPool { input }, _) => self.pull_maximum(index, input, dy),
            (&Op::GlobalAveragePool { input }, _) => {
                let size = self.sizes[input.0];
                let mut dx = self.lend(size.len());
                let dx_values = &mut dx[..size.len()];
                pool::backward_average(&dy[..output], size.pixels(), size.channels, dx_values);
                self.spare.push(dy);
                self.add_gradient(index, input, dx);
            }
            _ => bail!("operation {index} was laid out as another"),
        }
        Ok(())
    }

    fn pull_tokens(&mut self, index: usize, input: Value, dy: Vec<f32>, places: &mut [f32]) {
        let size = self.sizes[input.0];
        let output = self.sizes[index + 1].len();
        let mut dx = self.lend(size.len());
        tokens::pull_token(&dy[..output], size.channels, places, &mut dx[..size.len()]);
        self.spare.push(dy);
        self.add_gradient(index, input, dx);
    }

    fn pull_first_pixel(&mut self, index: usize, input: Value, dy: Vec<f32>) {
        let size = self.sizes[input.0];
        let (pixels, output) = (size.pixels(), self.sizes[index + 1].len());
        let mut dx = self.lend(size.len());
        let dx_values = &mut dx[..size.len()];
        tokens::pull_first_pixel(&dy[..output], pixels, size.channels, dx_values);
        self.spare.push(dy);
        self.add_gradient(index, input, dx);
    }

    fn pull_maximum(&mut self, index: usize, input: Value, dy: Vec<f32>) {
        let size = self.sizes[input.0];
        let mut dx = self.lend(size.len());
        let mut unclaimed = self.lend(size.images * size.channels);
        let dy_values = &dy[..self.sizes[index + 1].len()];
        let tensors = [&*self.values[input.0], &*self.values[index + 1], dy_values];
        pool::backward_maximum(
            &max_pool(size),
            tensors,
            &mut unclaimed[..size.images * size.channels],
            &mut dx[..size.len()],
        );
        self.spare.extend([dy, unclaimed]);
        self.add_gradient(index, input, dx);
    }

    fn pull_product(
        &mut self,
        index: usize,
        Value(input): Value,
        dy: &[f32],
        dw: &mut [f32],
    ) -> Result<()> {
        let (before, states) = self.states.split_at_mut(index);
        let State::Product(product) = &states[0] else {
            bail!("operation {index} was laid out as another")
        };
        product.convolution.gradient(&self.values[input], dy, dw, &mut self.scratch);
        if Value(input) == self.plan.images() {
            return Ok(());
        }
        let length = self.sizes[input].len();
        let (mut dx, accumulates) = match self.gradients[input].take() {
            Some(dx) => (dx, true),
            None => (lend(&mut self.spare, length), false),
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
        product.pull(dy, &mut dx[..length], tail, sums);
        self.gradients[input] = Some(dx);
        Ok(())
    }

    fn pull_norm(
        &mut self,
        index: usize,
        Value(input): Value,
        residual: Option<Value>,
        mut dy: Vec<f32>,
    ) -> Result<()> {
        let length = self.sizes[index + 1].len();
        let State::BatchNorm(norm) = &self.states[index] else {
            bail!("operation {index} was laid out as another")
        };
        let x = &*self.values[input];
        if let Some(residual) = residual {
            let mut dx = lend(&mut self.spare, length);
            norm.pull(x, &dy[..length], &mut dx[..length]);
            self.gradients[input] = Some(dx);
            self.add_gradient(index, residual, dy);
        } else {
            norm.pull_in_place(x, &mut dy[..length]);
            self.gradients[input] = Some(dy);
        }
        Ok(())
    }

    /// Adds what operation `reader` has for the gradient of `value`; if it is the last to, the
    /// gradient passes the rectifier that made the value, and its norm takes its sums.
    fn add_gradient(&mut self, reader: usize, Value(value): Value, added: Vec<f32>) {
        let length = self.sizes[value].len();
        let mut gradient = match self.gradients[value].take() {
            None => added,
            Some(mut gradient) => {
                add(&mut gradient[..length], &added[..length]);
                self.spare.push(added);
                gradient
            }
        };
        if self.first_reader[value] == Some(reader)
            && let Some(before) = value.checked_sub(1)
            && let (Op::BatchNorm { input: Value(input), relu, .. }, State::BatchNorm(norm)) =
                (&self.plan.ops[before], &mut self.states[before])
        {
            let rectified = relu.then_some(&*self.values[value]);
            norm.receive(&self.values[*input], rectified, &mut gradient[..length]);
        }
        self.gradients[value] = Some(gradient);
    }

    fn lend(&mut self, length: usize) -> Vec<f32> {
        lend(&mut self.spare, length)
    }
}

/// The gradients of two weights.
fn pair(gradient: &mut [f32], ranges: [Range<usize>; 2]) -> Result<[&mut [f32]; 2]> {
    gradient.get_disjoint_mut(ranges).map_err(|_| Error::msg("two weights share their place"))
}

/// The smallest spare buffer of at least `length`, or a new one.
fn lend(spare: &mut Vec<Vec<f32>>, length: usize) -> Vec<f32> {
    let fits = spare.iter().enumerate().filter(|(_, buffer)| buffer.len() >= length);
    match fits.min_by_key(|(_, buffer)| buffer.len()).map(|(index, _)| index) {
        Some(index) => spare.swap_remove(index),
        None => vec![0.0; length],
    }
}

/// `sum += values`, in pieces for the threads.
fn add(sum: &mut [f32], values: &[f32]) {
    const PIECE: usize = 1 << 16;
    let pieces = sum.par_chunks_mut(PIECE).zip(values.par_chunks(PIECE));
    pieces.for_each(|(sum, values)| simd::add(Isa::best(), sum, values));
}
