//! What is served where a moving average is: the average of the encoder's weights over the last steps
//! (Polyak and Juditsky 1992; as an exponential average, Mean Teacher, arXiv 1703.01780), which is
//! steadier than they are and usually better.
//!
//! After update u = 0, 1, 2, ... with the configured momentum m:
//!
//! ```text
//! average <- m_u average + (1 - m_u) weights,    m_u = min(m, u / (u + 9))
//! ```
//!
//! The first update takes the weights whole, so that the numbers they began with have no share; then
//! the average is over about the last tenth of the run until it is as long as m says. That is
//! TensorFlow's `ExponentialMovingAverage` with `num_updates`, (1 + u) / (10 + u), one step earlier.
//!
//! The batch norms' running moments can't be averaged with the weights: they are those of other
//! activations. The average is shown a batch every [`MEASURE_EVERY`] steps, and its moments follow.

use super::backbone::{Backbone, Shadow};
use crate::encoder::{Array, NamedArrays};
use candle_core::Result;

/// Updates from one measurement of the running moments to the next. A forward pass is a third of a
/// step, so that this is 2 % of the steps' time: reckoned, not measured.
const MEASURE_EVERY: u64 = 16;
/// Share of a running moment that a measurement replaces, once there were four: about the last seven
/// count, those of a hundred steps. A guess.
const MEASURED_SHARE: f64 = 0.25;
/// The name of the number of updates in checkpoints.
const UPDATES: &str = "served.updates";

/// The schedule of the served average.
pub(super) struct Served {
    momentum: f64,
    updates: u64,
}

impl Served {
    /// One of this momentum; none at 0.
    pub(super) fn new(momentum: f64) -> Option<Self> {
        (momentum > 0.0).then_some(Self { momentum, updates: 0 })
    }

    /// Whether the next update wants a batch to measure the moments on.
    pub(super) fn wants_batch(&self) -> bool {
        self.updates.is_multiple_of(MEASURE_EVERY)
    }

    /// Moves the average after a step, and its moments where a `batch` of views, flat
    /// `[N, H, W, C]`, with their side is given.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub(super) fn follow(
        &mut self,
        encoder: &mut dyn Backbone,
        batch: Option<(Vec<f32>, usize)>,
    ) -> Result<()> {
        encoder.follow(Shadow::Served, self.next_momentum())?;
        if let Some((views, side_px)) = batch {
            let measurements = self.updates / MEASURE_EVERY;
            let share = MEASURED_SHARE.max(1.0 / (measurements + 1) as f64);
            encoder.measure(views, side_px, share)?;
        }
        self.updates += 1;
        Ok(())
    }

    fn next_momentum(&self) -> f64 {
        let updates = self.updates as f64;
        self.momentum.min(updates / (updates + 9.0))
    }

    /// The number of updates, as checkpoints name it.
    pub(super) fn to_arrays(&self) -> NamedArrays {
        let array = Array { shape: vec![1], values: vec![self.updates as f32] };
        [(UPDATES.to_owned(), array)].into()
    }

    /// The inverse; a checkpoint from before there was an average begins it anew.
    pub(super) fn load_arrays(&mut self, arrays: &NamedArrays) {
        let updates = arrays.get(UPDATES).and_then(|array| array.values.first());
        self.updates = updates.map_or(0, |updates| *updates as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The share that each of the weights so far has in the average, by its recurrence.
    fn shares(momentum: f64, n_updates: u64) -> Vec<f64> {
        let mut served = Served::new(momentum).unwrap();
        let mut shares = vec![1.0];
        for _ in 0..n_updates {
            let kept = served.next_momentum();
            shares.iter_mut().for_each(|share| *share *= kept);
            shares.push(1.0 - kept);
            served.updates += 1;
        }
        shares
    }

    #[test]
    fn what_the_weights_began_as_has_no_share_and_all_others_make_one() {
        for n_updates in [1, 2, 10, 1000] {
            let shares = shares(0.99, n_updates);
            assert_eq!(shares[0], 0.0);
            assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-12);
            assert!(shares[1..].is_sorted(), "the newest have the most");
        }
    }

    #[test]
    fn it_is_over_a_tenth_of_the_run_until_the_momentum_is_reached() {
        let age = |momentum: f64, n_updates: u64| -> f64 {
            let shares = shares(momentum, n_updates);
            shares.iter().rev().enumerate().map(|(age, share)| age as f64 * share).sum()
        };
        assert!((age(0.9999, 2000) / 200.0 - 1.0).abs() < 0.05);
        // An exponential average of momentum m is m / (1 - m) old.
        assert!((age(0.95, 2000) - 19.0).abs() < 0.01);
        assert!(Served::new(0.0).is_none());
    }
}
