//! Optimisers: gradients to new weights, on tensors and on host memory. Both keep their running
//! state under the same names, so that a checkpoint of one is a checkpoint of the other.

mod clip;
mod host;
mod tensors;

pub use clip::{scale, squared_norm};
pub use host::HostOptimizer;
pub use tensors::Optimizer;

use crate::encoder::{Array, NamedArrays};
use crate::setting::{Invalid, within};
use candle_core::{Result, bail};
use serde::{Deserialize, Serialize};

/// The name of the number of steps taken.
const STEPS: &str = "optimizer.steps";

/// `[learner.optimizer]`, chosen by `kind`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Config {
    /// Stochastic gradient descent with momentum, as PyTorch defines it:
    /// `v = momentum v + g + weight_decay w`, then `w -= rate v`.
    Sgd {
        /// Share of the last step's direction that is kept.
        #[serde(default = "default_momentum")]
        momentum: f64,
        /// Pull towards zero, on weights that decay.
        #[serde(default = "default_sgd_decay")]
        weight_decay: f64,
        /// The norm that the gradient of all weights together, heads among them, is cut to where it
        /// is longer; unset, it never is.
        #[serde(default)]
        max_gradient_norm: Option<f64>,
    },
    /// Layer-wise adaptive rates (LARS: You et al., arXiv 1708.03888, eq. 6), for large batches: as
    /// SGD, but a layer's step is in proportion to its weights: |w| / (|g| + weight_decay |w|) times
    /// `trust`. Norms and biases neither adapt nor decay (SimCLR, arXiv 2002.05709, appendix B.8).
    Lars {
        /// Share of the last step's direction that is kept.
        #[serde(default = "default_momentum")]
        momentum: f64,
        /// Pull towards zero, on weights that decay.
        #[serde(default = "default_lars_decay")]
        weight_decay: f64,
        /// How far a layer moves at rate 1, as a share of its weights.
        #[serde(default = "default_trust")]
        trust: f64,
        /// The norm that the gradient of all weights together, heads among them, is cut to where it
        /// is longer; unset, it never is.
        #[serde(default)]
        max_gradient_norm: Option<f64>,
    },
    /// AdamW (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2).
    AdamW {
        /// Decay of the gradient's running mean.
        #[serde(default = "default_beta1")]
        beta1: f64,
        /// Decay of the squared gradient's running mean.
        #[serde(default = "default_beta2")]
        beta2: f64,
        /// Keeps the division finite.
        #[serde(default = "default_epsilon")]
        epsilon: f64,
        /// Pull towards zero, on weights that decay.
        #[serde(default = "default_adamw_decay")]
        weight_decay: f64,
        /// The norm that the gradient of all weights together, heads among them, is cut to where it
        /// is longer; unset, it never is.
        #[serde(default)]
        max_gradient_norm: Option<f64>,
    },
}

fn default_momentum() -> f64 {
    0.9
}
fn default_sgd_decay() -> f64 {
    5e-4
}
fn default_lars_decay() -> f64 {
    1e-6
}
fn default_trust() -> f64 {
    1e-3
}
fn default_beta1() -> f64 {
    0.9
}
fn default_beta2() -> f64 {
    0.999
}
fn default_epsilon() -> f64 {
    1e-8
}
fn default_adamw_decay() -> f64 {
    0.05
}

impl Default for Config {
    fn default() -> Self {
        Self::Sgd {
            momentum: default_momentum(),
            weight_decay: default_sgd_decay(),
            max_gradient_norm: None,
        }
    }
}

impl Config {
    /// The learning rate that it is used with where none is given.
    pub const fn usual_learning_rate(&self) -> f64 {
        match self {
            Self::Sgd { .. } => 0.06,
            // SimCLR's, for batches of 256 (arXiv 2002.05709, section 2.2).
            Self::Lars { .. } => 0.3,
            Self::AdamW { .. } => 0.001,
        }
    }

    /// Checks every value.
    ///
    /// # Errors
    /// The first value that is not allowed, by key.
    pub fn validate(&self) -> std::result::Result<(), Invalid> {
        let key = |name: &str| format!("learner.optimizer.{name}");
        let share = |name: &str, value| within(&key(name), value, 0.0..1.0, "from 0 to below 1");
        let decay = |value| within(&key("weight_decay"), value, 0.0..=1.0, "from 0 to 1");
        if let Some(norm) = self.max_gradient_norm() {
            within(&key("max_gradient_norm"), norm, 1e-6..=1e6, "from 0.000001 to 1000000")?;
        }
        match *self {
            Self::Sgd { momentum, weight_decay, .. } => {
                share("momentum", momentum)?;
                decay(weight_decay)
            }
            Self::Lars { momentum, weight_decay, trust, .. } => {
                share("momentum", momentum)?;
                within(&key("trust"), trust, 1e-6..=1.0, "from 0.000001 to 1")?;
                decay(weight_decay)
            }
            Self::AdamW { beta1, beta2, epsilon, weight_decay, .. } => {
                share("beta1", beta1)?;
                share("beta2", beta2)?;
                within(&key("epsilon"), epsilon, 1e-16..=1e-2, "from 1e-16 to 0.01")?;
                decay(weight_decay)
            }
        }
    }

    /// What all gradients are multiplied by, given the sum of their squares: less than 1 where they are
    /// longer together than is allowed (Pascanu et al., arXiv 1211.5063, algorithm 1). One that is no
    /// number stays so.
    ///
    /// # Errors
    /// What `squares` reports; it is not called where nothing is cut.
    pub fn gradient_scale(&self, squares: impl FnOnce() -> Result<f64>) -> Result<f64> {
        let Some(most) = self.max_gradient_norm() else { return Ok(1.0) };
        let norm = squares()?.sqrt();
        Ok(if norm > most { most / norm } else { 1.0 })
    }

    fn max_gradient_norm(&self) -> Option<f64> {
        match *self {
            Self::Sgd { max_gradient_norm, .. }
            | Self::Lars { max_gradient_norm, .. }
            | Self::AdamW { max_gradient_norm, .. } => max_gradient_norm,
        }
    }

    fn state_names(&self) -> &'static [&'static str] {
        match self {
            Self::Sgd { .. } | Self::Lars { .. } => &["momentum"],
            Self::AdamW { .. } => &["mean", "square"],
        }
    }
}

/// The name of a weight's running state.
fn state_name(what: &str, weight: &str) -> String {
    format!("optimizer.{what}.{weight}")
}

fn put_steps(steps: u64, arrays: &mut NamedArrays) {
    let values = vec![steps as f32];
    arrays.insert(STEPS.to_owned(), Array { shape: vec![1], values });
}

fn get_steps(arrays: &NamedArrays) -> Result<u64> {
    match arrays.get(STEPS).and_then(|array| array.values.first()) {
        Some(steps) => Ok(*steps as u64),
        None => bail!("array {STEPS} is missing"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_value_of_any_kind_is_refused_by_key_value_and_what_is_allowed() {
        for (kind, key, value, allowed) in [
            ("sgd", "max_gradient_norm", "-1.0", "from 0.000001 to 1000000"),
            ("lars", "max_gradient_norm", "-1.5", "from 0.000001 to 1000000"),
            ("adamw", "max_gradient_norm", "-2.5", "from 0.000001 to 1000000"),
            ("sgd", "momentum", "1.0", "from 0 to below 1"),
            ("sgd", "weight_decay", "-0.1", "from 0 to 1"),
            ("lars", "momentum", "-0.5", "from 0 to below 1"),
            ("lars", "weight_decay", "1.5", "from 0 to 1"),
            ("lars", "trust", "2.5", "from 0.000001 to 1"),
            ("adamw", "beta1", "1.0", "from 0 to below 1"),
            ("adamw", "beta2", "1.5", "from 0 to below 1"),
            ("adamw", "epsilon", "0.5", "from 1e-16 to 0.01"),
            ("adamw", "weight_decay", "1.5", "from 0 to 1"),
        ] {
            let config: Config = toml::from_str(&format!("kind = \"{kind}\"\n{key} = {value}"))
                .expect("a number of the right kind");
            let message = config.validate().expect_err(key).to_string();
            let shown = value.trim_end_matches(".0");
            for part in [&format!("learner.optimizer.{key}"), shown, allowed] {
                assert!(message.contains(part), "{kind}.{key}: {message}");
            }
        }
    }

    #[test]
    fn gradients_longer_than_allowed_are_cut_to_it_and_others_stay() {
        let config: Config = toml::from_str("kind = \"sgd\"\nmax_gradient_norm = 2.0").unwrap();
        let scale = |squares: f64| config.gradient_scale(|| Ok(squares)).unwrap();
        assert_eq!(scale(25.0), 0.4);
        assert_eq!([scale(4.0), scale(0.0), scale(f64::NAN)], [1.0; 3]);
        let never = Config::default().gradient_scale(|| bail!("not asked for"));
        assert_eq!(never.unwrap(), 1.0);
    }
}
