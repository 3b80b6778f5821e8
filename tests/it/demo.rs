//! The demo, as a newcomer starts it.

use crate::harness::{Program, free_port, wait_for};
use std::process::Command;

#[test]
fn the_demo_learns_serves_and_sums_up() {
    let dir = tempfile::tempdir().unwrap();
    let (summary, snapshots) = (dir.path().join("s.json"), dir.path().join("snapshots"));
    let port = free_port().to_string();
    let mut program = Program::start(
        &[
            "demo",
            "--stop-after",
            "1000",
            "--port",
            &port,
            "--summary",
            summary.to_str().unwrap(),
            "--snapshots",
            snapshots.to_str().unwrap(),
        ],
        &dir.path().join("log"),
    );
    wait_for("the demo's encoder", || {
        program.assert_alive();
        let url = format!("http://127.0.0.1:{port}/readyz");
        let answer = Command::new("curl").args(["-sf", &url]).output().unwrap();
        answer.status.success().then_some(())
    });
    assert!(program.wait().success(), "{}", program.log());
    let summary: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&summary).unwrap()).unwrap();
    assert_eq!(summary["images_learned"], 1000);
    assert_eq!(summary["images_refused"], 0);
    assert!(summary["images_received"].as_u64().unwrap() >= 1000);
    assert!(summary["loss_last"].as_f64().unwrap() < summary["loss_first"].as_f64().unwrap());
    assert!(summary["freshness_seconds"]["p99"].as_f64().unwrap() > 0.0);
    for key in ["encoder", "untrained", "pixels"] {
        assert!(summary["knn"][key].as_f64().unwrap() > 0.1, "{key}: {summary}");
    }
    let published = summary["versions_published"].as_u64().unwrap();
    assert!(published >= 1);
    let kept = std::fs::read_dir(snapshots).unwrap().count() as u64;
    assert_eq!(
        kept,
        2 * published.min(20) + 1,
        "a file and its provenance for each, and a history"
    );
}
