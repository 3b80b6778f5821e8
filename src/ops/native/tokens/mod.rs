//! What transformers need besides matrices, for one shape of images: pixels are tokens.

mod attention;
mod class_token;
mod layer_norm;
mod positions;

pub(super) use attention::Attention;
pub(super) use class_token::{add_token, first_pixel, pull_first_pixel, pull_token};
pub(super) use layer_norm::LayerNorm;
pub(super) use positions::Positions;

use crate::ops::element::Element;
use crate::ops::isa::Isa;
use crate::ops::simd;
use crate::ops::with_scratch;
use rayon::prelude::*;
use std::cell::Cell;

/// Floats a task of a loop over all elements handles (a guess: enough work to be worth a task).
const CHUNK_FLOATS: usize = 1 << 15;

thread_local! {
    /// What is not stored in f32, while it is computed with.
    static FLOATS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    /// A third such, beside the two of [`with_two`].
    static GELU: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// `y = x Phi(x)`.
pub(super) fn gelu<E: Element>(x: &[E], y: &mut [E]) {
    let chunks = y.par_chunks_mut(CHUNK_FLOATS).zip(x.par_chunks(CHUNK_FLOATS));
    chunks.for_each(|(y, x)| {
        with_two(x, y, |x, y| simd::tokens::gelu(Isa::best(), x, y));
    });
}

/// `dy` times [`gelu`]'s derivative at `x`, in place.
pub(super) fn pull_gelu<E: Element>(x: &[E], dy: &mut [E]) {
    let chunks = dy.par_chunks_mut(CHUNK_FLOATS).zip(x.par_chunks(CHUNK_FLOATS));
    chunks.for_each(|(dy, x)| {
        with_two(x, dy, |x, dy| simd::tokens::gelu_pull(Isa::best(), x, dy));
    });
}

/// [`gelu`] of `x` into `y` once more, and [`pull_gelu`] of `dy`, in one pass.
pub(super) fn gelu_again<E: Element>(x: &[E], y: &mut [E], dy: &mut [E]) {
    let chunks = y.par_chunks_mut(CHUNK_FLOATS).zip(dy.par_chunks_mut(CHUNK_FLOATS));
    chunks.zip(x.par_chunks(CHUNK_FLOATS)).for_each(|((y, dy), x)| {
        let length = E::scratch_len(x.len());
        with_scratch(&GELU, length, |scratch| {
            let y_floats = E::floats_mut(y, scratch);
            with_two(x, dy, |x, dy| simd::tokens::gelu_again(Isa::best(), x, y_floats, dy));
            E::put_back(y, scratch);
        });
    });
}

/// Calls `work` with `x` and `y` in f32, and stores y.
fn with_two<E: Element>(x: &[E], y: &mut [E], work: impl FnOnce(&[f32], &mut [f32])) {
    let [for_x, for_y] = [E::scratch_len(x.len()), E::scratch_len(y.len())];
    with_scratch(&FLOATS, for_x + for_y, |scratch| {
        let (for_x, for_y) = scratch.split_at_mut(for_x);
        work(E::floats(x, for_x), E::floats_mut(y, for_y));
        E::put_back(y, for_y);
    });
}
