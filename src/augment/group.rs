//! Views that are made alike: what an objective asks for of each image.

use super::recipe::ViewRecipe;

/// Views of each image that are made alike.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ViewGroup {
    /// How many of each image: even ones are made as the recipe's view a, odd ones as view b.
    pub views_per_image: usize,
    /// Their side; unset, that of the encoder's input.
    pub side_px: Option<usize>,
    /// Least and largest share of the image's area that they show; unset, the configuration's.
    pub crop_area: Option<[f32; 2]>,
    /// Whether view v is turned by v quarter turns, counter-clockwise, when all else is done: v
    /// modulo 4 is its pseudo-label. What else would turn it or put it upside down is left out.
    pub is_turned: bool,
}

impl ViewGroup {
    /// Views as the configuration makes them.
    pub const fn alike(views_per_image: usize) -> Self {
        Self { views_per_image, side_px: None, crop_area: None, is_turned: false }
    }

    /// Numbers in one of its views, `H * W * C`, for an encoder's input of `input_side_px`.
    pub fn view_len(&self, input_side_px: usize) -> usize {
        let side_px = self.side_px.unwrap_or(input_side_px);
        side_px * side_px * 3
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
