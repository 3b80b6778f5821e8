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
pub(super) fn check(bytes: &[u8], config: &Config) -> Result<(), Refusal> {
    let damaged = |overrun| Refusal::damaged(ImageFormat::WebP, overrun);
    let (riff, _) = next_chunk(bytes).map_err(damaged)?;
    // "WEBP" comes before the first chunk.
    let mut chunks = Chunks { rest: riff.body.get(4..).unwrap_or_default() };
    chunks.check(config, false)
}

struct Chunks<'a> {
    rest: &'a [u8],
}

impl Chunks<'_> {
    /// Checks what is left of a file, or of a frame of it.
    fn check(&mut self, config: &Config, is_frame: bool) -> Result<(), Refusal> {
        // Less than a header is padding.
        while self.rest.len() >= 8 {
            let (chunk, rest) =
                next_chunk(self.rest).map_err(|o| Refusal::damaged(ImageFormat::WebP, o))?;
            match &chunk.name {
                b"VP8 " => check_frame(chunk.body, config)?,
                // A frame of an animation: 16 bytes about it, then chunks of its own. By the format none
                // is within another, and the decoder reads none there; to follow them down would take a
                // stack as deep as the sender likes.
                b"ANMF" if !is_frame => {
                    let rest = chunk.body.get(16..).unwrap_or_default();
                    Chunks { rest }.check(config, true)?;
                }
                _ => {}
            }
            self.rest = rest;
        }
        Ok(())
    }
}

struct Chunk<'a> {
    name: [u8; 4],
    body: &'a [u8],
}

/// Splits the first chunk off: name, length, body, and a byte of padding if the length is odd.
fn next_chunk(bytes: &[u8]) -> Result<(Chunk<'_>, &[u8]), Overrun> {
    let overrun = |name: &[u8], claimed_bytes, left_bytes| Overrun {
        name: String::from_utf8_lossy(name).into_owned(),
        claimed_bytes,
        left_bytes,
    };
    let Some((&[n0, n1, n2, n3, l0, l1, l2, l3], rest)) = bytes.split_first_chunk() else {
        return Err(overrun(&bytes[..bytes.len().min(4)], 8, bytes.len()));
    };
    let name = [n0, n1, n2, n3];
    let length = usize::try_from(u32::from_le_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
    let (body, rest) =
        rest.split_at_checked(length).ok_or_else(|| overrun(&name, length, rest.len()))?;
    // Some writers leave the padding out at the very end.
    let rest = rest.get(length % 2..).unwrap_or_default();
    Ok((Chunk { name, body }, rest))
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
