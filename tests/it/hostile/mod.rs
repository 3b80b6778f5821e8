//! What comes from outside, whatever it is, is taken or refused, and does no harm.
//!
//! Each file beside this one is the law of one fuzz target: a function `check` of any bytes, which panics where
//! the law is broken and says whether they were taken. `fuzz/` includes these files and looks for inputs that
//! break them; here the laws are held to what lies in `fuzz/regressions`.
//!
//! To add one:
//! 1. write `tests/it/hostile/NAME.rs`, which names nothing of this crate but `selfstream`'s public items;
//! 2. add its row to [`LAWS`] and its test;
//! 3. write `fuzz/fuzz_targets/NAME.rs` like those beside it, and its `[[bin]]` in `fuzz/Cargo.toml`;
//! 4. add inputs to `fuzz/make_regressions.py`, and what else seeds it to `scripts/fuzz`.

mod checkpoint;
mod config;
mod headers;
mod http;
mod image;

use std::fs;
use std::path::{Path, PathBuf};

const REGRESSIONS: &str = "fuzz/regressions";

/// Holds an input to a law; says whether it was taken.
type Law = fn(&[u8]) -> bool;

/// The law of each target.
const LAWS: [(&str, Law); 5] = [
    ("checkpoint", checkpoint::check),
    ("config", config::check),
    ("headers", headers::check),
    ("http", http::check),
    ("image", image::check),
];

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

fn name(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}

/// Holds `target`'s law to each of its inputs. A name that begins with `taken-` or `refused-` says what must
/// become of it; the name of a crash that was found says nothing.
fn replay(target: &str) {
    let (_, check) = LAWS.iter().find(|(name, _)| *name == target).unwrap();
    let paths = files(&Path::new(REGRESSIONS).join(target));
    for path in &paths {
        println!("{}", path.display());
        let is_taken = check(&fs::read(path).unwrap());
        match name(path).split('-').next() {
            Some("taken") => assert!(is_taken, "{} was refused", path.display()),
            Some("refused") => assert!(!is_taken, "{} was taken", path.display()),
            _ => {}
        }
    }
    // Both sides of the law are looked at.
    for side in ["taken-", "refused-"] {
        assert!(paths.iter().any(|path| name(path).starts_with(side)), "{target}: no {side}");
    }
}

#[test]
fn checkpoints_that_are_damaged_are_refused() {
    replay("checkpoint");
}

#[test]
fn configurations_that_make_no_sense_are_refused() {
    replay("config");
}

#[test]
fn headers_are_copied_and_believed_or_not() {
    replay("headers");
}

#[test]
fn bodies_of_requests_are_answered() {
    replay("http");
}

#[test]
fn images_that_are_made_to_do_harm_are_refused() {
    replay("image");
}

#[test]
fn every_target_has_its_law_and_its_inputs() {
    let laws: Vec<&str> = LAWS.iter().map(|(name, _)| *name).collect();
    let folders = files(Path::new(REGRESSIONS));
    assert_eq!(folders.iter().map(|path| name(path)).collect::<Vec<_>>(), laws);
    let targets = files(Path::new("fuzz/fuzz_targets"));
    let stems = targets.iter().map(|path| path.file_stem().unwrap().to_str().unwrap());
    assert_eq!(stems.collect::<Vec<_>>(), laws);
    // Inputs are read in every build of the tests, and lie in the repository for ever.
    for path in folders.iter().flat_map(|folder| files(folder)) {
        let len_bytes = path.metadata().unwrap().len();
        assert!(len_bytes <= 8192, "{} has {len_bytes} bytes", path.display());
    }
}
