//! Snapshots go live: when, after which checks, and how fresh they are.

use super::Observer;
use super::history::{Candidate, History};
use super::probe::Probe;
use super::stable::Stable;
use super::trainer::{StepReport, Trainer};
use super::vitals::Freshness;
use crate::augment::Preprocess;
use crate::encoder::Architecture;
use crate::events::{Event, Events};
use crate::gate::monitor::Figures;
use crate::gate::{self, Gate};
use crate::snapshot::{self, Encoded, Provenance, Registry, Snapshot};
use anyhow::Result;
use metrics::{counter, gauge, histogram};
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use tracing::{info, warn};

/// Images whose wait is measured at a publication; more learned in between are not sampled.
const WAITING_IMAGES: usize = 100_000;

/// How far the run has come, beside its steps.
#[derive(Clone, Copy)]
pub(super) struct Done {
    pub(super) images_learned: u64,
    /// Changes of what arrives.
    pub(super) changes: u64,
}

/// What becomes of a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    WentLive,
    Refused,
    /// There was too little to check it on.
    PutOff,
}

/// Publishes the encoder.
pub(super) struct Publisher {
    config: snapshot::Config,
    gate: Gate,
    stable: Stable,
    architecture: Architecture,
    preprocess: Preprocess,
    registry: Arc<Registry>,
    /// Who may know labels.
    observers: Vec<Arc<dyn Observer>>,
    /// Kept where snapshots are.
    history: Option<History>,
    events: Events,
    last_at: Instant,
    last_step: u64,
    /// The version published last, over restarts.
    version: Option<String>,
    /// Whether candidates are put off, once that is said.
    puts_off: bool,
    /// Broker timestamps of images learned since the last publication.
    waiting_ms: Vec<i64>,
    freshness: Freshness,
    published: u64,
}

impl Publisher {
    pub(super) fn new(
        config: &snapshot::Config,
        (gate, stable): (Gate, Stable),
        (architecture, preprocess): (Architecture, Preprocess),
        (registry, observers): (Arc<Registry>, Vec<Arc<dyn Observer>>),
        history: Option<History>,
        events: Events,
    ) -> Self {
        Self {
            config: config.clone(),
            gate,
            stable,
            architecture,
            preprocess,
            registry,
            observers,
            history,
            events,
            last_at: Instant::now(),
            last_step: 0,
            version: None,
            puts_off: false,
            waiting_ms: vec![],
            freshness: Freshness::default(),
            published: 0,
        }
    }

    /// The same in a run that published `version` last before it was restarted.
    pub(super) fn after(self, version: Option<String>) -> Self {
        Self { version, ..self }
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

    /// Leaves the candidate of `step` for later, as too little is there to check it on; says so of the first in a row.
    pub(super) fn put_off(&mut self, step: u64) {
        if !std::mem::replace(&mut self.puts_off, true) {
            warn!(
                step,
                "too few different images are kept to tell whether an encoder has collapsed, and none goes live \
                 meanwhile: see replay.policy, replay.max_bytes, replay.duplicate_window"
            );
        }
    }

    /// Takes a snapshot, checks it on `probe` and makes it the latest if it passes; `monitors` are for the history.
    ///
    /// # Errors
    /// Whatever the device or the snapshot folder report; a candidate that does not pass is none.
    pub(super) fn publish(
        &mut self,
        trainer: &Trainer,
        Done { images_learned, changes }: Done,
        probe: &Probe,
        monitors: Option<Figures>,
    ) -> Result<Outcome> {
        let step = trainer.progress().steps;
        (self.last_at, self.last_step) = (Instant::now(), step);
        let parent = self.version.clone();
        let provenance = Provenance { step, images_learned, changes, created_ms: now_ms(), parent };
        let arrays = trainer.served()?;
        let device = trainer.device();
        let mut encoded =
            Encoded::new(self.architecture, &self.preprocess, &arrays, provenance, device)?;
        if self.version.as_ref() == Some(&encoded.snapshot.version) {
            // Restored as it was published last: what came before it is known by its file, if there is one.
            encoded.snapshot.provenance.parent = None;
        }
        let encoder = &encoded.snapshot.encoder;
        let embeddings = encoder.embed(probe.views.clone(), probe.n_images)?;
        let compare = || self.observers.iter().find_map(|one| one.compare(&encoded.snapshot));
        let (looks, passed) = self.gate.check(embeddings, encoder.feature_dim(), compare);
        if let Some(accuracy) = looks.accuracy {
            gauge!("selfstream_candidate_knn_ratio").set(accuracy.candidate);
        }
        if let Err(refused) = &passed
            && !probe.can_tell
            && !refused.holds_for_few()
        {
            self.put_off(step);
            return Ok(Outcome::PutOff);
        }
        self.puts_off = false;
        let reference = (&probe.views[..], probe.n_images);
        let overlap = match passed {
            Ok(()) => self.stable.overlap_with(&encoded.snapshot, reference)?,
            Err(_) => None,
        };
        if let Some(history) = &mut self.history {
            let version = passed.is_ok().then(|| encoded.snapshot.version.clone());
            let time_ms = encoded.snapshot.provenance.created_ms;
            let spread = looks.spread;
            let candidate =
                Candidate { step, images_learned, spread, version, time_ms, monitors, overlap };
            history.note(candidate)?;
        }
        if let Err(refused) = passed {
            warn!(step, reason = %refused, "this encoder does not go live");
            let reason = refused.reason();
            counter!("selfstream_snapshots_refused_total", "reason" => reason).increment(1);
            self.events.tell(Event::Refused { step, reason });
            self.stable.refused();
            return Ok(Outcome::Refused);
        }
        gauge!("selfstream_embedding_spread_ratio").set(looks.spread);
        gauge!("selfstream_embedding_rankme_ratio").set(looks.rank);
        if let Some(overlap) = overlap {
            gauge!("selfstream_stable_neighbour_overlap_ratio").set(overlap);
        }
        if let Some(dir) = &self.config.dir {
            encoded.write(dir, self.config.keep, &self.stable.spared())?;
        }
        self.go_live(encoded.snapshot);
        Ok(Outcome::WentLive)
    }

    fn go_live(&mut self, snapshot: Snapshot) {
        let Provenance { step, images_learned, .. } = snapshot.provenance;
        let version = snapshot.version.clone();
        info!(step, images_learned, version = &version[..12], "published");
        let snapshot = Arc::new(snapshot);
        self.registry.publish(Arc::clone(&snapshot));
        self.events.tell(Event::Published { version: version.clone(), step });
        self.version = Some(version);
        self.published += 1;
        counter!("selfstream_snapshots_published_total").increment(1);
        self.measure_freshness();
        if let Some(stable) = self.stable.passed(&snapshot) {
            let (version, step) = (stable.version.clone(), stable.provenance.step);
            info!(step, version = &version[..12], "stable");
            self.events.tell(Event::Stable { version, step });
            self.registry.promote(stable);
        }
    }

    /// Takes ranks and accuracies of the next candidates for usual.
    pub(super) fn forget_usual(&mut self) {
        self.gate.forget();
    }

    /// The learner has gone back to `step`.
    ///
    /// # Errors
    /// A history that cannot be written.
    pub(super) fn went_back(&mut self, step: u64) -> Result<()> {
        self.stable.refused();
        self.last_step = step;
        self.waiting_ms.clear();
        match &mut self.history {
            Some(history) => history.restored(step),
            None => Ok(()),
        }
    }

    fn measure_freshness(&mut self) {
        let now = now_ms();
        for timestamp_ms in self.waiting_ms.drain(..) {
            let seconds = (now - timestamp_ms).max(0) as f64 / 1e3;
            histogram!("selfstream_freshness_seconds").record(seconds);
            self.freshness.push(seconds);
        }
    }

    /// The version published last, over restarts.
    pub(super) fn version(&self) -> Option<String> {
        self.version.clone()
    }

    /// The version that serves, if one has gone live in this process.
    pub(super) fn served(&self) -> Option<String> {
        self.version().filter(|_| self.published > 0)
    }

    pub(super) fn stable_version(&self) -> Option<&str> {
        self.stable.version()
    }

    /// What the gate remembers.
    pub(super) fn gate_memory(&self) -> &gate::Memory {
        self.gate.memory()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learner::trainer::Recipe;
    use crate::learner::{alignment, optimizer, schedule};
    use crate::objective;
    use crate::ops::native::Precision;
    use candle_core::Device;
    use std::path::Path;

    const SIDE_PX: usize = 16;

    fn trainer() -> Trainer {
        Trainer::new(&Recipe {
            plan: &Architecture::SlimResnet.plan(),
            view_side_px: SIDE_PX,
            objective: &objective::Config::default(),
            optimizer: &optimizer::Config::default(),
            schedule: &schedule::Config::default(),
            average_momentum: 0.0,
            alignment: &alignment::Config::default(),
            seed: 5,
            device: &Device::Cpu,
            precision: Precision::F32,
            init: None,
        })
        .unwrap()
    }

    /// Of a process that begins where `version` was published last, and takes any candidate.
    fn publisher(dir: Option<&Path>, version: &str) -> Publisher {
        let config = snapshot::Config { dir: dir.map(Path::to_owned), ..Default::default() };
        let any = gate::Config { min_spread: 0.0, min_rank_share: 0.0, ..Default::default() };
        let gate = Gate::new(&any, gate::Memory::default());
        Publisher::new(
            &config,
            (gate, Stable::new(500, None)),
            (Architecture::SlimResnet, Preprocess::imagenet(SIDE_PX)),
            (Arc::new(Registry::new(4)), vec![]),
            None,
            Events::default(),
        )
        .after(Some(version.to_owned()))
    }

    /// What becomes of a candidate that is looked at by two views of one image.
    fn outcome(publisher: &mut Publisher, trainer: &Trainer, can_tell: bool) -> Outcome {
        let views = vec![0.5; 2 * SIDE_PX * SIDE_PX * 3];
        let done = Done { images_learned: 9, changes: 1 };
        let probe = Probe { views, n_images: 2, can_tell };
        publisher.publish(trainer, done, &probe, None).unwrap()
    }

    /// Publishes what `trainer` has; the provenance that it goes live with, and its name.
    fn published(publisher: &mut Publisher, trainer: &Trainer) -> (Provenance, String) {
        assert_eq!(outcome(publisher, trainer, false), Outcome::WentLive);
        let snapshot = publisher.registry.latest().unwrap();
        (snapshot.provenance.clone(), snapshot.version.clone())
    }

    /// The version published before it, not before in the same process.
    #[test]
    fn what_a_version_comes_after_is_known_over_restarts() {
        let (dir, trainer) = (tempfile::tempdir().unwrap(), trainer());
        let mut before = publisher(Some(dir.path()), "earlier");
        assert_eq!(before.served(), None, "what was published before a restart serves no more");
        let (first, version) = published(&mut before, &trainer);
        assert_eq!(first.parent.as_deref(), Some("earlier"));
        assert_eq!(before.served(), Some(version.clone()));
        // Restarted as it ended: the same weights go live again, and came to be as before.
        let mut after = publisher(Some(dir.path()), &version);
        assert_eq!(published(&mut after, &trainer), (first.clone(), version.clone()));
        let read = snapshot::read(dir.path(), &Device::Cpu).unwrap();
        assert_eq!(read.provenance, first);
        let (alone, same) = published(&mut publisher(None, &version), &trainer);
        assert_eq!((alone.parent, same), (None, version), "nothing comes after itself");
    }

    #[test]
    fn a_candidate_put_off_is_none_that_was_taken() {
        let mut publisher = publisher(None, "earlier");
        assert!(publisher.is_due(200));
        publisher.put_off(200);
        assert!(publisher.is_due(200) && publisher.is_behind(200));
        assert_eq!((publisher.published(), publisher.served()), (0, None));
        published(&mut publisher, &trainer());
        assert_eq!((publisher.published(), publisher.puts_off), (1, false));
    }

    /// Views of one image lie together whatever the encoder; that they lie apart would say something.
    #[test]
    fn of_few_images_a_refusal_by_their_looks_puts_off_and_a_pass_counts() {
        let trainer = trainer();
        let strict = gate::Config { min_spread: 0.5, ..Default::default() };
        for (can_tell, expected) in [(true, Outcome::Refused), (false, Outcome::PutOff)] {
            let mut publisher = publisher(None, "earlier");
            publisher.gate = Gate::new(&strict, gate::Memory::default());
            assert_eq!(outcome(&mut publisher, &trainer, can_tell), expected);
            assert_eq!(publisher.puts_off, !can_tell);
        }
    }
}
