//! The end of reading: the last commit, and leaving the group.

use super::commit::commit_later;
use super::context::Context;
use crate::source::Commit;
use anyhow::{Context as _, Result};
use rdkafka::consumer::BaseConsumer;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tracing::{info, warn};

/// Longest wait for the broker's word on the last commit and on our leaving. Where it cannot be reached
/// librdkafka waits for a session timeout, 45 s, which is longer than supervisors do. A guess, below the
/// 30 s that Kubernetes gives.
const LEAVE: Duration = Duration::from_secs(10);

/// Commits `last` and closes the consumer, which waits for the commit's answer.
///
/// # Errors
/// No thread is to be had.
pub(super) fn leave(
    consumer: BaseConsumer<Context>,
    last: Option<Commit>,
    runtime: &Handle,
) -> Result<()> {
    if let Some(commit) = last {
        commit_later(&consumer, commit);
    }
    let (left, has_left) = oneshot::channel();
    let close = move || {
        drop(consumer);
        // Whoever has waited for too long does not hear it.
        let _ = left.send(());
    };
    std::thread::Builder::new().name("leave".to_owned()).spawn(close).context("leaving")?;
    match runtime.block_on(async { tokio::time::timeout(LEAVE, has_left).await }) {
        Ok(_) => info!("left the group"),
        // Our checkpoint holds the offsets, and is the authority when we come back, unless others have gone on from
        // the commit before.
        Err(_) => warn!("the broker did not answer: ending without its word on the last commit"),
    }
    Ok(())
}
