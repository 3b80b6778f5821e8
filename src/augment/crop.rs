//! Random resized crop: a view shows a part of the image, of random size, shape and place.
//!
//! Szegedy et al., "Going deeper with convolutions", arXiv 1409.4842, section 6; the rules of
//! rounding and retrying are torchvision's `RandomResizedCrop`.

use super::resize::Region;
use crate::seed::Rng;
use rand::RngExt;

/// How often a shape that doesn't fit is drawn again before the middle is taken; torchvision's.
const TRIES: usize = 10;

/// Which parts are cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Crop {
    /// Least and largest share of the image's area.
    pub(super) area: [f32; 2],
    /// Least and largest width / height, drawn uniformly in their logarithm.
    pub(super) aspect: [f32; 2],
}

impl Crop {
    /// Draws a part of an image of `width_px` by `height_px`, which are at least 1.
    pub(super) fn draw(&self, width_px: u32, height_px: u32, rng: &mut Rng) -> Region {
        let [least_area, most_area] = self.area.map(f64::from);
        let [narrowest, widest] = self.aspect.map(f64::from);
        let image_area = f64::from(width_px) * f64::from(height_px);
        for _ in 0..TRIES {
            let area = image_area * rng.random_range(least_area..=most_area);
            let aspect = rng.random_range(narrowest.ln()..=widest.ln()).exp();
            let width = (area * aspect).sqrt().round() as u32;
            let height = (area / aspect).sqrt().round() as u32;
            if (1..=width_px).contains(&width) && (1..=height_px).contains(&height) {
                return Region {
                    left_px: rng.random_range(0..=width_px - width),
                    top_px: rng.random_range(0..=height_px - height),
                    width_px: width,
                    height_px: height,
                };
            }
        }
        self.middle(width_px, height_px)
    }

    /// The largest part in the middle of the image whose shape is allowed.
    fn middle(&self, width_px: u32, height_px: u32) -> Region {
        let [narrowest, widest] = self.aspect.map(f64::from);
        let (width, height) = (f64::from(width_px), f64::from(height_px));
        let aspect = (width / height).clamp(narrowest, widest);
        let part_width_px = ((height * aspect).round() as u32).clamp(1, width_px);
        let part_height_px = ((width / aspect).round() as u32).clamp(1, height_px);
        Region {
            left_px: (width_px - part_width_px) / 2,
            top_px: (height_px - part_height_px) / 2,
            width_px: part_width_px,
            height_px: part_height_px,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::{Purpose, rng};
    use proptest::prelude::*;

    const USUAL: Crop = Crop { area: [0.08, 1.0], aspect: [3.0 / 4.0, 4.0 / 3.0] };

    proptest! {
        #[test]
        fn a_part_lies_inside_its_image(width in 1_u32..3000, height in 1_u32..3000, seed: u64) {
            let part = USUAL.draw(width, height, &mut rng(seed, Purpose::View, &[]));
            prop_assert!(part.width_px >= 1 && part.left_px + part.width_px <= width);
            prop_assert!(part.height_px >= 1 && part.top_px + part.height_px <= height);
        }
    }

    #[test]
    fn area_shape_and_place_have_their_distributions() {
        // In 1000 x 1000 px every shape of up to 3/4 of the area fits at the first try.
        let crop = Crop { area: [0.25, 0.75], ..USUAL };
        let mut rng = rng(1, Purpose::View, &[]);
        let n_draws = 20_000;
        let (mut area, mut log_aspect, mut place) = (0.0, 0.0, 0.0);
        for _ in 0..n_draws {
            let part = crop.draw(1000, 1000, &mut rng);
            let (width, height) = (f64::from(part.width_px), f64::from(part.height_px));
            assert!((0.74..1.35).contains(&(width / height)));
            assert!((0.249..0.751).contains(&(width * height / 1e6)));
            area += width * height / 1e6;
            log_aspect += (width / height).ln();
            place += f64::from(part.left_px) / (1000.0 - width);
        }
        // Means of uniform draws; each limit is over 5 standard errors.
        let mean = |sum: f64| sum / f64::from(n_draws);
        assert!((mean(area) - 0.5).abs() < 0.006, "{}", mean(area));
        assert!(mean(log_aspect).abs() < 0.007, "{}", mean(log_aspect));
        assert!((mean(place) - 0.5).abs() < 0.012, "{}", mean(place));
    }

    #[test]
    fn a_strip_that_fits_no_shape_is_cut_in_the_middle() {
        let part = USUAL.draw(1000, 3, &mut rng(1, Purpose::View, &[]));
        assert_eq!(part, Region { left_px: 498, top_px: 0, width_px: 4, height_px: 3 });
        let part = USUAL.draw(3, 1000, &mut rng(1, Purpose::View, &[]));
        assert_eq!(part, Region { left_px: 0, top_px: 498, width_px: 3, height_px: 4 });
    }

    #[test]
    fn the_whole_area_of_a_square_is_the_square() {
        let whole = Crop { area: [1.0, 1.0], aspect: [1.0, 1.0] };
        let part = whole.draw(31, 31, &mut rng(1, Purpose::View, &[]));
        assert_eq!(part, Region { left_px: 0, top_px: 0, width_px: 31, height_px: 31 });
    }
}
