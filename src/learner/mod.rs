//! The learner: the one thread that changes weights, and the authority on what is done.

mod arrivals;
pub(crate) mod backbone;
pub mod beginning;
pub mod history;
mod journal;
mod listen;
mod observer;
mod open;
pub mod optimizer;
mod publish;
mod run;
pub mod schedule;
mod served;
mod state;
mod target;
pub mod trainer;
mod views;
mod vitals;

pub use arrivals::Refuse;
pub use observer::Observer;
pub use open::{Inputs, Limits, Settings};
pub use state::learner_id;
pub use vitals::{Summary, Vitals};

use crate::batch;
use crate::batch::assemble::{Assembler, ViewSpec};
use crate::checkpoint::Counts;
use crate::replay::sketch::Sketcher;
use crate::replay::{Entry, Replay};
use crate::setting::Invalid;
use crate::source::{Commit, Control};
use arrivals::Arrivals;
use journal::Journal;
use publish::Publisher;
use serde::{Deserialize, Serialize};
use state::State;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use trainer::Trainer;
use vitals::Losses;

/// `[learner]`: how gradients become steps.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The optimiser.
    pub optimizer: optimizer::Config,
    /// The learning rate over the run.
    pub schedule: schedule::Config,
}

impl Config {
    /// Checks every value.
    ///
    /// # Errors
    /// The first value that is not allowed, by key.
    pub fn validate(&self) -> Result<(), Invalid> {
        self.optimizer.validate()?;
        self.schedule.validate()
    }
}

/// The learner.
pub struct Learner {
    trainer: Trainer,
    arrivals: Arrivals,
    replay: Box<dyn Replay>,
    /// Where the buffer wants to know what images look like.
    sketcher: Option<Sketcher>,
    /// Images learned in the last step: offered to the buffer after the next draw, so that a batch
    /// can be drawn while the one before it is learned.
    pending: Vec<Entry>,
    assembler: Assembler,
    is_ordered: bool,
    publisher: Publisher,
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
    commits: mpsc::Sender<Commit>,
    vitals: watch::Sender<Vitals>,
    stop: CancellationToken,
    runtime: Handle,
}
