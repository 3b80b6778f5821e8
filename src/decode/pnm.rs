//! A check of plain (textual) PNM before the decoder sees it.

use super::Refusal;
use image::ImageFormat;

/// A number that may have lost digits.
#[derive(Debug, thiserror::Error)]
#[error("the file ends within a number, white space must follow the last one")]
struct OpenNumber;

/// Refuses plain PGM and PPM that end in a digit: "12" may be what is left of "128". The format
/// asks for white space after each sample, the last included. Plain PBM has one-digit samples, and
/// the binary kinds have a known length, so those cannot lose anything unnoticed.
pub(super) fn check(bytes: &[u8]) -> Result<(), Refusal> {
    let has_long_numbers = bytes.starts_with(b"P2") || bytes.starts_with(b"P3");
    if has_long_numbers && bytes.last().is_some_and(u8::is_ascii_digit) {
        return Err(Refusal::damaged(ImageFormat::Pnm, OpenNumber));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_kinds_with_long_numbers_need_the_last_white_space() {
        assert_eq!(check(b"P2 1 1 255 128").unwrap_err().reason(), "damaged");
        assert_eq!(check(b"P3 1 1 255 1 2 3").unwrap_err().reason(), "damaged");
        for whole in [&b"P2 1 1 255 128\n"[..], b"P1 1 1 0", b"P5 1 1 255 8"] {
            assert!(check(whole).is_ok());
        }
    }
}
