//! How good an encoder is, told by labels that it never saw.
//!
//! A labelled [`Collection`](crate::source::collection::Collection) is embedded by an
//! [`Embedder`]; the [`Embeddings`] of the training images are the reference by which the classes
//! of the test images are told, by the nearest neighbours ([`knn_probe`]), by a linear classifier
//! ([`linear_probe`]) and by a few labels a class ([`few_shot`]); [`evaluate`] does all of it and
//! makes a [`Report`].
//!
//! To add an embedder: one file with a type that implements [`Embedder`], and its line here.
//! To add a measure: one file with a function of embeddings and labels, its line here, and its
//! field in [`Report`].

use crate::decode::Refusal;
use std::path::PathBuf;

mod candidate;
mod classifier;
mod confusion;
mod embeddings;
mod encoder;
mod few_shot;
#[cfg(test)]
mod fixtures;
mod knn;
mod labelled;
mod linear;
mod page;
mod pca;
mod pixels;
pub mod prequential;
mod remote;
mod report;
mod supervised;

pub use confusion::{Confusion, Mistake};
pub use embeddings::Embeddings;
pub use encoder::SnapshotEmbedder;
pub use few_shot::{DRAWS, FewShot, LABELS_PER_CLASS, few_shot};
pub use knn::{NEIGHBOURS, Neighbour, Reference, TEMPERATURE, knn_probe};
pub use labelled::{Classes, Example, Labelled, draw, embed};
pub use linear::{Probe, linear_probe};
pub use page::{Sources, page};
pub use pixels::RawPixels;
pub use remote::Remote;
pub use report::{Config, Embedded, Floor, Moment, Report, StandardError, Told, evaluate};
pub use supervised::{Budget, Recipe, Supervised, supervised};

/// Turns images into embeddings: an encoder here, or one behind a URL.
pub trait Embedder {
    /// The version that embeds; empty while it is not known, before the first call of
    /// [`embed`](Self::embed).
    fn version(&self) -> &str;

    /// Embeds `images` as `[N, D]` in their order, all by the same version.
    ///
    /// # Errors
    /// If an image cannot be decoded, under its name, or the encoder fails.
    fn embed(&mut self, images: &[Example]) -> Result<Embeddings, EvaluateError>;
}

/// Why an evaluation was given up.
#[derive(Debug, thiserror::Error)]
pub enum EvaluateError {
    /// A collection cannot be read.
    #[error(transparent)]
    Collection(#[from] crate::source::collection::CollectionError),
    /// An image lies in no folder.
    #[error("{name} of {path} has no label: it must lie in a folder named by its class",
        path = path.display())]
    Unlabelled {
        /// The collection.
        path: PathBuf,
        /// The image.
        name: String,
    },
    /// An image is of a class that the evaluation does not know.
    #[error("{name} is of the unknown class {class}")]
    UnknownClass {
        /// The image.
        name: String,
        /// Its label.
        class: String,
    },
    /// An image cannot be decoded.
    #[error("cannot decode {name}")]
    Refused {
        /// The image.
        name: String,
        /// Why.
        source: Refusal,
    },
    /// The encoder failed.
    #[error("encoder {version} failed")]
    Encoder {
        /// The snapshot.
        version: String,
        /// Why.
        source: candle_core::Error,
    },
    /// The server cannot be reached, or its answer cannot be read.
    #[error("no usable answer from {endpoint} for {name}")]
    Request {
        /// The server.
        endpoint: String,
        /// The image that was sent.
        name: String,
        /// Why.
        source: Box<ureq::Error>,
    },
    /// The server refused a request.
    #[error("{endpoint} answered {status} for {name}: {message}")]
    Status {
        /// The server.
        endpoint: String,
        /// The image that was sent.
        name: String,
        /// The HTTP status.
        status: u16,
        /// The beginning of the answer's body.
        message: String,
    },
    /// The server no longer has the version that embedded the first images.
    #[error(
        "{endpoint} has no version {version} any more, which embedded the images before {name}: newer ones took \
         its place in memory, and embeddings of two versions cannot be compared; raise snapshot.resident there, so \
         that a version outlasts this, or give its file in snapshot.dir as --snapshot instead of --url"
    )]
    Gone {
        /// The server.
        endpoint: String,
        /// What was asked for.
        version: String,
        /// The image that was sent.
        name: String,
    },
    /// The server sent several embeddings for an image, or none.
    #[error("the server sent {n_embeddings} embeddings for {name}: it must be one")]
    NotOne {
        /// The image that was sent.
        name: String,
        /// Embeddings in the answer.
        n_embeddings: usize,
    },
    /// The server answered by another version than it was asked for.
    #[error(
        "the version changed during the evaluation: {before} was asked for by name and {after} \
         answered; embeddings of two versions cannot be compared"
    )]
    VersionChanged {
        /// The version that answered first.
        before: String,
        /// The version that answered now.
        after: String,
    },
    /// Values are not rows of embeddings.
    #[error("{n_values} values are no embeddings of dimension {dim}: it must divide them")]
    Shape {
        /// Values given.
        n_values: usize,
        /// Length of a row.
        dim: usize,
    },
    /// An embedding holds an infinity or no number.
    #[error("value {column} of embedding {row} is {value}: it must be finite")]
    NotFinite {
        /// Which embedding.
        row: usize,
        /// Which of its values.
        column: usize,
        /// The value.
        value: f32,
    },
    /// The embedding of an image holds an infinity or no number.
    #[error("value {column} of the embedding of {name} is {value}: it must be finite")]
    ImageNotFinite {
        /// The image.
        name: String,
        /// Which of its values.
        column: usize,
        /// The value.
        value: f32,
    },
    /// Embeddings differ in dimension.
    #[error("embeddings of dimension {found} cannot be compared with those of {expected}")]
    Dimension {
        /// Dimension of the first.
        expected: usize,
        /// Dimension of the others.
        found: usize,
    },
    /// There is not one label for each embedding.
    #[error("{n_labels} labels do not fit {n_embeddings} embeddings: there must be one for each")]
    Labels {
        /// Embeddings given.
        n_embeddings: usize,
        /// Labels given.
        n_labels: usize,
    },
    /// There is nothing to compare with.
    #[error("there are no embeddings: at least one is needed, and two to leave one out")]
    NoReference,
}

/// The fraction of `classes` that are those of `labels`; none of none is zero.
fn accuracy(classes: &[usize], labels: &[usize]) -> Result<f64, EvaluateError> {
    if classes.len() != labels.len() {
        let (n_embeddings, n_labels) = (classes.len(), labels.len());
        return Err(EvaluateError::Labels { n_embeddings, n_labels });
    }
    let correct = classes.iter().zip(labels).filter(|(class, label)| class == label).count();
    Ok(correct as f64 / labels.len().max(1) as f64)
}
