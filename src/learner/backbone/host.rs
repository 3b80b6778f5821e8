//! Host memory and the native kernels.

use super::{Backbone, ENCODER, ENCODER_STREAM, RUNNING_SHARE};
use crate::encoder::{HostParams, NamedArrays, Plan};
use crate::learner::optimizer::{self, HostOptimizer};
use crate::ops::native::Tape;
use candle_core::{Device, Result, Tensor, bail};

pub(super) struct Host {
    plan: Plan,
    side_px: usize,
    params: HostParams,
    optimizer: HostOptimizer,
    gradient: Vec<f32>,
    /// Laid out for the batches that come, by the first of them.
    tape: Option<Tape>,
}

impl Host {
    pub(super) fn new(
        plan: &Plan,
        side_px: usize,
        optimizer: &optimizer::Config,
        seed: u64,
    ) -> Result<Self> {
        let params = HostParams::init(plan, [seed, ENCODER_STREAM])?;
        Ok(Self {
            plan: plan.clone(),
            side_px,
            optimizer: HostOptimizer::new(optimizer, &params),
            gradient: vec![0.0; params.values.len()],
            params,
            tape: None,
        })
    }
}

impl Backbone for Host {
    fn forward(&mut self, views: Vec<f32>) -> Result<Tensor> {
        let n_views = views.len() / (self.side_px * self.side_px * 3).max(1);
        if self.tape.as_ref().is_none_or(|tape| tape.images() != n_views) {
            self.tape = Some(Tape::new(&self.plan, n_views, self.side_px)?);
        }
        let Some(tape) = &mut self.tape else { bail!("a tape was laid out above") };
        let features = tape.forward(&self.params, views)?;
        Tensor::from_slice(features, (n_views, self.plan.feature_dim), &Device::Cpu)
    }

    fn step(&mut self, features: &Tensor, rate: f64) -> Result<()> {
        let Some(tape) = &mut self.tape else { bail!("a step needs a forward pass before it") };
        let pull = features.flatten_all()?.to_vec1::<f32>()?;
        tape.backward(&self.params, &pull, &mut self.gradient)?;
        self.optimizer.step(&mut self.params, &self.gradient, rate)?;
        tape.absorb(&mut self.params, RUNNING_SHARE as f32);
        Ok(())
    }

    fn encoder(&self) -> Result<NamedArrays> {
        Ok(self.params.to_arrays(""))
    }

    fn to_arrays(&self) -> Result<NamedArrays> {
        let mut arrays = self.params.to_arrays(ENCODER);
        arrays.extend(self.optimizer.to_arrays(ENCODER, &self.params));
        Ok(arrays)
    }

    fn load_arrays(&mut self, arrays: &NamedArrays) -> Result<()> {
        self.params.load_arrays(ENCODER, arrays)?;
        self.optimizer.load_arrays(ENCODER, &self.params, arrays)
    }
}
