//! `selfstream check-config`: refuses a configuration that cannot work, before anything starts, and says what one
//! that can may need of memory.

use crate::config::Config;
use anyhow::Result;
use std::io::{ErrorKind, Write};
use std::path::PathBuf;

/// Check a configuration file, the environment included.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The file.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the whole configuration as it would be used.
    #[arg(long)]
    print: bool,
}

pub(super) fn run(args: Args) -> Result<()> {
    let config = Config::load(args.config.as_deref())?;
    let text = if args.print {
        toml::to_string(&config)?
    } else {
        format!("the configuration can be used\n{}", config.memory()?)
    };
    match std::io::stdout().write_all(text.as_bytes()) {
        // Whoever reads has had enough, as `head` has.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}
