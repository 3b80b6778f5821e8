//! The learner: the one thread that changes weights, and the authority on what is done.

pub mod alignment;
mod arrivals;
pub(crate) mod backbone;
pub mod beginning;
mod copy;
mod go_back;
pub mod health;
pub mod history;
mod journal;
mod keep;
mod learn;
mod lineup;
mod listen;
mod memory;
mod merge;
mod observer;
pub mod on_drift;
mod open;
pub mod optimizer;
pub mod page_hinkley;
mod probe;
mod publish;
mod refuse;
mod run;
pub mod schedule;
mod served;
mod stable;
mod state;
mod target;
pub mod trainer;
mod views;
mod vitals;

pub use listen::FRESH_BATCHES;
pub use observer::Observer;
pub use open::{Inputs, Limits, Settings};
pub use refuse::Refuse;
pub use stable::MOST_WAITING;
pub use state::learner_id;
pub use vitals::{CheckpointCost, Summary, Vitals};

use crate::batch;
use crate::batch::assemble::{Assembler, ViewSpec};
use crate::checkpoint::Counts;
use crate::events::Events;
use crate::gate::monitor::Window;
use crate::replay::repeats::Repeats;
use crate::replay::sketch::Sketcher;
use crate::replay::{Entry, Replay};
use crate::setting::{Invalid, within};
use crate::source::{Control, Told};
use arrivals::Arrivals;
use health::Health;
use journal::Journal;
use memory::Shape;
use on_drift::OnDrift;
use page_hinkley::PageHinkley;
use publish::Publisher;
use serde::{Deserialize, Serialize};
use state::State;
use std::collections::HashSet;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use trainer::Trainer;
use vitals::Losses;

/// What `learner.near_duplicates` may be.
pub(crate) const NEAR_DUPLICATES: &str = "\"keep\", \"mask\", or a weight from 0 to 1";

/// `[learner]`: how gradients become steps.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The optimiser.
    pub optimizer: optimizer::Config,
    /// The learning rate over the run.
    pub schedule: schedule::Config,
    /// What becomes of near-duplicates of an image among its negatives, in the objectives that have
    /// negatives: `keep`, `mask`, or their weight.
    pub near_duplicates: NearDuplicates,
    /// Alignment with a past encoder.
    pub alignment: alignment::Config,
    /// When to go back to an older checkpoint.
    pub recovery: health::Config,
    /// What to do when what arrives has changed.
    pub on_drift: on_drift::Config,
}

/// How much near-duplicates count as negatives of each other.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum NearDuplicates {
    /// By name.
    Named(Named),
    /// So much as others.
    Weight(f32),
}

/// The weights that have names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Named {
    /// As much as others.
    Keep,
    /// Not at all.
    Mask,
}

impl Default for NearDuplicates {
    fn default() -> Self {
        Self::Named(Named::Keep)
    }
}

impl NearDuplicates {
    /// Their weight; 1 is that of others.
    pub fn weight(self) -> f32 {
        match self {
            Self::Named(Named::Keep) => 1.0,
            Self::Named(Named::Mask) => 0.0,
            Self::Weight(weight) => weight,
        }
    }
}

impl Config {
    /// Checks every value.
    ///
    /// # Errors
    /// The first value that is not allowed, by key.
    pub fn validate(&self) -> Result<(), Invalid> {
        self.optimizer.validate()?;
        self.schedule.validate()?;
        self.alignment.validate()?;
        self.recovery.validate()?;
        self.on_drift.validate()?;
        let weight = self.near_duplicates.weight();
        within("learner.near_duplicates", weight, 0.0..=1.0, NEAR_DUPLICATES)
    }
}

/// The learner.
pub struct Learner {
    trainer: Trainer,
    arrivals: Arrivals,
    replay: Box<dyn Replay>,
    /// Where the buffer wants to know what images look like.
    sketcher: Option<Sketcher>,
    repeats: Repeats,
    /// Kept images that no longer decode, by id, as far as a look at a candidate has met them.
    unreadable: HashSet<u64>,
    /// The weight of near-duplicates among negatives.
    near_duplicates: f32,
    /// See [`memory::Memory::pending`].
    pending: Vec<Entry>,
    shape: Shape,
    assembler: Assembler,
    is_ordered: bool,
    publisher: Publisher,
    events: Events,
    health: Health,
    on_drift: OnDrift,
    /// Where a rising loss is to be told.
    page_hinkley: Option<PageHinkley>,
    /// What the embeddings of the last steps look like.
    window: Window,
    state: State,
    journal: Option<Journal>,
    losses: Losses,
    /// Counts of the checkpoint that we began from.
    restored: Counts,
    learned_here: u64,
    batch: batch::Config,
    views: ViewSpec,
    limits: Limits,
    controls: Option<mpsc::Receiver<Control>>,
    told: mpsc::Sender<Told>,
    /// Whether the source has yet to be told that we went back.
    owes_going_back: bool,
    vitals: watch::Sender<Vitals>,
    stop: CancellationToken,
    runtime: Handle,
}
