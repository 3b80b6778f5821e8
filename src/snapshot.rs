//! Snapshots: immutable encoders named by their hash, and the registry readers take them from.

mod file;
mod folder;

pub use file::{Encoded, read};
pub use folder::{discard_half_written, list, path_of};

use crate::augment::Preprocess;
use crate::setting::{Invalid, within};
use arc_swap::ArcSwapOption;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// `[snapshot]`: how often the encoder goes live, and what is kept of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// A snapshot after this many steps...
    pub every_steps: u64,
    /// ...or after this long, whichever comes first.
    #[serde(with = "humantime_serde")]
    pub every: Duration,
    /// Versions that stay in memory and answer by name.
    pub resident: usize,
    /// Folder in which published versions and the run's history are kept; unset, they are not.
    pub dir: Option<PathBuf>,
    /// Versions that are kept there, beside the stable one and the few that may become it.
    pub keep: usize,
    /// Share of the weights' moving average that a step keeps, where the average is served; 0 serves
    /// the weights themselves.
    pub average_momentum: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            every_steps: 200,
            every: Duration::from_secs(20),
            resident: 4,
            dir: None,
            keep: 20,
            average_momentum: 0.0,
        }
    }
}

impl Config {
    /// Checks every value.
    ///
    /// # Errors
    /// The first value that is not allowed, by key.
    pub fn validate(&self) -> Result<(), Invalid> {
        within("snapshot.every_steps", self.every_steps, 1.., "at least 1")?;
        let seconds = self.every.as_secs_f64();
        within("snapshot.every", seconds, 0.1..=86_400.0, "from 100ms to 1day")?;
        within("snapshot.resident", self.resident, 1..=1000, "from 1 to 1000")?;
        within("snapshot.keep", self.keep, 1.., "at least 1")?;
        let key = "snapshot.average_momentum";
        within(key, self.average_momentum, 0.0..1.0, "from 0 to below 1")
    }
}

/// What serving needs of an encoder: a pure function of prepared images.
pub trait Encode: Send + Sync {
    /// Length of an embedding, `D`.
    fn feature_dim(&self) -> usize;
    /// Embeds `images`, flat `[N, H, W, C]`, as flat `[N, D]`.
    fn embed(&self, images: Vec<f32>, n_images: usize) -> candle_core::Result<Vec<f32>>;
}

/// Where in the run a snapshot was taken; beside the hash, not part of it.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Provenance {
    /// Optimiser steps taken.
    pub step: u64,
    /// Images learned at least once.
    pub images_learned: u64,
    /// How often what arrives had changed.
    #[serde(default)]
    pub changes: u64,
    /// When, milliseconds since the Unix epoch.
    pub created_ms: i64,
    /// The version published before it.
    pub parent: Option<String>,
}

/// An encoder at one moment of its life.
pub struct Snapshot {
    /// blake3 of architecture, preprocessing, weights and statistics, in hex: its name.
    pub version: String,
    /// Name of the architecture, `slim-resnet`.
    pub architecture: String,
    /// How images are prepared for it.
    pub preprocess: Preprocess,
    /// Where it came from.
    pub provenance: Provenance,
    /// The function itself.
    pub encoder: Box<dyn Encode>,
}

/// The versions that answer queries. Readers never wait for a publication.
#[derive(Default)]
pub struct Registry {
    latest: ArcSwapOption<Snapshot>,
    stable: ArcSwapOption<Snapshot>,
    resident: Mutex<VecDeque<Arc<Snapshot>>>,
    capacity: usize,
}

impl Registry {
    /// A registry that keeps the last `capacity` versions (at least one) resident.
    pub fn new(capacity: usize) -> Self {
        Self { capacity: capacity.max(1), ..Self::default() }
    }

    /// The version queries get when they name none.
    pub fn latest(&self) -> Option<Arc<Snapshot>> {
        self.latest.load_full()
    }

    /// The newest version after which all others passed the gate for a while.
    pub fn stable(&self) -> Option<Arc<Snapshot>> {
        self.stable.load_full()
    }

    /// The version that this name means: `latest`, `stable`, or the name of a resident version or an
    /// unambiguous prefix of it (at least 8 characters).
    pub fn get(&self, version: &str) -> Option<Arc<Snapshot>> {
        match version {
            "latest" => return self.latest(),
            "stable" => return self.stable(),
            _ => {}
        }
        let resident = self.list();
        let mut found =
            resident.iter().filter(|s| version.len() >= 8 && s.version.starts_with(version));
        match (found.next(), found.next()) {
            (Some(only), None) => Some(Arc::clone(only)),
            _ => None,
        }
    }

    /// Every resident version, newest first; the stable one is resident however old it is.
    pub fn list(&self) -> Vec<Arc<Snapshot>> {
        let resident = self.resident.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = resident.iter().rev().cloned().collect();
        let is_there = |stable: &Arc<Snapshot>| all.iter().any(|s| s.version == stable.version);
        all.extend(self.stable().filter(|stable| !is_there(stable)));
        all
    }

    /// Makes `snapshot` the stable version.
    pub fn promote(&self, snapshot: Arc<Snapshot>) {
        self.stable.store(Some(snapshot));
    }

    /// Makes `snapshot` the latest; requests that hold an older one finish on it.
    pub fn publish(&self, snapshot: Arc<Snapshot>) {
        let mut resident = self.resident.lock().unwrap_or_else(PoisonError::into_inner);
        resident.retain(|s| s.version != snapshot.version);
        resident.push_back(Arc::clone(&snapshot));
        while resident.len() > self.capacity {
            resident.pop_front();
        }
        self.latest.store(Some(snapshot));
    }
}
