//! The learning rate over the run: warm-up, then constant, or a cosine to a declared end.

use super::optimizer;
use crate::setting::{Invalid, within};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// `[learner.schedule]`: how the learning rate moves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Rate after the warm-up; unset, that of the optimiser's kind.
    pub learning_rate: f64,
    /// Steps over which the rate rises from zero.
    pub warmup_steps: u64,
    /// Whether the rate is in proportion to the size of a batch.
    pub batch_scaling: BatchScaling,
    /// Steps after which the rate warms up again, counted from the last restart; unset, it does so
    /// on demand alone ([`Progress::restarted_at`]).
    pub restart_every_steps: Option<u64>,
    /// Where the run is declared to end: the rate falls to zero there along half a cosine
    /// (Loshchilov and Hutter, arXiv 1608.03983, eq. 5). Unset, the rate stays constant.
    pub end_steps: Option<u64>,
    /// The same, as time spent training. At most one of the two may be set.
    #[serde(with = "humantime_serde::option")]
    pub end_after: Option<Duration>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            learning_rate: optimizer::Config::default().usual_learning_rate(),
            warmup_steps: 50,
            batch_scaling: BatchScaling::default(),
            restart_every_steps: None,
            end_steps: None,
            end_after: None,
        }
    }
}

/// How the rate depends on the size of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BatchScaling {
    /// Not at all.
    #[default]
    None,
    /// The rate is `learning_rate` times the images of a batch over 256 (Goyal et al., "Accurate,
    /// Large Minibatch SGD", arXiv 1706.02677, section 2.1; with SimCLR's unit of 256 images, arXiv
    /// 2002.05709, section 2.2).
    Linear,
}

/// Images of a batch whose rate is `learning_rate` itself.
const REFERENCE_IMAGES: f64 = 256.0;

/// How far a run has come.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Progress {
    /// Steps taken.
    pub steps: u64,
    /// Time spent training, over restarts of the process.
    pub trained: Duration,
    /// Steps taken when the rate was last told to warm up again; 0 if it never was.
    pub restarted_at: u64,
}

impl Config {
    /// Checks every value.
    ///
    /// # Errors
    /// The first value that is not allowed, by key.
    pub fn validate(&self) -> Result<(), Invalid> {
        let key = "learner.schedule.learning_rate";
        within(key, self.learning_rate, 1e-8..=100.0, "from 1e-8 to 100")?;
        if let Some(every) = self.restart_every_steps {
            let key = "learner.schedule.restart_every_steps";
            within(key, every, self.warmup_steps + 1.., "more than warmup_steps")?;
        }
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

    /// The same for batches of `images`, their scaling done.
    pub fn for_batch(&self, images: usize) -> Self {
        let factor = match self.batch_scaling {
            BatchScaling::None => 1.0,
            BatchScaling::Linear => images as f64 / REFERENCE_IMAGES,
        };
        let learning_rate = self.learning_rate * factor;
        Self { learning_rate, batch_scaling: BatchScaling::None, ..self.clone() }
    }

    /// The rate of the step that `progress` has come to. A restart warms up again; the fall to a
    /// declared end goes on.
    pub fn rate(&self, progress: Progress) -> f64 {
        let mut since = progress.steps.saturating_sub(progress.restarted_at);
        if let Some(every) = self.restart_every_steps {
            since %= every.max(1);
        }
        let warmup = if self.warmup_steps == 0 {
            1.0
        } else {
            ((since + 1) as f64 / self.warmup_steps as f64).min(1.0)
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
        Progress { steps, trained: Duration::from_secs(seconds), restarted_at: 0 }
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

    #[test]
    fn it_warms_up_again_when_told_to_and_every_so_often() {
        let told = Config { learning_rate: 1.0, warmup_steps: 10, ..Config::default() };
        let after = |steps| Progress { restarted_at: 1000, ..at(steps, 0) };
        assert!((told.rate(after(1000)) - 0.1).abs() < 1e-12);
        assert_eq!(told.rate(after(1009)), 1.0);
        assert_eq!(told.rate(after(1_000_000)), 1.0);

        let periodic = Config { restart_every_steps: Some(300), ..told.clone() };
        for begin in [0, 300, 900] {
            assert!((periodic.rate(at(begin, 0)) - 0.1).abs() < 1e-12);
            assert_eq!(periodic.rate(at(begin + 299, 0)), 1.0);
        }
        // The period begins anew with a restart on demand.
        assert_eq!(periodic.rate(after(1200)), 1.0);
        assert!((periodic.rate(after(1300)) - 0.1).abs() < 1e-12);

        let ending = Config { end_steps: Some(2000), ..told };
        assert!((ending.rate(after(1000)) - 0.05).abs() < 1e-12, "half-way to the end");
    }

    #[test]
    fn the_rate_is_in_proportion_to_the_batch_where_it_is_told_to_be() {
        let linear = Config { batch_scaling: BatchScaling::Linear, ..Config::default() };
        for (images, factor) in [(64, 0.25), (256, 1.0), (1024, 4.0)] {
            let scaled = linear.for_batch(images);
            assert_eq!(scaled.learning_rate, 0.06 * factor);
            assert_eq!(scaled.for_batch(images), scaled, "it is done once");
            assert_eq!(Config::default().for_batch(images), Config::default());
        }
    }
}
