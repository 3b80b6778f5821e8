//! The probabilities and ranges that papers state.

use serde::{Deserialize, Serialize};

/// Whose augmentation is followed where the configuration says nothing else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Recipe {
    /// Chen et al., arXiv 2002.05709, appendix A: both views alike.
    #[default]
    Simclr,
    /// Grill et al., arXiv 2006.07733, appendix B, table 6: view a is always blurred, view b
    /// seldom blurred and sometimes solarised.
    Byol,
}

/// Every value that one view is made with.
#[derive(Clone, Debug, PartialEq)]
pub struct ViewRecipe {
    /// Least and largest share of the image's area that is cut out.
    pub crop_area: [f32; 2],
    /// Least and largest width / height of the part.
    pub crop_aspect: [f32; 2],
    /// How often left and right are mirrored.
    pub horizontal_flip_probability: f32,
    /// How often top and bottom are mirrored.
    pub vertical_flip_probability: f32,
    /// How often the view is turned by 90, 180 or 270 degrees.
    pub quarter_turn_probability: f32,
    /// How often the view is turned by any angle.
    pub rotation_probability: f32,
    /// The largest such angle, either way.
    pub rotation_max_degrees: f32,
    /// How often colours are changed.
    pub jitter_probability: f32,
    /// Largest change of the brightness factor from 1.
    pub brightness: f32,
    /// Largest change of the contrast factor from 1.
    pub contrast: f32,
    /// Largest change of the saturation factor from 1.
    pub saturation: f32,
    /// Largest change of the hue, in turns of the colour circle.
    pub hue: f32,
    /// How often colour is dropped.
    pub greyscale_probability: f32,
    /// How often the view is blurred.
    pub blur_probability: f32,
    /// Least and largest standard deviation of the blur, in pixels of the view.
    pub blur_sigma_px: [f32; 2],
    /// How often bright values are inverted.
    pub solarise_probability: f32,
    /// The least value that is inverted, of 0..1.
    pub solarise_threshold: f32,
}

impl Recipe {
    /// What the paper does to view a (`view_index` 0) or b (1).
    ///
    /// `jitter_strength` is SimCLR's s; BYOL's amounts are fixed.
    pub fn view(self, view_index: usize, jitter_strength: f32) -> ViewRecipe {
        let simclr = ViewRecipe {
            crop_area: [0.08, 1.0],
            crop_aspect: [3.0 / 4.0, 4.0 / 3.0],
            horizontal_flip_probability: 0.5,
            vertical_flip_probability: 0.0,
            quarter_turn_probability: 0.0,
            rotation_probability: 0.0,
            // A guess: a hand-held camera's tilt. Neither paper rotates.
            rotation_max_degrees: 15.0,
            jitter_probability: 0.8,
            brightness: 0.8 * jitter_strength,
            contrast: 0.8 * jitter_strength,
            saturation: 0.8 * jitter_strength,
            hue: 0.2 * jitter_strength,
            greyscale_probability: 0.2,
            blur_probability: 0.5,
            blur_sigma_px: [0.1, 2.0],
            solarise_probability: 0.0,
            solarise_threshold: 0.5,
        };
        match self {
            Self::Simclr => simclr,
            Self::Byol => {
                let is_view_a = view_index == 0;
                ViewRecipe {
                    brightness: 0.4,
                    contrast: 0.4,
                    saturation: 0.2,
                    hue: 0.1,
                    blur_probability: if is_view_a { 1.0 } else { 0.1 },
                    solarise_probability: if is_view_a { 0.0 } else { 0.2 },
                    ..simclr
                }
            }
        }
    }
}
