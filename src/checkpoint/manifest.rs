//! What a checkpoint says beside its arrays, as JSON.

use crate::gate;
use crate::replay::{Entry, StoredAt};
use crate::source::Origin;
use crate::source::offsets::{Left, Partition};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// Version of the manifest's form.
pub const FORMAT: u32 = 2;

/// The part of a checkpoint that is not arrays.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this form.
    pub format: u32,
    /// Who wrote it; commits carry the same name.
    pub learner_id: String,
    /// Architecture of the encoder.
    pub architecture: String,
    /// Side of the encoder's input.
    pub side_px: usize,
    /// Steps taken.
    pub step: u64,
    /// Checkpoints that this learner wrote before, over restarts.
    #[serde(default)]
    pub sequence: u64,
    /// Time spent training, over restarts.
    #[serde(with = "humantime_serde")]
    pub trained: Duration,
    /// Steps taken when the learning rate last warmed up again.
    #[serde(default)]
    pub restarted_at: u64,
    /// Counts since the run began.
    pub counts: Counts,
    /// Where each partition goes on.
    pub offsets: Vec<PartitionOffset>,
    /// What the replay buffer holds.
    pub replay: Vec<ReplayEntry>,
    /// What the replay buffer was ever offered.
    pub replay_offered: u64,
    /// The version published last.
    pub last_version: Option<String>,
    /// The version that was stable.
    #[serde(default)]
    pub stable_version: Option<String>,
    /// What the gate remembers.
    #[serde(default)]
    pub gate: gate::Memory,
    /// How often the learner went back.
    #[serde(default)]
    pub rollbacks: Rollbacks,
    /// How often what arrives has changed.
    #[serde(default)]
    pub changes: u64,
    /// What the warning of a rising loss remembers.
    #[serde(default)]
    pub usual_loss: UsualLoss,
}

/// What the losses of a run were like, for the Page-Hinkley test.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct UsualLoss {
    /// Losses since it began.
    pub n_losses: u64,
    /// Their mean.
    pub mean: f64,
    /// Their variance.
    pub variance: f64,
    /// How far the last ones lie above it: what the test compares with its threshold.
    pub above: f64,
}

/// How often the learner went back to an older checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rollbacks {
    /// How often since it last learned well for long.
    pub count: u32,
    /// The step at which they are forgotten.
    pub until_step: u64,
}

/// Counts since the run began, over restarts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Images learned at least once.
    pub learned: u64,
    /// Records refused, with their dead letters acknowledged.
    pub refused: u64,
    /// Records done that were neither: passed over by the pace, or their step was left out.
    #[serde(default)]
    pub skipped: u64,
}

impl Counts {
    /// Records done, in whichever way.
    pub fn done(&self) -> u64 {
        self.learned + self.refused + self.skipped
    }
}

/// Where a partition goes on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PartitionOffset {
    /// Topic and number.
    #[serde(flatten)]
    pub partition: Partition,
    /// The first offset that is not done.
    pub next: i64,
    /// Offsets beyond it that are.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub done_ahead: BTreeSet<i64>,
}

/// A replayed image: where it came from and where its bytes lie.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplayEntry {
    /// Topic.
    pub topic: Arc<str>,
    /// Partition.
    pub partition: i32,
    /// Offset.
    pub offset: i64,
    /// Where the bytes begin.
    #[serde(flatten)]
    pub stored_at: StoredAt,
    /// How many they are.
    pub len_bytes: u32,
    /// Accepted after the buffer was last drawn from: it is offered again on restoring.
    pub is_pending: bool,
}

impl ReplayEntry {
    /// The description of an entry whose bytes lie on disk; `None` if they don't.
    pub fn new(entry: &Entry, is_pending: bool) -> Option<Self> {
        let Origin { topic, partition, offset } = entry.origin.clone();
        let stored_at = entry.stored_at?;
        let len_bytes = entry.bytes.len() as u32;
        Some(Self { topic, partition, offset, stored_at, len_bytes, is_pending })
    }

    /// Where the image came from.
    pub fn origin(&self) -> Origin {
        let Self { topic, partition, offset, .. } = self;
        Origin { topic: Arc::clone(topic), partition: *partition, offset: *offset }
    }
}

impl Manifest {
    /// Where each partition was left.
    pub fn left(&self) -> BTreeMap<Partition, Left> {
        let left = |o: &PartitionOffset| Left { next: o.next, done_ahead: o.done_ahead.clone() };
        self.offsets.iter().map(|o| (o.partition.clone(), left(o))).collect()
    }
}
