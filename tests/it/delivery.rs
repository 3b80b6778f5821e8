//! No image lost, none learned twice, whenever the program is killed.

use crate::harness::{
    Message, Program, brokers, committed, create_topic, png, produce, small_config, unique,
    wait_for,
};
use rand::RngExt;
use selfstream::seed::{self, Purpose};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

const PARTITIONS: i32 = 3;

/// How often each record of a journal was done in the lineage that survived: lines after a
/// restored step are void.
pub(crate) fn surviving(journal: &Path) -> BTreeMap<(i32, i64), usize> {
    let text = std::fs::read_to_string(journal).unwrap_or_default();
    let mut lines: Vec<serde_json::Value> = vec![];
    for line in text.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        match line["restored_step"].as_u64() {
            Some(restored) => lines.retain(|line| line["step"].as_u64().unwrap() <= restored),
            None => lines.push(line),
        }
    }
    let mut times = BTreeMap::new();
    for line in &lines {
        for origin in [&line["learned"], &line["refused"]] {
            for origin in origin.as_array().into_iter().flatten() {
                let partition = origin[1].as_i64().unwrap() as i32;
                *times.entry((partition, origin[2].as_i64().unwrap())).or_default() += 1;
            }
        }
    }
    times
}

fn journal_len(dir: &Path) -> u64 {
    std::fs::metadata(dir.join("journal.jsonl")).map_or(0, |metadata| metadata.len())
}

/// Image `index`, dealt round-robin to the partitions.
fn message(index: u64) -> Message {
    Message {
        partition: (index % PARTITIONS as u64) as i32,
        value: png(index, 10),
        content_type: None,
    }
}

#[test]
fn ten_kills_lose_nothing_and_double_nothing() {
    const IMAGES: u64 = 6000;
    const KILLS: u64 = 10;
    let Some(brokers) = brokers() else { return };
    let topic = unique("kills");
    create_topic(&brokers, &topic, PARTITIONS);
    produce(&brokers, &topic, (0..IMAGES).map(message));

    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.toml");
    std::fs::write(&config, small_config(&brokers, &topic, dir.path())).unwrap();
    let args = ["run", "--config", config.to_str().unwrap()];
    let log = dir.path().join("log");
    let mut rng = seed::rng(1, Purpose::Evaluate, &[]);
    let mut done_at_kills = vec![];
    for _ in 0..KILLS {
        let before = journal_len(dir.path());
        let mut program = Program::start(&args, &log);
        wait_for("resumed learning", || {
            program.assert_alive();
            // The line of the restart is 19 bytes or a few more.
            (journal_len(dir.path()) > before + 64).then_some(())
        });
        // A uniform moment of resumed learning, of which each run has a few hundred milliseconds.
        std::thread::sleep(Duration::from_millis(rng.random_range(0..400)));
        program.kill();
        done_at_kills.push(surviving(&dir.path().join("journal.jsonl")).len());
    }
    let mut program = Program::start(&args, &log);
    let journal = dir.path().join("journal.jsonl");
    wait_for("all images to be done", || {
        program.assert_alive();
        (surviving(&journal).len() as u64 == IMAGES).then_some(())
    });
    assert!(program.terminate().success(), "{}", program.log());

    println!("records done at each kill: {done_at_kills:?}");
    assert!(done_at_kills[0] < IMAGES as usize / 2, "killed in mid-stream: {done_at_kills:?}");
    let times = surviving(&journal);
    let doubled: Vec<_> = times.iter().filter(|(_, times)| **times != 1).collect();
    assert!(doubled.is_empty(), "done more than once: {doubled:?}");
    let expected = IMAGES as i64 / i64::from(PARTITIONS);
    for partition in 0..PARTITIONS {
        for offset in 0..expected {
            assert!(times.contains_key(&(partition, offset)), "lost {partition}@{offset}");
        }
    }
    assert_eq!(committed(&brokers, &topic, &topic, PARTITIONS), [expected; PARTITIONS as usize]);
}

#[test]
fn two_learners_share_a_topic_and_each_image_is_learned_by_one() {
    const IMAGES: u64 = 3000;
    let Some(brokers) = brokers() else { return };
    let topic = unique("pair");
    create_topic(&brokers, &topic, PARTITIONS);
    produce(&brokers, &topic, (0..IMAGES).map(message));

    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let journals = dirs.each_ref().map(|dir| dir.path().join("journal.jsonl"));
    let start = |index: usize| {
        let dir = dirs[index].path();
        let config = dir.join("config.toml");
        let text = small_config(&brokers, &topic, dir);
        let text = text.replace(&format!("{topic}-1"), &format!("{topic}-{index}"));
        std::fs::write(&config, text).unwrap();
        Program::start(&["run", "--config", config.to_str().unwrap()], &dir.join("log"))
    };
    let done = || {
        let mut times = BTreeMap::new();
        for journal in &journals {
            for (origin, n) in surviving(journal) {
                *times.entry(origin).or_default() += n;
            }
        }
        times
    };
    let mut first = start(0);
    wait_for("the first to learn", || {
        first.assert_alive();
        (!done().is_empty()).then_some(())
    });
    // The second takes partitions over from the first in mid-stream.
    let mut second = start(1);
    wait_for("the second to learn", || {
        second.assert_alive();
        (done().len() as u64 == IMAGES || !surviving(&journals[1]).is_empty()).then_some(())
    });
    produce(&brokers, &topic, (IMAGES..2 * IMAGES).map(message));
    wait_for("all images to be done", || (done().len() as u64 == 2 * IMAGES).then_some(()));
    assert!(second.terminate().success(), "{}", second.log());
    assert!(first.terminate().success(), "{}", first.log());
    let times: BTreeMap<(i32, i64), usize> = done();
    assert!(times.values().all(|times| *times == 1), "an image was learned twice");
    assert!(!surviving(&journals[1]).is_empty(), "the second learner had no share");
}
