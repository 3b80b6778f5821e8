//! The tracker beside a naive model: sets of offsets, and nothing that is kept up to date.
//!
//! Two partitions of records with gaps are read, given up, begun again, begun elsewhere because another learner
//! went on, compacted at the broker, taken by retention; checkpoints are taken and gone back to; records are done
//! in any order.

mod line;

use super::{Candidate, Left, OffsetTracker, Partition};
use line::Line;
use proptest::prelude::*;
use proptest::sample::Index;
use std::collections::BTreeMap;

/// One thing that happens; those with a side happen to one of the two partitions.
#[derive(Clone, Debug)]
enum Event {
    /// The source hands on the next record.
    Deliver(Side),
    /// It hands one on that it has handed on before.
    DeliverAgain(Side, Index),
    /// A record that has been delivered is done.
    Done(Side, Index),
    /// News of a record of an older assignment.
    Stale(Side, Index),
    /// The partition is given up.
    Revoke(Side),
    /// The partition begins, for the first time or again, where it was left.
    Assign(Side),
    /// It begins where another learner has left it: at a record, or so many offsets beyond one.
    AssignElsewhere(Side, Index, i64),
    /// The broker removes a record that has not been delivered since the partition began.
    Compact(Side, Index),
    /// It removes all before a record, and the partition begins again where it was left, inside what is there.
    Retain(Side, Index),
    /// What is known is put into a checkpoint.
    Checkpoint,
    /// The process dies and begins with the last checkpoint.
    Restart,
}

type Side = bool;

fn event() -> impl Strategy<Value = Event> {
    let (side, index) = (any::<Side>, any::<Index>);
    prop_oneof![
        8 => side().prop_map(Event::Deliver),
        1 => (side(), index()).prop_map(|(side, of)| Event::DeliverAgain(side, of)),
        8 => (side(), index()).prop_map(|(side, of)| Event::Done(side, of)),
        1 => (side(), index()).prop_map(|(side, of)| Event::Stale(side, of)),
        1 => side().prop_map(Event::Revoke),
        2 => side().prop_map(Event::Assign),
        1 => (side(), index(), 0i64..3).prop_map(|(s, of, by)| Event::AssignElsewhere(s, of, by)),
        1 => (side(), index()).prop_map(|(side, of)| Event::Compact(side, of)),
        1 => (side(), index()).prop_map(|(side, of)| Event::Retain(side, of)),
        1 => Just(Event::Checkpoint),
        1 => Just(Event::Restart),
    ]
}

/// The tracker, the truth, and the last checkpoint of each.
struct World {
    tracker: OffsetTracker,
    lines: [Line; 2],
    n_generations: u64,
    saved: (BTreeMap<Partition, Left>, [Line; 2]),
}

impl World {
    fn new(gaps: &[Vec<i64>; 2]) -> Self {
        let mut lines = [Line::new(0, &gaps[0]), Line::new(1, &gaps[1])];
        let mut tracker = OffsetTracker::default();
        for (number, line) in lines.iter_mut().enumerate() {
            let generation = number as u64 + 1;
            tracker.assign(line.partition.clone(), generation, line.begin);
            line.begin_at(line.begin, Some(generation));
        }
        let saved = (tracker.left(), lines.clone());
        Self { tracker, lines, n_generations: 2, saved }
    }

    fn assign(&mut self, side: Side, offset: i64) {
        self.n_generations += 1;
        let line = &mut self.lines[usize::from(side)];
        self.tracker.assign(line.partition.clone(), self.n_generations, offset);
        line.begin_at(offset, Some(self.n_generations));
    }

    fn happen(&mut self, event: &Event) -> Result<(), TestCaseError> {
        match event {
            Event::Deliver(side) => self.deliver(*side)?,
            Event::DeliverAgain(side, of) => {
                let line = &self.lines[usize::from(*side)];
                if let (Some(generation), false) = (line.generation, line.n_read == 0) {
                    let origin = line.origin(line.log[of.index(line.n_read)]);
                    prop_assert!(!self.tracker.delivered(&origin, generation), "{} twice", origin);
                }
            }
            Event::Done(side, of) => self.done(*side, of)?,
            Event::Stale(side, of) => {
                let line = &self.lines[usize::from(*side)];
                let stale = line.generation.unwrap_or(self.n_generations + 1) - 1;
                let origin = line.origin(line.log[of.index(line.log.len())]);
                prop_assert!(!self.tracker.is_current(&origin, stale));
                prop_assert!(!self.tracker.done(&origin, stale), "{} is stale", origin);
                prop_assert!(!self.tracker.delivered(&origin, stale), "{} is stale", origin);
            }
            Event::Revoke(side) => {
                let line = &mut self.lines[usize::from(*side)];
                self.tracker.revoke(&line.partition);
                line.begin_at(line.next(), None);
            }
            Event::Assign(side) => {
                let line = &self.lines[usize::from(*side)];
                let next = line.next();
                prop_assert_eq!(self.tracker.next(&line.partition), Some(next));
                self.assign(*side, next);
            }
            Event::AssignElsewhere(side, of, by) => {
                let line = &mut self.lines[usize::from(*side)];
                let offset = line.log[of.index(line.log.len())] + by;
                if offset != line.next() {
                    line.done.clear();
                }
                self.assign(*side, offset);
            }
            Event::Compact(side, of) => {
                let line = &mut self.lines[usize::from(*side)];
                let n_ahead = line.log.len() - line.n_read;
                // One record stays, so that there is always one to speak of.
                if n_ahead > 0 && line.log.len() > 1 {
                    line.log.remove(line.n_read + of.index(n_ahead));
                }
            }
            Event::Retain(side, of) => self.retain(*side, of)?,
            Event::Checkpoint => self.saved = (self.tracker.left(), self.lines.clone()),
            Event::Restart => self.restart(),
        }
        Ok(())
    }

    fn deliver(&mut self, side: Side) -> Result<(), TestCaseError> {
        let line = &mut self.lines[usize::from(side)];
        let Some(offset) = line.log.get(line.n_read).copied() else { return Ok(()) };
        let origin = line.origin(offset);
        let Some(generation) = line.generation else {
            prop_assert!(!self.tracker.delivered(&origin, self.n_generations), "not ours");
            return Ok(());
        };
        let is_new = !line.done.contains(&offset);
        line.n_read += 1;
        prop_assert_eq!(self.tracker.delivered(&origin, generation), is_new, "{}", origin);
        Ok(())
    }

    fn done(&mut self, side: Side, of: &Index) -> Result<(), TestCaseError> {
        let line = &mut self.lines[usize::from(side)];
        let (Some(generation), false) = (line.generation, line.delivered().is_empty()) else {
            return Ok(());
        };
        let offset = line.delivered()[of.index(line.delivered().len())];
        let is_pending = offset >= line.next();
        let origin = line.origin(offset);
        prop_assert!(self.tracker.is_current(&origin, generation));
        prop_assert_eq!(self.tracker.done(&origin, generation), is_pending, "{}", origin);
        line.done.insert(offset);
        Ok(())
    }

    fn retain(&mut self, side: Side, of: &Index) -> Result<(), TestCaseError> {
        let line = &mut self.lines[usize::from(side)];
        let n_taken = of.index(line.log.len());
        let (low, next) = (line.log[n_taken], line.next());
        let lost = (next..low).filter(|offset| !line.done.contains(offset)).count();
        line.log.drain(..n_taken);
        let (partition, committed) = (line.partition.clone(), None);
        let candidate = Candidate { partition, committed, low, high: i64::MAX, default: 0 };
        prop_assert_eq!(self.tracker.pass_taken(&candidate, "us"), lost as u64);
        self.assign(side, next.max(low));
        Ok(())
    }

    /// The broker's logs stay as they are now; all else is as it was.
    fn restart(&mut self) {
        let (left, lines) = self.saved.clone();
        self.tracker = OffsetTracker::restore(left);
        for (line, saved) in self.lines.iter_mut().zip(lines) {
            line.done = saved.done.clone();
            line.begin_at(saved.next(), None);
        }
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let lefts = self.tracker.left();
        let ours = self.tracker.assigned_offsets();
        prop_assert_eq!(lefts.len(), 2);
        for line in &self.lines {
            let partition = &line.partition;
            prop_assert_eq!(self.tracker.next(partition), Some(line.next()), "{}", partition);
            let left = line.left();
            prop_assert_eq!(lefts.get(partition), Some(&left), "{}", partition);
            let expected = line.generation.map(|_| line.next());
            prop_assert_eq!(ours.get(partition).copied(), expected, "{}", partition);
        }
        let in_flight: usize = self.lines.iter().map(Line::in_flight).sum();
        prop_assert_eq!(self.tracker.in_flight(), in_flight as u64);
        Ok(())
    }

    /// Reads on to the end and does all: nothing is left.
    fn finish(&mut self) -> Result<(), TestCaseError> {
        for side in [false, true] {
            let next = self.lines[usize::from(side)].next();
            self.assign(side, next);
            for _ in 0..self.lines[usize::from(side)].log.len() {
                self.deliver(side)?;
            }
            let line = &mut self.lines[usize::from(side)];
            for offset in line.delivered().to_vec().into_iter().rev() {
                self.tracker.done(&line.origin(offset), self.n_generations);
                line.done.insert(offset);
            }
            prop_assert_eq!(line.in_flight(), 0);
            let end = line.log.last().map_or(line.begin, |last| line.begin.max(last + 1));
            prop_assert_eq!(line.next(), end);
        }
        self.check()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn whatever_happens_the_tracker_knows_what_sets_of_offsets_say(
        gaps in [prop::collection::vec(1i64..4, 1..24), prop::collection::vec(1i64..4, 1..24)],
        events in prop::collection::vec(event(), 0..120),
    ) {
        let mut world = World::new(&gaps);
        world.check()?;
        for event in &events {
            world.happen(event)?;
            world.check()?;
        }
        world.finish()?;
    }
}
