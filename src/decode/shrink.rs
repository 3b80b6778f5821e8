//! Bounds the size of what is handed on.

use super::Pixels;
use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};

/// The filter widens with the scale, so nothing aliases. Hamming costs as much as bilinear and
/// blurs less, which matters because views are cut and resized once more from the result.
const FILTER: FilterType = FilterType::Hamming;

/// Shrinks `pixels` until no side is longer than `side_px`; smaller images pass unchanged.
pub(super) fn shrink(pixels: Pixels, side_px: u32) -> Pixels {
    let (width_px, height_px) = fit(pixels.width_px, pixels.height_px, side_px);
    if (width_px, height_px) == (pixels.width_px, pixels.height_px) {
        return pixels;
    }
    let from = TypedImageRef::<U8x3>::from_buffer(pixels.width_px, pixels.height_px, &pixels.rgb)
        .expect("Pixels holds exactly its size in bytes");
    let mut rgb = vec![0; width_px as usize * height_px as usize * 3];
    let mut to = TypedImage::<U8x3>::from_buffer(width_px, height_px, &mut rgb)
        .expect("the buffer was made for this size");
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FILTER));
    // By the pixel's type: the untyped form compiles every other type as well, for minutes.
    Resizer::new().resize_typed(&from, &mut to, &options).expect("the whole image is the crop");
    Pixels { width_px, height_px, rgb }
}

/// The size with the longer side at most `side_px` and the other in proportion, at least 1.
fn fit(width_px: u32, height_px: u32, side_px: u32) -> (u32, u32) {
    let longer_px = width_px.max(height_px);
    if longer_px <= side_px {
        return (width_px, height_px);
    }
    let scaled = |px: u32| {
        let (px, side_px, longer_px) = (u64::from(px), u64::from(side_px), u64::from(longer_px));
        let nearest_px = (2 * px * side_px + longer_px) / (2 * longer_px);
        u32::try_from(nearest_px).expect("no side grows").max(1)
    };
    (scaled(width_px), scaled(height_px))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn checkerboard(side_px: u32) -> Pixels {
        let rgb = (0..side_px * side_px)
            .flat_map(|i| [if (i % side_px + i / side_px).is_multiple_of(2) { 0 } else { 255 }; 3])
            .collect();
        Pixels { width_px: side_px, height_px: side_px, rgb }
    }

    #[test]
    fn a_small_image_passes_unchanged() {
        assert_eq!(shrink(checkerboard(16), 16), checkerboard(16));
    }

    #[test]
    fn pixels_that_are_dropped_are_averaged_in() {
        // A one-pixel checkerboard is mean grey at half its size; picking pixels would keep 0s
        // and 255s. Borders see a cut filter, hence the tolerance of 2.
        let half = shrink(checkerboard(64), 32);
        assert_eq!((half.width_px, half.height_px, half.rgb.len()), (32, 32, 32 * 32 * 3));
        assert!(half.rgb.iter().all(|&sample| sample.abs_diff(128) <= 2), "{:?}", &half.rgb[..12]);
    }

    #[test]
    fn a_constant_stays_constant() {
        let rgb = [9, 99, 199].repeat(100 * 37);
        let small = shrink(Pixels { width_px: 100, height_px: 37, rgb }, 10);
        assert_eq!((small.width_px, small.height_px), (10, 4));
        assert_eq!(small.rgb, [9, 99, 199].repeat(40));
    }

    proptest! {
        #[test]
        fn proportions_hold_to_half_a_pixel(w in 1..70_000u32, h in 1..70_000u32, side in 1..900u32)
        {
            let (width_px, height_px) = fit(w, h, side);
            let scale = (f64::from(side) / f64::from(w.max(h))).min(1.0);
            prop_assert_eq!(width_px.max(height_px), side.min(w.max(h)));
            prop_assert!((f64::from(width_px) - (f64::from(w) * scale).max(1.0)).abs() <= 0.5);
            prop_assert!((f64::from(height_px) - (f64::from(h) * scale).max(1.0)).abs() <= 0.5);
        }
    }
}
