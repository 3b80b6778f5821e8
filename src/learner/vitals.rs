//! What the learner shows of itself while it runs, and at the end.

use crate::checkpoint::Counts;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Steps whose mean loss stands for the beginning or the end of a run; fewer in a short run, so
/// that the two never overlap.
const LOSS_WINDOW: usize = 20;
/// Waits kept for the percentiles; older ones make room.
const FRESHNESS_SAMPLES: usize = 200_000;

/// The learner's state as others see it.
#[derive(Clone, Debug, Default)]
pub struct Vitals {
    /// Records received in this process.
    pub received: u64,
    /// Done since the run began.
    pub counts: Counts,
    /// Images learned in this process.
    pub learned_here: u64,
    /// Records refused in this process.
    pub refused_here: u64,
    /// Records done in this process that were passed over by the pace, or whose step was left out.
    pub skipped_here: u64,
    /// Records received and not done.
    pub in_flight: u64,
    /// Steps since the run began.
    pub steps: u64,
    /// Mean loss of the last steps.
    pub loss: Option<f32>,
    /// Images in the replay buffer.
    pub replay_images: usize,
    /// The version that serves.
    pub version: Option<String>,
    /// Versions published in this process.
    pub published: u64,
}

/// What a run did, for its summary.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// The last vitals.
    pub vitals: Vitals,
    /// Mean loss of the first steps of this process.
    pub loss_first: Option<f32>,
    /// Time from the first step to the end.
    pub learning: Duration,
    /// Seconds from an image's broker timestamp to a served encoder that has learned it: the
    /// median and the 99th percentile.
    pub freshness_seconds: Option<[f64; 2]>,
    /// From when the learner was opened to the end.
    pub running: Duration,
    /// What checkpoints cost of it.
    pub checkpoints: CheckpointCost,
}

/// What checkpoints cost a process.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CheckpointCost {
    /// Time that learning stood still for them: to copy what they hold, and to wait for them to be written.
    pub held_up: Duration,
    /// Time that they took to be written, on their own thread.
    pub writing: Duration,
}

/// Losses of a run: the first few and the last few.
#[derive(Debug, Default)]
pub(super) struct Losses {
    first: Vec<f32>,
    last: VecDeque<f32>,
    steps: usize,
    began: Option<Instant>,
}

impl Losses {
    /// Adds a step's loss.
    pub(super) fn push(&mut self, loss: f32, took: Duration) {
        self.began.get_or_insert_with(|| Instant::now() - took);
        self.steps += 1;
        if self.first.len() < LOSS_WINDOW {
            self.first.push(loss);
        }
        if self.last.len() == LOSS_WINDOW {
            self.last.pop_front();
        }
        self.last.push_back(loss);
    }

    /// Mean of the first steps.
    pub(super) fn first(&self) -> Option<f32> {
        mean(self.first.iter().take(self.window()))
    }

    /// Mean of the last steps.
    pub(super) fn last(&self) -> Option<f32> {
        mean(self.last.iter().rev().take(self.window()))
    }

    fn window(&self) -> usize {
        (self.steps / 2).clamp(1, LOSS_WINDOW)
    }

    /// Time since the first step began.
    pub(super) fn learning(&self) -> Duration {
        self.began.map_or(Duration::ZERO, |began| began.elapsed())
    }
}

fn mean<'a>(values: impl ExactSizeIterator<Item = &'a f32>) -> Option<f32> {
    let n = values.len();
    (n > 0).then(|| values.sum::<f32>() / n as f32)
}

/// Waits from broker timestamp to served encoder.
#[derive(Debug, Default)]
pub(super) struct Freshness {
    seconds: VecDeque<f64>,
}

impl Freshness {
    /// Adds an image's wait.
    pub(super) fn push(&mut self, seconds: f64) {
        if self.seconds.len() == FRESHNESS_SAMPLES {
            self.seconds.pop_front();
        }
        self.seconds.push_back(seconds);
    }

    /// Median and 99th percentile, by nearest rank.
    pub(super) fn percentiles(&self) -> Option<[f64; 2]> {
        let mut sorted: Vec<f64> = self.seconds.iter().copied().collect();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let rank = (share * sorted.len() as f64).ceil() as usize;
            sorted.get(rank.max(1) - 1).copied()
        };
        Some([at(0.5)?, at(0.99)?])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let mut freshness = Freshness::default();
        assert_eq!(freshness.percentiles(), None);
        (1..=100).rev().for_each(|seconds| freshness.push(f64::from(seconds)));
        assert_eq!(freshness.percentiles(), Some([50.0, 99.0]));
    }

    #[test]
    fn losses_are_means_of_both_ends() {
        let mut losses = Losses::default();
        assert_eq!(losses.first(), None);
        (0..100).for_each(|step| losses.push(step as f32, Duration::ZERO));
        assert_eq!(losses.first(), Some(9.5));
        assert_eq!(losses.last(), Some(89.5));

        let mut short = Losses::default();
        (0..5).for_each(|step| short.push(step as f32, Duration::ZERO));
        assert_eq!((short.first(), short.last()), (Some(0.5), Some(3.5)));
    }
}
