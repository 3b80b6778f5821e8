//! The `selfstream` program.

use clap::Parser;
use std::process::ExitCode;

/// Tensors of tens of megabytes come and go in every step; the system's allocator returns each to
/// the kernel and faults its pages in again, which costs about a seventh of the step.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Faults that FAILPOINTS names; none in builds without the feature.
    #[cfg(feature = "failpoints")]
    let _scenario = fail::FailScenario::setup();
    selfstream::cli::main(selfstream::cli::Cli::parse())
}
