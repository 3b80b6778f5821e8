//! The `[image]` section.

use super::limits;
use crate::setting::{self, Invalid};
use serde::{Deserialize, Serialize};

/// Which images are accepted, and what they become before anything is learned from them.
///
/// Memory: while an image is decoded, one decode thread holds at most about 20 bytes per pixel of
/// `max_pixels` (the worst case is a 16-bit RGBA TIFF; an 8-bit JPEG or PNG takes 3 to 9).
/// Afterwards an image takes at most `3 * working_side_px²` bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Longest accepted message, in bytes; longer ones are refused unread.
    pub max_bytes: usize,
    /// Largest accepted width times height. It is read from the header, before any pixel is
    /// decoded, so a small file that claims a huge image costs nothing.
    pub max_pixels: u64,
    /// Shortest accepted side, in pixels.
    pub min_side_px: u32,
    /// Images whose longer side exceeds this are shrunk to it after decoding, proportions kept.
    /// Should be about twice the side of the encoder's input or more, so that crops stay sharp.
    pub working_side_px: u32,
    /// What transparent pixels are laid on, red, green, blue.
    pub background: [u8; 3],
    /// Two images are near-duplicates where their [fingerprints](super::fingerprint) differ in at
    /// most so many of 64 bits.
    pub duplicate_bits: u32,
    /// What is enough for the views that will be made. A JPEG is reduced to no less while it is
    /// decoded, or to no less than `working_side_px`; unset, to the latter alone. Not a key of
    /// files: it follows from what views are wanted.
    #[serde(skip)]
    pub enough: Option<Enough>,
}

/// The least size of an image from which views lose nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Enough {
    /// Its shorter side.
    pub shorter_px: u32,
    /// Its width times height.
    pub pixels: u64,
}

impl Enough {
    /// Whether an image of this size has it.
    pub fn is_met(&self, width_px: u32, height_px: u32) -> bool {
        width_px.min(height_px) >= self.shorter_px
            && u64::from(width_px) * u64::from(height_px) >= self.pixels
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            // A guess: twelve-megapixel photos at high JPEG quality stay below 10 MiB.
            max_bytes: 16 * 1024 * 1024,
            // A guess: above what most phones and cameras make (48 megapixels).
            max_pixels: 50_000_000,
            // One JPEG block; less has no structure worth learning.
            min_side_px: 8,
            // A guess: more than twice 224 px, the usual view, at 0.75 MiB an image.
            working_side_px: 512,
            // Transparent pictures (logos, clip art, cut-outs) are made to be seen on a page.
            background: [255; 3],
            // A guess: unrelated images differ in about 32, give or take 4.
            duplicate_bits: 8,
            enough: None,
        }
    }
}

impl Config {
    /// The most bytes that a thread holds while it decodes an image: what decoders may allocate, and four
    /// a pixel for what becomes of it.
    pub fn decoding_bytes(&self) -> u64 {
        limits::max_alloc_bytes(self) + 4 * self.max_pixels
    }

    /// The most bytes of a decoded image.
    pub fn decoded_bytes(&self) -> u64 {
        3 * u64::from(self.working_side_px).pow(2)
    }

    /// Checks every field; the error names the first that cannot be used.
    pub fn validate(&self) -> Result<(), Invalid> {
        setting::within("image.max_bytes", self.max_bytes, 1.., "at least 1")?;
        // The upper end keeps every size computation far from overflow.
        setting::within(
            "image.max_pixels",
            self.max_pixels,
            1..=1_000_000_000,
            "from 1 to 1000000000",
        )?;
        setting::within("image.min_side_px", self.min_side_px, 1.., "at least 1")?;
        setting::within(
            "image.working_side_px",
            self.working_side_px,
            self.min_side_px..=65_535,
            "from image.min_side_px to 65535",
        )?;
        setting::within("image.duplicate_bits", self.duplicate_bits, 0..=64, "from 0 to 64")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_and_each_field_is_checked_by_name() {
        Config::default().validate().unwrap();
        let refused = [
            ("image.max_bytes", Config { max_bytes: 0, ..Config::default() }),
            ("image.max_pixels", Config { max_pixels: 0, ..Config::default() }),
            ("image.max_pixels", Config { max_pixels: 1_000_000_001, ..Config::default() }),
            ("image.min_side_px", Config { min_side_px: 0, ..Config::default() }),
            ("image.duplicate_bits", Config { duplicate_bits: 65, ..Config::default() }),
            ("image.working_side_px", Config { working_side_px: 7, ..Config::default() }),
            ("image.working_side_px", Config { working_side_px: 65_536, ..Config::default() }),
        ];
        for (key, config) in refused {
            assert_eq!(config.validate().unwrap_err().key, key);
        }
    }

    #[test]
    fn unknown_keys_are_refused_and_absent_ones_take_defaults() {
        assert_eq!(toml::from_str::<Config>("").unwrap(), Config::default());
        let error = toml::from_str::<Config>("max_byte = 3").unwrap_err();
        assert!(error.to_string().contains("max_byte"), "{error}");
    }
}
