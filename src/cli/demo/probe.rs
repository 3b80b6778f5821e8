//! The honest figure at the end of a demo: nearest-neighbour accuracy on images held back.

use super::super::summary::Knn;
use super::images::DemoImages;
use crate::evaluate::{self, Classes, Embedder, RawPixels, SnapshotEmbedder, knn_probe};
use crate::snapshot::Snapshot;
use anyhow::Result;
use std::sync::Arc;

/// Images that stand as reference, and images that are told: what half a minute can embed.
const REFERENCES: usize = 4000;
const QUERIES: usize = 2000;

/// The labelled images of a demo.
pub(super) struct Probe {
    images: Arc<DemoImages>,
    classes: Classes,
}

impl Probe {
    /// A probe, if every image has a label and there are at least two classes.
    pub(super) fn new(images: &Arc<DemoImages>) -> Result<Option<Self>> {
        let collection = images.collection();
        let is_labelled = (0..collection.len()).all(|index| collection.label(index).is_some());
        if !is_labelled || images.held_back().is_empty() {
            return Ok(None);
        }
        let classes = Classes::of(&[collection])?;
        let has_classes = classes.names().len() > 1;
        Ok(has_classes.then(|| Self { images: Arc::clone(images), classes }))
    }

    /// Measures the encoder, the one it began as, and raw pixels.
    pub(super) fn measure(&self, latest: Arc<Snapshot>, untrained: Arc<Snapshot>) -> Result<Knn> {
        Ok(Knn {
            encoder: self.knn(&mut SnapshotEmbedder::new(latest))?,
            untrained: self.knn(&mut SnapshotEmbedder::new(untrained))?,
            pixels: self.knn(&mut RawPixels)?,
        })
    }

    fn knn(&self, embedder: &mut dyn Embedder) -> Result<f64> {
        let first = |positions: &[usize], n: usize| positions[..n.min(positions.len())].to_vec();
        let references = first(self.images.streamed(), REFERENCES);
        let queries = first(self.images.held_back(), QUERIES);
        let collection = self.images.collection();
        let references = evaluate::embed(collection, &references, &self.classes, embedder)?;
        let queries = evaluate::embed(collection, &queries, &self.classes, embedder)?;
        let (embeddings, labels) = (&references.embeddings, &references.labels);
        Ok(knn_probe(embeddings, labels, &queries.embeddings, &queries.labels)?)
    }
}
