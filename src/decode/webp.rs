//! A check of WebP's chunks before the decoder sees them.
//!
//! The decoder believes two numbers that nothing bounds: a chunk's length and the size of the
//! VP8 frame inside an extended file, which may be far larger than the canvas.

use super::{Config, Refusal, limits};
use image::ImageFormat;

/// What is wrong with a file's chunks.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("chunk {name:?} claims {claimed_bytes} bytes, {left_bytes} are left")]
struct Overrun {
    name: String,
    claimed_bytes: usize,
    left_bytes: usize,
}

/// Checks that every chunk lies within the file and that no frame exceeds the limits.
///
/// The decoder goes on behind the end that the file claims, by as much as its first chunk claims. What
/// trails a file is no damage; what the decoder would take for a chunk of it is checked like one.
pub(super) fn check(bytes: &[u8], config: &Config) -> Result<(), Refusal> {
    let Some(riff) = Chunk::first(bytes) else {
        let name = String::from_utf8_lossy(&bytes[..bytes.len().min(4)]).into_owned();
        let cut = Overrun { name, claimed_bytes: 8, left_bytes: bytes.len() };
        return Err(Refusal::damaged(ImageFormat::WebP, cut));
    };
    riff.check_length(riff.after.len())?;
    let beyond_bytes = riff.after.len() - riff.claimed_bytes;
    // "WEBP" comes before the first chunk.
    let rest = riff.after.get(4..).unwrap_or_default();
    Chunks { rest, beyond_bytes }.check(config, false)
}

struct Chunks<'a> {
    rest: &'a [u8],
    /// How much of `rest` is behind the end of what these are chunks of.
    beyond_bytes: usize,
}

impl Chunks<'_> {
    /// Checks what is left of a file, or of a frame of it.
    fn check(mut self, config: &Config, is_frame: bool) -> Result<(), Refusal> {
        let mut is_behind_alpha = false;
        // Less than a header is padding.
        while let Some(chunk) = Chunk::first(self.rest) {
            let after_bytes = chunk.after.len();
            match after_bytes.checked_sub(self.beyond_bytes) {
                Some(left_bytes) => chunk.check_length(left_bytes)?,
                None if chunk.is_known() => chunk.check_length(after_bytes)?,
                None => {}
            }
            match &chunk.name {
                b"VP8 " => check_frame(chunk.body(), config)?,
                // The decoder takes it for one whatever its name.
                _ if is_frame && is_behind_alpha => check_frame(chunk.body(), config)?,
                // A frame of an animation: 16 bytes about it, then chunks of its own. By the format none
                // is within another, and the decoder reads none there; to follow them down would take a
                // stack as deep as the sender likes.
                b"ANMF" if !is_frame => {
                    let rest = chunk.body().get(16..).unwrap_or_default();
                    Chunks { rest, beyond_bytes: 0 }.check(config, true)?;
                }
                _ => {}
            }
            is_behind_alpha = chunk.name == *b"ALPH";
            self.rest = chunk.behind();
        }
        Ok(())
    }
}

struct Chunk<'a> {
    name: [u8; 4],
    claimed_bytes: usize,
    /// What follows the header, whether or not it belongs to the chunk.
    after: &'a [u8],
}

impl<'a> Chunk<'a> {
    /// The chunk that `bytes` begin with: name, length, body, and a byte of padding if the length is odd.
    fn first(bytes: &'a [u8]) -> Option<Self> {
        let (&[n0, n1, n2, n3, l0, l1, l2, l3], after) = bytes.split_first_chunk()?;
        let length = u32::from_le_bytes([l0, l1, l2, l3]);
        let claimed_bytes = usize::try_from(length).unwrap_or(usize::MAX);
        Some(Self { name: [n0, n1, n2, n3], claimed_bytes, after })
    }

    fn check_length(&self, left_bytes: usize) -> Result<(), Refusal> {
        if self.claimed_bytes <= left_bytes {
            return Ok(());
        }
        let name = String::from_utf8_lossy(&self.name).into_owned();
        let overrun = Overrun { name, claimed_bytes: self.claimed_bytes, left_bytes };
        Err(Refusal::damaged(ImageFormat::WebP, overrun))
    }

    /// Whether the decoder looks into chunks of this name.
    fn is_known(&self) -> bool {
        [b"VP8 ", b"VP8L", b"VP8X", b"ANIM", b"ANMF", b"ALPH", b"ICCP", b"EXIF", b"XMP "]
            .contains(&&self.name)
    }

    fn body(&self) -> &'a [u8] {
        &self.after[..self.claimed_bytes.min(self.after.len())]
    }

    /// What comes behind it. Some writers leave the padding out at the very end.
    fn behind(&self) -> &'a [u8] {
        let padded_bytes = self.claimed_bytes.saturating_add(self.claimed_bytes % 2);
        self.after.get(padded_bytes..).unwrap_or_default()
    }
}

/// The size in the header of a VP8 key frame (RFC 6386, section 9.1): after a tag of 3 bytes and a
/// start code of 3, width and height of 14 bits each.
fn check_frame(body: &[u8], config: &Config) -> Result<(), Refusal> {
    let Some(&[w0, w1, h0, h1]) = body.get(6..10) else {
        return Ok(()); // The decoder reports it as cut short.
    };
    let width_px = u16::from_le_bytes([w0, w1]) & 0x3fff;
    let height_px = u16::from_le_bytes([h0, h1]) & 0x3fff;
    // An animation's frames may be small, its canvas may not: only the upper limit holds here.
    let config = Config { min_side_px: 0, ..config.clone() };
    limits::check_size(width_px.into(), height_px.into(), &config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::{decode, fixtures};

    fn chunk(name: &[u8; 4], body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len()).unwrap().to_le_bytes();
        let padding = vec![0; body.len() % 2];
        [&name[..], &length, body, &padding].concat()
    }

    fn vp8(width_px: u16, height_px: u16) -> Vec<u8> {
        let (w, h) = (width_px.to_le_bytes(), height_px.to_le_bytes());
        chunk(b"VP8 ", &[&[0, 0, 0, 0x9d, 1, 0x2a][..], &w, &h, &[0; 5]].concat())
    }

    fn riff(chunks: &[Vec<u8>]) -> Vec<u8> {
        chunk(b"RIFF", &[&b"WEBP"[..], &chunks.concat()].concat())
    }

    #[test]
    fn a_frame_larger_than_the_canvas_claims_is_refused_wherever_it_hides() {
        let config = Config { max_pixels: 10_000, ..Config::default() };
        let canvas = chunk(b"VP8X", &[0; 10]);
        assert!(check(&riff(&[canvas.clone(), vp8(100, 100)]), &config).is_ok());
        let plain = riff(&[canvas.clone(), vp8(16_383, 16_383)]);
        let nested = chunk(b"ANMF", &[vec![0; 16], vp8(101, 100)].concat());
        for bytes in [plain, riff(&[canvas, nested])] {
            assert_eq!(check(&bytes, &config).unwrap_err().reason(), "too_many_pixels");
        }
    }

    #[test]
    fn a_frame_behind_the_end_that_the_file_claims_is_checked_too() {
        let config = Config { max_pixels: 10_000, ..Config::default() };
        let canvas = chunk(b"VP8X", &[0; 10]);
        let empty = riff(std::slice::from_ref(&canvas));
        for (width_px, is_within) in [(100, true), (101, false)] {
            let frame = vp8(width_px, 100);
            let animated = chunk(b"ANMF", &[&[0; 16][..], &frame].concat());
            let (behind, animated) = ([&*empty, &frame].concat(), [&*empty, &animated].concat());
            // The end lies within the frame's header.
            let (name, rest) = frame.split_at(4);
            let across = [riff(&[canvas.clone(), name.to_vec()]), rest.to_vec()].concat();
            for bytes in [behind, animated, across] {
                match check(&bytes, &config) {
                    Ok(()) => assert!(is_within),
                    Err(refusal) => {
                        assert_eq!((refusal.reason(), is_within), ("too_many_pixels", false));
                    }
                }
            }
        }
        // What the decoder would look into must be there.
        let cut = [&*empty, &b"EXIF\xff\xff\xff\xff"[..]].concat();
        assert_eq!(check(&cut, &config).unwrap_err().reason(), "damaged");
    }

    #[test]
    fn what_trails_a_file_is_no_damage() {
        let files = fixtures::every_format().into_iter();
        let mut n_files = 0;
        for (name, file) in files.filter(|(name, _)| name.starts_with("webp")) {
            let whole = decode(&file, None, &Config::default()).unwrap();
            for trailer in [&[0; 1][..], &[0; 20], &[0xff; 20], b"a word on where it was made"] {
                let trailed = [&*file, trailer].concat();
                let pixels = decode(&trailed, None, &Config::default()).unwrap();
                assert!(pixels == whole, "{name} and {trailer:?}");
            }
            n_files += 1;
        }
        assert!(n_files > 4, "{n_files}");
    }

    #[test]
    fn what_follows_alpha_in_a_frame_is_a_frame_whatever_its_name() {
        let config = Config { max_pixels: 10_000, ..Config::default() };
        let animated = |chunks: &[Vec<u8>]| {
            let frame = chunk(b"ANMF", &[vec![0; 16], chunks.concat()].concat());
            check(&riff(&[chunk(b"VP8X", &[0; 10]), frame]), &config)
        };
        let (alpha, other) = (chunk(b"ALPH", &[0; 2]), chunk(b"EXIF", &[0; 2]));
        let disguised = |width_px| [&b"junk"[..], &vp8(width_px, 100)[4..]].concat();
        assert!(animated(&[alpha.clone(), disguised(100)]).is_ok());
        assert!(animated(&[other, disguised(101)]).is_ok());
        let refusal = animated(&[alpha, disguised(101)]).unwrap_err();
        assert_eq!(refusal.reason(), "too_many_pixels");
    }

    /// A megabyte of frames, each within the one before: a thread's stack would not do.
    #[test]
    fn frames_within_frames_are_not_followed_down() {
        const FRAMES: usize = 1_000_000 / 24;
        let mut frames = vec![];
        for left in (0..FRAMES).rev() {
            frames.extend(b"ANMF");
            frames.extend(u32::try_from(16 + 24 * left).unwrap().to_le_bytes());
            frames.extend([0; 16]);
        }
        let bytes = riff(&[chunk(b"VP8X", &[0; 10]), frames]);
        assert!(check(&bytes, &Config::default()).is_ok());
    }

    #[test]
    fn a_chunk_that_leaves_the_file_is_damage() {
        let whole = riff(&[vp8(9, 9), chunk(b"EXIF", &[1, 2, 3])]);
        let config = Config::default();
        assert!(check(&whole, &config).is_ok());
        for length in 0..whole.len() - 1 {
            assert_eq!(check(&whole[..length], &config).unwrap_err().reason(), "damaged");
        }
        let mut claims_4_gib = whole.clone();
        let length_at = whole.len() - 8;
        claims_4_gib[length_at..length_at + 4].fill(0xff);
        assert_eq!(check(&claims_4_gib, &config).unwrap_err().reason(), "damaged");
    }
}
