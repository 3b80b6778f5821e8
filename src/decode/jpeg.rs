//! JPEG: by libjpeg-turbo ([`turbo`]), at reduced scale where that is enough, and whatever it does not
//! take by zune-jpeg in strict mode.
//!
//! An image is reduced by 2, 4 or 8 where that loses nothing that it is decoded for. That is, where
//! its longer side stays at or above the working side, which it is shrunk to afterwards anyway; or
//! where the smallest crop of any view stays at least as large as the view
//! ([`super::Enough`]): a crop that covers a fraction f of a side of s pixels has f s / 8 pixels at
//! an eighth of the size.
//!
//! The `image` crate uses the same decoder in its lenient mode, which fills what is missing or
//! corrupt with grey; an encoder would learn that grey. Strict mode refuses corrupt entropy data,
//! and the walk over the segments below refuses a file that ends before its end-of-image marker,
//! which strict mode lets pass when the cut falls into the last rows. What is not noticed is a
//! file that was cut and then given an end marker again: the decoder takes missing entropy-coded
//! data before a marker for zeros.
//!
//! What a file takes follows from its first frame header, whose size is checked. So a decoder that
//! reads some marker otherwise, and finds another frame, does not decode it. A scan takes its time
//! whether it has data or not; how many there may be is bounded for each decoder.
//!
//! Of 2375 JPEGs (695 of PACS and 1680 made by Pillow 13: baseline and progressive, every common
//! subsampling, restart intervals, grey, CMYK, RGB) strict mode accepts every one and decodes it
//! to the same pixels as lenient mode; of 195 cuts of five of them it accepts none.
//!
//! CMYK and YCCK are taken to be stored inverted, as Adobe's applications and every common
//! decoder do, whether or not an Adobe segment is there.

mod turbo;

use super::{Config, Pixels, Refusal, limits};
use image::{ImageFormat, metadata::Orientation};
use turbo::Reduction;
use zune_jpeg::zune_core::{bytestream::ZCursor, colorspace::ColorSpace, options::DecoderOptions};
use zune_jpeg::{JpegDecoder, errors::DecodeErrors};

/// The most scan headers of a file that zune-jpeg decodes. It stops by itself after 100 scans, but only
/// in progressive files. Files have some tens at most; of other data, as a film behind the picture, 64 KiB
/// have one by chance.
const MOST_SCANS: usize = 1000;
const MOST_SCANS_BYTES: usize = 16 << 10;

/// Decodes `bytes`; the orientation is still to be applied.
pub(super) fn decode(bytes: &[u8], config: &Config) -> Result<(Pixels, Orientation), Refusal> {
    let frame = frame(bytes).map_err(|flaw| Refusal::damaged(ImageFormat::Jpeg, flaw))?;
    limits::check_size(frame.width_px.into(), frame.height_px.into(), config)?;
    frame.check_supported().map_err(|lack| Refusal::unsupported(ImageFormat::Jpeg, lack))?;

    let orientation = exif(bytes).and_then(Orientation::from_exif_chunk);
    let orientation = orientation.unwrap_or(Orientation::NoTransforms);
    let reduction = frame.reduction(config);
    match turbo::decode(bytes, &frame, reduction) {
        Some(pixels) => Ok((pixels, orientation)),
        None => Ok((decode_any(bytes, &frame)?, orientation)),
    }
}

/// Decodes `bytes` by zune-jpeg, at full scale.
fn decode_any(bytes: &[u8], frame: &Frame) -> Result<Pixels, Refusal> {
    let damaged = |flaw: Flaw| Refusal::damaged(ImageFormat::Jpeg, flaw);
    check_scans(bytes).map_err(damaged)?;
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(frame.width_px.into())
        .set_max_height(frame.height_px.into())
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(refuse)?;
    let (width_px, height_px) = decoder.dimensions().unwrap_or_default();
    if [width_px, height_px] != [frame.width_px, frame.height_px].map(usize::from) {
        return Err(damaged(Flaw::OtherFrame { width_px, height_px }));
    }
    let rgb = decoder.decode().map_err(refuse)?;
    Ok(Pixels { width_px: frame.width_px.into(), height_px: frame.height_px.into(), rgb })
}

fn refuse(error: DecodeErrors) -> Refusal {
    match error {
        DecodeErrors::Unsupported(_) => Refusal::unsupported(ImageFormat::Jpeg, error),
        _ => Refusal::damaged(ImageFormat::Jpeg, error),
    }
}

/// What is wrong with a file's segments.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Flaw {
    #[error("the file ends before its end-of-image marker")]
    NoEnd,
    #[error("there is no frame header")]
    NoFrame,
    #[error("the frame header is {length} bytes long, it must be at least 6")]
    ShortFrame { length: usize },
    #[error("the decoder finds {width_px} x {height_px} pixels, the first frame header has others")]
    OtherFrame { width_px: usize, height_px: usize },
    #[error("there are {n_scans} scan headers, allowed are {most}")]
    Scans { n_scans: usize, most: usize },
}

/// A variant of JPEG that the decoder lacks.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Lack {
    #[error(
        "the coding process is SOF{process}, supported are 0 to 2: baseline, extended, progressive"
    )]
    Process { process: u8 },
    #[error("samples have {bits} bits, supported are 8")]
    Precision { bits: u8 },
    #[error("there are {n_components} components, supported are 1, 3 and 4")]
    Components { n_components: u8 },
}

/// The frame header (ITU-T T.81, B.2.2).
#[derive(Debug, PartialEq, Eq)]
struct Frame {
    /// Which of the SOF markers it was.
    process: u8,
    bits: u8,
    height_px: u16,
    width_px: u16,
    n_components: u8,
}

impl Frame {
    fn check_supported(&self) -> Result<(), Lack> {
        match *self {
            Self { process: process @ 3.., .. } => Err(Lack::Process { process }),
            Self { bits, .. } if bits != 8 => Err(Lack::Precision { bits }),
            Self { n_components: 1 | 3 | 4, .. } => Ok(()),
            Self { n_components, .. } => Err(Lack::Components { n_components }),
        }
    }

    /// The greatest reduction that leaves the working side, or what is enough for the views.
    fn reduction(&self, config: &Config) -> Reduction {
        let leaves_enough = |by: &Reduction| {
            let [width_px, height_px] =
                [self.width_px, self.height_px].map(|px| u32::from(px).div_ceil(by.divisor()));
            width_px.max(height_px) >= config.working_side_px
                || config.enough.is_some_and(|enough| enough.is_met(width_px, height_px))
        };
        Reduction::ALL.into_iter().rev().find(leaves_enough).unwrap_or(Reduction::None)
    }
}

/// Walks the markers of `bytes` to the end-of-image marker and returns the first frame header.
/// What follows the end (thumbnails, maker notes) is not looked at.
fn frame(bytes: &[u8]) -> Result<Frame, Flaw> {
    const START_OF_IMAGE: u8 = 0xd8;
    const END_OF_IMAGE: u8 = 0xd9;
    const TEMPORARY: u8 = 0x01;

    let mut frame = None;
    let mut rest = bytes;
    loop {
        let marker;
        (marker, rest) = next_marker(rest).ok_or(Flaw::NoEnd)?;
        match marker {
            END_OF_IMAGE => return frame.ok_or(Flaw::NoFrame),
            START_OF_IMAGE | TEMPORARY => continue,
            _ => {}
        }
        let length = rest.first_chunk().map(|&length| usize::from(u16::from_be_bytes(length)));
        let (segment, after) =
            length.and_then(|length| rest.split_at_checked(length)).ok_or(Flaw::NoEnd)?;
        if frame.is_none() && is_start_of_frame(marker) {
            frame = Some(parse_frame(marker, segment.get(2..).unwrap_or_default())?);
        }
        rest = after;
    }
}

/// Counts scan headers wherever they stand, since decoders do not agree on what belongs to a segment: none
/// sees more scans than that.
fn check_scans(bytes: &[u8]) -> Result<(), Flaw> {
    const START_OF_SCAN: [u8; 2] = [0xff, 0xda];

    let n_scans = bytes.windows(2).filter(|pair| *pair == START_OF_SCAN).count();
    let most = MOST_SCANS.max(bytes.len() / MOST_SCANS_BYTES);
    if n_scans > most { Err(Flaw::Scans { n_scans, most }) } else { Ok(()) }
}

/// What the last Exif segment before the scan holds.
fn exif(bytes: &[u8]) -> Option<&[u8]> {
    const START_OF_SCAN: u8 = 0xda;
    const APPLICATION_1: u8 = 0xe1;

    let mut exif = None;
    let mut rest = bytes.get(2..)?;
    loop {
        let marker;
        (marker, rest) = next_marker(rest)?;
        if marker == START_OF_SCAN {
            return exif;
        }
        let length = usize::from(u16::from_be_bytes(*rest.first_chunk()?));
        let (segment, after) = rest.split_at_checked(length)?;
        if marker == APPLICATION_1 {
            exif = segment.get(2..)?.strip_prefix(b"Exif\0\0").or(exif);
        }
        rest = after;
    }
}

/// The next marker that is neither fill, nor a stuffed 0xff of the entropy-coded data, nor a
/// restart marker within it; and what follows.
fn next_marker(mut rest: &[u8]) -> Option<(u8, &[u8])> {
    loop {
        let start = find_marker_byte(rest)?;
        let (&code, after) = rest[start + 1..].split_first()?;
        match code {
            // The second 0xff may itself begin the marker.
            0xff => rest = &rest[start + 1..],
            0x00 | 0xd0..=0xd7 => rest = after,
            _ => return Some((code, after)),
        }
    }
}

/// Where the first byte of 255 is: eight bytes at a time, since entropy-coded data has few.
fn find_marker_byte(bytes: &[u8]) -> Option<usize> {
    let (words, _) = bytes.as_chunks::<8>();
    // A byte of the complement is zero, and only then borrows from its highest bit.
    let has_marker = |word: &[u8; 8]| {
        let complement = !u64::from_le_bytes(*word);
        let borrowed = complement.wrapping_sub(0x0101_0101_0101_0101);
        borrowed & !complement & 0x8080_8080_8080_8080 != 0
    };
    let start = 8 * words.iter().position(has_marker).unwrap_or(words.len());
    bytes[start..].iter().position(|&byte| byte == 0xff).map(|at| start + at)
}

/// 0xc4, 0xc8 and 0xcc lie among the frame markers but are DHT, JPG and DAC.
fn is_start_of_frame(marker: u8) -> bool {
    matches!(marker, 0xc0..=0xcf) && !matches!(marker, 0xc4 | 0xc8 | 0xcc)
}

fn parse_frame(marker: u8, segment: &[u8]) -> Result<Frame, Flaw> {
    let &[bits, h1, h0, w1, w0, n_components, ..] = segment else {
        return Err(Flaw::ShortFrame { length: segment.len() });
    };
    Ok(Frame {
        process: marker - 0xc0,
        bits,
        height_px: u16::from_be_bytes([h1, h0]),
        width_px: u16::from_be_bytes([w1, w0]),
        n_components,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::{Enough, fixtures};
    use proptest::prelude::*;
    use std::error::Error;

    const FRAME: [u8; 12] = [0xff, 0xc0, 0, 11, 8, 0, 9, 1, 2, 1, 0, 0];

    fn file(parts: &[&[u8]]) -> Vec<u8> {
        [&[&[0xff, 0xd8][..]], parts].concat().concat()
    }

    #[test]
    fn the_frame_is_found_behind_other_segments_and_fill() {
        let app_with_false_end = [0xff, 0xe1, 0, 6, 0xff, 0xd9, 0xff, 0xd9];
        let tables = [0xff, 0xff, 0xff, 0xc4, 0, 3, 7];
        let scan = [0xff, 0xda, 0, 2, 1, 0xff, 0, 2, 0xff, 0xd3, 4, 0xff, 0xd9, 9, 9];
        let bytes = file(&[&app_with_false_end, &tables, &FRAME, &scan]);
        let expected = Frame { process: 0, bits: 8, height_px: 9, width_px: 258, n_components: 1 };
        assert_eq!(frame(&bytes), Ok(expected));
        // The law of truncation: every prefix that lacks a byte of the end marker is refused.
        for length in 0..bytes.len() - 2 {
            assert_eq!(frame(&bytes[..length]), Err(Flaw::NoEnd), "{length}");
        }
    }

    #[test]
    fn a_file_without_a_whole_frame_is_damaged() {
        assert_eq!(frame(&file(&[&[0xff, 0xd9]])), Err(Flaw::NoFrame));
        let short = [0xff, 0xc0, 0, 5, 8, 0, 9, 0xff, 0xd9];
        assert_eq!(frame(&file(&[&short])), Err(Flaw::ShortFrame { length: 3 }));
        let no_length = [0xff, 0xc0, 0, 0, 8, 0, 9, 0xff, 0xd9];
        assert_eq!(frame(&file(&[&no_length])), Err(Flaw::ShortFrame { length: 0 }));
    }

    /// Why `bytes` are damaged.
    fn damage(bytes: &[u8]) -> String {
        let refusal = decode(bytes, &Config::default()).unwrap_err();
        assert_eq!(refusal.reason(), "damaged");
        refusal.source().unwrap().to_string()
    }

    /// Without a check the pixels would be fewer than their size says.
    #[test]
    fn the_frame_that_is_decoded_is_the_one_whose_size_is_checked() {
        let whole = fixtures::jpeg(fixtures::image(&fixtures::picture()), &[]);
        assert!(decode(&whole, &Config::default()).is_ok());
        // A restart marker has no length; who takes it for a segment of 12 bytes passes over the header of a
        // frame of 100 x 100 pixels.
        let hidden = [0xff, 0xd0, 0, 12, 0xff, 0xc0, 0, 8, 8, 0, 100, 0, 100, 3];
        let bytes = file(&[&hidden, &whole[2..]]);
        assert_eq!(frame(&bytes).map(|frame| (frame.width_px, frame.height_px)), Ok((100, 100)));
        let damage = damage(&bytes);
        assert!(damage.contains("finds 16 x 12 pixels"), "{damage}");
    }

    #[test]
    fn scans_without_end_are_refused_by_their_number() {
        let whole = decode(&fixtures::jpeg_of_scans(&[1, 2, 3]), &Config::default());
        assert_eq!(whole.unwrap().0.rgb, vec![128; 16 * 16 * 3]);
        let sequential = fixtures::jpeg_of_scans(&[1; MOST_SCANS + 1]);
        let at = sequential.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
        let mut progressive = sequential.clone();
        progressive[at + 1] = 0xc2;
        // Scan headers that one decoder takes for the content of a segment are scans to another.
        let scans = [0xff_u8, 0xda].repeat(32_766);
        let comment = [&[0xff_u8, 0xfe, 0xff, 0xff][..], &scans, &[0]].concat();
        let cmyk = fixtures::stored!("cmyk.jpg");
        let hidden = file(&[&comment, &cmyk[2..]]);
        for bytes in [sequential, progressive, hidden] {
            let damage = damage(&bytes);
            assert!(damage.contains("scan headers, allowed are 1000"), "{damage}");
        }
    }

    fn frame_of(width_px: u16, height_px: u16) -> Frame {
        Frame { process: 0, bits: 8, height_px, width_px, n_components: 3 }
    }

    proptest! {
        #[test]
        fn a_reduction_leaves_the_working_side_or_what_is_enough_and_no_greater_one_does(
            width_px in 1..6000_u16,
            height_px in 1..6000_u16,
            working_side_px in 8..1000_u32,
            shorter_px in 1..400_u32,
            pixels in 1..200_000_u64,
            is_set: bool,
        ) {
            let enough = is_set.then_some(Enough { shorter_px, pixels });
            let config = Config { working_side_px, enough, ..Config::default() };
            let reduction = frame_of(width_px, height_px).reduction(&config);
            let is_right = |by: u32| {
                let (width_px, height_px) =
                    (u32::from(width_px).div_ceil(by), u32::from(height_px).div_ceil(by));
                width_px.max(height_px) >= working_side_px
                    || is_set && width_px.min(height_px) >= shorter_px
                        && u64::from(width_px * height_px) >= pixels
            };
            let by = reduction.divisor();
            prop_assert!(by == 1 || is_right(by));
            prop_assert!(by == 8 || !is_right(2 * by));
        }
    }

    #[test]
    fn what_the_decoder_lacks_is_named() {
        let with = |process, bits, n_components| {
            Frame { process, bits, height_px: 9, width_px: 9, n_components }.check_supported()
        };
        assert_eq!(with(2, 8, 3), Ok(()));
        assert_eq!(with(9, 8, 3), Err(Lack::Process { process: 9 }));
        assert_eq!(with(1, 12, 3), Err(Lack::Precision { bits: 12 }));
        assert_eq!(with(0, 8, 2), Err(Lack::Components { n_components: 2 }));
    }
}
