//! Views that are made alike: what an objective asks for of each image.

use super::Config;
use super::recipe::ViewRecipe;
use crate::decode::Enough;

/// The side of views.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Side {
    /// That of all views which want no other.
    #[default]
    Usual,
    /// Half of that.
    Half,
    /// So many pixels.
    Px(usize),
}

impl Side {
    /// In pixels, where the usual side is `usual_px`.
    pub const fn px(self, usual_px: usize) -> usize {
        match self {
            Self::Usual => usual_px,
            Self::Half => usual_px.div_ceil(2),
            Self::Px(side_px) => side_px,
        }
    }
}

/// Views of each image that are made alike.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ViewGroup {
    /// How many of each image: even ones are made as the recipe's view a, odd ones as view b.
    pub views_per_image: usize,
    /// Their side.
    pub side: Side,
    /// Least and largest share of the image's area that they show; unset, the configuration's.
    pub crop_area: Option<[f32; 2]>,
    /// Whether view v is turned by v quarter turns, counter-clockwise, when all else is done: v
    /// modulo 4 is its pseudo-label. What else would turn it or put it upside down is left out.
    pub is_turned: bool,
}

impl ViewGroup {
    /// Views as the configuration makes them.
    pub const fn alike(views_per_image: usize) -> Self {
        Self { views_per_image, side: Side::Usual, crop_area: None, is_turned: false }
    }

    /// Numbers in one of its views, `H * W * C`, where usual ones have a side of `usual_px`.
    pub fn view_len(&self, usual_px: usize) -> usize {
        let side_px = self.side.px(usual_px);
        side_px * side_px * 3
    }

    /// What an image has to have for every crop that may be drawn of it to be at least as wide and
    /// as high as the view, where usual ones have a side of `usual_px`.
    ///
    /// A crop of a share a of the area whose shape is r is sqrt(a r) sqrt(W H) wide, and its height
    /// has 1 / r in place of r. One that fits nowhere is cut from the middle instead, as wide or
    /// high as the image's shorter side, and the other side of an allowed shape.
    pub fn enough(&self, config: &Config, usual_px: usize) -> Enough {
        let side_px = self.side.px(usual_px);
        let of_view = |view_index| {
            let view = self.adapt(config.view(view_index, side_px));
            let [least_area, _] = view.crop_area.map(f64::from);
            let [narrowest, widest] = view.crop_aspect.map(f64::from);
            let flattest = narrowest.min(1.0 / widest);
            let side = side_px as f64;
            let pixels = (side * side / (least_area * flattest)).ceil();
            let shorter = (side / widest.min(1.0 / narrowest).min(1.0)).ceil();
            Enough { shorter_px: shorter as u32, pixels: pixels as u64 }
        };
        larger(of_view(0), of_view(1))
    }

    /// `recipe` as this group wants it.
    pub(super) fn adapt(&self, mut recipe: ViewRecipe) -> ViewRecipe {
        recipe.crop_area = self.crop_area.unwrap_or(recipe.crop_area);
        if self.is_turned {
            recipe.vertical_flip_probability = 0.0;
            recipe.quarter_turn_probability = 0.0;
            recipe.rotation_probability = 0.0;
        }
        recipe
    }

    /// Quarter turns of view `view_index` of the group.
    pub(super) fn n_turns(&self, view_index: usize) -> usize {
        if self.is_turned { view_index % 4 } else { 0 }
    }
}

/// What is enough for the views of all `groups`.
pub fn enough(config: &Config, groups: &[ViewGroup], usual_px: usize) -> Enough {
    let each = groups.iter().map(|group| group.enough(config, usual_px));
    each.fold(Enough { shorter_px: 1, pixels: 1 }, larger)
}

fn larger(a: Enough, b: Enough) -> Enough {
    Enough { shorter_px: a.shorter_px.max(b.shorter_px), pixels: a.pixels.max(b.pixels) }
}

#[cfg(test)]
mod tests {
    use super::super::crop::Crop;
    use super::*;
    use crate::seed::{Purpose, rng};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn from_what_is_enough_no_crop_is_smaller_than_its_view(
            side_px in 8_usize..300,
            least_area in 0.01_f32..1.0,
            aspects in (0.2_f32..5.0, 0.2_f32..5.0),
            longer_by in 1.0_f64..40.0,
            is_tall: bool,
            seed: u64,
        ) {
            let aspect = [aspects.0.min(aspects.1), aspects.0.max(aspects.1)];
            let config = Config {
                crop_area: [least_area, 1.0],
                crop_aspect: Some(aspect),
                ..Config::default()
            };
            let enough = ViewGroup::alike(2).enough(&config, side_px);
            // The smallest image of some shape that has it.
            let shorter = (enough.pixels as f64 / longer_by).sqrt().ceil() as u32;
            let shorter_px = shorter.max(enough.shorter_px);
            let longer_px = (f64::from(shorter_px) * longer_by).ceil() as u32;
            let (width_px, height_px) =
                if is_tall { (shorter_px, longer_px) } else { (longer_px, shorter_px) };
            prop_assert!(enough.is_met(width_px, height_px));
            let crop = Crop { area: [least_area, 1.0], aspect };
            for counter in 0..20 {
                let mut rng = rng(seed, Purpose::View, &[counter]);
                let part = crop.draw(width_px, height_px, &mut rng);
                let side_px = side_px as u32;
                prop_assert!(part.width_px >= side_px && part.height_px >= side_px, "{part:?}");
            }
        }
    }

    #[test]
    fn the_most_demanding_group_decides() {
        let config = Config { crop_area: [0.25, 1.0], ..Config::default() };
        let small =
            ViewGroup { side: Side::Px(10), crop_area: Some([0.01, 0.1]), ..ViewGroup::alike(1) };
        let cases = [vec![ViewGroup::alike(2)], vec![small], vec![ViewGroup::alike(2), small]];
        let [large, small, both] = cases.map(|groups| enough(&config, &groups, 16));
        // 16^2 / (1/4 * 3/4) = 1365.3; 10^2 / (1/100 * 3/4) = 13333.3
        assert_eq!((large.shorter_px, large.pixels), (16, 1366));
        assert_eq!((small.shorter_px, small.pixels), (10, 13_334));
        assert_eq!((both.shorter_px, both.pixels), (16, 13_334));
    }
}
