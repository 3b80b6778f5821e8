//! Host memory and the native kernels.

use super::{Backbone, ENCODER, ENCODER_STREAM, RUNNING_SHARE, Spec, TARGET};
use crate::encoder::{HostParams, NamedArrays, Plan, load_named, named};
use crate::learner::optimizer::HostOptimizer;
use crate::ops::native::{Precision, Tape};
use crate::ops::update;
use candle_core::{Device, Result, Tensor, bail};

pub(super) struct Host {
    plan: Plan,
    params: HostParams,
    optimizer: HostOptimizer,
    gradient: Vec<f32>,
    /// The gradient of a pass after the first.
    further: Vec<f32>,
    tapes: Tapes,
    /// Sides of the passes that wait for a step.
    waiting: Vec<usize>,
    target: Option<Target>,
}

/// A tape for each side of views, laid out by the first batch of it.
struct Tapes {
    precision: Precision,
    tapes: Vec<(usize, Tape)>,
}

/// The moving average.
struct Target {
    /// Its running moments stay as they began: it is only ever run by the batch's own.
    params: HostParams,
    tapes: Tapes,
}

impl Host {
    pub(super) fn new(spec: &Spec<'_>) -> Result<Self> {
        let params = HostParams::init(spec.plan, [spec.seed, ENCODER_STREAM])?;
        let tapes = || Tapes { precision: spec.precision, tapes: vec![] };
        let target = spec.has_target.then(|| Target { params: params.clone(), tapes: tapes() });
        Ok(Self {
            plan: spec.plan.clone(),
            optimizer: HostOptimizer::new(spec.optimizer, &params),
            gradient: vec![0.0; params.values.len()],
            further: vec![],
            params,
            tapes: tapes(),
            waiting: vec![],
            target,
        })
    }
}

impl Backbone for Host {
    fn forward(&mut self, views: Vec<f32>, side_px: usize) -> Result<Tensor> {
        if self.waiting.contains(&side_px) {
            self.waiting.clear();
        }
        let features = self.tapes.run((&self.plan, side_px), &self.params, views)?;
        self.waiting.push(side_px);
        Ok(features)
    }

    fn forward_target(&mut self, views: Vec<f32>, side_px: usize) -> Result<Tensor> {
        let Some(Target { params, tapes }) = &mut self.target else {
            bail!("no moving average of the encoder is kept")
        };
        tapes.run((&self.plan, side_px), params, views)
    }

    fn step(&mut self, gradients: &[Tensor], rate: f64) -> Result<()> {
        let waiting = std::mem::take(&mut self.waiting);
        let largest = waiting.iter().copied().max();
        let Some(largest) = largest.filter(|_| waiting.len() == gradients.len()) else {
            bail!("a step over {} passes was given {} gradients", waiting.len(), gradients.len())
        };
        for (index, (side_px, gradient)) in waiting.iter().zip(gradients).enumerate() {
            let pull = gradient.flatten_all()?.to_vec1::<f32>()?;
            let tape = self.tapes.of(*side_px)?;
            if index == 0 {
                tape.backward(&self.params, &pull, &mut self.gradient)?;
            } else {
                self.further.resize(self.gradient.len(), 0.0);
                tape.backward(&self.params, &pull, &mut self.further)?;
                update::add(&mut self.gradient, &self.further);
            }
        }
        self.optimizer.step(&mut self.params, &self.gradient, rate)?;
        self.tapes.of(largest)?.absorb(&mut self.params, RUNNING_SHARE as f32);
        Ok(())
    }

    fn follow(&mut self, momentum: f64) -> Result<()> {
        let Some(target) = &mut self.target else {
            bail!("no moving average of the encoder is kept")
        };
        update::average(momentum, &mut target.params.values, &self.params.values);
        Ok(())
    }

    fn encoder(&self) -> Result<NamedArrays> {
        Ok(self.params.to_arrays(""))
    }

    fn to_arrays(&self) -> Result<NamedArrays> {
        let mut arrays = self.params.to_arrays(ENCODER);
        arrays.extend(self.optimizer.to_arrays(ENCODER, &self.params));
        if let Some(Target { params, .. }) = &self.target {
            arrays.extend(named(TARGET, "", &params.specs, &params.ranges, &params.values));
        }
        Ok(arrays)
    }

    fn load_arrays(&mut self, arrays: &NamedArrays) -> Result<()> {
        self.params.load_arrays(ENCODER, arrays)?;
        if let Some(Target { params, .. }) = &mut self.target {
            load_named(TARGET, &params.specs, &params.ranges, arrays, &mut params.values)?;
        }
        self.optimizer.load_arrays(ENCODER, &self.params, arrays)
    }
}

impl Tapes {
    /// The tape that was laid out for views of `side_px`.
    fn of(&mut self, side_px: usize) -> Result<&mut Tape> {
        match self.tapes.iter_mut().find(|(side, _)| *side == side_px) {
            Some((_, tape)) => Ok(tape),
            None => bail!("no views of {side_px} px have been seen"),
        }
    }

    /// The features `[N, D]` of `views`; lays a tape out where there is none for as many.
    fn run(
        &mut self,
        (plan, side_px): (&Plan, usize),
        params: &HostParams,
        views: Vec<f32>,
    ) -> Result<Tensor> {
        let n_views = views.len() / (side_px * side_px * 3).max(1);
        if self.of(side_px).map_or(true, |tape| tape.images() != n_views) {
            self.tapes.retain(|(side, _)| *side != side_px);
            let tape = Tape::storing(self.precision, plan, n_views, side_px)?;
            self.tapes.push((side_px, tape));
        }
        let features = self.of(side_px)?.forward(params, views)?;
        Tensor::from_slice(features, (n_views, plan.feature_dim), &Device::Cpu)
    }
}
