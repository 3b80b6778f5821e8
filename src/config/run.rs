//! `[run]`: the process.

use crate::device;
use crate::setting::{Invalid, within};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// `[run]`: the process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Run {
    /// Seed of everything random.
    pub seed: u64,
    /// Where tensors live: `auto`, `cpu` or `cuda`.
    pub device: device::Device,
    /// Vector instructions of the CPU: `auto`, `portable`, `avx2`, `avx512` or `avx512bf16`.
    pub instructions: device::Instructions,
    /// What training stores activations as: `f32`, `bf16` or `auto`.
    pub precision: device::Precision,
    /// Whether the same stream gives the same weights, whatever the threads, arrivals and restarts.
    pub deterministic: bool,
    /// Threads that compute steps; 0 is one for each core.
    pub learner_threads: usize,
    /// Threads that decode arriving images.
    pub decode_threads: usize,
    /// Threads that make views.
    pub view_threads: usize,
    /// What the process is to stay below; a configuration that may need more is refused. Unset, none is.
    pub max_memory_bytes: Option<u64>,
    /// Form of the log on standard error: `text` or `json`.
    pub log: LogForm,
    /// A file to which every learned and refused record is noted, for tests of delivery.
    pub journal: Option<PathBuf>,
}

/// Forms of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogForm {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl Default for Run {
    fn default() -> Self {
        Self {
            seed: 0,
            device: device::Device::default(),
            instructions: device::Instructions::default(),
            precision: device::Precision::default(),
            deterministic: false,
            learner_threads: 0,
            decode_threads: 1,
            view_threads: 1,
            max_memory_bytes: None,
            log: LogForm::default(),
            journal: None,
        }
    }
}

impl Run {
    pub(super) fn validate(&self) -> Result<(), Invalid> {
        let threads = |key: &str, value, least| {
            within(key, value, least..=1024, &format!("from {least} to 1024"))
        };
        threads("run.learner_threads", self.learner_threads, 0)?;
        threads("run.decode_threads", self.decode_threads, 1)?;
        threads("run.view_threads", self.view_threads, 1)
    }
}
