//! Learners of one group beside a broker, in memory: they die, come back, are cut off, go back for their health, and
//! share partitions anew at any moment. Law: of all records each is in the surviving work of one learner, once.

mod learner;

use super::{Candidate, Committed, Elsewhere, Tenure, ends, start};
use crate::source::offsets::Partition;
use learner::{Checkpoint, Learner, State};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const LEARNERS: usize = 3;
const PARTITIONS: i32 = 3;
const RECORDS: i64 = 60;

/// One thing that happens to one of the learners, or to the group.
#[derive(Clone, Debug)]
enum Event {
    /// It learns so many records of one of its partitions.
    Learn(usize, i32, i64),
    /// It writes a checkpoint, which is not committed yet.
    Checkpoint(usize),
    /// It commits what it wrote last, and hears of that or not.
    Commit(usize, bool),
    Kill(usize),
    Begin(usize),
    /// It goes back for its health, by so many checkpoints.
    Trouble(usize, usize),
    /// The group shares the partitions anew, as so many digits say. A learner whose bit is set cannot be
    /// reached: its partitions go to others without its doing, and it goes on learning what it has of them.
    /// Others die in the middle of it, by the second number's bits: when they have given up what they lose, or,
    /// by the higher ones, between the checkpoint of what they get and its commit.
    Share([usize; PARTITIONS as usize], u8, u8),
}

fn event() -> impl Strategy<Value = Event> {
    let learner = || 0..LEARNERS;
    prop_oneof![
        6 => (learner(), 0..PARTITIONS, 1i64..5).prop_map(|(l, p, n)| Event::Learn(l, p, n)),
        3 => learner().prop_map(Event::Checkpoint),
        3 => (learner(), any::<bool>()).prop_map(|(l, heard)| Event::Commit(l, heard)),
        1 => learner().prop_map(Event::Kill),
        2 => learner().prop_map(Event::Begin),
        1 => (learner(), 0usize..4).prop_map(|(l, n)| Event::Trouble(l, n)),
        2 => ([learner(), learner(), learner()], any::<u8>(), any::<[u8; 2]>())
            .prop_map(|(of, cut, dies)| Event::Share(of, cut & (cut >> 3), dies[0] & dies[1])),
    ]
}

struct World {
    broker: BTreeMap<Partition, Committed>,
    learners: Vec<Learner>,
}

fn partitions() -> Vec<Partition> {
    let partition = |partition| Partition { topic: "images".into(), partition };
    (0..PARTITIONS).map(partition).collect()
}

impl World {
    fn new() -> Self {
        Self { broker: BTreeMap::new(), learners: (0..LEARNERS).map(Learner::new).collect() }
    }

    fn happen(&mut self, event: &Event) -> Result<(), TestCaseError> {
        match event {
            Event::Learn(l, p, n) => self.learners[*l].learn(&partitions()[*p as usize], *n),
            Event::Checkpoint(l) => {
                let learner = &mut self.learners[*l];
                if learner.is_alive {
                    learner.checkpoint(&BTreeSet::new());
                }
            }
            Event::Commit(l, is_heard) => {
                if let Some(newest) = self.learners[*l].disk.last().cloned() {
                    let has = &self.learners[*l].has;
                    let is_kept = |(partition, _): &(&Partition, &i64)| has.contains(partition);
                    let kept = newest.offsets.iter().filter(is_kept);
                    let offsets = kept.map(|(p, n)| (p.clone(), *n)).collect();
                    self.commit(*l, &Checkpoint { offsets, ..newest }, *is_heard);
                }
            }
            Event::Kill(l) => self.learners[*l].die(),
            Event::Begin(l) => self.begin(*l),
            Event::Trouble(l, n) => self.trouble(*l, *n)?,
            Event::Share(of, cut_off, dies) => self.share(of, *cut_off, *dies)?,
        }
        Ok(())
    }

    fn begin(&mut self, l: usize) {
        let learner = &mut self.learners[l];
        if !learner.is_alive {
            learner.is_alive = true;
            learner.is_member = false;
            learner.state = State::default();
            learner.go_back(|_| true);
        }
    }

    /// What a learner does that goes back for its health: `Learner::go_back`, and `Reader::begin_again`. It does not go
    /// back beyond the moment at which it gave a partition up, or took one from nobody: there it loses what it
    /// has done since.
    fn trouble(&mut self, l: usize, n: usize) -> Result<(), TestCaseError> {
        let learner = &mut self.learners[l];
        if !(learner.is_alive && learner.is_member) {
            return Ok(());
        }
        let has = std::mem::take(&mut learner.has);
        let taken_over = |partition: &Partition| self.broker.get(partition)?.taken_over_at();
        let is_first = |partition: &&Partition| taken_over(partition).is_none();
        learner.go_back_by(n, &has.iter().filter(is_first).cloned().collect());
        self.assign(l, &has, false)
    }

    /// The broker hears a commit, if it is a member's.
    fn commit(&mut self, l: usize, checkpoint: &Checkpoint, is_heard: bool) {
        let learner = &mut self.learners[l];
        if !(learner.is_alive && learner.is_member) {
            return;
        }
        for (partition, offset) in &checkpoint.offsets {
            let before = self.broker.get(partition).map(|committed| committed.before(&learner.id));
            let tenure =
                Tenure { learner_id: learner.id.clone(), before: before.unwrap_or_default() };
            let committed = Committed { offset: *offset, tenure: Some(tenure) };
            self.broker.insert(partition.clone(), committed);
        }
        if is_heard {
            learner.committed = Some(checkpoint.sequence);
        }
    }

    /// A new generation of the group: those that can be reached give up what they lose, then each begins
    /// with what it gets.
    fn share(&mut self, of: &[usize], cut_off: u8, dies: u8) -> Result<(), TestCaseError> {
        let can_be_reached = |l: usize| cut_off & (1 << l) == 0;
        let members: Vec<usize> =
            (0..LEARNERS).filter(|l| self.learners[*l].is_alive && can_be_reached(*l)).collect();
        if members.is_empty() {
            return Ok(());
        }
        let owner = |index: usize| members[of[index] % members.len()];
        let share = |l: usize| -> BTreeSet<Partition> {
            let all = partitions().into_iter().enumerate();
            all.filter(|(index, _)| owner(*index) == l).map(|(_, partition)| partition).collect()
        };
        for l in &members {
            let learner = &mut self.learners[*l];
            // One that was cut off, or is new, has been given up by the group: it hears of that first.
            let kept = if learner.is_member { share(*l) } else { BTreeSet::new() };
            let lost: BTreeSet<Partition> = learner.has.difference(&kept).cloned().collect();
            if !lost.is_empty() {
                learner.has.retain(|partition| kept.contains(partition));
                let checkpoint = learner.checkpoint(&lost);
                learner.note_others();
                self.commit(*l, &checkpoint, true);
            }
            if dies & (1 << l) != 0 {
                self.learners[*l].die();
            }
        }
        for l in 0..LEARNERS {
            self.learners[l].is_member = members.contains(&l);
        }
        for l in members.iter().filter(|l| dies & (1 << **l) == 0) {
            self.assign(*l, &share(*l), dies & (8 << l) != 0)?;
        }
        Ok(())
    }

    /// What a learner does with what it gets: `Context::place` and `Learner::answer`.
    fn assign(
        &mut self,
        l: usize,
        share: &BTreeSet<Partition>,
        dies: bool,
    ) -> Result<(), TestCaseError> {
        let learner = &mut self.learners[l];
        let candidate = |partition: &Partition| Candidate {
            partition: partition.clone(),
            committed: self.broker.get(partition).cloned(),
            low: 0,
            high: RECORDS,
            default: 0,
        };
        let mut candidates: Vec<_> = share.difference(&learner.has).map(candidate).collect();
        let known = learner.state.next.keys().filter(|partition| !share.contains(partition));
        let elsewhere: Vec<Elsewhere> =
            known.filter_map(|p| Some((p.clone(), self.broker.get(p)?.clone()))).collect();
        let ends = ends(&candidates, &elsewhere, &learner.id);
        let is_at = |state: &State| ends.iter().all(|(p, end)| state.next.get(p) == Some(end));
        let is_beyond = |(p, end): (&Partition, &i64)| learner.state.next.get(p) > Some(end);
        if ends.iter().any(is_beyond) {
            prop_assert!(learner.go_back(is_at), "{ends:?} in none of {:?}", learner.disk);
            // What it kept begins anew, too.
            candidates = share.iter().map(candidate).collect();
        }
        if !ends.is_empty() {
            learner.note_others();
        }
        for candidate in candidates {
            let ours = learner.state.next.get(&candidate.partition).copied();
            let place = start(&candidate, ours, &learner.id);
            learner.state.next.insert(candidate.partition.clone(), place.offset);
            learner.has.insert(candidate.partition);
        }
        let checkpoint = learner.checkpoint(&BTreeSet::new());
        if dies {
            learner.die();
        }
        self.commit(l, &checkpoint, true);
        Ok(())
    }

    /// Lets all come back and learn what there is.
    fn finish(&mut self) -> Result<(), TestCaseError> {
        for _ in 0..2 {
            (0..LEARNERS).for_each(|l| self.begin(l));
            self.share(&[0, 1, 2], 0, 0)?;
        }
        for learner in &mut self.learners {
            partitions().iter().for_each(|partition| learner.learn(partition, RECORDS));
        }
        let all = self.learners.iter().flat_map(|learner| &learner.state.done);
        let mut times = BTreeMap::new();
        all.for_each(|record| *times.entry(record.clone()).or_insert(0) += 1);
        for partition in partitions() {
            for offset in 0..RECORDS {
                let n = times.get(&(partition.clone(), offset)).copied().unwrap_or(0);
                prop_assert_eq!(n, 1, "times that {}@{} was done", partition, offset);
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, ..ProptestConfig::default() })]

    #[test]
    fn of_each_record_one_learner_has_the_work(events in prop::collection::vec(event(), 1..80)) {
        let mut world = World::new();
        for event in &events {
            world.happen(event)?;
        }
        world.finish()?;
    }
}
