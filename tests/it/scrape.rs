//! What a running program answers to a GET, and what its metrics say.

use std::process::Command;

/// What `url` answers, if it answers well.
pub(crate) fn get(url: &str) -> Option<String> {
    let output = Command::new("curl").args(["-s", "--fail", url]).output().unwrap();
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
}

/// The value of a metric, `name` with its labels as `/metrics` shows them; `None` before there is one.
pub(crate) fn metric(metrics: &str, name: &str) -> Option<f64> {
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    line.parse().ok()
}
