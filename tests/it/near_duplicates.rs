//! Bursts of frames that hardly differ: each frame is learned, and one of each burst is kept.

use crate::harness::{Program, free_port, wait_for};
use crate::scrape::{get, metric};
use rand::RngExt;
use selfstream::checkpoint::{self, Checkpoints, Restored};
use selfstream::seed::{self, Purpose};
use std::io::Cursor;

const BURSTS: usize = 6;
const FRAMES_A_BURST: usize = 8;
const FRAMES: usize = BURSTS * FRAMES_A_BURST;
/// No multiple of a burst, so that some are in two batches.
const BATCH: usize = 12;

/// Which scene a frame shows.
fn scene(frame: usize) -> usize {
    frame / FRAMES_A_BURST
}

/// A frame as PNG: its scene is 9 x 8 squares of random greys, and no two frames have the same noise.
fn png(frame: usize) -> Vec<u8> {
    let mut rng = seed::rng(5, Purpose::Evaluate, &[scene(frame) as u64]);
    let greys: Vec<u8> = (0..72).map(|_| rng.random_range(40..200)).collect();
    let mut rng = seed::rng(6, Purpose::Evaluate, &[frame as u64]);
    let image = image::RgbImage::from_fn(36, 32, |x, y| {
        let grey = greys[(y / 4 * 9 + x / 4) as usize];
        image::Rgb([0; 3].map(|_: u8| grey + rng.random_range(0..3)))
    });
    let mut bytes = Cursor::new(vec![]);
    image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// A counter as `/metrics` shows it; `None` before it has counted.
fn counted(url: &str, name: &str) -> Option<usize> {
    metric(&get(url)?, name).map(|value| value as usize)
}

#[test]
fn of_each_burst_the_buffer_holds_the_first_frame_and_the_others_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let images = dir.path().join("images");
    std::fs::create_dir(&images).unwrap();
    let frames: Vec<Vec<u8>> = (0..FRAMES).map(png).collect();
    for (frame, bytes) in frames.iter().enumerate() {
        std::fs::write(images.join(format!("{frame:02}.png")), bytes).unwrap();
    }
    let (checkpoints, port) = (dir.path().join("checkpoints"), free_port());
    let config = dir.path().join("config.toml");
    // Each batch waits until it is full of fresh frames.
    let text = format!(
        "source.kind = \"folder\"\nfolder.path = {images:?}\ninput.side_px = 16\n\
         batch.images = {BATCH}\nbatch.pace = \"fixed\"\nbatch.max_wait = \"1h\"\n\
         replay.duplicate_window = 3\nlearner.near_duplicates = \"mask\"\n\
         gate.min_spread = 0.0\ngate.min_rank_share = 0.0\n\
         checkpoint.dir = {checkpoints:?}\nserver.listen = \"127.0.0.1:{port}\""
    );
    std::fs::write(&config, text).unwrap();
    let args = ["run", "--config", config.to_str().unwrap()];
    let mut program = Program::start(&args, &dir.path().join("log"));
    let url = format!("http://127.0.0.1:{port}/metrics");
    wait_for("all frames to be learned", || {
        program.assert_alive();
        (counted(&url, "selfstream_steps_total")? == FRAMES / BATCH).then_some(())
    });
    let [learned, left_out, masked] =
        ["learned_images", "duplicate_images", "near_duplicate_negatives"]
            .map(|what| counted(&url, &format!("selfstream_{what}_total")).unwrap());
    assert!(program.terminate().success(), "{}", program.log());

    assert_eq!([learned, left_out], [FRAMES, FRAMES - BURSTS]);
    let pairs = (0..FRAMES).flat_map(|b| (0..b).map(move |a| (a, b)));
    let is_masked = |(a, b): &(usize, usize)| a / BATCH == b / BATCH && scene(*a) == scene(*b);
    assert_eq!(masked, pairs.filter(is_masked).count());

    let config = checkpoint::Config { dir: checkpoints, ..checkpoint::Config::default() };
    let (mut checkpoints, _) = Checkpoints::open(&config).unwrap();
    let Restored { entries, pending, .. } = checkpoints.load_newest().unwrap().unwrap();
    let mut kept: Vec<_> = entries.into_iter().chain(pending).collect();
    kept.sort_unstable_by_key(|entry| entry.origin.offset);
    let firsts: Vec<usize> = (0..BURSTS).map(|burst| burst * FRAMES_A_BURST).collect();
    let offsets: Vec<usize> = kept.iter().map(|entry| entry.origin.offset as usize).collect();
    assert_eq!(offsets, firsts);
    assert!(kept.iter().zip(firsts).all(|(entry, first)| entry.bytes == frames[first]));
}
