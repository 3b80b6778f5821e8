//! Operations on candle tensors, differentiable by its autograd.
//!
//! On the CPU each is one custom node with a hand-written backward; candle's own convolution is 5
//! to 9 times too slow there in training, and its norms don't train. Elsewhere, and in the tests as
//! the oracle, each is composed of candle's operations.

use candle_core::{CpuStorage, Layout, Result, Storage, Tensor};

pub mod convolution;
pub mod interpreter;
pub mod norm;
#[cfg(test)]
mod oracle;
pub mod pool;
pub mod tokens;

pub use convolution::convolution;
pub use norm::{Moments, Normalisation, batch_norm, batch_norm_inference};
pub use pool::{average_pool, max_pool};
pub use tokens::{add_positions, add_token, attention, first_pixel, gelu, layer_norm, linear};

/// Added to variances before their root; PyTorch's default.
pub const BATCH_NORM_EPSILON: f64 = 1e-5;

/// The same in a layer norm; that of the vision transformers of timm and DINO.
pub const LAYER_NORM_EPSILON: f64 = 1e-6;

/// The numbers of a contiguous argument of a custom node.
fn floats<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let (start, end) = layout
        .contiguous_offsets()
        .ok_or_else(|| candle_core::Error::msg("an operation needs contiguous arguments"))?;
    Ok(&storage.as_slice::<f32>()?[start..end])
}

/// Calls `work` with the numbers of a contiguous tensor on the CPU.
fn with_floats<R>(tensor: &Tensor, work: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => Ok(work(floats(storage, layout)?)),
        _ => candle_core::bail!("an operation's CPU path was given a tensor of another device"),
    }
}
