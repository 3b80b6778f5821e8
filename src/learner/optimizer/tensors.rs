//! Optimisers on candle tensors, for heads and for other devices.

use super::{Config, get_steps, put_steps, state_name};
use crate::encoder::{Array, NamedArrays, Params, WeightSpec};
use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, Var, bail};

/// An optimiser with its running state, one entry a weight.
pub struct Optimizer {
    config: Config,
    steps: u64,
    names: Vec<String>,
    state: Vec<Vec<Tensor>>,
}

impl Optimizer {
    /// A fresh optimiser for the weights of all `groups`, in order.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn new(config: &Config, groups: &[(&str, &Params)]) -> Result<Self> {
        let mut names = vec![];
        let mut state = vec![];
        for (prefix, params) in groups {
            for (spec, weight) in params.specs.iter().zip(&params.weights) {
                names.push(format!("{prefix}{}", spec.name));
                let zeros = config.state_names().iter().map(|_| weight.zeros_like());
                state.push(zeros.collect::<Result<_>>()?);
            }
        }
        Ok(Self { config: config.clone(), steps: 0, names, state })
    }

    /// Moves the weights of all `groups` one step along their gradients.
    ///
    /// # Errors
    /// A weight without a gradient, by name; other weights than the optimiser was made for.
    pub fn step(&mut self, groups: &[(&Params, &GradStore)], rate: f64) -> Result<()> {
        self.steps += 1;
        let mut index = 0;
        for (params, gradients) in groups {
            for (spec, weight) in params.specs.iter().zip(&params.weights) {
                let (Some(name), Some(state)) = (self.names.get(index), self.state.get_mut(index))
                else {
                    bail!("the optimizer knows {} weights, not {}", self.names.len(), index + 1)
                };
                let Some(gradient) = gradients.get(weight) else {
                    bail!("weight {name} has no gradient")
                };
                update(&self.config, self.steps, (spec, weight), gradient, state, rate)?;
                index += 1;
            }
        }
        Ok(())
    }

    /// [`Config::gradient_scale`] of its configuration.
    ///
    /// # Errors
    /// What `squares` reports.
    pub fn gradient_scale(&self, squares: impl FnOnce() -> Result<f64>) -> Result<f64> {
        self.config.gradient_scale(squares)
    }

    /// Its running state, by name.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn to_arrays(&self) -> Result<NamedArrays> {
        let mut arrays = NamedArrays::new();
        for (name, state) in self.names.iter().zip(&self.state) {
            for (what, tensor) in self.config.state_names().iter().zip(state) {
                arrays.insert(state_name(what, name), Array::from_tensor(tensor)?);
            }
        }
        put_steps(self.steps, &mut arrays);
        Ok(arrays)
    }

    /// Takes its running state from `arrays`.
    ///
    /// # Errors
    /// A name that is missing, as after a change of optimiser.
    pub fn load_arrays(&mut self, arrays: &NamedArrays) -> Result<()> {
        for (name, state) in self.names.iter().zip(&mut self.state) {
            for (what, tensor) in self.config.state_names().iter().zip(state) {
                let key = state_name(what, name);
                let Some(array) = arrays.get(&key) else { bail!("array {key} is missing") };
                *tensor = array.to_tensor(tensor.device())?.reshape(tensor.shape())?;
            }
        }
        self.steps = get_steps(arrays)?;
        Ok(())
    }
}

fn update(
    config: &Config,
    steps: u64,
    (spec, weight): (&WeightSpec, &Var),
    gradient: &Tensor,
    state: &mut [Tensor],
    rate: f64,
) -> Result<()> {
    match (config.clone(), state) {
        (Config::Sgd { momentum, weight_decay, .. }, [velocity]) => {
            let mut direction = gradient.clone();
            if spec.decay && weight_decay > 0.0 {
                direction = (direction + (weight.as_tensor() * weight_decay)?)?;
            }
            // Detached, or the graph of every step would stay alive in the velocity.
            *velocity = ((&*velocity * momentum)? + direction)?.detach();
            weight.set(&(weight.as_tensor() - (&*velocity * rate)?)?)
        }
        (Config::Lars { momentum, weight_decay, trust, .. }, [velocity]) => {
            let decay = if spec.decay { weight_decay } else { 0.0 };
            let trust = if spec.adapt { trusted(trust, decay, weight, gradient)? } else { 1.0 };
            let direction = ((gradient + (weight.as_tensor() * decay)?)? * trust)?;
            *velocity = ((&*velocity * momentum)? + direction)?.detach();
            weight.set(&(weight.as_tensor() - (&*velocity * rate)?)?)
        }
        (Config::AdamW { beta1, beta2, epsilon, weight_decay, .. }, [mean, square]) => {
            *mean = ((&*mean * beta1)? + (gradient * (1.0 - beta1))?)?.detach();
            *square = ((&*square * beta2)? + (gradient.sqr()? * (1.0 - beta2))?)?.detach();
            let unbiased_mean = (&*mean / (1.0 - beta1.powf(steps as f64)))?;
            let unbiased_square = (&*square / (1.0 - beta2.powf(steps as f64)))?;
            let mut direction = (unbiased_mean / (unbiased_square.sqrt()? + epsilon)?)?;
            if spec.decay && weight_decay > 0.0 {
                direction = (direction + (weight.as_tensor() * weight_decay)?)?;
            }
            weight.set(&(weight.as_tensor() - (direction * rate)?)?)
        }
        (_, state) => bail!("an optimizer state of {} tensors", state.len()),
    }
}

/// LARS's share of a layer's step; 1 where its weights or their gradient are zero.
fn trusted(trust: f64, decay: f64, weight: &Tensor, gradient: &Tensor) -> Result<f64> {
    let norm = |tensor: &Tensor| -> Result<f64> {
        Ok(f64::from(tensor.sqr()?.sum_all()?.to_scalar::<f32>()?).sqrt())
    };
    let (weight, gradient) = (norm(weight)?, norm(gradient)?);
    let is_moving = weight > 0.0 && gradient > 0.0;
    Ok(if is_moving { trust * weight / (gradient + decay * weight) } else { 1.0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoder::Init;
    use candle_core::Device;

    fn params() -> Params {
        let spec = |name: &str, decay| WeightSpec {
            name: name.into(),
            shape: vec![1],
            init: Init::Ones,
            decay,
            adapt: decay,
        };
        Params::init(&[spec("w", true), spec("b", false)], &[], [0, 0], &Device::Cpu).unwrap()
    }

    /// The gradient of `3 w + 2 b` is (3, 2) wherever it stands.
    fn gradients(params: &Params) -> GradStore {
        let loss = (params.weights[0].as_tensor() * 3.0).unwrap()
            + (params.weights[1].as_tensor() * 2.0).unwrap();
        loss.unwrap().sum_all().unwrap().backward().unwrap()
    }

    fn values(params: &Params) -> [f64; 2] {
        [0, 1].map(|i| f64::from(params.weights[i].to_vec1::<f32>().unwrap()[0]))
    }

    #[test]
    fn sgd_follows_its_recurrence() {
        let params = params();
        let config = Config::Sgd { momentum: 0.9, weight_decay: 0.1, max_gradient_norm: None };
        let mut optimizer = Optimizer::new(&config, &[("", &params)]).unwrap();
        let (mut w, mut v, mut b, mut u) = (1.0, 0.0, 1.0, 0.0);
        for _ in 0..5 {
            optimizer.step(&[(&params, &gradients(&params))], 0.1).unwrap();
            v = 0.9 * v + 3.0 + 0.1 * w;
            w -= 0.1 * v;
            u = 0.9 * u + 2.0;
            b -= 0.1 * u;
        }
        let [got_w, got_b] = values(&params);
        assert!((got_w - w).abs() < 1e-5 && (got_b - b).abs() < 1e-5);
    }

    #[test]
    fn adamw_steps_by_the_rate_on_a_constant_gradient() {
        // Mean over root of square is 1 there, so each step is rate (1 + decay w).
        let params = params();
        let config = Config::AdamW {
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.1,
            max_gradient_norm: None,
        };
        let mut optimizer = Optimizer::new(&config, &[("", &params)]).unwrap();
        let (mut w, mut b) = (1.0, 1.0);
        for _ in 0..5 {
            optimizer.step(&[(&params, &gradients(&params))], 0.01).unwrap();
            w -= 0.01 * (1.0 + 0.1 * w);
            b -= 0.01;
        }
        let [got_w, got_b] = values(&params);
        assert!((got_w - w).abs() < 1e-5 && (got_b - b).abs() < 1e-5);
    }

    /// A weight and a bias of three numbers, the weight of length `weight_norm` and the bias (1, 1, 1).
    fn vectors(weight_norm: f64) -> Params {
        let spec = |name: &str, is_weight| WeightSpec {
            name: name.into(),
            shape: vec![3],
            init: Init::Ones,
            decay: is_weight,
            adapt: is_weight,
        };
        let specs = [spec("w", true), spec("b", false)];
        let params = Params::init(&specs, &[], [0, 0], &Device::Cpu).unwrap();
        let weight = WEIGHT.map(|value| (value * weight_norm) as f32);
        params.weights[0].set(&Tensor::new(&weight, &Device::Cpu).unwrap()).unwrap();
        params
    }

    /// Two directions of unit length.
    const WEIGHT: [f64; 3] = [2.0 / 3.0, -1.0 / 3.0, 2.0 / 3.0];
    const GRADIENT: [f64; 3] = [1.0 / 3.0, 2.0 / 3.0, 2.0 / 3.0];

    /// The gradient of the sum of `gradient_norm` times [`GRADIENT`] times both vectors.
    fn gradients_of(params: &Params, gradient_norm: f64) -> GradStore {
        let gradient = GRADIENT.map(|value| (value * gradient_norm) as f32);
        let gradient = Tensor::new(&gradient, &Device::Cpu).unwrap();
        let both = (params.weights[0].as_tensor() + params.weights[1].as_tensor()).unwrap();
        both.mul(&gradient).unwrap().sum_all().unwrap().backward().unwrap()
    }

    /// Without history and decay a weight moves along its gradient by rate times trust times its own
    /// length, however long the gradient is; a weight of zeros and what does not adapt, by the rate
    /// times the gradient.
    #[test]
    fn a_first_step_of_lars_is_in_proportion_to_the_weights_and_not_to_the_gradient() {
        let (rate, trust) = (0.5, 0.02);
        let config =
            Config::Lars { momentum: 0.9, weight_decay: 0.0, trust, max_gradient_norm: None };
        for (weight_norm, gradient_norm) in [(1.0, 3.0), (1.0, 300.0), (7.0, 3.0), (0.0, 3.0)] {
            let params = vectors(weight_norm);
            let mut optimizer = Optimizer::new(&config, &[("", &params)]).unwrap();
            optimizer.step(&[(&params, &gradients_of(&params, gradient_norm))], rate).unwrap();
            let free = rate * gradient_norm;
            let adapted = if weight_norm == 0.0 { free } else { rate * trust * weight_norm };
            let began = [WEIGHT.map(|value| value * weight_norm), [1.0; 3]];
            for (index, length) in [adapted, free].into_iter().enumerate() {
                let found = params.weights[index].to_vec1::<f32>().unwrap();
                for at in 0..3 {
                    let expected = began[index][at] - length * GRADIENT[at];
                    let error = (f64::from(found[at]) - expected).abs();
                    assert!(error < 1e-6 * length.max(1.0), "{weight_norm}, {gradient_norm}");
                }
            }
        }
    }

    #[test]
    fn lars_follows_its_recurrence() {
        let (rate, trust, momentum, decay) = (0.5, 0.02, 0.9, 0.1);
        let config = Config::Lars { momentum, weight_decay: decay, trust, max_gradient_norm: None };
        let params = vectors(7.0);
        let mut optimizer = Optimizer::new(&config, &[("", &params)]).unwrap();
        let (mut w, mut v) = (WEIGHT.map(|value| value * 7.0), [0.0; 3]);
        let (mut b, mut u) = ([1.0; 3], [0.0; 3]);
        for _ in 0..5 {
            optimizer.step(&[(&params, &gradients_of(&params, 3.0))], rate).unwrap();
            let norm = w.iter().map(|value| value * value).sum::<f64>().sqrt();
            let trusted = trust * norm / (3.0 + decay * norm);
            for at in 0..3 {
                let gradient = 3.0 * GRADIENT[at];
                v[at] = momentum * v[at] + trusted * (gradient + decay * w[at]);
                w[at] -= rate * v[at];
                u[at] = momentum * u[at] + gradient;
                b[at] -= rate * u[at];
            }
        }
        for (found, expected) in params.weights.iter().zip([w, b]) {
            for (found, expected) in found.to_vec1::<f32>().unwrap().into_iter().zip(expected) {
                assert!((f64::from(found) - expected).abs() < 1e-5, "{found}, {expected}");
            }
        }
    }

    #[test]
    fn state_round_trips_through_arrays() {
        for config in [
            Config::default(),
            Config::Lars { momentum: 0.9, weight_decay: 0.1, trust: 0.02, max_gradient_norm: None },
            Config::AdamW {
                beta1: 0.9,
                beta2: 0.999,
                epsilon: 1e-8,
                weight_decay: 0.1,
                max_gradient_norm: None,
            },
        ] {
            let straight = params();
            let mut optimizer = Optimizer::new(&config, &[("", &straight)]).unwrap();
            for _ in 0..4 {
                optimizer.step(&[(&straight, &gradients(&straight))], 0.01).unwrap();
            }

            let mut resumed = params();
            let mut first = Optimizer::new(&config, &[("", &resumed)]).unwrap();
            for _ in 0..2 {
                first.step(&[(&resumed, &gradients(&resumed))], 0.01).unwrap();
            }
            let (arrays, weights) = (first.to_arrays().unwrap(), resumed.to_arrays("").unwrap());
            let mut second = Optimizer::new(&config, &[("", &resumed)]).unwrap();
            resumed.load_arrays("", &weights).unwrap();
            second.load_arrays(&arrays).unwrap();
            for _ in 0..2 {
                second.step(&[(&resumed, &gradients(&resumed))], 0.01).unwrap();
            }
            assert_eq!(values(&straight), values(&resumed), "{config:?}");
        }
    }
}
