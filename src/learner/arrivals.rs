//! What comes out of the decoders: fresh images for the next steps, refused records for the
//! dead-letter topic, and the offsets of both until they are done.

use super::journal::{Journal, Unnoted};
use super::lineup::Lineup;
use super::observer::{Audience, Observer};
use super::refuse::Refuse;
use crate::batch::assemble::Fresh;
use crate::checkpoint::Counts;
use crate::decode::pool::{Nothing, Outcomes};
use crate::decode::{Decoded, Refusal};
use crate::fault;
use crate::sink::dead_letter::{Acknowledged, DeadLetters};
use crate::source::offsets::{self, Candidate, OffsetTracker, Partition, Start};
use crate::source::{Origin, Record};
use anyhow::Result;
use metrics::counter;
use std::sync::Arc;
use std::time::Duration;
use tracing::debug;

/// The learner's end of the intake.
pub(super) struct Arrivals {
    outcomes: Outcomes<Decoded>,
    has_ended: bool,
    refuse: Refuse,
    audience: Audience,
    /// A refused record that the dead-letter producer had no room for.
    held: Option<(Record, Refusal)>,
    tracker: OffsetTracker,
    learner_id: String,
    generations: u64,
    lineup: Lineup,
    received: u64,
    refused: u64,
    skipped: u64,
    unnoted: Unnoted,
}

impl Arrivals {
    pub(super) fn new(
        outcomes: Outcomes<Decoded>,
        refuse: Refuse,
        tracker: OffsetTracker,
        learner_id: &str,
        observers: Vec<Arc<dyn Observer>>,
    ) -> Self {
        Self {
            outcomes,
            has_ended: false,
            refuse,
            audience: Audience::new(observers),
            held: None,
            tracker,
            learner_id: learner_id.to_owned(),
            generations: 0,
            lineup: Lineup::default(),
            received: 0,
            refused: 0,
            skipped: 0,
            unnoted: Unnoted::default(),
        }
    }

    /// Merges partitions in one order from now on.
    pub(super) fn merging(mut self) -> Self {
        self.lineup = Lineup::merging();
        self
    }

    /// Takes what is ready, until `want` fresh images wait.
    ///
    /// # Errors
    /// A dead letter that can never be sent.
    pub(super) fn poll(&mut self, want: usize) -> Result<()> {
        self.refuse.letters.iter().try_for_each(DeadLetters::check)?;
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
        !self.has_ended && self.held.is_none() && self.lineup.len() < want
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
        if record.is_skipped {
            self.skipped(&record.origin, record.generation);
            self.unnoted.skipped.push(record.origin);
            counter!("selfstream_skipped_images_total", "reason" => "pace").increment(1);
            return Ok(());
        }
        let place = (Partition::from(&record.origin), record.origin.offset);
        match outcome {
            Ok(pixels) => {
                self.audience.arrived(&record);
                let fresh = Fresh {
                    origin: record.origin,
                    generation: record.generation,
                    bytes: record.bytes,
                    pixels,
                    timestamp_ms: record.timestamp_ms,
                };
                self.lineup.push(&place, Some(fresh))
            }
            Err(refusal) => {
                let reason = refusal.reason();
                debug!(origin = %record.origin, reason, %refusal, "refused");
                counter!("selfstream_refused_records_total", "reason" => reason).increment(1);
                self.held = Some((record, refusal));
                self.lineup.push(&place, None)?;
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
                self.unnoted.refused.push(record.origin);
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
        fault::die_at("dead_letter_acknowledged");
        let Acknowledged { origin, generation } = acknowledged;
        if self.tracker.done(origin, *generation) {
            self.refused += 1;
            if let Some(journal) = journal {
                journal.refused(step, origin)?;
            }
        }
        Ok(())
    }

    /// What was done on arrival since this was asked last.
    pub(super) fn unnoted(&mut self) -> Unnoted {
        std::mem::take(&mut self.unnoted)
    }

    /// Marks a record as done that is not learned and not refused.
    pub(super) fn skipped(&mut self, origin: &Origin, generation: u64) {
        if self.tracker.done(origin, generation) {
            self.skipped += 1;
        }
    }

    /// Takes the `n` fresh images that are first in line.
    pub(super) fn take(&mut self, n: usize) -> Vec<Fresh> {
        self.lineup.take(n)
    }

    /// Gives back images that were taken but not learned, but for those of revoked partitions.
    pub(super) fn give_back(&mut self, images: Vec<Fresh>) {
        self.lineup.give_back(images);
        self.drop_stale();
    }

    fn drop_stale(&mut self) {
        let tracker = &self.tracker;
        self.lineup.retain(|image| tracker.is_current(&image.origin, image.generation));
    }

    /// Begins with `candidates`; says where.
    pub(super) fn assign(&mut self, candidates: Vec<Candidate>) -> Vec<Start> {
        let assign = |candidate: Candidate| {
            let ours = self.tracker.next(&candidate.partition);
            let place = offsets::start(&candidate, ours, &self.learner_id);
            let before = offsets::before(&candidate, place, &self.learner_id);
            self.generations += 1;
            let (partition, generation) = (candidate.partition, self.generations);
            self.audience.begin(&partition, place);
            self.tracker.assign(partition.clone(), generation, place.offset);
            self.lineup.assign(&partition, place.offset);
            Start { partition, generation, place, before }
        };
        let starts = candidates.into_iter().map(assign).collect();
        self.drop_stale();
        starts
    }

    /// Gives `partitions` up and forgets what waits of them.
    pub(super) fn revoke(&mut self, partitions: &[Partition]) {
        for partition in partitions {
            self.tracker.revoke(partition);
            self.lineup.revoke(partition);
        }
        self.drop_stale();
    }

    /// Forgets what arrived since a checkpoint, whose offsets are `tracker`'s and whose counts of this
    /// process are `here`.
    pub(super) fn go_back(&mut self, tracker: OffsetTracker, here: Counts) {
        self.lineup.clear();
        self.unnoted = Unnoted::default();
        self.held = None;
        let Counts { learned, refused, skipped } = here;
        self.tracker = tracker;
        self.received = learned + refused + skipped;
        (self.refused, self.skipped) = (refused, skipped);
    }

    /// Whether dead letters are under way.
    pub(super) fn has_letters_under_way(&self) -> bool {
        self.refuse.letters.as_ref().is_some_and(DeadLetters::are_under_way)
    }

    pub(super) fn n_fresh(&self) -> usize {
        self.lineup.len()
    }

    pub(super) fn waited(&self) -> Duration {
        self.lineup.waited()
    }

    pub(super) fn tracker(&self) -> &OffsetTracker {
        &self.tracker
    }

    pub(super) fn tracker_mut(&mut self) -> &mut OffsetTracker {
        &mut self.tracker
    }

    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// Records refused in this process.
    pub(super) fn n_refused(&self) -> u64 {
        self.refused
    }

    /// Records done in this process that were neither learned nor refused.
    pub(super) fn n_skipped(&self) -> u64 {
        self.skipped
    }
}

#[cfg(test)]
mod model;
