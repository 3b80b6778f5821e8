//! Parts that objectives share.

pub mod head;
