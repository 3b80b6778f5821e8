//! Bytes to upright RGB pixels, or a refusal with its reason.
//!
//! The order of the checks is the order of their cost: length, content type, first bytes, header
//! (size), and only then pixels. A file that is cut short or corrupt is refused, not patched up:
//! the grey that lenient decoders fill in would be learned. What the decoders below guarantee,
//! and what each format's own file here adds, is tested for every format at every cut.
//!
//! To add a format: its feature of the `image` crate in Cargo.toml, its check in `formats` if a
//! cut file of it can pass, and an entry in the tests' `fixtures::every_format`.

mod colour;
mod config;
pub mod fingerprint;
mod formats;
mod jpeg;
mod limits;
mod metered;
mod park;
mod pnm;
pub mod pool;
mod refusal;
mod shrink;
mod sniff;
mod tiff;
mod webp;

#[cfg(test)]
mod fixtures;

pub use config::{Config, Enough};
pub use refusal::{Cause, Refusal};

use crate::claim::{Arrival, Image};
use crate::fault;
use crate::source::Record;
use image::metadata::Orientation;
use image::{DynamicImage, ImageFormat, RgbImage};
use std::any::Any;
use std::panic::{UnwindSafe, catch_unwind};

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

/// A record and what became of its bytes.
#[derive(Debug)]
pub struct Decoded {
    /// The record as it came; but if a claim check's image was decoded, `bytes` are the image's.
    pub record: Record,
    /// Its image, or why there is none.
    pub outcome: Result<Pixels, Refusal>,
}

impl Decoded {
    /// Decodes a record by its bytes and its `content-type` header, or what was fetched for it.
    pub fn new(Arrival { mut record, image }: Arrival, config: &Config) -> Self {
        let outcome = match image {
            Image::Inline if record.omitted_bytes > 0 => Err(Refusal::TooManyBytes {
                bytes: record.omitted_bytes,
                max_bytes: config.max_bytes,
            }),
            Image::Inline => decode(&record.bytes, record.header("content-type"), config),
            Image::Missing(unfetched) => Err(unfetched.into()),
            Image::Fetched(bytes) => {
                // The header is the claim check's, and what stores say they often guess from names.
                let outcome = decode(&bytes, None, config);
                if outcome.is_ok() {
                    record.bytes = bytes;
                }
                outcome
            }
        };
        Self { record, outcome }
    }
}

/// Decodes `bytes` to an upright image with no side longer than `config.working_side_px`.
///
/// `content_type` is what the sender called the bytes, if anything. Never panics: a decoder's
/// panic is a refusal.
pub fn decode(
    bytes: &[u8],
    content_type: Option<&str>,
    config: &Config,
) -> Result<Pixels, Refusal> {
    if bytes.is_empty() {
        return Err(Refusal::Empty);
    }
    if bytes.len() > config.max_bytes {
        return Err(Refusal::TooManyBytes { bytes: bytes.len(), max_bytes: config.max_bytes });
    }
    let format = sniff::format(bytes, content_type)?;
    catch(|| {
        fault::panic_at("decode");
        let (pixels, orientation) = formats::decode(bytes, format, config)?;
        check_fit(&pixels, format)?;
        // Shrinking first makes turning cheap, and the filter is the same along both axes.
        Ok(turn(shrink::shrink(pixels, config.working_side_px), orientation))
    })
}

/// A buffer that is not as long as its image's size says.
#[derive(Debug, thiserror::Error)]
#[error("the decoder gave {bytes} bytes for {width_px} x {height_px} pixels of 3 bytes each")]
struct Misfit {
    bytes: usize,
    width_px: u32,
    height_px: u32,
}

/// Refuses pixels that are more or fewer than their size says: whatever looks at [`Pixels`] relies on it, also
/// where nothing catches a panic.
fn check_fit(pixels: &Pixels, format: ImageFormat) -> Result<(), Refusal> {
    let Pixels { width_px, height_px, ref rgb } = *pixels;
    let bytes = rgb.len();
    if u128::from(width_px) * u128::from(height_px) * 3 != bytes as u128 {
        return Err(Refusal::damaged(format, Misfit { bytes, width_px, height_px }));
    }
    Ok(())
}

/// Turns a panic of `decode` into a refusal.
fn catch(decode: impl FnOnce() -> Result<Pixels, Refusal> + UnwindSafe) -> Result<Pixels, Refusal> {
    catch_unwind(decode).unwrap_or_else(|payload| {
        Err(Refusal::Panicked { message: panic_message(payload.as_ref()) })
    })
}

/// `panic!` makes a `&str` of a literal and a `String` of a format.
fn panic_message(payload: &(dyn Any + Send)) -> String {
    let literal = payload.downcast_ref::<&str>().map(|message| (*message).to_owned());
    literal
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a value that is not text".to_owned())
}

/// Applies the orientation that the file asks for.
fn turn(pixels: Pixels, orientation: Orientation) -> Pixels {
    if orientation == Orientation::NoTransforms {
        return pixels;
    }
    let image = RgbImage::from_raw(pixels.width_px, pixels.height_px, pixels.rgb)
        .expect("Pixels holds exactly its size in bytes");
    let mut image = DynamicImage::from(image);
    image.apply_orientation(orientation);
    Pixels { width_px: image.width(), height_px: image.height(), rgb: image.into_rgb8().into_raw() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::claim::{Flaw, Unfetched};
    use fixtures::{every_format, stored};
    use image::{ImageBuffer, Luma, LumaA, Rgba};
    use proptest::{prelude::*, test_runner::TestRunner};

    fn decoded(bytes: &[u8]) -> Pixels {
        decode(bytes, None, &Config::default()).unwrap()
    }

    fn refusal(bytes: &[u8], config: &Config) -> Refusal {
        decode(bytes, None, config).unwrap_err()
    }

    /// The largest difference of a sample; panics unless the sizes agree.
    fn distance(a: &Pixels, b: &Pixels) -> u8 {
        assert_eq!((a.width_px, a.height_px), (b.width_px, b.height_px));
        a.rgb.iter().zip(&b.rgb).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
    }

    #[test]
    fn lossless_formats_give_the_picture_back() {
        let picture = fixtures::picture();
        let exact = [
            "png",
            "png 16-bit",
            "webp lossless",
            "webp exif",
            "webp animated",
            "gif",
            "gif animated",
            "bmp",
            "tiff",
            "tiff strips",
            "tiff big-endian",
            "tiff lzw",
            "tiff deflate",
            "tiff packbits",
            "ppm",
            "ppm plain",
            "pam",
        ];
        let files = every_format();
        for name in exact {
            let (_, bytes) = files.iter().find(|(other, _)| *other == name).unwrap();
            assert_eq!(distance(&decoded(bytes), &picture), 0, "{name}");
        }
    }

    #[test]
    fn lossy_formats_give_nearly_the_picture_back() {
        // Tolerances: quality 100 leaves rounding of the colour transform; halved chroma and
        // WebP's 16..235 range and halved chroma leave more.
        let picture = fixtures::picture();
        for (bytes, tolerance) in [
            (&*fixtures::jpeg(fixtures::image(&picture), &[]), 4),
            (stored!("progressive.jpg"), 4),
            (stored!("restart.jpg"), 4),
            (stored!("subsampled.jpg"), 16),
            (stored!("lossy.webp"), 16),
        ] {
            let distance = distance(&decoded(bytes), &picture);
            assert!(distance <= tolerance, "{distance}");
        }
    }

    #[test]
    fn cmyk_and_ycck_jpegs_show_their_colours() {
        for bytes in [stored!("cmyk.jpg"), stored!("cmyk-no-adobe.jpg"), stored!("ycck.jpg")] {
            let distance = distance(&decoded(bytes), &fixtures::dark_picture());
            assert!(distance <= 4, "{distance}");
        }
    }

    #[test]
    fn grey_becomes_three_equal_channels() {
        let grey = ImageBuffer::from_fn(9, 8, |x, y| Luma([(20 * x + 3 * y) as u8]));
        let expected: Vec<u8> = grey.as_raw().iter().flat_map(|&v| [v; 3]).collect();
        assert_eq!(decoded(&fixtures::encode(grey.clone(), ImageFormat::Png)).rgb, expected);
        let jpeg = decoded(&fixtures::jpeg(grey.clone(), &[]));
        let expected = Pixels { width_px: 9, height_px: 8, rgb: expected };
        assert!(distance(&jpeg, &expected) <= 2);
        for name in ["pgm", "pgm plain", "bmp grey"] {
            let files = every_format();
            let (_, bytes) = files.iter().find(|(other, _)| *other == name).unwrap();
            let luma = DynamicImage::from(fixtures::image(&fixtures::picture())).into_luma8();
            let expected: Vec<u8> = luma.as_raw().iter().flat_map(|&v| [v; 3]).collect();
            assert_eq!(decoded(bytes).rgb, expected, "{name}");
        }
    }

    #[test]
    fn transparency_shows_the_background() {
        let config = Config { background: [10, 20, 30], ..Config::default() };
        let rgba =
            ImageBuffer::from_fn(8, 8, |x, _| Rgba([200u8, 100, 50, if x < 4 { 0 } else { 255 }]));
        let grey_alpha = ImageBuffer::from_pixel(8, 8, LumaA([77u16 * 257, 0]));
        for format in [ImageFormat::Png, ImageFormat::WebP, ImageFormat::Tiff, ImageFormat::Gif] {
            let pixels = decode(&fixtures::encode(rgba.clone(), format), None, &config).unwrap();
            assert_eq!(pixels.rgb[..3], [10, 20, 30], "{format:?}");
            assert_eq!(pixels.rgb[7 * 3..8 * 3], [200, 100, 50], "{format:?}");
        }
        let grey = decode(&fixtures::encode(grey_alpha, ImageFormat::Png), None, &config).unwrap();
        assert_eq!(grey.rgb, [10, 20, 30].repeat(64));

        let palette = decode(stored!("palette.png"), None, &config).unwrap();
        let entries = [[10, 20, 30], [0, 255, 0], [0, 0, 255]];
        let expected: Vec<u8> =
            (0..12).flat_map(|y| (0..16).flat_map(move |x| entries[(x + y) % 3])).collect();
        assert_eq!(palette.rgb, expected);

        let lossy = decode(stored!("lossy-alpha.webp"), None, &config).unwrap();
        assert_eq!(lossy.rgb[..3], [10, 20, 30]);
    }

    /// Where the pixel at (x, y) of the upright picture of `w` by `h` is stored, by the definition
    /// of the tag: which visual sides are the stored row 0 and column 0 (Exif 2.32, 4.6.4 A).
    fn stored_at(orientation: u8, [x, y]: [u32; 2], [w, h]: [u32; 2]) -> [u32; 2] {
        match orientation {
            1 => [x, y],
            2 => [w - 1 - x, y],
            3 => [w - 1 - x, h - 1 - y],
            4 => [x, h - 1 - y],
            5 => [y, x],
            6 => [y, w - 1 - x],
            7 => [h - 1 - y, w - 1 - x],
            _ => [h - 1 - y, x],
        }
    }

    #[test]
    fn all_eight_orientations_are_turned_upright() {
        let upright = fixtures::picture();
        let size @ [w, h] = [upright.width_px, upright.height_px];
        for orientation in 1..=8 {
            let [stored_w, stored_h] = if orientation < 5 { [w, h] } else { [h, w] };
            let mut turned = RgbImage::new(stored_w, stored_h);
            for (x, y, pixel) in fixtures::image(&upright).enumerate_pixels() {
                let [stored_x, stored_y] = stored_at(orientation, [x, y], size);
                turned.put_pixel(stored_x, stored_y, *pixel);
            }
            let exif = fixtures::exif(orientation);
            let jpeg = fixtures::jpeg(turned.clone(), &exif);
            let stored = Pixels { width_px: stored_w, height_px: stored_h, rgb: turned.into_raw() };
            let big_endian =
                fixtures::tiff_with_orientation(&stored, false, u32::from(orientation));
            assert_eq!(decoded(&fixtures::png_with_exif(&stored, &exif)), upright, "{orientation}");
            assert_eq!(
                decoded(&fixtures::webp_with_exif(&stored, &exif)),
                upright,
                "{orientation}"
            );
            assert_eq!(decoded(&big_endian), upright, "{orientation}");
            assert!(distance(&decoded(&jpeg), &upright) <= 4, "{orientation}");
        }
    }

    #[test]
    fn a_nonsensical_orientation_is_ignored() {
        for exif in [fixtures::exif(0), fixtures::exif(9), b"II*\0\xff\xff\xff\xff".to_vec()] {
            let bytes = fixtures::png_with_exif(&fixtures::picture(), &exif);
            assert_eq!(decoded(&bytes), fixtures::picture());
        }
    }

    #[test]
    fn a_large_image_is_shrunk_then_turned() {
        let config = Config { working_side_px: 8, ..Config::default() };
        let bytes = fixtures::png_with_exif(&fixtures::picture(), &fixtures::exif(6));
        let pixels = decode(&bytes, None, &config).unwrap();
        assert_eq!((pixels.width_px, pixels.height_px, pixels.rgb.len()), (6, 8, 6 * 8 * 3));
    }

    #[test]
    fn a_mislabelled_image_is_decoded_and_a_denied_one_refused() {
        let bytes = fixtures::png(&fixtures::picture());
        let config = Config::default();
        assert_eq!(decode(&bytes, Some("image/jpeg"), &config).unwrap(), fixtures::picture());
        let refusal = decode(&bytes, Some("text/plain"), &config).unwrap_err();
        assert_eq!(refusal.reason(), "content_type");
    }

    #[test]
    fn limits_name_value_and_limit() {
        let bytes = fixtures::png(&fixtures::picture());
        let with = Config::default;
        for (config, reason, message) in [
            (
                Config { max_bytes: bytes.len() - 1, ..with() },
                "too_many_bytes",
                format!(
                    "the message has {} bytes, image.max_bytes is {}",
                    bytes.len(),
                    bytes.len() - 1
                ),
            ),
            (
                Config { max_pixels: 191, ..with() },
                "too_many_pixels",
                "the image claims 16 x 12 pixels, image.max_pixels is 191".to_owned(),
            ),
            (
                Config { min_side_px: 13, ..with() },
                "too_small",
                "the image has 16 x 12 pixels, image.min_side_px is 13".to_owned(),
            ),
        ] {
            let refusal = refusal(&bytes, &config);
            assert_eq!(refusal.reason(), reason);
            assert_eq!(refusal.to_string(), message);
        }
        let exact = Config { max_bytes: bytes.len(), max_pixels: 192, min_side_px: 12, ..with() };
        assert!(decode(&bytes, None, &exact).is_ok());
        assert_eq!(refusal(&[], &with()).reason(), "empty");
    }

    #[test]
    fn every_format_keeps_the_limit_on_pixels() {
        for (name, bytes) in every_format() {
            assert!(decode(&bytes, None, &Config::default()).is_ok(), "{name}");
            let config = Config { max_pixels: 191, ..Config::default() };
            assert_eq!(refusal(&bytes, &config).reason(), "too_many_pixels", "{name}");
        }
    }

    #[test]
    fn unsupported_variants_say_what_they_are() {
        let refusal = refusal(stored!("jpeg.tif"), &Config::default());
        assert_eq!(refusal.reason(), "unsupported");
        let source = std::error::Error::source(&refusal).unwrap();
        assert_eq!(source.to_string(), "compression 7 is JPEG");
        // A format the `image` crate knows and this crate is built without.
        let qoi = b"qoif\0\0\0\x10\0\0\0\x10\x03\0";
        assert_eq!(decode(qoi, None, &Config::default()).unwrap_err().reason(), "unsupported");
    }

    #[test]
    fn a_record_whose_value_was_left_out_is_refused_by_its_length() {
        let origin = crate::source::Origin { topic: "images".into(), partition: 0, offset: 0 };
        let record = Record { is_skipped: false, omitted_bytes: 77, ..Record::skipped(origin, 1) };
        let config = Config { max_bytes: 20, ..Config::default() };
        let refusal = Decoded::new(record.into(), &config).outcome.unwrap_err();
        assert!(matches!(refusal, Refusal::TooManyBytes { bytes: 77, max_bytes: 20 }), "{refusal}");
    }

    /// Of what was fetched, the image goes on and the claim check comes back: dead letters hold what came.
    #[test]
    fn a_fetched_image_replaces_its_claim_check_once_it_is_decoded() {
        let png = bytes::Bytes::from(fixtures::png(&fixtures::picture()));
        let record = Record {
            origin: crate::source::Origin { topic: "images".into(), partition: 0, offset: 0 },
            generation: 1,
            is_skipped: false,
            bytes: "file:///a.png".into(),
            omitted_bytes: 0,
            timestamp_ms: None,
            key: None,
            headers: vec![("content-type".to_owned(), Some("text/uri-list".into()))],
        };
        let decoded = |image| {
            let arrival = Arrival { record: record.clone(), image };
            Decoded::new(arrival, &Config::default())
        };
        let good = decoded(Image::Fetched(png.clone()));
        assert_eq!((good.outcome.unwrap(), good.record.bytes), (fixtures::picture(), png.clone()));
        let missing = Image::Missing(Unfetched::Malformed(Flaw::NoUri));
        for (image, reason) in [
            (Image::Fetched(png.slice(..40)), "damaged"),
            (Image::Fetched("<html>".into()), "unknown_format"),
            (Image::Fetched("".into()), "empty"),
            (missing, "claim_malformed"),
            // Nobody fetched it: it is no image.
            (Image::Inline, "content_type"),
        ] {
            let bad = decoded(image);
            assert_eq!(bad.outcome.unwrap_err().reason(), reason);
            assert_eq!(bad.record.bytes, "file:///a.png", "{reason}");
        }
    }

    #[test]
    fn pixels_that_do_not_fit_their_size_are_damage() {
        assert!(check_fit(&fixtures::picture(), ImageFormat::Bmp).is_ok());
        for bytes in [0, 768, 100 * 100 * 3 - 1, 100 * 100 * 3 + 1] {
            let pixels = Pixels { width_px: 100, height_px: 100, rgb: vec![0; bytes] };
            let refusal = check_fit(&pixels, ImageFormat::Bmp).unwrap_err();
            assert_eq!(refusal.reason(), "damaged", "{bytes}");
        }
        // Three bytes for each pixel of the largest sides are beyond 64 bits.
        let none = Pixels { width_px: u32::MAX, height_px: u32::MAX, rgb: vec![] };
        assert!(check_fit(&none, ImageFormat::Bmp).is_err());
    }

    #[test]
    fn a_panic_becomes_a_refusal_that_quotes_it() {
        let refusal = catch(|| panic!("index {} is out of bounds", 7)).unwrap_err();
        assert_eq!(refusal.reason(), "panicked");
        assert_eq!(refusal.to_string(), "the decoder panicked: index 7 is out of bounds");
    }

    #[test]
    fn a_cut_file_is_refused_unless_its_pixels_are_complete() {
        for (name, bytes) in every_format() {
            let whole = decoded(&bytes);
            let mut n_passing_bytes = 0;
            for length in 0..bytes.len() {
                match decode(&bytes[..length], None, &Config::default()) {
                    Ok(pixels) => {
                        assert_eq!(pixels, whole, "{name} cut to {length} bytes");
                        n_passing_bytes += 1;
                    }
                    Err(refusal) => assert!(
                        ["empty", "unknown_format", "damaged"].contains(&refusal.reason()),
                        "{name} cut to {length} bytes: {refusal}"
                    ),
                }
            }
            let may_be_missing = match name {
                // The checksum of the last chunk, which holds nothing.
                "png" | "png 16-bit" | "png palette" => 4,
                // The code that ends the pixels, the end of its block, the trailer.
                "gif" => 3,
                // The second frame, which is half of the file.
                "gif animated" => bytes.len() / 2,
                _ => 0,
            };
            assert!(n_passing_bytes <= may_be_missing, "{name}: {n_passing_bytes} bytes");
        }
    }

    /// Files that claim far more pixels than they hold.
    fn bombs() -> Vec<(&'static str, Vec<u8>)> {
        let file = |name| {
            every_format().into_iter().find(|(other, _)| *other == name).expect("a known name").1
        };
        let patched = |name: &'static str, patches: &[(usize, &[u8])]| {
            let mut bytes = file(name);
            for &(at, patch) in patches {
                bytes[at..at + patch.len()].copy_from_slice(patch);
            }
            bytes.resize(30_000, 0);
            (name, bytes)
        };
        // 50,000 squared, 8 bits, RGB.
        let png_size = [0, 0, 0xc3, 0x50, 0, 0, 0xc3, 0x50, 8, 2, 0, 0, 0];
        let mut checksum = flate2::Crc::new();
        checksum.update(b"IHDR");
        checksum.update(&png_size);
        let png_checksum = checksum.sum().to_be_bytes();
        let jpeg = file("jpeg");
        let start_of_frame = jpeg.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
        vec![
            patched("png", &[(16, &png_size), (29, &png_checksum)]),
            patched("jpeg", &[(start_of_frame + 5, &[0xff; 4])]),
            patched("gif", &[(6, &[0xff; 4])]),
            patched("bmp", &[(18, &[0x50, 0xc3, 0, 0, 0x50, 0xc3, 0, 0])]),
            patched("webp lossless", &[(21, &[0xfe, 0xbf, 0xff, 0x0f])]),
            patched("webp lossy", &[(26, &[0xff; 4])]),
            // 65,535 by 60,000 in three strips, so that the directory is consistent.
            patched(
                "tiff big-endian",
                &[(18, &[0xff; 2]), (30, &[0xea, 0x60]), (114, &[0x4e, 0x20])],
            ),
            ("ppm", [b"P6 50000 50000 255\n".as_slice(), &[0; 30_000]].concat()),
        ]
    }

    #[test]
    fn a_bomb_is_refused_by_its_header() {
        for (name, bytes) in bombs() {
            let refusal = refusal(&bytes, &Config::default());
            assert_eq!(refusal.reason(), "too_many_pixels", "{name}: {refusal:?}");
        }
    }

    /// Noise behind the first bytes of a real file, or a real file with some bytes changed.
    fn hostile_bytes() -> impl Strategy<Value = Vec<u8>> {
        let file = prop::sample::select(every_format()).prop_map(|(_, bytes)| bytes);
        let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6);
        let noise = prop::collection::vec(any::<u8>(), 0..400);
        let changed = (file.clone(), changes).prop_map(|(mut bytes, changes)| {
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes
        });
        let continued = (file, 0..60usize, noise)
            .prop_map(|(bytes, kept, noise)| [&bytes[..kept], &noise].concat());
        prop_oneof![changed, continued]
    }

    /// The most address space this process ever had.
    #[cfg(target_os = "linux")]
    fn peak_bytes() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().trim().parse::<u64>().unwrap() * 1024
    }

    #[cfg(target_os = "linux")]
    fn decode_hostile_bytes() {
        let before = peak_bytes();
        for (_, bytes) in bombs() {
            assert!(decode(&bytes, None, &Config::default()).is_err());
        }
        let config = Config { max_pixels: 1_000_000, ..Config::default() };
        let mut runner = TestRunner::new(ProptestConfig::with_cases(5_000));
        let property = |bytes: Vec<u8>| {
            match decode(&bytes, None, &config) {
                Ok(pixels) => {
                    let n_pixels = pixels.width_px as usize * pixels.height_px as usize;
                    prop_assert_eq!(pixels.rgb.len(), n_pixels * 3);
                    prop_assert!(pixels.width_px.max(pixels.height_px) <= config.working_side_px);
                }
                Err(refusal) => prop_assert!(Refusal::REASONS.contains(&refusal.reason())),
            }
            Ok(())
        };
        runner.run(&hostile_bytes(), property).unwrap();
        // The smallest of the bombs would take 0.8 GB; a million pixels may take 32 MB, and the
        // heap keeps some of what was freed.
        let grown = peak_bytes() - before;
        assert!(grown < 256 * 1024 * 1024, "the address space grew by {grown} bytes");
    }

    /// Runs in a process of its own, so that no other test's memory is measured.
    #[test]
    #[cfg(target_os = "linux")]
    fn hostile_bytes_take_little_memory_and_never_panic() {
        const IS_CHILD: &str = "SELFSTREAM_TEST_HOSTILE_BYTES";
        if std::env::var_os(IS_CHILD).is_some() {
            return decode_hostile_bytes();
        }
        let name = "decode::tests::hostile_bytes_take_little_memory_and_never_panic";
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(IS_CHILD, "1")
            .output()
            .unwrap();
        let (stdout, stderr) =
            (String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
        assert!(child.status.success(), "{stdout}{stderr}");
        assert!(stdout.contains("1 passed"), "{stdout}{stderr}");
    }

    #[test]
    fn real_images_decode() {
        let Some(folder) = std::env::var_os("SELFSTREAM_TEST_IMAGES") else {
            println!("skipped: SELFSTREAM_TEST_IMAGES is not set");
            return;
        };
        let path = std::path::Path::new(&folder).join("pacs128-test.tar");
        let mut archive = tar::Archive::new(std::fs::File::open(path).unwrap());
        let mut n_images = 0;
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            if entry.path().unwrap().extension().is_some_and(|extension| extension == "jpg") {
                let mut bytes = Vec::new();
                std::io::Read::read_to_end(&mut entry, &mut bytes).unwrap();
                let pixels = decoded(&bytes);
                assert_eq!((pixels.width_px, pixels.height_px), (128, 128));
                // No image is all of one colour, least of all of a decoder's filling.
                assert!(pixels.rgb.iter().any(|&sample| sample != pixels.rgb[0]));
                n_images += 1;
            }
        }
        assert_eq!(n_images, 695);
    }
}
