//! Going back to an older checkpoint: when learning has gone wrong, or where another learner has gone on from
//! one.

use super::Learner;
use super::health::Trouble;
use super::memory::Memory;
use super::vitals::Losses;
use crate::checkpoint::{Back, Counts};
use crate::events::Event;
use crate::source::Told;
use crate::source::offsets::{NextOffsets, Partition};
use anyhow::{Context, Result};
use metrics::counter;
use tokio::sync::mpsc::error::TrySendError;
use tracing::{error, warn};

/// Why the learner goes back when others do some of what it has done.
const TAKEN_OVER: &str = "taken_over";

impl Learner {
    /// Becomes the learner of the newest checkpoint from before the trouble, and has the source read on
    /// from there: what was learned since is learned again.
    ///
    /// # Errors
    /// Whatever the checkpoint folder or the device report.
    pub(super) fn go_back(&mut self, trouble: Trouble) -> Result<()> {
        let from_step = self.trainer.progress().steps;
        let to_step = self.become_older(Back::Before(self.health.good_step()))?;
        self.health.gone_back(to_step, from_step);
        self.tell_gone_back(trouble.reason(), from_step);
        self.owes_going_back = true;
        self.tell_of_going_back();
        Ok(())
    }

    /// Gives way to learners that others' work goes on from `ends`: where ours has gone beyond, the learner
    /// becomes that of the checkpoint that ended there.
    ///
    /// # Errors
    /// Whatever the checkpoint folder or the device report.
    pub(super) fn give_way(&mut self, ends: NextOffsets) -> Result<()> {
        let next = self.arrivals.tracker().next_offsets();
        if ends.iter().any(|(partition, end)| next.get(partition).is_some_and(|next| next > end)) {
            let from_step = self.trainer.progress().steps;
            let kept = self.arrivals.tracker().assigned_offsets();
            let to_step = self.become_older(Back::At(ends.clone()))?;
            self.health.given_way(to_step);
            self.tell_gone_back(TAKEN_OVER, from_step);
            // What we have beside what is about to begin is read on from the same checkpoint.
            self.owes_going_back |= !kept.is_empty();
            self.tell_of_going_back();
        }
        let next = self.arrivals.tracker().next_offsets();
        for (partition, end) in ends {
            let Some(next) = next.get(&partition) else { continue };
            tell_of_gap(&partition, *next, end);
            // Told once.
            self.arrivals.tracker_mut().ended(&partition, end);
        }
        Ok(())
    }

    /// Becomes the learner of an older checkpoint; returns its step.
    fn become_older(&mut self, back: Back) -> Result<u64> {
        if self.is_ordered {
            self.assembler.take()?;
            self.is_ordered = false;
        }
        // Not beside the one that is read: an error below ends the learner.
        (self.replay, self.pending) = (Memory::fresh(&self.shape).replay, vec![]);
        let restored = self.state.go_back(back)?;
        let (memory, manifest) =
            Memory::restored(&self.shape, &mut self.trainer, restored).context("going back")?;
        let to_step = self.trainer.progress().steps;
        let Memory { replay, repeats, pending, tracker, counts } = memory;
        (self.replay, self.repeats, self.pending) = (replay, repeats, pending);
        self.unreadable.clear();
        let here = self.recount(counts);
        self.arrivals.go_back(tracker, here);
        self.publisher.went_back(to_step)?;
        if let Some(journal) = &mut self.journal {
            journal.restored(to_step, counts)?;
        }
        if let Some(page_hinkley) = &mut self.page_hinkley {
            page_hinkley.restore(manifest.usual_loss);
        }
        self.on_drift.went_back();
        self.window.clear();
        self.losses = Losses::default();
        Ok(to_step)
    }

    fn tell_gone_back(&self, reason: &'static str, from_step: u64) {
        let to_step = self.trainer.progress().steps;
        counter!("selfstream_rollbacks_total", "reason" => reason).increment(1);
        warn!(reason, from_step, to_step, "gone back to an older checkpoint");
        self.events.tell(Event::WentBack { reason, from_step, to_step });
    }

    /// Counts of this process as they were at `counts`, which may be from before it began.
    fn recount(&mut self, counts: Counts) -> Counts {
        let Counts { learned, refused, skipped } = self.restored;
        self.restored = Counts {
            learned: learned.min(counts.learned),
            refused: refused.min(counts.refused),
            skipped: skipped.min(counts.skipped),
        };
        self.learned_here = counts.learned - self.restored.learned;
        Counts {
            learned: self.learned_here,
            refused: counts.refused - self.restored.refused,
            skipped: counts.skipped - self.restored.skipped,
        }
    }

    /// Tells the source, as soon as it has room for more news.
    pub(super) fn tell_of_going_back(&mut self) {
        if self.owes_going_back {
            let sent = self.told.try_send(Told::WentBack);
            self.owes_going_back = matches!(sent, Err(TrySendError::Full(_)));
        }
    }
}

/// Tells where no checkpoint is left that ends where others went on.
fn tell_of_gap(partition: &Partition, next: i64, end: i64) {
    if next > end {
        let doubled = next.abs_diff(end);
        error!(%partition, doubled, "no checkpoint is left from before another learner went on");
        counter!("selfstream_doubled_records_total").increment(doubled);
    } else if next < end {
        let lost = next.abs_diff(end);
        error!(%partition, lost, "another learner went on beyond what our checkpoint holds");
        counter!("selfstream_lost_records_total").increment(lost);
    }
}
