//! `selfstream embed`: embeddings of image files, one JSON object a line.

use super::log;
use crate::config::LogForm;
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
}

pub(super) fn run(args: Args) -> Result<()> {
    log::start(LogForm::Text, "warn");
    let mut embedder: Box<dyn Embedder> = match (&args.snapshot, &args.url) {
        (Some(path), _) => {
            let snapshot = snapshot::read(path, &Device::Auto.open()?)?;
            Box::new(SnapshotEmbedder::new(Arc::new(snapshot)))
        }
        (None, Some(url)) => Box::new(Remote::new(url)),
        (None, None) => anyhow::bail!("one of --snapshot and --url is needed"),
    };
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
