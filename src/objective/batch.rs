//! What an objective asks for, and what it gets.

use super::parts::negatives::NegativeWeights;
use super::parts::queue::Image;
use crate::augment::ViewGroup;
use candle_core::{Result, Tensor, bail};

/// Which encoders see a group of views.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeenBy {
    /// The one that learns.
    Encoder,
    /// Its moving average.
    Target,
    /// Each of them.
    Both,
}

impl SeenBy {
    /// Whether the encoder that learns does.
    pub fn encoder(self) -> bool {
        matches!(self, Self::Encoder | Self::Both)
    }

    /// Whether the moving average does.
    pub fn target(self) -> bool {
        matches!(self, Self::Target | Self::Both)
    }
}

/// Views that an objective wants of each image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Views {
    /// How many, and how they are made.
    pub group: ViewGroup,
    /// Who sees them.
    pub seen_by: SeenBy,
}

impl Views {
    /// Views as the configuration makes them, for the encoder that learns.
    pub fn alike(views_per_image: usize) -> Self {
        Self { group: ViewGroup::alike(views_per_image), seen_by: SeenBy::Encoder }
    }
}

/// What an objective gets of a batch.
pub struct Batch<'a> {
    /// Features of each group that the encoder saw, `[views_per_image * N, D]`: all images' first
    /// views, then all images' second views, and so on.
    pub features: &'a [Tensor],
    /// The same of each group that the target saw, without gradient.
    pub targets: &'a [Tensor],
    /// Images in the batch, `N`.
    pub n_images: usize,
    /// The origin hash of each image, `N` of them.
    pub ids: &'a [u64],
    /// How much they count as negatives of each other; unset, all count alike.
    pub negatives: Option<&'a NegativeWeights>,
}

impl Batch<'_> {
    /// Its images, as queues know them.
    pub fn images(&self) -> Vec<Image> {
        let fingerprint = |index: usize| self.negatives.and_then(|known| known.fingerprint(index));
        let image = |(index, id): (usize, &u64)| Image { id: *id, fingerprint: fingerprint(index) };
        self.ids.iter().enumerate().map(image).collect()
    }

    /// The features of an objective that wants one group of them.
    ///
    /// # Errors
    /// Another number of groups.
    pub fn only_features(&self) -> Result<&Tensor> {
        match self.features {
            [features] => Ok(features),
            groups => bail!("1 group of features is wanted, not {}", groups.len()),
        }
    }

    /// The features of all groups, one after another, `[V * N, D]`.
    ///
    /// # Errors
    /// No group.
    pub fn all_features(&self) -> Result<Tensor> {
        Tensor::cat(self.features, 0)
    }

    /// The targets of an objective that wants one group of them.
    ///
    /// # Errors
    /// Another number of groups.
    pub fn only_targets(&self) -> Result<&Tensor> {
        match self.targets {
            [targets] => Ok(targets),
            groups => bail!("1 group of targets is wanted, not {}", groups.len()),
        }
    }
}
