//! Mirror images: horizontal and vertical flips.

use super::{Augmentation, Canvas};
use crate::seed::Rng;

/// Mirrors left and right.
pub(super) struct HorizontalFlip;

impl Augmentation for HorizontalFlip {
    fn apply(&mut self, canvas: &mut Canvas, _rng: &mut Rng) {
        let side_px = canvas.side_px();
        // The planes follow each other, so the rows of all three do too.
        canvas.values_mut().chunks_exact_mut(side_px).for_each(<[f32]>::reverse);
    }
}

/// Mirrors top and bottom.
pub(super) struct VerticalFlip;

impl Augmentation for VerticalFlip {
    fn apply(&mut self, canvas: &mut Canvas, _rng: &mut Rng) {
        let side_px = canvas.side_px();
        for plane in canvas.planes_mut() {
            let (top, bottom) = plane.split_at_mut(side_px / 2 * side_px);
            let rows = top.chunks_exact_mut(side_px);
            for (upper, lower) in rows.zip(bottom.chunks_exact_mut(side_px).rev()) {
                upper.swap_with_slice(lower);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::canvas::tests::noise;
    use super::*;
    use crate::seed::{Purpose, rng};

    #[test]
    fn every_pixel_lands_opposite() {
        let mut rng = rng(1, Purpose::View, &[]);
        for side_px in [1, 4, 5] {
            let original = noise(side_px, &mut rng);
            let (mut mirrored, mut upended) = (original.clone(), original.clone());
            HorizontalFlip.apply(&mut mirrored, &mut rng);
            VerticalFlip.apply(&mut upended, &mut rng);
            let last = side_px - 1;
            for channel in 0..3 {
                for y in 0..side_px {
                    for x in 0..side_px {
                        let at = |c: &Canvas, y, x| c.planes()[channel][y * side_px + x];
                        assert_eq!(at(&mirrored, y, x), at(&original, y, last - x));
                        assert_eq!(at(&upended, y, x), at(&original, last - y, x));
                    }
                }
            }
        }
    }
}
