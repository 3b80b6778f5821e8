//! What an encoder must pass before it answers queries.

pub mod monitor;

use crate::setting::{Invalid, within};
use monitor::{UnitRows, rankme, spread};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Candidates that passed whose rank is remembered, and how many there must be before a new one is
/// compared with them. Guesses: some minutes of a run.
const REMEMBERED: usize = 15;
const ENOUGH: usize = 3;

/// `[gate]`: what a candidate is checked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The least spread of the candidate's embeddings, see [`spread`]; below it the encoder counts
    /// as collapsed. 0 is a point, 1 fills the sphere evenly.
    pub min_spread: f32,
    /// The least rank of its embeddings, see [`rankme`], as a share of the median of the last
    /// candidates that passed.
    pub min_rank_share: f64,
    /// Steps over which all candidates after one must pass before that is `stable`.
    pub stable_after_steps: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { min_spread: 0.02, min_rank_share: 0.5, stable_after_steps: 500 }
    }
}

impl Config {
    /// Checks every value.
    ///
    /// # Errors
    /// The first value that is not allowed, by key.
    pub fn validate(&self) -> Result<(), Invalid> {
        within("gate.min_spread", self.min_spread, 0.0..1.0, "from 0 to below 1")?;
        within("gate.min_rank_share", self.min_rank_share, 0.0..1.0, "from 0 to below 1")?;
        within("gate.stable_after_steps", self.stable_after_steps, 1.., "at least 1")
    }
}

/// Why a candidate does not go live.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum Refused {
    /// Not every number is finite.
    #[error("its embeddings are not finite")]
    NotFinite,
    /// Its embeddings are (nearly) one point.
    #[error("its embeddings have spread {spread}, at least {min} is wanted")]
    Collapsed {
        /// What it was.
        spread: f32,
        /// What is wanted.
        min: f32,
    },
    /// Its embeddings lie along far fewer directions than those before.
    #[error("its embeddings have rank {rank:.1}, those before it {usual:.1}")]
    RankFell {
        /// What it was.
        rank: f64,
        /// What was usual.
        usual: f64,
    },
}

impl Refused {
    /// The bounded reason, a metric's label.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotFinite => "not_finite",
            Self::Collapsed { .. } => "collapsed",
            Self::RankFell { .. } => "rank_fell",
        }
    }
}

/// What a candidate's embeddings look like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Looks {
    /// [`spread`].
    pub spread: f32,
    /// [`rankme`].
    pub rank: f64,
}

/// The gate, with what it remembers.
#[derive(Clone, Debug)]
pub struct Gate {
    config: Config,
    memory: Memory,
}

/// What the gate remembers, for checkpoints.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// Ranks of the last candidates that passed, oldest first.
    ranks: VecDeque<f64>,
}

impl Gate {
    /// A gate that remembers `memory`.
    pub fn new(config: &Config, memory: Memory) -> Self {
        Self { config: config.clone(), memory }
    }

    /// Forgets what was usual.
    pub fn forget(&mut self) {
        self.memory = Memory::default();
    }

    /// What it remembers.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Checks a candidate by its embeddings of recent images, flat `[N, D]`; the same N each time, as
    /// a rank grows with it.
    pub fn check(&mut self, embeddings: Vec<f32>, dim: usize) -> (Looks, Result<(), Refused>) {
        if embeddings.iter().any(|value| !value.is_finite()) {
            return (Looks { spread: f32::NAN, rank: f64::NAN }, Err(Refused::NotFinite));
        }
        let rows = UnitRows::new(embeddings, dim);
        let looks = Looks { spread: spread(&rows), rank: rankme(&rows) };
        let passed = self.judge(looks);
        if passed.is_ok() {
            self.memory.ranks.push_back(looks.rank);
            while self.memory.ranks.len() > REMEMBERED {
                self.memory.ranks.pop_front();
            }
        }
        (looks, passed)
    }

    fn judge(&self, Looks { spread, rank }: Looks) -> Result<(), Refused> {
        let min = self.config.min_spread;
        if spread < min {
            return Err(Refused::Collapsed { spread, min });
        }
        match self.usual_rank() {
            Some(usual) if rank < self.config.min_rank_share * usual => {
                Err(Refused::RankFell { rank, usual })
            }
            _ => Ok(()),
        }
    }

    /// The median of the ranks that are remembered, if they are enough.
    fn usual_rank(&self) -> Option<f64> {
        let mut ranks: Vec<f64> = self.memory.ranks.iter().copied().collect();
        ranks.sort_by(f64::total_cmp);
        (ranks.len() >= ENOUGH).then(|| ranks[ranks.len() / 2])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Embeddings of eight images over `n_axes` directions.
    fn over(n_axes: usize) -> Vec<f32> {
        (0..64).map(|i| if i % 8 == (i / 8) % n_axes { 1.0 } else { 0.0 }).collect()
    }

    fn gate() -> Gate {
        Gate::new(&Config::default(), Memory::default())
    }

    #[test]
    fn a_point_and_what_is_not_finite_are_refused() {
        let mut gate = gate();
        assert_eq!(gate.check(vec![1.0, f32::NAN], 2).1, Err(Refused::NotFinite));
        let collapsed = gate.check(vec![1.0, 2.0, 1.0, 2.0], 2).1.unwrap_err();
        assert_eq!(collapsed.reason(), "collapsed");
        assert!(gate.check(vec![1.0, 0.0, 0.0, 1.0], 2).1.is_ok());
    }

    #[test]
    fn a_rank_is_held_to_the_median_of_those_that_passed() {
        let mut gate = gate();
        // Nothing to compare with yet.
        for n_axes in [2, 8, 8, 8] {
            assert!(gate.check(over(n_axes), 8).1.is_ok());
        }
        let (looks, passed) = gate.check(over(3), 8);
        assert!((looks.rank - 3.0).abs() < 1.0);
        assert_eq!(passed.unwrap_err().reason(), "rank_fell");
        assert!(gate.check(over(6), 8).1.is_ok());
        // What it remembers goes through a checkpoint.
        let memory = serde_json::to_string(gate.memory()).unwrap();
        let mut restored = Gate::new(&Config::default(), serde_json::from_str(&memory).unwrap());
        assert_eq!(restored.memory(), gate.memory());
        assert!(restored.check(over(3), 8).1.is_err());
        gate.forget();
        assert!(gate.check(over(3), 8).1.is_ok());
        for _ in 0..2 * REMEMBERED {
            gate.check(over(8), 8).1.unwrap();
        }
        assert_eq!(gate.memory().ranks.len(), REMEMBERED);
    }
}
