//! Learning that goes wrong: it goes back by itself, and nothing bad goes live.

use crate::delivery::surviving;
use crate::harness::{
    Message, Program, brokers, create_topic, png, produce, small_config, unique, wait_for,
};
use crate::scrape::{get, metric};

fn message(index: u64) -> Message {
    Message { partition: (index % 2) as i32, value: png(index, 10), content_type: None }
}

#[test]
fn a_rate_a_hundred_times_too_high_is_undone() {
    const IMAGES: u64 = 8000;
    let Some(brokers) = brokers() else { return };
    let topic = unique("recovery");
    create_topic(&brokers, &topic, 2);
    produce(&brokers, &topic, (0..IMAGES).map(message));
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.toml");
    let text = small_config(&brokers, &topic, dir.path()) + "[snapshot]\ndir = \"";
    let text = text.replace("snapshot.every_steps = 20", "learner.recovery.max_loss_jump = 5.0");
    let text = text.replace("gate.min_rank_share = 0.0", "gate.min_rank_share = 0.5");
    let text = text + dir.path().to_str().unwrap() + "/snapshots\"\nevery_steps = 10\n";
    std::fs::write(&config, &text).unwrap();
    let address = text.split("listen = \"").nth(1).unwrap().split('"').next().unwrap();
    let url = format!("http://{address}/metrics");
    let args = ["run", "--config", config.to_str().unwrap()];
    let failpoints = [("learning_rate", "200*off->10*return(100)->off")];
    let mut program = Program::start_with(&args, &dir.path().join("log"), &failpoints);
    let journal = dir.path().join("journal.jsonl");
    wait_for("all images to be done", || {
        program.assert_alive();
        (surviving(&journal).len() as u64 == IMAGES).then_some(())
    });
    let shown = get(&url).unwrap();
    assert!(program.terminate().success(), "{}", program.log());
    let log = program.log();
    assert!(log.contains("gone back to an older checkpoint"), "{log}");
    let rollbacks = ["loss", "gate"].map(|reason| {
        metric(&shown, &format!("selfstream_rollbacks_total{{reason=\"{reason}\"}}"))
    });
    println!("rollbacks by loss and by gate: {rollbacks:?}");
    assert!(rollbacks.into_iter().flatten().sum::<f64>() >= 1.0, "{shown}");
    assert_eq!(metric(&shown, "selfstream_learning_alarm"), Some(0.0), "it has recovered");
    let doubled: Vec<_> = surviving(&journal).into_iter().filter(|(_, n)| *n != 1).collect();
    assert!(doubled.is_empty(), "done more than once: {doubled:?}");
}
