//! A message's bytes. Law: they become an image within the limits, or are refused with a reason; whether or not
//! a JPEG may be reduced while it is decoded.

use selfstream::decode::fingerprint::fingerprint;
use selfstream::decode::{Config, Enough, Refusal, decode};

/// Holds `bytes` to the law; says whether they are an image.
pub(crate) fn check(bytes: &[u8]) -> bool {
    let whole = Config {
        max_bytes: 1 << 20,
        max_pixels: 1 << 20,
        working_side_px: 256,
        ..Config::default()
    };
    let enough = Some(Enough { shorter_px: 16, pixels: 400 });
    let reduced = Config { enough, ..whole.clone() };
    let is_taken = is_image(bytes, &whole);
    is_image(bytes, &reduced);
    is_taken
}

fn is_image(bytes: &[u8], config: &Config) -> bool {
    match decode(bytes, None, config) {
        Ok(pixels) => {
            let (width, height) = (pixels.width_px as usize, pixels.height_px as usize);
            assert_eq!(pixels.rgb.len(), width * height * 3);
            assert!(width.max(height) <= config.working_side_px as usize, "{width} x {height}");
            assert!(width.min(height) >= 1, "{width} x {height}");
            fingerprint(&pixels);
            true
        }
        Err(refusal) => {
            assert!(Refusal::REASONS.contains(&refusal.reason()));
            assert!(!refusal.to_string().is_empty());
            false
        }
    }
}
