//! What the learner does when what arrives has changed: learns faster for a while, and counts the change, which
//! every later version carries as its tag.

use crate::events::{Event, Events, Told};
use crate::setting::{Invalid, within};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::TryRecvError;

/// `[learner.on_drift]`: the response to a change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What the learning rate is multiplied by; 1 leaves it as it is.
    pub rate_factor: f64,
    /// For so many steps.
    pub rate_steps: u64,
    /// Whether the rate warms up again first.
    pub warm_up: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { rate_factor: 1.0, rate_steps: 200, warm_up: false }
    }
}

impl Config {
    /// Checks every value.
    ///
    /// # Errors
    /// The first value that is not allowed, by key.
    pub fn validate(&self) -> Result<(), Invalid> {
        let key = "learner.on_drift.rate_factor";
        within(key, self.rate_factor, 0.1..=10.0, "from 0.1 to 10")?;
        within("learner.on_drift.rate_steps", self.rate_steps, 1.., "at least 1")
    }
}

/// The learner's ear for changes.
pub(super) struct OnDrift {
    config: Config,
    heard: Receiver<Told>,
    changes: u64,
    until_step: u64,
}

impl OnDrift {
    /// Listens from now on, after so many `changes`.
    pub(super) fn new(config: &Config, events: &Events, changes: u64) -> Self {
        Self { config: config.clone(), heard: events.listen(), changes, until_step: 0 }
    }

    /// Hears what has been told before `step`; whether the rate is to warm up again.
    pub(super) fn hear(&mut self, step: u64) -> bool {
        let before = self.changes;
        loop {
            match self.heard.try_recv() {
                Ok(Told { event: Event::Drift { .. }, .. }) => self.changes += 1,
                Ok(_) | Err(TryRecvError::Lagged(_)) => {}
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            }
        }
        let has_changed = self.changes > before;
        if has_changed {
            self.until_step = step + self.config.rate_steps;
        }
        has_changed && self.config.warm_up
    }

    /// The learner has gone back: what it was to do for some steps is over.
    pub(super) fn went_back(&mut self) {
        self.until_step = 0;
    }

    /// What the learning rate of `step` is multiplied by.
    pub(super) fn rate_factor(&self, step: u64) -> f64 {
        if step < self.until_step { self.config.rate_factor } else { 1.0 }
    }

    /// Changes since the run began.
    pub(super) fn changes(&self) -> u64 {
        self.changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_raises_the_rate_for_a_while_and_is_counted() {
        let events = Events::default();
        let config = Config { rate_factor: 2.0, rate_steps: 10, warm_up: true };
        let mut on_drift = OnDrift::new(&config, &events, 3);
        assert!(!on_drift.hear(5));
        events.tell(Event::Refused { step: 5, reason: "collapsed" });
        assert!(!on_drift.hear(6));
        events.tell(Event::Drift { origin: "a/0@1".to_owned(), score: 9.0 });
        assert!(on_drift.hear(7));
        assert_eq!(on_drift.changes(), 4);
        assert_eq!([16, 17].map(|step| on_drift.rate_factor(step)), [2.0, 1.0]);
        on_drift.went_back();
        assert_eq!((on_drift.rate_factor(9), on_drift.changes()), (1.0, 4));
    }
}
