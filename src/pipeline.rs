//! The flow: starts every stage, connects them, and joins them.

use crate::augment::{self, Preprocess};
use crate::batch::assemble::ViewSpec;
use crate::claim;
use crate::config::Config;
use crate::decode;
use crate::decode::pool::{Pool, Size};
use crate::drift::Drift;
use crate::evaluate::prequential::Prequential;
use crate::events::Events;
use crate::learner::trainer::{Recipe, Trainer};
use crate::learner::{
    self, Inputs, Learner, Limits, Observer, Refuse, Settings, Summary, Vitals, beginning,
};
use crate::replay::Policy;
use crate::server::{self, Server};
use crate::sink::dead_letter::DeadLetters;
use crate::snapshot::{Encoded, Provenance, Registry, Snapshot};
use crate::source::folder::Folder;
use crate::source::kafka::{Kafka, Lag};
use crate::source::{self, LearnerLink, Link, Source};
use anyhow::{Context, Result, anyhow, bail, ensure};
use metrics_exporter_prometheus::PrometheusHandle;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::error;

/// The most records that a decoder may hold before its work, and again after it; a guess that
/// bounds them at some 400 MB of pixels.
const MAX_DECODE_QUEUE: usize = 256;
/// News of the learner that may wait to be heard by the source.
const NEWS: usize = 16;

/// A pipeline that is running.
pub struct Running {
    /// The versions that answer.
    pub registry: Arc<Registry>,
    /// How the learner is doing.
    pub vitals: watch::Receiver<Vitals>,
    /// How far the source is behind.
    pub lag: Lag,
    /// What happens to it.
    pub events: Events,
    /// Ends the run when cancelled.
    pub stop: CancellationToken,
    source: JoinHandle<Result<()>>,
    learner: oneshot::Receiver<Result<Summary>>,
}

/// Starts source, decoders and learner; serving is [`serve`]'s.
///
/// # Errors
/// Settings that do not fit what is there: checkpoints, folders, devices.
pub fn start(config: &Config, limits: Limits, stop: CancellationToken) -> Result<Running> {
    let runtime = Handle::current();
    let registry = Arc::new(Registry::new(config.snapshot.resident));
    let (vitals_sender, vitals) = watch::channel(Vitals::default());
    let (lag, events) = (Lag::default(), Events::default());

    let source = build_source(config, &lag)?;
    let threads = NonZeroUsize::new(config.run.decode_threads).unwrap_or(NonZeroUsize::MIN);
    // A batch is decoded while the one before it is learned.
    let queue = config.batch.images.div_ceil(threads.get()).min(MAX_DECODE_QUEUE);
    let queue_items = NonZeroUsize::new(queue).unwrap_or(NonZeroUsize::MIN);
    let size = Size { threads, queue_items };
    let decoders = Pool::decoding(config.image.clone(), size).context("starting the decoders")?;
    let (claims, max_bytes) = (&config.claims, config.image.max_bytes);
    let records = claim::start(claims, max_bytes, decoders.intake, runtime.clone())?;
    let (learner_link, controls) = LearnerLink::new();
    let (told, news) = mpsc::channel(NEWS);

    let inputs = Inputs {
        outcomes: decoders.outcomes,
        refuse: open_refuse(config)?,
        controls,
        told,
        registry: Arc::clone(&registry),
        observers: open_observers(config, &registry, &events)?,
        events: events.clone(),
        vitals: vitals_sender,
        stop: stop.clone(),
        runtime: runtime.clone(),
    };
    let learner = start_learner(config, limits, inputs)?;
    let link = Link { records, learner: learner_link, told: news, stop: stop.clone(), runtime };
    let source = start_source(source, link, stop.clone())?;
    Ok(Running { registry, vitals, lag, events, stop, source, learner })
}

impl Running {
    /// Waits until the learner has ended, by itself or because it was told to.
    ///
    /// # Errors
    /// What made a stage end early.
    pub async fn join(self) -> Result<Summary> {
        let summary = self.learner.await;
        self.stop.cancel();
        let joined = tokio::task::spawn_blocking(move || self.source.join()).await?;
        let read = joined.map_err(|_| anyhow!("the source panicked"))?;
        // What ended the source ended the learner in good order: tell it first.
        read.context("source")?;
        summary.map_err(|_| anyhow!("the learner panicked"))?.context("learner")
    }
}

/// Answers queries until `stop`, then lets open requests finish.
///
/// # Errors
/// Threads that cannot be started, or what befalls the listener.
pub async fn serve(
    config: Config,
    (registry, events): (Arc<Registry>, Events),
    listener: TcpListener,
    metrics: PrometheusHandle,
    stop: CancellationToken,
) -> Result<()> {
    let server = Server::start(config.server, config.image, registry, metrics, events)
        .context("starting the server")?;
    server::serve(listener, server, stop.cancelled_owned()).await.context("serving")
}

/// The encoder that a run of `config` begins with.
///
/// # Errors
/// A device that cannot be used.
pub fn untrained(config: &Config) -> Result<Snapshot> {
    let trainer = open_trainer(config)?;
    let preprocess = Preprocess::imagenet(config.input.side_px);
    let architecture = config.encoder.architecture;
    let (arrays, device) = (trainer.served()?, trainer.device());
    let provenance = Provenance::default();
    let encoded = Encoded::new(architecture, &preprocess, &arrays, provenance, device)?;
    Ok(encoded.snapshot)
}

fn build_source(config: &Config, lag: &Lag) -> Result<Box<dyn Source>> {
    Ok(match config.source.kind {
        source::Kind::Kafka => Box::new(Kafka::new(config.kafka.clone(), lag.clone())),
        source::Kind::Folder => Box::new(Folder::open(config.folder.clone())?),
    })
}

fn open_observers(
    config: &Config,
    registry: &Arc<Registry>,
    events: &Events,
) -> Result<Vec<Arc<dyn Observer>>> {
    let mut observers: Vec<Arc<dyn Observer>> = vec![];
    if config.prequential.enabled {
        let prequential = Prequential::start(&config.prequential, Arc::clone(registry))?;
        observers.push(Arc::new(prequential));
    }
    if config.drift.enabled {
        let (seed, registry) = (config.run.seed, Arc::clone(registry));
        observers.push(Arc::new(Drift::start(&config.drift, seed, registry, events.clone())?));
    }
    Ok(observers)
}

fn open_refuse(config: &Config) -> Result<Refuse> {
    match (&config.kafka.dead_letter_topic, config.source.kind) {
        (Some(topic), source::Kind::Kafka) => {
            let (letters, acknowledged) = DeadLetters::open(&config.kafka, topic)?;
            Ok(Refuse { letters: Some(letters), acknowledged })
        }
        _ => Ok(Refuse::and_drop()),
    }
}

fn start_source(
    source: Box<dyn Source>,
    link: Link,
    stop: CancellationToken,
) -> Result<JoinHandle<Result<()>>> {
    let run = move || {
        // However it ends, by a panic too: without a source there is nothing to go on with.
        let _stops = stop.drop_guard();
        let ended = source.run(link);
        if let Err(error) = &ended {
            error!(error = format!("{error:#}"), "the source has failed: stopping");
        }
        ended
    };
    std::thread::Builder::new().name("source".to_owned()).spawn(run).context("starting the source")
}

/// Starts the learner inside a pool of its own, so that nothing of it runs in the global one.
fn start_learner(
    config: &Config,
    limits: Limits,
    inputs: Inputs,
) -> Result<oneshot::Receiver<Result<Summary>>> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(config.run.learner_threads)
        .thread_name(|index| format!("learner-{index}"))
        .build()
        .context("starting the learner's threads")?;
    let learner = pool.install(|| open_learner(config, limits, inputs))?;
    let (ended, summary) = oneshot::channel();
    std::thread::Builder::new().name("learner".to_owned()).spawn(move || {
        let result = pool.install(|| learner.run());
        if let Err(error) = &result {
            error!(error = format!("{error:#}"), "the learner has failed: stopping");
        }
        drop(ended.send(result));
    })?;
    Ok(summary)
}

fn open_learner(config: &Config, limits: Limits, inputs: Inputs) -> Result<Learner> {
    // Without replay nothing tops a last, smaller batch up.
    let batch_images = config.batch.images as u64;
    let is_whole = limits.images.is_none_or(|images| images % batch_images == 0);
    ensure!(
        is_whole || config.replay.policy != Policy::None,
        "an end after a number of images must be whole batches of {batch_images} where \
         replay.policy = \"none\""
    );
    let trainer = open_trainer(config)?;
    let near_duplicates = config.learner.near_duplicates.weight();
    let groups = trainer.view_groups();
    let enough = augment::enough(&config.augment, &groups, config.input.side_px);
    let views = ViewSpec {
        seed: config.run.seed,
        augment: config.augment.clone(),
        preprocess: Preprocess::imagenet(config.input.side_px),
        decode: decode::Config { enough: Some(enough), ..config.image.clone() },
        groups,
        fingerprints: near_duplicates < 1.0 || config.replay.duplicate_window > 0,
    };
    let is_deterministic = config.run.deterministic;
    let (mut batch, mut snapshot) = (config.batch.clone(), config.snapshot.clone());
    if is_deterministic {
        // Batches are closed by size and candidates taken by steps alone.
        (batch.max_wait, snapshot.every) = (Duration::MAX, Duration::MAX);
    }
    let settings = Settings {
        batch,
        replay: config.replay.clone(),
        near_duplicates,
        checkpoint: config.checkpoint.clone(),
        snapshot,
        gate: config.gate.clone(),
        recovery: config.learner.recovery.clone(),
        on_drift: config.learner.on_drift.clone(),
        architecture: config.encoder.architecture,
        views,
        view_threads: config.run.view_threads,
        is_deterministic,
        limits,
        journal: config.run.journal.clone(),
    };
    let learner_id = learner::learner_id(&config.checkpoint.dir)?;
    Learner::open(settings, trainer, &learner_id, inputs)
}

fn open_trainer(config: &Config) -> Result<Trainer> {
    config.run.instructions.choose()?;
    let device = config.run.device.open()?;
    let architecture = config.encoder.architecture;
    let plan = architecture.plan();
    let init = config.encoder.init.as_deref().map(|path| beginning::read(path, &plan));
    let trainer = Trainer::new(&Recipe {
        plan: &plan,
        view_side_px: config.view_side_px(),
        objective: &config.objective,
        optimizer: &config.learner.optimizer,
        schedule: &config.learner.schedule.for_batch(config.batch.images),
        average_momentum: config.snapshot.average_momentum,
        alignment: &config.learner.alignment,
        seed: config.run.seed,
        device: &device,
        precision: config.run.precision.choose(&device)?,
        init: init.transpose()?.as_ref(),
    })?;
    if let Some(side_px) = architecture.only_side_px() {
        let mut sides = trainer.view_groups().into_iter().filter_map(|group| group.side_px);
        if let Some(other) = sides.find(|side| *side != side_px) {
            bail!("{architecture} takes views of {side_px} px, [objective] has some of {other} px");
        }
    }
    Ok(trainer)
}
