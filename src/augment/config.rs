//! The `[augment]` section.

use super::recipe::{Recipe, ViewRecipe};
use crate::setting::{self, Invalid};
use serde::{Deserialize, Serialize};

/// How views differ from the image they are made of.
///
/// `recipe` sets every probability and range; each key below that is left out keeps the
/// recipe's value, and each that is given replaces it for both views (or, as a pair, for views a
/// and b). Nothing here affects serving, which sees un-augmented images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Whose augmentation to follow: `"simclr"` (both views alike) or `"byol"` (view a always
    /// blurred, view b seldom blurred and sometimes solarised).
    pub recipe: Recipe,
    /// Side of the views as a share of the encoder's input, 0.1 to 1; unset, what is best for the
    /// encoder. Smaller views cost less, and as crops show things larger than whole images do, an
    /// encoder serves its larger input well (Touvron et al. 2019, arXiv 1906.06423).
    pub side_share: Option<f32>,
    /// SimCLR's s, 0 to 2.5, which scales how far its colours change: brightness, contrast and
    /// saturation by 0.8 s, hue by 0.2 s. Without effect on BYOL, whose amounts are fixed, and on
    /// amounts given below.
    pub jitter_strength: f32,
    /// Least and largest share of the image's area that a view shows. Both papers have
    /// `[0.08, 1.0]`; small images and short streams learn better from larger parts.
    pub crop_area: [f32; 2],
    /// Views with a shorter side than this are neither blurred nor solarised by the recipe: a
    /// blur as wide as the details of a small image leaves nothing to learn. A probability given
    /// below is followed at every size.
    pub blur_min_side_px: usize,
    /// Least and largest width / height of the part that is shown. Recipes: `[0.75, 1.3333]`.
    pub crop_aspect: Option<[f32; 2]>,
    /// How often left and right are mirrored. Recipes: 0.5. Set 0 where left and right differ in
    /// meaning, as in text.
    pub horizontal_flip_probability: Option<f32>,
    /// How often top and bottom are mirrored. Recipes: 0. Set 0.5 for images without an up, such
    /// as aerial or microscope images.
    pub vertical_flip_probability: Option<f32>,
    /// How often a view is turned by 90, 180 or 270 degrees. Recipes: 0.
    pub quarter_turn_probability: Option<f32>,
    /// How often a view is turned by any angle up to `rotation_max_degrees`. Recipes: 0.
    pub rotation_probability: Option<f32>,
    /// The largest such angle, 0 to 180, drawn uniformly to either side. Recipes: 15.
    pub rotation_max_degrees: Option<f32>,
    /// How often colours are changed. Recipes: 0.8.
    pub jitter_probability: Option<f32>,
    /// Largest change of the brightness factor from 1. SimCLR: 0.8 s; BYOL: 0.4.
    pub brightness: Option<f32>,
    /// Largest change of the contrast factor from 1. SimCLR: 0.8 s; BYOL: 0.4.
    pub contrast: Option<f32>,
    /// Largest change of the saturation factor from 1. SimCLR: 0.8 s; BYOL: 0.2.
    pub saturation: Option<f32>,
    /// Largest change of the hue, 0 to 0.5 turns of the colour circle. SimCLR: 0.2 s; BYOL: 0.1.
    pub hue: Option<f32>,
    /// How often colour is dropped. Recipes: 0.2.
    pub greyscale_probability: Option<f32>,
    /// How often view a and view b are blurred, by a kernel of a tenth of the side. SimCLR:
    /// `[0.5, 0.5]`; BYOL: `[1.0, 0.1]`.
    pub blur_probability: Option<[f32; 2]>,
    /// Least and largest standard deviation of the blur, in pixels. Recipes: `[0.1, 2.0]`.
    pub blur_sigma_px: Option<[f32; 2]>,
    /// How often bright values are inverted in view a and view b. SimCLR: `[0.0, 0.0]`; BYOL:
    /// `[0.0, 0.2]`.
    pub solarise_probability: Option<[f32; 2]>,
    /// The least value, of 0..1, that solarising inverts. Recipes: 0.5.
    pub solarise_threshold: Option<f32>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            recipe: Recipe::Simclr,
            side_share: None,
            // SimCLR, appendix B.9: 0.5 for CIFAR, 1.0 for ImageNet.
            jitter_strength: 0.5,
            crop_area: [0.2, 1.0],
            // SimCLR, appendix B.9, has no blur on CIFAR's 32 px; twice that is a guess.
            blur_min_side_px: 64,
            crop_aspect: None,
            horizontal_flip_probability: None,
            vertical_flip_probability: None,
            quarter_turn_probability: None,
            rotation_probability: None,
            rotation_max_degrees: None,
            jitter_probability: None,
            brightness: None,
            contrast: None,
            saturation: None,
            hue: None,
            greyscale_probability: None,
            blur_probability: None,
            blur_sigma_px: None,
            solarise_probability: None,
            solarise_threshold: None,
        }
    }
}

impl Config {
    /// Checks every value.
    ///
    /// # Errors
    /// Names the first key whose value is not allowed, and what is.
    pub fn validate(&self) -> Result<(), Invalid> {
        if let Some(share) = self.side_share {
            setting::within("augment.side_share", share, 0.1..=1.0, "a share from 0.1 to 1")?;
        }
        // Above 2.5, hue would change by more than the half turn that reaches every hue.
        let strength = "a number from 0 to 2.5";
        setting::within("augment.jitter_strength", self.jitter_strength, 0.0..=2.5, strength)?;
        let area = "two shares of the area above 0 and up to 1, the smaller one first";
        setting::ordered_pair("augment.crop_area", self.crop_area, LEAST_AREA..=1.0, area)?;
        if let Some(aspect) = self.crop_aspect {
            let allowed = "two ratios from 0.01 to 100, the smaller one first";
            setting::ordered_pair("augment.crop_aspect", aspect, 0.01..=100.0, allowed)?;
        }
        if let Some(sigma_px) = self.blur_sigma_px {
            let allowed = "two lengths from 0.01 to 1000 pixels, the smaller one first";
            setting::ordered_pair("augment.blur_sigma_px", sigma_px, 0.01..=1000.0, allowed)?;
        }
        self.validate_probabilities()?;
        self.validate_amounts()
    }

    fn validate_probabilities(&self) -> Result<(), Invalid> {
        for (key, probability) in [
            ("augment.horizontal_flip_probability", self.horizontal_flip_probability),
            ("augment.vertical_flip_probability", self.vertical_flip_probability),
            ("augment.quarter_turn_probability", self.quarter_turn_probability),
            ("augment.rotation_probability", self.rotation_probability),
            ("augment.jitter_probability", self.jitter_probability),
            ("augment.greyscale_probability", self.greyscale_probability),
        ] {
            probability.map_or(Ok(()), |probability| setting::probability(key, probability))?;
        }
        for (key, pair) in [
            ("augment.blur_probability", self.blur_probability),
            ("augment.solarise_probability", self.solarise_probability),
        ] {
            for probability in pair.into_iter().flatten() {
                setting::probability(key, probability)?;
            }
        }
        Ok(())
    }

    fn validate_amounts(&self) -> Result<(), Invalid> {
        for (key, amount, most, allowed) in [
            ("augment.rotation_max_degrees", self.rotation_max_degrees, 180.0, "from 0 to 180"),
            ("augment.brightness", self.brightness, MOST_CHANGE, "a number from 0 to 10"),
            ("augment.contrast", self.contrast, MOST_CHANGE, "a number from 0 to 10"),
            ("augment.saturation", self.saturation, MOST_CHANGE, "a number from 0 to 10"),
            ("augment.hue", self.hue, 0.5, "a number of turns from 0 to 0.5"),
            ("augment.solarise_threshold", self.solarise_threshold, 1.0, "a number from 0 to 1"),
        ] {
            amount.map_or(Ok(()), |amount| setting::within(key, amount, 0.0..=most, allowed))?;
        }
        Ok(())
    }

    /// What view a (`view_index` 0) or b (1) of `side_px` pixels is made with.
    pub fn view(&self, view_index: usize, side_px: usize) -> ViewRecipe {
        let mut view = self.recipe.view(view_index, self.jitter_strength);
        if side_px < self.blur_min_side_px {
            view.blur_probability = 0.0;
            view.solarise_probability = 0.0;
        }
        let replace = |value: &mut f32, given: Option<f32>| *value = given.unwrap_or(*value);
        let of_view = |pair: Option<[f32; 2]>| pair.map(|pair| pair[view_index.min(1)]);
        view.crop_area = self.crop_area;
        view.crop_aspect = self.crop_aspect.unwrap_or(view.crop_aspect);
        replace(&mut view.horizontal_flip_probability, self.horizontal_flip_probability);
        replace(&mut view.vertical_flip_probability, self.vertical_flip_probability);
        replace(&mut view.quarter_turn_probability, self.quarter_turn_probability);
        replace(&mut view.rotation_probability, self.rotation_probability);
        replace(&mut view.rotation_max_degrees, self.rotation_max_degrees);
        replace(&mut view.jitter_probability, self.jitter_probability);
        replace(&mut view.brightness, self.brightness);
        replace(&mut view.contrast, self.contrast);
        replace(&mut view.saturation, self.saturation);
        replace(&mut view.hue, self.hue);
        replace(&mut view.greyscale_probability, self.greyscale_probability);
        replace(&mut view.blur_probability, of_view(self.blur_probability));
        view.blur_sigma_px = self.blur_sigma_px.unwrap_or(view.blur_sigma_px);
        replace(&mut view.solarise_probability, of_view(self.solarise_probability));
        replace(&mut view.solarise_threshold, self.solarise_threshold);
        view
    }
}

/// The smallest share of an image that may be cut out. A guess: less is a handful of pixels.
const LEAST_AREA: f32 = 1e-4;
/// The largest change of a colour factor. A guess: at 10 most of an image is black or white.
const MOST_CHANGE: f32 = 10.0;

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Config {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn an_empty_section_is_the_default_and_round_trips() {
        assert_eq!(parsed(""), Config::default());
        assert_eq!(parsed(&toml::to_string(&Config::default()).unwrap()), Config::default());
        assert!(toml::from_str::<Config>("blur = 1").is_err());
    }

    #[test]
    fn the_recipes_are_the_papers() {
        let config = parsed("jitter_strength = 1.0\ncrop_area = [0.08, 1.0]");
        let view = config.view(0, 224);
        assert_eq!((view.brightness, view.contrast, view.saturation), (0.8, 0.8, 0.8));
        assert_eq!((view.hue, view.jitter_probability), (0.2, 0.8));
        assert_eq!((view.greyscale_probability, view.blur_probability), (0.2, 0.5));
        assert_eq!(view, config.view(1, 224));

        let config = parsed("recipe = 'byol'");
        let (a, b) = (config.view(0, 224), config.view(1, 224));
        assert_eq!((a.blur_probability, a.solarise_probability), (1.0, 0.0));
        assert_eq!((b.blur_probability, b.solarise_probability), (0.1, 0.2));
        assert_eq!((a.brightness, a.contrast, a.saturation, a.hue), (0.4, 0.4, 0.2, 0.1));
    }

    #[test]
    fn small_views_are_blurred_and_solarised_only_when_told_to() {
        let config = parsed("recipe = 'byol'");
        let view = config.view(1, 63);
        assert_eq!((view.blur_probability, view.solarise_probability), (0.0, 0.0));
        assert_eq!(config.view(0, 64).blur_probability, 1.0);
        let config = parsed("recipe = 'byol'\nblur_probability = [0.3, 0.4]");
        let view = config.view(1, 32);
        assert_eq!((view.blur_probability, view.solarise_probability), (0.4, 0.0));
    }

    /// A section that gives every optional key, with a value that no recipe has.
    const EVERY_KEY: &str = "
        crop_aspect = [0.5, 2.5]
        horizontal_flip_probability = 0.11
        vertical_flip_probability = 0.12
        quarter_turn_probability = 0.13
        rotation_probability = 0.14
        rotation_max_degrees = 45.0
        jitter_probability = 0.15
        brightness = 0.21
        contrast = 0.22
        saturation = 0.23
        hue = 0.24
        greyscale_probability = 0.16
        blur_probability = [0.17, 0.18]
        blur_sigma_px = [0.3, 1.5]
        solarise_probability = [0.19, 0.31]
        solarise_threshold = 0.6
    ";

    #[test]
    fn every_key_replaces_the_value_of_its_name() {
        // The table is read as data, so a key that is wired to another's value is found.
        let given: toml::Table = EVERY_KEY.parse().unwrap();
        for view_index in [0, 1] {
            let view = format!("{:?}", parsed(EVERY_KEY).view(view_index, 224));
            for (key, value) in &given {
                let value = match value.as_array() {
                    Some(pair) if key.ends_with("probability") => pair[view_index].to_string(),
                    Some(pair) => format!("[{}, {}]", pair[0], pair[1]),
                    None => value.to_string(),
                };
                assert!(view.contains(&format!("{key}: {value}")), "{key} = {value}: {view}");
            }
        }
    }

    #[test]
    fn refusals_name_key_value_and_what_is_allowed() {
        assert_eq!(Config::default().validate(), Ok(()));
        assert_eq!(parsed(EVERY_KEY).validate(), Ok(()));
        for (text, message) in [
            (
                "hue = 0.6",
                "augment.hue = 0.6 is not allowed: it must be a number of turns from 0 to 0.5",
            ),
            (
                "blur_probability = [0.5, 1.5]",
                "augment.blur_probability = 1.5 is not allowed: it must be a probability from 0 to 1",
            ),
            (
                "crop_area = [0.9, 0.2]",
                "augment.crop_area = [0.9, 0.2] is not allowed: it must be two shares of the area \
                 above 0 and up to 1, the smaller one first",
            ),
        ] {
            assert_eq!(parsed(text).validate().unwrap_err().to_string(), message);
        }
        for text in [
            "jitter_strength = -1.0",
            "jitter_strength = nan",
            "crop_area = [0.0, 1.0]",
            "crop_aspect = [0.0, 1.0]",
            "blur_sigma_px = [0.0, 1.0]",
            "rotation_max_degrees = 181.0",
            "brightness = inf",
            "vertical_flip_probability = -0.1",
            "solarise_threshold = 1.1",
        ] {
            let key = text.split(' ').next().unwrap();
            assert_eq!(parsed(text).validate().unwrap_err().key, format!("augment.{key}"));
        }
    }
}
