//! Where images come from.
//!
//! The contract of a source: it hands records on in the order of their offsets within a partition,
//! asks the learner where to begin before it reads a partition, commits what it is told before it does, tells it
//! before it gives one up, and tells the broker what is done only when a checkpoint has been written. It says
//! what has been committed. When the learner has gone back to an older checkpoint, it asks anew where each
//! partition begins. It stops soon after `stop` is cancelled, but goes on committing until the learner has ended. Where
//! the next stage has ended, it cancels `stop` itself.
//!
//! To add a source:
//! 1. write `src/source/NAME.rs` with its `Config` and an impl of [`Source`];
//! 2. add `pub mod NAME;` and a variant to [`Kind`];
//! 3. add its row where `pipeline.rs` builds the source;
//! 4. run `scripts/test source`.

pub mod collection;
pub mod folder;
pub mod kafka;
pub mod offsets;

use bytes::Bytes;
use offsets::{NextOffsets, Partition};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// `[source]`: what is read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `kafka` reads the topics of `[kafka]`; `folder` streams the files of `[folder]`.
    pub kind: Kind,
}

/// The sources there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Topics of a Kafka cluster.
    #[default]
    Kafka,
    /// A folder or tar of image files.
    Folder,
}

/// A stream of records.
pub trait Source: Send {
    /// Reads until the stream ends or `link.stop` is cancelled. Runs on a thread of its own.
    ///
    /// # Errors
    /// Whatever makes going on impossible; outages that may pass are waited out.
    fn run(self: Box<Self>, link: Link) -> anyhow::Result<()>;
}

/// What a source is connected to.
pub struct Link {
    /// Takes the records.
    pub records: Box<dyn Downstream>,
    /// Reaches the learner.
    pub learner: LearnerLink,
    /// What the learner tells; ends when the learner has.
    pub told: mpsc::Receiver<Told>,
    /// Cancelled when the source is to end.
    pub stop: CancellationToken,
    /// Runs the source's waits.
    pub runtime: Handle,
}

/// The next stage, as a source sees it, or a stage that hands on what it makes of records.
pub trait Downstream<T = Record>: Send {
    /// Offers a record, waiting at most `wait` for space.
    fn offer(&mut self, record: T, wait: Duration) -> Offer<T>;
}

/// What became of a record.
#[derive(Debug)]
pub enum Offer<T = Record> {
    /// It was taken.
    Taken,
    /// There was no space in time; here it is again.
    Full(T),
    /// The next stage has ended.
    Closed,
}

/// What the learner tells a source.
#[derive(Clone, Debug, PartialEq)]
pub enum Told {
    /// A checkpoint has been written: commit what it holds.
    Written(Commit),
    /// The learner has gone back to an older checkpoint: ask anew where each partition begins, and
    /// read on from there.
    WentBack,
}

/// Offsets that a checkpoint holds, to be committed.
#[derive(Clone, Debug, PartialEq)]
pub struct Commit {
    /// Next offset of each partition that we have.
    pub offsets: NextOffsets,
    /// Who commits.
    pub learner_id: String,
    /// The checkpoint that holds them.
    pub checkpoint_id: String,
    /// How many checkpoints the learner had written before: of two commits the later has the larger.
    pub sequence: u64,
}

/// The learner's answer to an assignment.
#[derive(Clone, Debug, PartialEq)]
pub struct Assigned {
    /// Where each partition starts.
    pub starts: Vec<offsets::Start>,
    /// What is to be committed before anything of them is read.
    pub commit: Commit,
}

/// What a source asks of the learner.
#[derive(Debug)]
pub enum Control {
    /// Which partitions did it ever have?
    Known {
        /// They.
        reply: oneshot::Sender<Vec<Partition>>,
    },
    /// These partitions will be read: where does each start?
    Assign {
        /// What the source knows of each.
        candidates: Vec<offsets::Candidate>,
        /// What it knows of the others that the learner ever had, and has no more.
        elsewhere: Vec<offsets::Elsewhere>,
        /// Where each starts.
        reply: oneshot::Sender<Assigned>,
    },
    /// These partitions are being given up: forget what is in flight, write a checkpoint.
    Revoke {
        /// Which.
        partitions: Vec<Partition>,
        /// What to commit: they, and those that are kept.
        reply: oneshot::Sender<Commit>,
    },
    /// What the checkpoint of this name holds has been committed.
    Committed {
        /// See [`Commit::checkpoint_id`].
        checkpoint_id: String,
    },
}

/// The way to the learner from a source's thread.
#[derive(Clone, Debug)]
pub struct LearnerLink(mpsc::Sender<Control>);

/// The learner has ended.
#[derive(Debug, thiserror::Error)]
#[error("the learner has ended")]
pub struct LearnerEnded;

impl LearnerLink {
    /// A link and its other end.
    pub fn new() -> (Self, mpsc::Receiver<Control>) {
        let (sender, receiver) = mpsc::channel(16);
        (Self(sender), receiver)
    }

    /// Every partition that the learner ever had.
    ///
    /// # Errors
    /// The learner has ended.
    pub fn known(&self) -> Result<Vec<Partition>, LearnerEnded> {
        let (reply, answer) = oneshot::channel();
        self.ask(Control::Known { reply }, answer)
    }

    /// Asks where to start reading `candidates`; blocks for up to one training step and a checkpoint.
    ///
    /// # Errors
    /// The learner has ended.
    pub fn assign(
        &self,
        candidates: Vec<offsets::Candidate>,
        elsewhere: Vec<offsets::Elsewhere>,
    ) -> Result<Assigned, LearnerEnded> {
        let (reply, answer) = oneshot::channel();
        self.ask(Control::Assign { candidates, elsewhere, reply }, answer)
    }

    /// Says that what a checkpoint holds has been committed.
    ///
    /// # Errors
    /// The learner has ended.
    pub fn committed(&self, checkpoint_id: String) -> Result<(), LearnerEnded> {
        self.0.blocking_send(Control::Committed { checkpoint_id }).map_err(|_| LearnerEnded)
    }

    /// Gives `partitions` up; blocks until the checkpoint of them is written.
    ///
    /// # Errors
    /// The learner has ended.
    pub fn revoke(&self, partitions: Vec<Partition>) -> Result<Commit, LearnerEnded> {
        let (reply, answer) = oneshot::channel();
        self.ask(Control::Revoke { partitions, reply }, answer)
    }

    fn ask<T>(&self, control: Control, answer: oneshot::Receiver<T>) -> Result<T, LearnerEnded> {
        self.0.blocking_send(control).map_err(|_| LearnerEnded)?;
        answer.blocking_recv().map_err(|_| LearnerEnded)
    }
}

/// Where a record stands in its stream; it names the record everywhere downstream.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Origin {
    /// Topic, or the folder source's name.
    pub topic: Arc<str>,
    /// Partition within the topic.
    pub partition: i32,
    /// Offset within the partition.
    pub offset: i64,
}

impl Origin {
    /// A 64-bit hash, equal on every machine: it seeds the views of the record.
    pub fn seed(&self) -> u64 {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.topic.as_bytes());
        hasher.update(&self.partition.to_le_bytes());
        hasher.update(&self.offset.to_le_bytes());
        let mut first = [0; 8];
        first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        u64::from_le_bytes(first)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}@{}", self.topic, self.partition, self.offset)
    }
}

/// One message as it came: nothing of it has been looked at yet.
#[derive(Clone, Debug)]
pub struct Record {
    /// Its place in the stream.
    pub origin: Origin,
    /// Which assignment of its partition delivered it; a record of an older one is dropped.
    pub generation: u64,
    /// Whether the pace passes over it: then it is a place in the stream and nothing else.
    pub is_skipped: bool,
    /// The image's bytes, or a claim check that says where they are.
    pub bytes: Bytes,
    /// Length of a value that was left out because it was longer than may be held; 0 where it is there.
    pub omitted_bytes: usize,
    /// Broker timestamp, milliseconds since the Unix epoch.
    pub timestamp_ms: Option<i64>,
    /// Message key.
    pub key: Option<Bytes>,
    /// Message headers, in order.
    pub headers: Vec<(String, Option<Bytes>)>,
}

impl Record {
    /// A record that the pace passes over.
    pub fn skipped(origin: Origin, generation: u64) -> Self {
        Self {
            origin,
            generation,
            is_skipped: true,
            bytes: Bytes::new(),
            omitted_bytes: 0,
            timestamp_ms: None,
            key: None,
            headers: vec![],
        }
    }

    /// The first header called `name` (in any case) as text, if it is UTF-8.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(value.as_deref()?).ok()
    }
}
