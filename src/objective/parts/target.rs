//! Moving-average targets (Mean Teacher, arXiv 1703.01780; MoCo, arXiv 1911.05722; BYOL, arXiv
//! 2006.07733): weights that follow those in training, and get no gradient.
//!
//! ```text
//! target <- m target + (1 - m) weights        after each step
//! ```

use crate::encoder::{NamedArrays, Params};
use crate::objective::Elapsed;
use crate::ops::update;
use crate::setting::{Invalid, within};
use candle_core::Result;
use std::f64::consts::PI;

/// The target encoder that an objective asks for, in one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    /// Share of the target that is kept after the step, `m`.
    pub momentum: f64,
    /// Parts into which its batch is cut, each normalised by its own statistics; no part holds two
    /// views of one image.
    pub norm_groups: usize,
}

/// Checks a momentum under `objective.momentum`.
///
/// # Errors
/// A share that is not allowed.
pub fn validate_momentum(momentum: f64) -> std::result::Result<(), Invalid> {
    within("objective.momentum", momentum, 0.0..=1.0, "from 0 to 1")
}

/// BYOL's momentum (arXiv 2006.07733, section 3.3), `1 - (1 - base) (cos(pi k / K) + 1) / 2`, with
/// k / K the share of the run that lies behind.
///
/// Differs from the paper, whose runs are long: the average is over about a tenth of the run while
/// that is shorter than what `base` says, or the target would be random weights for as many steps
/// as a short run has. After n steps the base is at most `(1 + n) / (10 + n)`.
pub fn rising_momentum(base: f64, elapsed: Elapsed) -> f64 {
    let n = elapsed.steps as f64;
    let base = base.min((1.0 + n) / (10.0 + n));
    1.0 - (1.0 - base) * ((PI * elapsed.share).cos() + 1.0) / 2.0
}

/// The moving average of an objective's first heads.
#[derive(Debug)]
pub struct Average {
    params: Params,
}

impl Average {
    /// One that begins as the first `n_weights` weights of `source`.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn of(source: &Params, n_weights: usize) -> Result<Self> {
        let first = Params {
            specs: source.specs[..n_weights].to_vec(),
            weights: source.weights[..n_weights].to_vec(),
            moments_specs: vec![],
            moments: vec![],
        };
        Ok(Self { params: first.duplicate()? })
    }

    /// Its weights.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// Moves towards `source` and keeps the share `momentum` of what it was.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn follow(&mut self, source: &Params, momentum: f64) -> Result<()> {
        update::average_tensors(momentum, &self.params.weights, &source.weights)
    }

    /// Its weights, each name behind `prefix`.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn to_arrays(&self, prefix: &str) -> Result<NamedArrays> {
        self.params.to_arrays(prefix)
    }

    /// Takes its weights from `arrays`.
    ///
    /// # Errors
    /// A name that is missing or a shape that differs, by name.
    pub fn load_arrays(&mut self, prefix: &str, arrays: &NamedArrays) -> Result<()> {
        self.params.load_arrays(prefix, arrays)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoder::Init;
    use crate::objective::parts::head;
    use candle_core::Device;

    #[test]
    fn the_momentum_rises_along_half_a_cosine_to_1_at_a_declared_end() {
        let momentum = |share| rising_momentum(0.9, Elapsed { steps: 1000, share });
        assert_eq!(momentum(0.0), 0.9);
        assert!((momentum(0.5) - 0.95).abs() < 1e-12);
        assert!((momentum(1.0) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn the_average_is_never_over_much_more_than_a_tenth_of_the_run() {
        let momentum = |steps| rising_momentum(0.99, Elapsed { steps, share: 0.0 });
        for (steps, expected) in [(0, 0.1), (90, 0.91), (890, 0.99)] {
            assert!((momentum(steps) - expected).abs() < 1e-12, "{steps}");
        }
        assert_eq!(momentum(100_000), 0.99);
        for steps in 20..2000 {
            let averaged_steps = 1.0 / (1.0 - momentum(steps));
            assert!(averaged_steps <= 0.2 * steps as f64, "{steps}");
            assert!(momentum(steps) <= momentum(steps + 1), "{steps}");
        }
    }

    #[test]
    fn it_follows_its_recurrence_and_moves_nothing_else() {
        let specs = ["a", "b"].map(|name| head::vector(name.to_owned(), 2, Init::Ones));
        let source = head::init(&specs, 0, &Device::Cpu).unwrap();
        let mut average = Average::of(&source, 1).unwrap();
        let value = |params: &Params| params.weights[0].to_vec1::<f32>().unwrap()[0];
        let mut expected = 1.0;
        for step in 1..5 {
            source.weights[0].set(&(source.weights[0].as_tensor() * 2.0).unwrap()).unwrap();
            average.follow(&source, 0.75).unwrap();
            expected = 0.75 * expected + 0.25 * 2f32.powi(step);
            assert!((value(average.params()) - expected).abs() < 1e-5);
            assert_eq!(value(&source), 2f32.powi(step));
        }
        let mut restored = Average::of(&source, 1).unwrap();
        restored.load_arrays("target.", &average.to_arrays("target.").unwrap()).unwrap();
        assert_eq!(value(restored.params()), value(average.params()));
    }
}
