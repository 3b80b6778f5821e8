//! From a labelled collection to embeddings with a class each.

use super::{Embedder, Embeddings, EvaluateError};
use crate::decode::{self, Pixels};
use crate::seed::{self, Purpose};
use crate::source::collection::Collection;
use bytes::Bytes;
use rand::seq::SliceRandom;
use std::collections::BTreeSet;

/// Images handed to an embedder at once.
pub(super) const BATCH_IMAGES: usize = 64;

/// One labelled image as it lies in its collection.
#[derive(Clone, Debug)]
pub struct Example {
    /// Its name, for messages.
    pub name: String,
    /// The encoded image.
    pub bytes: Bytes,
    /// Its class, an index into the names of [`Classes`].
    pub label: usize,
}

impl Example {
    /// The image, decoded as `config` says.
    ///
    /// # Errors
    /// If it is refused, under its name.
    pub fn pixels(&self, config: &decode::Config) -> Result<Pixels, EvaluateError> {
        decode::decode(&self.bytes, None, config)
            .map_err(|source| EvaluateError::Refused { name: self.name.clone(), source })
    }
}

/// The classes of an evaluation, numbered in the order of their names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Classes(Vec<String>);

impl Classes {
    /// All labels that occur in `collections`.
    ///
    /// # Errors
    /// If an image has no label.
    pub fn of(collections: &[&Collection]) -> Result<Self, EvaluateError> {
        let mut names = BTreeSet::new();
        for collection in collections {
            for index in 0..collection.len() {
                names.insert(label(collection, index)?);
            }
        }
        Ok(Self(names.into_iter().map(str::to_owned).collect()))
    }

    /// The names, sorted.
    pub fn names(&self) -> &[String] {
        &self.0
    }

    /// The number of the class called `name`.
    pub fn index(&self, name: &str) -> Option<usize> {
        self.0.binary_search_by(|known| known.as_str().cmp(name)).ok()
    }
}

fn label(collection: &Collection, index: usize) -> Result<&str, EvaluateError> {
    collection.label(index).ok_or_else(|| EvaluateError::Unlabelled {
        path: collection.path().to_owned(),
        name: collection.name(index).to_owned(),
    })
}

/// Embeddings `[N, D]` with a class each.
#[derive(Clone, Debug, PartialEq)]
pub struct Labelled {
    /// One row an image.
    pub embeddings: Embeddings,
    /// Their classes.
    pub labels: Vec<usize>,
    /// Where the images stand in their collection.
    pub positions: Vec<usize>,
}

/// At most `limit_images` positions of `collection` in ascending order, drawn uniformly by `seed`
/// and `draw`, so that classes are as frequent as they are in it; all of them without a limit.
pub fn draw(
    collection: &Collection,
    limit_images: Option<usize>,
    seed: u64,
    draw: u64,
) -> Vec<usize> {
    let mut order: Vec<usize> = (0..collection.len()).collect();
    if let Some(limit) = limit_images.filter(|limit| *limit < order.len()) {
        order.shuffle(&mut seed::rng(seed, Purpose::Evaluate, &[draw]));
        order.truncate(limit);
        order.sort_unstable();
    }
    order
}

/// Embeds the images of `collection` at `positions`.
///
/// # Errors
/// If there are none, or one cannot be read, is unlabelled or of a class not in `classes`, cannot
/// be decoded, or has an embedding that is not finite; the message names it. If the embedder fails.
pub fn embed(
    collection: &Collection,
    positions: &[usize],
    classes: &Classes,
    embedder: &mut dyn Embedder,
) -> Result<Labelled, EvaluateError> {
    let mut embedded: Option<Labelled> = None;
    for batch in positions.chunks(BATCH_IMAGES) {
        let examples = batch
            .iter()
            .map(|index| example(collection, *index, classes))
            .collect::<Result<Vec<_>, _>>()?;
        let embeddings = embedder.embed(&examples).map_err(|error| name_row(error, &examples))?;
        if embeddings.len() != examples.len() {
            let (n_embeddings, n_labels) = (embeddings.len(), examples.len());
            return Err(EvaluateError::Labels { n_embeddings, n_labels });
        }
        let labels = examples.iter().map(|example| example.label);
        match &mut embedded {
            Some(embedded) => {
                embedded.embeddings.append(embeddings)?;
                embedded.labels.extend(labels);
            }
            None => {
                let (labels, positions) = (labels.collect(), positions.to_vec());
                embedded = Some(Labelled { embeddings, labels, positions });
            }
        }
    }
    embedded.ok_or(EvaluateError::NoReference)
}

/// The image of `collection` at `index`.
///
/// # Errors
/// If it cannot be read, is unlabelled, or of a class not in `classes`.
pub(super) fn example(
    collection: &Collection,
    index: usize,
    classes: &Classes,
) -> Result<Example, EvaluateError> {
    let class = label(collection, index)?;
    let name = format!("{} of {}", collection.name(index), collection.path().display());
    let label = classes.index(class).ok_or_else(|| EvaluateError::UnknownClass {
        name: name.clone(),
        class: class.to_owned(),
    })?;
    Ok(Example { name, bytes: collection.read(index)?, label })
}

/// Puts the image's name in the place of its row.
fn name_row(error: EvaluateError, examples: &[Example]) -> EvaluateError {
    match error {
        EvaluateError::NotFinite { row, column, value } if row < examples.len() => {
            EvaluateError::ImageNotFinite { name: examples[row].name.clone(), column, value }
        }
        other => other,
    }
}
