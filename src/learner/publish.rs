//! Snapshots go live: when, after which checks, and how fresh they are.

use super::history::{Candidate, History};
use super::trainer::{StepReport, Trainer};
use super::vitals::Freshness;
use crate::augment::Preprocess;
use crate::encoder::Architecture;
use crate::gate;
use crate::snapshot::{self, Encoded, Provenance, Registry};
use anyhow::Result;
use metrics::{counter, gauge, histogram};
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use tracing::{info, warn};

/// Images whose wait is measured at a publication; more learned in between are not sampled.
const WAITING_IMAGES: usize = 100_000;

/// Publishes the encoder.
pub(super) struct Publisher {
    config: snapshot::Config,
    gate: gate::Config,
    architecture: Architecture,
    preprocess: Preprocess,
    registry: Arc<Registry>,
    /// Kept where snapshots are.
    history: Option<History>,
    last_at: Instant,
    last_step: u64,
    version: Option<String>,
    /// Broker timestamps of images learned since the last publication.
    waiting_ms: Vec<i64>,
    freshness: Freshness,
    published: u64,
}

impl Publisher {
    pub(super) fn new(
        config: &snapshot::Config,
        gate: &gate::Config,
        (architecture, preprocess): (Architecture, Preprocess),
        registry: Arc<Registry>,
        history: Option<History>,
    ) -> Self {
        Self {
            config: config.clone(),
            gate: gate.clone(),
            architecture,
            preprocess,
            registry,
            history,
            last_at: Instant::now(),
            last_step: 0,
            version: None,
            waiting_ms: vec![],
            freshness: Freshness::default(),
            published: 0,
        }
    }

    /// Notes an image's first step, by its broker timestamp.
    pub(super) fn learned(&mut self, timestamp_ms: Option<i64>) {
        if let Some(timestamp_ms) = timestamp_ms
            && self.waiting_ms.len() < WAITING_IMAGES
        {
            self.waiting_ms.push(timestamp_ms);
        }
    }

    /// Notes a step, for the history.
    pub(super) fn stepped(&mut self, report: &StepReport) {
        if let Some(history) = &mut self.history {
            history.stepped(report);
        }
    }

    /// Whether it is time for a snapshot.
    pub(super) fn is_due(&self, step: u64) -> bool {
        let steps = step.saturating_sub(self.last_step);
        steps > 0
            && (steps >= self.config.every_steps || self.last_at.elapsed() >= self.config.every)
    }

    /// Whether steps were taken since the last snapshot.
    pub(super) fn is_behind(&self, step: u64) -> bool {
        step > self.last_step
    }

    /// Takes a snapshot, checks it on `probe`, flat `[N, H, W, C]`, and makes it the latest if it
    /// passes.
    ///
    /// # Errors
    /// Whatever the device or the snapshot folder report; a candidate that does not pass is none.
    pub(super) fn publish(
        &mut self,
        trainer: &Trainer,
        images_learned: u64,
        (probe, n_probe): (Vec<f32>, usize),
    ) -> Result<()> {
        let step = trainer.progress().steps;
        (self.last_at, self.last_step) = (Instant::now(), step);
        let provenance =
            Provenance { step, images_learned, created_ms: now_ms(), parent: self.version.clone() };
        let arrays = trainer.served()?;
        let device = trainer.device();
        let encoded =
            Encoded::new(self.architecture, &self.preprocess, &arrays, provenance, device)?;
        let encoder = &encoded.snapshot.encoder;
        let embeddings = encoder.embed(probe, n_probe)?;
        let checked = gate::check(&self.gate, &embeddings, encoder.feature_dim());
        if let Some(history) = &mut self.history {
            let spread = gate::spread(&embeddings, encoder.feature_dim());
            let version = checked.is_ok().then(|| encoded.snapshot.version.clone());
            let time_ms = encoded.snapshot.provenance.created_ms;
            history.note(Candidate { step, images_learned, spread, version, time_ms })?;
        }
        let spread = match checked {
            Ok(spread) => spread,
            Err(refused) => {
                warn!(step, reason = %refused, "this encoder does not go live");
                let reason = refused.reason();
                counter!("selfstream_snapshots_refused_total", "reason" => reason).increment(1);
                return Ok(());
            }
        };
        gauge!("selfstream_embedding_spread_ratio").set(spread);
        if let Some(dir) = &self.config.dir {
            encoded.write(dir, self.config.keep)?;
        }
        let version = encoded.snapshot.version.clone();
        info!(step, images_learned, spread, version = &version[..12], "published");
        self.registry.publish(Arc::new(encoded.snapshot));
        self.version = Some(version);
        self.published += 1;
        counter!("selfstream_snapshots_published_total").increment(1);
        self.measure_freshness();
        Ok(())
    }

    fn measure_freshness(&mut self) {
        let now = now_ms();
        for timestamp_ms in self.waiting_ms.drain(..) {
            let seconds = (now - timestamp_ms).max(0) as f64 / 1e3;
            histogram!("selfstream_freshness_seconds").record(seconds);
            self.freshness.push(seconds);
        }
    }

    pub(super) fn version(&self) -> Option<String> {
        self.version.clone()
    }

    pub(super) fn published(&self) -> u64 {
        self.published
    }

    pub(super) fn freshness_seconds(&self) -> Option<[f64; 2]> {
        self.freshness.percentiles()
    }
}

/// Milliseconds since the Unix epoch; 0 where the clock stands before it.
fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as i64)
}
