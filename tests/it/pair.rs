//! Learners of one group, each with checkpoints of its own: an image is learned by one of them.

use crate::delivery::{PARTITIONS, kills, message, surviving};
use crate::harness::{
    Program, brokers, committed, create_topic, produce, small_config, unique, wait_for,
};
use rand::RngExt;
use selfstream::seed::{self, Purpose};
use std::collections::BTreeMap;
use std::time::Duration;

/// A topic, and places for two learners of it.
struct Pair {
    brokers: String,
    topic: String,
    dirs: [tempfile::TempDir; 2],
}

impl Pair {
    fn new(brokers: &str, name: &str) -> Self {
        let topic = unique(name);
        create_topic(brokers, &topic, PARTITIONS);
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        Self { brokers: brokers.to_owned(), topic, dirs }
    }

    fn produce(&self, images: std::ops::Range<u64>) {
        produce(&self.brokers, &self.topic, images.map(message));
    }

    /// Starts one of the two, or starts it again.
    fn start(&self, index: usize) -> Program {
        self.start_with(index, &[])
    }

    fn start_with(&self, index: usize, failpoints: &[(&str, &str)]) -> Program {
        let (topic, dir) = (&self.topic, self.dirs[index].path());
        let config = dir.join("config.toml");
        let text = small_config(&self.brokers, topic, dir);
        let text = text.replace(&format!("{topic}-1"), &format!("{topic}-{index}"));
        // The least that brokers take: a learner that has died is missed this soon.
        std::fs::write(&config, text + "properties.\"session.timeout.ms\" = \"6000\"\n").unwrap();
        let args = ["run", "--config", config.to_str().unwrap()];
        Program::start_under(&[], &args, &dir.join("log"), failpoints)
    }

    /// How often one of them has done each record.
    fn done_by(&self, index: usize) -> BTreeMap<(i32, i64), usize> {
        surviving(&self.dirs[index].path().join("journal.jsonl"))
    }

    /// How often both together have.
    fn done(&self) -> BTreeMap<(i32, i64), usize> {
        let mut times = self.done_by(0);
        for (origin, n) in self.done_by(1) {
            *times.entry(origin).or_default() += n;
        }
        times
    }

    /// Waits until one has done more than `n_records`, or both all there are.
    fn await_more(&self, program: &mut Program, index: usize, n_records: usize, n_all: u64) {
        wait_for("a learner to learn", || {
            program.assert_alive();
            let is_all = self.done().len() as u64 == n_all;
            (is_all || self.done_by(index).len() > n_records).then_some(())
        });
    }

    /// Waits until all is done, ends both, and checks that each record was done once.
    fn finish(&self, programs: &mut [Program], n_records: u64) {
        wait_for("all images to be done", || {
            programs.iter_mut().for_each(Program::assert_alive);
            (self.done().len() as u64 == n_records).then_some(())
        });
        // One that has just begun has not come to hear of signals yet, and the group may be sharing anew.
        programs.iter_mut().for_each(|program| program.await_log("listening"));
        wait_for("all to be committed", || {
            let committed = committed(&self.brokers, &self.topic, &self.topic, PARTITIONS);
            (committed.iter().sum::<i64>() == n_records as i64).then_some(())
        });
        for program in programs {
            assert!(program.terminate().success(), "{}", program.log());
        }
        let times = self.done();
        let doubled: Vec<_> = times.iter().filter(|(_, times)| **times != 1).collect();
        assert!(doubled.is_empty(), "done more than once: {doubled:?}");
        assert_eq!(times.len() as u64, n_records);
        let committed = committed(&self.brokers, &self.topic, &self.topic, PARTITIONS);
        assert_eq!(committed.iter().sum::<i64>(), n_records as i64, "{committed:?}");
    }
}

#[test]
fn two_learners_share_a_topic_and_each_image_is_learned_by_one() {
    const IMAGES: u64 = 3000;
    let Some(brokers) = brokers() else { return };
    let pair = Pair::new(&brokers, "pair");
    pair.produce(0..IMAGES);
    let mut first = pair.start(0);
    pair.await_more(&mut first, 0, 0, IMAGES);
    // The second takes partitions over from the first in mid-stream.
    let mut second = pair.start(1);
    pair.await_more(&mut second, 1, 0, IMAGES);
    pair.produce(IMAGES..2 * IMAGES);
    pair.finish(&mut [second, first], 2 * IMAGES);
    assert!(!pair.done_by(1).is_empty(), "the second learner had no share");
}

/// One is killed again and again, while the other joins and leaves.
#[test]
fn kills_beside_a_learner_that_joins_and_leaves_lose_nothing_and_double_nothing() {
    const IMAGES_A_KILL: u64 = 600;
    let Some(brokers) = brokers() else { return };
    let pair = Pair::new(&brokers, "joins-and-leaves");
    let mut rng = seed::rng(3, Purpose::Evaluate, &[]);
    let (mut n_records, mut guest) = (0, None::<Program>);
    for kill in 0..kills(4) {
        pair.produce(n_records..n_records + IMAGES_A_KILL);
        n_records += IMAGES_A_KILL;
        let n_before = pair.done_by(0).len();
        let mut host = pair.start(0);
        pair.await_more(&mut host, 0, n_before, n_records);
        match guest.take() {
            None => guest = Some(pair.start(1)),
            Some(mut leaving) => {
                assert!(leaving.terminate().success(), "{}", leaving.log());
            }
        }
        // Joining takes longer than learning what there is: sometimes it dies in the middle of that.
        std::thread::sleep(Duration::from_millis(rng.random_range(0..3000)));
        host.kill();
        println!(
            "kill {kill}: {} done by the one, {} by the other",
            pair.done_by(0).len(),
            pair.done_by(1).len()
        );
    }
    let mut programs = vec![pair.start(0)];
    programs.extend(guest);
    pair.finish(&mut programs, n_records);
    assert!(!pair.done_by(1).is_empty(), "the second learner had no share");
}

/// What one has put into a checkpoint and not committed, the other does when it takes over: then the one gives
/// way, and goes on from the checkpoint that it committed last.
#[cfg(feature = "failpoints")]
#[test]
fn a_learner_that_died_before_its_commit_gives_way_to_the_one_that_took_over() {
    const IMAGES: u64 = 1500;
    let Some(brokers) = brokers() else { return };
    let pair = Pair::new(&brokers, "gives-way");
    pair.produce(0..IMAGES);
    let mut dying = pair.start_with(0, &[("commit", "3*off->return")]);
    let status = dying.wait();
    assert!(!status.success(), "it was to die before a commit: {}", dying.log());
    let n_done = |index| pair.done_by(index).values().sum::<usize>() as u64;
    let committed = || committed(&brokers, &pair.topic, &pair.topic, PARTITIONS);
    let (before, ahead) = (committed().iter().sum::<i64>() as u64, n_done(0));
    assert!(ahead > before, "{ahead} done, {before} committed: nothing to give way with");
    let mut other = pair.start(1);
    wait_for("the other to take over", || {
        other.assert_alive();
        (n_done(1) == IMAGES - before).then_some(())
    });
    let back = pair.start(0);
    pair.produce(IMAGES..2 * IMAGES);
    pair.finish(&mut [other, back], 2 * IMAGES);
    let log = std::fs::read_to_string(pair.dirs[0].path().join("log")).unwrap();
    assert!(log.contains("taken_over"), "{log}");
}
