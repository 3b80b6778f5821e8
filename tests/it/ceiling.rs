//! A ceiling of memory, beside a stream and requests that are as large as the limits allow.

use crate::delivery::surviving;
use crate::harness::{
    Message, Program, brokers, create_topic, produce, small_config, unique, wait_for,
};
use image::ImageFormat;
use rand::RngExt;
use selfstream::config::Config;
use selfstream::seed::{self, Purpose};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

/// Noise of this side is nearly `image.max_pixels`, and nearly `image.max_bytes` as a PNG.
const SIDE_PX: u32 = 800;
const MAX_PIXELS: u32 = 650_000;
const MAX_BYTES: usize = 2 << 20;
/// Images, and records that are longer than any image may be: together, with their pixels, more than the
/// ceiling.
const IMAGES: usize = 480;
const OVERSIZED: usize = 48;
const OVERSIZED_BYTES: usize = 8 << 20;
/// What the ceiling is below all that is wanted: decode queues have to be shorter.
const BELOW_WANTED: u64 = 64 << 20;
/// Clients that ask all the while, and images of a request: 15 MB.
const CLIENTS: usize = 3;
const IMAGES_OF_A_REQUEST: usize = 8;

/// Noise, which cannot be compressed; every fourth as a JPEG.
fn frame(index: u64) -> Vec<u8> {
    let mut rng = seed::rng(78, Purpose::Evaluate, &[index]);
    let noise = image::RgbImage::from_fn(SIDE_PX, SIDE_PX, |_, _| image::Rgb(rng.random()));
    let format = if index % 4 == 3 { ImageFormat::Jpeg } else { ImageFormat::Png };
    let mut bytes = std::io::Cursor::new(vec![]);
    noise.write_to(&mut bytes, format).unwrap();
    let bytes = bytes.into_inner();
    assert!(bytes.len() < MAX_BYTES, "frame {index} has {} bytes", bytes.len());
    bytes
}

/// A configuration with a ceiling, in bytes, that is less than what it would take.
fn config(brokers: &str, topic: &str, dir: &Path) -> (String, u64) {
    let with = |ceiling: &str| {
        let limits = format!(
            "run.learner_threads = 1\n{ceiling}\nimage.max_pixels = {MAX_PIXELS}\n\
             image.max_bytes = {MAX_BYTES}\nreplay.max_bytes = 33554432\nsnapshot.resident = 1\n\
             server.max_pending_body_bytes = 33554432"
        );
        small_config(brokers, topic, dir)
            .replace("run.learner_threads = 1", &limits)
            .replace("snapshot.every_steps = 20", "snapshot.every_steps = 4")
    };
    let memory = |text: &str| Config::parse(text).unwrap().memory().unwrap();
    let wanted = memory(&with(""));
    let ceiling = wanted.bytes() - BELOW_WANTED;
    let text = with(&format!("run.max_memory_bytes = {ceiling}"));
    let held = memory(&text);
    println!("{held}");
    assert!(held.decode_queue < wanted.decode_queue, "the ceiling asks for nothing");
    (text, ceiling)
}

/// Asks for embeddings of many large images in one body; the status of the answer.
fn ask(address: &str, images: &[PathBuf]) -> String {
    let files = images.iter().enumerate();
    let forms = files.flat_map(|(i, path)| ["-F".to_owned(), format!("f{i}=@{}", path.display())]);
    let output = Command::new("curl")
        .args(["-s", "-o", "/dev/null", "-w", "%{http_code}"])
        .args(forms)
        .arg(format!("http://{address}/v1/embeddings"))
        .output()
        .expect("curl must be installed");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn memory_stays_below_a_ceiling_whatever_arrives() {
    let Some(brokers) = brokers() else { return };
    let topic = unique("ceiling");
    create_topic(&brokers, &topic, 1);
    let dir = tempfile::tempdir().unwrap();
    let (text, ceiling) = config(&brokers, &topic, dir.path());
    let address = Config::parse(&text).unwrap().server.listen.to_string();
    let path = dir.path().join("config.toml");
    std::fs::write(&path, text).unwrap();
    let frames: Vec<Vec<u8>> = (0..IMAGES_OF_A_REQUEST as u64).map(frame).collect();
    let files: Vec<PathBuf> = (0..frames.len()).map(|i| dir.path().join(i.to_string())).collect();
    files.iter().zip(&frames).for_each(|(file, frame)| std::fs::write(file, frame).unwrap());

    let (summary, journal) = (dir.path().join("summary.json"), dir.path().join("journal.jsonl"));
    let args = ["run", "--config", path.to_str().unwrap(), "--summary", summary.to_str().unwrap()];
    let mut program = Program::start(&args, &dir.path().join("log"));
    program.await_log("listening");
    let n_sent = IMAGES + OVERSIZED;
    let is_done = AtomicBool::new(false);
    let answers = std::thread::scope(|scope| {
        let ask_on = || {
            let mut answers = BTreeMap::<String, usize>::new();
            while !is_done.load(Ordering::Relaxed) {
                *answers.entry(ask(&address, &files)).or_default() += 1;
            }
            answers
        };
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(ask_on)).collect();
        let work = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let message = |value| Message { partition: 0, value, content_type: None };
            produce(
                &brokers,
                &topic,
                (0..n_sent).map(|index| {
                    let is_oversized = index % (n_sent / OVERSIZED) == 0;
                    let oversized = || vec![index as u8; OVERSIZED_BYTES];
                    message(if is_oversized {
                        oversized()
                    } else {
                        frames[index % frames.len()].clone()
                    })
                }),
            );
            wait_for("all to be done", || {
                program.assert_alive();
                (surviving(&journal).len() == n_sent).then_some(())
            });
            // The encoder has served by then; now nothing takes its place in the queue.
            wait_for("an answer", || (ask(&address, &files[..1]) == "200").then_some(()));
        }));
        // The clients end, whatever has happened.
        is_done.store(true, Ordering::Relaxed);
        let answers: Vec<_> = clients.into_iter().map(|client| client.join().unwrap()).collect();
        if let Err(panic) = work {
            std::panic::resume_unwind(panic);
        }
        answers
    });
    let peak_kib = program.peak_memory_kib();
    assert!(program.terminate().success(), "{}", program.log());

    println!("peak {} MiB below a ceiling of {} MiB; {answers:?}", peak_kib >> 10, ceiling >> 20);
    assert!(peak_kib * 1024 < ceiling, "{peak_kib} KiB");
    // curl's 000: a refusal before the body was read may cut its sending off.
    let allowed = ["200", "429", "503", "000"];
    let mut statuses = answers.iter().flat_map(BTreeMap::keys);
    assert!(statuses.all(|status| allowed.contains(&&**status)), "{answers:?}");
    assert!(surviving(&journal).values().all(|times| *times == 1), "a record was done twice");
    let summary: serde_json::Value =
        serde_json::from_slice(&std::fs::read(summary).unwrap()).unwrap();
    let count = |key: &str| summary[format!("images_{key}")].as_u64().unwrap() as usize;
    assert_eq!([count("learned"), count("refused")], [IMAGES, OVERSIZED]);
}
