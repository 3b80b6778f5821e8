//! The backward pass of a [`Tape`]: from the gradient of the features to that of every weight.
//!
//! The last operation to add to a value's gradient also lets it pass the rectifier that made the value
//! and takes the sums that its norm needs; a convolution does so while the numbers are in registers.

use super::{Tape, max_pool};
use crate::encoder::{HostParams, Op, Value};
use crate::ops::cpu::pool;
use crate::ops::native::kernel::tiles::Tail;
use crate::ops::simd::{self, Level};
use candle_core::{Result, bail};
use rayon::prelude::*;

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
                self.pull(params, index, dy, gradient);
            }
        }
        Ok(())
    }

    fn pull(&mut self, params: &HostParams, index: usize, dy: Vec<f32>, gradient: &mut [f32]) {
        let output = self.sizes[index + 1];
        match self.plan.ops[index] {
            Op::Convolution { input, weight, .. } => {
                let gradient = &mut gradient[params.ranges[weight].clone()];
                self.pull_convolution(index, input, &dy[..output.len()], gradient);
                self.spare.push(dy);
            }
            Op::BatchNorm { input, gamma, beta, residual, .. } => {
                let (gamma_range, beta_range) =
                    (params.ranges[gamma].clone(), params.ranges[beta].clone());
                let norm = self.norms[index].as_mut().expect("made with the tape");
                let [dgamma, dbeta] = gradient
                    .get_disjoint_mut([gamma_range, beta_range])
                    .expect("weights lie apart");
                norm.backward(params.weight(gamma), dgamma, dbeta);
                self.pull_norm(index, input, residual, dy);
            }
            Op::MaxPool { input } => {
                let size = self.sizes[input.0];
                let mut dx = self.lend(size.len());
                let mut unclaimed = self.lend(size.images * size.channels);
                let dy_values = &dy[..output.len()];
                let tensors = [&*self.values[input.0], &*self.values[index + 1], dy_values];
                let shape = max_pool(size);
                pool::backward_maximum(
                    &shape,
                    tensors,
                    &mut unclaimed[..size.images * size.channels],
                    &mut dx[..size.len()],
                );
                self.spare.extend([dy, unclaimed]);
                self.add_gradient(index, input, dx);
            }
            Op::GlobalAveragePool { input } => {
                let size = self.sizes[input.0];
                let mut dx = self.lend(size.len());
                let dx_values = &mut dx[..size.len()];
                let dy_values = &dy[..output.len()];
                pool::backward_average(dy_values, size.pixels(), size.channels, dx_values);
                self.spare.push(dy);
                self.add_gradient(index, input, dx);
            }
        }
    }

    fn pull_convolution(&mut self, index: usize, Value(input): Value, dy: &[f32], dw: &mut [f32]) {
        let (convolution, packed) = self.convolutions[index].as_ref().expect("made with the tape");
        convolution.gradient(&self.values[input], dy, dw, &mut self.scratch);
        if Value(input) == self.plan.images() {
            return;
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
            && let Some(before) = input.checked_sub(1)
            && let Op::BatchNorm { input: Value(normalised), relu, .. } = self.plan.ops[before]
        {
            tail.passed = relu.then_some(&*self.values[input]);
            tail.factor = Some(&*self.values[normalised]);
            sums = self.norms[before].as_mut().map(|norm| &mut norm.sums);
        }
        convolution.backward(packed, dy, &mut dx[..length], tail, sums);
        self.gradients[input] = Some(dx);
    }

    fn pull_norm(
        &mut self,
        index: usize,
        Value(input): Value,
        residual: Option<Value>,
        mut dy: Vec<f32>,
    ) {
        let length = self.sizes[index + 1].len();
        let norm = self.norms[index].as_ref().expect("made with the tape");
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
            && let (Op::BatchNorm { input: Value(input), relu, .. }, Some(norm)) =
                (&self.plan.ops[before], &mut self.norms[before])
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
    pieces.for_each(|(sum, values)| simd::add(Level::best(), sum, values));
}
