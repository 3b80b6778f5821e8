//! The command line: one file a command, each with its arguments and a `run` of the same shape.

mod check_config;
mod demo;
mod embed;
mod evaluate;
mod log;
mod produce;
mod run;
mod summary;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Learns from a Kafka topic of images without labels, and serves the newest encoder.
#[derive(Debug, Parser)]
#[command(version, about)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::Args),
    Run(run::Args),
    Produce(produce::Args),
    Evaluate(evaluate::Args),
    Embed(embed::Args),
    CheckConfig(check_config::Args),
}

/// Runs the command; its error goes to standard error.
pub fn main(cli: Cli) -> ExitCode {
    match dispatch(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // The edges alone: no computation runs on these.
        .worker_threads(2)
        .enable_all()
        .build()?;
    match command {
        Command::Demo(args) => runtime.block_on(demo::run(args)),
        Command::Run(args) => runtime.block_on(run::run(args)),
        Command::Produce(args) => produce::run(args),
        Command::Evaluate(args) => evaluate::run(args),
        Command::Embed(args) => embed::run(args),
        Command::CheckConfig(args) => check_config::run(args),
    }
}
