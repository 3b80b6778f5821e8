//! Who has a partition, where the work of each that had it ended, and so where reading begins.
//!
//! Two places say how far a learner has come: its checkpoint, and the group's commit at the broker, which
//! follows the checkpoint. A learner that dies between the two leaves a checkpoint that is ahead. Alone in its
//! group it goes on from that checkpoint. But another learner that took its partition over began at the commit:
//! what the checkpoint holds beyond is done by both. So the commit of a takeover says where the work of the one
//! before it ended ([`Ended`]), before anything of the partition is read; and a learner that finds its own
//! state beyond its end gives way: it becomes that of the checkpoint which was committed last. One that goes back for
//! its health, to before it took a partition over, knows by the last of these ends where its own work on it begins.
//!
//! For this to be exact, (1) whatever changes which partitions a learner has is a checkpoint that is committed
//! whole, all partitions in one request, before it reads on; (2) the checkpoint that was committed last
//! is kept, or a newer one that ends where it does, however many are newer.

use super::{NextOffsets, Partition};

/// Ends that a commit remembers; the oldest are forgotten. Each takes some 30 bytes of a commit's
/// metadata, of which a broker takes 4096.
const ENDS: usize = 64;

/// Where the work of a learner that had the partition ended, because another took it over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Whose.
    pub learner_id: String,
    /// The first offset that is not its work.
    pub at: i64,
}

/// Who committed, and who had the partition before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tenure {
    /// Who has it.
    pub learner_id: String,
    /// Who had it before, the last one first.
    pub before: Vec<Ended>,
}

/// What the broker has for our group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The first offset that is not done.
    pub offset: i64,
    /// Who says so, if it is a learner.
    pub tenure: Option<Tenure>,
}

impl Committed {
    /// Where the work of `learner_id` ends that others go on from; `None` if nothing is known of it.
    pub fn end_of(&self, learner_id: &str) -> Option<i64> {
        let tenure = self.tenure.as_ref()?;
        if tenure.learner_id == learner_id {
            return Some(self.offset);
        }
        let ended = tenure.before.iter().find(|ended| ended.learner_id == learner_id);
        ended.map(|ended| ended.at)
    }

    /// Where the work of who has it began, if it took the partition over from another.
    pub fn taken_over_at(&self) -> Option<i64> {
        self.tenure.as_ref()?.before.first().map(|last| last.at)
    }

    /// Who had the partition before `learner_id`, which has it now.
    pub fn before(&self, learner_id: &str) -> Vec<Ended> {
        let Some(tenure) = &self.tenure else { return vec![] };
        let last = Ended { learner_id: tenure.learner_id.clone(), at: self.offset };
        let earlier = tenure.before.iter().filter(|ended| ended.learner_id != tenure.learner_id);
        let others = std::iter::once(&last).chain(earlier);
        others.filter(|ended| ended.learner_id != learner_id).take(ENDS).cloned().collect()
    }
}

/// What a source knows of a partition that it is about to read.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// Which.
    pub partition: Partition,
    /// What the broker has for our group.
    pub committed: Option<Committed>,
    /// The first offset that the broker still has.
    pub low: i64,
    /// One past its last.
    pub high: i64,
    /// Where to start if nobody ever read it.
    pub default: i64,
}

/// A partition that another learner may be reading, with what the broker has of it.
pub type Elsewhere = (Partition, Committed);

/// Where to start reading a partition.
#[derive(Clone, Debug, PartialEq)]
pub struct Start {
    /// Which.
    pub partition: Partition,
    /// Records carry this number; those of an earlier assignment are stale.
    pub generation: u64,
    /// Where in it.
    pub place: Place,
    /// Who had it before: commits of it say so.
    pub before: Vec<Ended>,
}

/// A place in a partition to start at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The first offset to read.
    pub offset: i64,
    /// Records that were gone from the broker before we learned them.
    pub lost: u64,
    /// What the broker has ends before where we were: another topic of the same name, it seems.
    pub is_anew: bool,
}

/// Where to start reading `candidate`: at `ours`, which a checkpoint holds, unless another learner
/// has committed since; and inside what the broker still has.
///
/// A checkpoint from before we took it over, to which we have gone back, has nothing of our work on it, and what lies
/// before that is another's: then it starts where we took it over.
pub fn start(candidate: &Candidate, ours: Option<i64>, learner_id: &str) -> Place {
    let wanted = match (&candidate.committed, ours) {
        (Some(committed), _) if is_of_another(committed, learner_id) => committed.offset,
        (Some(committed), ours) => ours.max(committed.taken_over_at()).unwrap_or(committed.offset),
        (None, Some(ours)) => ours,
        (None, None) => candidate.default,
    };
    if wanted > candidate.high {
        // Nothing that we know of is in it.
        Place { offset: candidate.low, lost: 0, is_anew: true }
    } else {
        let offset = wanted.max(candidate.low);
        Place { offset, lost: (offset - wanted) as u64, is_anew: false }
    }
}

/// Who had `candidate` before `learner_id`, which begins with it at `place`.
pub fn before(candidate: &Candidate, place: Place, learner_id: &str) -> Vec<Ended> {
    // Offsets of another topic say nothing of this one.
    let committed = candidate.committed.as_ref().filter(|_| !place.is_anew);
    committed.map(|committed| committed.before(learner_id)).unwrap_or_default()
}

fn is_of_another(committed: &Committed, learner_id: &str) -> bool {
    committed.tenure.as_ref().is_some_and(|tenure| tenure.learner_id != learner_id)
}

/// Where the work of `learner_id` ended on partitions that others have, or have had since.
pub fn ends(candidates: &[Candidate], elsewhere: &[Elsewhere], learner_id: &str) -> NextOffsets {
    let taken = candidates.iter().filter_map(|candidate| {
        let committed = candidate.committed.as_ref()?;
        is_of_another(committed, learner_id).then_some((&candidate.partition, committed))
    });
    let elsewhere = elsewhere.iter().map(|(partition, committed)| (partition, committed));
    let end = |(partition, committed): (&Partition, &Committed)| {
        Some((partition.clone(), committed.end_of(learner_id)?))
    };
    taken.chain(elsewhere).filter_map(end).collect()
}

#[cfg(test)]
mod model;

#[cfg(test)]
mod tests {
    use super::*;

    fn partition() -> Partition {
        Partition { topic: "images".into(), partition: 3 }
    }

    fn by(learner_id: &str, offset: i64, before: &[(&str, i64)]) -> Committed {
        let ended = |(id, at): &(&str, i64)| Ended { learner_id: (*id).to_owned(), at: *at };
        let before = before.iter().map(ended).collect();
        Committed { offset, tenure: Some(Tenure { learner_id: learner_id.to_owned(), before }) }
    }

    fn candidate(committed: Option<Committed>) -> Candidate {
        Candidate { partition: partition(), committed, low: 10, high: 100, default: 100 }
    }

    #[test]
    fn a_start_follows_the_checkpoint_unless_another_learner_committed() {
        let start = |committed, ours| start(&candidate(committed), ours, "us");
        let at = |offset| Place { offset, ..Place::default() };
        let of_a_tool = Committed { offset: 20, tenure: None };
        assert_eq!(start(None, None), at(100), "nobody read it");
        assert_eq!(start(Some(of_a_tool), None), at(20), "a commit of another tool");
        let ours = |offset| Some(by("us", offset, &[]));
        assert_eq!(start(ours(20), Some(30)), at(30), "a checkpoint after the commit");
        assert_eq!(start(ours(40), Some(30)), at(30), "a checkpoint before the commit");
        let theirs = Some(by("them", 40, &[("us", 30)]));
        assert_eq!(start(theirs, Some(30)), at(40), "another learner since");
        assert_eq!(start(ours(20), None), at(20), "our checkpoint is gone");
        let taken_over = |offset| Some(by("us", offset, &[("them", 40), ("it", 15)]));
        assert_eq!(start(taken_over(60), Some(50)), at(50), "a checkpoint since we took it over");
        assert_eq!(start(taken_over(60), Some(30)), at(40), "one from before, which knew it");
        assert_eq!(start(taken_over(60), None), at(40), "one from before, which did not");
        assert_eq!(start(None, Some(4)), Place { lost: 6, ..at(10) }, "retention passed us");
        assert_eq!(
            start(None, Some(400)),
            Place { is_anew: true, ..at(10) },
            "the topic was made anew"
        );
    }

    #[test]
    fn a_takeover_remembers_where_each_ended_and_forgets_who_is_back() {
        let committed = by("b", 50, &[("a", 30), ("c", 10)]);
        let before = |learner_id| {
            by("x", 0, &[])
                .tenure
                .map(|t| Tenure { learner_id: t.learner_id, before: committed.before(learner_id) })
        };
        let expected = |before: &[(&str, i64)]| by("x", 0, before).tenure;
        assert_eq!(before("a"), expected(&[("b", 50), ("c", 10)]));
        assert_eq!(before("b"), expected(&[("a", 30), ("c", 10)]));
        assert_eq!(before("d"), expected(&[("b", 50), ("a", 30), ("c", 10)]));
        let candidate = candidate(Some(committed.clone()));
        let at = |is_anew| Place { is_anew, ..Place::default() };
        assert_eq!(super::before(&candidate, at(false), "d"), committed.before("d"));
        assert!(super::before(&candidate, at(true), "d").is_empty(), "of another topic");
        let ends = ["a", "b", "c", "d"].map(|learner_id| committed.end_of(learner_id));
        assert_eq!(ends, [Some(30), Some(50), Some(10), None]);
        let many: Vec<_> = (0..100).map(|n| (format!("learner-{n}"), n)).collect();
        let many: Vec<_> = many.iter().map(|(id, n)| (id.as_str(), *n)).collect();
        let kept = by("b", 50, &many).before("a");
        assert_eq!((kept.len(), kept[1].at), (ENDS, 0), "the last ones");
    }

    #[test]
    fn work_ends_where_others_went_on_and_not_where_we_have_the_partition() {
        let other = Partition { partition: 4, ..partition() };
        let ends = |candidate_of, elsewhere_of| {
            let elsewhere = [(other.clone(), elsewhere_of)];
            ends(&[candidate(Some(candidate_of))], &elsewhere, "us")
        };
        // Ours is ours, wherever the commit is; what is nobody's now was committed by us last.
        assert_eq!(ends(by("us", 20, &[]), by("us", 7, &[])), [(other.clone(), 7)].into());
        let both = [(partition(), 15), (other.clone(), 5)].into();
        assert_eq!(ends(by("them", 20, &[("us", 15)]), by("it", 7, &[("us", 5)])), both);
        let of_a_tool = Committed { offset: 9, tenure: None };
        assert!(ends(by("them", 20, &[]), of_a_tool).is_empty(), "nothing is known");
    }
}
