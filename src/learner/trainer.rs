//! One training step: views to new weights.

use super::backbone::{self, Backbone};
use super::optimizer::{self, Optimizer};
use super::schedule::{self, Progress};
use crate::encoder::{NamedArrays, Plan};
use crate::objective::{self, Objective};
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
    side_px: usize,
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
        let Recipe { plan, side_px, device, seed, .. } = *recipe;
        let objective = recipe.objective.build(plan.feature_dim, seed, device)?;
        Ok(Self {
            plan: plan.clone(),
            encoder: backbone::open(plan, side_px, recipe.optimizer, seed, device)?,
            optimizer: Optimizer::new(recipe.optimizer, &[(HEADS, objective.heads())])?,
            objective,
            schedule: recipe.schedule.clone(),
            progress: Progress::default(),
            side_px,
            device: device.clone(),
        })
    }

    /// Views that its objective wants of each image.
    pub fn views_per_image(&self) -> usize {
        self.objective.view_groups().iter().map(|group| group.views_per_image).sum()
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

    /// Takes one step on `views`, flat `[V * N, H, W, C]`, of the images that `ids` name.
    ///
    /// # Errors
    /// Views of another length, or whatever the device reports.
    pub fn step(&mut self, views: Vec<f32>, ids: &[u64]) -> Result<StepReport> {
        let began = Instant::now();
        let n_views = self.views_per_image() * ids.len();
        let expected = n_views * self.side_px * self.side_px * 3;
        if views.len() != expected {
            candle_core::bail!("{n_views} views are {expected} floats, not {}", views.len())
        }
        // The objective's graph ends at a leaf: the encoder has a backward of its own.
        let leaf = Var::from_tensor(&self.encoder.forward(views)?)?; // [V * N, D]
        let features = split_groups(&leaf, &*self.objective, ids.len())?;
        let batch = objective::Batch { features: &features, n_images: ids.len(), ids };
        let loss = self.objective.loss(&batch)?;
        let head_gradients = loss.backward()?;
        let Some(feature_gradient) = head_gradients.get(&leaf) else {
            candle_core::bail!("the objective's gradient does not reach the features")
        };
        let rate = self.schedule.rate(self.progress);
        self.encoder.step(feature_gradient, rate)?;
        self.optimizer.step(&[(self.objective.heads(), &head_gradients)], rate)?;
        self.objective.after_step()?;
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
        self.optimizer.load_arrays(arrays)?;
        self.progress = progress;
        Ok(())
    }
}

/// Cuts `[V * N, D]` features into the objective's groups.
fn split_groups(
    features: &Tensor,
    objective: &dyn Objective,
    n_images: usize,
) -> Result<Vec<Tensor>> {
    let mut begin = 0;
    let groups = objective.view_groups().into_iter().map(|group| {
        let len = group.views_per_image * n_images;
        begin += len;
        features.narrow(0, begin - len, len)
    });
    groups.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::under_test;
    use crate::encoder::Architecture;

    const SIDE_PX: usize = 12;
    const N_IMAGES: usize = 6;

    fn trainer() -> Trainer {
        let schedule = schedule::Config { warmup_steps: 0, ..schedule::Config::default() };
        Trainer::new(&Recipe {
            plan: &Architecture::SlimResnet.plan(),
            side_px: SIDE_PX,
            objective: &objective::Config::default(),
            optimizer: &optimizer::Config::default(),
            schedule: &schedule,
            seed: 5,
            device: &under_test(),
        })
        .unwrap()
    }

    /// Two noisy views of stripes whose width tells the images apart.
    fn views(step: usize) -> Vec<f32> {
        let pixel = |view: usize, image: usize, i: usize| {
            let stripe = (i / 3 % SIDE_PX / (image + 1)) % 2;
            let noise = ((i * 7919 + view * 104_729 + step * 1_299_709) % 1009) as f32 / 1009.0;
            stripe as f32 + 0.3 * noise
        };
        let len = SIDE_PX * SIDE_PX * 3;
        (0..2 * N_IMAGES)
            .flat_map(|row| (0..len).map(move |i| pixel(row / N_IMAGES, row % N_IMAGES, i)))
            .collect()
    }

    #[test]
    fn the_loss_falls_on_stripes() {
        let mut trainer = trainer();
        let ids: Vec<u64> = (0..N_IMAGES as u64).collect();
        let losses: Vec<f32> =
            (0..20).map(|step| trainer.step(views(step), &ids).unwrap().loss).collect();
        assert!(losses[19] < 0.5 * losses[0], "{losses:?}");
    }

    #[test]
    fn a_restored_trainer_takes_the_same_steps() {
        let ids: Vec<u64> = (0..N_IMAGES as u64).collect();
        let mut straight = trainer();
        for step in 0..3 {
            straight.step(views(step), &ids).unwrap();
        }
        let mut resumed = trainer();
        resumed.restore(&straight.to_arrays().unwrap(), straight.progress()).unwrap();
        for step in 3..5 {
            straight.step(views(step), &ids).unwrap();
            resumed.step(views(step), &ids).unwrap();
        }
        assert_eq!(straight.to_arrays().unwrap(), resumed.to_arrays().unwrap());
        assert_eq!(straight.progress().steps, resumed.progress().steps);
    }
}
