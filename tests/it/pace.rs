//! A producer that is ten times faster than the learner: memory stays flat, and every record is accounted for.

use crate::delivery::surviving;
use crate::harness::{
    Message, Program, brokers, create_topic, number, png, produce, small_config, unique, wait_for,
};
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use std::path::Path;
use std::time::{Duration, Instant};

/// How many times faster.
const FASTER: f64 = 10.0;
/// Images that the learner's own pace is measured on, after as many to warm up.
const MEASURED: usize = 160;
/// An image has some 16 KB, so that holding on to what is skipped would show.
const SIDE_PX: u32 = 110;
/// What the peak of the last third of the time may have over that of the first, both after a third to warm
/// up: librdkafka's queue (16 MiB) may fill in the meantime, and the allocator may keep a checkpoint's
/// arrays (22 MB). A guess in all; the producer sends several times as much in that time.
const GROWTH_KIB: u64 = 48 * 1024;

/// Images to send over and over.
fn images() -> Vec<Vec<u8>> {
    (0..64).map(|index| png(index, SIDE_PX)).collect()
}

fn start(brokers: &str, topic: &str, dir: &Path) -> Program {
    // A learner that is slow, and whose buffer is soon full.
    let learner = "batch.images = 16\nbatch.steps_per_batch = 4\nreplay.max_bytes = 2000000";
    let text = small_config(brokers, topic, dir)
        .replace("batch.images = 16", learner)
        .replace("checkpoint.every = \"200ms\"", "checkpoint.every = \"2s\"")
        + "lag_target_records = 500\n";
    let config = dir.join("config.toml");
    std::fs::write(&config, text).unwrap();
    let summary = dir.join("summary.json");
    let args = ["run", "--config", config.to_str().unwrap()];
    let args = [&args[..], &["--summary", summary.to_str().unwrap()]].concat();
    Program::start(&args, &dir.join("log"))
}

/// Images a second that the learner takes: it is sent [`MEASURED`] to warm up, and as many again.
fn learning_rate(brokers: &str, topic: &str, program: &mut Program, journal: &Path) -> f64 {
    let mut time_to_learn = |n_done| {
        let messages = images().into_iter().cycle().take(MEASURED);
        let message = |value| Message { partition: 0, value, content_type: None };
        let began = Instant::now();
        produce(brokers, topic, messages.map(message));
        wait_for("the first images to be learned", || {
            program.assert_alive();
            (surviving(journal).len() == n_done).then_some(())
        });
        began.elapsed()
    };
    time_to_learn(MEASURED);
    MEASURED as f64 / time_to_learn(2 * MEASURED).as_secs_f64()
}

/// Sends `rate` images a second for `time`; returns how many.
fn flood(brokers: &str, topic: &str, rate: f64, time: Duration) -> u64 {
    let producer: ThreadedProducer<DefaultProducerContext> = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("enable.idempotence", "true")
        .create()
        .unwrap();
    let images = images();
    let (began, mut n_sent) = (Instant::now(), 0);
    while began.elapsed() < time {
        let due = (began.elapsed().as_secs_f64() * rate) as u64;
        while n_sent < due {
            let image = &images[n_sent as usize % images.len()][..];
            let record: BaseRecord<'_, [u8], [u8]> =
                BaseRecord::to(topic).partition(0).payload(image);
            // A queue that is full has been sent to as fast as this machine can.
            if producer.send(record).is_err() {
                break;
            }
            n_sent += 1;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    producer.flush(Duration::from_secs(600)).unwrap();
    n_sent
}

/// What is resident over time.
#[derive(Default)]
struct Memory {
    /// Since the beginning, and KiB.
    samples: Vec<(Duration, u64)>,
}

impl Memory {
    /// Least and most in a part of the time, KiB.
    fn range(&self, from: Duration, to: Duration) -> (u64, u64) {
        let part = self.samples.iter().filter(|(at, _)| (from..to).contains(at));
        let kib: Vec<u64> = part.map(|(_, kib)| *kib).collect();
        (kib.iter().copied().min().unwrap(), kib.into_iter().max().unwrap())
    }
}

#[test]
fn memory_stays_flat_beside_a_producer_ten_times_too_fast() {
    let Some(brokers) = brokers() else { return };
    let time = Duration::from_secs(number("SELFSTREAM_PACE_SECONDS", 24));
    let topic = unique("flood");
    create_topic(&brokers, &topic, 1);
    let dir = tempfile::tempdir().unwrap();
    let journal = dir.path().join("journal.jsonl");
    let mut program = start(&brokers, &topic, dir.path());
    let rate = learning_rate(&brokers, &topic, &mut program, &journal);

    let mut memory = Memory::default();
    let n_flood = std::thread::scope(|scope| {
        let flooding = scope.spawn(|| flood(&brokers, &topic, FASTER * rate, time));
        let began = Instant::now();
        while !flooding.is_finished() {
            program.assert_alive();
            memory.samples.push((began.elapsed(), program.memory_kib()));
            std::thread::sleep(Duration::from_millis(50));
        }
        flooding.join().unwrap()
    });
    let n_sent = 2 * MEASURED as u64 + n_flood;
    wait_for("all to be done", || {
        program.assert_alive();
        (surviving(&journal).len() as u64 == n_sent).then_some(())
    });
    assert!(program.terminate().success(), "{}", program.log());

    let third = time / 3;
    let (least, most) = memory.range(third, Duration::MAX);
    let (early, late) = (memory.range(third, 2 * third).1, memory.range(2 * third, time).1);
    println!(
        "{n_flood} images in {time:?}, the learner takes {rate:.0} a second; resident after \
         {third:?}: {least} to {most} KiB, at most {early} KiB at first and {late} KiB at last"
    );
    assert!(late < early + GROWTH_KIB, "{early} KiB, then {late} KiB");

    assert!(surviving(&journal).values().all(|times| *times == 1), "a record was done twice");
    let summary = std::fs::read(dir.path().join("summary.json")).unwrap();
    let summary: serde_json::Value = serde_json::from_slice(&summary).unwrap();
    let count = |key: &str| summary[format!("images_{key}")].as_u64().unwrap();
    let [received, learned, skipped, refused] =
        ["received", "learned", "skipped", "refused"].map(count);
    println!("{received} received: {learned} learned, {skipped} skipped, {refused} refused");
    assert_eq!((received, refused), (n_sent, 0));
    assert_eq!(learned + skipped, n_sent, "each is one or the other");
    assert!(skipped > learned, "the pace has not been held");
}
