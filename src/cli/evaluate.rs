//! `selfstream evaluate`: how good an encoder is, told by labels that it never saw.

use super::log;
use crate::config::LogForm;
use crate::device::Device;
use crate::evaluate::{self, Embedder, RawPixels, Remote, Report, SnapshotEmbedder};
use crate::snapshot;
use crate::source::collection::Collection;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Evaluate an encoder on labelled images: nearest neighbours and a linear probe.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Labelled images as reference: a folder or tar with one folder a class.
    #[arg(long, value_name = "DIR|TAR")]
    train: PathBuf,
    /// Labelled images to tell the class of.
    #[arg(long, value_name = "DIR|TAR")]
    test: PathBuf,
    #[command(flatten)]
    encoder: EncoderArgs,
    /// Use at most this many training images.
    #[arg(long, value_name = "N")]
    limit_train: Option<usize>,
    /// Use at most this many test images.
    #[arg(long, value_name = "N")]
    limit_test: Option<usize>,
    /// Write the report as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct EncoderArgs {
    /// A snapshot file, or a folder of them: its newest.
    #[arg(long, value_name = "PATH")]
    snapshot: Option<PathBuf>,
    /// A running server, `http://127.0.0.1:8080`.
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Raw pixels at 16 px: the floor that any encoder must beat.
    #[arg(long)]
    pixels: bool,
}

pub(super) fn run(args: Args) -> Result<()> {
    log::start(LogForm::Text, "warn");
    let train = Collection::open(&args.train).context("--train")?;
    let test = Collection::open(&args.test).context("--test")?;
    let config = evaluate::Config {
        limit_train_images: args.limit_train,
        limit_test_images: args.limit_test,
        ..evaluate::Config::default()
    };
    config.validate()?;
    let mut embedder = open(&args.encoder)?;
    let report = evaluate::evaluate(&train, &test, &mut *embedder, &config)?;
    if let Some(path) = &args.json {
        write(&report, path)?;
    }
    print(&report);
    Ok(())
}

fn open(args: &EncoderArgs) -> Result<Box<dyn Embedder>> {
    Ok(match args {
        EncoderArgs { snapshot: Some(path), .. } => {
            let snapshot = snapshot::read(path, &Device::Auto.open()?)?;
            Box::new(SnapshotEmbedder::new(Arc::new(snapshot)))
        }
        EncoderArgs { url: Some(url), .. } => Box::new(Remote::new(url)),
        _ => Box::new(RawPixels),
    })
}

fn write(report: &Report, path: &Path) -> Result<()> {
    let text = serde_json::to_string_pretty(report)? + "\n";
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

#[expect(clippy::print_stdout, reason = "it is the command's result")]
fn print(report: &Report) {
    println!("version {}", report.version);
    println!("kNN     {:.3} (standard error {:.3})", report.knn, report.standard_error.knn);
    println!("linear  {:.3} (standard error {:.3})", report.linear, report.standard_error.linear);
    println!(
        "{} training images, {} test images, {} classes, {:.0} s",
        report.images_train,
        report.images_test,
        report.classes.len(),
        report.seconds
    );
}
