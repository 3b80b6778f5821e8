//! The limits an image must keep before a pixel of it is decoded.

use super::{Config, Refusal};
use image::Limits;

/// What decoders may allocate per pixel of `max_pixels`: any image of 16 bits a channel fits,
/// even in TIFF, whose decoder holds the pixels twice (2 x 4 channels x 2 bytes).
const MAX_ALLOC_BYTES_PER_PIXEL: u64 = 16;
/// What decoders may allocate besides pixels (rows, tables, profiles). A guess.
const MAX_ALLOC_BYTES_BESIDES: u64 = 16 * 1024 * 1024;
/// Decoders may read so many times what they may allocate: TIFF's reads 32 KiB anew for each deflated
/// strip, and some files have a strip for each row. A guess.
const MAX_READS_OF_ALLOC: u64 = 4;

/// The number of bytes an image's decoder may allocate.
pub(super) fn max_alloc_bytes(config: &Config) -> u64 {
    config.max_pixels * MAX_ALLOC_BYTES_PER_PIXEL + MAX_ALLOC_BYTES_BESIDES
}

/// The number of bytes that the decoder of a file may read; what it reads again counts again.
pub(super) fn max_read_bytes(file_bytes: usize, config: &Config) -> u64 {
    file_bytes as u64 + MAX_READS_OF_ALLOC * max_alloc_bytes(config)
}

/// The same as [`max_alloc_bytes`] for the `image` crate.
pub(super) fn image_limits(config: &Config) -> Limits {
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(max_alloc_bytes(config));
    limits
}

/// Checks the size that an image's header claims.
pub(super) fn check_size(width_px: u32, height_px: u32, config: &Config) -> Result<(), Refusal> {
    let (max_pixels, min_side_px) = (config.max_pixels, config.min_side_px);
    if u64::from(width_px) * u64::from(height_px) > max_pixels {
        return Err(Refusal::TooManyPixels { width_px, height_px, max_pixels });
    }
    if width_px.min(height_px) < min_side_px {
        return Err(Refusal::TooSmall { width_px, height_px, min_side_px });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_inclusive_and_large_sides_do_not_overflow() {
        let config = Config { max_pixels: 800, min_side_px: 8, ..Config::default() };
        let reason = |w, h| check_size(w, h, &config).map_err(|refusal| refusal.reason());
        assert_eq!(reason(100, 8), Ok(()));
        assert_eq!(reason(8, 100), Ok(()));
        assert_eq!(reason(89, 9), Err("too_many_pixels"));
        assert_eq!(reason(u32::MAX, u32::MAX), Err("too_many_pixels"));
        assert_eq!(reason(7, 100), Err("too_small"));
        assert_eq!(reason(0, 0), Err("too_small"));
    }
}
