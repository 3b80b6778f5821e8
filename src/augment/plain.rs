//! The view without chance: what serving, gates and evaluation show the encoder.

use super::Preprocess;
use super::normalise::Normalise;
use super::resize::SquareResizer;
use crate::decode::Pixels;

/// Writes the un-augmented view of `pixels` to `out`, `[H, W, C]` of `preprocess.input_len()`
/// numbers: the shorter side resized to `side_px` (antialiased bilinear), the middle cut out,
/// normalised.
///
/// It depends on its arguments alone. An image of `side_px` by `side_px` keeps its pixels
/// exactly.
///
/// # Panics
/// If `out` has another length, or `pixels` is empty or has fewer bytes than its size asks for,
/// which decoding rules out.
pub fn plain_view(pixels: &Pixels, preprocess: &Preprocess, out: &mut [f32]) {
    assert_eq!(out.len(), preprocess.input_len(), "out holds one view");
    let mut resizer = SquareResizer::new(preprocess.side_px);
    Normalise::new(preprocess).bytes(resizer.centre(pixels), out);
}

#[cfg(test)]
mod tests {
    use super::super::resize::tests::noise;
    use super::*;

    /// Preprocessing that leaves values in 0..1.
    fn unscaled(side_px: usize) -> Preprocess {
        Preprocess { side_px, mean: [0.0; 3], std: [1.0; 3] }
    }

    #[test]
    fn an_image_of_the_right_size_passes_exactly() {
        let pixels = noise(9, 9, 1);
        let mut out = vec![0.0; 243];
        plain_view(&pixels, &unscaled(9), &mut out);
        let bytes: Vec<u8> = out.iter().map(|value| (value * 255.0).round() as u8).collect();
        assert_eq!(bytes, pixels.rgb);
        assert!(out.iter().zip(&pixels.rgb).all(|(&v, &byte)| v == f32::from(byte) / 255.0));
    }

    #[test]
    fn the_middle_is_shown_and_the_ends_of_the_longer_side_are_not() {
        let mut pixels = Pixels { width_px: 30, height_px: 10, rgb: vec![0; 900] };
        for (i, pixel) in pixels.rgb.chunks_exact_mut(3).enumerate() {
            pixel.fill(if (10..20).contains(&(i % 30)) { 255 } else { 0 });
        }
        let mut out = vec![0.0; 300];
        plain_view(&pixels, &unscaled(10), &mut out);
        assert_eq!(out, vec![1.0; 300]);
    }

    #[test]
    fn the_same_image_gives_the_same_view() {
        let (mut first, mut second) = (vec![0.0; 192], vec![1.0; 192]);
        plain_view(&noise(31, 17, 2), &Preprocess::imagenet(8), &mut first);
        plain_view(&noise(31, 17, 2), &Preprocess::imagenet(8), &mut second);
        assert_eq!(first, second);
    }
}
