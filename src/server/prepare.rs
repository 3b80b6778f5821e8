//! From what a client sent to what the encoder takes.

use crate::augment::{Preprocess, plain_view};
use crate::decode;
use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use std::borrow::Cow;

/// An image as it came; what has to be computed to read it is left to the decode threads.
#[derive(Debug)]
pub(super) enum Payload {
    /// The image's own bytes, and their media type where the client named one.
    Bytes(Bytes, Option<String>),
    /// Base64, alone or in a data URI.
    Text(String),
}

/// Why an image was not embedded.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("URLs are not fetched: send the image itself, as base64 or as a data URI")]
    Url,
    #[error("a data URI must read data:<media type>;base64,<data>")]
    DataUri,
    #[error("it is not base64: {0}")]
    Base64(#[from] base64::DecodeError),
    #[error(transparent)]
    Image(#[from] decode::Refusal),
}

impl Refusal {
    /// One word for it.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Url => "url",
            Self::DataUri => "data_uri",
            Self::Base64(_) => "base64",
            Self::Image(refusal) => refusal.reason(),
        }
    }
}

/// Clients differ on padding, and it carries nothing.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

impl Payload {
    /// The image's bytes and their media type.
    fn open(&self) -> Result<(Cow<'_, [u8]>, Option<&str>), Refusal> {
        let text = match self {
            Self::Bytes(bytes, media_type) => {
                return Ok((Cow::Borrowed(bytes), media_type.as_deref()));
            }
            Self::Text(text) => text.trim(),
        };
        let (media_type, data) = match text.split_once(':') {
            None => (None, text),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("data") => {
                let (head, data) = rest.split_once(',').ok_or(Refusal::DataUri)?;
                let head = head.strip_suffix(";base64").ok_or(Refusal::DataUri)?;
                (Some(head).filter(|head| !head.is_empty()), data)
            }
            Some(_) => return Err(Refusal::Url),
        };
        Ok((Cow::Owned(BASE64.decode(data)?), media_type))
    }
}

/// The view of one image, flat `[H, W, C]`.
pub(super) fn prepare(
    payload: &Payload,
    config: &decode::Config,
    preprocess: &Preprocess,
) -> Result<Vec<f32>, Refusal> {
    let (bytes, media_type) = payload.open()?;
    let pixels = decode::decode(&bytes, media_type, config)?;
    let mut view = vec![0.0; preprocess.side_px * preprocess.side_px * 3];
    plain_view(&pixels, preprocess, &mut view);
    Ok(view)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(text: &str) -> Result<(Vec<u8>, Option<String>), &'static str> {
        let payload = Payload::Text(text.to_owned());
        match payload.open() {
            Ok((bytes, media_type)) => Ok((bytes.into_owned(), media_type.map(str::to_owned))),
            Err(refusal) => Err(refusal.reason()),
        }
    }

    #[test]
    fn base64_is_read_with_and_without_padding() {
        for text in ["aGk=", "aGk", " aGk=\n"] {
            assert_eq!(open(text), Ok((b"hi".to_vec(), None)), "{text}");
        }
    }

    #[test]
    fn a_data_uri_gives_its_media_type() {
        let (bytes, media_type) = open("data:image/png;base64,aGk=").unwrap();
        assert_eq!((bytes.as_slice(), media_type.as_deref()), (&b"hi"[..], Some("image/png")));
        assert_eq!(open("data:;base64,aGk="), Ok((b"hi".to_vec(), None)));
    }

    #[test]
    fn anything_else_is_refused_with_its_reason() {
        assert_eq!(open("https://example.com/cat.jpg"), Err("url"));
        assert_eq!(open("data:image/png,aGk="), Err("data_uri"));
        assert_eq!(open("data:image/png;base64"), Err("data_uri"));
        assert_eq!(open("a cat"), Err("base64"));
    }
}
