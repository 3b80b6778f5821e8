//! The kernel files: the one place of the native path with unsafe code.
//!
//! A kernel is written once over [`Lanes`] and compiled for every instruction set;
//! [`Isa`](crate::ops::isa::Isa) picks one at run time. The portable one runs the same source without
//! intrinsics, and the tests hold every unit of the processor against it and against plain loops.
//! What they read and write is [`Stored`](stored::Stored): one source serves f32 and bf16.

mod lanes;
mod panel;
pub(super) mod peak;
pub(super) mod product;
mod shape;
pub(super) mod stored;
mod strip;
mod tail;
mod tile;
pub(super) mod tiles;
pub(super) mod weights;
pub(super) mod winograd;
#[cfg(target_arch = "x86_64")]
mod x86;

use lanes::{Kernel, Lanes};
