//! The kernel files: the one place of the native path with unsafe code.
//!
//! A kernel is written once over [`Lanes`] and compiled for every instruction set;
//! [`Isa`](crate::ops::isa::Isa) picks one at run time. The portable one runs the same source without intrinsics, and the tests hold every
//! unit of the processor against it and against plain loops.

mod lanes;
pub(super) mod peak;
pub(super) mod product;
mod strip;
mod tile;
pub(super) mod tiles;
pub(super) mod weights;

use lanes::{Kernel, Lanes};
