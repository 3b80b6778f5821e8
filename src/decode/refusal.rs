//! Why a record's bytes did not become an image.

use crate::claim::Unfetched;
use image::{ImageError, ImageFormat, error::LimitErrorKind};
use std::error::Error;

/// Whatever the decoder of a format reported.
pub type Cause = Box<dyn Error + Send + Sync>;

/// A record that is not learned from, with everything its sender needs to know.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// There were no bytes (a Kafka tombstone, for one).
    #[error("the message is empty")]
    Empty,
    /// More bytes than `image.max_bytes`.
    #[error("the message has {bytes} bytes, image.max_bytes is {max_bytes}")]
    TooManyBytes {
        /// Length of the message.
        bytes: usize,
        /// The limit.
        max_bytes: usize,
    },
    /// More pixels than `image.max_pixels`, by the header.
    #[error("the image claims {width_px} x {height_px} pixels, image.max_pixels is {max_pixels}")]
    TooManyPixels {
        /// Width by the header.
        width_px: u32,
        /// Height by the header.
        height_px: u32,
        /// The limit on their product.
        max_pixels: u64,
    },
    /// A side shorter than `image.min_side_px`, by the header.
    #[error("the image has {width_px} x {height_px} pixels, image.min_side_px is {min_side_px}")]
    TooSmall {
        /// Width by the header.
        width_px: u32,
        /// Height by the header.
        height_px: u32,
        /// The limit on either.
        min_side_px: u32,
    },
    /// Decoding would take more memory than `image.max_pixels` allows for, or unpack more bytes than that.
    #[error("decoding this {format:?} image takes more than {max_alloc_bytes} bytes")]
    TooMuchMemory {
        /// The image's format.
        format: ImageFormat,
        /// The limit, which follows from `image.max_pixels`.
        max_alloc_bytes: u64,
    },
    /// The sender says that it is no image.
    #[error(
        "the content type is {content_type:?}, allowed are image/*, application/octet-stream or none"
    )]
    ContentType {
        /// The header as it came.
        content_type: String,
    },
    /// The first bytes belong to no format we know.
    #[error(
        "the bytes begin with {first_bytes:02x?}, which is none of JPEG, PNG, WebP, GIF, BMP, TIFF \
         and PNM"
    )]
    UnknownFormat {
        /// At most the first eight bytes.
        first_bytes: Vec<u8>,
    },
    /// A known format, or a variant of one, that is not decoded here.
    #[error("this kind of {format:?} image is not supported")]
    Unsupported {
        /// The image's format.
        format: ImageFormat,
        /// Which feature it was.
        #[source]
        source: Cause,
    },
    /// Truncated or corrupt.
    #[error("the {format:?} image is damaged")]
    Damaged {
        /// The image's format.
        format: ImageFormat,
        /// Where it broke.
        #[source]
        source: Cause,
    },
    /// A claim check whose image could not be had.
    #[error(transparent)]
    Claim(#[from] Unfetched),
    /// A defect in a decoder, kept from stopping the stream.
    #[error("the decoder panicked: {message}")]
    Panicked {
        /// What the panic said.
        message: String,
    },
}

impl Refusal {
    /// Every value of [`Self::reason`] but those of [`Unfetched`].
    pub const REASONS: [&'static str; 10] = [
        "empty",
        "too_many_bytes",
        "too_many_pixels",
        "too_small",
        "too_much_memory",
        "content_type",
        "unknown_format",
        "unsupported",
        "damaged",
        "panicked",
    ];

    /// The kind of refusal as a metric's label, one of [`Self::REASONS`] or [`Unfetched::REASONS`].
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::TooManyBytes { .. } => "too_many_bytes",
            Self::TooManyPixels { .. } => "too_many_pixels",
            Self::TooSmall { .. } => "too_small",
            Self::TooMuchMemory { .. } => "too_much_memory",
            Self::ContentType { .. } => "content_type",
            Self::UnknownFormat { .. } => "unknown_format",
            Self::Unsupported { .. } => "unsupported",
            Self::Damaged { .. } => "damaged",
            Self::Claim(unfetched) => unfetched.reason(),
            Self::Panicked { .. } => "panicked",
        }
    }

    pub(super) fn damaged(format: ImageFormat, source: impl Into<Cause>) -> Self {
        Self::Damaged { format, source: source.into() }
    }

    pub(super) fn unsupported(format: ImageFormat, source: impl Into<Cause>) -> Self {
        Self::Unsupported { format, source: source.into() }
    }

    /// Sorts the errors of the `image` crate; `max_alloc_bytes` is the limit it worked under.
    pub(super) fn from_image(
        format: ImageFormat,
        max_alloc_bytes: u64,
    ) -> impl Fn(ImageError) -> Self {
        move |error| match &error {
            ImageError::Unsupported(_) => Self::unsupported(format, error),
            ImageError::Limits(limit) if limit.kind() == LimitErrorKind::InsufficientMemory => {
                Self::TooMuchMemory { format, max_alloc_bytes }
            }
            // Reading from memory fails only where the bytes end, so an I/O error is damage too.
            _ => Self::damaged(format, error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn reasons_are_those_listed_each_once() {
        let format = ImageFormat::Png;
        let (width_px, height_px) = (1, 2);
        let one_of_each = [
            Refusal::Empty,
            Refusal::TooManyBytes { bytes: 2, max_bytes: 1 },
            Refusal::TooManyPixels { width_px, height_px, max_pixels: 1 },
            Refusal::TooSmall { width_px, height_px, min_side_px: 8 },
            Refusal::TooMuchMemory { format, max_alloc_bytes: 1 },
            Refusal::ContentType { content_type: "text/plain".to_owned() },
            Refusal::UnknownFormat { first_bytes: vec![1] },
            Refusal::unsupported(format, "it"),
            Refusal::damaged(format, "it"),
            Refusal::Panicked { message: "it".to_owned() },
        ];
        let reasons: BTreeSet<_> = one_of_each.iter().map(Refusal::reason).collect();
        assert_eq!(reasons, Refusal::REASONS.into_iter().collect());
        assert_eq!(reasons.len(), one_of_each.len());
    }

    #[test]
    fn the_cause_is_kept() {
        let refusal = Refusal::damaged(ImageFormat::Png, "row 3 is missing");
        assert_eq!(refusal.source().unwrap().to_string(), "row 3 is missing");
    }
}
