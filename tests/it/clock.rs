//! The wall clock is set while the program runs: learning goes on as if nothing had been.
//!
//! libfaketime, which `scripts/test` installs, sits between the program and the clock; the monotonic clock is left
//! as it is, as where a clock is really set.

use crate::delivery::{Lineage, Way};
use crate::harness::brokers;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

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
    for (time, offset) in (2..).zip(["-1h", "+2h"]) {
        fs::write(&setting, offset).unwrap();
        lineage.produce((time - 1) * IMAGES..time * IMAGES);
        lineage.await_done(&mut program, time * IMAGES);
    }
    let log = program.log();
    lineage.finish_by(program, 3 * IMAGES);
    let times = times(&log);
    let (least, most) = (times.iter().min().unwrap(), times.iter().max().unwrap());
    let half_an_hour = Duration::from_secs(1800);
    assert!(times[0].duration_since(*least).unwrap() > half_an_hour, "not set back:\n{log}");
    assert!(most.duration_since(times[0]).unwrap() > half_an_hour, "not set forward:\n{log}");
}
