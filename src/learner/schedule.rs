//! The learning rate over the run: warm-up, then constant, or a cosine to a declared end.

use crate::setting::{Invalid, within};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// `[learner.schedule]`: how the learning rate moves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Rate after the warm-up.
    pub learning_rate: f64,
    /// Steps over which the rate rises from zero.
    pub warmup_steps: u64,
    /// Where the run is declared to end: the rate falls to zero there along half a cosine
    /// (Loshchilov and Hutter, arXiv 1608.03983, eq. 5). Unset, the rate stays constant.
    pub end_steps: Option<u64>,
    /// The same, as time spent training. At most one of the two may be set.
    #[serde(with = "humantime_serde::option")]
    pub end_after: Option<Duration>,
}

impl Default for Config {
    fn default() -> Self {
        Self { learning_rate: 0.06, warmup_steps: 50, end_steps: None, end_after: None }
    }
}

/// How far a run has come.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Progress {
    /// Steps taken.
    pub steps: u64,
    /// Time spent training, over restarts.
    pub trained: Duration,
}

impl Config {
    /// Checks every value.
    ///
    /// # Errors
    /// The first value that is not allowed, by key.
    pub fn validate(&self) -> Result<(), Invalid> {
        let key = "learner.schedule.learning_rate";
        within(key, self.learning_rate, 1e-8..=100.0, "from 1e-8 to 100")?;
        if let Some(end_steps) = self.end_steps {
            let key = "learner.schedule.end_steps";
            within(key, end_steps, self.warmup_steps + 1.., "more than warmup_steps")?;
        }
        if let Some(end_after) = self.end_after {
            let key = "learner.schedule.end_after";
            if end_after < Duration::from_secs(1) {
                return Err(Invalid::new(key, humantime(end_after), "at least 1s"));
            }
            if self.end_steps.is_some() {
                return Err(Invalid::new(
                    key,
                    humantime(end_after),
                    "unset where end_steps is set",
                ));
            }
        }
        Ok(())
    }

    /// The rate of the step that `progress` has come to.
    pub fn rate(&self, progress: Progress) -> f64 {
        let warmup = if self.warmup_steps == 0 {
            1.0
        } else {
            ((progress.steps + 1) as f64 / self.warmup_steps as f64).min(1.0)
        };
        let decay = 0.5 * (1.0 + (std::f64::consts::PI * self.done(progress)).cos());
        self.learning_rate * warmup * decay
    }

    /// The share of the run that lies behind, from 0 to 1; 0 where no end is declared.
    pub fn done(&self, progress: Progress) -> f64 {
        let done = match (self.end_steps, self.end_after) {
            (Some(end), _) => progress.steps as f64 / end as f64,
            (None, Some(end)) => progress.trained.as_secs_f64() / end.as_secs_f64(),
            (None, None) => 0.0,
        };
        done.min(1.0)
    }
}

fn humantime(duration: Duration) -> String {
    format!("{}s", duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(steps: u64, seconds: u64) -> Progress {
        Progress { steps, trained: Duration::from_secs(seconds) }
    }

    #[test]
    fn warms_up_in_a_line_then_stays() {
        let config = Config { learning_rate: 1.0, warmup_steps: 10, ..Config::default() };
        assert!((config.rate(at(0, 0)) - 0.1).abs() < 1e-12);
        assert!((config.rate(at(4, 0)) - 0.5).abs() < 1e-12);
        assert_eq!(config.rate(at(9, 0)), 1.0);
        assert_eq!(config.rate(at(1_000_000, 1_000_000)), 1.0);
        assert_eq!(config.done(at(1_000_000, 1_000_000)), 0.0);
    }

    #[test]
    fn falls_to_zero_at_the_declared_end_and_stays_there() {
        let by_steps = Config {
            learning_rate: 1.0,
            warmup_steps: 0,
            end_steps: Some(100),
            ..Config::default()
        };
        let by_time = Config {
            end_steps: None,
            end_after: Some(Duration::from_secs(100)),
            ..by_steps.clone()
        };
        for (config, progress) in [(&by_steps, at(50, 0)), (&by_time, at(0, 50))] {
            assert!((config.rate(progress) - 0.5).abs() < 1e-12);
            assert!((config.done(progress) - 0.5).abs() < 1e-12);
        }
        assert_eq!(by_time.done(at(0, 500)), 1.0);
        assert!(by_steps.rate(at(100, 0)).abs() < 1e-12);
        assert!(by_time.rate(at(0, 500)).abs() < 1e-12);
    }
}
