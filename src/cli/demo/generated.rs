//! Generated images, for where no real ones can be had: four shapes in any colours and places.

use crate::seed::{self, Purpose, Rng};
use anyhow::{Context, Result};
use image::{Rgb, RgbImage};
use rand::RngExt;
use std::fs;
use tempfile::TempDir;

/// Side of each image.
pub(super) const SIDE_PX: u32 = 32;
const IMAGES_PER_SHAPE: usize = 500;
/// Whether a point of the plane lies inside a shape of radius 1.
type Shape = fn(f32, f32) -> bool;
const SHAPES: [(&str, Shape); 4] = [
    ("disc", |x, y| x * x + y * y < 1.0),
    ("square", |x, y| x.abs().max(y.abs()) < 0.8),
    ("ring", |x, y| (0.4..1.0).contains(&(x * x + y * y))),
    ("cross", |x, y| x.abs().min(y.abs()) < 0.3 && x.abs().max(y.abs()) < 1.0),
];

/// Writes the images into a folder of their own, one folder a shape.
pub(super) fn write() -> Result<TempDir> {
    let dir = tempfile::tempdir().context("a folder for generated images")?;
    for (shape, (name, contains)) in SHAPES.into_iter().enumerate() {
        let folder = dir.path().join(name);
        fs::create_dir(&folder)?;
        for index in 0..IMAGES_PER_SHAPE {
            let mut rng = seed::rng(0, Purpose::Shuffle, &[shape as u64, index as u64]);
            let path = folder.join(format!("{index:04}.png"));
            draw(contains, &mut rng).save(&path).context("writing a generated image")?;
        }
    }
    Ok(dir)
}

fn draw(contains: Shape, rng: &mut Rng) -> RgbImage {
    let colour = |rng: &mut Rng| [0; 3].map(|_: u8| rng.random::<u8>());
    let (ground, ink) = (colour(rng), colour(rng));
    let side = SIDE_PX as f32;
    let radius = side * rng.random_range(0.2..0.4f32);
    let [centre_x, centre_y] = [0; 2].map(|_| side * rng.random_range(0.35..0.65f32));
    RgbImage::from_fn(SIDE_PX, SIDE_PX, |x, y| {
        let is_inside = contains((x as f32 - centre_x) / radius, (y as f32 - centre_y) / radius);
        let noise = rng.random_range(0..24u8);
        Rgb((if is_inside { ink } else { ground }).map(|value| value.saturating_add(noise)))
    })
}
