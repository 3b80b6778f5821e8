//! Replay policies, in whole runs.

use crate::harness::{Program, png};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Whatever is kept, an encoder goes live while it learns: there is always something to look at it by.
#[test]
fn every_policy_publishes_while_it_learns() {
    let dir = tempfile::tempdir().unwrap();
    let images = images(dir.path(), 60, &[16]);
    for policy in ["none", "fifo", "reservoir", "min-red", "centroid"] {
        let of_policy = dir.path().join(policy);
        std::fs::create_dir(&of_policy).unwrap();
        let settings = format!("snapshot.every_steps = 1\nreplay.policy = \"{policy}\"");
        let (summary, log) = learn(&of_policy, &images, &settings, "60");
        let (steps, published) = (&summary["steps"], &summary["versions_published"]);
        assert!(steps.as_u64().unwrap() >= 5, "{policy}: {summary}");
        // Each step but the first looks at the weights of the one before; the end at the last.
        assert_eq!(published, steps, "{policy}: {log}");
    }
}

/// A folder of so many images of each side.
fn images(dir: &Path, n_images: u64, sides_px: &[u32]) -> PathBuf {
    let images = dir.join("images");
    std::fs::create_dir(&images).unwrap();
    for index in 0..n_images {
        for &side_px in sides_px {
            let name = format!("{index}-{side_px}.png");
            std::fs::write(images.join(name), png(index, side_px)).unwrap();
        }
    }
    images
}

/// Learns from `images` until so many have been learned, in the same folders each time; the summary and the log.
fn learn(dir: &Path, images: &Path, settings: &str, stop_after: &str) -> (Value, String) {
    let [config, summary, log] =
        ["toml", "json", "log"].map(|what| dir.join(format!("run.{what}")));
    let checkpoints = dir.join("checkpoints");
    let text = format!(
        "source.kind = \"folder\"\nfolder.path = {images:?}\nbatch.images = 12\ninput.side_px = 16\n\
         checkpoint.dir = {checkpoints:?}\nserver.listen = \"127.0.0.1:0\"\n{settings}"
    );
    std::fs::write(&config, text).unwrap();
    let [config, summary_path] = [&config, &summary].map(|path| path.to_str().unwrap());
    let args = ["run", "--config", config, "--stop-after", stop_after, "--summary", summary_path];
    let mut program = Program::start(&args, &log);
    assert!(program.wait().success(), "{}", program.log());
    (serde_json::from_slice(&std::fs::read(&summary).unwrap()).unwrap(), program.log())
}

/// A run goes on under limits that some of what it keeps is beyond: that is dropped, and all else goes on.
#[test]
fn replayed_images_beyond_a_tighter_limit_are_dropped_and_told() {
    let dir = tempfile::tempdir().unwrap();
    let images = images(dir.path(), 30, &[16, 24]);
    let told = "replayed images no longer decode";
    let (first, first_log) = learn(dir.path(), &images, "", "60");
    assert_eq!(first["images_learned"], 60, "{first}");
    assert!(!first_log.contains(told), "{first_log}");
    let (second, log) =
        learn(dir.path(), &images, "folder.passes = 2\nimage.max_pixels = 300", "30");
    let log = &log[first_log.len()..];
    let (before, _) = log.split_once(told).expect("it is told");
    assert!(before.contains("published"), "the others are enough to check an encoder on: {log}");
    assert_eq!(log.matches(told).count(), 1, "{log}");
    assert!(log.contains("n_dropped=30"), "{log}");
    assert_eq!(second["images_learned"], 30, "{second}");
    assert!(second["versions_published"].as_u64() > Some(0), "{log}");
}
