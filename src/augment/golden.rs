//! Agreement with torchvision's v2 transforms on the results in `tests/golden/augment.json`.

use super::canvas::tests::distance;
use super::jitter::{Change, change};
use super::resize::{Region, SquareResizer};
use super::*;
use crate::decode::Pixels;
use crate::seed::{Purpose, rng};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    square: Vec<u8>,
    wide: Vec<u8>,
    tall: Vec<u8>,
    operations: Vec<Operation>,
    crops: Vec<Cropped>,
    middles: Vec<Middle>,
}

#[derive(Deserialize)]
struct Operation {
    name: String,
    arguments: Vec<f32>,
    result: Vec<f32>,
}

#[derive(Deserialize)]
struct Cropped {
    region: [u32; 4],
    side_px: usize,
    result: Vec<u8>,
}

#[derive(Deserialize)]
struct Middle {
    source: String,
    side_px: usize,
    result: Vec<u8>,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("../../tests/golden/augment.json")).unwrap()
}

fn wide(golden: &Golden) -> Pixels {
    Pixels { width_px: 12, height_px: 10, rgb: golden.wide.clone() }
}

fn run(operation: &Operation, canvas: &mut Canvas) {
    let mut rng = rng(1, Purpose::View, &[]);
    match (operation.name.as_str(), operation.arguments.as_slice()) {
        ("brightness", &[factor]) => change(canvas, &mut [Change::Brightness(factor)]),
        ("contrast", &[factor]) => change(canvas, &mut [Change::Contrast(factor)]),
        ("saturation", &[factor]) => change(canvas, &mut [Change::Saturation(factor)]),
        ("hue", &[turns]) => change(canvas, &mut [Change::Hue(turns)]),
        ("greyscale", []) => greyscale::Greyscale.apply(canvas, &mut rng),
        ("solarise", &[threshold]) => solarise::Solarise { threshold }.apply(canvas, &mut rng),
        ("blur", &[radius_px, sigma_px]) => {
            blur::Blur::with_radius([sigma_px; 2], radius_px as usize, canvas.side_px())
                .apply(canvas, &mut rng);
        }
        ("horizontal_flip", []) => flip::HorizontalFlip.apply(canvas, &mut rng),
        ("vertical_flip", []) => flip::VerticalFlip.apply(canvas, &mut rng),
        ("rotate", &[degrees]) => {
            let original = canvas.clone();
            rotate::rotate(&original, degrees, canvas);
        }
        (name, arguments) => panic!("{name} of {arguments:?} is not known here"),
    }
}

/// Operations in floating point agree to 1e-5: the file has six digits, and torchvision's
/// rotation computes positions through a grid in -1..1, which costs it about 3e-6.
#[test]
fn operations_agree_with_torchvision() {
    let golden = golden();
    for operation in &golden.operations {
        let mut canvas = Canvas::new(10);
        canvas.paint(&golden.square);
        run(operation, &mut canvas);
        let distance = distance(canvas.values(), &operation.result);
        let Operation { name, arguments, .. } = operation;
        assert!(distance < 1e-5, "{name} of {arguments:?} is off by {distance}");
    }
}

/// Resized bytes agree to one level: torchvision rounds the pass over columns to bytes first,
/// the resizer here the one over rows.
fn assert_within_one_level(ours: &[u8], theirs: &[u8], what: &str) {
    assert_eq!(ours.len(), theirs.len());
    let most = ours.iter().zip(theirs).map(|(a, b)| a.abs_diff(*b)).max();
    assert!(most <= Some(1), "{what} is off by {most:?} levels");
}

#[test]
fn crops_agree_with_torchvision() {
    let golden = golden();
    for crop in &golden.crops {
        let [left_px, top_px, width_px, height_px] = crop.region;
        let region = Region { left_px, top_px, width_px, height_px };
        let mut resizer = SquareResizer::new(crop.side_px);
        let what = format!("{region:?} at {} px", crop.side_px);
        assert_within_one_level(resizer.cut(&wide(&golden), region), &crop.result, &what);
    }
}

#[test]
fn plain_views_agree_with_torchvision() {
    let golden = golden();
    let tall = Pixels { width_px: 10, height_px: 12, rgb: golden.tall.clone() };
    for middle in &golden.middles {
        let pixels = if middle.source == "wide" { wide(&golden) } else { tall.clone() };
        let mut resizer = SquareResizer::new(middle.side_px);
        let what = format!("{} at {} px", middle.source, middle.side_px);
        assert_within_one_level(resizer.centre(&pixels), &middle.result, &what);
    }
}
