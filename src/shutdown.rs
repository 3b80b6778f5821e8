//! The signals that end a run.

use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::info;

/// A signal so soon after the first is the same request: supervisors such as `timeout` signal a process,
/// then its group.
const SAME: Duration = Duration::from_secs(1);

/// Cancels `stop` at the first SIGINT or SIGTERM; a second one, later than [`SAME`], ends the process at
/// once.
///
/// # Errors
/// Signals that cannot be listened for.
pub fn listen(stop: CancellationToken) -> std::io::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::spawn(async move {
        let mut first: Option<Instant> = None;
        loop {
            let name = tokio::select! {
                _ = interrupt.recv() => "SIGINT",
                _ = terminate.recv() => "SIGTERM",
            };
            match first {
                None => {
                    info!(signal = name, "stopping: the step in hand and open requests finish");
                    stop.cancel();
                    first = Some(Instant::now());
                }
                Some(first) if first.elapsed() < SAME => {}
                Some(_) => break,
            }
        }
        // Nothing is lost: the last checkpoint stands.
        std::process::exit(130);
    });
    Ok(())
}
