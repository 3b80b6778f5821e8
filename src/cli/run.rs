//! `selfstream run`: learn and serve.

use super::log;
use super::summary::RunSummary;
use crate::config::Config;
use crate::learner::Limits;
use crate::{metrics, pipeline, shutdown};
use anyhow::{Context, Result};
use std::path::PathBuf;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::info;

/// Learn from a stream and serve the newest encoder.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The configuration file; the defaults stand in config/default.toml.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// End after this many images have been learned for the first time.
    #[arg(long, value_name = "N")]
    stop_after: Option<u64>,
    /// Write a summary as JSON at the end.
    #[arg(long, value_name = "FILE")]
    summary: Option<PathBuf>,
}

pub(super) async fn run(args: Args) -> Result<()> {
    let config = Config::load(args.config.as_deref())?;
    log::start(config.run.log, "info");
    let limits = Limits { images: args.stop_after };
    let summary = learn_and_serve(&config, limits).await?;
    if let Some(path) = &args.summary {
        summary.write(path)?;
    }
    Ok(())
}

/// Learns and serves until the limits are reached or a signal comes.
async fn learn_and_serve(config: &Config, limits: Limits) -> Result<RunSummary> {
    let stop = CancellationToken::new();
    shutdown::listen(stop.clone())?;
    // Before anything is counted.
    let metrics = metrics::install()?;
    let listen = config.server.listen;
    let listener =
        TcpListener::bind(listen).await.with_context(|| format!("server.listen = {listen}"))?;
    info!(address = %listener.local_addr()?, "listening");

    let running = {
        // Restoring computes; it must not hold up the runtime's workers.
        let (config, stop) = (config.clone(), stop.clone());
        tokio::task::spawn_blocking(move || pipeline::start(&config, limits, stop)).await??
    };
    let mut vitals = running.vitals.clone();
    let steps_before = vitals.borrow_and_update().steps;
    let served = (std::sync::Arc::clone(&running.registry), running.events.clone());
    let serving =
        tokio::spawn(pipeline::serve(config.clone(), served, listener, metrics, stop.clone()));
    let learned = running.join().await;
    stop.cancel();
    let served = serving.await.context("the server panicked")?;
    let learned = learned?;
    served?;
    let steps = learned.vitals.steps - steps_before;
    Ok(RunSummary::new(&learned, steps, config.batch.images))
}
