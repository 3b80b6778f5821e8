//! CPU kernels over flat slices, forward and hand-derived backward, free of tensors and autograd.

pub(crate) mod convolution;
pub(crate) mod norm;
pub(crate) mod pool;
