//! Broken records among good ones: the good ones are learned, the broken ones are in the
//! dead-letter topic with reason, origin and bytes.

use crate::delivery::surviving;
use crate::harness::{
    Message, Program, brokers, create_topic, png, produce, reader, small_config, unique, wait_for,
};
use rdkafka::message::{Headers, Message as _};
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

const GOOD: u64 = 10_000;
const BROKEN: u64 = 1_000;
/// Records over the limit on bytes; each is 20 MB.
const HUGE: u64 = 10;

/// A PNG header that claims 50,000 x 50,000 pixels, with 30 KB behind it.
fn bomb(index: u64) -> Vec<u8> {
    let mut bytes = png(index, 10);
    bytes[16..20].copy_from_slice(&50_000u32.to_be_bytes());
    bytes[20..24].copy_from_slice(&50_000u32.to_be_bytes());
    // The header's checksum holds, as in a real bomb.
    let crc = crc32(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&crc.to_be_bytes());
    bytes.resize(30_000, index as u8);
    bytes
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 }
        })
    })
}

/// The broken record `index`, and the reason that it must be refused for.
fn broken(index: u64) -> (Vec<u8>, Option<&'static str>, &'static str) {
    if index < HUGE {
        return (vec![index as u8; 20_000_000], None, "too_many_bytes");
    }
    match index % 6 {
        0 => {
            let mut cut = png(index, 24);
            cut.truncate(cut.len() * 2 / 3);
            (cut, None, "damaged")
        }
        1 => (vec![], None, "empty"),
        2 => (format!("this is text {index}").into_bytes(), None, "unknown_format"),
        3 => (png(index, 10), Some("text/plain"), "content_type"),
        4 => (bomb(index), Some("image/png"), "too_many_pixels"),
        _ => (png(index, 4), Some("image/png"), "too_small"),
    }
}

#[test]
fn a_thousand_broken_records_among_ten_thousand() {
    let Some(brokers) = brokers() else { return };
    let (topic, letters) = (unique("mixed"), unique("mixed-refused"));
    create_topic(&brokers, &topic, 2);
    create_topic(&brokers, &letters, 1);
    let spacing = (GOOD + BROKEN) / BROKEN;
    let mut expected: HashMap<(i32, i64), (Vec<u8>, &str)> = HashMap::new();
    let mut next_offset = [0i64; 2];
    let (mut n_good, mut n_broken) = (0, 0);
    let mut messages = vec![];
    for index in 0..GOOD + BROKEN {
        let partition = (index % 2) as i32;
        let offset = next_offset[partition as usize];
        next_offset[partition as usize] += 1;
        let (value, content_type) = if index % spacing == 3 && n_broken < BROKEN {
            let (value, content_type, reason) = broken(n_broken);
            expected.insert((partition, offset), (value.clone(), reason));
            n_broken += 1;
            (value, content_type)
        } else {
            n_good += 1;
            (png(index, 10), None)
        };
        messages.push(Message { partition, value, content_type });
    }
    assert_eq!((n_good, n_broken), (GOOD, BROKEN));
    produce(&brokers, &topic, messages);

    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.toml");
    let text = small_config(&brokers, &topic, dir.path());
    let letters_key = format!("[kafka]\ndead_letter_topic = \"{letters}\"");
    let text = text.replace("[kafka]", &letters_key);
    std::fs::write(&config, text.replace("batch.images = 16", "batch.images = 64")).unwrap();
    let args = ["run", "--config", config.to_str().unwrap()];
    let mut program = Program::start(&args, &dir.path().join("log"));
    let journal = dir.path().join("journal.jsonl");
    let mut half_way_kib = 0;
    let mut last_done = 0;
    wait_for("every record to be done", || {
        program.assert_alive();
        let done = surviving(&journal).len() as u64;
        if done / 2000 > last_done / 2000 {
            println!("{done} records done");
        }
        last_done = done;
        if half_way_kib == 0 && done > (GOOD + BROKEN) / 2 {
            half_way_kib = program.peak_memory_kib();
        }
        (done == GOOD + BROKEN).then_some(())
    });
    let peak_kib = program.peak_memory_kib();
    assert!(program.terminate().success(), "{}", program.log());
    println!("peak memory: {half_way_kib} KiB half-way, {peak_kib} KiB at the end");
    // Flat: what the second half adds is small beside one bomb (7.5 GB) or the 200 MB of records.
    assert!(peak_kib < half_way_kib + 150_000, "{half_way_kib} KiB, then {peak_kib} KiB");

    let times = surviving(&journal);
    assert!(times.values().all(|times| *times == 1), "a record was done twice");
    assert_eq!(expected.len() as u64, BROKEN);
    check_letters(&brokers, &letters, &topic, expected);
}

/// Reads as many dead letters as are expected, and checks each one's origin, reason and bytes.
pub(crate) fn check_letters(
    brokers: &str,
    letters: &str,
    topic: &str,
    mut expected: HashMap<(i32, i64), (Vec<u8>, &str)>,
) {
    let consumer = reader(brokers, letters, 1);
    let n_expected = expected.len();
    let mut reasons = BTreeMap::<String, usize>::new();
    while !expected.is_empty() {
        let message = wait_for("a dead letter", || consumer.poll(Duration::from_secs(1)));
        let message = message.unwrap();
        let header = |name: &str| -> String {
            let found = message.headers().unwrap().iter().find(|header| header.key == name);
            String::from_utf8(found.unwrap().value.unwrap().to_vec()).unwrap()
        };
        let origin = header("selfstream-origin");
        let (from, place) = origin.split_once('/').unwrap();
        let (partition, offset) = place.split_once('@').unwrap();
        assert_eq!(from, topic);
        let key = (partition.parse().unwrap(), offset.parse().unwrap());
        let (bytes, reason) = expected.remove(&key).expect("a record that is broken, once");
        assert_eq!(header("selfstream-reason"), reason, "{origin}");
        assert!(message.payload().unwrap_or_default() == bytes, "{origin}: bytes were changed");
        *reasons.entry(reason.to_owned()).or_default() += 1;
    }
    println!("dead letters: {reasons:?}");
    assert_eq!(reasons.values().sum::<usize>(), n_expected);
}
