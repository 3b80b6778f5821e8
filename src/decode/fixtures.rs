//! Small files of every format, most made here by the encoders of the `image` crate; the others
//! lie in tests/data/decode with the script that made them.

use super::Pixels;
use image::codecs::gif::GifEncoder;
use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::codecs::pnm::{PnmEncoder, PnmSubtype, SampleEncoding};
use image::codecs::webp::WebPEncoder;
use image::{DynamicImage, Frame, ImageEncoder, ImageFormat, Rgb, RgbImage};
use std::io::Cursor;

/// The bytes of a file in tests/data/decode.
macro_rules! stored {
    ($name:literal) => {
        include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/decode/", $name)).as_slice()
    };
}
pub(super) use stored;

/// A picture that differs from all its turns and reflections, smooth enough for JPEG.
pub(super) fn picture() -> Pixels {
    pixels(16, 12, |x, y| [16 * x, 20 * y, 128])
}

/// The picture of the CMYK files.
pub(super) fn dark_picture() -> Pixels {
    pixels(16, 12, |x, y| [11 * x, 16 * y, 96])
}

pub(super) fn pixels(width_px: u32, height_px: u32, f: impl Fn(u8, u8) -> [u8; 3]) -> Pixels {
    let image = RgbImage::from_fn(width_px, height_px, |x, y| Rgb(f(x as u8, y as u8)));
    Pixels { width_px, height_px, rgb: image.into_raw() }
}

pub(super) fn image(pixels: &Pixels) -> RgbImage {
    RgbImage::from_raw(pixels.width_px, pixels.height_px, pixels.rgb.clone()).unwrap()
}

pub(super) fn encode(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.into().write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

pub(super) fn png(pixels: &Pixels) -> Vec<u8> {
    encode(image(pixels), ImageFormat::Png)
}

/// A JPEG of the best quality, its `exif` inside if it is not empty.
pub(super) fn jpeg(image: impl Into<DynamicImage>, exif: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = JpegEncoder::new_with_quality(&mut bytes, 100);
    if !exif.is_empty() {
        encoder.set_exif_metadata(exif.to_vec()).unwrap();
    }
    image.into().write_with_encoder(encoder).unwrap();
    bytes
}

/// A sequential JPEG of 16 by 16 grey pixels in three components, 1 to 3, with a scan of one component
/// for each of `components`. Each block is two bits of zero: the level of the one before, and no more.
pub(super) fn jpeg_of_scans(components: &[u8]) -> Vec<u8> {
    // One code, of one bit, for the value 0.
    let huffman = |class: u8| {
        let mut segment = vec![0xff, 0xc4, 0, 20, class, 1];
        segment.resize(22, 0);
        segment
    };
    let mut bytes: Vec<u8> = vec![0xff, 0xd8, 0xff, 0xdb, 0, 67, 0];
    bytes.extend([1; 64]);
    bytes.extend([0xff, 0xc0, 0, 17, 8, 0, 16, 0, 16, 3, 1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0]);
    bytes.extend(huffman(0x00));
    bytes.extend(huffman(0x10));
    for &component in components {
        bytes.extend([0xff, 0xda, 0, 8, 1, component, 0, 0, 63, 0, 0]);
    }
    bytes.extend([0xff, 0xd9]);
    bytes
}

pub(super) fn png_with_exif(pixels: &Pixels, exif: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = PngEncoder::new(&mut bytes);
    encoder.set_exif_metadata(exif.to_vec()).unwrap();
    image(pixels).write_with_encoder(encoder).unwrap();
    bytes
}

pub(super) fn webp_with_exif(pixels: &Pixels, exif: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = WebPEncoder::new_lossless(&mut bytes);
    encoder.set_exif_metadata(exif.to_vec()).unwrap();
    image(pixels).write_with_encoder(encoder).unwrap();
    bytes
}

/// An Exif block that holds nothing but the orientation, 1 to 8.
pub(super) fn exif(orientation: u8) -> Vec<u8> {
    let entry = [0x12, 1, 3, 0, 1, 0, 0, 0, orientation, 0, 0, 0];
    [b"II*\0\x08\0\0\0\x01\0".as_slice(), &entry, &[0; 4]].concat()
}

/// A GIF of two frames.
pub(super) fn animated_gif(first: &Pixels, second: &Pixels) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = GifEncoder::new(&mut bytes);
    for frame in [first, second] {
        let frame = DynamicImage::from(image(frame)).into_rgba8();
        encoder.encode_frame(Frame::new(frame)).unwrap();
    }
    drop(encoder);
    bytes
}

pub(super) fn pnm(image: impl Into<DynamicImage>, subtype: PnmSubtype) -> Vec<u8> {
    let mut bytes = Vec::new();
    image.into().write_with_encoder(PnmEncoder::new(&mut bytes).with_subtype(subtype)).unwrap();
    bytes
}

/// An uncompressed TIFF with the directory first and one strip for every five rows.
pub(super) fn multi_strip_tiff(pixels: &Pixels, is_little_endian: bool) -> Vec<u8> {
    tiff_with_orientation(pixels, is_little_endian, 1)
}

pub(super) fn tiff_with_orientation(
    pixels: &Pixels,
    is_little_endian: bool,
    orientation: u32,
) -> Vec<u8> {
    const ROWS_PER_STRIP: u32 = 5;
    const N_ENTRIES: u32 = 10;
    let u16 = |v: u32| {
        let v = u16::try_from(v).unwrap();
        if is_little_endian { v.to_le_bytes() } else { v.to_be_bytes() }.to_vec()
    };
    let u32 = |v: u32| if is_little_endian { v.to_le_bytes() } else { v.to_be_bytes() }.to_vec();
    let row_bytes = pixels.width_px * 3;
    let strips: Vec<&[u8]> = pixels.rgb.chunks((ROWS_PER_STRIP * row_bytes) as usize).collect();
    let n_strips = strips.len() as u32;
    assert!(n_strips > 1);
    let bits_at = 8 + 2 + 12 * N_ENTRIES + 4;
    let offsets_at = bits_at + 6;
    let lengths_at = offsets_at + 4 * n_strips;
    let strips_at = lengths_at + 4 * n_strips;

    let short = |tag, v| [u16(tag), u16(3), u32(1), u16(v), u16(0)].concat();
    let longs = |tag, n, at| [u16(tag), u16(4), u32(n), u32(at)].concat();
    let magic = if is_little_endian { b"II" } else { b"MM" };
    let mut bytes = [magic.to_vec(), u16(42), u32(8), u16(N_ENTRIES)].concat();
    bytes.extend(short(256, pixels.width_px));
    bytes.extend(short(257, pixels.height_px));
    bytes.extend([u16(258), u16(3), u32(3), u32(bits_at)].concat());
    bytes.extend(short(259, 1)); // no compression
    bytes.extend(short(262, 2)); // RGB
    bytes.extend(longs(273, n_strips, offsets_at));
    bytes.extend(short(274, orientation));
    bytes.extend(short(277, 3)); // samples per pixel
    bytes.extend(short(278, ROWS_PER_STRIP));
    bytes.extend(longs(279, n_strips, lengths_at));
    bytes.extend([u32(0), u16(8), u16(8), u16(8)].concat());
    for strip in 0..n_strips {
        bytes.extend(u32(strips_at + strip * ROWS_PER_STRIP * row_bytes));
    }
    for strip in &strips {
        bytes.extend(u32(strip.len() as u32));
    }
    bytes.extend(strips.concat());
    bytes
}

/// A little-endian TIFF with `body` at byte 8, then one directory of `entries`: tag, type and numbers.
pub(super) fn tiff_of(body: &[u8], entries: &[(u16, u16, &[u64])]) -> Vec<u8> {
    let u32 = |v: usize| u32::try_from(v).unwrap().to_le_bytes();
    let directory_at = 8 + body.len();
    let values_at = directory_at + 2 + 12 * entries.len() + 4;
    let mut directory = u16::try_from(entries.len()).unwrap().to_le_bytes().to_vec();
    let mut values: Vec<u8> = Vec::new();
    for &(tag, kind, numbers) in entries {
        let number_bytes = match kind {
            3 => 2,
            4 => 4,
            16 => 8,
            _ => 1,
        };
        let digits = |number: &u64| number.to_le_bytes().into_iter().take(number_bytes);
        let mut held: Vec<u8> = numbers.iter().flat_map(digits).collect();
        directory.extend(tag.to_le_bytes());
        directory.extend(kind.to_le_bytes());
        directory.extend(u32(numbers.len()));
        if held.len() <= 4 {
            held.resize(4, 0);
            directory.extend(held);
        } else {
            directory.extend(u32(values_at + values.len()));
            values.extend(held);
        }
    }
    [b"II*\0".as_slice(), &u32(directory_at), body, &directory, &[0; 4], &values].concat()
}

/// A name and a file for each format and each variant that is coded differently.
pub(super) fn every_format() -> Vec<(&'static str, Vec<u8>)> {
    let rgb = || image(&picture());
    let grey = || DynamicImage::from(rgb()).into_luma8();
    let binary = |kind: fn(SampleEncoding) -> PnmSubtype| kind(SampleEncoding::Binary);
    let ascii = |kind: fn(SampleEncoding) -> PnmSubtype| kind(SampleEncoding::Ascii);
    vec![
        ("jpeg", jpeg(rgb(), &[])),
        ("jpeg with exif", jpeg(rgb(), &exif(1))),
        ("jpeg grey", jpeg(grey(), &[])),
        ("jpeg cmyk", stored!("cmyk.jpg").to_vec()),
        ("jpeg progressive", stored!("progressive.jpg").to_vec()),
        ("jpeg restart", stored!("restart.jpg").to_vec()),
        ("jpeg subsampled", stored!("subsampled.jpg").to_vec()),
        ("png", png(&picture())),
        ("png 16-bit", encode(DynamicImage::from(rgb()).into_rgb16(), ImageFormat::Png)),
        ("png palette", stored!("palette.png").to_vec()),
        ("webp lossless", encode(rgb(), ImageFormat::WebP)),
        ("webp exif", webp_with_exif(&picture(), &exif(1))),
        ("webp lossy", stored!("lossy.webp").to_vec()),
        ("webp lossy alpha", stored!("lossy-alpha.webp").to_vec()),
        ("webp animated", stored!("animated.webp").to_vec()),
        ("gif", encode(rgb(), ImageFormat::Gif)),
        ("gif animated", animated_gif(&picture(), &dark_picture())),
        ("bmp", encode(rgb(), ImageFormat::Bmp)),
        ("bmp grey", encode(grey(), ImageFormat::Bmp)),
        ("tiff", encode(rgb(), ImageFormat::Tiff)),
        ("tiff strips", multi_strip_tiff(&picture(), true)),
        ("tiff big-endian", multi_strip_tiff(&picture(), false)),
        ("tiff lzw", stored!("lzw.tif").to_vec()),
        ("tiff deflate", stored!("deflate.tif").to_vec()),
        ("tiff packbits", stored!("packbits.tif").to_vec()),
        ("ppm", pnm(rgb(), binary(PnmSubtype::Pixmap))),
        ("ppm plain", pnm(rgb(), ascii(PnmSubtype::Pixmap))),
        ("pgm", pnm(grey(), binary(PnmSubtype::Graymap))),
        ("pgm plain", pnm(grey(), ascii(PnmSubtype::Graymap))),
        ("pam", pnm(rgb(), PnmSubtype::ArbitraryMap)),
    ]
}
