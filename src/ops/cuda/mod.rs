//! What candle lacks on a GPU: a convolution with a fast backward pass, by cuDNN. (Candle's own has
//! cuDNN forward alone, channels first, and its gradients are transposed convolutions by a plain
//! kernel.) Only the feature `cuda` compiles this.
//!
//! It is built and type-checked, and has not run on a card: nothing here is measured. So it does
//! no more than cuDNN's plain calls; fused norms, losses and optimiser steps, and pinned uploads,
//! would each need a measurement first.
//!
//! - Images and gradients stay NHWC, as everywhere in [`ops`](crate::ops): it is the layout of the
//!   tensor cores too. cuDNN's filter for it is `[O, K, K, C]`, so the weight `[K, K, C, O]` is
//!   turned in each pass and its gradient turned back. That costs a pass over the weights, however
//!   large the batch is, and keeps one order for checkpoints and optimisers of all devices.
//! - Products are of TF32 ([`Math`]): it takes f32 as it lies in memory.
//! - Algorithms are cuDNN's first choice, by its heuristics, unless that one adds in an order that
//!   changes from run to run.
//! - cuDNN's handle must stay on its thread, so each thread has one for a device, with what was
//!   chosen for each shape and one workspace.

mod convolution;
mod cudnn;
mod plan;

pub(in crate::ops) use convolution::convolution;
pub(in crate::ops) use plan::Math;
