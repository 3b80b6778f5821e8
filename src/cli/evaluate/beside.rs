//! What the evaluated encoder is set beside: floors, a supervised run, its own past.

use crate::augment::Preprocess;
use crate::config::Config;
use crate::evaluate::{
    self, Budget, Embedded, Embedder, Floor, Moment, RawPixels, Recipe, SnapshotEmbedder,
    Supervised,
};
use crate::pipeline;
use crate::snapshot::{self, Snapshot};
use crate::source::collection::Collection;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Images that a snapshot of the past is measured on at most, training and test: what half a minute
/// can embed.
const PAST_TRAIN: usize = 4000;
const PAST_TEST: usize = 2000;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Also measure raw pixels and the untrained encoder.
    #[arg(long)]
    floors: bool,
    /// Also train the same encoder with the labels for so long, to compare with.
    #[arg(long, value_name = "SECONDS", conflicts_with = "supervised_steps",
        value_parser = clap::value_parser!(u64).range(1..))]
    supervised: Option<u64>,
    /// The same for so many steps.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    supervised_steps: Option<u64>,
    /// Also measure so many snapshots of the folder, evenly apart, for the accuracy over time.
    #[arg(long, value_name = "N", requires = "snapshot",
        value_parser = clap::value_parser!(u64).range(1..))]
    over_time: Option<u64>,
    /// The run's configuration: how images are decoded, the supervised run, and the untrained encoder.
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
}

impl Args {
    /// Whether any encoder of this process is asked for.
    pub(super) fn computes(&self) -> bool {
        self.floors || self.supervised.is_some() || self.supervised_steps.is_some()
    }
}

pub(super) struct Beside<'a> {
    pub(super) args: &'a Args,
    /// The run that the encoder comes from.
    pub(super) run: Config,
    /// Training and test images.
    pub(super) images: [&'a Collection; 2],
    pub(super) config: &'a evaluate::Config,
}

impl Beside<'_> {
    /// Raw pixels, unless they are what is evaluated, and the untrained encoder.
    pub(super) fn floors(&self, is_pixels: bool) -> Result<Vec<Floor>> {
        if !self.args.floors {
            return Ok(vec![]);
        }
        let mut floors = vec![];
        if !is_pixels {
            let mut pixels = RawPixels.decoding(self.run.image.clone());
            floors.push(self.floor("pixels", &mut pixels)?);
        }
        let untrained = SnapshotEmbedder::new(Arc::new(pipeline::untrained(&self.run)?));
        let mut untrained = untrained.decoding(self.run.image.clone());
        floors.push(self.floor("untrained", &mut untrained)?);
        Ok(floors)
    }

    fn floor(&self, name: &str, embedder: &mut dyn Embedder) -> Result<Floor> {
        let [train, test] = self.images;
        let embedded = Embedded::new(train, test, embedder, self.config)?;
        Ok(embedded.floor(name, self.config.seed)?)
    }

    /// A supervised run of the encoder, if it was asked for.
    pub(super) fn supervised(&self, snapshot: Option<&Snapshot>) -> Result<Option<Supervised>> {
        let seconds = |seconds| Budget::Time(Duration::from_secs(seconds));
        let budget = self.args.supervised.map(seconds);
        let Some(budget) = budget.or(self.args.supervised_steps.map(Budget::Steps)) else {
            return Ok(None);
        };
        let run = &self.run;
        let preprocess = snapshot.map(|snapshot| snapshot.preprocess.clone());
        let device = run.run.device.open()?;
        let recipe = Recipe {
            architecture: run.encoder.architecture,
            preprocess: preprocess.unwrap_or_else(|| Preprocess::imagenet(run.input.side_px)),
            view_side_px: run.view_side_px(),
            augment: run.augment.clone(),
            decode: run.image.clone(),
            optimizer: run.learner.optimizer.clone(),
            schedule: run.learner.schedule.for_batch(run.batch.images),
            batch_images: run.batch.images,
            seed: run.run.seed,
            precision: run.run.precision.choose(&device)?,
            device,
        };
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(run.run.learner_threads)
            .build()
            .context("starting the threads of the supervised run")?;
        let train = || evaluate::supervised(&recipe, budget, self.images, self.config);
        pool.install(train).context("--supervised").map(Some)
    }

    /// kNN of snapshots in the folder of `snapshot`, none of a later step than `step`.
    pub(super) fn over_time(&self, snapshot: &Path, step: u64) -> Result<Vec<Moment>> {
        let Some(n) = self.args.over_time else { return Ok(vec![]) };
        let mut past = snapshot::list(super::folder(snapshot))?;
        past.retain(|(taken_at, _)| *taken_at <= step);
        past.reverse();
        evenly(past.len(), n as usize).map(|index| self.moment(&past[index].1)).collect()
    }

    fn moment(&self, path: &Path) -> Result<Moment> {
        let snapshot = Arc::new(snapshot::read(path, &self.run.run.device.open()?)?);
        let at_most = |limit: Option<usize>, most: usize| Some(limit.unwrap_or(most).min(most));
        let config = evaluate::Config {
            limit_train_images: at_most(self.config.limit_train_images, PAST_TRAIN),
            limit_test_images: at_most(self.config.limit_test_images, PAST_TEST),
            ..self.config.clone()
        };
        let embedder = SnapshotEmbedder::new(Arc::clone(&snapshot));
        let embedder = &mut embedder.decoding(self.run.image.clone());
        let embedded = Embedded::new(self.images[0], self.images[1], embedder, &config)?;
        let knn = embedded.confusion()?.accuracy();
        Ok(Moment {
            step: snapshot.provenance.step,
            images_learned: snapshot.provenance.images_learned,
            version: snapshot.version.clone(),
            knn,
            standard_error: embedded.standard_error(knn),
        })
    }
}

/// `n` of the numbers below `len`, evenly apart, the last among them, and the first if there are two;
/// all if there are no more.
fn evenly(len: usize, n: usize) -> impl Iterator<Item = usize> {
    let n = n.min(len);
    (0..n).map(move |nth| if n == 1 { len - 1 } else { nth * (len - 1) / (n - 1) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_is_evenly_apart_with_both_ends() {
        let chosen = |len, n| evenly(len, n).collect::<Vec<_>>();
        assert_eq!(chosen(10, 4), [0, 3, 6, 9]);
        assert_eq!(chosen(3, 10), [0, 1, 2]);
        assert_eq!(chosen(7, 1), [6]);
        assert!(chosen(0, 3).is_empty());
    }
}
