//! CPU kernels over flat slices, forward and hand-derived backward, free of tensors and autograd.

use std::cell::Cell;
use std::thread::LocalKey;

pub(crate) mod convolution;
pub(crate) mod norm;
pub(crate) mod pool;

/// Lends the calling thread's buffer `key`, at least `length` long and with any content, to `work`.
/// It is allocated once, so that no step pays its page faults again.
fn with_scratch<R>(
    key: &'static LocalKey<Cell<Vec<f32>>>,
    length: usize,
    work: impl FnOnce(&mut [f32]) -> R,
) -> R {
    // Taken, not borrowed: a thread that steals a task while it waits inside `work` finds an empty
    // buffer instead of a used one.
    let mut buffer = key.take();
    if buffer.len() < length {
        buffer.resize(length, 0.0);
    }
    let result = work(&mut buffer[..length]);
    key.set(buffer);
    result
}
