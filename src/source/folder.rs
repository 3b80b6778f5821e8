//! A folder or tar of images as a stream of one partition.
//!
//! Offsets count images over all passes, so a restart goes on where the checkpoint says, and each
//! pass has an order of its own.

use super::collection::Collection;
use super::offsets::{Candidate, Partition, Start};
use super::{Assigned, LearnerLink, Link, Offer, Origin, Record, Source, Told};
use crate::setting::{Invalid, within};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tracing::info;

/// `[folder]`: what the `folder` source streams.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// A folder, or a .tar, .tar.gz or .tar.xz, of images.
    pub path: PathBuf,
    /// How often all of it is streamed.
    pub passes: u64,
    /// Seed of the order of each pass; unset, images come in the order of their names.
    pub shuffle_seed: Option<u64>,
}

impl Default for Config {
    fn default() -> Self {
        Self { path: PathBuf::from("images"), passes: 1, shuffle_seed: None }
    }
}

impl Config {
    /// Checks every value.
    ///
    /// # Errors
    /// The first value that is not allowed, by key.
    pub fn validate(&self) -> Result<(), Invalid> {
        if self.path.as_os_str().is_empty() {
            return Err(Invalid::new("folder.path", "\"\"", "a folder or a tar of images"));
        }
        within("folder.passes", self.passes, 1.., "at least 1")
    }
}

/// Longest wait for space before the stop signal is looked at again.
const WAIT: Duration = Duration::from_millis(100);

/// The folder source.
pub struct Folder {
    config: Config,
    collection: Collection,
}

impl Folder {
    /// Opens what `config` names.
    ///
    /// # Errors
    /// A path that cannot be read or holds no images.
    pub fn open(config: Config) -> Result<Self> {
        let collection = Collection::open(&config.path).context("folder.path")?;
        Ok(Self { config, collection })
    }

    fn record(&self, order: &[usize], partition: &Partition, at: (i64, u64)) -> Result<Record> {
        let (offset, generation) = at;
        let index = order[offset as usize % order.len()];
        let label =
            self.collection.label(index).map(|l| bytes::Bytes::copy_from_slice(l.as_bytes()));
        Ok(Record {
            origin: Origin {
                topic: Arc::clone(&partition.topic),
                partition: partition.partition,
                offset,
            },
            generation,
            is_skipped: false,
            bytes: self.collection.read(index)?,
            omitted_bytes: 0,
            timestamp_ms: now_ms(),
            key: None,
            headers: label.map(|label| ("label".to_owned(), Some(label))).into_iter().collect(),
        })
    }

    fn order(&self, pass: u64) -> Vec<usize> {
        match self.config.shuffle_seed {
            Some(seed) => self.collection.shuffled_order(seed, pass),
            None => (0..self.collection.len()).collect(),
        }
    }
}

fn now_ms() -> Option<i64> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    i64::try_from(since.as_millis()).ok()
}

impl Source for Folder {
    fn run(self: Box<Self>, mut link: Link) -> Result<()> {
        while let Some(start) = self.ask_where(&link)? {
            if !self.stream(&mut link, &start)? {
                continue;
            }
            if !link.stop.is_cancelled() {
                info!(images = self.high(), "the folder has been streamed");
            }
            loop {
                let Some(told) = link.told.blocking_recv() else { return Ok(()) };
                if has_gone_back(&link.learner, told) {
                    break;
                }
            }
        }
        Ok(())
    }
}

/// Whether the learner tells that it has gone back. The commits of a folder are its checkpoints.
fn has_gone_back(learner: &LearnerLink, told: Told) -> bool {
    match told {
        Told::WentBack => true,
        Told::Written(commit) => {
            // A learner that has ended keeps no more checkpoints.
            drop(learner.committed(commit.checkpoint_id));
            false
        }
    }
}

impl Folder {
    /// One past the last offset.
    fn high(&self) -> i64 {
        self.collection.len() as i64 * self.config.passes as i64
    }

    /// Where the learner wants to begin; `None` if it has ended.
    fn ask_where(&self, link: &Link) -> Result<Option<Start>> {
        let partition = Partition { topic: Arc::from("folder"), partition: 0 };
        let (committed, high) = (None, self.high());
        let candidate = Candidate { partition, committed, low: 0, high, default: 0 };
        let Ok(assigned) = link.learner.assign(vec![candidate], vec![]) else { return Ok(None) };
        let Assigned { mut starts, commit } = assigned;
        has_gone_back(&link.learner, Told::Written(commit));
        match (starts.pop(), starts.len()) {
            (Some(start), 0) => Ok(Some(start)),
            (_, others) => bail!("one partition asked for, {others} others given"),
        }
    }

    /// Streams from `start` to the end, of the folder or of the run. False if the learner has gone back meanwhile.
    fn stream(&self, link: &mut Link, start: &Start) -> Result<bool> {
        let n_images = self.collection.len() as i64;
        let mut order = vec![];
        for offset in start.place.offset..self.high() {
            if order.is_empty() || offset % n_images == 0 {
                order = self.order((offset / n_images) as u64);
            }
            let mut record = self.record(&order, &start.partition, (offset, start.generation))?;
            loop {
                if let Ok(told) = link.told.try_recv()
                    && has_gone_back(&link.learner, told)
                {
                    return Ok(false);
                }
                match link.records.offer(record, WAIT) {
                    Offer::Taken => break,
                    Offer::Closed => {
                        // The learner has ended, or a decoder has died: then the learner would wait for ever.
                        link.stop.cancel();
                        return Ok(true);
                    }
                    Offer::Full(_) if link.stop.is_cancelled() => return Ok(true),
                    Offer::Full(same) => record = same,
                }
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::offsets::Place;
    use crate::source::{Commit, Control, Downstream};
    use tokio::sync::mpsc;
    use tokio_util::sync::CancellationToken;

    /// Longer than any wait of these tests takes.
    const PATIENCE: Duration = Duration::from_secs(10);

    /// A next stage that has ended.
    struct Ended;

    impl Downstream for Ended {
        fn offer(&mut self, _: Record, _: Duration) -> Offer {
            Offer::Closed
        }
    }

    /// As where a decoder has died, and the learner waits for what will never come.
    #[test]
    fn where_nobody_takes_records_any_more_the_run_ends() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.png"), "bytes").unwrap();
        let path = dir.path().to_owned();
        let folder = Folder::open(Config { path, ..Config::default() }).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_time()
            .build()
            .unwrap();
        let (learner, mut controls) = LearnerLink::new();
        let (tell, told) = mpsc::channel(1);
        let (stop, handle) = (CancellationToken::new(), runtime.handle().clone());
        let link = Link {
            records: Box::new(Ended),
            learner,
            told,
            stop: stop.clone(),
            runtime: handle.clone(),
        };
        let learner = std::thread::spawn(move || {
            let Some(Control::Assign { candidates, reply, .. }) = controls.blocking_recv() else {
                panic!("it is to be asked where the folder begins");
            };
            let partition = candidates[0].partition.clone();
            let start = Start { partition, generation: 1, place: Place::default(), before: vec![] };
            let commit = Commit {
                offsets: Default::default(),
                learner_id: "us".into(),
                checkpoint_id: "1".into(),
                sequence: 0,
            };
            reply.send(Assigned { starts: vec![start], commit }).unwrap();
            // The source waits for as long as it may be told something.
            let stopped = async { tokio::time::timeout(PATIENCE, stop.cancelled()).await.is_ok() };
            let is_stopped = handle.block_on(stopped);
            drop(tell);
            is_stopped
        });
        Box::new(folder).run(link).unwrap();
        assert!(learner.join().unwrap(), "the learner was to be told to end");
    }
}
