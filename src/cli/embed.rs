//! `selfstream embed`: embeddings of image files, one JSON object a line.

use super::log;
use crate::config::{Config, LogForm};
use crate::device::Device;
use crate::evaluate::{Embedder, Example, Remote, SnapshotEmbedder};
use crate::snapshot;
use anyhow::{Context, Result};
use serde_json::json;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

/// Embed image files by a snapshot or a running server.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The images.
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// A snapshot file, or a folder of them: its newest.
    #[arg(long, value_name = "PATH", required_unless_present = "url", conflicts_with = "url")]
    snapshot: Option<PathBuf>,
    /// A running server, `http://127.0.0.1:8080`.
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// The run's configuration, for how images are decoded; a server has its own.
    #[arg(long, value_name = "FILE", conflicts_with = "url")]
    config: Option<PathBuf>,
}

pub(super) fn run(args: Args) -> Result<()> {
    log::start(LogForm::Text, "warn");
    let mut embedder = embedder(&args)?;
    let mut out = std::io::stdout().lock();
    for path in &args.files {
        let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        let name = path.display().to_string();
        let example = Example { name: name.clone(), bytes: bytes.into(), label: 0 };
        let embeddings = embedder.embed(&[example])?.normalised();
        let line =
            json!({ "file": name, "version": embedder.version(), "embedding": embeddings.row(0) });
        writeln!(out, "{line}").context("writing to standard output")?;
    }
    Ok(())
}

fn embedder(args: &Args) -> Result<Box<dyn Embedder>> {
    Ok(match (&args.snapshot, &args.url) {
        (Some(path), _) => {
            let run = Config::load(args.config.as_deref())?;
            // The choice holds once in a process: it comes before whatever decodes or embeds.
            run.run.instructions.choose()?;
            let snapshot = Arc::new(snapshot::read(path, &Device::Auto.open()?)?);
            Box::new(SnapshotEmbedder::new(snapshot).decoding(run.image))
        }
        (None, Some(url)) => Box::new(Remote::new(url)),
        (None, None) => anyhow::bail!("one of --snapshot and --url is needed"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use crate::isa::Isa;
    use clap::Parser;

    #[test]
    fn what_cannot_compute_as_its_configuration_says_ends_before_its_snapshot_is_read() {
        // The process computes with the best already, so it can be made to with no others.
        let other = if Isa::best() == Isa::PORTABLE { "avx2" } else { "portable" };
        let config = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(config.path(), format!("run.instructions = \"{other}\"\n")).unwrap();
        let config = config.path().to_str().unwrap();
        let command = ["selfstream", "embed", "1.png", "--snapshot", "none", "--config", config];
        let Command::Embed(args) = Cli::try_parse_from(command).unwrap().command else {
            panic!("another command")
        };
        let error = embedder(&args).err().unwrap().to_string();
        assert!(error.contains("run.instructions"), "{error}");
    }
}
