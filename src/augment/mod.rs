//! Pixels to views: what the encoder sees of an image, `[H, W, C]` as normalised f32.
//!
//! A view is cut out of the image and resized ([`Config::crop_area`]), then changed on a
//! [`Canvas`] in 0..1 by each [`Kind`] in turn, with the kind's probability, and normalised by
//! [`Preprocess`]. [`plain_view`] is the view without chance, which users' queries are shown as.
//!
//! The contract of [`Augmentation`], which the tests below hold every kind to:
//!
//! - values are finite and stay in 0..1, and the canvas keeps its size;
//! - every draw comes from the generator passed in, so the same seed gives the same view, and
//!   nothing is kept from one view to the next;
//! - nothing is allocated while a view is made: buffers come with the kind. (The resizer alone
//!   allocates a table of weights for each size that it meets.)
//!
//! To add one:
//!
//! 1. Write `NAME.rs` beside the others: paper, struct, [`Augmentation`], the pure math as free
//!    functions, tests.
//! 2. Give [`ViewRecipe`] its probability and ranges and say in [`Recipe::view`] what the papers
//!    have.
//! 3. Give [`Config`] the keys that replace them.
//! 4. Add it to [`Kind`], its row to [`Kind::ALL`] where its turn is, and its line to `Kind::step`.

mod augmenter;
mod blur;
mod canvas;
mod config;
mod crop;
mod flip;
mod greyscale;
mod group;
mod jitter;
mod normalise;
mod plain;
mod preprocess;
mod recipe;
mod resize;
mod rotate;
mod solarise;

#[cfg(test)]
mod golden;

pub use augmenter::{Augmenter, view_rng};
pub use canvas::Canvas;
pub use config::Config;
pub use group::{Side, ViewGroup, enough};
pub use plain::plain_view;
pub use preprocess::Preprocess;
pub use recipe::{Recipe, ViewRecipe};

use crate::seed::Rng;
use rand::RngExt;

/// One way to change a view at random; the module's contract holds for it.
pub trait Augmentation: Send {
    /// Changes `canvas`, drawing from `rng` what is left to chance.
    fn apply(&mut self, canvas: &mut Canvas, rng: &mut Rng);
}

/// The augmentations there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Left and right mirrored.
    HorizontalFlip,
    /// Top and bottom mirrored.
    VerticalFlip,
    /// Turned by 90, 180 or 270 degrees.
    QuarterTurn,
    /// Turned by any angle.
    Rotation,
    /// Brightness, contrast, saturation and hue changed.
    ColourJitter,
    /// Colour dropped.
    Greyscale,
    /// Blurred.
    Blur,
    /// Bright values inverted.
    Solarise,
}

impl Kind {
    /// Every kind, in the order in which they are applied: the papers', with geometry first.
    pub const ALL: [Self; 8] = [
        Self::HorizontalFlip,
        Self::VerticalFlip,
        Self::QuarterTurn,
        Self::Rotation,
        Self::ColourJitter,
        Self::Greyscale,
        Self::Blur,
        Self::Solarise,
    ];

    /// The kind as `view` wants it, for views of `side_px`.
    fn step(self, view: &ViewRecipe, side_px: usize) -> Step {
        match self {
            Self::HorizontalFlip => {
                Step::new(view.horizontal_flip_probability, flip::HorizontalFlip)
            }
            Self::VerticalFlip => Step::new(view.vertical_flip_probability, flip::VerticalFlip),
            Self::QuarterTurn => {
                Step::new(view.quarter_turn_probability, rotate::QuarterTurn::new(side_px))
            }
            Self::Rotation => {
                let rotation = rotate::Rotation::new(view.rotation_max_degrees, side_px);
                Step::new(view.rotation_probability, rotation)
            }
            Self::ColourJitter => {
                let ViewRecipe { brightness, contrast, saturation, hue, .. } = *view;
                let jitter = jitter::ColourJitter::new(brightness, contrast, saturation, hue);
                Step::new(view.jitter_probability, jitter)
            }
            Self::Greyscale => Step::new(view.greyscale_probability, greyscale::Greyscale),
            Self::Blur => {
                Step::new(view.blur_probability, blur::Blur::new(view.blur_sigma_px, side_px))
            }
            Self::Solarise => {
                let threshold = view.solarise_threshold;
                Step::new(view.solarise_probability, solarise::Solarise { threshold })
            }
        }
    }
}

/// An augmentation and how often it is applied.
struct Step {
    probability: f32,
    augmentation: Box<dyn Augmentation>,
}

impl Step {
    fn new(probability: f32, augmentation: impl Augmentation + 'static) -> Self {
        Self { probability, augmentation: Box::new(augmentation) }
    }

    fn run(&mut self, canvas: &mut Canvas, rng: &mut Rng) {
        if rng.random_bool(f64::from(self.probability)) {
            self.augmentation.apply(canvas, rng);
        }
    }
}

#[cfg(test)]
mod contract {
    use super::canvas::tests::noise;
    use super::*;
    use crate::seed::{Purpose, rng};

    const SIDES_PX: [usize; 4] = [1, 2, 17, 40];

    /// Runs every kind with `probability` on canvases of several sizes and contents, and hands
    /// `check` the kind and the canvas before and after.
    fn walk(probability: f32, check: impl Fn(Kind, &Canvas, &Canvas)) {
        // SimCLR at its full strength, so that clamping is met.
        let view = Recipe::Simclr.view(0, 1.0);
        for (kind, side_px) in Kind::ALL.into_iter().flat_map(|k| SIDES_PX.map(|side| (k, side))) {
            let mut step = kind.step(&view, side_px);
            step.probability = probability;
            for seed in 0..20 {
                let mut rng = rng(seed, Purpose::View, &[]);
                let mut before = noise(side_px, &mut rng);
                match seed {
                    0 => before.values_mut().fill(0.0),
                    1 => before.values_mut().fill(1.0),
                    2 => before.values_mut().iter_mut().for_each(|value| *value = value.round()),
                    _ => {}
                }
                let mut after = before.clone();
                step.run(&mut after, &mut rng);
                check(kind, &before, &after);
            }
        }
    }

    #[test]
    fn values_stay_in_range_and_the_size_is_kept() {
        walk(1.0, |kind, before, after| {
            assert_eq!(after.side_px(), before.side_px(), "{kind:?}");
            assert_eq!(after.values().len(), before.values().len(), "{kind:?}");
            let in_range = after.values().iter().all(|value| (0.0..=1.0).contains(value));
            assert!(in_range, "{kind:?}: {after:?}");
        });
    }

    #[test]
    fn probability_0_is_the_identity() {
        walk(0.0, |kind, before, after| assert_eq!(before, after, "{kind:?}"));
    }

    #[test]
    fn probability_1_changes_an_image() {
        let view = Recipe::Simclr.view(0, 1.0);
        for kind in Kind::ALL {
            let mut step = kind.step(&view, 17);
            step.probability = 1.0;
            let mut rng = rng(3, Purpose::View, &[]);
            let before = noise(17, &mut rng);
            let mut after = before.clone();
            step.run(&mut after, &mut rng);
            assert_ne!(before, after, "{kind:?}");
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_result_whatever_came_before() {
        let view = Recipe::Simclr.view(0, 1.0);
        for kind in Kind::ALL {
            let mut step = kind.step(&view, 17);
            step.probability = 0.5;
            let mut run = |seed| {
                let mut rng = rng(seed, Purpose::View, &[]);
                let mut canvas = noise(17, &mut rng);
                step.run(&mut canvas, &mut rng);
                canvas
            };
            let first: Vec<Canvas> = (0..10).map(&mut run).collect();
            let again: Vec<Canvas> = (0..10).rev().map(&mut run).collect();
            assert!(first.iter().eq(again.iter().rev()), "{kind:?}");
        }
    }

    #[test]
    fn the_table_has_every_kind_once() {
        for (i, kind) in Kind::ALL.iter().enumerate() {
            assert!(!Kind::ALL[..i].contains(kind), "{kind:?} is listed twice");
        }
    }
}
