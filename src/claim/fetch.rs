//! Fetching one object within its limits.

use super::Config;
use super::local;
use super::prefix::{self, Kind, Place, Prefix};
use super::remote::{self, Redirected};
use super::unfetched::{Forbidden, Unfetched};
use anyhow::{Context as _, Result};
use bytes::Bytes;
use metrics::histogram;
use object_store::local::LocalFileSystem;
use object_store::{GetOptions, GetResultPayload, ObjectStore};
use std::error::Error;
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_stream::{Stream, StreamExt};

/// Fetches what lies below the configured prefixes.
#[derive(Debug)]
pub(super) struct Fetcher {
    shelves: Vec<Shelf>,
    max_bytes: usize,
    timeout: Duration,
}

/// A prefix and the store that it is a folder of.
#[derive(Debug)]
struct Shelf {
    prefix: Prefix,
    store: Arc<dyn ObjectStore>,
    /// The folder itself where it is one of this machine, its links followed.
    folder: Option<PathBuf>,
}

impl Shelf {
    fn open(text: &str, config: &Config) -> Result<Self> {
        let prefix = Prefix::read(text).context("it is no prefix that is built in")?;
        if prefix.kind != Kind::File {
            let store = remote::open(&prefix, config)?;
            return Ok(Self { prefix, store, folder: None });
        }
        let folder = PathBuf::from("/").join(prefix.folder.as_ref());
        let folder = folder.canonicalize().context("the folder cannot be found")?;
        Ok(Self { prefix, store: Arc::new(LocalFileSystem::new()), folder: Some(folder) })
    }
}

impl Fetcher {
    /// Opens the stores; objects may have `image_max_bytes` where `config` says nothing else.
    ///
    /// # Errors
    /// A folder that is not there, or settings of a store that cannot be used, by prefix.
    pub(super) fn open(config: &Config, image_max_bytes: usize) -> Result<Self> {
        let open = |text: &String| {
            Shelf::open(text, config).with_context(|| format!("claims.prefixes: {text:?}"))
        };
        Ok(Self {
            shelves: config.prefixes.iter().map(open).collect::<Result<_>>()?,
            max_bytes: config.max_bytes.unwrap_or(image_max_bytes),
            timeout: config.timeout,
        })
    }

    /// What the claim check `list` names.
    ///
    /// # Errors
    /// A malformed claim check, or one that is not allowed.
    pub(super) fn place(&self, list: &[u8]) -> Result<Place, Unfetched> {
        prefix::place(list, self.shelves.iter().map(|shelf| &shelf.prefix))
    }

    /// The object at `place`.
    ///
    /// # Errors
    /// Whatever keeps its bytes away.
    pub(super) async fn fetch(&self, place: &Place) -> Result<Bytes, Unfetched> {
        let began = Instant::now();
        let fetched = tokio::time::timeout(self.timeout, self.get(place)).await;
        histogram!("selfstream_claim_seconds").record(began.elapsed().as_secs_f64());
        let timed_out =
            |_| Err(Unfetched::TimedOut { uri: place.uri.clone(), timeout: self.timeout });
        fetched.unwrap_or_else(timed_out)
    }

    async fn get(&self, place: &Place) -> Result<Bytes, Unfetched> {
        let Place { uri, prefix, path } = place;
        let Shelf { store, folder, .. } = &self.shelves[*prefix];
        let path = match folder {
            Some(folder) => local::resolve(uri, folder.clone(), path).await?,
            None => path.clone(),
        };
        let failed = |error| told(uri, error);
        let object = store.get_opts(&path, GetOptions::default()).await.map_err(failed)?;
        let (len, max_bytes) = (object.meta.size, self.max_bytes);
        let whole = if len > max_bytes as u64 {
            None
        } else {
            let len = len as usize;
            match object.payload {
                GetResultPayload::File(file, _) => {
                    let read = move || read(file, len, max_bytes);
                    let read = tokio::task::spawn_blocking(read).await;
                    let read = read.map_err(|error| Unfetched::unreachable(uri, error))?;
                    read.map_err(|error| Unfetched::unreachable(uri, error))?
                }
                GetResultPayload::Stream(chunks) => {
                    collect(chunks, len, max_bytes).await.map_err(failed)?
                }
            }
        };
        whole.ok_or_else(|| Unfetched::TooLarge { uri: uri.clone(), max_bytes })
    }
}

/// What a store's error is to a claim check.
fn told(uri: &str, error: object_store::Error) -> Unfetched {
    let mut cause: Option<&(dyn Error + 'static)> = Some(&error);
    while let Some(at) = cause {
        if let Some(Redirected { to }) = at.downcast_ref() {
            return Unfetched::not_allowed(uri, Forbidden::Redirect { to: to.clone() });
        }
        cause = at.source();
    }
    match error {
        object_store::Error::NotFound { source, .. } => Unfetched::not_found(uri, source),
        other => Unfetched::unreachable(uri, other),
    }
}

/// All of `file`, which had `len` bytes when it was opened; `None` once it has more than `max_bytes`, of which no more
/// are read than one.
fn read(file: File, len: usize, max_bytes: usize) -> io::Result<Option<Bytes>> {
    let mut bytes = Vec::with_capacity(len);
    file.take(max_bytes as u64 + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() <= max_bytes).then(|| without_spare_room(bytes)))
}

/// All of `chunks`, which have `len` bytes by what the store says; `None` as soon as they have more than `max_bytes`.
async fn collect(
    mut chunks: impl Stream<Item = object_store::Result<Bytes>> + Unpin,
    len: usize,
    max_bytes: usize,
) -> object_store::Result<Option<Bytes>> {
    let mut bytes = Vec::with_capacity(len);
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk?;
        if chunk.len() > max_bytes - bytes.len() {
            return Ok(None);
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(Some(without_spare_room(bytes)))
}

/// Whoever holds an image counts it by its length: queues, and the replay buffer.
fn without_spare_room(bytes: Vec<u8>) -> Bytes {
    bytes.into_boxed_slice().into()
}

#[cfg(test)]
mod tests;
