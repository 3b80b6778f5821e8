//! Benchmarks: one file a stage, `cargo bench`.

mod augment;
mod decode;
mod evaluate;
mod gate;
mod ops;
mod serve;
mod step;

/// As in the program itself.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    divan::main();
}
