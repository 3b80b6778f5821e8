//! Small pictures that lie in the page itself.

use crate::decode::{self, Pixels};
use crate::evaluate::EvaluateError;
use crate::evaluate::pixels::resize;
use crate::source::collection::Collection;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::ExtendedColorType;
use image::codecs::jpeg::JpegEncoder;

/// Of JPEG's 100: a third of PNG's bytes, and no difference to see at this size.
const QUALITY: u8 = 85;

/// A picture in the page.
pub(super) struct Thumbnail {
    /// A data URI.
    pub(super) uri: String,
    /// Width divided by height.
    pub(super) aspect: f64,
}

/// The image at `position` of `collection`, decoded as `decode` says, no side longer than `side_px`.
///
/// # Errors
/// An image that can no longer be read or decoded.
pub(super) fn thumbnail(
    collection: &Collection,
    position: usize,
    decode: &decode::Config,
    side_px: u32,
) -> Result<Thumbnail, EvaluateError> {
    let bytes = collection.read(position)?;
    let name = || collection.name(position).to_owned();
    let pixels = decode::decode(&bytes, None, decode)
        .map_err(|source| EvaluateError::Refused { name: name(), source })?;
    let aspect = f64::from(pixels.width_px) / f64::from(pixels.height_px);
    let Pixels { width_px, height_px, rgb } = shrink(pixels, side_px);
    let mut jpeg = vec![];
    JpegEncoder::new_with_quality(&mut jpeg, QUALITY)
        .encode(&rgb, width_px, height_px, ExtendedColorType::Rgb8)
        .expect("a small RGB picture can be written to memory");
    Ok(Thumbnail { uri: format!("data:image/jpeg;base64,{}", STANDARD.encode(&jpeg)), aspect })
}

/// `pixels` with no side longer than `side_px`, in their proportions.
fn shrink(pixels: Pixels, side_px: u32) -> Pixels {
    let longest = pixels.width_px.max(pixels.height_px);
    if longest <= side_px {
        return pixels;
    }
    let scaled = |px: u32| {
        let scaled = (u64::from(px) * u64::from(side_px)).div_ceil(u64::from(longest));
        scaled.max(1) as u32
    };
    let (width_px, height_px) = (scaled(pixels.width_px), scaled(pixels.height_px));
    let rgb = resize(&pixels, [width_px, height_px]);
    Pixels { width_px, height_px, rgb }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn even(width_px: u32, height_px: u32) -> Pixels {
        let rgb = [10, 200, 90].repeat((width_px * height_px) as usize);
        Pixels { width_px, height_px, rgb }
    }

    #[test]
    fn proportions_are_kept_and_nothing_grows() {
        for (from, to) in [((100, 50), (32, 16)), ((50, 100), (16, 32)), ((20, 32), (20, 32))] {
            assert_eq!(shrink(even(from.0, from.1), 32), even(to.0, to.1));
        }
        assert_eq!(shrink(even(3000, 2), 32), even(32, 1), "at least a pixel is left");
    }

    #[test]
    fn the_data_is_the_image() {
        let folder = tempfile::tempdir().unwrap();
        let collection = crate::evaluate::fixtures::coloured(folder.path(), 1);
        let decode = decode::Config::default();
        let Thumbnail { uri, aspect } = thumbnail(&collection, 2, &decode, 6).unwrap();
        assert_eq!(aspect, 1.5);
        let jpeg = STANDARD.decode(uri.strip_prefix("data:image/jpeg;base64,").unwrap()).unwrap();
        let pixels = decode::decode(
            &jpeg,
            None,
            &decode::Config { min_side_px: 1, ..decode::Config::default() },
        );
        let pixels = pixels.unwrap();
        assert_eq!((pixels.width_px, pixels.height_px), (6, 4));
        // JPEG is lossy; red is red.
        let far = pixels.rgb.chunks_exact(3).find(|rgb| {
            rgb.iter().zip([220_u8, 20, 20]).any(|(byte, expected)| byte.abs_diff(expected) > 12)
        });
        assert_eq!(far, None);
        // What the run does not take is no picture either.
        let narrow = decode::Config { max_pixels: 1, ..decode::Config::default() };
        let error = thumbnail(&collection, 2, &narrow, 6).err().unwrap();
        assert!(matches!(error, EvaluateError::Refused { .. }), "{error}");
    }
}
