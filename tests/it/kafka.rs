//! What of a cluster is read, from where, and at which pace.

use crate::delivery::surviving;
use crate::harness::{
    Message, Program, brokers, committed, create_topic, png, produce, reader, small_config, unique,
    wait_for,
};
use rdkafka::consumer::Consumer;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, SystemTime};

fn message(index: u64) -> Message {
    Message { partition: 0, value: png(index, 10), content_type: None }
}

/// A run of `small_config` with more lines of `[kafka]`.
fn start(brokers: &str, topic: &str, dir: &Path, kafka: &str) -> Program {
    let config = dir.join("config.toml");
    std::fs::write(&config, small_config(brokers, topic, dir) + kafka).unwrap();
    Program::start(&["run", "--config", config.to_str().unwrap()], &dir.join("log"))
}

/// How often each record was done as `key` says ("learned", "skipped"), by topic and offset.
fn done(journal: &Path, key: &str) -> BTreeMap<(String, i64), usize> {
    let text = std::fs::read_to_string(journal).unwrap_or_default();
    // The last line may be being written.
    let text = text.rfind('\n').map_or("", |end| &text[..end]);
    let mut times = BTreeMap::new();
    for line in text.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        for origin in line[key].as_array().into_iter().flatten() {
            let topic = origin[0].as_str().unwrap().to_owned();
            *times.entry((topic, origin[2].as_i64().unwrap())).or_default() += 1;
        }
    }
    times
}

#[test]
fn topics_that_match_are_read_those_made_later_too_and_dead_letters_never() {
    let Some(brokers) = brokers() else { return };
    let name = unique("cameras");
    let topics = ["a", "b", "late"].map(|camera| format!("{name}-{camera}"));
    let (letters, events) = (format!("{name}-refused"), format!("{name}-events"));
    [&topics[0], &topics[1], &letters, &events]
        .into_iter()
        .for_each(|t| create_topic(&brokers, t, 1));
    for topic in &topics[..2] {
        produce(&brokers, topic, (0..100).map(message));
    }
    let broken = Message { partition: 0, value: b"no image".to_vec(), content_type: None };
    produce(&brokers, &topics[0], [broken]);
    let dir = tempfile::tempdir().unwrap();
    let kafka = format!(
        "dead_letter_topic = \"{letters}\"\nevents_topic = \"{events}\"\n[kafka.properties]\n\
         \"topic.metadata.refresh.interval.ms\" = \"500\"\n"
    );
    let text = small_config(&brokers, &name, dir.path());
    let text =
        text.replace(&format!("topics = [\"{name}\"]"), &format!("topics = [\"^{name}-.*\"]"));
    let config = dir.path().join("config.toml");
    std::fs::write(&config, text + &kafka).unwrap();
    let args = ["run", "--config", config.to_str().unwrap()];
    let mut program = Program::start(&args, &dir.path().join("log"));
    let journal = dir.path().join("journal.jsonl");
    let learned = |n| {
        wait_for("images to be learned", || (done(&journal, "learned").len() == n).then_some(()));
    };
    learned(200);
    create_topic(&brokers, &topics[2], 1);
    produce(&brokers, &topics[2], (0..100).map(message));
    learned(300);
    wait_for("the refusal", || (done(&journal, "refused").len() == 1).then_some(()));
    assert!(program.terminate().success(), "{}", program.log());
    let times = done(&journal, "learned");
    assert!(times.values().all(|n| *n == 1));
    let read: BTreeSet<&str> = times.keys().map(|(topic, _)| &topic[..]).collect();
    assert_eq!(read, topics.iter().map(|topic| &topic[..]).collect());
    let (low, high) = reader(&brokers, &letters, 1)
        .fetch_watermarks(&letters, 0, Duration::from_secs(10))
        .unwrap();
    assert_eq!(high - low, 1, "one dead letter, and none of a dead letter or an event");
}

#[test]
fn a_start_at_a_time_leaves_out_what_is_older() {
    let Some(brokers) = brokers() else { return };
    let topic = unique("time");
    create_topic(&brokers, &topic, 1);
    produce(&brokers, &topic, (0..50).map(message));
    let time = SystemTime::now() + Duration::from_millis(1);
    wait_for("the clock", || (SystemTime::now() > time).then_some(()));
    produce(&brokers, &topic, (50..90).map(message));
    let dir = tempfile::tempdir().unwrap();
    let time = humantime::format_rfc3339_millis(time);
    let mut program = start(&brokers, &topic, dir.path(), &format!("start = \"{time}\"\n"));
    let journal = dir.path().join("journal.jsonl");
    wait_for("the newer ones", || (done(&journal, "learned").len() >= 40).then_some(()));
    assert!(program.terminate().success(), "{}", program.log());
    let offsets: Vec<i64> = done(&journal, "learned").into_keys().map(|(_, at)| at).collect();
    assert_eq!(offsets, (50..90).collect::<Vec<i64>>());
}

/// KIP-848, with a static member: a killed session holds the name until it has timed out, which the
/// protocol calls fatal; it is waited out.
#[test]
fn a_group_of_the_new_protocol_survives_a_kill() {
    let Some(brokers) = brokers() else { return };
    let topic = unique("kip-848");
    create_topic(&brokers, &topic, 1);
    produce(&brokers, &topic, (0..600).map(message));
    let dir = tempfile::tempdir().unwrap();
    let journal = dir.path().join("journal.jsonl");
    let protocol = "group_protocol = \"consumer\"\n";
    let mut program = start(&brokers, &topic, dir.path(), protocol);
    wait_for("some to be learned", || {
        program.assert_alive();
        (!surviving(&journal).is_empty()).then_some(())
    });
    program.kill();
    let mut program = start(&brokers, &topic, dir.path(), protocol);
    produce(&brokers, &topic, (600..800).map(message));
    wait_for("all to be learned", || {
        program.assert_alive();
        (surviving(&journal).len() == 800).then_some(())
    });
    assert!(program.terminate().success(), "{}", program.log());
    assert!(surviving(&journal).values().all(|n| *n == 1), "an image was learned twice");
    assert_eq!(committed(&brokers, &topic, &topic, 1), [800]);
}

#[test]
fn a_topic_that_is_too_fast_is_sampled_evenly_and_every_record_accounted_for() {
    const IMAGES: u64 = 12_000;
    const TARGET: u64 = 200;
    let Some(brokers) = brokers() else { return };
    let topic = unique("pace");
    create_topic(&brokers, &topic, 1);
    produce(&brokers, &topic, (0..IMAGES).map(message));
    let dir = tempfile::tempdir().unwrap();
    let kafka = format!("lag_target_records = {TARGET}\nlag_alarm_records = 1000\n");
    let mut program = start(&brokers, &topic, dir.path(), &kafka);
    let journal = dir.path().join("journal.jsonl");
    wait_for("all to be done", || {
        program.assert_alive();
        (surviving(&journal).len() as u64 == IMAGES).then_some(())
    });
    assert!(program.terminate().success(), "{}", program.log());
    let (learned, skipped) = (done(&journal, "learned"), done(&journal, "skipped"));
    println!("{} learned, {} skipped", learned.len(), skipped.len());
    assert_eq!(learned.len() + skipped.len(), IMAGES as usize, "each is one or the other");
    assert!(skipped.len() > IMAGES as usize / 4, "{} skipped", skipped.len());
    assert!(learned.values().chain(skipped.values()).all(|n| *n == 1));
    // Evenly: among records in a row one is learned before the pace's share is far exceeded.
    let offsets: Vec<i64> = learned.into_keys().map(|(_, offset)| offset).collect();
    let gap = offsets.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
    assert!(gap < IMAGES as i64 / 4, "{gap} records in a row were skipped");
    assert!(program.log().contains("faster than the learner"), "the lag was not told");
}
