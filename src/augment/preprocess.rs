//! How pixels become numbers: side, mean and standard deviation.

use serde::{Deserialize, Serialize};

/// How pixels become the encoder's input when nothing is augmented; part of every snapshot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Preprocess {
    /// Side of the square input.
    pub side_px: usize,
    /// Subtracted from each channel, which lies in 0..1.
    pub mean: [f32; 3],
    /// Then divides each channel.
    pub std: [f32; 3],
}

impl Preprocess {
    /// Inputs of `side_px` by `side_px`, normalised by the statistics of ImageNet's training
    /// images as torchvision states them.
    pub fn imagenet(side_px: usize) -> Self {
        Self { side_px, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] }
    }

    /// Numbers in one input, `H * W * C`.
    pub fn input_len(&self) -> usize {
        self.side_px * self.side_px * 3
    }
}
