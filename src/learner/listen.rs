//! What the learner hears between steps: the source's questions, arrivals, acknowledgements.

use super::Learner;
use crate::sink::dead_letter::Acknowledged;
use crate::source::offsets::ends;
use crate::source::{Assigned, Commit, Control};
use anyhow::Result;
use std::time::{Duration, Instant};
use tracing::warn;

/// Batches of fresh images that may wait beside the one in hand.
pub const FRESH_BATCHES: usize = 2;
/// A checkpoint that is due is written this soon even if nothing arrives.
const CHECKPOINT_LOOK: Duration = Duration::from_secs(1);
/// How long dead letters under way may take at the end. A guess.
const LETTERS: Duration = Duration::from_secs(5);
/// Time between two looks at whether any are left.
const LETTERS_LOOK: Duration = Duration::from_millis(100);

/// What the learner waited for.
enum Event {
    Control(Option<Control>),
    Arrival(Result<Option<Acknowledged>>),
    Written(Result<Commit>),
    Deadline,
    Stop,
}

impl Learner {
    /// Answers the source and takes what has arrived, without waiting.
    pub(super) fn listen(&mut self) -> Result<()> {
        self.tell_of_going_back();
        self.hear_of_checkpoint()?;
        while let Some(controls) = &mut self.controls
            && let Ok(control) = controls.try_recv()
        {
            self.answer(control)?;
        }
        for acknowledged in self.arrivals.acknowledgements() {
            self.acknowledge(&acknowledged)?;
        }
        self.arrivals.poll(FRESH_BATCHES * self.batch.images)?;
        self.note_unnoted()
    }

    /// Tells the journal what was done on arrival.
    fn note_unnoted(&mut self) -> Result<()> {
        let unnoted = self.arrivals.unnoted();
        match &mut self.journal {
            Some(journal) => journal.note(self.trainer.progress().steps, &unnoted),
            None => Ok(()),
        }
    }

    pub(super) fn acknowledge(&mut self, acknowledged: &Acknowledged) -> Result<()> {
        let step = self.trainer.progress().steps;
        self.arrivals.refused(acknowledged, self.journal.as_mut(), step)
    }

    pub(super) fn wait(&mut self, at_most: Option<Duration>) -> Result<()> {
        let at_most = at_most.unwrap_or(CHECKPOINT_LOOK).min(CHECKPOINT_LOOK);
        let want = FRESH_BATCHES * self.batch.images;
        let (controls, arrivals, stop) = (&mut self.controls, &mut self.arrivals, &self.stop);
        let state = &mut self.state;
        let event = self.runtime.clone().block_on(async {
            let control = async {
                match controls {
                    Some(controls) => controls.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                control = control => Event::Control(control),
                arrival = arrivals.wait(want) => Event::Arrival(arrival),
                written = state.written() => Event::Written(written),
                () = tokio::time::sleep(at_most) => Event::Deadline,
                () = stop.cancelled() => Event::Stop,
            }
        });
        match event {
            Event::Control(Some(control)) => self.answer(control)?,
            Event::Control(None) => self.controls = None,
            Event::Arrival(acknowledged) => {
                if let Some(acknowledged) = acknowledged? {
                    self.acknowledge(&acknowledged)?;
                }
                self.note_unnoted()?;
            }
            Event::Written(commit) => self.tell_written(commit?),
            Event::Deadline if self.is_checkpoint_due() => self.checkpoint()?,
            Event::Deadline | Event::Stop => {}
        }
        Ok(())
    }

    /// Lets dead letters that are under way arrive, for at most [`LETTERS`]. They are heard all the while:
    /// with too many acknowledgements unheard the producer would wait for us, and we for it.
    ///
    /// # Errors
    /// A journal that cannot be written.
    pub(super) fn await_letters(&mut self) -> Result<()> {
        let (runtime, began) = (self.runtime.clone(), Instant::now());
        while self.arrivals.has_letters_under_way() && began.elapsed() < LETTERS {
            let arrival = self.arrivals.wait(0);
            let heard =
                runtime.block_on(async { tokio::time::timeout(LETTERS_LOOK, arrival).await });
            if let Ok(acknowledged) = heard
                && let Some(acknowledged) = acknowledged?
            {
                self.acknowledge(&acknowledged)?;
            }
        }
        for acknowledged in self.arrivals.acknowledgements() {
            self.acknowledge(&acknowledged)?;
        }
        if self.arrivals.has_letters_under_way() {
            warn!("dead letters are still unacknowledged; they will be sent again");
        }
        Ok(())
    }

    /// Answers what was asked while the run was ending: partitions that are given up just now are committed now,
    /// or are behind at the broker.
    pub(super) fn answer_last(&mut self) -> Result<()> {
        while let Some(controls) = &mut self.controls
            && let Ok(control) = controls.try_recv()
        {
            self.answer(control)?;
        }
        Ok(())
    }

    pub(super) fn answer(&mut self, control: Control) -> Result<()> {
        match control {
            // A source that no longer waits for an answer has ended.
            Control::Known { reply } => drop(reply.send(self.arrivals.tracker().known())),
            Control::Assign { candidates, elsewhere, reply } => {
                self.give_way(ends(&candidates, &elsewhere, self.state.learner_id()))?;
                let starts = self.arrivals.assign(candidates);
                // What was taken of a partition that begins anew will come again.
                self.take_order_back()?;
                // On disk before we answer: from now on a restart is to know where they began.
                let commit = self.write_checkpoint()?;
                drop(reply.send(Assigned { starts, commit }));
            }
            Control::Revoke { partitions, reply } => {
                self.arrivals.revoke(&partitions);
                self.take_order_back()?;
                // On disk before we answer, whatever is in flight: the next owner begins from its offsets.
                let mut commit = self.write_checkpoint()?;
                let tracker = self.arrivals.tracker();
                let next = tracker.next_offsets().into_iter();
                let ours = next.filter(|(key, _)| partitions.contains(key) || tracker.has(key));
                commit.offsets = ours.collect();
                drop(reply.send(commit));
            }
            Control::Committed { checkpoint_id } => self.state.committed(checkpoint_id),
        }
        Ok(())
    }

    /// Gives back the images of the batch that is ordered, if one is, but for those that are not ours now.
    fn take_order_back(&mut self) -> Result<()> {
        if self.is_ordered {
            let order = self.assembler.take()?.order;
            self.is_ordered = false;
            self.arrivals.give_back(order.fresh);
        }
        Ok(())
    }
}
