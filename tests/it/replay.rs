//! Replay policies, in whole runs.

use crate::harness::{Program, png};
use serde_json::Value;

/// Whatever is kept, an encoder goes live while it learns: there is always something to look at it by.
#[test]
fn every_policy_publishes_while_it_learns() {
    let dir = tempfile::tempdir().unwrap();
    let images = dir.path().join("images");
    std::fs::create_dir(&images).unwrap();
    for index in 0..60 {
        std::fs::write(images.join(format!("{index}.png")), png(index, 16)).unwrap();
    }
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
