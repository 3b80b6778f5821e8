//! A checkpoint folder that fails: the run ends with an error that says where and why, since learning without
//! checkpoints would be lost, and goes on from the last whole checkpoint once the fault is mended.
//!
//! Permissions do not bind root, as which tests may run: then `setpriv` takes its power over them away. A full
//! disk is stood in for by a limit on the size of files, which ends a write half-way, too.

use crate::delivery::{Lineage, PARTITIONS, Way};
use crate::harness::{Program, brokers, small_config, wait_for};
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

const IMAGES: u64 = 300;
/// Files of a run are smaller, but for checkpoints, which have 22 MB or more.
const FILE_LIMIT_BYTES: u64 = 4 << 20;

/// A command under which permissions bind its program, whoever runs it.
fn bound_by_permissions() -> &'static [&'static str] {
    let is_root = fs::metadata("/proc/self").unwrap().uid() == 0;
    if is_root { &["setpriv", "--bounding-set", "-dac_override,-dac_read_search"] } else { &[] }
}

fn allow(dir: &Path, mode: u32) {
    fs::set_permissions(dir, Permissions::from_mode(mode)).unwrap();
}

/// Waits for an end that says `cause` of a file in `dir`.
fn assert_fails(program: &mut Program, dir: &Path, cause: &str) {
    let status = program.wait();
    let log = program.log();
    assert_eq!(status.code(), Some(1), "{status}\n{log}");
    // What people see last, which is not the log.
    let error = log.lines().find(|line| line.starts_with("error: ")).expect(&log);
    assert!(error.contains(&format!("{}/", dir.display())), "no path: {error}");
    assert!(error.contains(cause), "not {cause:?}: {error}");
}

/// No broker is needed: the folder is looked at before.
#[test]
fn a_folder_that_cannot_be_written_never_starts_a_run() {
    let dir = tempfile::tempdir().unwrap();
    let (config, folder) = (dir.path().join("config.toml"), dir.path().join("checkpoints"));
    fs::write(&config, small_config("127.0.0.1:1", "images", dir.path())).unwrap();
    let start = || {
        let args = ["run", "--config", config.to_str().unwrap()];
        Program::start_under(bound_by_permissions(), &args, &dir.path().join("log"), &[])
    };
    fs::create_dir(&folder).unwrap();
    allow(&folder, 0o555);
    assert_fails(&mut start(), &folder, "Permission denied");
    allow(&folder, 0o755);
    fs::remove_dir(&folder).unwrap();
    fs::remove_file(dir.path().join("log")).unwrap();
    fs::write(&folder, "a file in the folder's place").unwrap();
    assert_fails(&mut start(), &folder, "Not a directory");
}

/// Breaks what a running program needs; checks that it ends, and that all is done once after `mend`.
fn check_fault(
    name: &str,
    command: &[&str],
    (fault, cause): (impl Fn(&Program, &Path), &str),
    mend: impl Fn(&Path),
) {
    let Some(brokers) = brokers() else { return };
    let lineage = Lineage::new(Way::to(&brokers), name, "");
    let folder = lineage.dir.path().join("checkpoints");
    lineage.produce(0..IMAGES);
    let mut program = lineage.start_under(command, &[]);
    lineage.await_learning(&mut program, 0);
    let files = || fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path());
    // The second checkpoint is the first that learning has brought.
    wait_for("a checkpoint", || {
        program.assert_alive();
        let is_checkpoint =
            |path: &Path| path.extension().is_some_and(|extension| extension == "safetensors");
        (files().filter(|path| is_checkpoint(path)).count() > 1).then_some(())
    });
    fault(&program, &folder);
    // It fails at the next checkpoint, which comes even if nothing arrives.
    assert_fails(&mut program, &folder, cause);
    mend(&folder);
    lineage.produce(IMAGES..2 * IMAGES);
    lineage.finish(2 * IMAGES);
    assert_whole(&folder);
    assert_eq!(2 * IMAGES % PARTITIONS as u64, 0, "or some were not looked for");
}

/// No file of `folder` is half-written.
fn assert_whole(folder: &Path) {
    let mut files = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    assert!(!files.any(|path| path.extension().is_some_and(|e| e == "tmp")), "half a file");
}

/// What was being written when nothing could be removed any more goes at the next start.
#[test]
fn a_folder_that_becomes_unwritable_ends_the_run_and_loses_nothing() {
    let fault = |_: &Program, folder: &Path| allow(folder, 0o555);
    let mend = |folder: &Path| allow(folder, 0o755);
    check_fault("unwritable", bound_by_permissions(), (fault, "Permission denied"), mend);
}

#[test]
fn a_full_disk_ends_the_run_and_loses_nothing() {
    // By default the signal that comes with the limit kills.
    let command = ["bash", "-c", "trap '' XFSZ; exec \"$@\"", "bash"];
    let fault = |program: &Program, _: &Path| {
        let limit = format!("--fsize={FILE_LIMIT_BYTES}");
        let id = program.id().to_string();
        assert!(Command::new("prlimit").args(["--pid", &id, &limit]).status().unwrap().success());
    };
    // That it gives the room back, it does before it ends.
    check_fault("full", &command, (fault, "File too large"), assert_whole);
}
