//! Candle tensors and autograd, on any device.

use super::{Backbone, ENCODER, ENCODER_STREAM, RUNNING_SHARE, Shadow, Spec};
use crate::encoder::{NamedArrays, Params, Plan, RunningMoments};
use crate::learner::optimizer::{self, Optimizer};
use crate::ops::candle::Moments;
use crate::ops::candle::interpreter::{Trained, forward_train};
use crate::ops::update;
use candle_core::backprop::GradStore;
use candle_core::{Device, Result, Tensor, bail};

pub(super) struct Tensors {
    plan: Plan,
    params: Params,
    optimizer: Optimizer,
    device: Device,
    /// Passes that wait for their gradients, with the side of their views.
    waiting: Vec<(usize, Trained)>,
    /// The gradient that waits for a step, and the moments of the views of the largest side.
    pulled: Option<(GradStore, Vec<Moments>)>,
    /// Running moments are the served one's alone: others stay as they began.
    shadows: Vec<(Shadow, Params)>,
}

impl Tensors {
    pub(super) fn new(spec: &Spec<'_>, device: &Device) -> Result<Self> {
        let Spec { plan, optimizer, shadows, seed, init, .. } = *spec;
        let seed = [seed, ENCODER_STREAM];
        let mut params = Params::init(&plan.weights, &plan.moments, seed, device)?;
        if let Some(init) = init {
            params.load_arrays("", init)?;
        }
        let optimizer = Optimizer::new(optimizer, &[(ENCODER, &params)])?;
        let shadow = |shadow: &Shadow| Ok((*shadow, params.duplicate()?));
        let shadows = shadows.iter().map(shadow).collect::<Result<_>>()?;
        let (plan, device) = (plan.clone(), device.clone());
        Ok(Self { plan, params, optimizer, device, waiting: vec![], pulled: None, shadows })
    }

    fn shadow(&self, shadow: Shadow) -> Option<&Params> {
        self.shadows.iter().find(|(kind, _)| *kind == shadow).map(|(_, params)| params)
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

    fn forward_shadow(
        &mut self,
        shadow: Shadow,
        views: Vec<f32>,
        side_px: usize,
    ) -> Result<Tensor> {
        let views = self.images(views, side_px)?;
        let params = kept(&mut self.shadows, shadow)?;
        Ok(forward_train(&self.plan, params, &views)?.features.detach()) // [N, D]
    }

    fn backward(&mut self, gradients: &[Tensor]) -> Result<()> {
        let waiting = std::mem::take(&mut self.waiting);
        self.pulled = None;
        if waiting.is_empty() || waiting.len() != gradients.len() {
            bail!("a step over {} passes was given {} gradients", waiting.len(), gradients.len())
        }
        let passes = waiting.iter().zip(gradients);
        let pulled =
            passes.map(|((_, pass), gradient)| pass.features.mul(&gradient.detach())?.sum_all());
        let pulled = Tensor::stack(&pulled.collect::<Result<Vec<_>>>()?, 0)?.sum_all()?;
        let gradients = pulled.backward()?;
        let largest = waiting.into_iter().max_by_key(|(side_px, _)| *side_px);
        self.pulled = largest.map(|(_, pass)| (gradients, pass.moments));
        Ok(())
    }

    fn squared_norm(&self) -> Result<f64> {
        match &self.pulled {
            Some((gradients, _)) => optimizer::squared_norm(&self.params, gradients),
            None => bail!("no gradient waits for a step"),
        }
    }

    fn step(&mut self, rate: f64, gradient_scale: f64) -> Result<()> {
        let Some((mut gradients, moments)) = self.pulled.take() else {
            bail!("no gradient waits for a step")
        };
        if gradient_scale != 1.0 {
            optimizer::scale(&self.params, &mut gradients, gradient_scale)?;
        }
        self.optimizer.step(&[(&self.params, &gradients)], rate)?;
        absorb(&mut self.params, &moments, RUNNING_SHARE)
    }

    fn follow(&mut self, shadow: Shadow, momentum: f64) -> Result<()> {
        let params = kept(&mut self.shadows, shadow)?;
        update::average_tensors(momentum, &params.weights, &self.params.weights)
    }

    fn measure(&mut self, views: Vec<f32>, side_px: usize, share: f64) -> Result<()> {
        if !self.waiting.is_empty() {
            bail!("a pass of the encoder waits for its step")
        }
        let views = self.images(views, side_px)?;
        let params = kept(&mut self.shadows, Shadow::Served)?;
        let moments = forward_train(&self.plan, params, &views)?.moments;
        absorb(params, &moments, share)
    }

    fn served(&self) -> Result<NamedArrays> {
        self.shadow(Shadow::Served).unwrap_or(&self.params).to_arrays("")
    }

    fn to_arrays(&self) -> Result<NamedArrays> {
        let mut arrays = self.params.to_arrays(ENCODER)?;
        arrays.extend(self.optimizer.to_arrays()?);
        for (shadow, params) in &self.shadows {
            arrays.extend(match shadow {
                Shadow::Served => params.to_arrays(shadow.prefix())?,
                Shadow::Target | Shadow::Past => {
                    without_moments(params).to_arrays(shadow.prefix())?
                }
            });
        }
        Ok(arrays)
    }

    fn load_arrays(&mut self, arrays: &NamedArrays) -> Result<()> {
        self.params.load_arrays(ENCODER, arrays)?;
        for (shadow, params) in &mut self.shadows {
            if shadow.may_begin_late() && shadow.is_lacking(arrays) {
                *params = self.params.duplicate()?;
                continue;
            }
            match shadow {
                Shadow::Served => params.load_arrays(shadow.prefix(), arrays)?,
                // The same variables: what is loaded into them is the shadow's.
                Shadow::Target | Shadow::Past => {
                    without_moments(params).load_arrays(shadow.prefix(), arrays)?
                }
            }
        }
        self.optimizer.load_arrays(arrays)
    }
}

/// The numbers of `shadow` among `shadows`.
fn kept(shadows: &mut [(Shadow, Params)], shadow: Shadow) -> Result<&mut Params> {
    match shadows.iter_mut().find(|(kind, _)| *kind == shadow) {
        Some((_, params)) => Ok(params),
        None => bail!("no {shadow:?} of the encoder is kept"),
    }
}

/// The weights of `params` alone.
fn without_moments(params: &Params) -> Params {
    Params { moments_specs: vec![], moments: vec![], ..params.clone() }
}

/// Moves the running moments of `params` by `share` towards a batch's.
fn absorb(params: &mut Params, moments: &[Moments], share: f64) -> Result<()> {
    let blend = |running: &Tensor, batch: &Tensor| -> Result<Tensor> {
        Ok(((running * (1.0 - share))? + (batch * share)?)?.detach())
    };
    for (running, batch) in params.moments.iter_mut().zip(moments) {
        let unbiased = batch.count as f64 / (batch.count.max(2) - 1) as f64;
        *running = RunningMoments {
            mean: blend(&running.mean, &batch.mean)?,
            variance: blend(&running.variance, &(&batch.variance * unbiased)?)?,
        };
    }
    Ok(())
}
