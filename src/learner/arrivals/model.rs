//! Arrivals and the batcher beside a naive model: a line of origins, and what became of each record.
//!
//! Records of two partitions arrive, among them some that are refused or skipped; batches are ordered when the
//! batcher says so, learned or left out; partitions are given up and begin again at any moment, as the learner
//! hears of it, with a batch ordered or not. Law: a batch is as large as it must be and in the order of arrival;
//! an image that arrived is in one batch, or waits, or was handed back and comes again; and in the end each
//! record has had its one end.

use super::Arrivals;
use crate::batch::assemble::Fresh;
use crate::batch::{Config, Decision, Pace, Supply, decide};
use crate::decode::pool::{Pool, Size};
use crate::decode::{Decoded, Pixels, Refusal};
use crate::learner::refuse::Refuse;
use crate::source::offsets::{Candidate, OffsetTracker, Partition};
use crate::source::{Origin, Record};
use proptest::prelude::*;
use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroUsize;
use std::time::Duration;

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Image,
    Broken,
    PassedOver,
}

/// How a record ended.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Learned,
    LeftOut,
    Refused,
    Skipped,
}

/// One thing that happens; those with a side happen to one of the two partitions.
#[derive(Clone, Debug)]
enum Event {
    Arrive(usize),
    /// So many milliseconds pass.
    Pass(u64),
    Order,
    /// The ordered batch is learned or left out.
    End(End),
    Revoke(usize),
    Assign(usize),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        16 => (0usize..2).prop_map(Event::Arrive),
        2 => (0u64..80).prop_map(Event::Pass),
        6 => Just(Event::Order),
        4 => Just(Event::End(End::Learned)),
        1 => Just(Event::End(End::LeftOut)),
        1 => (0usize..2).prop_map(Event::Revoke),
        1 => (0usize..2).prop_map(Event::Assign),
    ]
}

fn log() -> impl Strategy<Value = Vec<(i64, Kind)>> {
    let kind =
        prop_oneof![6 => Just(Kind::Image), 1 => Just(Kind::Broken), 1 => Just(Kind::PassedOver)];
    prop::collection::vec((1i64..3, kind), 1..40).prop_map(|gaps| {
        let mut at = -1;
        let place = |(gap, kind): (i64, Kind)| {
            at += gap;
            (at, kind)
        };
        gaps.into_iter().map(place).collect()
    })
}

struct World {
    config: Config,
    arrivals: Arrivals,
    /// What the broker has of each partition, and how much of it has been read.
    logs: [Vec<(i64, Kind)>; 2],
    n_read: [usize; 2],
    /// The assignment of each; `None` while we don't have it.
    generations: [Option<u64>; 2],
    /// The images that wait, in order.
    line: VecDeque<Origin>,
    waited: Duration,
    ordered: Option<Vec<Fresh>>,
    n_replay: usize,
    ends: BTreeMap<Origin, Vec<End>>,
}

fn origin(side: usize, offset: i64) -> Origin {
    Origin { topic: "images".into(), partition: side as i32, offset }
}

/// An intake whose decoders have ended: the model hands records over itself.
fn arrivals() -> Arrivals {
    let size = Size { threads: NonZeroUsize::MIN, queue_items: NonZeroUsize::MIN };
    let pool = Pool::<Decoded, Decoded>::start("model", size, |decoded| decoded).unwrap();
    Arrivals::new(pool.outcomes, Refuse::and_drop(), OffsetTracker::default(), "model", vec![])
}

impl World {
    fn new(config: Config, logs: [Vec<(i64, Kind)>; 2]) -> Result<Self, TestCaseError> {
        let mut world = Self {
            config,
            arrivals: arrivals(),
            logs,
            n_read: [0; 2],
            generations: [None; 2],
            line: VecDeque::new(),
            waited: Duration::ZERO,
            ordered: None,
            n_replay: 0,
            ends: BTreeMap::new(),
        };
        world.assign(0)?;
        world.assign(1).map(|()| world)
    }

    fn happen(&mut self, event: &Event) -> Result<(), TestCaseError> {
        match event {
            Event::Arrive(side) => self.arrive(*side),
            Event::Pass(_) if self.line.is_empty() => {}
            Event::Pass(ms) => self.waited += Duration::from_millis(*ms),
            Event::Order => self.order()?,
            Event::End(end) => self.end(*end),
            Event::Revoke(side) => {
                self.arrivals.revoke(&[Partition::from(&origin(*side, 0))]);
                self.generations[*side] = None;
                self.take_back(*side);
            }
            Event::Assign(side) => self.assign(*side)?,
        }
        prop_assert_eq!(self.arrivals.n_fresh(), self.line.len());
        let in_flight = self.line.len() + self.ordered.as_ref().map_or(0, Vec::len);
        prop_assert_eq!(self.arrivals.tracker().in_flight(), in_flight as u64);
        Ok(())
    }

    fn arrive(&mut self, side: usize) {
        let Some((offset, kind)) = self.logs[side].get(self.n_read[side]).copied() else { return };
        let origin = origin(side, offset);
        // Of a partition that was given up something may still be under way.
        let generation = self.generations[side].unwrap_or(0);
        let mut record = Record::skipped(origin.clone(), generation);
        record.is_skipped = kind == Kind::PassedOver;
        let outcome = match kind {
            Kind::Image => Ok(Pixels { width_px: 1, height_px: 1, rgb: vec![0; 3] }),
            Kind::Broken | Kind::PassedOver => Err(Refusal::Empty),
        };
        self.arrivals.admit(Decoded { record, outcome }).unwrap();
        if self.generations[side].is_none() {
            return;
        }
        self.n_read[side] += 1;
        if self.ends.contains_key(&origin) {
            return;
        }
        match kind {
            Kind::Image => self.line.push_back(origin),
            Kind::Broken => self.ends.entry(origin).or_default().push(End::Refused),
            Kind::PassedOver => self.ends.entry(origin).or_default().push(End::Skipped),
        }
    }

    fn order(&mut self) -> Result<(), TestCaseError> {
        if self.ordered.is_some() {
            return Ok(());
        }
        let supply = Supply {
            fresh: self.arrivals.n_fresh(),
            replay: self.n_replay,
            waited: self.waited,
            is_draining: false,
            fresh_limit: usize::MAX,
        };
        match decide(&self.config, supply) {
            Decision::Step { fresh, replayed } => {
                prop_assert_eq!(fresh + replayed, self.config.images);
                prop_assert!(fresh <= self.line.len());
                prop_assert!(replayed == 0 || self.n_replay > 0);
                let taken = self.arrivals.take(fresh);
                let expected: Vec<Origin> = self.line.drain(..fresh).collect();
                let origins: Vec<Origin> = taken.iter().map(|image| image.origin.clone()).collect();
                prop_assert_eq!(origins, expected, "not in the order of arrival");
                self.ordered = Some(taken);
                self.waited = Duration::ZERO;
            }
            Decision::Wait => {
                let least = if self.n_replay == 0 { self.config.images } else { 1 };
                prop_assert!(self.line.len() < least, "images wait for nothing");
            }
            Decision::WaitAtMost(rest) => {
                prop_assert_eq!(self.waited + rest, self.config.max_wait);
            }
        }
        Ok(())
    }

    fn end(&mut self, end: End) {
        let Some(batch) = self.ordered.take() else { return };
        for Fresh { origin, generation, .. } in batch {
            match end {
                End::Learned => {
                    self.arrivals.tracker_mut().done(&origin, generation);
                    self.n_replay += 1;
                }
                _ => self.arrivals.skipped(&origin, generation),
            }
            self.ends.entry(origin).or_default().push(end);
        }
    }

    /// As the learner does after a partition was given up or begins anew: the ordered batch is undone.
    fn take_back(&mut self, side: usize) {
        for image in self.ordered.iter().flatten().rev() {
            self.line.push_front(image.origin.clone());
        }
        if let Some(ordered) = self.ordered.take() {
            self.arrivals.give_back(ordered);
        }
        self.line.retain(|origin| origin.partition != side as i32);
    }

    fn assign(&mut self, side: usize) -> Result<(), TestCaseError> {
        let partition = Partition::from(&origin(side, 0));
        let candidate = Candidate { partition, committed: None, low: 0, high: 1000, default: 0 };
        let starts = self.arrivals.assign(vec![candidate]);
        self.generations[side] = Some(starts[0].generation);
        self.take_back(side);
        let log = &self.logs[side];
        let n_passed = log.partition_point(|(offset, _)| *offset < starts[0].place.offset);
        for (offset, _) in &log[..n_passed] {
            prop_assert!(self.ends.contains_key(&origin(side, *offset)), "{} is lost", offset);
        }
        self.n_read[side] = n_passed;
        Ok(())
    }

    /// Reads on to the end of both partitions, and learns what waits.
    fn finish(&mut self) -> Result<(), TestCaseError> {
        for side in 0..2 {
            self.happen(&Event::Assign(side))?;
            for _ in 0..self.logs[side].len() {
                self.happen(&Event::Arrive(side))?;
            }
        }
        while !self.line.is_empty() {
            self.ordered = Some(self.arrivals.take(self.config.images));
            self.line.drain(..self.config.images.min(self.line.len()));
            self.happen(&Event::End(End::Learned))?;
        }
        let (mut n_refused, mut n_skipped) = (0, 0);
        for side in 0..2 {
            for (offset, kind) in &self.logs[side] {
                let ends = self.ends.get(&origin(side, *offset)).map_or(&[][..], Vec::as_slice);
                let allowed = match kind {
                    Kind::Image => [End::Learned, End::LeftOut],
                    Kind::Broken => [End::Refused; 2],
                    Kind::PassedOver => [End::Skipped; 2],
                };
                prop_assert!(
                    ends.len() == 1 && allowed.contains(&ends[0]),
                    "{}: {:?}",
                    offset,
                    ends
                );
                n_refused += u64::from(ends[0] == End::Refused);
                n_skipped += u64::from([End::Skipped, End::LeftOut].contains(&ends[0]));
            }
        }
        prop_assert_eq!(self.arrivals.n_refused(), n_refused);
        prop_assert_eq!(self.arrivals.n_skipped(), n_skipped);
        for (side, log) in self.logs.iter().enumerate() {
            let next = self.arrivals.tracker().next(&Partition::from(&origin(side, 0)));
            prop_assert_eq!(next, log.last().map(|(offset, _)| offset + 1));
        }
        Ok(())
    }
}

proptest! {
    #[test]
    fn every_image_is_in_one_batch_or_waits_or_is_handed_back(
        (images, fill, steps) in (2usize..7, any::<bool>(), 1usize..7),
        logs in [log(), log()],
        events in prop::collection::vec(event(), 0..160),
    ) {
        let pace = if fill { Pace::Fill } else { Pace::Fixed };
        let (steps_per_batch, max_wait) = (steps.min(images), Duration::from_millis(100));
        let config = Config { images, pace, steps_per_batch, max_wait };
        let mut world = World::new(config, logs)?;
        for event in &events {
            world.happen(event)?;
        }
        world.finish()?;
    }
}
