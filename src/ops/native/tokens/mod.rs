//! What transformers need besides matrices, for one shape of images: pixels are tokens.

mod attention;
mod class_token;
mod layer_norm;
mod positions;

pub(super) use attention::Attention;
pub(super) use class_token::{add_token, first_pixel, pull_first_pixel, pull_token};
pub(super) use layer_norm::LayerNorm;
pub(super) use positions::Positions;

use crate::ops::isa::Isa;
use crate::ops::simd;
use rayon::prelude::*;

/// Floats a task of a loop over all elements handles (a guess: enough work to be worth a task).
const CHUNK_FLOATS: usize = 1 << 15;

/// `y = x Phi(x)`.
pub(super) fn gelu(x: &[f32], y: &mut [f32]) {
    let chunks = y.par_chunks_mut(CHUNK_FLOATS).zip(x.par_chunks(CHUNK_FLOATS));
    chunks.for_each(|(y, x)| simd::tokens::gelu(Isa::best(), x, y));
}

/// `dy` times [`gelu`]'s derivative at `x`, in place.
pub(super) fn pull_gelu(x: &[f32], dy: &mut [f32]) {
    let chunks = dy.par_chunks_mut(CHUNK_FLOATS).zip(x.par_chunks(CHUNK_FLOATS));
    chunks.for_each(|(dy, x)| simd::tokens::gelu_pull(Isa::best(), x, dy));
}
