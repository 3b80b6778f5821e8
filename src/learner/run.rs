//! The learner's loop: arrivals to batches, batches to steps, steps to snapshots and checkpoints.

use super::Learner;
use super::state::Parts;
use super::trainer::StepReport;
use super::vitals::{Summary, Vitals};
use crate::augment::ViewGroup;
use crate::batch::assemble::{Batch, Fresh, Order, ViewSpec, assemble};
use crate::batch::{Decision, Supply, decide};
use crate::checkpoint::Counts;
use crate::decode::fingerprint::difference;
use crate::objective::parts::negatives::NegativeWeights;
use crate::replay::sketch::Sketch;
use crate::replay::{self, Entry};
use crate::source::{Commit, Origin};
use anyhow::{Context, Result};
use metrics::{counter, gauge, histogram};
use std::time::Duration;
use tokio::sync::mpsc;
use tracing::{info, warn};

/// How long dead letters under way may take at the end.
const FLUSH: Duration = Duration::from_secs(5);

impl Learner {
    /// A restored encoder serves at once, if it passes the gate.
    pub(super) fn publish_restored(&mut self) -> Result<()> {
        if self.trainer.progress().steps == 0 { Ok(()) } else { self.publish() }
    }

    /// Publishes the encoder as it is, checked on replayed images.
    fn publish(&mut self) -> Result<()> {
        let step = self.trainer.progress().steps;
        let mut replayed = replay::draw(&*self.replay, self.batch.images, self.views.seed, step);
        if replayed.is_empty() {
            replayed.clone_from(&self.pending);
        }
        let n_probe = replayed.len();
        let groups = vec![ViewGroup::alike(1)];
        let views = ViewSpec { groups, fingerprints: false, ..self.views.clone() };
        let probe = assemble(&views, Order { step, fresh: vec![], replayed })?.views;
        let learned = self.counts().learned;
        self.publisher.publish(&self.trainer, learned, (probe, n_probe))
    }

    /// Learns until it is told to stop, then publishes and writes a last checkpoint.
    ///
    /// # Errors
    /// Whatever makes going on impossible.
    pub fn run(mut self) -> Result<Summary> {
        while !self.stop.is_cancelled() && !self.is_finished() {
            self.listen()?;
            if !self.is_ordered && !self.order_next()? {
                continue;
            }
            let batch = self.assembler.take()?;
            self.is_ordered = false;
            // Ordered now, the next batch is made while this one is learned.
            self.order_next_after(&batch)?;
            self.learn(batch)?;
            if self.state.is_due() {
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

    /// Orders the batch after `batch`, if there is enough for it already.
    fn order_next_after(&mut self, batch: &Batch) -> Result<()> {
        let n_fresh = batch.order.fresh.len();
        if let Decision::Step { fresh, replayed } = decide(&self.batch, self.supply(n_fresh)) {
            self.order(fresh, replayed, batch.order.step + 1)?;
        }
        self.offer_pending();
        Ok(())
    }

    /// What there is to step on, when `n_ahead` fresh images are about to be learned.
    fn supply(&self, n_ahead: usize) -> Supply {
        let left = |limit: u64| limit.saturating_sub(self.learned_here + n_ahead as u64);
        Supply {
            fresh: self.arrivals.n_fresh(),
            replay: self.replay.entries().len(),
            waited: self.arrivals.waited(),
            is_draining: false,
            fresh_limit: self.limits.images.map_or(usize::MAX, |limit| left(limit) as usize),
        }
    }

    fn order(&mut self, fresh: usize, replayed: usize, step: u64) -> Result<()> {
        let fresh = self.arrivals.take(fresh);
        let replayed = replay::draw(&*self.replay, replayed, self.views.seed, step);
        self.assembler.order(Order { step, fresh, replayed })?;
        self.is_ordered = true;
        Ok(())
    }

    fn offer_pending(&mut self) {
        for entry in self.pending.drain(..) {
            self.replay.offer(entry);
        }
    }

    fn learn(&mut self, batch: Batch) -> Result<()> {
        let Batch { order, views, fingerprints, .. } = batch;
        let ids: Vec<u64> = order
            .fresh
            .iter()
            .map(|image| &image.origin)
            .chain(order.replayed.iter().map(|entry| &entry.origin))
            .map(Origin::seed)
            .collect();
        let is_due = self.publisher.is_due(order.step + 1);
        // The first view of each image is at hand, where it is of the input's side.
        let is_probe = self.views.groups.first().is_some_and(|group| group.side_px.is_none());
        let probe_len = ids.len() * self.views.preprocess.input_len();
        let probe = (is_due && is_probe).then(|| views[..probe_len].to_vec());
        let negatives = self.negatives(&fingerprints);
        let step = self.trainer.step(views, &ids, negatives.as_ref());
        let report = step.context("training step")?;
        let sketcher = self.sketcher.as_ref();
        let sketches = sketcher.map(|sketcher| sketcher.sketches(self.trainer.features()));
        let mut sketches = sketches.into_iter().flatten();
        let of_fresh: Vec<Sketch> = sketches.by_ref().take(order.fresh.len()).collect();
        for (entry, sketch) in order.replayed.iter().zip(sketches) {
            self.replay.seen(entry.id(), &sketch);
        }
        self.note_learned(order.fresh, of_fresh, &fingerprints)?;
        self.note_step(report);
        if let Some(probe) = probe {
            let learned = self.counts().learned;
            self.publisher.publish(&self.trainer, learned, (probe, ids.len()))?;
        } else if is_due {
            self.publish()?;
        }
        self.show();
        Ok(())
    }

    /// How much the images of a batch count as negatives of each other, where some are alike.
    fn negatives(&self, fingerprints: &[u64]) -> Option<NegativeWeights> {
        let (weight, most) = (self.near_duplicates, self.views.decode.duplicate_bits);
        let are_alike = |i, j| difference(fingerprints[i], fingerprints[j]) <= most;
        if weight >= 1.0 {
            return None;
        }
        let weights = NegativeWeights::new(fingerprints.len(), weight, are_alike);
        let n_pairs = weights.as_ref().map_or(0, NegativeWeights::n_pairs);
        counter!("selfstream_near_duplicate_negatives_total").increment(n_pairs as u64);
        weights
    }

    /// `sketches` and `fingerprints` are one of each image, or none.
    fn note_learned(
        &mut self,
        fresh: Vec<Fresh>,
        sketches: Vec<Sketch>,
        fingerprints: &[u64],
    ) -> Result<()> {
        let step = self.trainer.progress().steps;
        if let Some(journal) = &mut self.journal
            && !fresh.is_empty()
        {
            journal.learned(step, fresh.iter().map(|image| &image.origin))?;
        }
        counter!("selfstream_learned_images_total").increment(fresh.len() as u64);
        self.learned_here += fresh.len() as u64;
        let mut sketches = sketches.into_iter();
        for (index, fresh) in fresh.into_iter().enumerate() {
            let Fresh { origin, generation, bytes, timestamp_ms, .. } = fresh;
            self.arrivals.learned(&origin, generation);
            self.publisher.learned(timestamp_ms);
            let sketch = sketches.next();
            let print = fingerprints.get(index);
            if print.is_some_and(|print| self.repeats.is_repeat(*print)) {
                counter!("selfstream_duplicate_images_total").increment(1);
                continue;
            }
            self.pending.push(Entry { origin, bytes, stored_at: None, sketch });
        }
        Ok(())
    }

    fn note_step(&mut self, report: StepReport) {
        let StepReport { loss, rate, took } = report;
        if !loss.is_finite() {
            warn!(step = self.trainer.progress().steps, loss, "the loss is not finite");
        }
        self.losses.push(loss, took);
        self.publisher.stepped(&report);
        counter!("selfstream_steps_total").increment(1);
        gauge!("selfstream_loss_nats").set(loss);
        gauge!("selfstream_learning_rate_ratio").set(rate);
        histogram!("selfstream_step_seconds").record(took.as_secs_f64());
        gauge!("selfstream_replay_images").set(self.replay.entries().len() as f64);
    }

    /// Counts since the run began, over restarts.
    fn counts(&self) -> Counts {
        Counts {
            learned: self.restored.learned + self.learned_here,
            refused: self.restored.refused + self.arrivals.n_refused(),
        }
    }

    fn current_vitals(&self) -> Vitals {
        Vitals {
            received: self.arrivals.received(),
            counts: self.counts(),
            learned_here: self.learned_here,
            in_flight: self.arrivals.tracker().in_flight(),
            steps: self.trainer.progress().steps,
            loss: self.losses.last(),
            replay_images: self.replay.entries().len(),
            version: self.publisher.version(),
            published: self.publisher.published(),
        }
    }

    fn show(&self) {
        let vitals = self.current_vitals();
        gauge!("selfstream_in_flight_records").set(vitals.in_flight as f64);
        self.vitals.send_replace(vitals);
    }

    pub(super) fn write_checkpoint(&mut self) -> Result<Commit> {
        let counts = self.counts();
        self.state.save(Parts {
            trainer: &self.trainer,
            replay: &mut *self.replay,
            repeats: &self.repeats,
            pending: &mut self.pending,
            tracker: self.arrivals.tracker(),
            counts,
            last_version: self.publisher.version(),
        })
    }

    /// Writes a checkpoint, then lets the source commit what it holds.
    pub(super) fn checkpoint(&mut self) -> Result<()> {
        let commit = self.write_checkpoint()?;
        // A full channel has an older commit under way; the next checkpoint's holds all of ours.
        if let Err(mpsc::error::TrySendError::Full(_)) = self.commits.try_send(commit) {
            warn!("the source has not committed the last checkpoints yet");
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Summary> {
        self.arrivals.flush(FLUSH);
        for acknowledged in self.arrivals.acknowledgements() {
            self.acknowledge(&acknowledged)?;
        }
        if self.publisher.is_behind(self.trainer.progress().steps) {
            self.publish()?;
        }
        self.checkpoint()?;
        self.show();
        let summary = Summary {
            vitals: self.current_vitals(),
            loss_first: self.losses.first(),
            learning: self.losses.learning(),
            freshness_seconds: self.publisher.freshness_seconds(),
        };
        self.assembler.stop();
        info!(steps = summary.vitals.steps, learned = summary.vitals.counts.learned, "stopped");
        Ok(summary)
    }
}
