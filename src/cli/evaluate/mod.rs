//! `selfstream evaluate`: how good an encoder is, told by labels that it never saw.

mod beside;
mod predictions;

use super::log;
use crate::config::{Config, LogForm};
use crate::decode;
use crate::device::Device;
use crate::evaluate::{
    self, Embedded, Embedder, RawPixels, Remote, Report, SnapshotEmbedder, Sources,
};
use crate::learner::history;
use crate::pipeline;
use crate::snapshot::{self, Snapshot};
use crate::source::collection::Collection;
use anyhow::{Context, Result};
use beside::Beside;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Evaluate an encoder on labelled images: nearest neighbours, a linear probe, few labels.
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
    /// Write the report as a self-contained HTML page.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Write what each test image was taken for, as lines of JSON.
    #[arg(long, value_name = "FILE")]
    predictions: Option<PathBuf>,
    /// The run's history for the page's curves; by default the one beside the snapshot.
    #[arg(long, value_name = "FILE", requires = "report")]
    history: Option<PathBuf>,
    #[command(flatten)]
    beside: beside::Args,
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
    /// The configuration's encoder before it has learned: what it is worth by its form alone.
    #[arg(long)]
    untrained: bool,
}

pub(super) fn run(args: Args) -> Result<()> {
    log::start(LogForm::Text, "warn");
    measure(&args)
}

fn measure(args: &Args) -> Result<()> {
    let started = Instant::now();
    let run = Config::load(args.beside.config.as_deref())?;
    // The choice holds once in a process: it comes before whatever decodes or embeds. What a server embeds is not of
    // this process.
    if args.encoder.url.is_none() || args.beside.computes() {
        run.run.instructions.choose()?;
    }
    let train = Collection::open(&args.train).context("--train")?;
    let test = Collection::open(&args.test).context("--test")?;
    let config = evaluate::Config {
        limit_train_images: args.limit_train,
        limit_test_images: args.limit_test,
        ..evaluate::Config::default()
    };
    config.validate()?;
    let snapshot = args.encoder.snapshot(&run)?;
    let mut embedder = args.encoder.embedder(&snapshot, &run.image);
    let embedded = Embedded::new(&train, &test, &mut *embedder, &config)?;
    let mut report = embedded.report(config.seed)?;
    let beside = Beside {
        args: &args.beside,
        run: run_of(run, snapshot.as_deref())?,
        images: [&train, &test],
        config: &config,
    };
    report.floors = beside.floors(args.encoder.pixels)?;
    report.supervised = beside.supervised(snapshot.as_deref())?;
    if let (Some(path), Some(snapshot)) = (&args.encoder.snapshot, &snapshot) {
        report.over_time = beside.over_time(path, snapshot.provenance.step)?;
    }
    report.seconds = started.elapsed().as_secs_f64();
    if let Some(path) = &args.json {
        write(path, &(serde_json::to_string_pretty(&report)? + "\n"))?;
    }
    if let Some(path) = &args.predictions {
        write(path, &predictions::lines(&report, &embedded, &test)?)?;
    }
    if let Some(path) = &args.report {
        let history = args.history()?;
        let (report, embedded, history) = (&report, &embedded, &history[..]);
        let (train, test, seed, decode) = (&train, &test, config.seed, &beside.run.image);
        let sources = Sources { report, embedded, train, test, decode, history, seed };
        write(path, &evaluate::page(&sources)?)?;
    }
    print(&report);
    Ok(())
}

impl EncoderArgs {
    /// The snapshot that was named, or what the encoder of `run` begins with.
    fn snapshot(&self, run: &Config) -> Result<Option<Arc<Snapshot>>> {
        if self.untrained {
            return Ok(Some(Arc::new(pipeline::untrained(run)?)));
        }
        let read = |path: &PathBuf| snapshot::read(path, &Device::Auto.open()?).map(Arc::new);
        self.snapshot.as_ref().map(read).transpose()
    }

    /// What embeds, of images that are decoded as `decode` says; a server decodes as it was told itself.
    fn embedder(
        &self,
        snapshot: &Option<Arc<Snapshot>>,
        decode: &decode::Config,
    ) -> Box<dyn Embedder> {
        match (snapshot, &self.url) {
            (Some(snapshot), _) => {
                let embedder = SnapshotEmbedder::new(Arc::clone(snapshot));
                Box::new(embedder.decoding(decode.clone()))
            }
            (None, Some(url)) => Box::new(Remote::new(url)),
            (None, None) => Box::new(RawPixels.decoding(decode.clone())),
        }
    }
}

impl Args {
    /// The history that was named, or that lies beside the snapshot.
    fn history(&self) -> Result<Vec<history::Entry>> {
        if let Some(path) = &self.history {
            return history::read(path).context("--history");
        }
        let beside =
            self.encoder.snapshot.as_deref().map(|path| folder(path).join(history::FILE_NAME));
        match beside {
            Some(path) if path.exists() => history::read(&path),
            _ => Ok(vec![]),
        }
    }
}

/// The folder of a snapshot that is named itself or by it.
fn folder(snapshot: &Path) -> &Path {
    if snapshot.is_dir() { snapshot } else { snapshot.parent().unwrap_or(Path::new(".")) }
}

/// The run that an encoder is compared with: that of the configuration, for the encoder of the snapshot.
fn run_of(mut run: Config, snapshot: Option<&Snapshot>) -> Result<Config> {
    if let Some(snapshot) = snapshot {
        run.encoder.architecture = snapshot.architecture.parse()?;
        run.input.side_px = snapshot.preprocess.side_px;
    }
    Ok(run)
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

#[expect(clippy::print_stdout, reason = "it is the command's result")]
fn print(report: &Report) {
    let line = |name: &str, accuracy: f64, standard_error: f64| {
        println!("{name:<8}{accuracy:.3} (standard error {standard_error:.3})");
    };
    println!("version {}", report.version);
    line("kNN", report.knn, report.standard_error.knn);
    line("linear", report.linear, report.standard_error.linear);
    for few in &report.few_shot {
        line(&format!("{}-shot", few.labels_per_class), few.accuracy, few.standard_error);
    }
    println!("RankMe  {:.1} of {}", report.rankme, report.dim);
    for floor in &report.floors {
        println!("floor of {}: kNN {:.3}, linear {:.3}", floor.name, floor.knn, floor.linear);
    }
    if let Some(supervised) = &report.supervised {
        println!(
            "supervised for {:.0} s, {} steps: own classifier {:.3}, kNN {:.3}, linear {:.3}",
            supervised.seconds,
            supervised.steps,
            supervised.accuracy,
            supervised.knn,
            supervised.linear
        );
    }
    for moment in &report.over_time {
        println!("step {}: kNN {:.3}", moment.step, moment.knn);
    }
    println!(
        "{} training images, {} test images, {} classes, {:.0} s",
        report.images_train,
        report.images_test,
        report.classes.len(),
        report.seconds
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use crate::evaluate::Example;
    use crate::isa::Isa;
    use clap::Parser;
    use image::{ImageFormat, Rgba, RgbaImage};
    use std::io::Cursor;

    /// A PNG of one colour that is transparent.
    fn clear() -> Vec<u8> {
        let mut png = Cursor::new(vec![]);
        let clear = RgbaImage::from_pixel(12, 12, Rgba([200, 100, 50, 0]));
        clear.write_to(&mut png, ImageFormat::Png).unwrap();
        png.into_inner()
    }

    #[test]
    fn what_cannot_compute_as_its_configuration_says_ends_before_anything_is_embedded() {
        let folder = tempfile::tempdir().unwrap();
        for class in ["a", "b"] {
            std::fs::create_dir(folder.path().join(class)).unwrap();
            std::fs::write(folder.path().join(class).join("1.png"), clear()).unwrap();
        }
        // The process computes with the best already, so it can be made to with no others.
        let other = if Isa::best() == Isa::PORTABLE { "avx2" } else { "portable" };
        let config = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(config.path(), format!("run.instructions = \"{other}\"\n")).unwrap();
        let [images, config] = [folder.path(), config.path()].map(|path| path.to_str().unwrap());
        let command =
            ["selfstream", "evaluate", "--train", images, "--test", images, "--config", config];
        for encoder in ["--pixels", "--untrained"] {
            let cli = Cli::try_parse_from([&command[..], &[encoder]].concat()).unwrap();
            let Command::Evaluate(args) = cli.command else { panic!("another command") };
            let error = measure(&args).unwrap_err().to_string();
            assert!(error.contains("run.instructions"), "{error}");
        }
        // What a server embeds is not for this process to compute; none is there.
        let url = ["--url", "http://127.0.0.1:1"];
        let cli = Cli::try_parse_from([&command[..], &url].concat()).unwrap();
        let Command::Evaluate(args) = cli.command else { panic!("another command") };
        let error = format!("{:#}", measure(&args).unwrap_err());
        assert!(error.contains("127.0.0.1:1") && !error.contains("run.instructions"), "{error}");
    }

    #[test]
    fn images_are_decoded_as_the_configuration_says() {
        let example = Example { name: "clear".to_owned(), bytes: clear().into(), label: 0 };
        let run = Config::parse("image.background = [0, 0, 255]").unwrap();
        let pixels = EncoderArgs { snapshot: None, url: None, pixels: true, untrained: false };
        let mut embedder = pixels.embedder(&None, &run.image);
        let found = embedder.embed(std::slice::from_ref(&example)).unwrap();
        assert_eq!(found.row(0)[..3], [-0.5, -0.5, 0.5]);
    }
}
