//! The `selfstream` program.

fn main() {}
