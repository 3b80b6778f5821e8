//! Every colour type to RGB of 8 bits a channel.
//!
//! Colour profiles are ignored: samples are taken as sRGB. 16-bit samples are rounded to 8 bits,
//! floating-point ones clamped to 0..1 first, grey is repeated.

use super::Pixels;
use image::DynamicImage;

/// Flattens `image` onto `background`.
///
/// Alpha has to go, since the encoder sees three channels. Dropping it would uncover whatever
/// colour the file stores under transparent pixels, which nobody ever saw: so it is composited,
/// in the space the samples are stored in, as browsers do.
pub(super) fn flatten(image: DynamicImage, background: [u8; 3]) -> Pixels {
    let (width_px, height_px) = (image.width(), image.height());
    let rgb = if image.color().has_alpha() {
        lay_on(image.into_rgba8().into_raw(), background)
    } else {
        image.into_rgb8().into_raw()
    };
    Pixels { width_px, height_px, rgb }
}

/// Composites RGBA on an opaque colour, within the buffer: three bytes never overtake four.
fn lay_on(mut samples: Vec<u8>, background: [u8; 3]) -> Vec<u8> {
    let n_pixels = samples.len() / 4;
    for pixel in 0..n_pixels {
        let alpha = samples[4 * pixel + 3];
        for (channel, &behind) in background.iter().enumerate() {
            samples[3 * pixel + channel] = over(samples[4 * pixel + channel], alpha, behind);
        }
    }
    samples.truncate(3 * n_pixels);
    samples.shrink_to_fit();
    samples
}

/// Porter and Duff 1984, "over" with an opaque background, rounded to nearest.
fn over(front: u8, alpha: u8, behind: u8) -> u8 {
    let (front, alpha, behind) = (u32::from(front), u32::from(alpha), u32::from(behind));
    let blended = (front * alpha + behind * (255 - alpha) + 127) / 255;
    u8::try_from(blended).expect("a weighted mean of bytes is a byte")
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{ImageBuffer, Luma, LumaA, Rgb, Rgb32FImage, Rgba};

    #[test]
    fn over_is_the_rounded_weighted_mean() {
        for front in (0..=255).step_by(5) {
            for alpha in 0..=255u8 {
                for behind in [0, 1, 127, 128, 254, 255] {
                    let weight = f64::from(alpha) / 255.0;
                    let mean = f64::from(front) * weight + f64::from(behind) * (1.0 - weight);
                    let error = f64::from(over(front, alpha, behind)) - mean;
                    assert!(error.abs() <= 0.5 + 1e-9, "{front} {alpha} {behind}");
                }
            }
        }
    }

    #[test]
    fn each_pixel_of_rgba_is_laid_on_the_background() {
        let image = ImageBuffer::from_fn(3, 2, |x, y| Rgba([10, 200, 30, (x + 3 * y) as u8 * 51]));
        let pixels = flatten(image.into(), [255, 0, 128]);
        assert_eq!((pixels.width_px, pixels.height_px), (3, 2));
        let expected: Vec<u8> = (0..6)
            .flat_map(|i| [over(10, i * 51, 255), over(200, i * 51, 0), over(30, i * 51, 128)])
            .collect();
        assert_eq!(pixels.rgb, expected);
    }

    #[test]
    fn grey_is_repeated_and_its_alpha_composited() {
        let grey = ImageBuffer::from_pixel(1, 1, Luma([77u8]));
        assert_eq!(flatten(grey.into(), [0; 3]).rgb, [77; 3]);
        let grey_alpha = ImageBuffer::from_pixel(1, 1, LumaA([77u8, 0]));
        assert_eq!(flatten(grey_alpha.into(), [1, 2, 3]).rgb, [1, 2, 3]);
    }

    #[test]
    fn sixteen_bits_are_rounded_to_nearest_and_floats_clamped() {
        for sample in (0..=u16::MAX).step_by(97) {
            let image = ImageBuffer::from_pixel(1, 1, Rgb([sample, 0, u16::MAX]));
            let nearest = (f64::from(sample) / 257.0).round() as u8;
            assert_eq!(flatten(image.into(), [0; 3]).rgb, [nearest, 0, 255], "{sample}");
        }
        let image = Rgb32FImage::from_pixel(1, 1, Rgb([-3.0, 0.5, 7.0]));
        assert_eq!(flatten(image.into(), [0; 3]).rgb, [0, 128, 255]);
    }
}
