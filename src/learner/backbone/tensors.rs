//! Candle tensors and autograd, on any device.

use super::{Backbone, ENCODER, ENCODER_STREAM, RUNNING_SHARE};
use crate::encoder::{NamedArrays, Params, Plan, RunningMoments};
use crate::learner::optimizer::{self, Optimizer};
use crate::ops::candle::interpreter::{Trained, forward_train};
use candle_core::{Device, Result, Tensor, bail};

pub(super) struct Tensors {
    plan: Plan,
    side_px: usize,
    params: Params,
    optimizer: Optimizer,
    device: Device,
    trained: Option<Trained>,
}

impl Tensors {
    pub(super) fn new(
        plan: &Plan,
        side_px: usize,
        optimizer: &optimizer::Config,
        seed: u64,
        device: &Device,
    ) -> Result<Self> {
        let params = Params::init(&plan.weights, &plan.moments, [seed, ENCODER_STREAM], device)?;
        let optimizer = Optimizer::new(optimizer, &[(ENCODER, &params)])?;
        let (plan, device) = (plan.clone(), device.clone());
        Ok(Self { plan, side_px, params, optimizer, device, trained: None })
    }
}

impl Backbone for Tensors {
    fn forward(&mut self, views: Vec<f32>) -> Result<Tensor> {
        let n_views = views.len() / (self.side_px * self.side_px * 3).max(1);
        let shape = (n_views, self.side_px, self.side_px, 3);
        let views = Tensor::from_vec(views, shape, &self.device)?; // [N, H, W, C]
        let trained = forward_train(&self.plan, &self.params, &views)?;
        let features = trained.features.detach(); // [N, D]
        self.trained = Some(trained);
        Ok(features)
    }

    fn step(&mut self, features: &Tensor, rate: f64) -> Result<()> {
        let Some(trained) = self.trained.take() else {
            bail!("a step needs a forward pass before it")
        };
        let pulled = trained.features.mul(&features.detach())?.sum_all()?;
        self.optimizer.step(&[(&self.params, &pulled.backward()?)], rate)?;
        for (running, batch) in self.params.moments.iter_mut().zip(&trained.moments) {
            let unbiased = batch.count as f64 / (batch.count.max(2) - 1) as f64;
            *running = RunningMoments {
                mean: blend(&running.mean, &batch.mean)?,
                variance: blend(&running.variance, &(&batch.variance * unbiased)?)?,
            };
        }
        Ok(())
    }

    fn encoder(&self) -> Result<NamedArrays> {
        self.params.to_arrays("")
    }

    fn to_arrays(&self) -> Result<NamedArrays> {
        let mut arrays = self.params.to_arrays(ENCODER)?;
        arrays.extend(self.optimizer.to_arrays()?);
        Ok(arrays)
    }

    fn load_arrays(&mut self, arrays: &NamedArrays) -> Result<()> {
        self.params.load_arrays(ENCODER, arrays)?;
        self.optimizer.load_arrays(arrays)
    }
}

fn blend(running: &Tensor, batch: &Tensor) -> Result<Tensor> {
    Ok(((running * (1.0 - RUNNING_SHARE))? + (batch * RUNNING_SHARE)?)?.detach())
}
