//! Antialiased bilinear resizing of a region to the square input.
//!
//! The triangle filter widens with the scale, as Pillow's and torchvision's `antialias=True` do:
//! a shrunk photo keeps no aliased edges that an enlarged thumbnail wouldn't have.

use crate::decode::Pixels;
use fast_image_resize::images::{Image, TypedCroppedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};

/// Part of an image, in whole pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Region {
    pub(super) left_px: u32,
    pub(super) top_px: u32,
    pub(super) width_px: u32,
    pub(super) height_px: u32,
}

/// Resizes to one size of square; keeps its buffers, so it is made once a thread.
pub(super) struct SquareResizer {
    resizer: Resizer,
    square: Image<'static>,
}

impl SquareResizer {
    pub(super) fn new(side_px: usize) -> Self {
        let side_px =
            u32::try_from(side_px).expect("the side of an encoder's input fits in 32 bits");
        Self { resizer: Resizer::new(), square: Image::new(side_px, side_px, PixelType::U8x3) }
    }

    /// Cuts `region` out and resizes it; no pixel outside it has a say. Returns `[H, W, C]`.
    ///
    /// A region that has the square's size already is copied unchanged.
    pub(super) fn cut(&mut self, pixels: &Pixels, region: Region) -> &[u8] {
        self.resize(pixels, region, &bilinear())
    }

    /// Resizes the image until its shorter side is the square's, then cuts the middle out.
    /// Returns `[H, W, C]`.
    ///
    /// Resize and cut are one pass here, whose cost doesn't grow with the longer side. The sizes
    /// are rounded as torchvision's `Resize` and `CenterCrop` round them.
    pub(super) fn centre(&mut self, pixels: &Pixels) -> &[u8] {
        let side = f64::from(self.square.width());
        let shorter = f64::from(pixels.width_px.min(pixels.height_px));
        let span = |length_px: u32| {
            let length = f64::from(length_px);
            let resized = (side * length / shorter).floor();
            let scale = length / resized;
            let start = ((resized - side) / 2.0).round_ties_even() * scale;
            (start, (side * scale).min(length - start))
        };
        let (left, width) = span(pixels.width_px);
        let (top, height) = span(pixels.height_px);
        let whole = Region {
            left_px: 0,
            top_px: 0,
            width_px: pixels.width_px,
            height_px: pixels.height_px,
        };
        self.resize(pixels, whole, &bilinear().crop(left, top, width, height))
    }

    /// Resizes by `options` what is inside `region`.
    ///
    /// Types are spelled out down to the pixel: the untyped images of the crate would compile its
    /// kernels for every kind of pixel it knows.
    fn resize(&mut self, pixels: &Pixels, region: Region, options: &ResizeOptions) -> &[u8] {
        let Pixels { width_px, height_px, rgb } = pixels;
        let image = TypedImageRef::<U8x3>::from_buffer(*width_px, *height_px, rgb)
            .expect("Pixels holds exactly its size in bytes");
        let Region { left_px, top_px, width_px, height_px } = region;
        let part = TypedCroppedImage::new(image, left_px, top_px, width_px, height_px)
            .expect("a region lies inside its image");
        let mut square = self.square.typed_image_mut().expect("the square was made of U8x3");
        self.resizer
            .resize_typed::<U8x3>(&part, &mut square, options)
            .expect("the options cut nothing that lies outside the region");
        self.square.buffer()
    }
}

fn bilinear() -> ResizeOptions {
    ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::seed::{Purpose, rng};
    use proptest::prelude::*;
    use rand::RngExt;

    /// An image of independent uniform bytes.
    pub(in crate::augment) fn noise(width_px: u32, height_px: u32, seed: u64) -> Pixels {
        let mut rng = rng(seed, Purpose::Evaluate, &[]);
        let n_bytes = width_px as usize * height_px as usize * 3;
        Pixels { width_px, height_px, rgb: (0..n_bytes).map(|_| rng.random()).collect() }
    }

    /// The textbook form: every output pixel is a mean of `region`, weighted by a triangle that
    /// is as wide as the scale.
    fn oracle(pixels: &Pixels, region: Region, side_px: usize) -> Vec<f64> {
        let weights = |start: u32, length: u32, index: usize| -> Vec<(u32, f64)> {
            let scale = f64::from(length) / side_px as f64;
            let centre = (index as f64 + 0.5) * scale;
            let triangle = |i: u32| {
                let offset = (f64::from(i) + 0.5 - centre) / scale.max(1.0);
                (start + i, (1.0 - offset.abs()).max(0.0))
            };
            let weights: Vec<_> = (0..length).map(triangle).collect();
            let total: f64 = weights.iter().map(|(_, weight)| weight).sum();
            weights.into_iter().map(|(i, weight)| (i, weight / total)).collect()
        };
        let mut out = Vec::new();
        for y in 0..side_px {
            let rows = weights(region.top_px, region.height_px, y);
            for x in 0..side_px {
                let columns = weights(region.left_px, region.width_px, x);
                for channel in 0..3 {
                    let mut value = 0.0;
                    for &(row, row_weight) in &rows {
                        for &(column, column_weight) in &columns {
                            let index = (row * pixels.width_px + column) as usize * 3 + channel;
                            value += row_weight * column_weight * f64::from(pixels.rgb[index]);
                        }
                    }
                    out.push(value);
                }
            }
        }
        out
    }

    #[test]
    fn cutting_agrees_with_the_weighted_mean() {
        let pixels = noise(23, 17, 1);
        for (side_px, region) in [
            (5, Region { left_px: 2, top_px: 3, width_px: 16, height_px: 12 }),
            (13, Region { left_px: 4, top_px: 1, width_px: 7, height_px: 16 }),
            (9, Region { left_px: 0, top_px: 0, width_px: 23, height_px: 17 }),
        ] {
            let mut resizer = SquareResizer::new(side_px);
            let square = resizer.cut(&pixels, region);
            for (&byte, exact) in square.iter().zip(oracle(&pixels, region, side_px)) {
                // Both passes round to bytes: at most 1/2 of a level each, and a hair for the
                // weights, which are 14 to 16 bit integers.
                assert!((f64::from(byte) - exact).abs() < 1.1, "{byte} is not {exact}");
            }
        }
    }

    #[test]
    fn the_middle_of_a_wide_image_is_that_of_the_resized_image() {
        // 40 x 10 becomes 20 x 5, whose middle starts at round(7.5) = 8, column 16 of 40. There
        // the neighbours beyond the cut do have a say, so compare away from its borders.
        let pixels = noise(40, 10, 2);
        let mut resizer = SquareResizer::new(5);
        let middle = resizer.centre(&pixels).to_vec();
        let region = Region { left_px: 16, top_px: 0, width_px: 10, height_px: 10 };
        let cut = resizer.cut(&pixels, region);
        for y in 0..5 {
            let inner = (y * 5 + 1) * 3..(y * 5 + 4) * 3;
            assert_eq!(middle[inner.clone()], cut[inner]);
        }
    }

    proptest! {
        #[test]
        fn any_size_has_a_middle(width in 1_u32..80, height in 1_u32..80, side in 1_usize..40) {
            let grey = vec![77; width as usize * height as usize * 3];
            let pixels = Pixels { width_px: width, height_px: height, rgb: grey };
            let mut resizer = SquareResizer::new(side);
            prop_assert_eq!(resizer.centre(&pixels), vec![77; side * side * 3]);
        }
    }
}
