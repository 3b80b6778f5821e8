//! Makes batches of views on a worker pool, one batch ahead of the learner.

use crate::augment::{self, Augmenter, Preprocess, ViewGroup};
use crate::decode::fingerprint::fingerprint;
use crate::decode::{self, Pixels, Refusal};
use crate::replay::Entry;
use crate::source::Origin;
use anyhow::{Context, Result};
use bytes::Bytes;
use rayon::prelude::*;
use std::collections::HashMap;
use std::thread::JoinHandle;
use std::time::Instant;
use tokio::sync::mpsc;

/// An image that waits for its first step.
#[derive(Clone, Debug)]
pub struct Fresh {
    /// Where it came from.
    pub origin: Origin,
    /// The assignment that delivered it.
    pub generation: u64,
    /// Its encoded bytes, for the replay buffer.
    pub bytes: Bytes,
    /// Its pixels.
    pub pixels: Pixels,
    /// Broker timestamp, milliseconds since the Unix epoch.
    pub timestamp_ms: Option<i64>,
}

/// The images of one step.
#[derive(Debug)]
pub struct Order {
    /// The step that they are for; it seeds their views.
    pub step: u64,
    /// Images that have not been learned before.
    pub fresh: Vec<Fresh>,
    /// Images from the replay buffer.
    pub replayed: Vec<Entry>,
}

/// A step's images with their views.
#[derive(Debug)]
pub struct Batch {
    /// What was ordered; the pixels of fresh images are still there.
    pub order: Order,
    /// Flat `[V * N, H, W, C]`: all images' first views, then all images' second views, and so on
    /// through the groups; a group has a side of its own.
    pub views: Vec<f32>,
    /// The fingerprint of each image, where they are wanted.
    pub fingerprints: Vec<u64>,
    /// Replayed images that no longer decode, and why. Their views are zeros: where there are any, nothing is to be
    /// learned of this batch.
    pub unreadable: Vec<(Origin, Refusal)>,
    /// When it was done.
    pub made_at: Instant,
}

/// What the views are like.
#[derive(Clone, Debug)]
pub struct ViewSpec {
    /// The run's seed.
    pub seed: u64,
    /// How views differ.
    pub augment: augment::Config,
    /// Size and normalisation.
    pub preprocess: Preprocess,
    /// How replayed bytes become pixels again.
    pub decode: decode::Config,
    /// The views of each image, group after group.
    pub groups: Vec<ViewGroup>,
    /// Whether the images' fingerprints are wanted.
    pub fingerprints: bool,
}

impl ViewSpec {
    /// The length of each view of an image, in order.
    fn view_lens(&self) -> impl Iterator<Item = usize> {
        let side_px = self.preprocess.side_px;
        self.groups.iter().flat_map(move |group| {
            std::iter::repeat_n(group.view_len(side_px), group.views_per_image)
        })
    }
}

/// The thread that makes batches, and its pool.
pub struct Assembler {
    orders: mpsc::Sender<Order>,
    batches: mpsc::Receiver<Batch>,
    thread: JoinHandle<()>,
}

impl Assembler {
    /// Starts `threads` workers.
    ///
    /// # Errors
    /// Threads that cannot be started.
    pub fn start(spec: ViewSpec, threads: usize) -> Result<Self> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|index| format!("views-{index}"))
            .build()
            .context("starting the view workers")?;
        let (orders, mut ordered) = mpsc::channel::<Order>(1);
        let (made, batches) = mpsc::channel(1);
        let thread = std::thread::Builder::new().name("views".to_owned()).spawn(move || {
            while let Some(order) = ordered.blocking_recv() {
                let batch = pool.install(|| assemble(&spec, order));
                if made.blocking_send(batch).is_err() {
                    break;
                }
            }
        })?;
        Ok(Self { orders, batches, thread })
    }

    /// Orders a batch; at most one may be outstanding.
    ///
    /// # Errors
    /// The workers have ended.
    pub fn order(&self, order: Order) -> Result<()> {
        self.orders.try_send(order).map_err(|_| anyhow::anyhow!("the view workers are not ready"))
    }

    /// Waits for the outstanding batch.
    ///
    /// # Errors
    /// Workers that have ended.
    pub fn take(&mut self) -> Result<Batch> {
        self.batches.blocking_recv().context("the view workers have ended")
    }

    /// Ends the workers.
    pub fn stop(self) {
        drop(self.orders);
        drop(self.batches);
        if self.thread.join().is_err() {
            tracing::error!("the view workers panicked");
        }
    }
}

/// Makes all views of an order, on the current rayon pool.
pub fn assemble(spec: &ViewSpec, order: Order) -> Batch {
    let n_images = order.fresh.len() + order.replayed.len();
    let mut views = vec![0.0; spec.view_lens().sum::<usize>() * n_images];
    // One list of slots for each image: its views lie n_images apart.
    let mut slots: Vec<Vec<&mut [f32]>> = (0..n_images).map(|_| vec![]).collect();
    let mut rest = &mut views[..];
    for view_len in spec.view_lens() {
        let (view, after) = rest.split_at_mut(view_len * n_images);
        for (slots, slot) in slots.iter_mut().zip(view.chunks_exact_mut(view_len)) {
            slots.push(slot);
        }
        rest = after;
    }
    let mut fingerprints = vec![0; if spec.fingerprints { n_images } else { 0 }];
    let copies = copies(&order.replayed);
    let mut prints: Vec<Option<&mut u64>> = fingerprints.iter_mut().map(Some).collect();
    prints.resize_with(n_images, || None);
    let made = slots.into_par_iter().zip(prints).enumerate().map_init(
        || Augmenter::new(&spec.augment, &spec.preprocess, &spec.groups),
        |augmenter, (index, (slots, print))| {
            let n_fresh = order.fresh.len();
            let take = |pixels: &Pixels| {
                if let Some(print) = print {
                    *print = fingerprint(pixels);
                }
            };
            if let Some(fresh) = order.fresh.get(index) {
                take(&fresh.pixels);
                let seeds = (&fresh.origin, order.step, 0);
                make_views(spec, augmenter, seeds, &fresh.pixels, slots);
                return None;
            }
            let entry = &order.replayed[index - n_fresh];
            match decode_again(entry, &spec.decode) {
                Ok(pixels) => {
                    take(&pixels);
                    let seeds = (&entry.origin, order.step, copies[index - n_fresh]);
                    make_views(spec, augmenter, seeds, &pixels, slots);
                    None
                }
                Err(unreadable) => Some(unreadable),
            }
        },
    );
    let unreadable = made.flatten_iter().collect();
    Batch { order, views, fingerprints, unreadable, made_at: Instant::now() }
}

/// Those of `entries` that no longer decode, and why. All are decoded for that, on the current rayon pool.
pub fn unreadable(entries: &[Entry], config: &decode::Config) -> Vec<(Origin, Refusal)> {
    entries.par_iter().filter_map(|entry| decode_again(entry, config).err()).collect()
}

/// The pixels of an image that was learned before, or whose it was and why there are none: limits may have become
/// tighter since, a decoder stricter, or a file damaged.
fn decode_again(entry: &Entry, config: &decode::Config) -> Result<Pixels, (Origin, Refusal)> {
    let pixels = decode::decode(&entry.bytes, None, config);
    pixels.map_err(|refusal| (entry.origin.clone(), refusal))
}

/// How often the image of each entry stands before it.
fn copies(entries: &[Entry]) -> Vec<usize> {
    let mut seen = HashMap::new();
    let before = |entry: &Entry| {
        let n_seen = seen.entry(entry.id()).or_insert(0);
        *n_seen += 1;
        *n_seen - 1
    };
    entries.iter().map(before).collect()
}

/// Copy number `copy` of an image has views of its own.
fn make_views(
    spec: &ViewSpec,
    augmenter: &mut Augmenter,
    (origin, step, copy): (&Origin, u64, usize),
    pixels: &Pixels,
    slots: Vec<&mut [f32]>,
) {
    let origin_seed = origin.seed();
    let n_views = slots.len();
    for (view, slot) in slots.into_iter().enumerate() {
        let index = copy * n_views + view;
        let mut rng = augment::view_rng(spec.seed, origin_seed, step, index as u64);
        augmenter.view(pixels, view, &mut rng, slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::codecs::png::PngEncoder;
    use image::{ExtendedColorType, ImageEncoder};
    use std::sync::Arc;

    fn origin(offset: i64) -> Origin {
        Origin { topic: Arc::from("images"), partition: 0, offset }
    }

    /// Brighter to the right, or to the left.
    fn ramp(rises: bool) -> Pixels {
        let grey = |i: u8| if rises { 9 * (i % 16) } else { 200 - 9 * (i % 16) };
        Pixels { width_px: 16, height_px: 16, rgb: (0..=255).flat_map(|i| [grey(i); 3]).collect() }
    }

    fn order() -> Order {
        let fresh = Fresh {
            origin: origin(1),
            generation: 1,
            bytes: Bytes::new(),
            pixels: ramp(true),
            timestamp_ms: None,
        };
        let mut png = Vec::new();
        let encoder = PngEncoder::new(&mut png);
        encoder.write_image(&ramp(false).rgb, 16, 16, ExtendedColorType::Rgb8).unwrap();
        let replayed =
            Entry { origin: origin(2), bytes: png.into(), stored_at: None, sketch: None };
        Order { step: 3, fresh: vec![fresh], replayed: vec![replayed] }
    }

    #[test]
    fn fresh_and_replayed_images_have_fingerprints_where_they_are_wanted() {
        let spec = |fingerprints| ViewSpec {
            seed: 1,
            augment: augment::Config::default(),
            preprocess: Preprocess::imagenet(8),
            decode: decode::Config::default(),
            groups: vec![ViewGroup::alike(2)],
            fingerprints,
        };
        let wanted = assemble(&spec(true), order());
        assert_eq!(wanted.fingerprints, [u64::MAX, 0]);
        let unwanted = assemble(&spec(false), order());
        assert!(unwanted.fingerprints.is_empty());
        assert_eq!(wanted.views, unwanted.views);
        assert_eq!(wanted.views.len(), 2 * 2 * 8 * 8 * 3);
    }

    #[test]
    fn copies_of_one_image_have_views_of_their_own() {
        let spec = ViewSpec {
            seed: 1,
            augment: augment::Config::default(),
            preprocess: Preprocess::imagenet(8),
            decode: decode::Config::default(),
            groups: vec![ViewGroup::alike(2)],
            fingerprints: false,
        };
        let Order { step, replayed, .. } = order();
        let once = assemble(&spec, Order { step, fresh: vec![], replayed: replayed.clone() });
        let replayed = [&replayed[..], &replayed[..]].concat();
        let twice = assemble(&spec, Order { step, fresh: vec![], replayed });
        let views = |batch: &Batch| -> Vec<Vec<f32>> {
            batch.views.chunks_exact(8 * 8 * 3).map(<[f32]>::to_vec).collect()
        };
        // View by view, and in each image by image.
        let (once, twice) = (views(&once), views(&twice));
        assert_eq!([&twice[0], &twice[2]], [&once[0], &once[1]]);
        for (a, b) in [(0, 1), (2, 3), (1, 2), (1, 3)] {
            assert_ne!(twice[a], twice[b], "{a} {b}");
        }
    }

    /// Limits that became tighter, and bytes that were damaged; what is fresh was decoded on arrival.
    #[test]
    fn replayed_images_that_no_longer_decode_are_named_and_the_others_have_their_views() {
        let spec = |max_pixels| ViewSpec {
            seed: 1,
            augment: augment::Config::default(),
            preprocess: Preprocess::imagenet(8),
            decode: decode::Config { max_pixels, ..decode::Config::default() },
            groups: vec![ViewGroup::alike(2)],
            fingerprints: false,
        };
        let with_a_damaged_one = || {
            let mut order = order();
            let damaged = order.replayed[0].bytes.slice(..40);
            let damaged = Entry { origin: origin(3), bytes: damaged, ..order.replayed[0].clone() };
            order.replayed.push(damaged);
            order
        };
        let named = |batch: &Batch| -> Vec<i64> {
            batch.unreadable.iter().map(|(origin, _)| origin.offset).collect()
        };
        let batch = assemble(&spec(256), with_a_damaged_one());
        assert_eq!(named(&batch), [3]);
        let whole = assemble(&spec(256), order());
        assert!(whole.unreadable.is_empty());
        let view = |batch: &Batch, nth: usize| batch.views[nth * 192..][..192].to_vec();
        // Of three images and of two: the first views, then the second.
        for (found, expected) in [(0, 0), (1, 1), (3, 2), (4, 3)] {
            assert_eq!(view(&batch, found), view(&whole, expected));
        }
        let tighter = assemble(&spec(255), with_a_damaged_one());
        assert_eq!(named(&tighter), [2, 3]);
        assert_eq!(tighter.order.fresh.len(), 1, "what is fresh is there to be ordered again");
        let kept = tighter.order.replayed;
        let found = [256, 255].map(|max_pixels| unreadable(&kept, &spec(max_pixels).decode).len());
        assert_eq!(found, [1, 2]);
    }
}
