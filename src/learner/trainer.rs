//! One training step: views to new weights.

use super::backbone::{self, Backbone};
use super::optimizer::{self, Optimizer};
use super::schedule::{self, Progress};
use super::target::TargetPass;
use super::views::Arrangement;
use crate::augment::ViewGroup;
use crate::encoder::{NamedArrays, Plan};
use crate::objective::{self, Objective, SeenBy};
use crate::ops::native::Precision;
use candle_core::{Device, Result, Tensor, Var};
use std::time::{Duration, Instant};

/// Prefix of names in checkpoints.
const HEADS: &str = "heads.";

/// What a trainer is made from.
#[derive(Clone, Debug)]
pub struct Recipe<'a> {
    /// The encoder.
    pub plan: &'a Plan,
    /// Side of its square input.
    pub side_px: usize,
    /// The loss.
    pub objective: &'a objective::Config,
    /// How gradients become steps.
    pub optimizer: &'a optimizer::Config,
    /// How large they are.
    pub schedule: &'a schedule::Config,
    /// The run's seed.
    pub seed: u64,
    /// Where it computes.
    pub device: &'a Device,
    /// What it stores activations as, on the CPU.
    pub precision: Precision,
}

/// The encoder in training, with all that changes in a step.
pub struct Trainer {
    plan: Plan,
    encoder: Box<dyn Backbone>,
    objective: Box<dyn Objective>,
    /// Of the heads.
    optimizer: Optimizer,
    schedule: schedule::Config,
    progress: Progress,
    views: Arrangement,
    seed: u64,
    device: Device,
}

/// What a step did.
#[derive(Clone, Copy, Debug)]
pub struct StepReport {
    /// The loss before it.
    pub loss: f32,
    /// The learning rate it was taken with.
    pub rate: f64,
    /// How long it took.
    pub took: Duration,
}

impl Trainer {
    /// A fresh encoder with its heads and optimiser.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn new(recipe: &Recipe<'_>) -> Result<Self> {
        let Recipe { plan, side_px, device, seed, precision, .. } = *recipe;
        let objective = recipe.objective.build(plan.feature_dim, seed, device)?;
        let has_target = objective.target(0.0).is_some();
        let optimizer = recipe.optimizer;
        let spec = backbone::Spec { plan, optimizer, has_target, seed, precision };
        Ok(Self {
            plan: plan.clone(),
            encoder: backbone::open(&spec, device)?,
            views: Arrangement::new(objective.views(), side_px),
            optimizer: Optimizer::new(recipe.optimizer, &[(HEADS, objective.heads())])?,
            objective,
            schedule: recipe.schedule.clone(),
            progress: Progress::default(),
            seed,
            device: device.clone(),
        })
    }

    /// The views that its objective wants of each image.
    pub fn view_groups(&self) -> Vec<ViewGroup> {
        self.views.groups()
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

    /// The encoder's numbers, by name.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn encoder(&self) -> Result<NamedArrays> {
        self.encoder.encoder()
    }

    /// Takes one step on `views`, flat `[V * N, H, W, C]`, of the images that `ids` name: those of
    /// [`Trainer::view_groups`], group after group.
    ///
    /// # Errors
    /// Views of another length, or whatever the device reports.
    pub fn step(&mut self, views: Vec<f32>, ids: &[u64]) -> Result<StepReport> {
        let began = Instant::now();
        let n_images = ids.len();
        self.views.check(&views, n_images)?;
        let done = self.schedule.done(self.progress);
        let target = self.objective.target(done);
        let targets = match target {
            None => vec![],
            Some(target) => self.target_features(&views, n_images, target.norm_groups)?,
        };
        // The objective's graph ends at leaves: the encoder has a backward of its own.
        let (passes, mut views, mut leaves) = (self.views.passes(SeenBy::encoder), views, vec![]);
        for pass in &passes {
            let seen = self.views.take(&mut views, pass, n_images);
            let features = self.encoder.forward(seen, pass.side_px)?; // [V * N, D]
            leaves.push(Var::from_tensor(&features)?.into_inner());
        }
        let features = self.views.split(&passes, &leaves, n_images)?;
        let batch = objective::Batch { features: &features, targets: &targets, n_images, ids };
        let loss = self.objective.loss(&batch)?;
        let head_gradients = loss.backward()?;
        let feature_gradients = leaves.iter().map(|leaf| match head_gradients.get(leaf) {
            Some(gradient) => Ok(gradient.clone()),
            None => candle_core::bail!("the objective's gradient does not reach the features"),
        });
        let feature_gradients = feature_gradients.collect::<Result<Vec<_>>>()?;
        let rate = self.schedule.rate(self.progress);
        self.encoder.step(&feature_gradients, rate)?;
        self.optimizer.step(&[(self.objective.heads(), &head_gradients)], rate)?;
        self.objective.after_step(&batch, done)?;
        if let Some(target) = target {
            self.encoder.follow(target.momentum)?;
        }
        let loss = loss.to_scalar::<f32>()?;
        let took = began.elapsed();
        self.progress.steps += 1;
        self.progress.trained += took;
        Ok(StepReport { loss, rate, took })
    }

    /// Everything that a step changes, by name, but for the progress.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn to_arrays(&self) -> Result<NamedArrays> {
        let mut arrays = self.encoder.to_arrays()?;
        arrays.extend(self.objective.heads().to_arrays(HEADS)?);
        arrays.extend(self.objective.state()?);
        arrays.extend(self.optimizer.to_arrays()?);
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
        self.optimizer.load_arrays(arrays)?;
        self.progress = progress;
        Ok(())
    }

    /// What the target makes of the views that it sees, a tensor for each group.
    fn target_features(
        &mut self,
        views: &[f32],
        n_images: usize,
        norm_groups: usize,
    ) -> Result<Vec<Tensor>> {
        let passes = self.views.passes(SeenBy::target);
        let seed = [self.seed, self.progress.steps];
        let mut features = vec![];
        for pass in &passes {
            let (n_views, side_px) = (self.views.n_views(pass), pass.side_px);
            let target = TargetPass { n_images, n_views, side_px, norm_groups, seed };
            let seen = self.views.take(&mut views.to_vec(), pass, n_images);
            features.push(target.run(&mut *self.encoder, seen)?); // [V * N, D]
        }
        self.views.split(&passes, &features, n_images)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::under_test;
    use crate::encoder::Geometry;
    use crate::gate::spread;

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

    fn trainer(objective: &objective::Config, learning_rate: f64) -> Trainer {
        trainer_in(Precision::F32, objective, learning_rate)
    }

    fn trainer_in(
        precision: Precision,
        objective: &objective::Config,
        learning_rate: f64,
    ) -> Trainer {
        let schedule =
            schedule::Config { warmup_steps: 10, learning_rate, ..schedule::Config::default() };
        Trainer::new(&Recipe {
            plan: &plan(),
            side_px: SIDE_PX,
            objective,
            optimizer: &optimizer::Config::default(),
            schedule: &schedule,
            seed: 5,
            device: &under_test(),
            precision,
        })
        .unwrap()
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
                let side_px = group.side_px.unwrap_or(SIDE_PX);
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
        let features = trainer.encoder.forward(images, SIDE_PX).unwrap();
        let feature_dim = trainer.plan.feature_dim;
        spread(&features.flatten_all().unwrap().to_vec1::<f32>().unwrap(), feature_dim)
    }

    #[test]
    fn a_restored_trainer_takes_the_same_steps() {
        for config in objective::Config::every_form() {
            let ids: Vec<u64> = (0..N_IMAGES as u64).collect();
            let mut straight = trainer(&config, 0.06);
            for step in 0..3 {
                straight.step(views(&straight, step, &ids), &ids).unwrap();
            }
            let mut resumed = trainer(&config, 0.06);
            resumed.restore(&straight.to_arrays().unwrap(), straight.progress()).unwrap();
            for step in 3..5 {
                straight.step(views(&straight, step, &ids), &ids).unwrap();
                resumed.step(views(&resumed, step, &ids), &ids).unwrap();
            }
            assert_eq!(straight.to_arrays().unwrap(), resumed.to_arrays().unwrap(), "{config:?}");
            assert_eq!(straight.progress().steps, resumed.progress().steps);
        }
    }

    const STEPS: usize = 80;
    /// Of the features' spread, which ended at .31 (rotation) to .65 (BYOL) in November 2026.
    const FLOOR: f32 = 0.2;

    /// The spread after a short run on pictures that come again under new names.
    fn spread_after(config: &objective::Config) -> f32 {
        let mut trainer = trainer(config, 0.03);
        for step in 0..STEPS {
            let ids: Vec<u64> = (0..N_IMAGES as u64).map(|i| i + 8 * (step as u64 % 4)).collect();
            let report = trainer.step(views(&trainer, step, &ids), &ids).unwrap();
            assert!(report.loss.is_finite(), "{config:?}");
        }
        let spread = spread_of_images(&mut trainer);
        println!("{config:?}: spread {spread:.3}");
        spread
    }

    #[test]
    fn no_objective_collapses() {
        for config in objective::Config::every_form() {
            assert!(spread_after(&config) > FLOOR, "{config:?}");
        }
    }

    /// The same pictures in the same order: what bf16 rounds away is not what is learned.
    #[test]
    fn bf16_learns_as_f32_does() {
        let ends = [Precision::F32, Precision::Bf16].map(|precision| {
            let mut trainer = trainer_in(precision, &objective::Config::default(), 0.03);
            let mut losses = vec![];
            for step in 0..STEPS {
                let ids: Vec<u64> =
                    (0..N_IMAGES as u64).map(|i| i + 8 * (step as u64 % 4)).collect();
                losses.push(trainer.step(views(&trainer, step, &ids), &ids).unwrap().loss);
            }
            let mean = |losses: &[f32]| losses.iter().sum::<f32>() / losses.len() as f32;
            let (first, last) = (mean(&losses[..10]), mean(&losses[STEPS - 20..]));
            (first - last, spread_of_images(&mut trainer))
        });
        println!("{ends:?}");
        let [(fall, spread), (fall_in_bf16, spread_in_bf16)] = ends;
        assert!(fall > 0.0 && (fall_in_bf16 / fall - 1.0).abs() < 0.1, "{ends:?}");
        assert!((spread_in_bf16 - spread).abs() < 0.1, "{ends:?}");
    }

    /// The floor is one that a collapsed encoder is below: its last norm makes all images alike.
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
}
