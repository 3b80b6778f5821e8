//! Events that reach a topic of their own.

use crate::delivery::surviving;
use crate::harness::{
    Message, Program, brokers, create_topic, png, produce, reader, small_config, unique, wait_for,
};
use rdkafka::consumer::Consumer;
use rdkafka::message::Message as _;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

/// The versions that are kept in a snapshot folder.
fn kept(snapshots: &Path) -> BTreeSet<String> {
    let files = std::fs::read_dir(snapshots).unwrap().map(|entry| entry.unwrap().path());
    files
        .filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect()
}

/// Every message of a topic of one partition: its key, and its value as JSON.
fn messages(brokers: &str, topic: &str) -> Vec<(String, serde_json::Value)> {
    let consumer = reader(brokers, topic, 1);
    let (low, high) = consumer.fetch_watermarks(topic, 0, Duration::from_secs(60)).unwrap();
    let read = |_| {
        let polled = wait_for("an event", || consumer.poll(Duration::from_secs(1)));
        let message = polled.unwrap();
        let key = String::from_utf8(message.key().unwrap().to_vec()).unwrap();
        (key, serde_json::from_slice(message.payload().unwrap()).unwrap())
    };
    (low..high).map(read).collect()
}

#[test]
fn every_version_that_went_live_is_told_to_the_topic_of_events() {
    const IMAGES: u64 = 1000;
    let Some(brokers) = brokers() else { return };
    let topic = unique("told");
    let events = format!("{topic}-events");
    [&topic, &events].into_iter().for_each(|topic| create_topic(&brokers, topic, 1));
    let message = |index| Message { partition: 0, value: png(index, 10), content_type: None };
    produce(&brokers, &topic, (0..IMAGES).map(message));
    let dir = tempfile::tempdir().unwrap();
    let snapshots = dir.path().join("snapshots");
    let text = small_config(&brokers, &topic, dir.path());
    let folder = format!("snapshot.every_steps = 20\nsnapshot.dir = \"{}\"", snapshots.display());
    let text = text.replace("snapshot.every_steps = 20", &folder);
    let config = dir.path().join("config.toml");
    std::fs::write(&config, text + &format!("events_topic = \"{events}\"\n")).unwrap();
    let args = ["run", "--config", config.to_str().unwrap()];
    let mut program = Program::start(&args, &dir.path().join("log"));
    let journal = dir.path().join("journal.jsonl");
    wait_for("all images to be done", || {
        program.assert_alive();
        (surviving(&journal).len() as u64 == IMAGES).then_some(())
    });
    // What goes live at the very end is told too, and acknowledged before the program has ended.
    assert!(program.terminate().success(), "{}", program.log());

    let told = messages(&brokers, &events);
    assert!(told.iter().all(|(key, event)| event["type"] == *key), "{told:?}");
    let published: Vec<_> = told.iter().filter(|(key, _)| key == "published").collect();
    let times: Vec<i64> = published.iter().map(|(_, e)| e["time_ms"].as_i64().unwrap()).collect();
    assert!(times.is_sorted(), "events of one kind keep their order: {times:?}");
    let versions = published.iter().map(|(_, event)| event["version"].as_str().unwrap().to_owned());
    let (versions, kept) = (versions.collect::<BTreeSet<_>>(), kept(&snapshots));
    println!("{} events, {} versions went live", told.len(), versions.len());
    assert!(versions.len() >= 2, "{told:?}");
    assert_eq!(versions, kept, "those that went live and those that were told");
}
