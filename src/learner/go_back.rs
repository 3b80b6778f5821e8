//! Going back to the last good checkpoint when learning has gone wrong.

use super::Learner;
use super::health::Trouble;
use super::memory::Memory;
use super::vitals::Losses;
use crate::checkpoint::Counts;
use crate::events::Event;
use crate::source::Told;
use anyhow::{Context, Result};
use metrics::counter;
use tokio::sync::mpsc::error::TrySendError;
use tracing::warn;

impl Learner {
    /// Becomes the learner of the newest checkpoint from before the trouble, and has the source read on
    /// from there: what was learned since is learned again.
    ///
    /// # Errors
    /// Whatever the checkpoint folder or the device report.
    pub(super) fn go_back(&mut self, trouble: Trouble) -> Result<()> {
        let from_step = self.trainer.progress().steps;
        if self.is_ordered {
            self.assembler.take()?;
            self.is_ordered = false;
        }
        // Not beside the one that is read: an error below ends the learner.
        (self.replay, self.pending) = (Memory::fresh(&self.shape).replay, vec![]);
        let restored = self.state.go_back(self.health.good_step())?;
        let (memory, manifest) =
            Memory::restored(&self.shape, &mut self.trainer, restored).context("going back")?;
        let to_step = self.trainer.progress().steps;
        let Memory { replay, repeats, pending, tracker, counts } = memory;
        (self.replay, self.repeats, self.pending) = (replay, repeats, pending);
        let here = self.recount(counts);
        self.arrivals.go_back(tracker, here);
        self.publisher.went_back(to_step)?;
        if let Some(journal) = &mut self.journal {
            journal.restored(to_step, counts)?;
        }
        self.health.gone_back(to_step, from_step);
        if let Some(page_hinkley) = &mut self.page_hinkley {
            page_hinkley.restore(manifest.usual_loss);
        }
        self.window.clear();
        self.losses = Losses::default();
        let reason = trouble.reason();
        counter!("selfstream_rollbacks_total", "reason" => reason).increment(1);
        warn!(reason, from_step, to_step, "learning went wrong: gone back to an older checkpoint");
        self.events.tell(Event::WentBack { reason, from_step, to_step });
        self.owes_going_back = true;
        self.tell_of_going_back();
        Ok(())
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
