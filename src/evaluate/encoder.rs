//! A snapshot as an embedder: images are prepared as its queries are, without augmentation.

use super::labelled::BATCH_IMAGES;
use super::{Embedder, Embeddings, EvaluateError, Example};
use crate::augment::plain_view;
use crate::decode;
use crate::snapshot::Snapshot;
use std::sync::Arc;

/// Embeds by one snapshot, in batches of 64.
///
/// A snapshot that answers queries embeds one batch at a time, and whoever comes meanwhile waits for the whole of
/// it. So who looks on while a run serves gives one image a call; an image has the same embedding in any batch.
pub struct SnapshotEmbedder {
    snapshot: Arc<Snapshot>,
    decode: decode::Config,
}

impl SnapshotEmbedder {
    /// Embeds by `snapshot` what the default limits of images take.
    pub fn new(snapshot: Arc<Snapshot>) -> Self {
        Self { snapshot, decode: decode::Config::default() }
    }

    /// The same of images that are decoded as `decode` says: as the run decodes them whose encoder it is.
    pub fn decoding(self, decode: decode::Config) -> Self {
        Self { decode, ..self }
    }
}

impl Embedder for SnapshotEmbedder {
    fn version(&self) -> &str {
        &self.snapshot.version
    }

    fn embed(&mut self, images: &[Example]) -> Result<Embeddings, EvaluateError> {
        embed_by(&self.snapshot, images, &self.decode)
    }
}

/// Embeds `images`, decoded as `decode` says, by `snapshot`, `[N, D]`.
pub(super) fn embed_by(
    snapshot: &Snapshot,
    images: &[Example],
    decode: &decode::Config,
) -> Result<Embeddings, EvaluateError> {
    let Snapshot { version, preprocess, encoder, .. } = snapshot;
    let view_len = preprocess.side_px * preprocess.side_px * 3;
    let mut values = Vec::with_capacity(images.len() * encoder.feature_dim());
    for batch in images.chunks(BATCH_IMAGES) {
        let mut views = vec![0.0; batch.len() * view_len]; // [N, H, W, C]
        for (image, view) in batch.iter().zip(views.chunks_exact_mut(view_len)) {
            plain_view(&image.pixels(decode)?, preprocess, view);
        }
        let embedded = encoder
            .embed(views, batch.len())
            .map_err(|source| EvaluateError::Encoder { version: version.clone(), source })?;
        values.extend(embedded);
    }
    Embeddings::new(values, encoder.feature_dim())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::augment::Preprocess;
    use crate::evaluate::RawPixels;
    use crate::evaluate::fixtures::channel_means;
    use crate::snapshot::{Encode, Provenance};
    use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};

    /// The mean of each channel, `D = 3`.
    struct ChannelMeans;

    impl Encode for ChannelMeans {
        fn feature_dim(&self) -> usize {
            3
        }

        fn embed(&self, images: Vec<f32>, n_images: usize) -> candle_core::Result<Vec<f32>> {
            assert!(n_images <= BATCH_IMAGES);
            let image_len = images.len() / n_images;
            let mean = |image: &[f32], channel: usize| {
                image.iter().skip(channel).step_by(3).sum::<f32>() / (image_len / 3) as f32
            };
            let means = images.chunks_exact(image_len);
            Ok(means.flat_map(|image| [0, 1, 2].map(|channel| mean(image, channel))).collect())
        }
    }

    #[test]
    fn images_reach_the_encoder_in_order_and_normalised() {
        let embedder = &mut SnapshotEmbedder::new(Arc::new(Snapshot {
            version: "abc".to_owned(),
            architecture: "means".to_owned(),
            preprocess: Preprocess { side_px: 4, mean: [0.5, 0.0, 0.2], std: [0.5, 2.0, 1.0] },
            provenance: Provenance::default(),
            encoder: Box::new(ChannelMeans),
        }));
        let colour = |index: u8| [index, 2 * index, 255];
        let example = |index: u8| {
            let mut png = Vec::new();
            PngEncoder::new(&mut png)
                .write_image(&colour(index).repeat(8 * 8), 8, 8, ExtendedColorType::Rgb8)
                .unwrap();
            Example { name: index.to_string(), bytes: png.into(), label: 0 }
        };
        let examples: Vec<_> = (0..100).map(example).collect();
        let embeddings = embedder.embed(&examples).unwrap();
        assert_eq!((embedder.version(), embeddings.len()), ("abc", 100));
        for (index, row) in (0..100).zip(embeddings.rows()) {
            let [red, green, blue] = colour(index).map(|byte| f32::from(byte) / 255.0);
            let expected = [(red - 0.5) / 0.5, green / 2.0, blue - 0.2];
            for (found, expected) in row.iter().zip(expected) {
                assert!((found - expected).abs() < 1e-5, "image {index}: {found}, not {expected}");
            }
        }
    }

    #[test]
    fn images_are_decoded_as_their_run_does() {
        let mut clear = Vec::new();
        PngEncoder::new(&mut clear)
            .write_image(&[200_u8, 100, 50, 0].repeat(4 * 4), 4, 4, ExtendedColorType::Rgba8)
            .unwrap();
        let example = Example { name: "clear".to_owned(), bytes: clear.into(), label: 0 };
        let run =
            decode::Config { min_side_px: 4, background: [0, 0, 255], ..decode::Config::default() };
        let snapshot = Arc::new(channel_means("a", [1.0, 0.0]));
        let mut embedder = SnapshotEmbedder::new(Arc::clone(&snapshot)).decoding(run.clone());
        let mut pixels = RawPixels.decoding(run);
        let both: [(&mut dyn Embedder, [f32; 3]); 2] =
            [(&mut embedder, [0.0, 0.0, 1.0]), (&mut pixels, [-0.5, -0.5, 0.5])];
        for (embedder, background) in both {
            let embeddings = embedder.embed(std::slice::from_ref(&example)).unwrap();
            for (found, expected) in embeddings.row(0).iter().zip(background) {
                assert!((found - expected).abs() < 1e-5, "{found}, not {expected}");
            }
        }
        // By the defaults it is too small.
        let mut embedder = SnapshotEmbedder::new(snapshot);
        let defaults: [&mut dyn Embedder; 2] = [&mut embedder, &mut RawPixels];
        for embedder in defaults {
            let error = embedder.embed(std::slice::from_ref(&example)).unwrap_err();
            assert!(matches!(error, EvaluateError::Refused { .. }), "{error}");
        }
    }

    #[test]
    fn an_image_that_is_none_is_named() {
        let mut embedder = RawPixels;
        let bytes = bytes::Bytes::from_static(b"no image");
        let example = Example { name: "dog/1.jpg of photos.tar".to_owned(), bytes, label: 0 };
        let error = embedder.embed(&[example]).unwrap_err();
        assert_eq!(error.to_string(), "cannot decode dog/1.jpg of photos.tar");
    }
}
