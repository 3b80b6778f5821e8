//! The signals that end a run.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;

/// Cancels `stop` at the first SIGINT or SIGTERM; a second one ends the process at once.
///
/// # Errors
/// Signals that cannot be listened for.
pub fn listen(stop: CancellationToken) -> std::io::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::spawn(async move {
        for is_first in [true, false] {
            let name = tokio::select! {
                _ = interrupt.recv() => "SIGINT",
                _ = terminate.recv() => "SIGTERM",
            };
            if is_first {
                info!(signal = name, "stopping: the step in hand and open requests finish");
                stop.cancel();
            }
        }
        // Nothing is lost: the last checkpoint stands.
        std::process::exit(130);
    });
    Ok(())
}
