//! What an encoder must pass before it answers queries.
//!
//! Where labels come along, a candidate is refused for its accuracy only if three things hold: it is below
//! `min_accuracy_share` of what was usual of those before it, below the same share of what the version that
//! serves has on the very same images, and by more than chance. The first alone would refuse healthy encoders
//! where a stream is sorted by class or has become harder, and learning would go back for nothing; the second
//! is free of what arrives, as both see the same. So a candidate is refused for what it has lost against
//! the last that passed, and a slow fall over many is not caught: nothing tells it from a harder stream.

pub mod monitor;

use crate::setting::{Invalid, within};
use monitor::{UnitRows, rankme, spread};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Candidates that passed whose rank is remembered, and how many there must be before a new one is
/// compared with them. Guesses: some minutes of a run.
const REMEMBERED: usize = 15;
const ENOUGH: usize = 3;
/// The fewest different images that tell something of an encoder. A guess.
const FEWEST_IMAGES: usize = 8;

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
    /// The least accuracy on labelled images, where they come along, as a share of the median of the last
    /// candidates that passed, and of what the version that serves has on the same images. 0 asks for none.
    pub min_accuracy_share: f64,
    /// Steps over which all candidates after one must pass before that is `stable`.
    pub stable_after_steps: u64,
}

impl Default for Config {
    fn default() -> Self {
        // The shares are guesses: half of what was usual is far from what a batch or a few hundred images
        // change by chance.
        Self {
            min_spread: 0.02,
            min_rank_share: 0.5,
            min_accuracy_share: 0.5,
            stable_after_steps: 500,
        }
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
        let share = self.min_accuracy_share;
        within("gate.min_accuracy_share", share, 0.0..1.0, "from 0 to below 1")?;
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
    /// It tells far fewer labelled images than those before.
    #[error(
        "its accuracy on labelled images is {:.3}, that of the version that serves {:.3} on the same, usual \
         is {usual:.3}",
        accuracy.candidate,
        accuracy.served
    )]
    AccuracyFell {
        /// What it was.
        accuracy: Accuracy,
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
            Self::AccuracyFell { .. } => "accuracy_fell",
        }
    }

    /// Whether it says as much of an encoder that is looked at by too few images, see [`can_tell`].
    pub fn holds_for_few(&self) -> bool {
        matches!(self, Self::NotFinite | Self::AccuracyFell { .. })
    }
}

/// How well a candidate tells labelled images, beside the version that serves: on the same images.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Accuracy {
    /// The share that the candidate tells.
    pub candidate: f64,
    /// The share that the version that serves tells.
    pub served: f64,
    /// How many they are.
    pub n_images: usize,
}

impl Accuracy {
    /// Whether the candidate is worse by more than chance: three standard errors of a difference between two
    /// sets of images, which is more than that on the same ones.
    fn is_worse(&self) -> bool {
        let variance = |share: f64| share * (1.0 - share) / self.n_images.max(1) as f64;
        let error = (variance(self.candidate) + variance(self.served)).sqrt();
        self.served - self.candidate > 3.0 * error
    }
}

/// What a candidate's embeddings look like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Looks {
    /// [`spread`].
    pub spread: f32,
    /// [`rankme`].
    pub rank: f64,
    /// How well they tell labelled images, where that was asked and is known.
    pub accuracy: Option<Accuracy>,
}

/// Whether the embeddings of so many different images tell anything of an encoder: those of fewer may lie as near to
/// each other as a collapsed one's, however healthy it is. No more are asked for than a batch has.
pub fn can_tell(n_different: usize, batch_images: usize) -> bool {
    n_different >= FEWEST_IMAGES.min(batch_images)
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
    /// Accuracies of the last candidates that passed and were compared, oldest first.
    accuracies: VecDeque<f64>,
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
    /// a rank grows with it. Asks `compare` for its accuracy if all else is well.
    pub fn check(
        &mut self,
        embeddings: Vec<f32>,
        dim: usize,
        compare: impl FnOnce() -> Option<Accuracy>,
    ) -> (Looks, Result<(), Refused>) {
        if embeddings.iter().any(|value| !value.is_finite()) {
            let looks = Looks { spread: f32::NAN, rank: f64::NAN, accuracy: None };
            return (looks, Err(Refused::NotFinite));
        }
        let rows = UnitRows::new(embeddings, dim);
        let mut looks = Looks { spread: spread(&rows), rank: rankme(&rows), accuracy: None };
        if let Err(refused) = self.judge_looks(looks) {
            return (looks, Err(refused));
        }
        if self.config.min_accuracy_share > 0.0 {
            looks.accuracy = compare();
        }
        if let Some(accuracy) = looks.accuracy {
            if let Err(refused) = self.judge_accuracy(accuracy) {
                return (looks, Err(refused));
            }
            remember(&mut self.memory.accuracies, accuracy.candidate);
        }
        remember(&mut self.memory.ranks, looks.rank);
        (looks, Ok(()))
    }

    fn judge_looks(&self, Looks { spread, rank, .. }: Looks) -> Result<(), Refused> {
        let min = self.config.min_spread;
        if spread < min {
            return Err(Refused::Collapsed { spread, min });
        }
        match usual(&self.memory.ranks) {
            Some(usual) if rank < self.config.min_rank_share * usual => {
                Err(Refused::RankFell { rank, usual })
            }
            _ => Ok(()),
        }
    }

    fn judge_accuracy(&self, accuracy: Accuracy) -> Result<(), Refused> {
        let Some(usual) = usual(&self.memory.accuracies) else { return Ok(()) };
        let least = self.config.min_accuracy_share * usual.min(accuracy.served);
        if accuracy.candidate < least && accuracy.is_worse() {
            return Err(Refused::AccuracyFell { accuracy, usual });
        }
        Ok(())
    }
}

fn remember(last: &mut VecDeque<f64>, value: f64) {
    last.push_back(value);
    if last.len() > REMEMBERED {
        last.pop_front();
    }
}

/// The median of what is remembered, if it is enough.
fn usual(last: &VecDeque<f64>) -> Option<f64> {
    let mut values: Vec<f64> = last.iter().copied().collect();
    values.sort_by(f64::total_cmp);
    (values.len() >= ENOUGH).then(|| values[values.len() / 2])
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

    /// Without labels.
    fn check(gate: &mut Gate, embeddings: Vec<f32>, dim: usize) -> (Looks, Result<(), Refused>) {
        gate.check(embeddings, dim, || None)
    }

    #[test]
    fn a_point_and_what_is_not_finite_are_refused() {
        let mut gate = gate();
        assert_eq!(check(&mut gate, vec![1.0, f32::NAN], 2).1, Err(Refused::NotFinite));
        let collapsed = check(&mut gate, vec![1.0, 2.0, 1.0, 2.0], 2).1.unwrap_err();
        assert_eq!(collapsed.reason(), "collapsed");
        assert!(check(&mut gate, vec![1.0, 0.0, 0.0, 1.0], 2).1.is_ok());
    }

    /// Nothing, and one image however often, are no reason to call an encoder collapsed, as they look.
    #[test]
    fn few_images_tell_nothing_unless_a_batch_has_no_more() {
        for n_images in [0, 1] {
            assert!(!can_tell(n_images, 64) && !can_tell(n_images, 2));
            let alike = [0.6, 0.8].repeat(64 * n_images);
            assert_eq!(check(&mut gate(), alike, 2).1.unwrap_err().reason(), "collapsed");
        }
        assert!(!can_tell(7, 64) && can_tell(8, 64) && can_tell(1000, 64));
        assert!(can_tell(2, 2));
    }

    #[test]
    fn a_rank_is_held_to_the_median_of_those_that_passed() {
        let mut gate = gate();
        // Nothing to compare with yet.
        for n_axes in [2, 8, 8, 8] {
            assert!(check(&mut gate, over(n_axes), 8).1.is_ok());
        }
        let (looks, passed) = check(&mut gate, over(3), 8);
        assert!((looks.rank - 3.0).abs() < 1.0);
        assert_eq!(passed.unwrap_err().reason(), "rank_fell");
        assert!(check(&mut gate, over(6), 8).1.is_ok());
        // What it remembers goes through a checkpoint.
        let memory = serde_json::to_string(gate.memory()).unwrap();
        let mut restored = Gate::new(&Config::default(), serde_json::from_str(&memory).unwrap());
        assert_eq!(restored.memory(), gate.memory());
        assert!(check(&mut restored, over(3), 8).1.is_err());
        gate.forget();
        assert!(check(&mut gate, over(3), 8).1.is_ok());
        for _ in 0..2 * REMEMBERED {
            check(&mut gate, over(8), 8).1.unwrap();
        }
        assert_eq!(gate.memory().ranks.len(), REMEMBERED);
    }

    /// Whether a healthy-looking candidate passes that tells this share of 100 images, where what serves tells that.
    fn told(gate: &mut Gate, candidate: f64, served: f64) -> Result<(), Refused> {
        gate.check(over(8), 8, || Some(Accuracy { candidate, served, n_images: 100 })).1
    }

    #[test]
    fn an_accuracy_is_held_to_what_was_usual_and_to_what_serves() {
        let mut gate = gate();
        // Nothing is usual yet, however well the version before did.
        for accuracy in [0.1, 0.8, 0.8, 0.9] {
            told(&mut gate, accuracy, 0.9).unwrap();
        }
        let refused = told(&mut gate, 0.3, 0.8).unwrap_err();
        assert_eq!(refused.reason(), "accuracy_fell");
        let said = "its accuracy on labelled images is 0.300, that of the version that serves 0.800 on the \
                    same, usual is 0.800";
        assert_eq!(refused.to_string(), said);
        // Half of what was usual is .4; what is refused does not become usual.
        told(&mut gate, 0.5, 0.9).unwrap();
        assert!(told(&mut gate, 0.3, 0.8).is_err());
        // Where no labels come there is nothing to refuse, and nothing to remember.
        let before = gate.memory().accuracies.clone();
        assert_eq!(before, [0.1, 0.8, 0.8, 0.9, 0.5]);
        check(&mut gate, over(8), 8).1.unwrap();
        assert_eq!(gate.memory().accuracies, before);
        for _ in 0..2 * REMEMBERED {
            told(&mut gate, 0.8, 0.8).unwrap();
        }
        assert_eq!(gate.memory().accuracies, [0.8; REMEMBERED]);
    }

    #[test]
    fn a_stream_that_becomes_harder_refuses_nobody() {
        let mut gate = gate();
        (0..5).for_each(|_| told(&mut gate, 0.9, 0.9).unwrap());
        // What serves finds it as hard.
        (0..50).for_each(|_| told(&mut gate, 0.1, 0.12).unwrap());
        (0..5).for_each(|_| told(&mut gate, 0.0, 0.0).unwrap());
        // 2 of 100 beside 8 is chance.
        told(&mut gate, 0.02, 0.08).unwrap();
    }

    #[test]
    fn what_was_usual_is_forgotten_and_goes_through_checkpoints() {
        let mut gate = gate();
        (0..3).for_each(|_| told(&mut gate, 0.75, 0.75).unwrap());
        let memory = serde_json::to_string(gate.memory()).unwrap();
        let mut restored = Gate::new(&Config::default(), serde_json::from_str(&memory).unwrap());
        assert_eq!(restored.memory(), gate.memory());
        assert!(told(&mut restored, 0.2, 0.75).is_err());
        restored.forget();
        told(&mut restored, 0.2, 0.75).unwrap();
        // What a checkpoint of an earlier version of this program held.
        let older: Memory = serde_json::from_str(r#"{"ranks":[8.0,8.0,8.0]}"#).unwrap();
        let mut restored = Gate::new(&Config::default(), older);
        assert!(check(&mut restored, over(3), 8).1.is_err());
        told(&mut restored, 0.2, 0.75).unwrap();
    }

    #[test]
    fn nobody_is_asked_in_vain() {
        let never = || -> Option<Accuracy> { panic!("asked") };
        let config = Config { min_accuracy_share: 0.0, ..Config::default() };
        Gate::new(&config, Memory::default()).check(over(8), 8, never).1.unwrap();
        let collapsed = gate().check(vec![1.0, 2.0, 1.0, 2.0], 2, never).1.unwrap_err();
        assert_eq!(collapsed.reason(), "collapsed");
    }
}
