//! The kernel files: the one place of the native path with unsafe code.
//!
//! A kernel is written once over [`Lanes`] and compiled for every vector unit; [`Unit`] picks one
//! at run time. The portable unit runs the same source without intrinsics, and the tests hold every
//! unit of the processor against it and against plain loops.

mod lanes;
mod strip;
mod tile;
pub(super) mod tiles;
pub(super) mod weights;

pub(crate) use lanes::Unit;
use lanes::{Kernel, Lanes};
