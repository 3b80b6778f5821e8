//! Self-attention among the tokens of each image, head after head.
//!
//! The shares that the backward pass needs are computed again from the logarithms of their sums, so
//! that none of the `[N, heads, T, T]` numbers is kept (Dao et al. 2022, "FlashAttention", arXiv
//! 2205.14135, section 3.1).

use crate::ops::element::Element;
use crate::ops::isa::Isa;
use crate::ops::matrix::{Matrix, MatrixMut};
use crate::ops::native::kernel::product::{multiply, panel_len};
use crate::ops::simd::tokens as simd;
use crate::ops::with_scratch;
use rayon::prelude::*;
use std::cell::Cell;

thread_local! {
    static SCORES: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Attention over `[N, T, 3 D]`: queries, keys and values, each head after head.
pub(in crate::ops::native) struct Attention {
    isa: Isa,
    /// T.
    tokens: usize,
    heads: usize,
    /// D.
    channels: usize,
    /// The logarithm of each softmax's sum in the last forward pass, `[N, heads, T]`.
    log_sums: Vec<f32>,
}

impl Attention {
    /// For `images` images of `tokens` tokens, to `channels` channels.
    pub(in crate::ops::native) fn new(
        isa: Isa,
        [images, tokens]: [usize; 2],
        heads: usize,
        channels: usize,
    ) -> Self {
        Self { isa, tokens, heads, channels, log_sums: vec![0.0; images * heads * tokens] }
    }

    fn head_channels(&self) -> usize {
        self.channels / self.heads
    }

    /// Floats of the panel of every product of a head.
    fn panel_len(&self) -> usize {
        panel_len(self.isa, self.tokens.max(self.head_channels()))
    }

    /// 1 / root of a head's channels.
    fn scale(&self) -> f32 {
        1.0 / (self.head_channels() as f32).sqrt()
    }

    /// One of an image's queries (0), keys (1) or values (2) of a head: `[T, D / heads]`.
    fn part<'a>(&self, joined: &'a [f32], part: usize, head: usize) -> Matrix<'a> {
        let (channels, of_head) = (self.channels, self.head_channels());
        let first = part * channels + head * of_head;
        Matrix::strided(&joined[first..], self.tokens, of_head, 3 * channels)
    }

    /// The same place in the gradient.
    fn part_mut<'a>(&self, joined: &'a mut [f32], part: usize, head: usize) -> MatrixMut<'a> {
        let (channels, of_head) = (self.channels, self.head_channels());
        let first = part * channels + head * of_head;
        MatrixMut::strided(&mut joined[first..], self.tokens, of_head, 3 * channels)
    }

    /// `y [N, T, D] = softmax(Q K^T / sqrt(D / heads)) V` of `joined [N, T, 3 D]`.
    pub(in crate::ops::native) fn forward<E: Element>(&mut self, joined: &[E], y: &mut [E]) {
        let Self { tokens, heads, channels, .. } = *self;
        let image = tokens * channels;
        let mut log_sums = std::mem::take(&mut self.log_sums);
        let images = y.par_chunks_mut(image).zip(joined.par_chunks(3 * image));
        images.zip(log_sums.par_chunks_mut(heads * tokens)).for_each(|((y, joined), log_sums)| {
            let floats = [3 * image, image].map(E::scratch_len);
            let length = tokens * tokens + self.panel_len();
            with_scratch(&SCORES, length + floats.iter().sum::<usize>(), |scratch| {
                let (for_joined, rest) = scratch.split_at_mut(floats[0]);
                let (for_y, rest) = rest.split_at_mut(floats[1]);
                let scratch = rest.split_at_mut(tokens * tokens);
                let joined = E::floats(joined, for_joined);
                self.attend(joined, E::floats_mut(y, for_y), log_sums, scratch);
                E::put_back(y, for_y);
            });
        });
        self.log_sums = log_sums;
    }

    /// One image's.
    fn attend(
        &self,
        joined: &[f32],
        y: &mut [f32],
        log_sums: &mut [f32],
        (scores, panel): (&mut [f32], &mut [f32]),
    ) {
        let (tokens, of_head) = (self.tokens, self.head_channels());
        for (head, log_sums) in log_sums.chunks_exact_mut(tokens).enumerate() {
            self.scores(joined, head, scores, panel);
            simd::softmax(self.isa, scores, tokens, self.scale(), log_sums);
            let y = &mut y[head * of_head..];
            let y = MatrixMut::strided(y, tokens, of_head, self.channels);
            let shares = Matrix::new(scores, tokens, tokens);
            multiply(self.isa, y, shares, self.part(joined, 2, head), panel);
        }
    }

    /// `Q K^T [T, T]` of a head.
    fn scores(&self, joined: &[f32], head: usize, scores: &mut [f32], panel: &mut [f32]) {
        let [queries, keys] = [0, 1].map(|part| self.part(joined, part, head));
        let scores = MatrixMut::new(scores, self.tokens, self.tokens);
        multiply(self.isa, scores, queries, keys.transposed(), panel);
    }

    /// The gradient `djoined [N, T, 3 D]` of the `joined` of the last forward pass.
    pub(in crate::ops::native) fn backward<E: Element>(
        &self,
        joined: &[E],
        dy: &[E],
        djoined: &mut [E],
    ) {
        let Self { tokens, heads, channels, .. } = *self;
        let image = tokens * channels;
        let images = djoined.par_chunks_mut(3 * image).zip(joined.par_chunks(3 * image));
        let images = images.zip(dy.par_chunks(image));
        images.zip(self.log_sums.par_chunks(heads * tokens)).for_each(
            |(((djoined, joined), dy), log_sums)| {
                let floats = [3 * image, 3 * image, image].map(E::scratch_len);
                let length = 2 * tokens * tokens + self.panel_len();
                with_scratch(&SCORES, length + floats.iter().sum::<usize>(), |scratch| {
                    let (for_joined, rest) = scratch.split_at_mut(floats[0]);
                    let (for_djoined, rest) = rest.split_at_mut(floats[1]);
                    let (for_dy, rest) = rest.split_at_mut(floats[2]);
                    let (shares, rest) = rest.split_at_mut(tokens * tokens);
                    let (gradient, panel) = rest.split_at_mut(tokens * tokens);
                    let (joined, dy) = (E::floats(joined, for_joined), E::floats(dy, for_dy));
                    let pulled = E::floats_mut(djoined, for_djoined);
                    for (head, log_sums) in log_sums.chunks_exact(tokens).enumerate() {
                        let scratch = [&mut *shares, &mut *gradient, &mut *panel];
                        self.pull_head(joined, dy, pulled, (head, log_sums), scratch);
                    }
                    E::put_back(djoined, for_djoined);
                });
            },
        );
    }

    /// With P the shares: `dV = P^T dy`, `dP = dy V^T`, `dS = P (dP - rows' sum of dP P) scale`,
    /// `dQ = dS K`, `dK = dS^T Q`.
    fn pull_head(
        &self,
        joined: &[f32],
        dy: &[f32],
        djoined: &mut [f32],
        (head, log_sums): (usize, &[f32]),
        [shares, gradient, panel]: [&mut [f32]; 3],
    ) {
        let (tokens, of_head, isa) = (self.tokens, self.head_channels(), self.isa);
        let [queries, keys, values] = [0, 1, 2].map(|part| self.part(joined, part, head));
        let dy = Matrix::strided(&dy[head * of_head..], tokens, of_head, self.channels);
        self.scores(joined, head, shares, panel);
        simd::softmax_again(isa, shares, tokens, self.scale(), log_sums);
        let turned = Matrix::new(shares, tokens, tokens).transposed();
        multiply(isa, self.part_mut(djoined, 2, head), turned, dy, panel);
        let product = MatrixMut::new(gradient, tokens, tokens);
        multiply(isa, product, dy, values.transposed(), panel);
        simd::softmax_pull(isa, shares, tokens, self.scale(), gradient);
        let gradient = Matrix::new(gradient, tokens, tokens);
        multiply(isa, self.part_mut(djoined, 0, head), gradient, keys, panel);
        multiply(isa, self.part_mut(djoined, 1, head), gradient.transposed(), queries, panel);
    }
}
