//! From an image to one of its views.

use super::crop::Crop;
use super::normalise::Normalise;
use super::resize::SquareResizer;
use super::rotate::turn;
use super::{Canvas, Config, Kind, Preprocess, Step, ViewGroup};
use crate::decode::Pixels;
use crate::seed::{self, Purpose, Rng};

/// The generator of view `view_index` of an image at its `use_count`th use.
///
/// `origin_seed` is [`crate::source::Origin::seed`]: the same image, use and view have the same
/// generator whichever thread or batch they meet in.
pub fn view_rng(seed: u64, origin_seed: u64, use_count: u64, view_index: u64) -> Rng {
    seed::rng(seed, Purpose::View, &[origin_seed, use_count, view_index])
}

/// Makes views. Each worker thread has its own: it keeps the buffers that views are made in.
pub struct Augmenter {
    groups: Vec<Group>,
    normalise: Normalise,
}

/// What makes the views of a group.
struct Group {
    wanted: ViewGroup,
    resizer: SquareResizer,
    canvas: Canvas,
    turned: Canvas,
    /// What makes view a, and what makes view b.
    steps: [Steps; 2],
}

/// What is done to the image, in order.
struct Steps {
    crop: Crop,
    middle: Vec<Step>,
}

impl Steps {
    fn new(config: &Config, wanted: &ViewGroup, view_index: usize, side_px: usize) -> Self {
        let view = wanted.adapt(config.view(view_index, side_px));
        Self {
            crop: Crop { area: view.crop_area, aspect: view.crop_aspect },
            middle: Kind::ALL.into_iter().map(|kind| kind.step(&view, side_px)).collect(),
        }
    }
}

impl Augmenter {
    /// An augmenter by a valid `config` for the views of `groups`, as the encoder's input that
    /// `preprocess` describes.
    pub fn new(config: &Config, preprocess: &Preprocess, groups: &[ViewGroup]) -> Self {
        let group = |&wanted: &ViewGroup| {
            let side_px = wanted.side.px(preprocess.side_px);
            Group {
                wanted,
                resizer: SquareResizer::new(side_px),
                canvas: Canvas::new(side_px),
                turned: Canvas::new(side_px),
                steps: [0, 1].map(|view_index| Steps::new(config, &wanted, view_index, side_px)),
            }
        };
        let groups = groups.iter().map(group).collect();
        Self { groups, normalise: Normalise::new(preprocess) }
    }

    /// Writes a view of `pixels` to `out`, `[H, W, C]` of its group's side.
    ///
    /// `view_index` counts through the views of all groups. The view depends on the arguments
    /// alone, never on the views made before.
    ///
    /// # Panics
    /// If `out` has another length, the groups have fewer views, or `pixels` is empty or has fewer
    /// bytes than its size asks for, which decoding rules out.
    pub fn view(&mut self, pixels: &Pixels, view_index: usize, rng: &mut Rng, out: &mut [f32]) {
        let canvas = paint(&mut self.groups, pixels, view_index, rng);
        assert_eq!(out.len(), canvas.values().len(), "out holds one view");
        self.normalise.canvas(canvas, out);
    }
}

/// Everything but normalising: the view in 0..1.
fn paint<'a>(
    groups: &'a mut [Group],
    pixels: &Pixels,
    view_index: usize,
    rng: &mut Rng,
) -> &'a Canvas {
    let (mut group, mut view_index) = (0, view_index);
    while view_index >= groups[group].wanted.views_per_image {
        view_index -= groups[group].wanted.views_per_image;
        group += 1;
    }
    groups[group].paint(pixels, view_index, rng)
}

impl Group {
    fn paint(&mut self, pixels: &Pixels, view_index: usize, rng: &mut Rng) -> &Canvas {
        let Self { wanted, resizer, canvas, turned, steps } = self;
        let steps = &mut steps[view_index % 2];
        let region = steps.crop.draw(pixels.width_px, pixels.height_px, rng);
        canvas.paint(resizer.cut(pixels, region));
        for step in &mut steps.middle {
            step.run(canvas, rng);
        }
        turn(canvas, wanted.n_turns(view_index), turned);
        canvas
    }
}

#[cfg(test)]
mod tests {
    use super::super::Side;
    use super::super::canvas::tests::distance;
    use super::super::resize::tests::noise;
    use super::*;
    use proptest::prelude::*;

    fn config(text: &str) -> Config {
        toml::from_str(text).unwrap()
    }

    const PAIR: [ViewGroup; 1] = [ViewGroup::alike(2)];

    /// A section under which nothing is left to chance but the crop.
    const NO_CHANCE: &str = "
        horizontal_flip_probability = 0.0
        jitter_probability = 0.0
        greyscale_probability = 0.0
        blur_probability = [0.0, 0.0]
        solarise_probability = [0.0, 0.0]
    ";
    /// A section under which everything happens to every view.
    const EVERYTHING: &str = "
        jitter_strength = 2.5
        horizontal_flip_probability = 1.0
        vertical_flip_probability = 1.0
        quarter_turn_probability = 1.0
        rotation_probability = 1.0
        rotation_max_degrees = 180.0
        jitter_probability = 1.0
        greyscale_probability = 0.5
        blur_probability = [1.0, 1.0]
        solarise_probability = [1.0, 1.0]
    ";

    proptest! {
        #[test]
        fn views_of_any_image_lie_in_range(
            width in 1_u32..90,
            height in 1_u32..90,
            side_px in 1_usize..50,
            seed: u64,
        ) {
            let pixels = noise(width, height, seed);
            let preprocess = Preprocess::imagenet(side_px);
            let mut augmenter = Augmenter::new(&config(EVERYTHING), &preprocess, &PAIR);
            for view_index in [0, 1] {
                let mut rng = view_rng(seed, 1, 0, view_index as u64);
                let values = paint(&mut augmenter.groups, &pixels, view_index, &mut rng).values();
                prop_assert!(values.iter().all(|value| (0.0..=1.0).contains(value)));
            }
        }
    }

    #[test]
    fn a_view_is_a_function_of_image_and_generator() {
        let preprocess = Preprocess::imagenet(24);
        let (first_image, second_image) = (noise(40, 30, 1), noise(30, 50, 2));
        let config = config(EVERYTHING);
        let view = |augmenter: &mut Augmenter, pixels: &Pixels, use_count| {
            let mut out = vec![0.0; preprocess.input_len()];
            augmenter.view(pixels, 0, &mut view_rng(7, 1, use_count, 0), &mut out);
            out
        };
        let mut fresh = Augmenter::new(&config, &preprocess, &PAIR);
        let mut used = Augmenter::new(&config, &preprocess, &PAIR);
        view(&mut used, &second_image, 5);
        let expected = view(&mut fresh, &first_image, 0);
        assert_eq!(view(&mut used, &first_image, 0), expected);
        assert_ne!(view(&mut used, &first_image, 1), expected);
    }

    #[test]
    fn without_chance_and_crop_a_view_is_the_plain_one() {
        let whole = "crop_area = [1.0, 1.0]\ncrop_aspect = [1.0, 1.0]\n";
        let config = config(&format!("{whole}{NO_CHANCE}"));
        let preprocess = Preprocess::imagenet(16);
        for side_px in [16, 40] {
            let pixels = noise(side_px, side_px, 3);
            let (mut view, mut plain) = (vec![0.0; 768], vec![0.0; 768]);
            let mut augmenter = Augmenter::new(&config, &preprocess, &PAIR);
            augmenter.view(&pixels, 0, &mut view_rng(1, 2, 3, 0), &mut view);
            super::super::plain_view(&pixels, &preprocess, &mut plain);
            assert_eq!(view, plain);
        }
    }

    #[test]
    fn even_views_follow_view_a_and_odd_ones_view_b() {
        let solarised_b = format!("{NO_CHANCE}\ncrop_area = [1.0, 1.0]\ncrop_aspect = [1.0, 1.0]")
            .replace("solarise_probability = [0.0, 0.0]", "solarise_probability = [0.0, 1.0]");
        let preprocess = Preprocess { side_px: 2, mean: [0.0; 3], std: [1.0; 3] };
        let groups = [ViewGroup::alike(4)];
        let mut augmenter = Augmenter::new(&config(&solarised_b), &preprocess, &groups);
        let white = Pixels { width_px: 2, height_px: 2, rgb: vec![255; 12] };
        for (view_index, value) in [1.0, 0.0, 1.0, 0.0].into_iter().enumerate() {
            let mut out = [0.5; 12];
            augmenter.view(&white, view_index, &mut view_rng(1, 1, 0, 0), &mut out);
            assert!(distance(&out, &[value; 12]) == 0.0, "view {view_index} is {out:?}");
        }
    }

    #[test]
    fn a_group_has_its_own_crop_and_its_turns_are_its_labels() {
        // Four pixels of four greys: a quarter of the area is one of them, and a turn is seen.
        let greys = [10, 60, 120, 240];
        let rgb = greys.iter().flat_map(|&grey| [grey; 3]).collect();
        let pixels = Pixels { width_px: 2, height_px: 2, rgb };
        let whole =
            "crop_area = [1.0, 1.0]\ncrop_aspect = [1.0, 1.0]\nquarter_turn_probability = 1.0";
        let preprocess = Preprocess { side_px: 2, mean: [0.0; 3], std: [1.0; 3] };
        let quarter = ViewGroup { crop_area: Some([0.25; 2]), ..ViewGroup::alike(1) };
        let turned = ViewGroup { is_turned: true, ..ViewGroup::alike(5) };
        let config = config(&format!("{whole}\n{NO_CHANCE}"));
        let mut augmenter = Augmenter::new(&config, &preprocess, &[quarter, turned]);
        let mut view = |view_index: usize| -> Vec<u8> {
            let mut out = [0.0; 12];
            augmenter.view(&pixels, view_index, &mut view_rng(1, 1, 0, 0), &mut out);
            out.chunks(3).map(|pixel| (pixel[0] * 255.0).round() as u8).collect()
        };
        let cut = view(0);
        assert!(greys.contains(&cut[0]) && cut.iter().all(|grey| *grey == cut[0]), "{cut:?}");
        assert_eq!(view(1), greys);
        assert_eq!(view(2), [60, 240, 10, 120]);
        assert_eq!(view(3), [240, 120, 60, 10]);
        assert_eq!(view(4), [120, 10, 240, 60]);
        assert_eq!(view(5), greys);
    }

    #[test]
    fn a_group_has_its_own_side() {
        let small = ViewGroup { side: Side::Px(6), ..ViewGroup::alike(1) };
        let preprocess = Preprocess::imagenet(16);
        let groups = [ViewGroup::alike(1), small];
        assert_eq!(groups.map(|group| group.view_len(16)), [768, 108]);
        let config = config(EVERYTHING);
        let pixels = noise(20, 30, 1);
        let view = |preprocess: &Preprocess, groups: &[ViewGroup], view_index, len| {
            let mut out = vec![0.0; len];
            let mut augmenter = Augmenter::new(&config, preprocess, groups);
            augmenter.view(&pixels, view_index, &mut view_rng(1, 2, 3, 4), &mut out);
            out
        };
        // Beside a larger group it is what it is alone.
        let alone = view(&Preprocess::imagenet(6), &[ViewGroup::alike(1)], 0, 108);
        assert_eq!(view(&preprocess, &groups, 1, 108), alone);
    }

    #[test]
    fn every_counter_of_a_view_matters() {
        use rand::RngExt;
        let draw = |a, b, c, d| view_rng(a, b, c, d).random::<u64>();
        let first = draw(1, 2, 3, 4);
        assert_eq!(first, draw(1, 2, 3, 4));
        for other in [draw(0, 2, 3, 4), draw(1, 0, 3, 4), draw(1, 2, 0, 4), draw(1, 2, 3, 0)] {
            assert_ne!(first, other);
        }
    }
}
