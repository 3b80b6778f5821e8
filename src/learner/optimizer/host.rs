//! Optimisers on host memory: one pass over weights, gradients and state.

use super::{Config, get_steps, put_steps, state_name};
use crate::encoder::{HostParams, NamedArrays, load_named, named};
use crate::ops::update::{self, AdamW, Sgd};
use candle_core::{Result, bail};

/// An optimiser of [`HostParams`], its running state as contiguous as they are.
pub struct HostOptimizer {
    config: Config,
    steps: u64,
    state: Vec<Vec<f32>>,
}

impl HostOptimizer {
    /// A fresh optimiser for `params`.
    pub fn new(config: &Config, params: &HostParams) -> Self {
        let zeros = |_: &&str| vec![0.0; params.values.len()];
        let state = config.state_names().iter().map(zeros).collect();
        Self { config: config.clone(), steps: 0, state }
    }

    /// Moves the weights one step along `gradient`, which is in their order.
    ///
    /// # Errors
    /// Other weights than the optimiser was made for.
    pub fn step(&mut self, params: &mut HostParams, gradient: &[f32], rate: f64) -> Result<()> {
        let length = params.values.len();
        if gradient.len() != length || self.state.iter().any(|state| state.len() != length) {
            bail!("an optimizer for other weights, or gradients of others")
        }
        self.steps += 1;
        let (steps, rate) = (self.steps as f64, rate as f32);
        for (spec, range) in params.specs.iter().zip(&params.ranges) {
            let weights = &mut params.values[range.clone()];
            let gradient = &gradient[range.clone()];
            let decay = |weight_decay: f64| if spec.decay { weight_decay as f32 } else { 0.0 };
            match (&self.config, &mut self.state[..]) {
                (Config::Sgd { momentum, weight_decay, .. }, [velocity]) => {
                    let (momentum, decay) = (*momentum as f32, decay(*weight_decay));
                    let rule = Sgd { rate, momentum, decay, trust: 1.0 };
                    update::sgd(rule, weights, &mut velocity[range.clone()], gradient);
                }
                (Config::Lars { momentum, weight_decay, trust, .. }, [velocity]) => {
                    let (momentum, decay) = (*momentum as f32, decay(*weight_decay));
                    let velocity = &mut velocity[range.clone()];
                    if spec.adapt {
                        let rule = Sgd { rate, momentum, decay, trust: *trust as f32 };
                        update::lars(rule, weights, velocity, gradient);
                    } else {
                        let rule = Sgd { rate, momentum, decay, trust: 1.0 };
                        update::sgd(rule, weights, velocity, gradient);
                    }
                }
                (Config::AdamW { beta1, beta2, epsilon, weight_decay, .. }, [mean, square]) => {
                    let rule = AdamW {
                        rate,
                        beta1: *beta1 as f32,
                        beta2: *beta2 as f32,
                        epsilon: *epsilon as f32,
                        decay: decay(*weight_decay),
                        mean_scale: (1.0 / (1.0 - beta1.powf(steps))) as f32,
                        square_scale: (1.0 / (1.0 - beta2.powf(steps))) as f32,
                    };
                    let state = [&mut mean[range.clone()], &mut square[range.clone()]];
                    update::adamw(rule, weights, state, gradient);
                }
                (_, state) => bail!("an optimizer state of {} arrays", state.len()),
            }
        }
        Ok(())
    }

    /// Its running state, by the weights' names behind `prefix`.
    pub fn to_arrays(&self, prefix: &str, params: &HostParams) -> NamedArrays {
        let mut arrays = NamedArrays::new();
        for (what, state) in self.config.state_names().iter().zip(&self.state) {
            let prefix = state_name(what, prefix);
            arrays.extend(named(&prefix, "", &params.specs, &params.ranges, state));
        }
        put_steps(self.steps, &mut arrays);
        arrays
    }

    /// Takes its running state from `arrays`.
    ///
    /// # Errors
    /// A name that is missing, as after a change of optimiser.
    pub fn load_arrays(
        &mut self,
        prefix: &str,
        params: &HostParams,
        arrays: &NamedArrays,
    ) -> Result<()> {
        for (what, state) in self.config.state_names().iter().zip(&mut self.state) {
            let prefix = state_name(what, prefix);
            load_named(&prefix, &params.specs, &params.ranges, arrays, state)?;
        }
        self.steps = get_steps(arrays)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Optimizer;
    use super::*;
    use crate::encoder::{Geometry, Params, Plan};
    use candle_core::{Device, Tensor};

    /// One convolution and its norm: weights with decay and without.
    fn plan() -> Plan {
        let mut plan = Plan::new("toy");
        let geometry = Geometry { kernel: 3, stride: 1, padding: 1 };
        let images = plan.images();
        let convolved = plan.convolution("stem", images, [3, 17], geometry);
        let normed = plan.batch_norm("stem.norm", convolved, 17, None, true);
        plan.global_average_pool(normed, 17);
        plan
    }

    /// Host and tensors take the same steps, and their checkpoints are exchangeable.
    #[test]
    fn it_steps_as_the_optimizer_on_tensors_does() {
        let plan = plan();
        for config in [
            Config::default(),
            Config::AdamW {
                beta1: 0.9,
                beta2: 0.999,
                epsilon: 1e-8,
                weight_decay: 0.1,
                max_gradient_norm: None,
            },
            Config::Lars { momentum: 0.9, weight_decay: 0.1, trust: 0.02, max_gradient_norm: None },
        ] {
            let mut host = HostParams::init(&plan, [1, 0]).unwrap();
            let tensors = Params::init(&plan.weights, &plan.moments, [1, 0], &Device::Cpu).unwrap();
            let mut on_host = HostOptimizer::new(&config, &host);
            let mut on_tensors = Optimizer::new(&config, &[("encoder.", &tensors)]).unwrap();
            for step in 0..4 {
                let gradient: Vec<f32> = (0..host.values.len())
                    .map(|i| ((i * 7919 + step * 31) % 101) as f32 / 50.0 - 1.0)
                    .collect();
                // The gradient of sum(w g) is g.
                let mut loss = Tensor::zeros((), candle_core::DType::F32, &Device::Cpu).unwrap();
                for (weight, range) in tensors.weights.iter().zip(&host.ranges) {
                    let shape = weight.shape();
                    let g = Tensor::from_slice(&gradient[range.clone()], shape, &Device::Cpu);
                    let part = weight.mul(&g.unwrap()).unwrap().sum_all().unwrap();
                    loss = (loss + part).unwrap();
                }
                let gradients = loss.backward().unwrap();
                on_tensors.step(&[(&tensors, &gradients)], 0.05).unwrap();
                on_host.step(&mut host, &gradient, 0.05).unwrap();
            }
            let close = |a: &NamedArrays, b: &NamedArrays| {
                assert!(a.keys().eq(b.keys()), "{config:?}");
                for (name, a) in a {
                    for (a, b) in a.values.iter().zip(&b[name].values) {
                        assert!((a - b).abs() <= 1e-5 * b.abs().max(1.0), "{name}: {a}, {b}");
                    }
                }
            };
            close(&host.to_arrays(""), &tensors.to_arrays("").unwrap());
            let state = on_host.to_arrays("encoder.", &host);
            close(&state, &on_tensors.to_arrays().unwrap());

            let mut resumed = HostOptimizer::new(&config, &host);
            resumed.load_arrays("encoder.", &host, &on_tensors.to_arrays().unwrap()).unwrap();
            close(&resumed.to_arrays("encoder.", &host), &state);
        }
    }

    #[test]
    fn gradients_of_other_weights_are_refused() {
        let mut params = HostParams::zeros(&plan());
        let mut optimizer = HostOptimizer::new(&Config::default(), &params);
        assert!(optimizer.step(&mut params, &[0.0; 3], 0.1).is_err());
    }
}
