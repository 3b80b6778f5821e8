//! Replay policies, in whole runs.

use crate::harness::Program;
use image::{Rgb, RgbImage};
use serde_json::Value;
use std::path::Path;

/// Whatever is kept, an encoder goes live while it learns: there is always something to look at it by.
#[test]
fn every_policy_publishes_while_it_learns() {
    let dir = tempfile::tempdir().unwrap();
    let images = dir.path().join("images");
    write_images(&images, 60);
    for policy in ["none", "fifo", "reservoir", "min-red", "centroid"] {
        let [config, checkpoints, summary] =
            ["toml", "checkpoints", "json"].map(|what| dir.path().join(format!("{policy}.{what}")));
        let text = format!(
            "source.kind = \"folder\"\nfolder.path = {images:?}\nbatch.images = 12\n\
             input.side_px = 16\ncheckpoint.dir = {checkpoints:?}\nserver.listen = \"127.0.0.1:0\"\n\
             snapshot.every_steps = 1\nreplay.policy = \"{policy}\""
        );
        std::fs::write(&config, text).unwrap();
        let [config, summary_path] = [&config, &summary].map(|path| path.to_str().unwrap());
        let args = ["run", "--config", config, "--stop-after", "60", "--summary", summary_path];
        let mut program = Program::start(&args, &dir.path().join(format!("{policy}.log")));
        assert!(program.wait().success(), "{}", program.log());
        let summary: Value = serde_json::from_slice(&std::fs::read(&summary).unwrap()).unwrap();
        let (steps, published) = (&summary["steps"], &summary["versions_published"]);
        assert!(steps.as_u64().unwrap() >= 5, "{policy}: {summary}");
        // Each step but the first looks at the weights of the one before; the end at the last.
        assert_eq!(published, steps, "{policy}: {}", program.log());
    }
}

/// Images that differ from each other.
fn write_images(dir: &Path, n_images: u32) {
    std::fs::create_dir_all(dir).unwrap();
    for index in 0..n_images {
        let image = RgbImage::from_fn(16, 16, |x, y| {
            let wave = |rate: u32| (((x * rate + y * (index % 7 + 1)) * (index + 3)) % 251) as u8;
            Rgb([wave(2), wave(5), wave(11)])
        });
        image.save(dir.join(format!("{index}.png"))).unwrap();
    }
}
