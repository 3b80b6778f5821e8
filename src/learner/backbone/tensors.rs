//! Candle tensors and autograd, on any device.

use super::{Backbone, ENCODER, ENCODER_STREAM, RUNNING_SHARE, Spec, TARGET};
use crate::encoder::{NamedArrays, Params, Plan, RunningMoments};
use crate::learner::optimizer::Optimizer;
use crate::objective::parts::target::Average;
use crate::ops::candle::interpreter::{Trained, forward_train};
use candle_core::{Device, Result, Tensor, bail};

pub(super) struct Tensors {
    plan: Plan,
    params: Params,
    optimizer: Optimizer,
    device: Device,
    /// Passes that wait for a step, with the side of their views.
    waiting: Vec<(usize, Trained)>,
    target: Option<Average>,
}

impl Tensors {
    pub(super) fn new(spec: &Spec<'_>, device: &Device) -> Result<Self> {
        let Spec { plan, optimizer, has_target, seed, .. } = *spec;
        let params = Params::init(&plan.weights, &plan.moments, [seed, ENCODER_STREAM], device)?;
        let optimizer = Optimizer::new(optimizer, &[(ENCODER, &params)])?;
        let average = || Average::of(&params, params.weights.len());
        let target = has_target.then(average).transpose()?;
        let (plan, device) = (plan.clone(), device.clone());
        Ok(Self { plan, params, optimizer, device, waiting: vec![], target })
    }

    /// Views as a tensor `[N, H, W, C]`.
    fn images(&self, views: Vec<f32>, side_px: usize) -> Result<Tensor> {
        let n_views = views.len() / (side_px * side_px * 3).max(1);
        Tensor::from_vec(views, (n_views, side_px, side_px, 3), &self.device)
    }
}

impl Backbone for Tensors {
    fn forward(&mut self, views: Vec<f32>, side_px: usize) -> Result<Tensor> {
        if self.waiting.iter().any(|(side, _)| *side == side_px) {
            self.waiting.clear();
        }
        let trained = forward_train(&self.plan, &self.params, &self.images(views, side_px)?)?;
        let features = trained.features.detach(); // [N, D]
        self.waiting.push((side_px, trained));
        Ok(features)
    }

    fn forward_target(&mut self, views: Vec<f32>, side_px: usize) -> Result<Tensor> {
        let views = self.images(views, side_px)?;
        let Some(target) = &self.target else { bail!("no moving average of the encoder is kept") };
        Ok(forward_train(&self.plan, target.params(), &views)?.features.detach()) // [N, D]
    }

    fn step(&mut self, gradients: &[Tensor], rate: f64) -> Result<()> {
        let waiting = std::mem::take(&mut self.waiting);
        if waiting.is_empty() || waiting.len() != gradients.len() {
            bail!("a step over {} passes was given {} gradients", waiting.len(), gradients.len())
        }
        let passes = waiting.iter().zip(gradients);
        let pulled =
            passes.map(|((_, pass), gradient)| pass.features.mul(&gradient.detach())?.sum_all());
        let pulled = Tensor::stack(&pulled.collect::<Result<Vec<_>>>()?, 0)?.sum_all()?;
        self.optimizer.step(&[(&self.params, &pulled.backward()?)], rate)?;
        let largest = waiting.iter().max_by_key(|(side_px, _)| *side_px);
        let moments = largest.into_iter().flat_map(|(_, pass)| &pass.moments);
        for (running, batch) in self.params.moments.iter_mut().zip(moments) {
            let unbiased = batch.count as f64 / (batch.count.max(2) - 1) as f64;
            *running = RunningMoments {
                mean: blend(&running.mean, &batch.mean)?,
                variance: blend(&running.variance, &(&batch.variance * unbiased)?)?,
            };
        }
        Ok(())
    }

    fn follow(&mut self, momentum: f64) -> Result<()> {
        let Some(target) = &mut self.target else {
            bail!("no moving average of the encoder is kept")
        };
        target.follow(&self.params, momentum)
    }

    fn encoder(&self) -> Result<NamedArrays> {
        self.params.to_arrays("")
    }

    fn to_arrays(&self) -> Result<NamedArrays> {
        let mut arrays = self.params.to_arrays(ENCODER)?;
        arrays.extend(self.optimizer.to_arrays()?);
        if let Some(target) = &self.target {
            arrays.extend(target.to_arrays(TARGET)?);
        }
        Ok(arrays)
    }

    fn load_arrays(&mut self, arrays: &NamedArrays) -> Result<()> {
        self.params.load_arrays(ENCODER, arrays)?;
        if let Some(target) = &mut self.target {
            target.load_arrays(TARGET, arrays)?;
        }
        self.optimizer.load_arrays(arrays)
    }
}

fn blend(running: &Tensor, batch: &Tensor) -> Result<Tensor> {
    Ok(((running * (1.0 - RUNNING_SHARE))? + (batch * RUNNING_SHARE)?)?.detach())
}
