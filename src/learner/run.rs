//! The learner's loop: arrivals to batches, batches to steps, steps to snapshots and checkpoints.

use super::Learner;
use super::probe::Probe;
use super::publish::{Done, Outcome};
use super::vitals::{Summary, Vitals};
use crate::batch::assemble::{Batch, Order, unreadable};
use crate::batch::{Decision, Supply, decide};
use crate::checkpoint::Counts;
use crate::gate::monitor::Figures;
use crate::replay::repeats::Repeats;
use crate::replay::{self, Entry, Policy};
use anyhow::Result;
use metrics::gauge;
use std::collections::HashSet;
use tracing::{debug, info, warn};

impl Learner {
    /// A restored encoder serves at once, if it passes the gate.
    pub(super) fn publish_restored(&mut self) -> Result<()> {
        if self.trainer.progress().steps == 0 { Ok(()) } else { self.publish(None) }
    }

    /// Publishes the encoder as it is, checked on `probe` or on replayed images; where there are none to check it on,
    /// or too few to tell, it may be left for later.
    pub(super) fn publish(&mut self, probe: Option<Probe>) -> Result<()> {
        let step = self.trainer.progress().steps;
        let Some(probe) = probe.or_else(|| self.replayed_probe()) else {
            self.publisher.put_off(step);
            return Ok(());
        };
        let monitors = self.window.figures();
        monitors.iter().for_each(Figures::show);
        let learned = self.counts().learned;
        let done = Done { images_learned: learned, changes: self.on_drift.changes() };
        let has_passed = match self.publisher.publish(&self.trainer, done, &probe, monitors)? {
            Outcome::WentLive => true,
            Outcome::Refused => false,
            Outcome::PutOff => return Ok(()),
        };
        if self.health.judged(step, has_passed) {
            self.publisher.forget_usual();
        }
        Ok(())
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
            if !batch.unreadable.is_empty() {
                self.drop_unreadable(batch);
                continue;
            }
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

    /// Drops what no longer decodes, of all that is kept: it is decoded for that, once. `batch`, which met some of
    /// it, is ordered again.
    fn drop_unreadable(&mut self, batch: Batch) {
        self.arrivals.give_back(batch.order.fresh);
        let (decode, mut dropped) = (&self.views.decode, batch.unreadable);
        dropped.extend(unreadable(self.replay.entries(), decode));
        dropped.extend(unreadable(&self.pending, decode));
        let ids: HashSet<u64> = dropped.iter().map(|(origin, _)| origin.seed()).collect();
        let is_kept = |entry: &Entry| !ids.contains(&entry.id());
        self.replay.retain(&is_kept);
        self.pending.retain(is_kept);
        self.unreadable.clear();
        // What looks like one of those that are gone is to be kept.
        self.repeats = Repeats::new(self.shape.replay.duplicate_window, self.shape.duplicate_bits);
        for (origin, refusal) in &dropped {
            debug!(%origin, %refusal, "dropped from the replay buffer");
        }
        let (n_dropped, n_left) = (ids.len(), self.replay.entries().len());
        if let Some((first, refusal)) = dropped.first() {
            warn!(n_dropped, n_left, %first, %refusal, "replayed images no longer decode: dropped");
        }
    }

    /// Orders the next batch, or waits for what it lacks. True if it was ordered.
    fn order_next(&mut self) -> Result<bool> {
        if self.replay.entries().is_empty() {
            self.offer_pending();
        }
        match decide(&self.batch, self.supply(0)) {
            Decision::Step { fresh, replayed } => {
                // What is pending is offered once this batch is in hand: it may have to be drawn again.
                self.order(fresh, replayed, self.trainer.progress().steps)?;
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
        if self.replay.entries().is_empty() && !self.keeps_nothing() {
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

    /// Offers the buffer what the last step learned, but for one that keeps nothing: as many of the images learned
    /// last as a batch has stay, for candidates to be looked at by. In a still scene a step may add none.
    fn offer_pending(&mut self) {
        let n_stay = if self.keeps_nothing() { self.batch.images } else { 0 };
        replay::offer_all_but(&mut *self.replay, &mut self.pending, n_stay);
    }

    /// The same where the buffer keeps nothing, and does not wait for the next draw.
    pub(super) fn trim_pending(&mut self) {
        if self.keeps_nothing() {
            self.offer_pending();
        }
    }

    fn keeps_nothing(&self) -> bool {
        self.shape.replay.policy == Policy::None
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
            version: self.publisher.served(),
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
