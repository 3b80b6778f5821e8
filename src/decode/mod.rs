//! Bytes to upright RGB pixels, or a refusal with its reason.

/// An upright RGB image: 8 bits a channel, rows from the top, channels interleaved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pixels {
    /// Width.
    pub width_px: u32,
    /// Height.
    pub height_px: u32,
    /// `height_px * width_px * 3` bytes.
    pub rgb: Vec<u8>,
}
