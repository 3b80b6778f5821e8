//! No image lost, none learned twice, whenever the program is killed.

use crate::harness::{
    Message, Program, brokers, committed, create_topic, create_topic_of, number, png, produce,
    small_config, unique, wait_for,
};
use rand::RngExt;
use selfstream::seed::{self, Purpose};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// Partitions of a lineage's topic.
pub(crate) const PARTITIONS: i32 = 3;

/// How often each record of a journal was done in the lineage that survived: what was done after the
/// checkpoint that a restart began from is void.
pub(crate) fn surviving(journal: &Path) -> BTreeMap<(i32, i64), usize> {
    let text = std::fs::read_to_string(journal).unwrap_or_default();
    // The last line may be being written.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let mut done = vec![];
    for line in whole.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        if let Some(restored) = line["restored_done"].as_u64() {
            done.truncate(restored as usize);
        }
        for origins in ["learned", "refused", "skipped"].map(|key| &line[key]) {
            for origin in origins.as_array().into_iter().flatten() {
                let partition = origin[1].as_i64().unwrap() as i32;
                done.push((partition, origin[2].as_i64().unwrap()));
            }
        }
    }
    let mut times = BTreeMap::new();
    done.into_iter().for_each(|origin| *times.entry(origin).or_default() += 1);
    times
}

fn journal_len(dir: &Path) -> u64 {
    std::fs::metadata(dir.join("journal.jsonl")).map_or(0, |metadata| metadata.len())
}

/// How often to kill: few times in a run of all tests, or as SELFSTREAM_KILLS says.
pub(crate) fn kills(usual: u64) -> u64 {
    number("SELFSTREAM_KILLS", usual)
}

/// Image `index`, dealt round-robin to the partitions.
pub(crate) fn message(index: u64) -> Message {
    Message {
        partition: (index % PARTITIONS as u64) as i32,
        value: png(index, 10),
        content_type: None,
    }
}

/// How a lineage reaches its topic.
#[derive(Clone, Copy)]
pub(crate) struct Way<'a> {
    /// By which the test does.
    pub(crate) brokers: &'a str,
    /// By which the learner does.
    pub(crate) learner: &'a str,
    /// Brokers that hold each partition.
    pub(crate) copies: i32,
}

impl<'a> Way<'a> {
    /// A topic on one broker, whose address is the same for all.
    pub(crate) fn to(brokers: &'a str) -> Self {
        Self { brokers, learner: brokers, copies: 1 }
    }
}

/// Checkpoints that may be left in the end: five a second, for some seconds until the broker is seen to have them,
/// on a loaded machine. Ten kills leave three times as many where none goes.
const MOST_CHECKPOINTS: usize = 100;

fn n_checkpoints(dir: &Path) -> usize {
    let files =
        std::fs::read_dir(dir.join("checkpoints")).unwrap().map(|file| file.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|e| e == "safetensors")).count()
}

/// A topic, and a learner of it that is killed and started again.
pub(crate) struct Lineage {
    brokers: String,
    pub(crate) topic: String,
    pub(crate) dir: tempfile::TempDir,
}

impl Lineage {
    /// A new topic; `kafka` is added to the section of that name.
    pub(crate) fn new(way: Way<'_>, name: &str, kafka: &str) -> Self {
        let topic = unique(name);
        create_topic_of(way.brokers, &topic, PARTITIONS, way.copies);
        let dir = tempfile::tempdir().unwrap();
        let config = small_config(way.learner, &topic, dir.path()) + kafka;
        std::fs::write(dir.path().join("config.toml"), config).unwrap();
        Self { brokers: way.brokers.to_owned(), topic, dir }
    }

    /// Sends the images of these numbers.
    pub(crate) fn produce(&self, images: std::ops::Range<u64>) {
        produce(&self.brokers, &self.topic, images.map(message));
    }

    pub(crate) fn start(&self, failpoints: &[(&str, &str)]) -> Program {
        self.start_under(&[], failpoints)
    }

    pub(crate) fn start_under(&self, command: &[&str], failpoints: &[(&str, &str)]) -> Program {
        let config = self.dir.path().join("config.toml");
        let args = ["run", "--config", config.to_str().unwrap()];
        Program::start_under(command, &args, &self.dir.path().join("log"), failpoints)
    }

    /// Length of the journal, bytes.
    pub(crate) fn journal_len(&self) -> u64 {
        journal_len(self.dir.path())
    }

    pub(crate) fn done(&self) -> BTreeMap<(i32, i64), usize> {
        surviving(&self.dir.path().join("journal.jsonl"))
    }

    /// Waits until `program` learns after a restart.
    pub(crate) fn await_learning(&self, program: &mut Program, journal_len_before: u64) {
        wait_for("resumed learning", || {
            program.assert_alive();
            // The line of the restart is 40 bytes or a few more.
            (journal_len(self.dir.path()) > journal_len_before + 80).then_some(())
        });
    }

    /// Waits until so many records are done, as long as more and more are.
    pub(crate) fn await_done(&self, program: &mut Program, n_records: u64) {
        let mut n_done = 0;
        while n_done < n_records {
            n_done = wait_for("more records to be done", || {
                program.assert_alive();
                let now = self.done().len() as u64;
                (now > n_done).then_some(now)
            });
        }
    }

    /// Lets all `n_records` be done, and checks that each was once.
    pub(crate) fn finish(&self, n_records: u64) {
        self.finish_by(self.start(&[]), n_records);
    }

    /// The same by a program that runs.
    pub(crate) fn finish_by(&self, mut program: Program, n_records: u64) {
        // Where all was done before, it may not have come to hear of signals yet.
        program.await_log("listening");
        self.await_done(&mut program, n_records);
        let status = program.terminate();
        assert!(status.success(), "{status}\n{}", program.log());
        let times = self.done();
        let doubled: Vec<_> = times.iter().filter(|(_, times)| **times != 1).collect();
        assert!(doubled.is_empty(), "done more than once: {doubled:?}");
        let expected = n_records as i64 / i64::from(PARTITIONS);
        for partition in 0..PARTITIONS {
            for offset in 0..expected {
                assert!(times.contains_key(&(partition, offset)), "lost {partition}@{offset}");
            }
        }
        let committed = committed(&self.brokers, &self.topic, &self.topic, PARTITIONS);
        assert_eq!(committed, [expected; PARTITIONS as usize], "{}", program.log());
        let kept = n_checkpoints(self.dir.path());
        println!("{kept} checkpoints are kept");
        assert!(kept <= MOST_CHECKPOINTS, "{kept} checkpoints are kept");
    }
}

/// kill -9 at uniform moments within 3 s of resumed learning, while images keep coming.
#[test]
fn kills_at_any_moment_lose_nothing_and_double_nothing() {
    const IMAGES_A_KILL: u64 = 600;
    let Some(brokers) = brokers() else { return };
    let lineage = Lineage::new(Way::to(&brokers), "kills", "");
    let kills = kills(10);
    let mut rng = seed::rng(1, Purpose::Evaluate, &[]);
    let mut done_at_kills = vec![];
    for kill in 0..kills {
        let new = kill * IMAGES_A_KILL..(kill + 1) * IMAGES_A_KILL;
        produce(&brokers, &lineage.topic, new.map(message));
        let before = journal_len(lineage.dir.path());
        let mut program = lineage.start(&[]);
        lineage.await_learning(&mut program, before);
        std::thread::sleep(Duration::from_millis(rng.random_range(0..3000)));
        program.kill();
        done_at_kills.push(lineage.done().len());
    }
    println!("records done at each kill: {done_at_kills:?}");
    lineage.finish(kills * IMAGES_A_KILL);
}

/// The moments at which a checkpoint, a commit or a dead letter is half done.
#[cfg(feature = "failpoints")]
#[test]
fn death_in_the_middle_of_a_checkpoint_or_commit_loses_nothing() {
    const IMAGES_A_KILL: u64 = 300;
    const POINTS: [&str; 7] = [
        "temporary_write",
        "sync",
        "rename",
        "renamed",
        "segment_sync",
        "commit",
        "dead_letter_acknowledged",
    ];
    let Some(brokers) = brokers() else { return };
    let letters = unique("deaths-refused");
    create_topic(&brokers, &letters, 1);
    let kafka = format!("dead_letter_topic = \"{letters}\"\n");
    let lineage = Lineage::new(Way::to(&brokers), "deaths", &kafka);
    let mut rng = seed::rng(2, Purpose::Evaluate, &[]);
    let mut n_records = 0;
    for _ in 0..kills(1) {
        for point in POINTS {
            let broken = |index: u64| match index % 50 {
                7 => Message { value: b"no image".to_vec(), ..message(index) },
                _ => message(index),
            };
            let new = n_records..n_records + IMAGES_A_KILL;
            produce(&brokers, &lineage.topic, new.map(broken));
            n_records += IMAGES_A_KILL;
            // Learner id and first checkpoint are written once.
            let action = format!("{}*off->return", rng.random_range(1..4));
            let mut program = lineage.start(&[(point, &action)]);
            let status = program.wait();
            assert!(!status.success(), "it was to die at {point}: {}", program.log());
        }
    }
    lineage.finish(n_records);
}
