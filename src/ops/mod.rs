//! How the operations of an encoder's plan are computed. [`native`] trains and serves on the CPU by
//! kernels of its own. [`candle`] is the interpreter on tensors with autograd: for other devices, and
//! the oracle of the native one; its CPU kernels are `cpu`'s loops over flat slices, and `cuda` has
//! what candle lacks on a GPU.
//!
//! The contract of an operation:
//!
//! - Layout is NHWC, row after row, f32 (or, on a tape that says so, bf16): images and activations are `[N, H, W, C]`, pooled features
//!   `[N, C]`. A convolution's weight is `[K, K, C, O]`, taps first, so that a gradient step, a
//!   product and a checkpoint all see the same order. `H'`, `W'` are the sides after a stride.
//! - It runs in the rayon pool of the thread that calls it (callers wrap a step in
//!   `ThreadPool::install`) and splits its work by shape alone, with partial sums reduced in a fixed
//!   order: on one processor the bits are the same for any number of threads.
//! - An argument that needs no gradient costs none.
//! - Beside each fast path stands the same formula composed of candle's own operations: what other
//!   devices run, and the oracle of the tests.
//!
//! To add an operation: its variant in `encoder/op.rs`; the composed twin in `candle/NAME.rs`, with
//! its arm in `candle/interpreter.rs`; its size in `native/sizes.rs`, its loops, what they keep in
//! `native/tape/state.rs` and `native/served/layout.rs`, its arms in `native/tape/recording.rs` (forward),
//! `native/tape/backward.rs` and `native/served.rs`; an architecture that uses it, whose tests hold
//! one interpreter against the other.

pub use crate::encoder::Geometry;
pub use crate::isa;

use std::cell::Cell;
use std::thread::LocalKey;

pub mod candle;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod element;
mod matrix;
mod multiply;
pub mod native;
mod positions;
mod simd;
pub mod update;

/// Lends the calling thread's buffer `key`, at least `length` long and with any content, to `work`.
/// It is allocated once, so that no step pays its page faults again.
fn with_scratch<T: Copy + Default, R>(
    key: &'static LocalKey<Cell<Vec<T>>>,
    length: usize,
    work: impl FnOnce(&mut [T]) -> R,
) -> R {
    // Taken, not borrowed: a thread that steals a task while it waits inside `work` finds an empty
    // buffer instead of a used one.
    let mut buffer = key.take();
    if buffer.len() < length {
        buffer.resize(length, T::default());
    }
    let result = work(&mut buffer[..length]);
    key.set(buffer);
    result
}
