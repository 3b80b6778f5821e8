//! `selfstream demo`: the whole loop in one process, on an embedded broker.

mod generated;
mod images;
mod live;
mod probe;
mod stream;

use super::log;
use super::summary::RunSummary;
use crate::batch::{self, Pace};
use crate::config::{Config, LogForm};
use crate::learner::{Limits, schedule};
use crate::{augment, metrics, pipeline, shutdown};
use anyhow::{Context, Result};
use images::DemoImages;
use probe::Probe;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use stream::EmbeddedBroker;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Watch an encoder learn: an embedded broker, a stream of images, learning and HTTP in one process.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Images to stream; by default Debian's dataset-fashion-mnist.
    #[arg(long, value_name = "DIR|TAR")]
    images: Option<PathBuf>,
    /// End after this many images have been learned for the first time.
    #[arg(long, value_name = "N")]
    stop_after: Option<u64>,
    /// Port of the HTTP server on 127.0.0.1.
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Write a summary as JSON at the end.
    #[arg(long, value_name = "FILE")]
    summary: Option<PathBuf>,
    /// Keep the published snapshots in this folder.
    #[arg(long, value_name = "DIR")]
    snapshots: Option<PathBuf>,
}

/// How often the demo's encoder goes live: often, so that there is something to see.
const SNAPSHOT_EVERY: Duration = Duration::from_secs(10);

/// SimCLR's s for ImageNet. At the default, that for CIFAR's colours, grey images are told apart by
/// their brightness: 314 steps on Fashion-MNIST reached kNN .750, at this strength .798, at 1.6 .759,
/// where an untrained encoder has .775 (2,000 images that the demo neither streams nor measures by).
const JITTER_STRENGTH: f32 = 1.0;

/// Steps for each batch that arrives: in one, the first minutes of a stream teach little, and nothing is replayed.
/// The embedded broker waits meanwhile.
const STEPS_PER_BATCH: usize = 4;

/// A demo that ends after `steps` lets its rate fall to zero there: an end that is known teaches more
/// than one that comes unawares.
fn declare_end(schedule: &mut schedule::Config, steps: u64) {
    let steps = steps.max(2);
    schedule.warmup_steps = schedule.warmup_steps.min(steps / 4);
    schedule.end_steps = Some(steps);
}

#[expect(clippy::print_stdout, reason = "the demo talks to the person who started it")]
pub(super) async fn run(args: Args) -> Result<()> {
    log::start(LogForm::Text, "warn");
    let images = Arc::new(DemoImages::open(args.images.as_deref())?);
    println!("{}", images.description());
    let state = tempfile::tempdir().context("a folder for the state of the demo")?;
    let broker = EmbeddedBroker::start()?;
    let config = config(&args, &images, &broker, state.path())?;

    let stop = CancellationToken::new();
    shutdown::listen(stop.clone())?;
    let metrics = metrics::install()?;
    let address = config.server.listen;
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("listening on {address}; --port chooses another"))?;
    let url = format!("http://{}", listener.local_addr()?);

    let running = {
        let (config, stop, images) = (config.clone(), stop.clone(), args.stop_after);
        let start = move || pipeline::start(&config, Limits { images }, stop);
        tokio::task::spawn_blocking(start).await??
    };
    let feeding = broker.feed(Arc::clone(&images), running.vitals.clone(), stop.clone())?;
    let registry = Arc::clone(&running.registry);
    let served = (Arc::clone(&registry), running.events.clone());
    let serving =
        tokio::spawn(pipeline::serve(config.clone(), served, listener, metrics, stop.clone()));
    println!("embeddings at {url}/v1/embeddings, metrics at {url}/metrics; ctrl-c ends the demo");
    let showing =
        tokio::spawn(live::show(running.vitals.clone(), running.lag.clone(), stop.clone()));

    let learned = running.join().await;
    stop.cancel();
    showing.await.context("the live line")?;
    serving.await.context("the server panicked")??;
    let fed = feeding.join().map_err(|_| anyhow::anyhow!("the producer panicked"))?;
    let learned = learned?;
    fed?;

    let mut summary = RunSummary::new(&learned, learned.vitals.steps, config.batch.images);
    if let (Some(probe), Some(latest)) = (Probe::new(&images)?, registry.latest()) {
        println!("measuring the encoder on images that were never streamed ...");
        let untrained = Arc::new(pipeline::untrained(&config)?);
        let measure = move || probe.measure(latest, untrained);
        summary.knn = Some(tokio::task::spawn_blocking(measure).await??);
    }
    print!("{}", summary.to_text());
    if let Some(path) = &args.summary {
        summary.write(path)?;
    }
    Ok(())
}

fn config(
    args: &Args,
    images: &DemoImages,
    broker: &EmbeddedBroker,
    state: &std::path::Path,
) -> Result<Config> {
    let mut config = Config::load(None)?;
    config.kafka.brokers = broker.address();
    config.kafka.topics = vec![stream::TOPIC.to_owned()];
    // The embedded broker drops what is read late; it must not make readers wait either.
    let wait = ("fetch.wait.max.ms".to_owned(), "10".to_owned());
    config.kafka.properties.extend([wait]);
    config.checkpoint.dir = state.join("checkpoints");
    config.input.side_px = images.side_px();
    if config.augment == augment::Config::default() {
        config.augment.jitter_strength = JITTER_STRENGTH;
    }
    config.server.listen.set_port(args.port);
    config.snapshot.every = SNAPSHOT_EVERY;
    if config.batch == batch::Config::default() {
        config.batch.pace = Pace::Fixed;
        config.batch.steps_per_batch = STEPS_PER_BATCH;
    }
    if let Some(images) = args.stop_after {
        declare_end(&mut config.learner.schedule, config.batch.steps_for(images));
    }
    config.snapshot.dir.clone_from(&args.snapshots);
    config.validate()?;
    Ok(config)
}
