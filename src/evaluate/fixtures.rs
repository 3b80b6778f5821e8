//! Collections for tests.

use crate::augment::Preprocess;
use crate::snapshot::{Encode, Provenance, Snapshot};
use crate::source::collection::Collection;
use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};
use std::path::Path;

const COLOURS: [(&str, [u8; 3]); 3] =
    [("blue", [20, 20, 220]), ("green", [20, 220, 20]), ("red", [220, 20, 20])];

pub(super) fn png(colour: [u8; 3]) -> Vec<u8> {
    png_of(colour, [12, 8])
}

/// An image with a side of 2 px, which only a run that allows it takes.
pub(super) fn flat() -> Vec<u8> {
    png_of([220, 20, 20], [12, 2])
}

fn png_of(colour: [u8; 3], [width_px, height_px]: [u32; 2]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let rgb = colour.repeat((width_px * height_px) as usize);
    PngEncoder::new(&mut bytes)
        .write_image(&rgb, width_px, height_px, ExtendedColorType::Rgb8)
        .unwrap();
    bytes
}

/// `n_each` images of each colour, which is their class, every one a shade of it.
pub(super) fn coloured(folder: &Path, n_each: u8) -> Collection {
    for (name, colour) in COLOURS {
        std::fs::create_dir_all(folder.join(name)).unwrap();
        for index in 0..n_each {
            let shade = colour.map(|byte| byte + index);
            std::fs::write(folder.join(name).join(format!("{index:02}.png")), png(shade)).unwrap();
        }
    }
    Collection::open(folder).unwrap()
}

/// The mean of each channel times `scale`, and `offset` more, `D = 3`. With a scale of 0 it is blind: all images
/// are one point to it.
struct ChannelMeans {
    scale: f32,
    offset: f32,
}

impl Encode for ChannelMeans {
    fn feature_dim(&self) -> usize {
        3
    }

    fn embed(&self, images: Vec<f32>, n_images: usize) -> candle_core::Result<Vec<f32>> {
        let image_len = images.len() / n_images;
        let mean = |image: &[f32], channel: usize| {
            let sum: f32 = image.iter().skip(channel).step_by(3).sum();
            self.scale * sum / (image_len / 3) as f32 + self.offset
        };
        let means = images.chunks_exact(image_len);
        Ok(means.flat_map(|image| [0, 1, 2].map(|channel| mean(image, channel))).collect())
    }
}

/// A snapshot whose encoder takes images of 4 px as they are, and gives `scale` times the mean of each channel
/// and `offset`.
pub(super) fn channel_means(version: &str, [scale, offset]: [f32; 2]) -> Snapshot {
    Snapshot {
        version: version.to_owned(),
        architecture: "means".to_owned(),
        preprocess: Preprocess { side_px: 4, mean: [0.0; 3], std: [1.0; 3] },
        provenance: Provenance::default(),
        encoder: Box::new(ChannelMeans { scale, offset }),
    }
}
