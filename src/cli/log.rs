//! The log on standard error.

use crate::config::LogForm;
use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// Begins logging; `RUST_LOG` chooses what, by default `level` and up.
pub(super) fn start(form: LogForm, level: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match form {
        LogForm::Text => builder.init(),
        LogForm::Json => builder.json().init(),
    }
}
