//! The demo, as a newcomer starts it.

use crate::harness::{Program, free_port, png, wait_for};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

#[test]
fn the_demo_answers_queries_while_it_learns_and_ends_when_told_to() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    // Without an end of its own, so that it is there for as long as it is asked.
    let mut program = demo(dir.path(), port, &[]);
    wait_for("the demo's encoder", || {
        program.assert_alive();
        let url = format!("http://127.0.0.1:{port}/readyz");
        let answer = Command::new("curl").args(["-sf", &url]).output().unwrap();
        answer.status.success().then_some(())
    });
    let image = dir.path().join("image.png");
    fs::write(&image, png(1, 28)).unwrap();
    let body = format!("@{}", image.display());
    let url = format!("http://127.0.0.1:{port}/v1/embeddings");
    let args = ["-sf", "-H", "content-type: image/png", "--data-binary", &body, &url];
    let answer = Command::new("curl").args(args).output().unwrap();
    let answer: Value = serde_json::from_slice(&answer.stdout).unwrap();
    assert!(answer["data"][0]["embedding"].is_array(), "{answer}");
    assert!(program.terminate().success(), "{}", program.log());
    let summary = summary(dir.path());
    assert!(summary["images_learned"].as_u64().unwrap() > 0, "{summary}");
    assert!(summary["freshness_seconds"]["p99"].as_f64().unwrap() > 0.0, "{summary}");
}

#[test]
fn the_demo_learns_and_sums_up() {
    let dir = tempfile::tempdir().unwrap();
    let mut program = demo(dir.path(), free_port(), &["--stop-after", "1000"]);
    assert!(program.wait().success(), "{}", program.log());
    let summary = summary(dir.path());
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
    let kept = fs::read_dir(dir.path().join("snapshots")).unwrap().count() as u64;
    assert_eq!(
        kept,
        2 * published.min(20) + 1,
        "a file and its provenance for each, and a history"
    );
}

fn demo(dir: &Path, port: u16, more: &[&str]) -> Program {
    let (port, summary, snapshots) = (port.to_string(), summary_file(dir), dir.join("snapshots"));
    let args = ["demo", "--port", &port, "--summary", summary.to_str().unwrap()];
    let kept = ["--snapshots", snapshots.to_str().unwrap()];
    Program::start(&[&args[..], &kept, more].concat(), &dir.join("log"))
}

fn summary_file(dir: &Path) -> PathBuf {
    dir.join("summary.json")
}

fn summary(dir: &Path) -> Value {
    serde_json::from_slice(&fs::read(summary_file(dir)).unwrap()).unwrap()
}
