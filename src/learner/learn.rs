//! One batch: the loss of the weights as they are, whether to step down it, and what becomes known by it.

use super::page_hinkley::Rise;
use super::probe::Probe;
use super::trainer::StepReport;
use super::{Learner, health};
use crate::augment::ViewGroup;
use crate::batch::assemble::{Batch, Fresh, Order};
use crate::events::Event;
use crate::objective::parts::negatives::NegativeWeights;
use crate::replay::Entry;
use crate::replay::sketch::Sketch;
use crate::source::Origin;
use anyhow::{Context, Result};
use metrics::{counter, gauge, histogram};
use std::collections::HashSet;
use tracing::warn;

impl Learner {
    /// Takes a step on `batch`, or leaves it out.
    ///
    /// # Errors
    /// Whatever the device, the snapshot folder or the journal report.
    pub(super) fn learn(&mut self, batch: Batch) -> Result<()> {
        let Batch { order, views, fingerprints, .. } = batch;
        let ids: Vec<u64> = order
            .fresh
            .iter()
            .map(|image| &image.origin)
            .chain(order.replayed.iter().map(|entry| &entry.origin))
            .map(Origin::seed)
            .collect();
        let is_due = self.publisher.is_due(order.step);
        let negatives = self.negatives(&ids, &fingerprints);
        // The first view of each image is at hand, where it is of the input's side. Those of one scene, or of copies,
        // would look collapsed.
        let input_side_px = self.views.preprocess.side_px;
        let is_input = |group: &ViewGroup| group.side.px(input_side_px) == input_side_px;
        let differ = |weights: &NegativeWeights| health::is_compared(weights.share());
        let is_probe = is_due
            && self.views.groups.first().is_some_and(is_input)
            && negatives.as_ref().is_none_or(differ);
        let probe_len = ids.len() * self.views.preprocess.input_len();
        let probe = is_probe.then(|| Probe {
            views: views[..probe_len].to_vec(),
            n_images: ids.len(),
            can_tell: true,
        });
        let look = self.trainer.look(views, &ids, negatives.as_ref()).context("training step")?;
        let weights = negatives.as_ref().filter(|_| self.trainer.weighs_negatives());
        let share = weights.map_or(1.0, NegativeWeights::share);
        if !self.health.admits(look.loss(), share) {
            let report = self.trainer.leave(look).context("a step that is left out")?;
            return self.note_left_out(order.fresh, report);
        }
        if is_due {
            // These weights have just been shown to do as well as usual on a batch, if it had the pairs to tell.
            self.publish(probe)?;
        }
        if self.on_drift.hear(order.step) {
            self.trainer.restart_schedule();
        }
        let rate_share = self.health.rate_share(order.step) * self.on_drift.rate_factor(order.step);
        let report = self.trainer.take(look, rate_share).context("training step")?;
        self.window.push(self.trainer.features(), ids.len(), self.trainer.plan().feature_dim);
        let sketches = self.sketch(&order, ids.len());
        self.note_learned(order.fresh, sketches, &fingerprints)?;
        self.note_step(report, health::is_compared(share));
        self.show();
        Ok(())
    }

    /// Tells the buffer what its images of this step look like; returns sketches of the fresh ones.
    fn sketch(&mut self, order: &Order, n_images: usize) -> Vec<Sketch> {
        let Some(sketcher) = &self.sketcher else { return vec![] };
        let mut sketches = sketcher.sketches(&self.trainer.mean_features(n_images));
        let of_replayed = sketches.split_off(order.fresh.len());
        for (entry, sketch) in order.replayed.iter().zip(of_replayed) {
            self.replay.seen(entry.id(), &sketch);
        }
        sketches
    }

    /// A step was not taken: its fresh images are done, and not learned.
    fn note_left_out(&mut self, fresh: Vec<Fresh>, report: StepReport) -> Result<()> {
        let step = self.trainer.progress().steps;
        warn!(step, loss = report.loss, "the loss is out of bounds: this step is not taken");
        if let Some(journal) = &mut self.journal
            && !fresh.is_empty()
        {
            journal.skipped(step, fresh.iter().map(|image| &image.origin))?;
        }
        for image in &fresh {
            self.arrivals.skipped(&image.origin, image.generation);
        }
        counter!("selfstream_skipped_images_total", "reason" => "loss")
            .increment(fresh.len() as u64);
        self.show();
        Ok(())
    }

    /// How much the images of a batch count as negatives of each other, where not all count alike.
    fn negatives(&self, ids: &[u64], fingerprints: &[u64]) -> Option<NegativeWeights> {
        let (weight, most_bits) = (self.near_duplicates, self.views.decode.duplicate_bits);
        let weights = (weight < 1.0).then(|| NegativeWeights::new(fingerprints, most_bits, weight));
        if let Some(weights) = &weights {
            let n_pairs = weights.n_pairs() as u64;
            counter!("selfstream_near_duplicate_negatives_total").increment(n_pairs);
        }
        let n_images = ids.len();
        if ids.iter().collect::<HashSet<_>>().len() == n_images {
            return weights;
        }
        let weights = weights.unwrap_or_else(|| NegativeWeights::even(n_images));
        Some(weights.without_copies(ids))
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
            self.arrivals.tracker_mut().done(&origin, generation);
            self.publisher.learned(timestamp_ms);
            let sketch = sketches.next();
            let print = fingerprints.get(index);
            if print.is_some_and(|print| self.repeats.is_repeat(*print)) {
                counter!("selfstream_duplicate_images_total").increment(1);
                continue;
            }
            self.pending.push(Entry { origin, bytes, stored_at: None, sketch });
        }
        self.trim_pending();
        Ok(())
    }

    fn note_step(&mut self, report: StepReport, is_compared: bool) {
        let StepReport { loss, rate, took, .. } = report;
        self.losses.push(loss, took);
        self.publisher.stepped(&report);
        counter!("selfstream_steps_total").increment(1);
        gauge!("selfstream_loss_nats").set(loss);
        gauge!("selfstream_learning_rate_ratio").set(rate);
        histogram!("selfstream_step_seconds").record(took.as_secs_f64());
        gauge!("selfstream_replay_images").set(self.replay.entries().len() as f64);
        let page_hinkley = self.page_hinkley.as_mut().filter(|_| is_compared);
        if let Some(rise) = page_hinkley.and_then(|test| test.push(loss)) {
            self.warn_of(rise);
        }
    }

    /// Tells of a loss that has risen; learning goes on as it did.
    fn warn_of(&self, Rise { loss, usual }: Rise) {
        let step = self.trainer.progress().steps;
        warn!(step, loss, usual, "the loss has risen and stays up");
        counter!("selfstream_loss_warnings_total").increment(1);
        self.events.tell(Event::LossWarning { step, loss, usual });
    }
}
