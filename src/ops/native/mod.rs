//! Runs a [`Plan`](crate::encoder::Plan) on the CPU by kernels of its own: what trains and serves
//! there. Convolution over tiles, tap by tap or by Winograd's fewer products, with batch norm's sums,
//! residual, rectifier and their gradients taken in the tiles' tails, matrices as windows of one
//! pixel; activations in buffers that are allocated once.
//!
//! [`Tape`] trains and [`Served`] serves; both speak flat NHWC slices and
//! [`HostParams`](crate::encoder::HostParams). The interpreter on candle tensors is their oracle.

mod convolution;
mod indirection;
mod kernel;
mod method;
mod norm;
mod packing;
pub mod roofline;
mod served;
mod sizes;
mod sums;
mod tape;
mod tokens;
mod winograd;

pub use crate::ops::element::Precision;
pub use served::Served;
pub use tape::Tape;
