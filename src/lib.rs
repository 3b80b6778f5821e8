//! selfstream: an encoder keeps learning from a Kafka topic of images, without labels, and the
//! newest one answers embedding queries over HTTP while it learns.

pub mod seed;
pub mod setting;
// The flow, in order.
pub mod source;
pub mod decode;
pub mod augment;
pub mod snapshot;
pub mod server;
pub mod evaluate;
