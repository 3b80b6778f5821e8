//! What comes out of the decoders: fresh images for the next steps, refused records for the
//! dead-letter topic, and the offsets of both until they are done.

use super::Observer;
use super::journal::Journal;
use crate::batch::assemble::Fresh;
use crate::decode::pool::{Nothing, Outcomes};
use crate::decode::{Decoded, Refusal};
use crate::sink::dead_letter::{Acknowledged, DeadLetters};
use crate::source::offsets::{self, Candidate, OffsetTracker, Partition, Start};
use crate::source::{Origin, Record};
use anyhow::Result;
use metrics::counter;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tracing::debug;

/// Where refused records go.
pub struct Refuse {
    /// The dead-letter topic; without one, refused records are counted and dropped.
    pub letters: Option<DeadLetters>,
    /// What its broker has acknowledged.
    pub acknowledged: mpsc::Receiver<Acknowledged>,
}

impl Refuse {
    /// Refused records are counted and dropped.
    pub fn and_drop() -> Self {
        Self { letters: None, acknowledged: mpsc::channel(1).1 }
    }
}

/// The learner's end of the intake.
pub(super) struct Arrivals {
    outcomes: Outcomes<Decoded>,
    has_ended: bool,
    refuse: Refuse,
    observer: Option<Arc<dyn Observer>>,
    /// A refused record that the dead-letter producer had no room for.
    held: Option<(Record, Refusal)>,
    tracker: OffsetTracker,
    learner_id: String,
    generations: u64,
    fresh: VecDeque<Fresh>,
    first_at: Option<Instant>,
    received: u64,
    refused: u64,
}

impl Arrivals {
    pub(super) fn new(
        outcomes: Outcomes<Decoded>,
        refuse: Refuse,
        tracker: OffsetTracker,
        learner_id: &str,
        observer: Option<Arc<dyn Observer>>,
    ) -> Self {
        Self {
            outcomes,
            has_ended: false,
            refuse,
            observer,
            held: None,
            tracker,
            learner_id: learner_id.to_owned(),
            generations: 0,
            fresh: VecDeque::new(),
            first_at: None,
            received: 0,
            refused: 0,
        }
    }

    /// Takes what is ready, until `want` fresh images wait.
    ///
    /// # Errors
    /// A dead letter that can never be sent.
    pub(super) fn poll(&mut self, want: usize) -> Result<()> {
        self.retry_held()?;
        while self.wants_more(want) {
            match self.outcomes.try_recv() {
                Ok(decoded) => self.admit(decoded)?,
                Err(Nothing::Yet) => break,
                Err(Nothing::More) => self.has_ended = true,
            }
        }
        Ok(())
    }

    fn wants_more(&self, want: usize) -> bool {
        !self.has_ended && self.held.is_none() && self.fresh.len() < want
    }

    /// Waits until there is something to poll for, or a dead letter has been acknowledged.
    ///
    /// # Errors
    /// A dead letter that can never be sent.
    pub(super) async fn wait(&mut self, want: usize) -> Result<Option<Acknowledged>> {
        tokio::select! {
            decoded = self.outcomes.recv(), if self.wants_more(want) => {
                match decoded {
                    Some(decoded) => self.admit(decoded)?,
                    None => self.has_ended = true,
                }
                Ok(None)
            }
            Some(acknowledged) = self.refuse.acknowledged.recv(), if self.refuse.letters.is_some() => {
                Ok(Some(acknowledged))
            }
            else => std::future::pending().await,
        }
    }

    /// Takes the acknowledgements that have come.
    pub(super) fn acknowledgements(&mut self) -> Vec<Acknowledged> {
        let mut all = vec![];
        while let Ok(acknowledged) = self.refuse.acknowledged.try_recv() {
            all.push(acknowledged);
        }
        all
    }

    fn admit(&mut self, Decoded { record, outcome }: Decoded) -> Result<()> {
        if !self.tracker.delivered(&record.origin, record.generation) {
            debug!(origin = %record.origin, "stale: its partition was revoked");
            return Ok(());
        }
        self.received += 1;
        counter!("selfstream_received_records_total").increment(1);
        match outcome {
            Ok(pixels) => {
                if let Some(observer) = &self.observer {
                    observer.arrived(&record);
                }
                self.first_at.get_or_insert_with(Instant::now);
                self.fresh.push_back(Fresh {
                    origin: record.origin,
                    generation: record.generation,
                    bytes: record.bytes,
                    pixels,
                    timestamp_ms: record.timestamp_ms,
                });
                Ok(())
            }
            Err(refusal) => {
                let reason = refusal.reason();
                debug!(origin = %record.origin, reason, %refusal, "refused");
                counter!("selfstream_refused_records_total", "reason" => reason).increment(1);
                self.held = Some((record, refusal));
                self.retry_held()
            }
        }
    }

    /// Sends the held record's dead letter, or drops it where there is no topic for it.
    fn retry_held(&mut self) -> Result<()> {
        let Some((record, refusal)) = self.held.take() else { return Ok(()) };
        match &self.refuse.letters {
            Some(letters) if letters.send(&record, &refusal)? => {}
            Some(_) => self.held = Some((record, refusal)),
            None => {
                self.refused += 1;
                self.tracker.done(&record.origin, record.generation);
            }
        }
        Ok(())
    }

    /// Marks a refused record as done.
    ///
    /// # Errors
    /// A journal that cannot be written.
    pub(super) fn refused(
        &mut self,
        acknowledged: &Acknowledged,
        journal: Option<&mut Journal>,
        step: u64,
    ) -> Result<()> {
        let Acknowledged { origin, generation } = acknowledged;
        if self.tracker.done(origin, *generation) {
            self.refused += 1;
            if let Some(journal) = journal {
                journal.refused(step, origin)?;
            }
        }
        Ok(())
    }

    /// Marks an image as learned.
    pub(super) fn learned(&mut self, origin: &Origin, generation: u64) {
        self.tracker.done(origin, generation);
    }

    /// Takes the `n` oldest fresh images.
    pub(super) fn take(&mut self, n: usize) -> Vec<Fresh> {
        let taken = self.fresh.drain(..n.min(self.fresh.len())).collect();
        self.first_at = (!self.fresh.is_empty()).then(Instant::now);
        taken
    }

    /// Gives back images that were taken but not learned, but for those of revoked partitions.
    pub(super) fn give_back(&mut self, images: Vec<Fresh>) {
        for image in images.into_iter().rev() {
            if self.tracker.is_current(&image.origin, image.generation) {
                self.fresh.push_front(image);
            }
        }
    }

    /// Begins with `candidates`; says where.
    pub(super) fn assign(&mut self, candidates: Vec<Candidate>) -> Vec<Start> {
        let assign = |candidate: Candidate| {
            let ours = self.tracker.next(&candidate.partition);
            let (offset, lost) = offsets::start(&candidate, ours, &self.learner_id);
            self.generations += 1;
            let (partition, generation) = (candidate.partition, self.generations);
            self.tracker.assign(partition.clone(), generation, offset);
            Start { partition, offset, generation, lost }
        };
        candidates.into_iter().map(assign).collect()
    }

    /// Gives `partitions` up and forgets what waits of them.
    pub(super) fn revoke(&mut self, partitions: &[Partition]) {
        for partition in partitions {
            self.tracker.revoke(partition);
        }
        let tracker = &self.tracker;
        self.fresh.retain(|image| tracker.is_current(&image.origin, image.generation));
    }

    /// Lets dead letters that are under way arrive, for at most `timeout`.
    pub(super) fn flush(&self, timeout: Duration) {
        if let Some(letters) = &self.refuse.letters {
            letters.flush(timeout);
        }
    }

    pub(super) fn n_fresh(&self) -> usize {
        self.fresh.len()
    }

    pub(super) fn waited(&self) -> Duration {
        self.first_at.map_or(Duration::ZERO, |at| at.elapsed())
    }

    pub(super) fn tracker(&self) -> &OffsetTracker {
        &self.tracker
    }

    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// Records refused in this process.
    pub(super) fn n_refused(&self) -> u64 {
        self.refused
    }
}
