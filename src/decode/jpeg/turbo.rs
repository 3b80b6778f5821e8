//! JPEG by libjpeg-turbo, at full or reduced scale.
//!
//! It takes sequential files of grey or three components, which nearly all are, and of those the ones
//! that it has nothing to say against: it only warns of much that makes pixels wrong. So it never
//! tells what is wrong with a file, and what is refused, and why, depends on zune-jpeg alone.

use super::{Frame, Pixels};
use std::cell::RefCell;
use turbojpeg::{Decompressor, Image, PixelFormat, ScalingFactor};

/// How much smaller than stored an image is decoded; each side is divided, rounded up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reduction {
    None,
    Half,
    Quarter,
    Eighth,
}

impl Reduction {
    /// Least first.
    pub(super) const ALL: [Self; 4] = [Self::None, Self::Half, Self::Quarter, Self::Eighth];

    /// What a side is divided by.
    pub(super) fn divisor(self) -> u32 {
        1 << self as u32
    }
}

thread_local! {
    /// Made once for a thread: it holds tables and room for rows.
    static DECOMPRESSOR: RefCell<Option<Decompressor>> = const { RefCell::new(None) };
}

/// Decodes `bytes`, whose frame is `frame`, reduced by `reduction`, if they are sequential and sound.
pub(super) fn decode(bytes: &[u8], frame: &Frame, reduction: Reduction) -> Option<Pixels> {
    // A progressive file may have scans without end.
    if frame.process > 1 || !matches!(frame.n_components, 1 | 3) {
        return None;
    }
    DECOMPRESSOR.with_borrow_mut(|decompressor| {
        let made = match decompressor.take() {
            Some(made) => made,
            None => Decompressor::new().ok()?,
        };
        decode_by(decompressor.insert(made), bytes, frame, reduction)
    })
}

fn decode_by(
    decompressor: &mut Decompressor,
    bytes: &[u8],
    frame: &Frame,
    reduction: Reduction,
) -> Option<Pixels> {
    let factor = ScalingFactor::new(1, reduction.divisor() as usize);
    decompressor.set_scaling_factor(factor).ok()?;
    // In a sequential file each component is in one scan. Each scan takes a pass over the whole image,
    // however little data it has.
    decompressor.set_scan_limit(u32::from(frame.n_components)).ok()?;
    let header = decompressor.read_header(bytes).ok()?;
    // The limits were checked on our own reading of the header.
    let is_alike = header.width == usize::from(frame.width_px)
        && header.height == usize::from(frame.height_px);
    is_alike.then_some(())?;
    let (width, height) = (factor.scale(header.width), factor.scale(header.height));
    let mut rgb = vec![0; width * height * 3];
    let image =
        Image { pixels: &mut *rgb, width, pitch: width * 3, height, format: PixelFormat::RGB };
    decompressor.decompress(bytes, image).ok()?;
    Some(Pixels { width_px: width as u32, height_px: height as u32, rgb })
}

#[cfg(test)]
mod tests {
    use super::super::{frame, turbo};
    use super::*;
    use crate::decode::fixtures::{self, stored};
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use serde::Deserialize;

    fn decode(file: &[u8], reduction: Reduction) -> Option<Pixels> {
        turbo::decode(file, &frame(file).ok()?, reduction)
    }

    #[derive(Deserialize)]
    struct Golden {
        cases: Vec<Case>,
    }

    #[derive(Deserialize)]
    struct Case {
        name: String,
        file: String,
        width_px: u32,
        height_px: u32,
        rgb: String,
    }

    /// Name, file and pixels of each case in `tests/golden/jpeg.json`.
    fn golden() -> Vec<(String, Vec<u8>, Pixels)> {
        let text = include_str!("../../../tests/golden/jpeg.json");
        let golden: Golden = serde_json::from_str(text).unwrap();
        let case = |case: Case| {
            let Case { name, file, width_px, height_px, rgb } = case;
            let rgb = STANDARD.decode(rgb).unwrap();
            (name, STANDARD.decode(file).unwrap(), Pixels { width_px, height_px, rgb })
        };
        golden.cases.into_iter().map(case).collect()
    }

    #[test]
    fn pixels_are_torchvisions_to_the_bit() {
        for (name, file, expected) in golden() {
            let pixels = decode(&file, Reduction::None).expect(&name);
            assert!(pixels == expected, "{name} differs");
        }
    }

    #[test]
    fn a_reduced_image_has_the_divided_size_and_the_means_of_what_its_pixels_cover() {
        for (name, file, full) in golden() {
            for reduction in Reduction::ALL {
                let reduced = decode(&file, reduction).expect(&name);
                let n = reduction.divisor();
                let size = (reduced.width_px, reduced.height_px);
                assert_eq!(size, (full.width_px.div_ceil(n), full.height_px.div_ceil(n)));
                // The mean of whole blocks is that of their frequency 0, whatever is left out; the
                // colours are noise that clamping shifts, and chroma's blocks are larger.
                let mean = |pixels: &Pixels, columns: u32, rows: u32| {
                    let row = |y: u32| (0..columns).map(move |x| y * pixels.width_px + x);
                    let greens = (0..rows).flat_map(row).map(|at| pixels.rgb[3 * at as usize + 1]);
                    greens.map(f64::from).sum::<f64>() / f64::from(columns * rows)
                };
                let (columns, rows) = (full.width_px / 16 * 16, full.height_px / 16 * 16);
                if columns > 0 && rows > 0 {
                    let distance =
                        mean(&reduced, columns / n, rows / n) - mean(&full, columns, rows);
                    assert!(distance.abs() < 6.0, "{name} by {n}: {distance}");
                }
            }
        }
    }

    #[test]
    fn waves_that_a_reduced_image_can_show_are_kept() {
        // Two periods in 64 pixels are far below what 8 pixels can show.
        let wave = |at: f32| ((at / 64.0 * 4.0 * std::f32::consts::PI).sin() * 100.0 + 128.0) as u8;
        let image = image::RgbImage::from_fn(64, 64, |x, _| image::Rgb([wave(x as f32 + 0.5); 3]));
        let file = fixtures::jpeg(image, &[]);
        for reduction in Reduction::ALL {
            let reduced = decode(&file, reduction).unwrap();
            let n = reduction.divisor() as f32;
            for (x, pixel) in reduced.rgb.chunks(3).take(reduced.width_px as usize).enumerate() {
                let exact = wave((x as f32 + 0.5) * n);
                // A pixel is a mean over what it covers: at an eighth of the size that lowers the
                // crests by a tenth.
                assert!(pixel[1].abs_diff(exact) <= 14, "{pixel:?} is not {exact} at {x} by {n}");
            }
        }
    }

    #[test]
    fn a_file_of_more_scans_than_components_is_left_to_others() {
        let whole = fixtures::jpeg_of_scans(&[1, 2, 3]);
        let grey = Pixels { width_px: 16, height_px: 16, rgb: vec![128; 16 * 16 * 3] };
        // Again behind it: a decompressor serves many files.
        for _ in 0..2 {
            assert!(decode(&whole, Reduction::None).unwrap() == grey);
            for components in [[1, 2, 3, 1], [1, 1, 1, 1]] {
                let file = fixtures::jpeg_of_scans(&components);
                assert_eq!(decode(&file, Reduction::None), None, "{components:?}");
            }
        }
    }

    #[test]
    fn what_is_not_sequential_or_not_sound_is_left_to_others() {
        for file in [
            stored!("progressive.jpg"),
            stored!("cmyk.jpg"),
            stored!("cmyk-no-adobe.jpg"),
            stored!("ycck.jpg"),
        ] {
            assert_eq!(decode(file, Reduction::None), None);
        }
        for (name, file, _) in golden() {
            // Cut anywhere in its last third, which is scan, and ended again.
            for length in file.len() * 2 / 3..file.len() - 3 {
                let ended = [&file[..length], &[0xff, 0xd9]].concat();
                assert_eq!(decode(&ended, Reduction::None), None, "{name} ended at {length}");
            }
        }
    }
}
