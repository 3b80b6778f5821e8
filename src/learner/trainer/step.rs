//! A step in two halves: the loss of a batch, and the move down it, which may be left out.

use super::Trainer;
use crate::learner::alignment::Alignment;
use crate::learner::backbone::{self, Shadow};
use crate::objective::parts::negatives::NegativeWeights;
use crate::objective::{self, Elapsed, SeenBy};
use candle_core::{Result, Tensor};
use std::time::{Duration, Instant};

/// What a step did.
#[derive(Clone, Copy, Debug)]
pub struct StepReport {
    /// The loss before it.
    pub loss: f32,
    /// The learning rate it was taken with.
    pub rate: f64,
    /// How long it took.
    pub took: Duration,
    /// Whether the weights moved.
    pub is_taken: bool,
}

/// A batch whose loss is known, and no step taken.
pub struct Look<'a> {
    loss: f32,
    /// What the step goes down: the loss with the distance to the past.
    aligned: Tensor,
    leaves: Vec<Tensor>,
    batch: Seen<'a>,
    /// Momentum of the objective's moving average of the encoder.
    momentum: Option<f64>,
    elapsed: Elapsed,
    to_measure: Option<(Vec<f32>, usize)>,
    took: Duration,
}

impl Look<'_> {
    /// The loss of the weights as they are.
    pub fn loss(&self) -> f32 {
        self.loss
    }
}

/// What an objective is shown, kept until the step.
struct Seen<'a> {
    features: Vec<Tensor>,
    targets: Vec<Tensor>,
    n_images: usize,
    ids: &'a [u64],
    negatives: Option<&'a NegativeWeights>,
}

impl Seen<'_> {
    fn as_batch(&self) -> objective::Batch<'_> {
        let Self { features, targets, n_images, ids, negatives } = self;
        objective::Batch { features, targets, n_images: *n_images, ids, negatives: *negatives }
    }
}

impl Trainer {
    /// The loss of a batch, before any step down it: of `views`, flat `[V * N, H, W, C]`, of the images
    /// that `ids` name: those of [`Trainer::view_groups`], group after group; `negatives` are their
    /// weights for each other.
    ///
    /// # Errors
    /// Views of another length, or whatever the device reports.
    pub fn look<'a>(
        &mut self,
        views: Vec<f32>,
        ids: &'a [u64],
        negatives: Option<&'a NegativeWeights>,
    ) -> Result<Look<'a>> {
        let began = Instant::now();
        let n_images = ids.len();
        self.views.check(&views, n_images)?;
        let elapsed =
            Elapsed { steps: self.progress.steps, share: self.schedule.done(self.progress) };
        let target = self.objective.target(elapsed);
        let targets = match &target {
            None => vec![],
            Some(target) => self.target_features(&views, n_images, target.norm_groups)?,
        };
        let passes = self.views.passes(SeenBy::encoder);
        let to_measure = self.batch_to_measure(&passes, &views, n_images);
        let past = self.past_features(&passes, &views, n_images)?;
        let leaves = self.forward(&passes, views, n_images)?;
        self.remember(&passes, &leaves)?;
        let features = self.views.split(&passes, &leaves, n_images)?;
        let batch = Seen { features, targets, n_images, ids, negatives };
        let tensor = self.objective.loss(&batch.as_batch())?;
        let aligned = self.aligned(&tensor, (&passes, &leaves), past.as_ref())?;
        let momentum = target.map(|target| target.momentum);
        let loss = tensor.to_scalar::<f32>()?;
        let took = began.elapsed();
        Ok(Look { loss, aligned, leaves, batch, momentum, elapsed, to_measure, took })
    }

    /// Takes the step down the loss that was looked at, at `rate_share` of the schedule's rate.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn take(&mut self, look: Look<'_>, rate_share: f64) -> Result<StepReport> {
        let began = Instant::now();
        let rate = rate_share * self.schedule.rate(self.progress);
        self.descend(&look.aligned, &look.leaves, rate)?;
        self.objective.after_step(&look.batch.as_batch(), look.elapsed)?;
        if let Some(momentum) = look.momentum {
            self.encoder.follow(Shadow::Target, momentum)?;
        }
        if let Some(served) = &mut self.served {
            served.follow(&mut *self.encoder, look.to_measure)?;
        }
        let took = look.took + began.elapsed();
        self.count_step(took)?;
        Ok(StepReport { loss: look.loss, rate, took, is_taken: true })
    }

    /// Leaves the step down the loss that was looked at out: it counts, and nothing moves.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn leave(&mut self, look: Look<'_>) -> Result<StepReport> {
        self.count_step(look.took)?;
        Ok(StepReport { loss: look.loss, rate: 0.0, took: look.took, is_taken: false })
    }

    /// Counts a step. Whether it was taken or not, the encoder becomes the past when its time has come: the next
    /// time would leave the one before it in its place for as long again.
    fn count_step(&mut self, took: Duration) -> Result<()> {
        self.progress.steps += 1;
        self.progress.trained += took;
        match &self.alignment {
            Some(alignment) if alignment.is_refreshed(self.progress.steps) => {
                self.encoder.follow(Shadow::Past, 0.0)
            }
            _ => Ok(()),
        }
    }

    /// Moves the heads and the encoder down the `loss`, whose graph ends at `leaves`.
    fn descend(&mut self, loss: &Tensor, leaves: &[Tensor], rate: f64) -> Result<()> {
        let gradients = loss.backward()?;
        let of_features = leaves.iter().map(|leaf| match gradients.get(leaf) {
            Some(gradient) => Ok(gradient.clone()),
            None => candle_core::bail!("the objective's gradient does not reach the features"),
        });
        let of_features = of_features.collect::<Result<Vec<_>>>()?;
        self.encoder.backward(&of_features)?;
        let mut heads = vec![self.objective.heads()];
        heads.extend(self.alignment.iter().map(Alignment::predictor));
        let heads = (&heads[..], gradients);
        backbone::step_together(&mut *self.encoder, &mut self.optimizer, heads, rate)
    }
}
