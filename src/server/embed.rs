//! One batch of views through the encoder, and the answers back to their callers.

use super::worker::{Failure, View};
use crate::awake::awake;
use crate::metrics::{SERVER_BATCH, SERVER_IMAGES};
use crate::snapshot::Snapshot;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Why a batch has no embeddings: a fault of the encoder, never of a client.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("the encoder failed")]
    Encoder(#[from] candle_core::Error),
    #[error("the encoder panicked")]
    Panic,
    #[error("the encoder returned {got} values for {n_images} images of {feature_dim} features")]
    Length { got: usize, n_images: usize, feature_dim: usize },
}

/// Embeds `views` on `pool` and answers each; those whose caller has left are skipped.
pub(super) fn answer(pool: &rayon::ThreadPool, snapshot: &Snapshot, views: Vec<View>) {
    let wanted = views.into_iter().filter(|view| !view.ticket.is_abandoned());
    let (images, tickets): (Vec<_>, Vec<_>) = wanted.map(|view| (view.pixels, view.ticket)).unzip();
    let n_images = images.len();
    if n_images == 0 {
        return;
    }
    match embed(pool, snapshot, images) {
        Ok(embeddings) => {
            metrics::counter!(SERVER_IMAGES).increment(n_images as u64);
            metrics::histogram!(SERVER_BATCH).record(n_images as f64);
            let rows = embeddings.chunks_exact(snapshot.encoder.feature_dim());
            let mut n_not_finite = 0;
            for (ticket, row) in tickets.into_iter().zip(rows) {
                // A vector that is no number would poison whatever index it gets into.
                let is_finite = row.iter().all(|value| value.is_finite());
                n_not_finite += usize::from(!is_finite);
                ticket.answer(if is_finite { Ok(row.to_vec()) } else { Err(Failure::Internal) });
            }
            if n_not_finite > 0 {
                let version = &snapshot.version;
                tracing::error!(%version, n_not_finite, "embeddings are not finite");
            }
        }
        Err(fault) => {
            let version = &snapshot.version;
            let cause = std::error::Error::source(&fault).map(tracing::field::display);
            tracing::error!(%version, n_images, cause, "{fault}");
            for ticket in tickets {
                ticket.answer(Err(Failure::Internal));
            }
        }
    }
}

/// Embeddings, flat `[N, D]`, of `images`, each flat `[H, W, C]`.
fn embed(
    pool: &rayon::ThreadPool,
    snapshot: &Snapshot,
    images: Vec<Vec<f32>>,
) -> Result<Vec<f32>, Fault> {
    let n_images = images.len();
    let feature_dim = snapshot.encoder.feature_dim();
    let images = images.concat();
    // Encoders divide their work over rayon's current pool, which `install` makes this one.
    let work = || pool.install(|| awake(|| snapshot.encoder.embed(images, n_images)));
    let embeddings = catch_unwind(AssertUnwindSafe(work)).map_err(|_| Fault::Panic)??;
    if feature_dim == 0 || embeddings.len() != n_images * feature_dim {
        return Err(Fault::Length { got: embeddings.len(), n_images, feature_dim });
    }
    Ok(embeddings)
}
