//! What a learner is made from, and how it begins: restored, or afresh.

use super::arrivals::{Arrivals, Refuse};
use super::history::History;
use super::journal::Journal;
use super::publish::Publisher;
use super::state::{self, State};
use super::trainer::Trainer;
use super::vitals::{Losses, Vitals};
use super::{Learner, Observer};
use crate::batch;
use crate::batch::assemble::{Assembler, ViewSpec};
use crate::checkpoint::{self, Counts};
use crate::decode::Decoded;
use crate::decode::pool::Outcomes;
use crate::encoder::Architecture;
use crate::gate;
use crate::replay;
use crate::replay::repeats::Repeats;
use crate::replay::sketch::Sketcher;
use crate::snapshot::{self, Registry};
use crate::source::offsets::OffsetTracker;
use crate::source::{Commit, Control};
use anyhow::Result;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

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
    /// The encoder's kind.
    pub architecture: Architecture,
    /// What the views are like.
    pub views: ViewSpec,
    /// Threads that make them.
    pub view_threads: usize,
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
    /// Tells the source what may be committed.
    pub commits: mpsc::Sender<Commit>,
    /// Takes the published versions.
    pub registry: Arc<Registry>,
    /// Looks on as records arrive.
    pub observer: Option<Arc<dyn Observer>>,
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
        let side_px = settings.views.preprocess.side_px;
        let (state, restored) = State::open(&settings.checkpoint, learner_id, side_px)?;
        let mut replay = settings.replay.build(settings.views.seed);
        let bits = settings.views.decode.duplicate_bits;
        let mut repeats = Repeats::new(settings.replay.duplicate_window, bits);
        let (mut pending, mut counts, mut tracker) =
            (vec![], Counts::default(), OffsetTracker::default());
        if let Some(restored) = restored {
            state::restore_trainer(&mut trainer, &restored, side_px)?;
            let buffer = state::restore_replay((&mut *replay, &mut repeats), restored);
            tracker = OffsetTracker::restore(buffer.manifest.next_offsets());
            (pending, counts) = (buffer.pending, buffer.manifest.counts);
        }
        let sketcher = replay.wants_sketches().then(|| {
            trainer.remember_features();
            Sketcher::new(trainer.plan().feature_dim, settings.views.seed)
        });
        let mut journal = settings.journal.as_deref().map(Journal::open).transpose()?;
        if let Some(journal) = &mut journal {
            journal.restored(trainer.progress().steps)?;
        }
        let step = trainer.progress().steps;
        let observer = inputs.observer;
        let open_history = |dir| History::open(dir, step, observer.clone());
        let history = settings.snapshot.dir.as_deref().map(open_history).transpose()?;
        let publisher = Publisher::new(
            &settings.snapshot,
            &settings.gate,
            (settings.architecture, settings.views.preprocess.clone()),
            inputs.registry,
            history,
        );
        let mut learner = Self {
            arrivals: Arrivals::new(inputs.outcomes, inputs.refuse, tracker, learner_id, observer),
            replay,
            sketcher,
            repeats,
            near_duplicates: settings.near_duplicates,
            pending,
            views: settings.views.clone(),
            is_ordered: false,
            publisher,
            state,
            journal,
            losses: Losses::default(),
            restored: counts,
            learned_here: 0,
            batch: settings.batch,
            limits: settings.limits,
            controls: Some(inputs.controls),
            commits: inputs.commits,
            vitals: inputs.vitals,
            stop: inputs.stop,
            runtime: inputs.runtime,
            trainer,
            assembler: Assembler::start(settings.views, settings.view_threads)?,
        };
        learner.publish_restored()?;
        Ok(learner)
    }
}
