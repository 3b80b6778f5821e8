//! Pixels to views: what the encoder sees of an image, `[H, W, C]` as normalised f32.

/// How pixels become the encoder's input when nothing is augmented; part of every snapshot.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Preprocess {
    /// Side of the square input.
    pub side_px: usize,
    /// Subtracted from each channel, which lies in 0..1.
    pub mean: [f32; 3],
    /// Then divides each channel.
    pub std: [f32; 3],
}
