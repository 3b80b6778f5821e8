//! Heads: features to the space in which views are compared, and predictors in that space.
//!
//! A head is a perceptron, `W_L a(... a(W_1 h))` with `a(x) = relu(bn(x))` (SimCLR, arXiv
//! 2002.05709, section 4.2; the batch norm is that of its published code). An objective keeps the
//! weights of all its heads in one [`Params`]; a [`Head`] knows which of them are its own.

use crate::encoder::{Init, Params, WeightSpec};
use crate::ops::candle::{BATCH_NORM_EPSILON, Normalisation, batch_norm};
use crate::setting::{Invalid, within};
use candle_core::{Device, Result, Tensor, bail};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// The seed stream of heads; the encoder's is 0.
const HEAD_STREAM: u64 = 1;

/// `[objective.head]` or `[objective.predictor]`: the layers of a head.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Linear layers; 1 is a linear map.
    pub layers: usize,
    /// Width of the layers before the last.
    pub hidden: usize,
    /// Length of what comes out.
    pub output: usize,
    /// Whether a batch norm follows each layer before the last.
    pub norm: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { layers: 2, hidden: 512, output: 128, norm: true }
    }
}

impl Config {
    /// Checks every value; `key` is the section's.
    ///
    /// # Errors
    /// The first value that is not allowed, by key.
    pub fn validate(&self, key: &str) -> std::result::Result<(), Invalid> {
        let allowed = "from 1 to 16384";
        within(&format!("{key}.layers"), self.layers, 1..=8, "from 1 to 8")?;
        within(&format!("{key}.hidden"), self.hidden, 1..=16_384, allowed)?;
        within(&format!("{key}.output"), self.output, 1..=16_384, allowed)
    }
}

/// What the last layer of a head does after its product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Nothing: for losses that no shift of all rows changes.
    Plain,
    /// It adds a bias.
    Bias,
    /// A batch norm without scale and shift (MoCo v3, SimSiam).
    Norm,
}

/// Which weights are a head's, and how they are used.
#[derive(Clone, Debug)]
pub struct Head {
    weights: Range<usize>,
    layers: usize,
    norm: bool,
    ending: Ending,
}

impl Head {
    /// A head from rows of length `input`; its weights, named behind `name.`, join `specs`.
    pub fn add(
        specs: &mut Vec<WeightSpec>,
        name: &str,
        config: &Config,
        input: usize,
        ending: Ending,
    ) -> Self {
        let first = specs.len();
        let mut width = input;
        for layer in 1..=config.layers {
            let name = format!("{name}.layer{layer}");
            let is_last = layer == config.layers;
            let output = if is_last { config.output } else { config.hidden };
            specs.push(matrix(&name, [width, output]));
            let vector = |what, init| vector(format!("{name}.{what}"), output, init);
            match (is_last, config.norm, ending) {
                (false, true, _) => {
                    specs.push(vector("norm.gamma", Init::Ones));
                    specs.push(vector("norm.beta", Init::Zeros));
                }
                (false, false, _) | (true, _, Ending::Bias) => {
                    specs.push(vector("bias", Init::Zeros));
                }
                (true, _, Ending::Plain | Ending::Norm) => {}
            }
            width = output;
        }
        let weights = first..specs.len();
        Self { weights, layers: config.layers, norm: config.norm, ending }
    }

    /// The number of weights up to the end of this head's.
    pub fn end(&self) -> usize {
        self.weights.end
    }

    /// `[M, input]` to `[M, output]`, by the batch's own statistics.
    ///
    /// # Errors
    /// Rows of another length than the head was made for; the weights of other heads.
    pub fn apply(&self, params: &Params, rows: &Tensor) -> Result<Tensor> {
        let Some(weights) = params.weights.get(self.weights.clone()) else {
            bail!("a head of weights {:?} was given {}", self.weights, params.weights.len())
        };
        let mut weights = weights.iter().map(|weight| weight.as_tensor());
        let mut next = || weights.next().ok_or_else(|| candle_core::Error::msg("a short head"));
        let norm = Normalisation { relu: true, groups: 1, epsilon: BATCH_NORM_EPSILON };
        let mut rows = rows.clone(); // [M, input]
        for _ in 1..self.layers {
            rows = rows.matmul(next()?)?; // [M, hidden]
            rows = if self.norm {
                batch_norm(&rows, next()?, next()?, None, norm)?.0
            } else {
                rows.broadcast_add(next()?)?.relu()?
            };
        }
        let rows = rows.matmul(next()?)?; // [M, output]
        match self.ending {
            Ending::Plain => Ok(rows),
            Ending::Bias => rows.broadcast_add(next()?),
            Ending::Norm => {
                let ones = rows.get(0)?.ones_like()?;
                let norm = Normalisation { relu: false, ..norm };
                Ok(batch_norm(&rows, &ones, &ones.zeros_like()?, None, norm)?.0)
            }
        }
    }
}

/// Fresh weights of heads.
///
/// # Errors
/// Whatever the device reports.
pub fn init(specs: &[WeightSpec], seed: u64, device: &Device) -> Result<Params> {
    Params::init(specs, &[], [seed, HEAD_STREAM], device)
}

fn matrix(name: &str, shape: [usize; 2]) -> WeightSpec {
    WeightSpec {
        name: format!("{name}.weight"),
        shape: shape.to_vec(),
        init: Init::HeNormal { fan: shape[0] },
        decay: true,
        adapt: true,
    }
}

/// A vector of `len` numbers that neither decays nor adapts.
pub fn vector(name: String, len: usize, init: Init) -> WeightSpec {
    WeightSpec { name, shape: vec![len], init, decay: false, adapt: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(n: usize, length: usize) -> Tensor {
        let values = (0..n * length).map(|i| ((i * 7919) % 101) as f32 / 50.0 - 1.0).collect();
        Tensor::from_vec(values, (n, length), &Device::Cpu).unwrap()
    }

    /// The same layers as plain loops in f64.
    fn oracle(params: &Params, config: &Config, ending: Ending, rows: &Tensor) -> Vec<Vec<f64>> {
        let mut weights = params.weights.iter();
        let mut next = || -> Vec<f64> {
            let weight = weights.next().unwrap().flatten_all().unwrap();
            weight.to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect()
        };
        let normalise = |rows: &mut [Vec<f64>], gamma: &[f64], beta: &[f64]| {
            let n = rows.len() as f64;
            for column in 0..rows[0].len() {
                let mean = rows.iter().map(|row| row[column]).sum::<f64>() / n;
                let variance = rows.iter().map(|row| (row[column] - mean).powi(2)).sum::<f64>() / n;
                for row in rows.iter_mut() {
                    let unit = (row[column] - mean) / (variance + 1e-5).sqrt();
                    row[column] = unit * gamma[column] + beta[column];
                }
            }
        };
        let mut values: Vec<Vec<f64>> = rows
            .to_vec2::<f32>()
            .unwrap()
            .into_iter()
            .map(|row| row.into_iter().map(f64::from).collect())
            .collect();
        for layer in 1..=config.layers {
            let matrix = next();
            let width = matrix.len() / values[0].len();
            let product = |row: &Vec<f64>| -> Vec<f64> {
                let term =
                    |o: usize| row.iter().enumerate().map(|(i, v)| v * matrix[i * width + o]).sum();
                (0..width).map(term).collect()
            };
            values = values.iter().map(product).collect();
            let is_last = layer == config.layers;
            if !is_last && config.norm {
                let (gamma, beta) = (next(), next());
                normalise(&mut values, &gamma, &beta);
            } else if !is_last || ending == Ending::Bias {
                let bias = next();
                values
                    .iter_mut()
                    .for_each(|row| row.iter_mut().zip(&bias).for_each(|(v, b)| *v += b));
            } else if ending == Ending::Norm {
                normalise(&mut values, &vec![1.0; width], &vec![0.0; width]);
            }
            if !is_last {
                values.iter_mut().flatten().for_each(|v| *v = v.max(0.0));
            }
        }
        assert!(weights.next().is_none(), "every weight is used");
        values
    }

    #[test]
    fn every_form_equals_its_loops() {
        for layers in [1, 2, 3] {
            for norm in [false, true] {
                for ending in [Ending::Plain, Ending::Bias, Ending::Norm] {
                    let config = Config { layers, hidden: 9, output: 5, norm };
                    let mut specs = vec![];
                    let head = Head::add(&mut specs, "head", &config, 7, ending);
                    let params = init(&specs, 3, &Device::Cpu).unwrap();
                    // Biases begin at zero: move every weight.
                    for weight in &params.weights {
                        weight.set(&(weight.as_tensor() + 0.1).unwrap()).unwrap();
                    }
                    let found = head.apply(&params, &rows(6, 7)).unwrap().to_vec2::<f32>().unwrap();
                    let expected = oracle(&params, &config, ending, &rows(6, 7));
                    for (a, b) in found.iter().flatten().zip(expected.iter().flatten()) {
                        assert!(
                            (f64::from(*a) - b).abs() < 1e-4,
                            "{config:?} {ending:?}: {a}, {b}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn two_heads_share_a_set_of_weights() {
        let config = Config { hidden: 9, output: 5, ..Config::default() };
        let mut specs = vec![];
        let first = Head::add(&mut specs, "projection", &config, 7, Ending::Bias);
        let second = Head::add(&mut specs, "predictor", &config, 5, Ending::Bias);
        assert_eq!((first.end(), second.end()), (5, 10));
        assert_eq!(specs[5].name, "predictor.layer1.weight");
        let params = init(&specs, 3, &Device::Cpu).unwrap();
        let projected = first.apply(&params, &rows(6, 7)).unwrap();
        assert_eq!(second.apply(&params, &projected).unwrap().dims(), [6, 5]);
        let other = init(&specs[..5], 3, &Device::Cpu).unwrap();
        assert!(second.apply(&other, &projected).is_err());
    }
}
