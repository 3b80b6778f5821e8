//! Prequential kNN: how well the served encoder tells labelled images of the stream, each before it
//! is learned.
//!
//! A record with a `label` header is embedded, as it arrives, by the version that serves at that
//! moment, which has not learned it. Its class is told by kNN among the last
//! [`references`](Config::references) labelled records before it, embedded by the same version; then
//! it becomes a reference itself. The accuracy is the share told right of the last
//! [`window`](Config::window): "prequential" is predict first, then let the answer count (Dawid 1984;
//! with a sliding window, Gama, Sebastião and Rodrigues, "On evaluating stream learning algorithms",
//! 2013, section 3.2). Differs from both: what is tested is never fitted to the labels.
//!
//! Labels go no further than here. Embedding takes a thread of its own with a bounded queue; where it
//! is slower than the stream, records are passed over and counted, and nothing waits for it.

use super::candidate::{REMEMBERED, Recent};
use super::{Embedder, Embeddings, EvaluateError, Example, Reference, SnapshotEmbedder};
use crate::decode;
use crate::gate::Accuracy;
use crate::learner::Observer;
use crate::setting::{Invalid, within};
use crate::sink::images::LABEL_HEADER;
use crate::snapshot::{Registry, Snapshot};
use crate::source::Record;
use anyhow::{Context, Result};
use metrics::{counter, gauge};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::mpsc;
use tracing::{debug, warn};

/// Records that may wait to be embedded. A guess: some batches of a learner.
const QUEUE: usize = 256;

/// `[prequential]`: whether and on what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Whether it is measured; it takes a forward pass of each labelled image, and of every
    /// reference at each new version.
    pub enabled: bool,
    /// Labelled images that kNN looks among.
    pub references: usize,
    /// Images that the accuracy is taken over.
    pub window: usize,
}

impl Default for Config {
    fn default() -> Self {
        // Guesses: a second of embedding at each version; a standard error of .015 or less.
        Self { enabled: false, references: 500, window: 1000 }
    }
}

impl Config {
    /// Checks every value.
    ///
    /// # Errors
    /// The first value that is not allowed, by key.
    pub fn validate(&self) -> Result<(), Invalid> {
        within("prequential.references", self.references, 1..=100_000, "from 1 to 100000")?;
        within("prequential.window", self.window, 1..=1_000_000, "from 1 to 1000000")
    }

    /// The most images that are held: those that wait, the references, and what candidates are compared on.
    pub fn most_images(&self) -> usize {
        if self.enabled { QUEUE + self.references + REMEMBERED + 1 } else { 0 }
    }
}

/// A labelled record with the version that served when it arrived.
struct Arrival {
    snapshot: Arc<Snapshot>,
    label: Arc<str>,
    example: Example,
}

/// The observer of a stream.
pub struct Prequential {
    registry: Arc<Registry>,
    arrivals: mpsc::Sender<Arrival>,
    accuracy: Arc<Mutex<Option<f64>>>,
    /// What candidates are compared on.
    recent: Mutex<Recent>,
    decode: decode::Config,
}

impl Prequential {
    /// Starts the thread that embeds images, decoded as `decode` says; it ends with the observer.
    ///
    /// # Errors
    /// Threads that cannot be started.
    pub fn start(
        config: &Config,
        decode: &decode::Config,
        registry: Arc<Registry>,
    ) -> Result<Self> {
        // Embedding must not compute in rayon's global pool.
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(1)
            .thread_name(|_| "prequential".to_owned())
            .build()
            .context("starting the prequential pool")?;
        let (observer, judging) = Self::connect(config, decode, registry);
        let judge = move || pool.install(judging);
        std::thread::Builder::new().name("prequential-queue".to_owned()).spawn(judge)?;
        Ok(observer)
    }

    /// An observer, and what judges until it is dropped.
    fn connect(
        config: &Config,
        decode: &decode::Config,
        registry: Arc<Registry>,
    ) -> (Self, impl FnOnce() + Send + use<>) {
        let (arrivals, mut queue) = mpsc::channel::<Arrival>(QUEUE);
        let accuracy = Arc::new(Mutex::new(None));
        let shown = Arc::clone(&accuracy);
        let mut judge = Judge::new(config.clone(), decode.clone());
        let judging = move || {
            while let Some(arrival) = queue.blocking_recv() {
                match judge.judge(arrival) {
                    Ok(accuracy) => {
                        *shown.lock().unwrap_or_else(PoisonError::into_inner) = accuracy;
                    }
                    Err(error) => {
                        debug!(%error, "a labelled image was not embedded");
                        counter!("selfstream_prequential_skipped_images_total").increment(1);
                    }
                }
            }
        };
        let (recent, decode) = (Mutex::default(), decode.clone());
        (Self { registry, arrivals, accuracy, recent, decode }, judging)
    }
}

impl Observer for Prequential {
    fn arrived(&self, record: &Record) {
        let (Some(label), Some(snapshot)) = (record.header(LABEL_HEADER), self.registry.latest())
        else {
            return;
        };
        let name = record.origin.to_string();
        let example = Example { name, bytes: record.bytes.clone(), label: 0 };
        let label: Arc<str> = label.into();
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.push(Arc::clone(&label), example.clone());
        let arrival = Arrival { snapshot, label, example };
        if self.arrivals.try_send(arrival).is_err() {
            debug!(origin = %record.origin, "passed over: labelled images wait already");
            counter!("selfstream_prequential_skipped_images_total").increment(1);
        }
    }

    fn accuracy(&self) -> Option<f64> {
        *self.accuracy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn compare(&self, candidate: &Snapshot) -> Option<Accuracy> {
        let served = self.registry.latest()?;
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.compare(candidate, &served, &self.decode).unwrap_or_else(|error| {
            warn!(%error, "a candidate is not judged by labels");
            None
        })
    }
}

/// A labelled image to compare with.
struct Known {
    label: Arc<str>,
    example: Example,
    embedding: Vec<f32>,
}

/// The state of the measure.
struct Judge {
    config: Config,
    decode: decode::Config,
    version: String,
    /// The last labelled images, oldest first, embedded by `version`.
    known: VecDeque<Known>,
    /// Whether each of the last was told right.
    outcomes: VecDeque<bool>,
}

impl Judge {
    fn new(config: Config, decode: decode::Config) -> Self {
        let (version, known, outcomes) = (String::new(), VecDeque::new(), VecDeque::new());
        Self { config, decode, version, known, outcomes }
    }

    /// Tells the class of an arrival, then learns its label. Returns the accuracy so far.
    fn judge(&mut self, arrival: Arrival) -> Result<Option<f64>, EvaluateError> {
        let Arrival { snapshot, label, example } = arrival;
        let embedder = SnapshotEmbedder::new(Arc::clone(&snapshot));
        let mut embedder = embedder.decoding(self.decode.clone());
        if self.version != snapshot.version {
            self.embed_again(&mut embedder)?;
            self.version.clone_from(&snapshot.version);
        }
        let query = embedder.embed(std::slice::from_ref(&example))?;
        if let Some(found) = self.tell(&query)? {
            self.score(found == label);
        }
        let embedding = query.row(0).to_vec();
        self.known.push_back(Known { label, example, embedding });
        if self.known.len() > self.config.references {
            self.known.pop_front();
        }
        Ok(self.accuracy())
    }

    fn embed_again(&mut self, embedder: &mut SnapshotEmbedder) -> Result<(), EvaluateError> {
        // One image a call: queries of the same version wait for no more than its pass.
        let anew = self.known.iter().map(|known| {
            let embedding = embedder.embed(std::slice::from_ref(&known.example))?;
            Ok(embedding.row(0).to_vec())
        });
        let anew = anew.collect::<Result<Vec<_>, EvaluateError>>()?;
        for (known, embedding) in self.known.iter_mut().zip(anew) {
            known.embedding = embedding;
        }
        Ok(())
    }

    /// The class of `query`, `[1, D]`; none while nothing is known.
    fn tell(&self, query: &Embeddings) -> Result<Option<Arc<str>>, EvaluateError> {
        if self.known.is_empty() {
            return Ok(None);
        }
        let names: BTreeMap<&Arc<str>, ()> =
            self.known.iter().map(|known| (&known.label, ())).collect();
        let names: Vec<&Arc<str>> = names.into_keys().collect();
        let labels: Vec<usize> =
            self.known.iter().filter_map(|known| names.binary_search(&&known.label).ok()).collect();
        let values = self.known.iter().flat_map(|known| &known.embedding).copied().collect();
        let embeddings = Embeddings::new(values, query.dim())?;
        let found = Reference::new(&embeddings, &labels)?.classify(query)?;
        Ok(found.first().map(|class| Arc::clone(names[*class])))
    }

    fn score(&mut self, is_right: bool) {
        self.outcomes.push_back(is_right);
        if self.outcomes.len() > self.config.window {
            self.outcomes.pop_front();
        }
        counter!("selfstream_prequential_images_total").increment(1);
        if let Some(accuracy) = self.accuracy() {
            gauge!("selfstream_prequential_knn_ratio").set(accuracy);
        }
    }

    fn accuracy(&self) -> Option<f64> {
        let right = self.outcomes.iter().filter(|is_right| **is_right).count();
        (!self.outcomes.is_empty()).then(|| right as f64 / self.outcomes.len() as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::fixtures::{channel_means, flat, png};
    use crate::snapshot::Encode;
    use crate::source::Origin;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn snapshot(version: &str, scale: f32) -> Arc<Snapshot> {
        Arc::new(channel_means(version, [scale, 0.0]))
    }

    fn arrival(snapshot: &Arc<Snapshot>, label: &str, colour: [u8; 3]) -> Arrival {
        let example = Example { name: label.to_owned(), bytes: png(colour).into(), label: 0 };
        Arrival { snapshot: Arc::clone(snapshot), label: label.into(), example }
    }

    fn record(offset: i64, label: Option<&str>, colour: [u8; 3]) -> Record {
        let header = |label: &str| (LABEL_HEADER.to_owned(), Some(label.to_owned().into()));
        Record {
            origin: Origin { topic: "t".into(), partition: 0, offset },
            generation: 0,
            is_skipped: false,
            bytes: png(colour).into(),
            omitted_bytes: 0,
            timestamp_ms: None,
            key: None,
            headers: label.map(header).into_iter().collect(),
        }
    }

    const RED: [u8; 3] = [200, 10, 10];
    const BLUE: [u8; 3] = [10, 10, 200];

    #[test]
    fn an_image_is_told_before_its_label_is_known() {
        let snapshot = snapshot("a", 1.0);
        let mut judge = Judge::new(Config::default(), decode::Config::default());
        let mut see = |label, colour| judge.judge(arrival(&snapshot, label, colour)).unwrap();
        assert_eq!(see("red", RED), None, "nothing to compare with");
        assert_eq!(see("blue", BLUE), Some(0.0), "red is all that is known");
        assert_eq!(see("red", RED), Some(0.5));
        assert_eq!(see("blue", BLUE), Some(2.0 / 3.0));
    }

    #[test]
    fn the_window_and_the_references_slide() {
        let snapshot = snapshot("a", 1.0);
        let config = Config { references: 2, window: 3, enabled: true };
        let mut judge = Judge::new(config, decode::Config::default());
        let mut see = |label, colour| judge.judge(arrival(&snapshot, label, colour)).unwrap();
        see("red", RED);
        see("blue", BLUE);
        // Two blue ones push the red one out: a red image can then not be told.
        assert_eq!(see("blue", BLUE), Some(0.5));
        assert_eq!(see("red", RED), Some(1.0 / 3.0));
        // The first miss has left the window: right, wrong, right.
        assert_eq!(see("blue", BLUE), Some(2.0 / 3.0));
    }

    #[test]
    fn a_new_version_embeds_its_references_anew() {
        // The second version turns embeddings around: mixed with the first one's, all would be wrong.
        let (first, second) = (snapshot("a", 1.0), snapshot("b", -1.0));
        let mut judge = Judge::new(Config::default(), decode::Config::default());
        judge.judge(arrival(&first, "red", RED)).unwrap();
        judge.judge(arrival(&first, "blue", BLUE)).unwrap();
        judge.judge(arrival(&second, "red", RED)).unwrap();
        let all_of_second = judge.known.iter().all(|known| known.embedding[0] < 0.0);
        assert!(all_of_second && judge.outcomes == [false, true]);
    }

    #[test]
    fn records_without_a_label_or_before_an_encoder_are_no_concern() {
        let registry = Arc::new(Registry::new(2));
        let config = Config::default();
        let decode = decode::Config::default();
        let (observer, judging) = Prequential::connect(&config, &decode, Arc::clone(&registry));
        observer.arrived(&record(0, Some("red"), RED));
        registry.publish(snapshot("a", 1.0));
        observer.arrived(&record(1, None, RED));
        assert_eq!(observer.arrivals.capacity(), QUEUE);
        observer.arrived(&record(2, Some("red"), RED));
        observer.arrived(&record(3, Some("red"), RED));
        assert_eq!(observer.arrivals.capacity(), QUEUE - 2);
        let accuracy = Arc::clone(&observer.accuracy);
        // What judges ends when all is judged and nothing more can come.
        drop(observer);
        judging();
        assert_eq!(*accuracy.lock().unwrap(), Some(1.0));
    }

    #[test]
    fn a_candidate_is_compared_with_what_serves_once_labels_are_enough() {
        let registry = Arc::new(Registry::new(2));
        let (config, decode) = (Config::default(), decode::Config::default());
        let (observer, _judging) = Prequential::connect(&config, &decode, Arc::clone(&registry));
        let candidate = snapshot("b", -1.0);
        assert_eq!(observer.compare(&candidate), None, "nothing serves");
        registry.publish(snapshot("a", 1.0));
        let arrive = |offset| {
            let (label, colour) = if offset % 2 == 0 { ("red", RED) } else { ("blue", BLUE) };
            observer.arrived(&record(offset, Some(label), colour));
        };
        (0..20).for_each(arrive);
        assert_eq!(observer.compare(&candidate), None, "too few");
        (0..200).for_each(arrive);
        // Neither turns the other's embeddings around: each is compared with its own.
        let expected = Accuracy { candidate: 1.0, served: 1.0, n_images: 100 };
        assert_eq!(observer.compare(&candidate), Some(expected));
    }

    #[test]
    fn what_the_run_takes_is_told() {
        let snapshot = snapshot("a", 1.0);
        let run = decode::Config { min_side_px: 2, ..decode::Config::default() };
        let mut judge = Judge::new(Config::default(), run);
        for _ in 0..2 {
            let example = Example { name: "flat".to_owned(), bytes: flat().into(), label: 0 };
            let snapshot = Arc::clone(&snapshot);
            judge.judge(Arrival { snapshot, label: "red".into(), example }).unwrap();
        }
        assert_eq!(judge.accuracy(), Some(1.0));
    }

    /// An encoder that notes the most images that it was given at once.
    struct Longest(Arc<AtomicUsize>);

    impl Encode for Longest {
        fn feature_dim(&self) -> usize {
            1
        }

        fn embed(&self, _: Vec<f32>, n_images: usize) -> candle_core::Result<Vec<f32>> {
            self.0.fetch_max(n_images, Ordering::Relaxed);
            Ok(vec![1.0; n_images])
        }
    }

    /// A version embeds one batch at a time: what looks on must not hold queries of it up for longer than an image.
    #[test]
    fn a_query_waits_for_the_pass_of_one_image_at_most() {
        let longest = Arc::new(AtomicUsize::new(0));
        let version = |name: &str| {
            let encoder: Box<dyn Encode> = Box::new(Longest(Arc::clone(&longest)));
            Arc::new(Snapshot { encoder, ..channel_means(name, [1.0, 0.0]) })
        };
        let registry = Arc::new(Registry::new(2));
        let (config, decode) = (Config::default(), decode::Config::default());
        let (observer, judging) = Prequential::connect(&config, &decode, Arc::clone(&registry));
        registry.publish(version("a"));
        (0..140).for_each(|offset| observer.arrived(&record(offset, Some("red"), RED)));
        // What was told by the first version is embedded anew by the second.
        registry.publish(version("b"));
        observer.arrived(&record(140, Some("red"), RED));
        assert!(observer.compare(&version("c")).is_some());
        drop(observer);
        judging();
        assert_eq!(longest.load(Ordering::Relaxed), 1);
    }
}
