//! The same encoder trained with the labels, to compare with: what its architecture, augmentation
//! and budget allow where nobody has to do without labels.
//!
//! A linear classifier stands on the features, and both learn by the mean softmax cross-entropy of
//! one augmented view an image, in shuffled passes over the training images, with the side of views,
//! optimiser, learning rate and warm-up of the run that it is compared with. Its end is known, so the rate
//! falls to zero there. Views a and b of the recipe are made in turn.

use super::classifier::{Classifier, head, logits};
use super::labelled::{draw, example};
use super::{Classes, Config, Embedded, SnapshotEmbedder, accuracy};
use crate::augment::{self, Augmenter, Preprocess, Side, ViewGroup};
use crate::decode;
use crate::encoder::{Architecture, Params};
use crate::learner::backbone::{self, Backbone, Spec};
use crate::learner::optimizer::{self, Optimizer};
use crate::learner::schedule::{self, Progress};
use crate::ops::native::Precision;
use crate::snapshot::{Encoded, Provenance, Snapshot};
use crate::source::collection::{Collection, shuffled};
use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor, Var};
use candle_nn::loss::cross_entropy;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long to train.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// Until this much time has passed, reading and augmenting included.
    Time(Duration),
    /// So many steps.
    Steps(u64),
}

/// What the run has in common with the one that it is compared with.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// The encoder's kind.
    pub architecture: Architecture,
    /// Size and normalisation of its input.
    pub preprocess: Preprocess,
    /// Side of the views that it learns from.
    pub view_side_px: usize,
    /// How views differ from images.
    pub augment: augment::Config,
    /// Which images are taken.
    pub decode: decode::Config,
    /// How gradients become steps.
    pub optimizer: optimizer::Config,
    /// How large they are; the end comes from the budget.
    pub schedule: schedule::Config,
    /// Images in a step.
    pub batch_images: usize,
    /// Seeds weights, views and the order of images.
    pub seed: u64,
    /// Where it computes.
    pub device: Device,
    /// What it stores activations as, on the CPU.
    pub precision: Precision,
}

/// What a supervised run reached; accuracies are fractions of the test images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Supervised {
    /// The version of its encoder.
    pub version: String,
    /// Accuracy of its own classifier.
    pub accuracy: f64,
    /// Accuracy of kNN by its features, as of any encoder.
    pub knn: f64,
    /// Accuracy of a linear probe on its features, as of any encoder.
    pub linear: f64,
    /// How uncertain they are, by the number of test images alone.
    pub standard_error: StandardError,
    /// Steps taken.
    pub steps: u64,
    /// Time they took.
    pub seconds: f64,
    /// Mean loss of the last pass, or of all steps if there was none; in nats.
    pub loss: f64,
}

/// Standard errors of a supervised run's accuracies.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct StandardError {
    /// Of [`Supervised::accuracy`].
    pub accuracy: f64,
    /// Of [`Supervised::knn`].
    pub knn: f64,
    /// Of [`Supervised::linear`].
    pub linear: f64,
}

/// Trains on the images of `train` that `config` draws and tells the classes of `test`. Computes
/// on the current rayon pool.
///
/// # Errors
/// An image that cannot be used, or whatever the device reports.
pub fn supervised(
    recipe: &Recipe,
    budget: Budget,
    [train, test]: [&Collection; 2],
    config: &Config,
) -> Result<Supervised> {
    let classes = Classes::of(&[train, test])?;
    let positions = draw(train, config.limit_train_images, config.seed, 0);
    let trained = Run::new(recipe, budget, (train, &positions), &classes)?.train()?;
    let snapshot = Arc::new(trained.snapshot);
    let embedder = &mut SnapshotEmbedder::new(snapshot).decoding(recipe.decode.clone());
    let embedded = Embedded::new(train, test, embedder, config)?;
    let found = trained.classifier.classify(&embedded.test.embeddings);
    let accuracy = accuracy(&found, &embedded.test.labels)?;
    let (knn, linear) = (embedded.confusion()?.accuracy(), embedded.linear(config.seed)?);
    let standard_error = StandardError {
        accuracy: embedded.standard_error(accuracy),
        knn: embedded.standard_error(knn),
        linear: embedded.standard_error(linear),
    };
    let Trained { steps, took, loss, .. } = trained;
    let (version, seconds) = (embedded.version, took.as_secs_f64());
    Ok(Supervised { version, accuracy, knn, linear, standard_error, steps, seconds, loss })
}

/// A run on its way.
struct Run<'a> {
    recipe: &'a Recipe,
    budget: Budget,
    schedule: schedule::Config,
    classes: &'a Classes,
    collection: &'a Collection,
    positions: &'a [usize],
    encoder: Box<dyn Backbone>,
    /// `[K, D]` and `[K]`.
    head: Params,
    optimizer: Optimizer,
    progress: Progress,
    /// Passes begun, and what is left of the last, as indices into `positions`.
    passes: u64,
    left: Vec<usize>,
}

/// A run at its end.
struct Trained {
    snapshot: Snapshot,
    classifier: Classifier,
    steps: u64,
    took: Duration,
    loss: f64,
}

impl<'a> Run<'a> {
    fn new(
        recipe: &'a Recipe,
        budget: Budget,
        (collection, positions): (&'a Collection, &'a [usize]),
        classes: &'a Classes,
    ) -> Result<Self> {
        ensure!(!positions.is_empty(), "there are no images to train on");
        let Recipe { optimizer, seed, device, precision, .. } = recipe;
        let plan = recipe.architecture.plan();
        let spec = Spec {
            plan: &plan,
            optimizer,
            shadows: &[],
            seed: *seed,
            init: None,
            precision: *precision,
        };
        let head = head(classes.names().len(), plan.feature_dim, device)?;
        Ok(Self {
            recipe,
            budget,
            schedule: ending(&recipe.schedule, budget),
            classes,
            collection,
            positions,
            encoder: backbone::open(&spec, device)?,
            optimizer: Optimizer::new(optimizer, &[("classifier.", &head)])?,
            head,
            progress: Progress::default(),
            passes: 0,
            left: vec![],
        })
    }

    fn train(mut self) -> Result<Trained> {
        let began = Instant::now();
        let mut losses = vec![];
        while !self.is_over() {
            losses.push(f64::from(self.step().context("supervised step")?));
            self.progress.steps += 1;
            self.progress.trained = began.elapsed();
        }
        let pass = self.positions.len().div_ceil(self.recipe.batch_images);
        let last = &losses[losses.len().saturating_sub(pass)..];
        let Recipe { architecture, preprocess, device, .. } = self.recipe;
        let (arrays, provenance) = (self.encoder.served()?, Provenance::default());
        let encoded = Encoded::new(*architecture, preprocess, &arrays, provenance, device)?;
        Ok(Trained {
            snapshot: encoded.snapshot,
            classifier: Classifier::new(&self.head)?,
            steps: self.progress.steps,
            took: self.progress.trained,
            loss: last.iter().sum::<f64>() / last.len().max(1) as f64,
        })
    }

    fn is_over(&self) -> bool {
        match self.budget {
            Budget::Time(time) => self.progress.trained >= time,
            Budget::Steps(steps) => self.progress.steps >= steps,
        }
    }

    /// Takes a step; returns the loss before it.
    fn step(&mut self) -> Result<f32> {
        let (views, labels) = self.batch()?;
        let device = &self.recipe.device;
        let labels = Tensor::from_vec(labels, self.recipe.batch_images, device)?; // [N]
        // As in the learner, the graph ends at a leaf: the encoder has a backward of its own.
        let leaf = Var::from_tensor(&self.encoder.forward(views, self.recipe.view_side_px)?)?; // [N, D]
        let loss = cross_entropy(&logits(&self.head, &leaf)?, &labels)?;
        let gradients = loss.backward()?;
        let features = gradients.get(&leaf).context("no gradient reaches the features")?;
        let rate = self.schedule.rate(self.progress);
        self.encoder.backward(std::slice::from_ref(features))?;
        let head = (&[&self.head][..], gradients);
        backbone::step_together(&mut *self.encoder, &mut self.optimizer, head, rate)?;
        Ok(loss.to_scalar::<f32>()?)
    }

    /// The next images as views, flat `[N, H, W, C]`, with their classes.
    fn batch(&mut self) -> Result<(Vec<f32>, Vec<u32>)> {
        let Recipe { view_side_px, augment, preprocess, decode, seed, batch_images, .. } =
            self.recipe;
        let indices: Vec<usize> = (0..*batch_images).map(|_| self.next_image()).collect();
        let both = ViewGroup { side: Side::Px(*view_side_px), ..ViewGroup::alike(2) };
        let (step, view_len) = (self.progress.steps, both.view_len(*view_side_px));
        let mut views = vec![0.0; indices.len() * view_len];
        let make = |augmenter: &mut Augmenter, (index, out): (&usize, &mut [f32])| {
            let position = self.positions[*index];
            let image = example(self.collection, position, self.classes)?;
            let pixels = decode::decode(&image.bytes, None, decode)
                .with_context(|| format!("decoding {}", image.name))?;
            let mut rng = augment::view_rng(*seed, position as u64, step, 0);
            augmenter.view(&pixels, (step % 2) as usize, &mut rng, out);
            anyhow::Ok(image.label as u32)
        };
        let slots = indices.par_iter().zip(views.par_chunks_exact_mut(view_len));
        let labels: Result<Vec<u32>> =
            slots.map_init(|| Augmenter::new(augment, preprocess, &[both]), make).collect();
        Ok((views, labels?))
    }

    /// The next image of endless shuffled passes.
    fn next_image(&mut self) -> usize {
        loop {
            if let Some(index) = self.left.pop() {
                return index;
            }
            self.left = shuffled(self.positions.len(), self.recipe.seed, self.passes);
            self.passes += 1;
        }
    }
}

/// `schedule` with its end at that of the budget.
fn ending(schedule: &schedule::Config, budget: Budget) -> schedule::Config {
    let mut ending = schedule.clone();
    match budget {
        Budget::Time(time) => (ending.end_after, ending.end_steps) = (Some(time), None),
        Budget::Steps(steps) => {
            (ending.end_after, ending.end_steps) = (None, Some(steps));
            ending.warmup_steps = ending.warmup_steps.min(steps / 4);
        }
    }
    ending
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::fixtures::coloured;

    fn recipe() -> Recipe {
        Recipe {
            architecture: Architecture::SlimResnet,
            preprocess: Preprocess::imagenet(8),
            view_side_px: 8,
            // Colour is what tells the images apart.
            augment: augment::Config {
                jitter_probability: Some(0.0),
                greyscale_probability: Some(0.0),
                ..augment::Config::default()
            },
            decode: decode::Config::default(),
            optimizer: optimizer::Config::default(),
            schedule: schedule::Config::default(),
            batch_images: 12,
            seed: 4,
            device: Device::Cpu,
            precision: Precision::F32,
        }
    }

    #[test]
    fn colours_are_learned_from_their_labels() {
        let folder = tempfile::tempdir().unwrap();
        let train = coloured(&folder.path().join("train"), 8);
        let test = coloured(&folder.path().join("test"), 4);
        let budget = Budget::Steps(40);
        let found = supervised(&recipe(), budget, [&train, &test], &Config::default()).unwrap();
        assert_eq!((found.accuracy, found.knn, found.linear), (1.0, 1.0, 1.0));
        assert_eq!(found.standard_error.accuracy, 0.0);
        assert!(found.loss < 0.3, "{found:?}");
        assert_eq!(found.steps, 40);
        let again = supervised(&recipe(), budget, [&train, &test], &Config::default()).unwrap();
        assert_eq!(found.version, again.version, "the same seed gives the same weights");
    }

    #[test]
    fn the_first_loss_is_that_of_equal_classes() {
        let folder = tempfile::tempdir().unwrap();
        let train = coloured(folder.path(), 4);
        let (classes, positions) = (Classes::of(&[&train]).unwrap(), [0, 4, 8]);
        let recipe = recipe();
        let images = (&train, &positions[..]);
        let mut run = Run::new(&recipe, Budget::Steps(1), images, &classes).unwrap();
        assert!((run.step().unwrap() - 3_f32.ln()).abs() < 1e-6);
    }

    #[test]
    fn views_have_the_side_of_the_run_and_not_of_its_input() {
        let folder = tempfile::tempdir().unwrap();
        let train = coloured(folder.path(), 4);
        let (classes, positions) = (Classes::of(&[&train]).unwrap(), [0, 4, 8]);
        let recipe = Recipe { preprocess: Preprocess::imagenet(16), ..recipe() };
        let images = (&train, &positions[..]);
        let mut run = Run::new(&recipe, Budget::Steps(1), images, &classes).unwrap();
        assert_eq!(run.batch().unwrap().0.len(), recipe.batch_images * 8 * 8 * 3);
        assert!(run.step().unwrap().is_finite());
    }

    #[test]
    fn every_pass_has_each_image_once() {
        let folder = tempfile::tempdir().unwrap();
        let train = coloured(folder.path(), 4);
        let (classes, positions) = (Classes::of(&[&train]).unwrap(), [1, 3, 5, 7, 9]);
        let recipe = recipe();
        let images = (&train, &positions[..]);
        let mut run = Run::new(&recipe, Budget::Steps(1), images, &classes).unwrap();
        let mut passes = std::collections::BTreeSet::new();
        for _ in 0..10 {
            let pass: Vec<usize> = (0..5).map(|_| run.next_image()).collect();
            let mut sorted = pass.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2, 3, 4]);
            passes.insert(pass);
        }
        assert!(passes.len() > 1, "passes differ in their order");
    }

    #[test]
    fn the_rate_ends_where_the_budget_does() {
        let schedule = schedule::Config::default();
        let steps = ending(&schedule, Budget::Steps(100));
        assert_eq!((steps.end_steps, steps.end_after, steps.warmup_steps), (Some(100), None, 25));
        let hour = Duration::from_secs(3600);
        let time = ending(&schedule, Budget::Time(hour));
        assert_eq!((time.end_steps, time.end_after), (None, Some(hour)));
        let over = Progress { steps: 9000, trained: hour, restarted_at: 0 };
        assert_eq!(time.rate(over), 0.0);
    }
}
