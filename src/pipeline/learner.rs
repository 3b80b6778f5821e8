//! The learner of a configuration.

use crate::augment::{self, Preprocess};
use crate::batch::assemble::ViewSpec;
use crate::config::Config;
use crate::decode;
use crate::learner::trainer::{Recipe, Trainer};
use crate::learner::{self, Inputs, Learner, Limits, Settings, Summary, beginning};
use crate::replay::Policy;
use anyhow::{Context, Result, ensure};
use std::time::Duration;
use tokio::sync::oneshot;
use tracing::error;

/// Starts the learner inside a pool of its own, so that nothing of it runs in the global one.
pub(super) fn start(
    config: &Config,
    limits: Limits,
    inputs: Inputs,
) -> Result<oneshot::Receiver<Result<Summary>>> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(config.run.learner_threads)
        .thread_name(|index| format!("learner-{index}"))
        .build()
        .context("starting the learner's threads")?;
    let learner = pool.install(|| open(config, limits, inputs))?;
    let (ended, summary) = oneshot::channel();
    std::thread::Builder::new().name("learner".to_owned()).spawn(move || {
        let result = pool.install(|| learner.run());
        if let Err(error) = &result {
            error!(error = format!("{error:#}"), "the learner has failed: stopping");
        }
        drop(ended.send(result));
    })?;
    Ok(summary)
}

fn open(config: &Config, limits: Limits, inputs: Inputs) -> Result<Learner> {
    // Without replay nothing tops a last, smaller batch up.
    let batch_images = config.batch.images as u64;
    let is_whole = limits.images.is_none_or(|images| images % batch_images == 0);
    ensure!(
        is_whole || config.replay.policy != Policy::None,
        "an end after a number of images must be whole batches of {batch_images} where \
         replay.policy = \"none\""
    );
    let trainer = open_trainer(config)?;
    let near_duplicates = config.learner.near_duplicates.weight();
    let groups = trainer.view_groups();
    let enough = augment::enough(&config.augment, &groups, config.input.side_px);
    let views = ViewSpec {
        seed: config.run.seed,
        augment: config.augment.clone(),
        preprocess: Preprocess::imagenet(config.input.side_px),
        decode: decode::Config { enough: Some(enough), ..config.image.clone() },
        groups,
        fingerprints: near_duplicates < 1.0 || config.replay.duplicate_window > 0,
    };
    let is_deterministic = config.run.deterministic;
    let (mut batch, mut snapshot) = (config.batch.clone(), config.snapshot.clone());
    let mut gate = config.gate.clone();
    if is_deterministic {
        // Batches are closed by size and candidates taken by steps alone; which labelled images have arrived
        // before a candidate hangs on time.
        (batch.max_wait, snapshot.every) = (Duration::MAX, Duration::MAX);
        gate.min_accuracy_share = 0.0;
    }
    let settings = Settings {
        batch,
        replay: config.replay.clone(),
        near_duplicates,
        checkpoint: config.checkpoint.clone(),
        snapshot,
        gate,
        recovery: config.learner.recovery.clone(),
        on_drift: config.learner.on_drift.clone(),
        loss_warning: config.drift.loss_warning(),
        architecture: config.encoder.architecture,
        views,
        view_threads: config.run.view_threads,
        is_deterministic,
        limits,
        journal: config.run.journal.clone(),
    };
    let learner_id = learner::learner_id(&config.checkpoint.dir)?;
    Learner::open(settings, trainer, &learner_id, inputs)
}

pub(super) fn open_trainer(config: &Config) -> Result<Trainer> {
    config.run.instructions.choose()?;
    let device = config.run.device.open()?;
    let architecture = config.encoder.architecture;
    let plan = architecture.plan();
    let init = config.encoder.init.as_deref().map(|path| beginning::read(path, &plan));
    Ok(Trainer::new(&Recipe {
        plan: &plan,
        view_side_px: config.view_side_px(),
        objective: &config.objective,
        optimizer: &config.learner.optimizer,
        schedule: &config.learner.schedule.for_batch(config.batch.images),
        average_momentum: config.snapshot.average_momentum,
        alignment: &config.learner.alignment,
        seed: config.run.seed,
        device: &device,
        precision: config.run.precision.choose(&device)?,
        init: init.transpose()?.as_ref(),
    })?)
}
