//! The flow: starts every stage, connects them, and joins them.

mod learner;

use crate::augment::Preprocess;
use crate::claim;
use crate::config::Config;
use crate::decode::pool::{Pool, Size, Workers};
use crate::drift::Drift;
use crate::evaluate::prequential::Prequential;
use crate::events::Events;
use crate::learner::{Inputs, Limits, Observer, Refuse, Summary, Vitals};
use crate::server::{self, Server};
use crate::sink::dead_letter::DeadLetters;
use crate::sink::events::EventTopic;
use crate::snapshot::{Encoded, Provenance, Registry, Snapshot};
use crate::source::folder::Folder;
use crate::source::kafka::{Kafka, Lag};
use crate::source::{self, LearnerLink, Link, Source};
use anyhow::{Context, Result, anyhow};
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

/// News of the learner that may wait to be heard by the source.
const NEWS: usize = 16;
/// How long events under way may take at the end.
const LAST_EVENTS: Duration = Duration::from_secs(5);

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
    event_topic: Option<EventTopic>,
    source: JoinHandle<Result<()>>,
    decoders: Workers,
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

    // It hears of what the learner begins with, too.
    let event_topic = open_event_topic(config, &events, &runtime)?;
    let source = build_source(config, &lag)?;
    let threads = NonZeroUsize::new(config.run.decode_threads).unwrap_or(NonZeroUsize::MIN);
    let queue = config.memory()?.decode_queue;
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
    let learner = learner::start(config, limits, inputs)?;
    let link = Link { records, learner: learner_link, told: news, stop: stop.clone(), runtime };
    let source = start_source(source, link, stop.clone())?;
    let decoders = decoders.workers;
    Ok(Running { registry, vitals, lag, events, stop, event_topic, source, decoders, learner })
}

impl Running {
    /// Waits until the learner has ended, by itself or because it was told to.
    ///
    /// # Errors
    /// What made a stage end early.
    pub async fn join(self) -> Result<Summary> {
        let summary = self.learner.await;
        self.stop.cancel();
        if let Some(topic) = self.event_topic {
            topic.finish(LAST_EVENTS).await;
        }
        let (source, decoders) = (self.source, self.decoders);
        let joined = tokio::task::spawn_blocking(move || (source.join(), decoders.join()));
        let (source, decoders) = joined.await?;
        let read = source.map_err(|_| anyhow!("the source panicked"))?;
        // What ended the source or a decoder ended the learner in good order: tell it first.
        read.context("source")?;
        decoders.map_err(|_| anyhow!("a decode thread panicked"))?;
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
    let trainer = learner::open_trainer(config)?;
    let preprocess = Preprocess::imagenet(config.input.side_px);
    let architecture = config.encoder.architecture;
    let (arrays, device) = (trainer.served()?, trainer.device());
    let provenance = Provenance::default();
    let encoded = Encoded::new(architecture, &preprocess, &arrays, provenance, device)?;
    Ok(encoded.snapshot)
}

fn build_source(config: &Config, lag: &Lag) -> Result<Box<dyn Source>> {
    Ok(match config.source.kind {
        source::Kind::Kafka => {
            // Below a ceiling, what is refused anyway must not lie in queues that are counted in images.
            let max_bytes = config.run.max_memory_bytes.map(|_| config.image.max_bytes);
            let max_value_bytes = max_bytes.unwrap_or(usize::MAX);
            Box::new(Kafka::new(config.kafka.clone(), lag.clone(), max_value_bytes))
        }
        source::Kind::Folder => Box::new(Folder::open(config.folder.clone())?),
    })
}

fn open_observers(
    config: &Config,
    registry: &Arc<Registry>,
    events: &Events,
) -> Result<Vec<Arc<dyn Observer>>> {
    let mut observers: Vec<Arc<dyn Observer>> = vec![];
    // They are shown what the server and the learner are.
    let decode = &config.image;
    if config.prequential.enabled {
        let prequential = Prequential::start(&config.prequential, decode, Arc::clone(registry))?;
        observers.push(Arc::new(prequential));
    }
    if config.drift.enabled {
        let (seed, registry, events) = (config.run.seed, Arc::clone(registry), events.clone());
        let drift = Drift::start(&config.drift, decode, seed, registry, events)?;
        observers.push(Arc::new(drift));
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

fn open_event_topic(
    config: &Config,
    events: &Events,
    runtime: &Handle,
) -> Result<Option<EventTopic>> {
    match (&config.kafka.events_topic, config.source.kind) {
        (Some(topic), source::Kind::Kafka) => {
            EventTopic::open(&config.kafka, topic, events, runtime).map(Some)
        }
        _ => Ok(None),
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
