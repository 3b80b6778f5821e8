//! Whether learning goes well: which steps are taken, and when to go back to an older checkpoint.
//!
//! A batch's loss is that of the weights before its step. Where it is not finite, or lies far above the
//! last ones, the step is not taken: with losses l of median m and median absolute deviation d, that is
//!
//! ```text
//! loss > m + max_loss_jump max(1.4826 d, |m| / 50)
//! ```
//!
//! Where near-duplicates are no negatives (`learner.near_duplicates`), or a batch holds copies of few images, its
//! loss has few pairs or none, and says nothing of that of a batch of several scenes: what counts less than half of
//! its pairs is only asked to be finite, and not remembered.
//!
//! 1.4826 d is the standard deviation of a normal distribution (Rousseeuw and Croux 1993); a fiftieth of
//! the median keeps a very even loss from making much of little. A few such steps in a row are no accident, and
//! neither is a candidate that the gate refuses after it let others pass: the learner goes back, and learns at a
//! lower rate for a while. That loss or rank change with what arrives, and not with the weights, is known
//! only when they do so again after going back: then the new ones become the usual ones.

use crate::checkpoint::Rollbacks;
use crate::fault;
use crate::setting::{Invalid, within};
use metrics::{counter, gauge};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Losses that the next one is compared with, and how many there must be. Guesses.
const REMEMBERED: usize = 64;
const ENOUGH: usize = 16;
/// A normal distribution's standard deviation over its median absolute deviation.
const DEVIATIONS: f32 = 1.4826;
/// The least deviation, as a share of the median.
const LEAST_DEVIATION: f32 = 0.02;
/// The least share of its pairs that a batch counts for its loss to be compared. A guess.
const LEAST_SHARE: f32 = 0.5;

/// `[learner.recovery]`: when to go back to an older checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Standard deviations above the last losses at which a step is not taken.
    pub max_loss_jump: f32,
    /// Steps not taken in a row after which the learner goes back; and, where going back has not helped,
    /// candidates refused in a row after which their rank counts as usual.
    pub patience: u32,
    /// The most often it does so until it has learned well for `settle_steps`.
    pub max_rollbacks: u32,
    /// The share of the learning rate that each leaves, for as long.
    pub rate_share: f64,
    /// Steps after which a rollback is forgotten.
    pub settle_steps: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_loss_jump: 10.0,
            patience: 3,
            max_rollbacks: 3,
            rate_share: 0.5,
            settle_steps: 500,
        }
    }
}

impl Config {
    /// Checks every value.
    ///
    /// # Errors
    /// The first value that is not allowed, by key.
    pub fn validate(&self) -> Result<(), Invalid> {
        let key = "learner.recovery.max_loss_jump";
        within(key, self.max_loss_jump, 1.0..=1e6, "from 1 to 1000000")?;
        within("learner.recovery.patience", self.patience, 1.., "at least 1")?;
        within("learner.recovery.max_rollbacks", self.max_rollbacks, 0..=1000, "from 0 to 1000")?;
        let key = "learner.recovery.rate_share";
        within(key, self.rate_share, 0.001..=1.0, "from 0.001 to 1")?;
        within("learner.recovery.settle_steps", self.settle_steps, 1.., "at least 1")
    }
}

/// Why the learner goes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// Steps in a row had a loss out of bounds.
    Loss,
    /// A candidate did not pass the gate, and others had.
    Gate,
}

impl Trouble {
    /// The bounded reason, a metric's label.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::Loss => "loss",
            Self::Gate => "gate",
        }
    }
}

/// The learner's health.
#[derive(Debug)]
pub(super) struct Health {
    config: Config,
    losses: VecDeque<f32>,
    steps_not_taken: u32,
    candidates_refused: u32,
    /// Whether a candidate has passed yet.
    has_passed: bool,
    rollbacks: Rollbacks,
    /// The step of the last candidate that passed, or that it began from.
    good_step: u64,
}

impl Health {
    /// Begins at `step`, which counts as good.
    pub(super) fn new(config: &Config, rollbacks: Rollbacks, step: u64) -> Self {
        let health = Self {
            config: config.clone(),
            losses: VecDeque::new(),
            steps_not_taken: 0,
            candidates_refused: 0,
            has_passed: false,
            rollbacks,
            good_step: step,
        };
        health.show();
        health
    }

    /// Whether the step down this loss is to be taken, of a batch that counts this share of its pairs.
    pub(super) fn admits(&mut self, loss: f32, share: f32) -> bool {
        let limit = self.limit().filter(|_| is_compared(share));
        let is_admitted = loss.is_finite() && limit.is_none_or(|limit| loss <= limit);
        if is_admitted {
            self.steps_not_taken = 0;
            if is_compared(share) {
                self.losses.push_back(loss);
            }
            if self.losses.len() > REMEMBERED {
                self.losses.pop_front();
            }
        } else {
            self.steps_not_taken += 1;
            counter!("selfstream_steps_not_taken_total").increment(1);
            if self.has_given_up() && self.steps_not_taken >= self.config.patience {
                // Going back has not helped, so it is what arrives that has changed.
                self.losses.clear();
            }
        }
        self.show();
        is_admitted
    }

    fn limit(&self) -> Option<f32> {
        if self.losses.len() < ENOUGH {
            return None;
        }
        let middle = median(self.losses.iter().copied());
        let deviation = median(self.losses.iter().map(|loss| (loss - middle).abs()));
        let deviation = (DEVIATIONS * deviation).max(LEAST_DEVIATION * middle.abs());
        Some(middle + self.config.max_loss_jump * deviation)
    }

    /// Notes whether the candidate of `step` passed the gate. True if what was usual before is to be
    /// forgotten: going back has not helped, so it is what arrives that has changed.
    pub(super) fn judged(&mut self, step: u64, has_passed: bool) -> bool {
        if has_passed {
            (self.candidates_refused, self.has_passed) = (0, true);
            self.good_step = step;
        } else {
            self.candidates_refused += 1;
        }
        self.show();
        self.has_given_up() && self.candidates_refused >= self.config.patience
    }

    /// Whether nothing is wrong.
    fn is_well(&self) -> bool {
        self.steps_not_taken == 0 && self.candidates_refused == 0
    }

    fn has_given_up(&self) -> bool {
        self.rollbacks.count >= self.config.max_rollbacks
    }

    /// Whether what is may soon be gone back from: no checkpoint is to be made of it.
    pub(super) fn is_in_doubt(&self) -> bool {
        let is_refused = self.candidates_refused > 0 && self.has_passed;
        (self.steps_not_taken > 0 || is_refused) && !self.has_given_up()
    }

    /// Whether there is nothing left to learn with: losses stay out of bounds after every rollback.
    pub(super) fn is_lost(&self) -> bool {
        self.has_given_up() && self.steps_not_taken >= 2 * self.config.patience
    }

    /// Why to go back, if it is time.
    pub(super) fn trouble(&self) -> Option<Trouble> {
        if self.has_given_up() {
            None
        } else if self.steps_not_taken >= self.config.patience {
            Some(Trouble::Loss)
        } else {
            (self.candidates_refused > 0 && self.has_passed).then_some(Trouble::Gate)
        }
    }

    /// The newest step whose checkpoint may be gone back to.
    pub(super) fn good_step(&self) -> u64 {
        self.good_step
    }

    /// Begins anew at `step`, after going back to it from `from_step`.
    pub(super) fn gone_back(&mut self, step: u64, from_step: u64) {
        self.rollbacks.count += 1;
        self.rollbacks.until_step = from_step + self.config.settle_steps;
        self.given_way(step);
    }

    /// Begins anew at `step`, an older one, to which nothing went wrong.
    pub(super) fn given_way(&mut self, step: u64) {
        self.losses.clear();
        (self.steps_not_taken, self.candidates_refused) = (0, 0);
        self.good_step = step;
        self.show();
    }

    /// The share of the learning rate that step `step` is taken with; forgets rollbacks that are long
    /// past.
    pub(super) fn rate_share(&mut self, step: u64) -> f64 {
        if step >= self.rollbacks.until_step && self.is_well() {
            self.rollbacks.count = 0;
        }
        let exponent = i32::try_from(self.rollbacks.count).unwrap_or(i32::MAX);
        self.config.rate_share.powi(exponent) * fault::number_at("learning_rate", 1.0)
    }

    pub(super) fn rollbacks(&self) -> Rollbacks {
        self.rollbacks
    }

    fn show(&self) {
        let alarm = match (self.is_well(), self.has_given_up()) {
            (true, _) => 0,
            (false, false) => 1,
            (false, true) => 2,
        };
        gauge!("selfstream_learning_alarm").set(alarm);
    }
}

/// Whether a batch that counts this share of its pairs has a loss to compare with others.
pub(super) fn is_compared(share: f32) -> bool {
    share >= LEAST_SHARE
}

fn median(values: impl Iterator<Item = f32>) -> f32 {
    let mut values: Vec<f32> = values.collect();
    values.sort_by(f32::total_cmp);
    values[values.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health() -> Health {
        Health::new(&Config::default(), Rollbacks::default(), 0)
    }

    /// A loss that falls from 5 to 3 and wavers by a twentieth.
    fn usual(step: u32) -> f32 {
        3.0 + 2.0 / (1.0 + step as f32 / 20.0) + 0.05 * ((step * 7919) % 13) as f32 / 6.0
    }

    #[test]
    fn usual_losses_pass_and_jumps_do_not() {
        let mut health = health();
        for step in 0..200 {
            assert!(health.admits(usual(step), 1.0), "{step}");
        }
        assert!(health.is_well());
        // A small change of what arrives; chance level; what is no number.
        assert!(health.admits(usual(200) + 0.3, 1.0));
        for bad in [4.85, f32::INFINITY, f32::NAN] {
            assert!(!health.admits(bad, 1.0), "{bad}");
        }
        assert_eq!(health.trouble(), Some(Trouble::Loss));
        assert!(health.admits(usual(201), 1.0));
        assert_eq!((health.trouble(), health.is_well()), (None, true));
    }

    /// Batches of one scene, none of whose pairs count, and then another scene.
    #[test]
    fn a_batch_of_few_pairs_is_not_compared_and_not_remembered() {
        let mut health = health();
        (0..100).for_each(|_| assert!(health.admits(0.0, 0.0)));
        assert!(health.admits(usual(0), 0.9), "there is nothing to compare with");
        (1..200).for_each(|step| assert!(health.admits(usual(step), 0.9), "{step}"));
        assert!(health.admits(4.85, 0.4) && !health.admits(4.85, 0.5));
        assert!(!health.admits(f32::NAN, 0.4));
    }

    #[test]
    fn a_loss_that_is_no_number_never_passes() {
        assert!(!health().admits(f32::NAN, 1.0));
        assert!(health().admits(1e6, 1.0), "nothing to compare with");
    }

    /// After the last rollback a jump becomes what is usual; what is no number never does.
    #[test]
    fn where_going_back_has_not_helped_new_losses_are_the_usual_ones() {
        let with = |loss: f32| {
            let config = Config { max_rollbacks: 0, ..Config::default() };
            let mut health = Health::new(&config, Rollbacks::default(), 0);
            (0..200).for_each(|step| assert!(health.admits(usual(step), 1.0)));
            let admitted = (0..8).filter(|_| health.admits(loss, 1.0)).count();
            assert_eq!(health.trouble(), None);
            (admitted, health.is_lost())
        };
        assert_eq!(with(4.85), (5, false));
        assert_eq!(with(f32::NAN), (0, true));
    }

    #[test]
    fn a_candidate_refused_is_trouble_once_others_have_passed() {
        let mut health = health();
        health.judged(5, false);
        assert_eq!(health.trouble(), None, "it may not have learned enough yet");
        assert!(!health.is_in_doubt(), "or nothing would ever be kept of it");
        health.judged(10, true);
        assert_eq!(health.trouble(), None);
        health.judged(20, false);
        assert_eq!(health.trouble(), Some(Trouble::Gate));
        assert!(health.is_in_doubt());
        assert_eq!(health.good_step(), 10);
        health.gone_back(8, 20);
        assert_eq!((health.trouble(), health.good_step()), (None, 8));
    }

    #[test]
    fn rollbacks_lower_the_rate_are_bounded_and_forgotten() {
        let mut health = health();
        assert_eq!(health.rate_share(0), 1.0);
        health.judged(90, true);
        for count in 1..=3 {
            assert!(!health.judged(100, false), "there is a way back still");
            assert!(health.trouble().is_some());
            health.gone_back(90, 100);
            assert_eq!(health.rate_share(91), 0.5_f64.powi(count));
        }
        let forgets: Vec<bool> = (0..4).map(|_| health.judged(100, false)).collect();
        assert_eq!(forgets, [false, false, true, true]);
        assert_eq!(health.trouble(), None, "no more than three");
        assert_eq!(health.rate_share(600), 0.125, "while it is not well, nothing is forgotten");
        let mut restored = Health::new(&Config::default(), health.rollbacks(), 90);
        assert_eq!(restored.rate_share(599), 0.125);
        assert_eq!(restored.rate_share(600), 1.0);
    }
}
