//! What the learner hears between steps: the source's questions, arrivals, acknowledgements.

use super::Learner;
use super::arrivals::Arrivals;
use crate::sink::dead_letter::Acknowledged;
use crate::source::offsets::{Candidate, Partition, Start, ends};
use crate::source::{Assigned, Commit, Control};
use anyhow::Result;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tracing::warn;

/// Batches of fresh images that may wait beside the one in hand.
pub const FRESH_BATCHES: usize = 2;
/// A checkpoint that is due is written this soon even if nothing arrives.
const CHECKPOINT_LOOK: Duration = Duration::from_secs(1);
/// How long dead letters under way may take at the end, and before partitions are given up. A guess.
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
        for acknowledged in self.arrivals.acknowledgements() {
            self.acknowledge(&acknowledged)?;
        }
        while let Some(controls) = &mut self.controls
            && let Ok(control) = controls.try_recv()
        {
            self.answer(control)?;
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

    /// Lets dead letters that are under way arrive, for at most [`LETTERS`].
    ///
    /// # Errors
    /// A journal that cannot be written.
    pub(super) fn await_letters(&mut self) -> Result<()> {
        let (step, journal) = (self.trainer.progress().steps, &mut self.journal);
        let acknowledge = |arrivals: &mut Arrivals, acknowledged: &Acknowledged| {
            arrivals.refused(acknowledged, journal.as_mut(), step)
        };
        await_letters(&mut self.arrivals, &self.runtime, LETTERS, acknowledge)
    }

    fn give_up(&mut self, partitions: &[Partition]) -> Result<()> {
        let (step, journal) = (self.trainer.progress().steps, &mut self.journal);
        let acknowledge = |arrivals: &mut Arrivals, acknowledged: &Acknowledged| {
            arrivals.refused(acknowledged, journal.as_mut(), step)
        };
        // A run that is to end has its own time for letters.
        let at_most = if self.stop.is_cancelled() { Duration::ZERO } else { LETTERS };
        give_up(&mut self.arrivals, partitions, (&self.runtime, at_most), acknowledge)
    }

    /// Begins with `candidates`; says where.
    fn begin_with(&mut self, candidates: Vec<Candidate>) -> Vec<Start> {
        let (tracker, learner_id) = (self.arrivals.tracker_mut(), self.state.learner_id());
        let passed: Vec<u64> =
            candidates.iter().map(|candidate| tracker.pass_taken(candidate, learner_id)).collect();
        let mut starts = self.arrivals.assign(candidates);
        for (start, lost) in starts.iter_mut().zip(passed) {
            start.place.lost += lost;
        }
        starts
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
                let starts = self.begin_with(candidates);
                // What was taken of a partition that begins anew will come again.
                self.take_order_back()?;
                // On disk before we answer: from now on a restart is to know where they began.
                let commit = self.write_checkpoint()?;
                drop(reply.send(Assigned { starts, commit }));
            }
            Control::Revoke { partitions, reply } => {
                self.give_up(&partitions)?;
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

/// Lets dead letters that are under way arrive, for so long at most. They are heard all the while: with too many
/// acknowledgements unheard the producer would wait for us, and we for it.
fn await_letters(
    arrivals: &mut Arrivals,
    runtime: &Handle,
    at_most: Duration,
    mut acknowledge: impl FnMut(&mut Arrivals, &Acknowledged) -> Result<()>,
) -> Result<()> {
    let began = Instant::now();
    while arrivals.has_letters_under_way() && began.elapsed() < at_most {
        let arrival = arrivals.wait(0);
        let heard = runtime.block_on(async { tokio::time::timeout(LETTERS_LOOK, arrival).await });
        if let Ok(acknowledged) = heard
            && let Some(acknowledged) = acknowledged?
        {
            acknowledge(arrivals, &acknowledged)?;
        }
    }
    for acknowledged in arrivals.acknowledgements() {
        acknowledge(arrivals, &acknowledged)?;
    }
    if arrivals.has_letters_under_way() {
        warn!("dead letters are still unacknowledged; they will be sent again");
    }
    Ok(())
}

/// Gives partitions up, once dead letters have been waited for: nothing can be committed that lies behind a record
/// whose letter is not acknowledged, and who has its partition next would do all of that again.
fn give_up(
    arrivals: &mut Arrivals,
    partitions: &[Partition],
    (runtime, at_most): (&Handle, Duration),
    acknowledge: impl FnMut(&mut Arrivals, &Acknowledged) -> Result<()>,
) -> Result<()> {
    await_letters(arrivals, runtime, at_most, acknowledge)?;
    arrivals.revoke(partitions);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::pool::{Pool, Size};
    use crate::decode::{Decoded, Refusal};
    use crate::learner::refuse::Refuse;
    use crate::sink::dead_letter::DeadLetters;
    use crate::source::kafka;
    use crate::source::offsets::OffsetTracker;
    use crate::source::{Origin, Record};
    use rdkafka::mocking::MockCluster;
    use std::num::NonZeroUsize;

    /// Longer than anything takes here.
    const PATIENCE: Duration = Duration::from_secs(20);

    /// What lies behind a refused record is not learned again by who has its partition next.
    #[test]
    fn a_partition_is_given_up_when_its_dead_letters_have_been_heard_of() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("refused", 1, 1).unwrap();
        let brokers = cluster.bootstrap_servers();
        let config = kafka::Config { brokers, ..kafka::Config::default() };
        let (letters, acknowledged) = DeadLetters::open(&config, "refused").unwrap();
        let refuse = Refuse { acknowledged, letters: Some(letters) };
        let size = Size { threads: NonZeroUsize::MIN, queue_items: NonZeroUsize::MIN };
        let pool = Pool::<Decoded, Decoded>::start("tests", size, |decoded| decoded).unwrap();
        let Pool { mut intake, outcomes, workers: _workers } = pool;
        let mut arrivals = Arrivals::new(outcomes, refuse, OffsetTracker::default(), "us", vec![]);
        let partition = Partition { topic: "images".into(), partition: 0 };
        let candidate = Candidate {
            partition: partition.clone(),
            committed: None,
            low: 0,
            high: 2,
            default: 0,
        };
        let generation = arrivals.assign(vec![candidate])[0].generation;
        // The first is refused, and the pace passes over the second.
        for offset in 0..2 {
            let origin = Origin { topic: "images".into(), partition: 0, offset };
            let mut record = Record::skipped(origin, generation);
            record.is_skipped = offset == 1;
            intake.send(Decoded { record, outcome: Err(Refusal::Empty) }).unwrap();
            while arrivals.received() <= offset as u64 {
                arrivals.poll(1).unwrap();
                std::thread::yield_now();
            }
        }
        assert_eq!(arrivals.tracker().next(&partition), Some(0));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_time()
            .build()
            .unwrap();
        let partitions = [partition.clone()];
        let acknowledge = |arrivals: &mut Arrivals, acknowledged: &Acknowledged| {
            arrivals.refused(acknowledged, None, 0)
        };
        let wait = (runtime.handle(), PATIENCE);
        give_up(&mut arrivals, &partitions, wait, acknowledge).unwrap();
        assert!(!arrivals.tracker().has(&partition));
        assert_eq!(arrivals.tracker().next(&partition), Some(2));
    }
}
