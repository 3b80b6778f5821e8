//! `selfstream check-config`: refuses a configuration that cannot work, before anything starts, and says what one
//! that can may need of memory.

use crate::config::Config;
use anyhow::Result;
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

#[expect(clippy::print_stdout, reason = "it is what the command is for")]
pub(super) fn run(args: Args) -> Result<()> {
    let config = Config::load(args.config.as_deref())?;
    if args.print {
        println!("{}", toml::to_string(&config)?);
    } else {
        println!("the configuration can be used");
        print!("{}", config.memory()?);
    }
    Ok(())
}
