//! Colour jitter: brightness, contrast, saturation and hue change by random factors, in random
//! order.
//!
//! SimCLR (arXiv 2002.05709, appendix A) in torchvision's form, `ColorJitter`:
//!
//! - brightness f: `v f`
//! - contrast f: `v f + (1 - f) m`, m the mean luma of the image
//! - saturation f: `v f + (1 - f) l`, l the luma of the pixel
//! - hue t: the hue of HSV moves on by t turns of the colour circle
//!
//! each clamped to 0..1.

//! Contrast needs the mean of the whole image, so it is one pass to change what comes before it and
//! to sum lumas, and one for it and what comes after; in a pass a stretch of the image takes every
//! change while it lies in the first-level cache.

use super::greyscale::luma;
use super::{Augmentation, Canvas};
use crate::isa::{Isa, at_every_level};
use crate::seed::Rng;
use rand::RngExt;
use rand::seq::SliceRandom;

/// What one change does.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Brightness,
    Contrast,
    Saturation,
    Hue,
}

/// Changes colours at random.
pub(super) struct ColourJitter {
    /// Each change with its largest amount; one of amount 0 is left out.
    changes: [(Kind, f32); 4],
}

impl ColourJitter {
    /// Factors are drawn uniformly from `max(0, 1 - amount)..=1 + amount` and the hue's from
    /// `-amount..=amount` turns.
    pub(super) fn new(brightness: f32, contrast: f32, saturation: f32, hue: f32) -> Self {
        let changes = [
            (Kind::Brightness, brightness),
            (Kind::Contrast, contrast),
            (Kind::Saturation, saturation),
            (Kind::Hue, hue),
        ];
        Self { changes }
    }
}

impl Augmentation for ColourJitter {
    fn apply(&mut self, canvas: &mut Canvas, rng: &mut Rng) {
        let mut kinds = self.changes;
        kinds.shuffle(rng);
        let mut changes = [Change::Brightness(1.0); 4];
        let mut n_changes = 0;
        for (kind, amount) in kinds.into_iter().filter(|(_, amount)| *amount > 0.0) {
            // The hue's amount is half a turn at most.
            let offset = rng.random_range(-amount.min(1.0)..=amount);
            let factor = 1.0 + offset;
            changes[n_changes] = match kind {
                Kind::Brightness => Change::Brightness(factor),
                Kind::Contrast => Change::Contrast(factor),
                Kind::Saturation => Change::Saturation(factor),
                Kind::Hue => Change::Hue(offset),
            };
            n_changes += 1;
        }
        change(canvas, &mut changes[..n_changes]);
    }
}

/// A change and how strong it is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Change {
    /// Scales every value by the factor.
    Brightness(f32),
    /// Moves every value away from the image's mean luma by the factor.
    Contrast(f32),
    /// Scales every value and adds to it: contrast once the mean is known.
    Affine { factor: f32, grey: f32 },
    /// Moves every value away from its pixel's luma by the factor.
    Saturation(f32),
    /// Moves every hue on by so many turns of the colour circle, from -0.5 to 0.5.
    Hue(f32),
}

/// Makes `changes` in turn; of contrast there is one at most.
pub(super) fn change(canvas: &mut Canvas, changes: &mut [Change]) {
    let isa = Isa::best();
    let n_pixels = (canvas.side_px() * canvas.side_px()) as f32;
    let mut start = 0;
    for index in 0..changes.len() {
        if let Change::Contrast(factor) = changes[index] {
            let mean = sweep(isa, canvas.planes_mut(), &changes[start..index]) / n_pixels;
            changes[index] = Change::Affine { factor, grey: mean * (1.0 - factor) };
            start = index;
        }
    }
    sweep(isa, canvas.planes_mut(), &changes[start..]);
}

/// Pixels that take every change before the next ones do: three times 4 KiB.
const STRETCH: usize = 1024;
/// Sums of lumas that are kept apart: that is a vector loop, and more exact than one sum.
const LANES: usize = 16;

at_every_level! {
    /// Makes `changes`, none of them contrast, in turn and returns the sum of the pixels' lumas.
    fn sweep(planes: [&mut [f32]; 3], changes: &[Change]) -> f32 {
        let [red, green, blue] = planes;
        let mut sums = [0.0; LANES];
        let stretches = red.chunks_mut(STRETCH).zip(green.chunks_mut(STRETCH));
        for ((red, green), blue) in stretches.zip(blue.chunks_mut(STRETCH)) {
            for &change in changes {
                match change {
                    Change::Brightness(factor) => {
                        each(red, green, blue, |[r, g, b]| [r, g, b].map(|v| (v * factor).min(1.0)));
                    }
                    Change::Contrast(_) => {}
                    Change::Affine { factor, grey } => each(red, green, blue, |pixel| {
                        pixel.map(|value| (value * factor + grey).clamp(0.0, 1.0))
                    }),
                    Change::Saturation(factor) => each(red, green, blue, |[r, g, b]| {
                        let grey = luma(r, g, b) * (1.0 - factor);
                        [r, g, b].map(|value| (value * factor + grey).clamp(0.0, 1.0))
                    }),
                    Change::Hue(turns) => {
                        let sixths = turns * 6.0;
                        each(red, green, blue, |pixel| turn_hue(pixel, sixths));
                    }
                }
            }
            add_lumas(&mut sums, red, green, blue);
        }
        sums.iter().sum()
    }
}

/// Changes every pixel by itself.
#[inline(always)]
fn each(
    red: &mut [f32],
    green: &mut [f32],
    blue: &mut [f32],
    change: impl Fn([f32; 3]) -> [f32; 3],
) {
    for ((red, green), blue) in red.iter_mut().zip(green).zip(blue) {
        [*red, *green, *blue] = change([*red, *green, *blue]);
    }
}

/// Adds the lumas of a stretch.
#[inline(always)]
fn add_lumas(sums: &mut [f32; LANES], red: &[f32], green: &[f32], blue: &[f32]) {
    let chunks = red.chunks(LANES).zip(green.chunks(LANES)).zip(blue.chunks(LANES));
    for ((red, green), blue) in chunks {
        for (sum, ((red, green), blue)) in sums.iter_mut().zip(red.iter().zip(green).zip(blue)) {
            *sum += luma(*red, *green, *blue);
        }
    }
}

/// A colour whose hue is moved on by `sixths` of the circle, from -3 to 3.
///
/// From HSV back to RGB, each channel is `value - chroma * min(k, 4 - k, 1)` cut off at 0, where
/// k is the hue's distance from the channel's own corner of the circle. Angles are counted in
/// chromas here, so that a circle has six of them and nothing is divided; grey, whose chroma is 0,
/// has no hue and needs no case. They are kept within the circle by selects, since a remainder would
/// keep the loop from being vectorised.
#[inline(always)]
fn turn_hue([red, green, blue]: [f32; 3], sixths: f32) -> [f32; 3] {
    let value = red.max(green).max(blue);
    let chroma = value - red.min(green).min(blue);
    let circle = 6.0 * chroma;
    let old = if value == red {
        green - blue
    } else if value == green {
        blue - red + 2.0 * chroma
    } else {
        red - green + 4.0 * chroma
    };
    let turned = old + sixths * chroma;
    let turned = if turned < 0.0 { turned + circle } else { turned };
    let turned = if turned >= circle { turned - circle } else { turned };
    let channel = |corner: f32| {
        let k = corner * chroma + turned;
        let k = if k >= circle { k - circle } else { k };
        let away = k.min(4.0 * chroma - k);
        let away = if away > 0.0 { away } else { 0.0 };
        value - if away < chroma { away } else { chroma }
    };
    [channel(5.0), channel(3.0), channel(1.0)]
}

#[cfg(test)]
mod tests {
    use super::super::canvas::tests::{distance, noise};
    use super::*;
    use crate::seed::{Purpose, rng};
    use proptest::prelude::*;

    fn brightness(canvas: &mut Canvas, factor: f32) {
        change(canvas, &mut [Change::Brightness(factor)]);
    }

    fn contrast(canvas: &mut Canvas, factor: f32) {
        change(canvas, &mut [Change::Contrast(factor)]);
    }

    fn saturation(canvas: &mut Canvas, factor: f32) {
        change(canvas, &mut [Change::Saturation(factor)]);
    }

    fn hue(canvas: &mut Canvas, turns: f32) {
        change(canvas, &mut [Change::Hue(turns)]);
    }

    fn one_pixel(colour: [f32; 3]) -> Canvas {
        let mut canvas = Canvas::new(1);
        canvas.values_mut().copy_from_slice(&colour);
        canvas
    }

    fn after(colour: [f32; 3], change: impl Fn(&mut Canvas)) -> Vec<f32> {
        let mut canvas = one_pixel(colour);
        change(&mut canvas);
        canvas.values().to_vec()
    }

    /// As torchvision draws them: a factor that could be less than nothing is not drawn, so none is 0 more often
    /// than any other. Amounts of 2 give factors from 0 to 3, of which a twentieth lie below .15.
    #[test]
    fn factors_of_amounts_above_one_are_uniform_from_zero() {
        let mut jitter = ColourJitter::new(2.0, 0.0, 0.0, 0.0);
        let mut rng = rng(7, Purpose::View, &[]);
        let n_dark = (0..2000).filter(|_| {
            let mut canvas = one_pixel([1.0; 3]);
            jitter.apply(&mut canvas, &mut rng);
            canvas.values()[0] < 0.15
        });
        // Five standard deviations beside a twentieth.
        let n_dark = n_dark.count();
        assert!((51..=149).contains(&n_dark), "{n_dark}");
    }

    /// Smith's conversions (SIGGRAPH 1978), case by case, in f64; hue in turns.
    fn turn_hue_by_cases(colour: [f32; 3], turns: f32) -> [f32; 3] {
        let [red, green, blue] = colour.map(f64::from);
        let value = red.max(green).max(blue);
        let chroma = value - red.min(green).min(blue);
        if chroma == 0.0 {
            return colour;
        }
        let sixths = if value == red {
            (green - blue) / chroma
        } else if value == green {
            (blue - red) / chroma + 2.0
        } else {
            (red - green) / chroma + 4.0
        };
        let hue = (sixths + 6.0 * f64::from(turns)).rem_euclid(6.0);
        let saturation = chroma / value;
        let fraction = hue.fract();
        let p = value * (1.0 - saturation);
        let q = value * (1.0 - saturation * fraction);
        let t = value * (1.0 - saturation * (1.0 - fraction));
        let turned = match hue.floor() as u8 {
            0 => [value, t, p],
            1 => [q, value, p],
            2 => [p, value, t],
            3 => [p, q, value],
            4 => [t, p, value],
            _ => [value, p, q],
        };
        turned.map(|channel| channel as f32)
    }

    #[test]
    fn factors_of_one_and_no_turn_change_nothing() {
        let original = noise(9, &mut rng(1, Purpose::View, &[]));
        for change in [brightness, contrast, saturation] {
            let mut canvas = original.clone();
            change(&mut canvas, 1.0);
            assert_eq!(canvas, original);
        }
        let mut canvas = original.clone();
        hue(&mut canvas, 0.0);
        assert!(distance(canvas.values(), original.values()) < 1e-6);
    }

    #[test]
    fn factors_of_zero_leave_black_grey_and_the_luma() {
        assert_eq!(after([0.2, 0.4, 0.6], |c| brightness(c, 0.0)), [0.0; 3]);
        let grey = 0.2989 * 0.2 + 0.587 * 0.4 + 0.114 * 0.6;
        assert!(distance(&after([0.2, 0.4, 0.6], |c| saturation(c, 0.0)), &[grey; 3]) < 1e-6);

        let mut canvas = noise(9, &mut rng(2, Purpose::View, &[]));
        let [red, green, blue] = canvas.planes();
        let lumas = (0..81).map(|i| luma(red[i], green[i], blue[i]));
        let mean = lumas.map(f64::from).sum::<f64>() / 81.0;
        contrast(&mut canvas, 0.0);
        assert!(canvas.values().iter().all(|&value| (f64::from(value) - mean).abs() < 1e-6));
    }

    #[test]
    fn values_beyond_white_and_black_are_cut_off() {
        assert_eq!(after([0.5, 0.6, 0.1], |c| brightness(c, 2.0))[..2], [1.0, 1.0]);
        assert_eq!(after([1.0, 0.0, 0.0], |c| saturation(c, 2.0)), [1.0, 0.0, 0.0]);
    }

    #[test]
    fn a_third_of_a_turn_takes_red_to_green_to_blue_to_red() {
        let [red, green, blue] = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]];
        for (from, to) in [(red, green), (green, blue), (blue, red)] {
            assert!(distance(&after(from, |c| hue(c, 1.0 / 3.0)), &to) < 1e-6);
            assert!(distance(&after(to, |c| hue(c, -1.0 / 3.0)), &from) < 1e-6);
        }
    }

    proptest! {
        #[test]
        fn hue_agrees_with_the_case_by_case_conversion(
            colour in prop::array::uniform3(0.0_f32..=1.0),
            grey in 0.0_f32..=1.0,
            turns in -0.5_f32..=0.5,
        ) {
            // The hue of a dull colour is ill-conditioned, but what it multiplies is small.
            for colour in [colour, [grey; 3], [grey, grey, colour[0]], [colour[0], grey, grey]] {
                let turned = after(colour, |c| hue(c, turns));
                prop_assert!(distance(&turned, &turn_hue_by_cases(colour, turns)) < 4e-6);
            }
        }
    }

    #[test]
    fn factors_are_uniform_over_their_range() {
        // On one grey pixel only brightness acts, so the factor can be read off.
        let mut rng = rng(3, Purpose::View, &[]);
        let mut jitter = ColourJitter::new(0.4, 0.0, 0.0, 0.0);
        let factors: Vec<f32> = (0..2000)
            .map(|_| {
                let mut canvas = one_pixel([0.5; 3]);
                jitter.apply(&mut canvas, &mut rng);
                canvas.values()[0] / 0.5
            })
            .collect();
        let (least, most) = factors.iter().fold((f32::MAX, 0.0_f32), |(least, most), &factor| {
            (least.min(factor), most.max(factor))
        });
        assert!((0.6..0.61).contains(&least) && (1.39..1.4001).contains(&most));
        let mean = factors.iter().sum::<f32>() / 2000.0;
        assert!((mean - 1.0).abs() < 0.026, "5 standard errors of a uniform mean: {mean}");
    }
}
