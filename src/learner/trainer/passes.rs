//! Who sees which views in a step: the encoder, its target, its past, its served average.

use super::Trainer;
use crate::learner::backbone::Shadow;
use crate::learner::target::TargetPass;
use crate::learner::views::Pass;
use crate::objective::SeenBy;
use crate::objective::parts::rows::normalise;
use candle_core::{Result, Tensor, Var};

impl Trainer {
    /// What the target makes of the views that it sees, a tensor for each group.
    pub(super) fn target_features(
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

    /// The features `[V * N, D]` of each pass, as leaves: the objective's graph ends there, since
    /// the encoder has a backward of its own.
    pub(super) fn forward(
        &mut self,
        passes: &[Pass],
        mut views: Vec<f32>,
        n_images: usize,
    ) -> Result<Vec<Tensor>> {
        let mut leaves = vec![];
        for pass in passes {
            let seen = self.views.take(&mut views, pass, n_images);
            let features = self.encoder.forward(seen, pass.side_px)?; // [V * N, D]
            leaves.push(Var::from_tensor(&features)?.into_inner());
        }
        Ok(leaves)
    }

    pub(super) fn remember(&mut self, passes: &[Pass], leaves: &[Tensor]) -> Result<()> {
        let largest = passes.iter().zip(leaves).max_by_key(|(pass, _)| pass.side_px);
        if let Some((_, leaf)) = largest {
            let views = normalise(&leaf.detach())?; // [V * N, D]
            self.features = views.flatten_all()?.to_vec1()?;
        }
        Ok(())
    }

    /// What the past made of the views of the largest side, `[V * N, D]`, where there is a past.
    pub(super) fn past_features(
        &mut self,
        passes: &[Pass],
        views: &[f32],
        n_images: usize,
    ) -> Result<Option<Tensor>> {
        let steps = self.progress.steps;
        let has_past = self.alignment.as_ref().is_some_and(|a| a.has_past(steps));
        let largest = passes.iter().max_by_key(|pass| pass.side_px);
        let Some(pass) = largest.filter(|_| has_past) else { return Ok(None) };
        let seen = self.views.take(&mut views.to_vec(), pass, n_images);
        self.encoder.forward_shadow(Shadow::Past, seen, pass.side_px).map(Some)
    }

    /// The `loss` with the distance to the past, where that is to be kept small.
    pub(super) fn aligned(
        &self,
        loss: &Tensor,
        (passes, leaves): (&[Pass], &[Tensor]),
        past: Option<&Tensor>,
    ) -> Result<Tensor> {
        let largest = passes.iter().zip(leaves).max_by_key(|(pass, _)| pass.side_px);
        match (&self.alignment, largest) {
            (Some(alignment), Some((_, leaf))) => loss + alignment.loss(leaf, past)?,
            _ => Ok(loss.clone()),
        }
    }

    /// The views of the largest side, where the served average is to be measured on them.
    pub(super) fn batch_to_measure(
        &self,
        passes: &[Pass],
        views: &[f32],
        n_images: usize,
    ) -> Option<(Vec<f32>, usize)> {
        self.served.as_ref().filter(|served| served.wants_batch())?;
        let largest = passes.iter().max_by_key(|pass| pass.side_px)?;
        Some((self.views.take(&mut views.to_vec(), largest, n_images), largest.side_px))
    }
}
