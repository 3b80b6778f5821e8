//! Parts that objectives share.

pub mod head;
pub mod log_det;
pub mod negatives;
pub mod queue;
pub mod rows;
pub mod siamese;
pub mod small_views;
pub mod target;
