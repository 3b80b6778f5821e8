//! Equal streams give equal weights, however the run was cut up.

use crate::delivery::surviving;
use crate::harness::{
    Message, Program, brokers, create_topic, png, produce, small_config, unique, wait_for,
};
use rand::RngExt;
use selfstream::seed::{self, Purpose};
use std::path::{Path, PathBuf};
use std::time::Duration;

const PARTITIONS: i32 = 3;
/// Broken ones are one in 75, so that the others are whole batches.
const IMAGES: u64 = 2400;

/// The configuration of a run of `topic` in the folder `dir`, by a group of its own.
fn written(brokers: &str, topic: &str, threads: usize, dir: &Path) -> PathBuf {
    let config = dir.join("config.toml");
    let text = small_config(brokers, topic, dir);
    let text = text
        .replace("run.learner_threads = 1", &format!("run.learner_threads = {threads}"))
        .replace("batch.max_wait", "run.deterministic = true\nbatch.max_wait")
        .replace(&format!("group = \"{topic}\""), &format!("group = \"{}\"", unique(topic)));
    std::fs::write(&config, text).unwrap();
    config
}

/// Learns all of `topic` with so many threads and kills on the way; the version at the end.
fn version_after(brokers: &str, topic: &str, threads: usize, kills: usize) -> String {
    let dir = tempfile::tempdir().unwrap();
    let config = written(brokers, topic, threads, dir.path());
    let summary = dir.path().join("summary.json");
    let args = ["run", "--config", config.to_str().unwrap(), "--summary"];
    let args = [&args[..], &[summary.to_str().unwrap()]].concat();
    let (journal, log) = (dir.path().join("journal.jsonl"), dir.path().join("log"));
    let mut rng = seed::rng(3, Purpose::Evaluate, &[threads as u64]);
    for kill in 0..kills {
        let mut program = Program::start(&args, &log);
        let wanted = IMAGES as usize * kill / kills;
        wait_for("learning", || {
            program.assert_alive();
            (surviving(&journal).len() > wanted).then_some(())
        });
        std::thread::sleep(Duration::from_millis(rng.random_range(0..500)));
        program.kill();
    }
    let mut program = Program::start(&args, &log);
    wait_for("all images to be done", || {
        program.assert_alive();
        (surviving(&journal).len() as u64 == IMAGES).then_some(())
    });
    assert!(program.terminate().success(), "{}", program.log());
    assert!(surviving(&journal).values().all(|n| *n == 1));
    version(&summary)
}

fn version(summary: &Path) -> String {
    let summary: serde_json::Value =
        serde_json::from_slice(&std::fs::read(summary).unwrap()).unwrap();
    summary["version"].as_str().unwrap().to_owned()
}

#[test]
fn equal_streams_give_equal_weights() {
    let Some(brokers) = brokers() else { return };
    let topic = unique("deterministic");
    create_topic(&brokers, &topic, PARTITIONS);
    let message = |index: u64| Message {
        partition: (index % PARTITIONS as u64) as i32,
        value: if index % 75 == 5 { b"no image".to_vec() } else { png(index, 10) },
        content_type: None,
    };
    produce(&brokers, &topic, (0..IMAGES).map(message));
    let uninterrupted = version_after(&brokers, &topic, 1, 0);
    assert_eq!(version_after(&brokers, &topic, 1, 10), uninterrupted, "killed ten times");
    assert_eq!(version_after(&brokers, &topic, 2, 0), uninterrupted, "on two threads");
}

/// The last ones are no whole batch, and nothing more may be learned to fill it.
#[test]
fn a_run_ends_after_as_many_images_as_it_was_told() {
    let Some(brokers) = brokers() else { return };
    let topic = unique("told");
    create_topic(&brokers, &topic, 1);
    let message = |index| Message { partition: 0, value: png(index, 10), content_type: None };
    produce(&brokers, &topic, (0..200).map(message));
    let dir = tempfile::tempdir().unwrap();
    let config = written(&brokers, &topic, 1, dir.path());
    let args = ["run", "--config", config.to_str().unwrap(), "--stop-after", "101"];
    let mut program = Program::start(&args, &dir.path().join("log"));
    assert!(program.wait().success(), "{}", program.log());
    assert_eq!(surviving(&dir.path().join("journal.jsonl")).len(), 101);
}
