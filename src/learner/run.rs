//! The learner's loop: arrivals to batches, batches to steps, steps to snapshots and checkpoints.

use super::Learner;
use super::publish::Done;
use super::vitals::{Summary, Vitals};
use crate::augment::ViewGroup;
use crate::batch::assemble::{Batch, Order, ViewSpec, assemble};
use crate::batch::{Decision, Supply, decide};
use crate::checkpoint::Counts;
use crate::gate::monitor::Figures;
use crate::replay::{self, Policy};
use anyhow::Result;
use metrics::gauge;
use tracing::info;

impl Learner {
    /// A restored encoder serves at once, if it passes the gate.
    pub(super) fn publish_restored(&mut self) -> Result<()> {
        if self.trainer.progress().steps == 0 { Ok(()) } else { self.publish(None) }
    }

    /// Publishes the encoder as it is, checked on `probe`, views of as many images, or on replayed ones.
    pub(super) fn publish(&mut self, probe: Option<(Vec<f32>, usize)>) -> Result<()> {
        let (probe, n_probe) = match probe {
            Some(probe) => probe,
            None => self.replayed_probe()?,
        };
        let monitors = self.window.figures();
        monitors.iter().for_each(Figures::show);
        let (learned, step) = (self.counts().learned, self.trainer.progress().steps);
        let probe = (&probe[..], n_probe);
        let done = Done { images_learned: learned, changes: self.on_drift.changes() };
        let has_passed = self.publisher.publish(&self.trainer, done, probe, monitors)?;
        if self.health.judged(step, has_passed) {
            self.publisher.forget_usual();
        }
        Ok(())
    }

    fn replayed_probe(&self) -> Result<(Vec<f32>, usize)> {
        let step = self.trainer.progress().steps;
        let mut replayed = replay::draw(&*self.replay, self.batch.images, self.views.seed, step);
        if replayed.is_empty() {
            replayed.clone_from(&self.pending);
        }
        let n_probe = replayed.len();
        let groups = vec![ViewGroup::alike(1)];
        let views = ViewSpec { groups, fingerprints: false, ..self.views.clone() };
        Ok((assemble(&views, Order { step, fresh: vec![], replayed })?.views, n_probe))
    }

    /// Learns until it is told to stop, then publishes and writes a last checkpoint.
    ///
    /// # Errors
    /// Whatever makes going on impossible.
    pub fn run(mut self) -> Result<Summary> {
        while !self.stop.is_cancelled() && !self.is_finished() {
            self.listen()?;
            if self.health.is_lost() {
                // The last good version goes on answering; nothing more is taken from the stream.
                self.wait(None)?;
                continue;
            }
            if !self.is_ordered && !self.order_next()? {
                continue;
            }
            let batch = self.assembler.take()?;
            self.is_ordered = false;
            // Ordered now, the next batch is made while this one is learned.
            self.order_next_after(&batch)?;
            self.learn(batch)?;
            if let Some(trouble) = self.health.trouble() {
                self.go_back(trouble)?;
            }
            if self.is_checkpoint_due() {
                self.checkpoint()?;
            }
        }
        self.finish()
    }

    fn is_finished(&self) -> bool {
        self.limits.images.is_some_and(|limit| self.learned_here >= limit)
    }

    /// Orders the next batch, or waits for what it lacks. True if it was ordered.
    fn order_next(&mut self) -> Result<bool> {
        if self.replay.entries().is_empty() {
            self.offer_pending();
        }
        match decide(&self.batch, self.supply(0)) {
            Decision::Step { fresh, replayed } => {
                self.order(fresh, replayed, self.trainer.progress().steps)?;
                self.offer_pending();
                Ok(true)
            }
            Decision::Wait => self.wait(None).map(|()| false),
            Decision::WaitAtMost(at_most) => self.wait(Some(at_most)).map(|()| false),
        }
    }

    /// Orders the batch after `batch`, if there is enough for it already. It is drawn from what was there
    /// before `batch`, as it would be later or after a restart.
    fn order_next_after(&mut self, batch: &Batch) -> Result<()> {
        self.offer_pending();
        if self.replay.entries().is_empty() && self.shape.replay.policy != Policy::None {
            // What `batch` brings is all that there will be to draw from.
            return Ok(());
        }
        let n_fresh = batch.order.fresh.len();
        if let Decision::Step { fresh, replayed } = decide(&self.batch, self.supply(n_fresh)) {
            self.order(fresh, replayed, batch.order.step + 1)?;
        }
        Ok(())
    }

    /// What there is to step on, when `n_ahead` fresh images are about to be learned.
    fn supply(&self, n_ahead: usize) -> Supply {
        let left = |limit: u64| limit.saturating_sub(self.learned_here + n_ahead as u64);
        let fresh = self.arrivals.n_fresh();
        let fresh_limit = self.limits.images.map_or(usize::MAX, |limit| left(limit) as usize);
        Supply {
            fresh,
            replay: self.replay.entries().len(),
            waited: self.arrivals.waited(),
            // The last ones that are to be learned are there.
            is_draining: fresh >= fresh_limit,
            fresh_limit,
        }
    }

    fn order(&mut self, fresh: usize, replayed: usize, step: u64) -> Result<()> {
        let fresh = self.arrivals.take(fresh);
        let replayed = replay::draw(&*self.replay, replayed, self.views.seed, step);
        self.assembler.order(Order { step, fresh, replayed })?;
        self.is_ordered = true;
        Ok(())
    }

    /// Offers the buffer what the last step learned, but for one that keeps nothing: until the next step has
    /// learned others, candidates are looked at by these.
    fn offer_pending(&mut self) {
        if self.shape.replay.policy != Policy::None {
            self.offer_all_pending();
        }
    }

    pub(super) fn offer_all_pending(&mut self) {
        for entry in self.pending.drain(..) {
            self.replay.offer(entry);
        }
    }

    /// Counts since the run began, over restarts.
    pub(super) fn counts(&self) -> Counts {
        Counts {
            learned: self.restored.learned + self.learned_here,
            refused: self.restored.refused + self.arrivals.n_refused(),
            skipped: self.restored.skipped + self.arrivals.n_skipped(),
        }
    }

    fn current_vitals(&self) -> Vitals {
        Vitals {
            received: self.arrivals.received(),
            counts: self.counts(),
            learned_here: self.learned_here,
            refused_here: self.arrivals.n_refused(),
            skipped_here: self.arrivals.n_skipped(),
            in_flight: self.arrivals.tracker().in_flight(),
            steps: self.trainer.progress().steps,
            loss: self.losses.last(),
            replay_images: self.replay.entries().len(),
            version: self.publisher.version(),
            published: self.publisher.published(),
        }
    }

    pub(super) fn show(&self) {
        let vitals = self.current_vitals();
        gauge!("selfstream_in_flight_records").set(vitals.in_flight as f64);
        self.vitals.send_replace(vitals);
    }

    fn finish(mut self) -> Result<Summary> {
        self.await_letters()?;
        if self.publisher.is_behind(self.trainer.progress().steps) && self.is_worth_keeping() {
            self.publish(None)?;
        }
        if self.is_worth_keeping() {
            let commit = self.write_checkpoint()?;
            self.tell_written(commit);
        } else {
            self.finish_checkpoint()?;
        }
        self.answer_last()?;
        self.show();
        let summary = Summary {
            vitals: self.current_vitals(),
            loss_first: self.losses.first(),
            learning: self.losses.learning(),
            freshness_seconds: self.publisher.freshness_seconds(),
            running: self.state.age(),
            checkpoints: self.state.cost(),
        };
        self.assembler.stop();
        info!(steps = summary.vitals.steps, learned = summary.vitals.counts.learned, "stopped");
        Ok(summary)
    }
}
