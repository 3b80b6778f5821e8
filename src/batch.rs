//! When to step, and of what: fresh images topped up from replay to batches of one size.

pub mod assemble;

use crate::setting::{Invalid, within};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// `[batch]`: the size of a step and the pace of steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Images in every step.
    pub images: usize,
    /// `fill` trains on replay while nothing fresh is ready; `fixed` takes `steps_per_batch` steps
    /// for every `images` fresh images and otherwise waits.
    pub pace: Pace,
    /// Steps for each batch of fresh images, at pace `fixed`.
    pub steps_per_batch: usize,
    /// At pace `fixed`: how long the first fresh image waits for company before replay tops the
    /// batch up.
    #[serde(with = "humantime_serde")]
    pub max_wait: Duration,
}

/// The paces there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pace {
    /// Never idle.
    #[default]
    Fill,
    /// A fixed number of steps for each fresh image.
    Fixed,
}

impl Default for Config {
    fn default() -> Self {
        Self { images: 64, pace: Pace::Fill, steps_per_batch: 1, max_wait: Duration::from_secs(2) }
    }
}

impl Config {
    /// Most fresh images in a step.
    fn fresh_per_step(&self) -> usize {
        match self.pace {
            Pace::Fill => self.images,
            Pace::Fixed => self.images.div_ceil(self.steps_per_batch),
        }
    }

    /// The fewest steps that learn so many fresh images; at pace `fixed` no more are taken, but where a
    /// batch is topped up.
    pub fn steps_for(&self, fresh_images: u64) -> u64 {
        fresh_images.div_ceil(self.fresh_per_step() as u64)
    }

    /// Checks every value.
    ///
    /// # Errors
    /// The first value that is not allowed, by key.
    pub fn validate(&self) -> Result<(), Invalid> {
        within("batch.images", self.images, 2..=8192, "from 2 to 8192")?;
        let allowed = "from 1 to batch.images";
        within("batch.steps_per_batch", self.steps_per_batch, 1..=self.images, allowed)
    }
}

/// What there is to step on.
#[derive(Clone, Copy, Debug)]
pub struct Supply {
    /// Fresh images that are ready.
    pub fresh: usize,
    /// Images in the replay buffer.
    pub replay: usize,
    /// How long the first fresh image has waited.
    pub waited: Duration,
    /// No more fresh images will come before these are learned.
    pub is_draining: bool,
    /// The most fresh images that may still be learned.
    pub fresh_limit: usize,
}

/// What to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Wait for more images.
    Wait,
    /// Wait, but no longer than this.
    WaitAtMost(Duration),
    /// Step on this many fresh images and this many replayed ones.
    Step {
        /// Fresh images, in their order.
        fresh: usize,
        /// Images drawn from replay.
        replayed: usize,
    },
}

/// Decides, by pace. A step always has `config.images` images; a cold start waits for a full batch.
pub fn decide(config: &Config, supply: Supply) -> Decision {
    let ready = supply.fresh.min(supply.fresh_limit);
    let quota = config.fresh_per_step();
    let step = |fresh| Decision::Step { fresh, replayed: config.images - fresh };
    if supply.replay == 0 {
        return if ready >= config.images { step(config.images) } else { Decision::Wait };
    }
    match config.pace {
        Pace::Fill => step(ready.min(quota)),
        Pace::Fixed if ready >= quota => step(quota),
        Pace::Fixed if ready == 0 => Decision::Wait,
        Pace::Fixed if supply.is_draining || supply.waited >= config.max_wait => step(ready),
        Pace::Fixed => Decision::WaitAtMost(config.max_wait - supply.waited),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn supply(fresh: usize, replay: usize, waited_ms: u64) -> Supply {
        Supply {
            fresh,
            replay,
            waited: Duration::from_millis(waited_ms),
            is_draining: false,
            fresh_limit: usize::MAX,
        }
    }

    fn fixed(steps_per_batch: usize) -> Config {
        Config { images: 64, pace: Pace::Fixed, steps_per_batch, ..Config::default() }
    }

    #[test]
    fn a_batch_takes_its_steps() {
        assert_eq!(Config::default().steps_for(1000), 16, "1000 / 64 and a last one");
        assert_eq!(fixed(4).steps_for(1000), 63, "16 fresh ones in each");
        assert_eq!(fixed(4).steps_for(0), 0);
    }

    proptest! {
        #[test]
        fn a_step_is_always_full_and_never_takes_what_is_not_there(
            fresh in 0usize..200, replay in 0usize..200, waited_ms in 0u64..5000,
            steps in 1usize..8, fill: bool, is_draining: bool, fresh_limit in 0usize..200,
        ) {
            let pace = if fill { Pace::Fill } else { Pace::Fixed };
            let config = Config { pace, ..fixed(steps) };
            let supply = Supply { is_draining, fresh_limit, ..supply(fresh, replay, waited_ms) };
            match decide(&config, supply) {
                Decision::Step { fresh: taken, replayed } => {
                    prop_assert_eq!(taken + replayed, 64);
                    prop_assert!(taken <= fresh.min(fresh_limit));
                    prop_assert!(replayed == 0 || replay > 0);
                }
                Decision::WaitAtMost(at_most) => prop_assert!(at_most <= config.max_wait),
                Decision::Wait => prop_assert!(replay == 0 || !fill),
            }
        }
    }

    #[test]
    fn a_cold_start_waits_for_a_full_batch() {
        assert_eq!(decide(&Config::default(), supply(63, 0, 9000)), Decision::Wait);
        let full = Decision::Step { fresh: 64, replayed: 0 };
        assert_eq!(decide(&Config::default(), supply(64, 0, 0)), full);
        assert_eq!(decide(&fixed(4), supply(64, 0, 0)), full);
    }

    #[test]
    fn fixed_spreads_a_batch_over_its_steps_and_tops_up_late_ones() {
        let step = |fresh| Decision::Step { fresh, replayed: 64 - fresh };
        assert_eq!(decide(&fixed(4), supply(64, 100, 0)), step(16));
        let half_a_second = Decision::WaitAtMost(Duration::from_millis(500));
        assert_eq!(decide(&fixed(4), supply(5, 100, 1500)), half_a_second);
        assert_eq!(decide(&fixed(4), supply(5, 100, 2000)), step(5));
        assert_eq!(decide(&fixed(4), supply(0, 100, 0)), Decision::Wait);
        let draining = Supply { is_draining: true, ..supply(5, 100, 0) };
        assert_eq!(decide(&fixed(4), draining), step(5));
    }

    #[test]
    fn fill_trains_on_replay_while_nothing_is_fresh() {
        let step = |fresh| Decision::Step { fresh, replayed: 64 - fresh };
        assert_eq!(decide(&Config::default(), supply(0, 100, 0)), step(0));
        assert_eq!(decide(&Config::default(), supply(5, 100, 0)), step(5));
    }
}
