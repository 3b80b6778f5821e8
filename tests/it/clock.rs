//! The wall clock is set while the program runs: learning goes on as if nothing had been.
//!
//! libfaketime, which `scripts/test` installs, sits between the program and the clock; the monotonic clock is left
//! as it is, as where a clock is really set. The kernel's own clock stays, and librdkafka waits until times of that
//! one: no setting lies beyond it, where such waits would last for hours, and it joins and leaves by the right time.

use crate::delivery::{Lineage, Way};
use crate::harness::brokers;
use std::fs;
use std::path::PathBuf;
use std::time::SystemTime;

/// For each setting of the clock; 30 batches of `small_config`, of which every 20th publishes.
const IMAGES: u64 = 480;

fn faketime() -> String {
    let places = fs::read_dir("/usr/lib").unwrap().map(|entry| entry.unwrap().path());
    let library = |place: PathBuf| place.join("faketime/libfaketimeMT.so.1");
    let found = places.map(library).find(|library| library.exists());
    found.expect("faketime is not installed").to_str().unwrap().to_owned()
}

/// The times at which the lines of a log were written, by the clock as it was set.
fn times(log: &str) -> Vec<SystemTime> {
    let time = |line: &str| humantime::parse_rfc3339(line.split(' ').next()?).ok();
    log.lines().filter_map(time).collect()
}

#[test]
fn a_clock_that_is_set_changes_nothing() {
    let Some(brokers) = brokers() else { return };
    let lineage = Lineage::new(Way::to(&brokers), "clock", "");
    let setting = lineage.dir.path().join("clock");
    fs::write(&setting, "+0").unwrap();
    let command = [
        "env".to_owned(),
        format!("LD_PRELOAD={}", faketime()),
        format!("FAKETIME_TIMESTAMP_FILE={}", setting.display()),
        "FAKETIME_NO_CACHE=1".to_owned(),
        "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned(),
    ];
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    lineage.produce(0..IMAGES);
    let mut program = lineage.start_under(&command, &[]);
    lineage.await_done(&mut program, IMAGES);
    for (time, offset) in (2..).zip(["-1h", "+0"]) {
        fs::write(&setting, offset).unwrap();
        lineage.produce((time - 1) * IMAGES..time * IMAGES);
        lineage.await_done(&mut program, time * IMAGES);
    }
    let log = program.log();
    lineage.finish_by(program, 3 * IMAGES);
    // Each time later than the one before, but where the clock was set.
    let jumps: Vec<f64> = times(&log).windows(2).map(|pair| seconds(pair[0], pair[1])).collect();
    assert!(jumps.iter().any(|jump| *jump < -1800.0), "not set back:\n{log}");
    assert!(jumps.iter().any(|jump| *jump > 1800.0), "not set forward:\n{log}");
}

/// From one time to another.
fn seconds(from: SystemTime, to: SystemTime) -> f64 {
    to.duration_since(from)
        .map_or_else(|back| -back.duration().as_secs_f64(), |on| on.as_secs_f64())
}
