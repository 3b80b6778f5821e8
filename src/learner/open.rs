//! What a learner is made from, and how it begins: restored, or afresh.

use super::arrivals::Arrivals;
use super::health::{self, Health};
use super::history::History;
use super::journal::Journal;
use super::memory::{Memory, Shape};
use super::on_drift::{self, OnDrift};
use super::page_hinkley::{self, PageHinkley};
use super::publish::Publisher;
use super::refuse::Refuse;
use super::stable::Stable;
use super::state::State;
use super::trainer::Trainer;
use super::vitals::{Losses, Vitals};
use super::{Learner, Observer};
use crate::batch;
use crate::batch::assemble::{Assembler, ViewSpec};
use crate::checkpoint::{self, Manifest};
use crate::decode::Decoded;
use crate::decode::pool::Outcomes;
use crate::encoder::Architecture;
use crate::events::Events;
use crate::gate::monitor::Window;
use crate::gate::{self, Gate};
use crate::replay;
use crate::replay::sketch::Sketcher;
use crate::snapshot::{self, Registry, Snapshot};
use crate::source::{Control, Told};
use anyhow::Result;
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// What a learner is made from.
pub struct Settings {
    /// Size and pace of steps.
    pub batch: batch::Config,
    /// The replay buffer.
    pub replay: replay::Config,
    /// The weight of near-duplicates among negatives.
    pub near_duplicates: f32,
    /// Where its state is kept.
    pub checkpoint: checkpoint::Config,
    /// How often the encoder goes live.
    pub snapshot: snapshot::Config,
    /// What it must pass before.
    pub gate: gate::Config,
    /// When learning goes back to an older checkpoint.
    pub recovery: health::Config,
    /// What it does when what arrives has changed.
    pub on_drift: on_drift::Config,
    /// Whether a rising loss is told, and when.
    pub loss_warning: Option<page_hinkley::Config>,
    /// The encoder's kind.
    pub architecture: Architecture,
    /// What the views are like.
    pub views: ViewSpec,
    /// Threads that make them.
    pub view_threads: usize,
    /// Whether partitions are merged in one order, whatever order they arrive in.
    pub is_deterministic: bool,
    /// When to end.
    pub limits: Limits,
    /// A journal of what is done, for tests.
    pub journal: Option<PathBuf>,
}

/// When a run ends by itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// After exactly this many images learned in this process.
    pub images: Option<u64>,
}

/// What the learner is connected to.
pub struct Inputs {
    /// Decoded records, in order.
    pub outcomes: Outcomes<Decoded>,
    /// Where refused ones go.
    pub refuse: Refuse,
    /// What the source asks.
    pub controls: mpsc::Receiver<Control>,
    /// Tells the source what may be committed, and when to go back.
    pub told: mpsc::Sender<Told>,
    /// Takes the published versions.
    pub registry: Arc<Registry>,
    /// Look on as records arrive.
    pub observers: Vec<Arc<dyn Observer>>,
    /// Where it tells what happens to it.
    pub events: Events,
    /// Shows how it goes.
    pub vitals: watch::Sender<Vitals>,
    /// Cancelled when the run is to end.
    pub stop: CancellationToken,
    /// Runs the learner's waits.
    pub runtime: Handle,
}

impl Learner {
    /// Restores the newest checkpoint, or begins afresh.
    ///
    /// # Errors
    /// A checkpoint that does not fit the settings; folders that cannot be used.
    pub fn open(
        settings: Settings,
        mut trainer: Trainer,
        learner_id: &str,
        inputs: Inputs,
    ) -> Result<Self> {
        let shape = Shape {
            replay: settings.replay.clone(),
            seed: settings.views.seed,
            duplicate_bits: settings.views.decode.duplicate_bits,
            side_px: settings.views.preprocess.side_px,
        };
        let (state, restored) = State::open(&settings.checkpoint, learner_id, shape.side_px)?;
        let is_fresh = restored.is_none();
        let (memory, manifest) = match restored {
            Some(restored) => Memory::restored(&shape, &mut trainer, restored)?,
            None => (Memory::fresh(&shape), Manifest::default()),
        };
        let Memory { replay, repeats, pending, tracker, counts } = memory;
        let feature_dim = trainer.plan().feature_dim;
        let sketcher = replay.wants_sketches().then(|| Sketcher::new(feature_dim, shape.seed));
        let step = trainer.progress().steps;
        let mut journal = settings.journal.as_deref().map(Journal::open).transpose()?;
        if let Some(journal) = &mut journal {
            journal.restored(step, counts)?;
        }
        let publisher = open_publisher(&settings, &manifest, &trainer, &inputs)?;
        let Inputs { outcomes, refuse, observers, .. } = inputs;
        let arrivals = Arrivals::new(outcomes, refuse, tracker, learner_id, observers);
        let mut learner = Self {
            arrivals: if settings.is_deterministic { arrivals.merging() } else { arrivals },
            replay,
            sketcher,
            repeats,
            unreadable: HashSet::new(),
            near_duplicates: settings.near_duplicates,
            pending,
            shape,
            views: settings.views.clone(),
            is_ordered: false,
            publisher,
            health: Health::new(&settings.recovery, manifest.rollbacks, step),
            on_drift: OnDrift::new(&settings.on_drift, &inputs.events, manifest.changes),
            page_hinkley: settings
                .loss_warning
                .map(|config| PageHinkley::new(config, manifest.usual_loss)),
            events: inputs.events,
            window: Window::default(),
            state,
            journal,
            losses: Losses::default(),
            restored: counts,
            learned_here: 0,
            batch: settings.batch,
            limits: settings.limits,
            controls: Some(inputs.controls),
            told: inputs.told,
            owes_going_back: false,
            vitals: inputs.vitals,
            stop: inputs.stop,
            runtime: inputs.runtime,
            trainer,
            assembler: Assembler::start(settings.views, settings.view_threads)?,
        };
        learner.publish_restored()?;
        if is_fresh {
            // What may have to be gone back to before the next one is due.
            learner.write_checkpoint()?;
        }
        Ok(learner)
    }
}

fn open_publisher(
    settings: &Settings,
    manifest: &Manifest,
    trainer: &Trainer,
    inputs: &Inputs,
) -> Result<Publisher> {
    let step = trainer.progress().steps;
    let open_history = |dir| History::open(dir, step, inputs.observers.clone());
    let history = settings.snapshot.dir.as_deref().map(open_history).transpose()?;
    if let Some(dir) = &settings.snapshot.dir {
        snapshot::discard_half_written(dir)?;
    }
    let stable = read_stable(&settings.snapshot, manifest, trainer)?;
    stable.iter().for_each(|stable| inputs.registry.promote(Arc::clone(stable)));
    let publisher = Publisher::new(
        &settings.snapshot,
        (
            Gate::new(&settings.gate, manifest.gate.clone()),
            Stable::new(settings.gate.stable_after_steps, stable),
        ),
        (settings.architecture, settings.views.preprocess.clone()),
        (Arc::clone(&inputs.registry), inputs.observers.clone()),
        history,
        inputs.events.clone(),
    );
    Ok(publisher.after(manifest.last_version.clone()))
}

/// The version that was stable, if it is still kept.
fn read_stable(
    config: &snapshot::Config,
    manifest: &Manifest,
    trainer: &Trainer,
) -> Result<Option<Arc<Snapshot>>> {
    let (Some(dir), Some(version)) = (&config.dir, &manifest.stable_version) else {
        return Ok(None);
    };
    let path = snapshot::path_of(dir, version);
    if !path.exists() {
        let path = path.display();
        warn!(%path, "the stable version is not kept any more: none is stable for a while");
        return Ok(None);
    }
    Ok(Some(Arc::new(snapshot::read(&path, trainer.device())?)))
}
