//! Host memory and the native kernels.

use super::{Backbone, ENCODER, ENCODER_STREAM, RUNNING_SHARE, Shadow, Spec};
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
    /// Sides of the passes that wait for their gradients.
    waiting: Vec<usize>,
    /// The largest side of those whose gradient waits for a step.
    pulled: Option<usize>,
    /// Running moments are the served one's alone: others stay as they began.
    shadows: Vec<(Shadow, HostParams)>,
    /// For passes of shadows, which no gradient follows.
    shadow_tapes: Tapes,
}

/// A tape for each side of views, laid out by the first batch of it.
struct Tapes {
    precision: Precision,
    tapes: Vec<(usize, Tape)>,
}

impl Host {
    pub(super) fn new(spec: &Spec<'_>) -> Result<Self> {
        let mut params = HostParams::init(spec.plan, [spec.seed, ENCODER_STREAM])?;
        if let Some(init) = spec.init {
            params.load_arrays("", init)?;
        }
        let shadows = spec.shadows.iter().map(|shadow| (*shadow, params.clone())).collect();
        let tapes = || Tapes { precision: spec.precision, tapes: vec![] };
        Ok(Self {
            plan: spec.plan.clone(),
            optimizer: HostOptimizer::new(spec.optimizer, &params),
            gradient: vec![0.0; params.values.len()],
            further: vec![],
            params,
            tapes: tapes(),
            waiting: vec![],
            pulled: None,
            shadows,
            shadow_tapes: tapes(),
        })
    }

    fn shadow(&self, shadow: Shadow) -> Option<&HostParams> {
        self.shadows.iter().find(|(kind, _)| *kind == shadow).map(|(_, params)| params)
    }
}

/// The numbers of `shadow` among `shadows`.
fn kept(shadows: &mut [(Shadow, HostParams)], shadow: Shadow) -> Result<&mut HostParams> {
    match shadows.iter_mut().find(|(kind, _)| *kind == shadow) {
        Some((_, params)) => Ok(params),
        None => bail!("no {shadow:?} of the encoder is kept"),
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

    fn forward_shadow(
        &mut self,
        shadow: Shadow,
        views: Vec<f32>,
        side_px: usize,
    ) -> Result<Tensor> {
        let params = kept(&mut self.shadows, shadow)?;
        self.shadow_tapes.run((&self.plan, side_px), params, views)
    }

    fn backward(&mut self, gradients: &[Tensor]) -> Result<()> {
        let waiting = std::mem::take(&mut self.waiting);
        self.pulled = None;
        if waiting.is_empty() || waiting.len() != gradients.len() {
            bail!("a step over {} passes was given {} gradients", waiting.len(), gradients.len())
        }
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
        self.pulled = waiting.into_iter().max();
        Ok(())
    }

    fn squared_norm(&self) -> Result<f64> {
        if self.pulled.is_none() {
            bail!("no gradient waits for a step")
        }
        Ok(update::sum_of_squares(&self.gradient))
    }

    fn step(&mut self, rate: f64, gradient_scale: f64) -> Result<()> {
        let Some(largest) = self.pulled.take() else { bail!("no gradient waits for a step") };
        if gradient_scale != 1.0 {
            update::scale(&mut self.gradient, gradient_scale as f32);
        }
        self.optimizer.step(&mut self.params, &self.gradient, rate)?;
        self.tapes.of(largest)?.absorb(&mut self.params, RUNNING_SHARE as f32);
        Ok(())
    }

    fn follow(&mut self, shadow: Shadow, momentum: f64) -> Result<()> {
        let params = kept(&mut self.shadows, shadow)?;
        update::average(momentum, &mut params.values, &self.params.values);
        Ok(())
    }

    fn measure(&mut self, views: Vec<f32>, side_px: usize, share: f64) -> Result<()> {
        if !self.waiting.is_empty() {
            bail!("a pass of the encoder waits for its step")
        }
        // On the encoder's own tape, which is free between two steps.
        let params = kept(&mut self.shadows, Shadow::Served)?;
        self.tapes.run((&self.plan, side_px), params, views)?;
        self.tapes.of(side_px)?.absorb(params, share as f32);
        Ok(())
    }

    fn served(&self) -> Result<NamedArrays> {
        Ok(self.shadow(Shadow::Served).unwrap_or(&self.params).to_arrays(""))
    }

    fn to_arrays(&self) -> Result<NamedArrays> {
        let mut arrays = self.params.to_arrays(ENCODER);
        arrays.extend(self.optimizer.to_arrays(ENCODER, &self.params));
        for (shadow, params) in &self.shadows {
            let HostParams { specs, ranges, values, .. } = params;
            arrays.extend(match shadow {
                Shadow::Served => params.to_arrays(shadow.prefix()),
                Shadow::Target | Shadow::Past => named(shadow.prefix(), "", specs, ranges, values),
            });
        }
        Ok(arrays)
    }

    fn load_arrays(&mut self, arrays: &NamedArrays) -> Result<()> {
        self.params.load_arrays(ENCODER, arrays)?;
        for (shadow, params) in &mut self.shadows {
            if shadow.may_begin_late() && shadow.is_lacking(arrays) {
                params.clone_from(&self.params);
                continue;
            }
            let HostParams { specs, ranges, values, .. } = params;
            match shadow {
                Shadow::Served => params.load_arrays(shadow.prefix(), arrays)?,
                Shadow::Target | Shadow::Past => {
                    load_named(shadow.prefix(), specs, ranges, arrays, values)?
                }
            }
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
