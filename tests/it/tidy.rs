//! The house rules that a machine can check.

use std::fs;
use std::path::{Path, PathBuf};

/// Lines before a file's tests; STYLE: small rooms.
const MAX_LINES: usize = 300;

fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut found = vec![];
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    text.split("#[cfg(test)]\nmod tests").next().unwrap().to_owned()
}

#[test]
fn files_are_small() {
    for path in sources(Path::new("src")) {
        let lines = code(&path).lines().count();
        assert!(lines <= MAX_LINES, "{}: {lines} lines", path.display());
    }
}

/// Augmentations, encoders and objectives are pure: no Kafka, clock, files or environment.
#[test]
fn what_is_computed_does_no_io() {
    let forbidden = ["rdkafka", "std::fs", "std::env", "std::time", "std::net", "tokio"];
    for dir in ["src/augment", "src/encoder", "src/objective", "src/ops"] {
        for path in sources(Path::new(dir)) {
            let code = code(&path);
            for name in forbidden {
                assert!(!code.contains(name), "{} uses {name}", path.display());
            }
        }
    }
}

/// Data flows one way: a stage imports from stages before it. Only the last ones see them all.
#[test]
fn stages_import_only_from_stages_before_them() {
    let stages = [
        "source",
        "claim",
        "decode",
        "augment",
        "replay",
        "batch",
        "encoder",
        "ops",
        "objective",
        "sink",
        "gate",
        "checkpoint",
        "snapshot",
        "learner",
        "server",
        "evaluate",
        "drift",
    ];
    for (index, stage) in stages.iter().enumerate() {
        let root = Path::new("src").join(stage);
        let mut files = if root.is_dir() { sources(&root) } else { vec![] };
        files.extend([root.with_extension("rs")].into_iter().filter(|file| file.exists()));
        for path in files {
            let code = code(&path);
            for later in &stages[index + 1..] {
                let import = format!("crate::{later}::");
                assert!(!code.contains(&import), "{} imports {later}", path.display());
            }
            for last in ["pipeline", "cli", "config"] {
                let import = format!("crate::{last}");
                assert!(!code.contains(&import), "{} imports {last}", path.display());
            }
        }
    }
}

/// Unsafe code and intrinsics live in kernel files alone.
#[test]
fn unsafe_code_is_in_kernel_files() {
    for path in sources(Path::new("src")) {
        let is_kernel = [
            "src/isa.rs",
            "src/ops/simd.rs",
            "src/ops/multiply.rs",
            "src/ops/native/kernel",
            "src/ops/cuda/cudnn.rs",
        ]
        .iter()
        .any(|kernel| path.starts_with(kernel));
        let has_unsafe = code(&path).lines().any(|line| {
            let line = line.trim_start();
            !line.starts_with("//") && line.contains("unsafe ")
        });
        assert!(is_kernel || !has_unsafe, "{} has unsafe code", path.display());
    }
}
