//! The encoder in training, with all that a step changes.

mod passes;
mod step;

pub use step::{Look, StepReport};

use super::alignment::{self, Alignment};
use super::backbone::{self, Backbone, Shadow};
use super::optimizer::{self, Optimizer};
use super::schedule::{self, Progress};
use super::served::Served;
use super::views::Arrangement;
use crate::augment::ViewGroup;
use crate::encoder::{NamedArrays, Plan};
use crate::objective::{self, Elapsed, Objective};
use crate::ops::native::Precision;
use candle_core::{Device, Result};

/// Prefixes of names in checkpoints.
const HEADS: &str = "heads.";
const ALIGNMENT: &str = "alignment.";

/// What a trainer is made from.
#[derive(Clone, Debug)]
pub struct Recipe<'a> {
    /// The encoder.
    pub plan: &'a Plan,
    /// Side of the views that it learns from, where the objective has no side of its own.
    pub view_side_px: usize,
    /// The loss.
    pub objective: &'a objective::Config,
    /// How gradients become steps.
    pub optimizer: &'a optimizer::Config,
    /// How large they are.
    pub schedule: &'a schedule::Config,
    /// Momentum of the moving average that is served; 0 serves the encoder itself.
    pub average_momentum: f64,
    /// How it is held to its past.
    pub alignment: &'a alignment::Config,
    /// The run's seed.
    pub seed: u64,
    /// Where it computes.
    pub device: &'a Device,
    /// What it stores activations as, on the CPU.
    pub precision: Precision,
    /// The numbers that the encoder begins with, by name; fresh ones where there are none.
    pub init: Option<&'a NamedArrays>,
}

/// The encoder in training, with all that changes in a step.
pub struct Trainer {
    plan: Plan,
    encoder: Box<dyn Backbone>,
    objective: Box<dyn Objective>,
    alignment: Option<Alignment>,
    /// Of the heads, and of the predictor of the past.
    optimizer: Optimizer,
    schedule: schedule::Config,
    progress: Progress,
    served: Option<Served>,
    /// `[V, N, D]` at unit length, of the views of the largest side in the last step.
    features: Vec<f32>,
    views: Arrangement,
    seed: u64,
    device: Device,
}

impl Trainer {
    /// A fresh encoder with its heads and optimiser.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn new(recipe: &Recipe<'_>) -> Result<Self> {
        let Recipe { plan, view_side_px, device, seed, precision, .. } = *recipe;
        let objective = recipe.objective.build(plan.feature_dim, seed, device)?;
        let served = Served::new(recipe.average_momentum);
        let target = objective.target(Elapsed::default()).map(|_| Shadow::Target);
        let (config, place) = (recipe.alignment, (seed, device));
        let alignment = Alignment::new(config, plan.feature_dim, place, recipe.init.is_some())?;
        let served_shadow = served.as_ref().map(|_| Shadow::Served);
        let past = alignment.as_ref().map(|_| Shadow::Past);
        let shadows: Vec<Shadow> = target.into_iter().chain(past).chain(served_shadow).collect();
        let mut heads = vec![(HEADS, objective.heads())];
        heads.extend(alignment.iter().map(|alignment| (ALIGNMENT, alignment.predictor())));
        let optimizer = recipe.optimizer;
        let init = recipe.init;
        let spec = backbone::Spec { plan, optimizer, shadows: &shadows, seed, precision, init };
        Ok(Self {
            plan: plan.clone(),
            encoder: backbone::open(&spec, device)?,
            views: Arrangement::new(objective.views(), view_side_px),
            optimizer: Optimizer::new(recipe.optimizer, &heads)?,
            alignment,
            objective,
            schedule: recipe.schedule.clone(),
            progress: Progress::default(),
            served,
            features: vec![],
            seed,
            device: device.clone(),
        })
    }

    /// The views that its objective wants of each image.
    pub fn view_groups(&self) -> Vec<ViewGroup> {
        self.views.groups()
    }

    /// Whether its loss has the weights of negatives in it.
    pub fn weighs_negatives(&self) -> bool {
        self.objective.weighs_negatives()
    }

    /// How far it has come.
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// Where it computes.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The encoder's plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The numbers to serve, by name: the encoder's, or their moving average's.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn served(&self) -> Result<NamedArrays> {
        self.encoder.served()
    }

    /// Lets the learning rate warm up again from the next step on: after a change in what arrives.
    pub fn restart_schedule(&mut self) {
        self.progress.restarted_at = self.progress.steps;
    }

    /// The features of the last step's views of the largest side, flat `[V, N, D]`, at unit length.
    pub fn features(&self) -> &[f32] {
        &self.features
    }

    /// The mean over those views for each of `n_images` images, flat `[N, D]`.
    pub fn mean_features(&self, n_images: usize) -> Vec<f32> {
        let len = n_images * self.plan.feature_dim;
        let mut mean = vec![0.0; len];
        let n_views = (self.features.len() / len.max(1)) as f32;
        for view in self.features.chunks_exact(len.max(1)) {
            mean.iter_mut().zip(view).for_each(|(mean, value)| *mean += value / n_views);
        }
        mean
    }

    /// Everything that a step changes, by name, but for the progress.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn to_arrays(&self) -> Result<NamedArrays> {
        let mut arrays = self.encoder.to_arrays()?;
        arrays.extend(self.objective.heads().to_arrays(HEADS)?);
        arrays.extend(self.objective.state()?);
        if let Some(alignment) = &self.alignment {
            arrays.extend(alignment.predictor().to_arrays(ALIGNMENT)?);
        }
        arrays.extend(self.optimizer.to_arrays()?);
        arrays.extend(self.served.iter().flat_map(Served::to_arrays));
        Ok(arrays)
    }

    /// Becomes the trainer that [`Trainer::to_arrays`] was called on after `progress`.
    ///
    /// # Errors
    /// An array that is missing or of another shape, by name.
    pub fn restore(&mut self, arrays: &NamedArrays, progress: Progress) -> Result<()> {
        self.encoder.load_arrays(arrays)?;
        self.objective.heads_mut().load_arrays(HEADS, arrays)?;
        self.objective.load_state(arrays)?;
        if let Some(alignment) = &mut self.alignment {
            alignment.predictor_mut().load_arrays(ALIGNMENT, arrays)?;
        }
        self.optimizer.load_arrays(arrays)?;
        if let Some(served) = &mut self.served {
            served.load_arrays(arrays);
        }
        self.progress = progress;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::under_test;
    use crate::encoder::{Architecture, Geometry};
    use crate::gate::monitor::{UnitRows, spread};
    use crate::objective::parts::negatives::NegativeWeights;
    use candle_core::Tensor;
    use nalgebra::DMatrix;

    const SIDE_PX: usize = 12;
    const N_IMAGES: usize = 8;

    /// Three convolutions: an encoder that takes steps in milliseconds.
    fn plan() -> Plan {
        let mut plan = Plan::new("toy");
        let mut value = plan.images();
        let mut channels = 3;
        for (index, (width, stride)) in [(16, 1), (32, 2), (32, 2)].into_iter().enumerate() {
            let geometry = Geometry { kernel: 3, stride, padding: 1 };
            let name = format!("conv{index}");
            value = plan.convolution(&name, value, [channels, width], geometry);
            value = plan.batch_norm(&format!("{name}.norm"), value, width, None, true);
            channels = width;
        }
        plan.global_average_pool(value, channels);
        plan
    }

    /// What the tests' trainers differ in.
    struct Setup<'a> {
        plan: Plan,
        learning_rate: f64,
        optimizer: &'a str,
        precision: Precision,
        alignment: alignment::Config,
        init: Option<NamedArrays>,
    }

    impl Default for Setup<'_> {
        fn default() -> Self {
            Self {
                plan: plan(),
                learning_rate: 0.03,
                optimizer: "kind = \"sgd\"",
                precision: Precision::F32,
                alignment: alignment::Config { weight: 0.1, refresh_steps: 2, hidden: 16 },
                init: None,
            }
        }
    }

    impl Setup<'_> {
        fn trainer(&self, objective: &objective::Config) -> Trainer {
            let schedule = schedule::Config {
                warmup_steps: 10,
                learning_rate: self.learning_rate,
                ..schedule::Config::default()
            };
            Trainer::new(&Recipe {
                plan: &self.plan,
                view_side_px: SIDE_PX,
                objective,
                optimizer: &toml::from_str(self.optimizer).unwrap(),
                schedule: &schedule,
                average_momentum: 0.9,
                alignment: &self.alignment,
                seed: 5,
                device: &under_test(),
                precision: self.precision,
                init: self.init.as_ref(),
            })
            .unwrap()
        }
    }

    fn trainer(objective: &objective::Config, learning_rate: f64) -> Trainer {
        Setup { learning_rate, ..Setup::default() }.trainer(objective)
    }

    /// Alignment with no past.
    fn unaligned() -> alignment::Config {
        alignment::Config { weight: 0.0, ..alignment::Config::default() }
    }

    impl Trainer {
        fn step(
            &mut self,
            views: Vec<f32>,
            ids: &[u64],
            negatives: Option<&NegativeWeights>,
        ) -> Result<StepReport> {
            let look = self.look(views, ids, negatives)?;
            self.take(look, 1.0)
        }
    }

    /// A pixel of one of eight images: stripes of four widths, upright or slanted, brighter to the
    /// top, so that they can be told apart and have an up.
    fn pixel(image: usize, x: usize, y: usize) -> f32 {
        let across = if image.is_multiple_of(2) { x } else { x + y };
        let stripe = (across / (image / 2 + 1)) % 2;
        stripe as f32 + 1.0 - 2.0 * y as f32 / SIDE_PX as f32
    }

    /// Noisy and shifted views of [`pixel`]'s images, turned where `trainer`'s objective says so.
    fn views(trainer: &Trainer, step: usize, ids: &[u64]) -> Vec<f32> {
        let mut all = vec![];
        for group in trainer.view_groups() {
            for view in 0..group.views_per_image {
                let turns = if group.is_turned { view % 4 } else { 0 };
                let side_px = group.side.px(SIDE_PX);
                for id in ids {
                    let shift = (view * 5 + step * 7 + *id as usize) % 4;
                    let noise = (step * 31 + view) * 104_729 + *id as usize;
                    all.extend(view_of((*id as usize % 8, side_px), turns, shift, noise));
                }
            }
        }
        all
    }

    fn view_of(
        (image, side_px): (usize, usize),
        turns: usize,
        shift: usize,
        seed: usize,
    ) -> Vec<f32> {
        let last = side_px - 1;
        let mut view = vec![];
        for y in 0..side_px {
            for x in 0..side_px {
                let (mut from_x, mut from_y) = (x, y);
                for _ in 0..turns {
                    (from_x, from_y) = (last - from_y, from_x);
                }
                for channel in 0..3 {
                    let random =
                        (((y * SIDE_PX + x) * 3 + channel) * 7919 + seed * 1_299_709) % 1009;
                    view.push(pixel(image, from_x + shift, from_y) + random as f32 / 2018.0);
                }
            }
        }
        view
    }

    /// The spread of the features of the eight images as they are.
    fn spread_of_images(trainer: &mut Trainer) -> f32 {
        let images = (0..8).flat_map(|image| view_of((image, SIDE_PX), 0, 0, 0)).collect();
        let features = trainer.encoder.forward(images, SIDE_PX).unwrap(); // [8, D]
        let features = features.flatten_all().unwrap().to_vec1().unwrap();
        spread(&UnitRows::new(features, trainer.plan.feature_dim))
    }

    #[test]
    fn a_restored_trainer_takes_the_same_steps() {
        for config in objective::Config::every_form() {
            let ids: Vec<u64> = (0..N_IMAGES as u64).collect();
            let mut straight = trainer(&config, 0.06);
            for step in 0..3 {
                straight.step(views(&straight, step, &ids), &ids, None).unwrap();
            }
            let mut resumed = trainer(&config, 0.06);
            resumed.restore(&straight.to_arrays().unwrap(), straight.progress()).unwrap();
            for step in 3..5 {
                straight.step(views(&straight, step, &ids), &ids, None).unwrap();
                resumed.step(views(&resumed, step, &ids), &ids, None).unwrap();
            }
            assert_eq!(straight.to_arrays().unwrap(), resumed.to_arrays().unwrap(), "{config:?}");
            assert_eq!(straight.progress().steps, resumed.progress().steps);
        }
    }

    const STEPS: usize = 80;
    /// Of the features' spread, which began at .51 and ended at .31 (rotation) to .74 (VICReg with a linear
    /// head), and by agreement alone at .07, in November 2026.
    const FLOOR: f32 = 0.2;

    /// The spread after a short run on pictures that come again under new names, with nothing but the
    /// objective to keep it up.
    fn spread_after(config: &objective::Config) -> f32 {
        let mut trainer = Setup { alignment: unaligned(), ..Setup::default() }.trainer(config);
        for step in 0..STEPS {
            let ids: Vec<u64> = (0..N_IMAGES as u64).map(|i| i + 8 * (step as u64 % 4)).collect();
            let report = trainer.step(views(&trainer, step, &ids), &ids, None).unwrap();
            assert!(report.loss.is_finite(), "{config:?}");
        }
        let spread = spread_of_images(&mut trainer);
        println!("{config:?}: spread {spread:.3}");
        spread
    }

    /// Views of an image agree, and nothing keeps images apart. The head is linear: others find ways to agree
    /// that leave the features as they are.
    fn agreement_alone() -> objective::Config {
        let text = "kind = \"vicreg\"\nvariance = 0.0\ncovariance = 0.0\nhead.layers = 1";
        toml::from_str(text).unwrap()
    }

    /// An objective that must collapse does so in as many steps, and not with the terms that forbid it.
    #[test]
    fn no_objective_collapses_and_agreement_alone_does() {
        let forbidden = toml::from_str("kind = \"vicreg\"\nhead.layers = 1").unwrap();
        for config in objective::Config::every_form().into_iter().chain([forbidden]) {
            assert!(spread_after(&config) > FLOOR, "{config:?}");
        }
        assert!(spread_after(&agreement_alone()) < FLOOR);
    }

    /// The floor is far above an encoder whose last norm makes all images alike.
    #[test]
    fn a_collapsed_encoder_is_below_the_floor() {
        let mut trainer = trainer(&objective::Config::default(), 0.03);
        let mut arrays = trainer.to_arrays().unwrap();
        for (what, value) in [("gamma", 0.0), ("beta", 1.0)] {
            let array = arrays.get_mut(&format!("encoder.conv2.norm.{what}")).unwrap();
            array.values.fill(value);
        }
        trainer.restore(&arrays, Progress::default()).unwrap();
        assert!(spread_of_images(&mut trainer) < FLOOR / 10.0);
    }

    /// The same pictures in the same order: what bf16 rounds away is not what is learned.
    #[test]
    fn bf16_learns_as_f32_does() {
        let ends = [Precision::F32, Precision::Bf16].map(|precision| {
            let config = objective::Config::default();
            let mut trainer = Setup { precision, ..Setup::default() }.trainer(&config);
            let mut losses = vec![];
            for step in 0..STEPS {
                let ids: Vec<u64> =
                    (0..N_IMAGES as u64).map(|i| i + 8 * (step as u64 % 4)).collect();
                losses.push(trainer.step(views(&trainer, step, &ids), &ids, None).unwrap().loss);
            }
            let mean = |losses: &[f32]| losses.iter().sum::<f32>() / losses.len() as f32;
            let (first, last) = (mean(&losses[..10]), mean(&losses[STEPS - 20..]));
            (first - last, spread_of_images(&mut trainer))
        });
        let [(fall, spread), (fall_in_bf16, spread_in_bf16)] = ends;
        assert!(fall > 0.0 && (fall_in_bf16 / fall - 1.0).abs() < 0.1, "{ends:?}");
        assert!((spread_in_bf16 - spread).abs() < 0.1, "{ends:?}");
    }

    /// Where the heads and the encoder are after one step, as one vector beside where they began.
    fn moved(optimizer: &str, momentum: &str) -> Vec<f64> {
        let text = format!("kind = \"{optimizer}\"\nmomentum = {momentum}\nweight_decay = 0.0");
        let setup = Setup { learning_rate: 0.06, optimizer: &text, ..Setup::default() };
        let mut trainer = setup.trainer(&objective::Config::default());
        let ids: Vec<u64> = (0..N_IMAGES as u64).collect();
        let weights = |trainer: &Trainer| -> Vec<f32> {
            let arrays = trainer.to_arrays().unwrap();
            let is_weight = |name: &str| {
                let is_ours = ["encoder.", "heads.", "alignment."]
                    .iter()
                    .any(|prefix| name.starts_with(prefix));
                is_ours && !name.contains("running")
            };
            let weights = arrays.into_iter().filter(|(name, _)| is_weight(name));
            weights.flat_map(|(_, array)| array.values).collect()
        };
        let before = weights(&trainer);
        trainer.step(views(&trainer, 0, &ids), &ids, None).unwrap();
        let after = weights(&trainer);
        before.iter().zip(&after).map(|(a, b)| f64::from(b - a)).collect()
    }

    fn length(vector: &[f64]) -> f64 {
        vector.iter().map(|value| value * value).sum::<f64>().sqrt()
    }

    /// Plain descent moves by the rate times the gradient: its length over all weights is the
    /// allowed norm, and its direction stays.
    #[test]
    fn gradients_are_clipped_by_the_norm_over_encoder_and_heads() {
        let free = moved("sgd", "0.0");
        // The first step of ten of the warm-up.
        let rate = 0.006;
        let norm = length(&free) / rate;
        let half = norm / 2.0;
        let clipped = moved("sgd", &format!("0.0\nmax_gradient_norm = {half}"));
        assert!((length(&clipped) / rate / half - 1.0).abs() < 1e-3);
        let apart: Vec<f64> = clipped.iter().zip(&free).map(|(a, b)| 2.0 * a - b).collect();
        assert!(length(&apart) < 1e-3 * length(&free));
        let longer = norm * 1.01;
        assert_eq!(moved("sgd", &format!("0.0\nmax_gradient_norm = {longer}")), free);
    }

    /// The served average lags the encoder, and goes live in its place.
    #[test]
    fn the_served_encoder_is_the_average_of_those_of_the_steps() {
        let mut trainer = trainer(&objective::Config::default(), 0.03);
        let ids: Vec<u64> = (0..N_IMAGES as u64).collect();
        let name = "conv1.weight";
        let mut expected: Vec<f32> = vec![];
        for step in 0..20 {
            trainer.step(views(&trainer, step, &ids), &ids, None).unwrap();
            let weights = &trainer.to_arrays().unwrap()[&format!("encoder.{name}")].values;
            let kept = (step as f32 / (step as f32 + 9.0)).min(0.9);
            if step == 0 {
                expected.clone_from(weights);
            }
            let both = expected.iter_mut().zip(weights);
            both.for_each(|(mean, weight)| *mean = kept * *mean + (1.0 - kept) * weight);
            let served = &trainer.served().unwrap()[name].values;
            assert!(served.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5), "{step}");
        }
        assert_ne!(trainer.to_arrays().unwrap()[&format!("encoder.{name}")].values, expected);
    }

    #[test]
    fn features_are_kept_and_their_means_are_over_an_images_views() {
        let mut trainer = trainer(&objective::Config::default(), 0.06);
        let ids: Vec<u64> = (0..N_IMAGES as u64).collect();
        let views = views(&trainer, 0, &ids);
        trainer.step(views.clone(), &ids, None).unwrap();
        let mut same = self::trainer(&objective::Config::default(), 0.06);
        same.restore(&trainer.to_arrays().unwrap(), trainer.progress()).unwrap();
        let rows = same.encoder.forward(views.clone(), SIDE_PX).unwrap().to_vec2::<f32>().unwrap();
        trainer.step(views, &ids, None).unwrap();
        let dim = trainer.plan.feature_dim;
        assert_eq!(trainer.features().len(), 2 * N_IMAGES * dim);
        let unit = |row: &[f32], at: usize| row[at] / row.iter().map(|v| v * v).sum::<f32>().sqrt();
        for (image, found) in trainer.mean_features(N_IMAGES).chunks(dim).enumerate() {
            for (at, found) in found.iter().enumerate() {
                let mean = (unit(&rows[image], at) + unit(&rows[image + N_IMAGES], at)) / 2.0;
                assert!((found - mean).abs() < 1e-5);
            }
        }
    }

    /// The share of the variance of `old [M, D]` that the best linear map of `new [M, D]` leaves.
    fn left_of(old: &Tensor, new: &Tensor) -> f64 {
        let centred = |rows: &Tensor| {
            let rows = rows.broadcast_sub(&rows.mean_keepdim(0).unwrap()).unwrap();
            let rows = rows.to_vec2::<f32>().unwrap();
            DMatrix::from_fn(rows.len(), rows[0].len(), |i, j| f64::from(rows[i][j]))
        };
        let (old, new) = (centred(old), centred(new));
        let map = new.clone().svd(true, true).solve(&old, 1e-6).unwrap();
        (&old - new * map).norm_squared() / old.norm_squared()
    }

    /// An encoder that is made to forget what tells images apart forgets less of it where it is held to its
    /// past. The map from new features to old ones is fitted afterwards: that the predictor can tell
    /// the past would not show that the gradient reaches the encoder. In November 2026 .18 was left
    /// without alignment and .06 with it.
    #[test]
    fn what_the_past_told_can_still_be_told_where_the_encoder_is_held_to_it() {
        let objective = agreement_alone();
        let began = trainer(&objective, 0.03).served().unwrap();
        let left = |weight: f64| {
            let alignment = alignment::Config { weight, refresh_steps: 1_000_000, hidden: 64 };
            let setup = Setup { alignment, init: Some(began.clone()), ..Setup::default() };
            let mut trainer = setup.trainer(&objective);
            // [128, D]: four times as many rows as D.
            let features = |trainer: &mut Trainer| {
                let views = (0..128).flat_map(|i| view_of((i % 8, SIDE_PX), 0, i / 8 % 4, i));
                trainer.encoder.forward(views.collect(), SIDE_PX).unwrap()
            };
            let past = features(&mut trainer);
            let ids: Vec<u64> = (0..N_IMAGES as u64).collect();
            for step in 0..3 * STEPS {
                trainer.step(views(&trainer, step, &ids), &ids, None).unwrap();
            }
            left_of(&past, &features(&mut trainer))
        };
        let (free, held) = (left(0.0), left(30.0));
        println!("left of the past: {free:.3} free, {held:.3} held");
        assert!(held < 0.5 * free, "{held}, {free}");
    }

    /// The predictor learns to tell what the past made of the images.
    #[test]
    fn the_predictor_tells_the_past_where_the_distance_has_a_weight() {
        let moved = |weight: f64| {
            let mut trainer = trainer(&objective::Config::default(), 0.03);
            let config = alignment::Config { weight, refresh_steps: 1_000_000, hidden: 64 };
            let place = (1, &under_test());
            let dim = trainer.plan.feature_dim;
            let ids: Vec<u64> = (0..N_IMAGES as u64).collect();
            let images: Vec<f32> =
                (0..8).flat_map(|image| view_of((image, SIDE_PX), 0, 0, 0)).collect();
            let alignment = Alignment::new(&config, dim, place, true).unwrap().unwrap();
            let groups = [(HEADS, trainer.objective.heads()), (ALIGNMENT, alignment.predictor())];
            let sgd = optimizer::Config::default();
            trainer.optimizer = Optimizer::new(&sgd, &groups).unwrap();
            trainer.alignment = Some(alignment);
            for step in 0..60 {
                trainer.step(views(&trainer, step, &ids), &ids, None).unwrap();
            }
            let past = trainer.encoder.forward_shadow(Shadow::Past, images.clone(), SIDE_PX);
            let now = trainer.encoder.forward(images, SIDE_PX).unwrap();
            let alignment = trainer.alignment.as_ref().unwrap();
            let distance = alignment.loss(&now, Some(&past.unwrap())).unwrap();
            f64::from(distance.to_scalar::<f32>().unwrap()) / weight
        };
        let (free, held) = (moved(1e-6), moved(10.0));
        assert!(held < 0.5 * free, "{held}, {free}");
    }

    /// One step on encoders that people train: the loss is a number, and every weight has moved.
    #[test]
    fn every_objective_moves_all_of_a_residual_network_and_of_a_transformer() {
        let ids = [0, 1, 2, 3];
        for (architecture, optimizer) in [
            ("slim-resnet", "kind = \"sgd\"\nweight_decay = 0.0"),
            ("vit-tiny-patch4", "kind = \"adamw\"\nweight_decay = 0.0"),
        ] {
            let plan = architecture.parse::<Architecture>().unwrap().plan();
            let setup = Setup { plan, optimizer, learning_rate: 0.001, ..Setup::default() };
            for config in objective::Config::every_kind() {
                let mut trainer = setup.trainer(&config);
                let before = trainer.encoder.to_arrays().unwrap();
                let report = trainer.step(views(&trainer, 0, &ids), &ids, None).unwrap();
                assert!(report.loss.is_finite(), "{architecture}, {config:?}");
                let after = trainer.encoder.to_arrays().unwrap();
                for weight in &setup.plan.weights {
                    let name = format!("encoder.{}", weight.name);
                    let (before, after) = (&before[&name].values, &after[&name].values);
                    let about = format!("{architecture}, {config:?}: {name}");
                    assert!(after.iter().all(|value| value.is_finite()), "{about}");
                    assert!(before != after, "{about}");
                }
            }
        }
    }

    /// A step that is left out counts and moves nothing; the next one is what it would have been.
    #[test]
    fn a_step_left_out_changes_nothing() {
        for config in objective::Config::every_form() {
            let ids: Vec<u64> = (0..N_IMAGES as u64).collect();
            let mut trainer = trainer(&config, 0.06);
            trainer.step(views(&trainer, 0, &ids), &ids, None).unwrap();
            trainer.step(views(&trainer, 1, &ids), &ids, None).unwrap();
            let before = trainer.to_arrays().unwrap();
            let look = trainer.look(views(&trainer, 2, &ids), &ids, None).unwrap();
            assert!(!trainer.leave(look).unwrap().is_taken);
            assert_eq!(trainer.progress().steps, 3);
            assert_eq!(trainer.to_arrays().unwrap(), before, "{config:?}");
            let mut same = self::trainer(&config, 0.06);
            same.restore(&before, trainer.progress()).unwrap();
            trainer.step(views(&trainer, 3, &ids), &ids, None).unwrap();
            same.step(views(&same, 3, &ids), &ids, None).unwrap();
            assert_eq!(trainer.to_arrays().unwrap(), same.to_arrays().unwrap(), "{config:?}");
        }
    }

    /// Of two steps after which the encoder becomes the past, one that is left out.
    #[test]
    fn the_encoder_becomes_the_past_after_a_step_left_out_too() {
        let ids: Vec<u64> = (0..N_IMAGES as u64).collect();
        let mut trainer = trainer(&objective::Config::default(), 0.06);
        trainer.step(views(&trainer, 0, &ids), &ids, None).unwrap();
        let look = trainer.look(views(&trainer, 1, &ids), &ids, None).unwrap();
        trainer.leave(look).unwrap();
        let arrays = trainer.to_arrays().unwrap();
        for weight in &plan().weights {
            let of = |whose: &str| &arrays[&format!("{whose}{}", weight.name)].values;
            assert_eq!(of("past.encoder."), of("encoder."), "{}", weight.name);
        }
    }

    #[test]
    fn a_restart_warms_up_again_and_is_restored() {
        let mut trainer = trainer(&objective::Config::default(), 0.06);
        let ids: Vec<u64> = (0..N_IMAGES as u64).collect();
        let rate =
            |trainer: &mut Trainer| trainer.step(views(trainer, 0, &ids), &ids, None).unwrap().rate;
        let first = rate(&mut trainer);
        assert!(rate(&mut trainer) > first);
        trainer.restart_schedule();
        assert_eq!(rate(&mut trainer), first);
        let mut resumed = self::trainer(&objective::Config::default(), 0.06);
        resumed.restore(&trainer.to_arrays().unwrap(), trainer.progress()).unwrap();
        assert_eq!(rate(&mut resumed), rate(&mut trainer));
    }
}
