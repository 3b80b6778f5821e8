//! Decoding, in images per second.

use divan::Bencher;
use divan::counter::ItemsCount;
use image::codecs::jpeg::JpegEncoder;
use image::{DynamicImage, ImageFormat, Rgb, RgbImage};
use selfstream::decode::{Config, decode};
use std::io::Cursor;

/// Smooth waves with a fine grain: about as hard to compress as a photo.
fn picture(width_px: u32, height_px: u32) -> DynamicImage {
    let wave = |at: u32, period: f32| ((at as f32 / period).sin() * 90.0 + 128.0) as u8;
    let grain = |x: u32, y: u32| (x.wrapping_mul(0x9e37_79b9) ^ y.wrapping_mul(0x85eb_ca6b)) >> 28;
    RgbImage::from_fn(width_px, height_px, |x, y| {
        let grain = grain(x, y) as u8;
        Rgb([wave(x, 23.0) + grain, wave(y, 31.0) + grain, wave(x + y, 47.0) + grain])
    })
    .into()
}

fn bench(bencher: Bencher<'_, '_>, bytes: &[u8]) {
    let config = Config::default();
    bencher
        .counter(ItemsCount::new(1usize))
        .bench(|| decode(divan::black_box(bytes), None, &config).expect("the picture is whole"));
}

/// Sizes: CIFAR's, PACS's, ImageNet's average (shorter than the working side), and one that is
/// reduced and shrunk.
#[divan::bench(args = [(32, 32), (128, 128), (500, 375), (2000, 1500)])]
fn jpeg(bencher: Bencher<'_, '_>, (width_px, height_px): (u32, u32)) {
    let mut bytes = Vec::new();
    picture(width_px, height_px)
        .write_with_encoder(JpegEncoder::new_with_quality(&mut bytes, 85))
        .expect("writing to memory");
    bench(bencher, &bytes);
}

#[divan::bench(args = [ImageFormat::Png, ImageFormat::WebP, ImageFormat::Tiff, ImageFormat::Bmp])]
fn lossless_500_by_375(bencher: Bencher<'_, '_>, format: ImageFormat) {
    let mut bytes = Cursor::new(Vec::new());
    picture(500, 375).write_to(&mut bytes, format).expect("writing to memory");
    bench(bencher, bytes.get_ref());
}
