//! selfstream: an encoder keeps learning from a Kafka topic of images, without labels, and the
//! newest one answers embedding queries over HTTP while it learns.
//!
//! ```text
//! source -> claim -> decode -> augment -> batch -> learner -> gate -> snapshot -> server
//!    ^                  | refused          ^ replay   |
//!    |                  v                  |__________|
//!    |              sink: dead letters                |
//!    '----------------- checkpoint -------------------'
//! ```
//!
//! Modules stand in that order; each imports from those before it. In shapes, N is images, V views
//! of an image, C channels, H and W pixels, D features, P a projection, and K negatives.

pub mod awake;
mod fault;
pub mod isa;
pub mod seed;
pub mod setting;
pub mod events;

pub mod source;
pub mod claim;
pub mod decode;
pub mod augment;
pub mod replay;
pub mod batch;
pub mod encoder;
pub mod ops;
pub mod objective;
pub mod sink;
pub mod gate;
pub mod checkpoint;
pub mod snapshot;
pub mod learner;
pub mod server;
pub mod evaluate;
pub mod drift;

pub mod device;
pub mod metrics;
pub mod shutdown;

pub mod config;
pub mod pipeline;
pub mod cli;
