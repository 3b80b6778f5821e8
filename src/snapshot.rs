//! Snapshots: immutable encoders named by their hash, and the registry readers take them from.

use crate::augment::Preprocess;
use arc_swap::ArcSwapOption;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

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

    /// The resident version of this name, or of this unambiguous prefix (at least 8 characters).
    pub fn get(&self, version: &str) -> Option<Arc<Snapshot>> {
        if version == "latest" {
            return self.latest();
        }
        let resident = self.resident.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found =
            resident.iter().filter(|s| version.len() >= 8 && s.version.starts_with(version));
        match (found.next(), found.next()) {
            (Some(only), None) => Some(Arc::clone(only)),
            _ => None,
        }
    }

    /// Every resident version, newest first.
    pub fn list(&self) -> Vec<Arc<Snapshot>> {
        let resident = self.resident.lock().unwrap_or_else(PoisonError::into_inner);
        resident.iter().rev().cloned().collect()
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
