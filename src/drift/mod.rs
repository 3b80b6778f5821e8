//! Drift: whether what arrives looks as it did.
//!
//! Arriving images, at most so many a second, are embedded by one pinned version of the encoder, since
//! embeddings of two versions don't compare; [`detector`] tells a change. When the pin moves to a newer version,
//! the images that are kept are embedded anew. It runs on a thread of its own with a bounded queue, and
//! nothing waits for it.

mod detector;
mod energy;

use crate::decode;
use crate::evaluate::{Embedder, EvaluateError, Example, SnapshotEmbedder};
use crate::events::{Event, Events};
use crate::learner::{Observer, page_hinkley};
use crate::setting::{Invalid, within};
use crate::snapshot::{Registry, Snapshot};
use crate::source::Record;
use anyhow::{Context, Result};
use detector::{Check, Detector, Seen};
use metrics::{counter, gauge};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tracing::{debug, info};

/// Images that may wait to be embedded.
const QUEUE: usize = 64;

/// `[drift]`: whether and how a change of what arrives is told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Whether it is.
    pub enabled: bool,
    /// Images a second that are looked at, the first ones of each second; each takes a forward pass.
    pub images_per_second: u32,
    /// How many standard deviations of the usual distance a change lies away, by a window of 64 images; by one of
    /// 192 it is a third more.
    pub threshold: f64,
    /// Time after which the pin moves to the version that serves then.
    #[serde(with = "humantime_serde")]
    pub repin_after: Duration,
    /// Whether a training loss that has risen and stays up is told, see [`page_hinkley`]; `enabled` or not.
    pub loss_warning: bool,
    /// The rise that it tolerates, in standard deviations of the loss.
    pub loss_delta: f64,
    /// The sum of what lies beyond it at which it is told, in the same.
    pub loss_threshold: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            enabled: false,
            images_per_second: 8,
            threshold: 9.0,
            repin_after: Duration::from_secs(600),
            loss_warning: false,
            // For rises of one standard deviation and more: that one is told after some 50 steps. How often
            // it speaks where nothing rises, see docs/RELIABILITY.md.
            loss_delta: 0.5,
            loss_threshold: 25.0,
        }
    }
}

impl Config {
    /// Checks every value.
    ///
    /// # Errors
    /// The first value that is not allowed, by key.
    pub fn validate(&self) -> Result<(), Invalid> {
        let rate = self.images_per_second;
        within("drift.images_per_second", rate, 1..=100_000, "from 1 to 100000")?;
        within("drift.threshold", self.threshold, 1.0..=1000.0, "from 1 to 1000")?;
        let seconds = self.repin_after.as_secs_f64();
        within("drift.repin_after", seconds, 1.0..=31_536_000.0, "from 1s to 365days")?;
        within("drift.loss_delta", self.loss_delta, 0.0..=100.0, "from 0 to 100")?;
        within("drift.loss_threshold", self.loss_threshold, 1.0..=1e6, "from 1 to 1000000")
    }

    /// The most images that are held.
    pub fn most_images(&self) -> usize {
        if self.enabled { QUEUE + detector::MOST_IMAGES } else { 0 }
    }

    /// When a rising loss is told, if it is.
    pub fn loss_warning(&self) -> Option<page_hinkley::Config> {
        let Self { loss_delta: delta, loss_threshold: threshold, .. } = *self;
        self.loss_warning.then_some(page_hinkley::Config { delta, threshold })
    }
}

/// Looks on as records arrive.
pub struct Drift {
    registry: Arc<Registry>,
    arrivals: mpsc::Sender<(Arc<Snapshot>, Example)>,
    rate: Mutex<Rate>,
}

/// How many images of this second were taken.
struct Rate {
    per_second: u32,
    since: Instant,
    n_taken: u32,
}

impl Rate {
    fn admits(&mut self, now: Instant) -> bool {
        if now.duration_since(self.since) >= Duration::from_secs(1) {
            (self.since, self.n_taken) = (now, 0);
        }
        self.n_taken += 1;
        self.n_taken <= self.per_second
    }
}

impl Drift {
    /// Starts the thread that embeds images, decoded as `decode` says; it ends with the observer.
    ///
    /// # Errors
    /// Threads that cannot be started.
    pub fn start(
        config: &Config,
        decode: &decode::Config,
        seed: u64,
        registry: Arc<Registry>,
        events: Events,
    ) -> Result<Self> {
        // Embedding must not compute in rayon's global pool.
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(1)
            .thread_name(|_| "drift".to_owned())
            .build()
            .context("starting the drift pool")?;
        let (arrivals, mut queue) = mpsc::channel(QUEUE);
        let mut watch = Watch::new(config, decode, seed, events);
        let watching = move || {
            pool.install(|| {
                while let Some((snapshot, example)) = queue.blocking_recv() {
                    if let Err(error) = watch.look(snapshot, example) {
                        debug!(%error, "an image was not embedded");
                    }
                }
            });
        };
        std::thread::Builder::new().name("drift-queue".to_owned()).spawn(watching)?;
        let rate = Rate { per_second: config.images_per_second, since: Instant::now(), n_taken: 0 };
        Ok(Self { registry, arrivals, rate: Mutex::new(rate) })
    }
}

impl Observer for Drift {
    fn arrived(&self, record: &Record) {
        let Some(latest) = self.registry.latest() else { return };
        let mut rate = self.rate.lock().unwrap_or_else(PoisonError::into_inner);
        if rate.admits(Instant::now()) {
            let name = record.origin.to_string();
            let example = Example { name, bytes: record.bytes.clone(), label: 0 };
            if self.arrivals.try_send((latest, example)).is_err() {
                debug!(origin = %record.origin, "passed over: images wait already");
            }
        }
    }

    fn accuracy(&self) -> Option<f64> {
        None
    }
}

/// The detector with its pinned encoder.
struct Watch {
    detector: Detector<Example>,
    decode: decode::Config,
    repin_after: Duration,
    pin: Option<(Arc<Snapshot>, Instant)>,
    events: Events,
}

impl Watch {
    fn new(config: &Config, decode: &decode::Config, seed: u64, events: Events) -> Self {
        let (detector, decode) = (Detector::new(config.threshold, seed), decode.clone());
        Self { detector, decode, repin_after: config.repin_after, pin: None, events }
    }

    /// Looks at an image that arrived while `latest` served.
    fn look(&mut self, latest: Arc<Snapshot>, example: Example) -> Result<(), EvaluateError> {
        let encoder = self.pinned(latest)?;
        let embedding = embed(&encoder, &example, &self.decode)?;
        let origin = example.name.clone();
        if let Some(Check { score, is_change }) =
            self.detector.push(Seen { image: example, embedding })
        {
            gauge!("selfstream_drift_score_ratio").set(score);
            if is_change {
                info!(origin, score, "what arrives has changed");
                counter!("selfstream_drift_changes_total").increment(1);
                self.events.tell(Event::Drift { origin, score });
            }
        }
        Ok(())
    }

    fn pinned(&mut self, latest: Arc<Snapshot>) -> Result<Arc<Snapshot>, EvaluateError> {
        if let Some((pin, since)) = &self.pin
            && (since.elapsed() < self.repin_after || pin.version == latest.version)
        {
            return Ok(Arc::clone(pin));
        }
        self.detector.embed_anew(|example| embed(&latest, example, &self.decode))?;
        self.pin = Some((Arc::clone(&latest), Instant::now()));
        Ok(latest)
    }
}

/// The embedding of `example`, decoded as `decode` says, at unit length.
fn embed(
    snapshot: &Arc<Snapshot>,
    example: &Example,
    decode: &decode::Config,
) -> Result<Vec<f32>, EvaluateError> {
    let mut embedder = SnapshotEmbedder::new(Arc::clone(snapshot)).decoding(decode.clone());
    let embedded = embedder.embed(std::slice::from_ref(example))?;
    Ok(embedded.normalised().row(0).to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::augment::Preprocess;
    use crate::encoder::{Architecture, HostParams};
    use crate::snapshot::{Encoded, Provenance};
    use crate::source::collection::Collection;
    use candle_core::Device;
    use rand::seq::SliceRandom;
    use std::path::PathBuf;

    /// An encoder that has learned nothing, which tells less than any that will serve.
    fn untrained() -> Arc<Snapshot> {
        let architecture = Architecture::SlimResnet;
        let params = HostParams::init(&architecture.plan(), [1, 2]).unwrap();
        let (preprocess, arrays) = (Preprocess::imagenet(16), params.to_arrays(""));
        let provenance = Provenance::default();
        let encoded =
            Encoded::new(architecture, &preprocess, &arrays, provenance, &Device::Cpu).unwrap();
        Arc::new(encoded.snapshot)
    }

    /// Where changes were told among `images`, by their place.
    fn told(images: impl Iterator<Item = Example>) -> Vec<usize> {
        let events = Events::default();
        let mut heard = events.listen();
        let decode = decode::Config::default();
        let mut watch = Watch::new(&Config::default(), &decode, 5, events);
        let encoder = untrained();
        let mut told = vec![];
        for (place, example) in images.enumerate() {
            watch.look(Arc::clone(&encoder), example).unwrap();
            if let Ok(event) = heard.try_recv() {
                assert!(matches!(event.event, Event::Drift { .. }));
                told.push(place);
            }
        }
        told
    }

    fn collection(name: &str) -> Option<Collection> {
        let images = std::env::var_os("SELFSTREAM_TEST_IMAGES").map(PathBuf::from);
        if images.is_none() {
            eprintln!("skipped: SELFSTREAM_TEST_IMAGES is not set");
        }
        Some(Collection::open(images?.join(name)).unwrap())
    }

    fn example(collection: &Collection, index: usize) -> Example {
        let bytes = collection.read(index).unwrap();
        Example { name: index.to_string(), bytes, label: 0 }
    }

    /// Four domains one after another, the images of each in no order; an encoder that has learned nothing
    /// does not tell photos from paintings, so they are no neighbours here.
    #[test]
    fn a_change_of_domain_is_told_within_300_images() {
        let Some(pacs) = collection("pacs128-train.tar") else { return };
        let shuffled = shuffled(pacs.len());
        let mut order = vec![];
        let mut changes = vec![];
        for domain in ["art_painting/", "cartoon/", "sketch/", "photo/"] {
            order.extend(shuffled.iter().filter(|index| pacs.name(**index).starts_with(domain)));
            changes.push(order.len());
        }
        assert_eq!(changes.pop(), Some(pacs.len()));
        let told = told(order.into_iter().map(|index| example(&pacs, index)));
        let late = |change: &usize| told.iter().find(|at| *at >= change).map(|at| at - change);
        let late: Vec<Option<usize>> = changes.iter().map(late).collect();
        println!("told {late:?} images after the changes, at {told:?}");
        assert!(late.iter().all(|late| late.is_some_and(|images| images < 300)), "{late:?}");
        assert!(told.len() <= 4, "{told:?}");
    }

    fn shuffled(n_images: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n_images).collect();
        order.shuffle(&mut crate::seed::rng(1, crate::seed::Purpose::Shuffle, &[]));
        order
    }

    #[test]
    fn images_in_no_order_are_no_change() {
        let Some(cifar) = collection("cifar10-test-4k.tar.xz") else { return };
        let told = told(shuffled(cifar.len()).into_iter().map(|index| example(&cifar, index)));
        assert!(told.is_empty(), "{told:?}");
    }

    #[test]
    fn what_the_run_takes_is_looked_at() {
        let run = decode::Config { min_side_px: 2, ..decode::Config::default() };
        let mut watch = Watch::new(&Config::default(), &run, 5, Events::default());
        let mut bytes = std::io::Cursor::new(vec![]);
        let flat = image::RgbImage::from_pixel(12, 2, image::Rgb([220, 20, 20]));
        flat.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
        let bytes = bytes.into_inner().into();
        watch.look(untrained(), Example { name: "flat".to_owned(), bytes, label: 0 }).unwrap();
    }

    #[test]
    fn no_more_images_are_taken_in_a_second_than_allowed() {
        let since = Instant::now();
        let mut rate = Rate { per_second: 3, since, n_taken: 0 };
        let at = |ms: u64| since + Duration::from_millis(ms);
        let taken = (0..20).filter(|n| rate.admits(at(n * 100))).count();
        assert_eq!(taken, 6, "two seconds");
    }
}
