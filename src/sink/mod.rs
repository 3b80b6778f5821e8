//! Where records and events leave the process.

pub mod dead_letter;
pub mod events;
pub mod images;
