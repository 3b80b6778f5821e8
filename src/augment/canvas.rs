//! The square image a view is painted on.

use crate::isa::{Isa, at_every_level};

/// A square RGB image, `[C, H, W]`, of values in 0..1.
///
/// Channels lie in planes of their own, so that loops over pixels are loops over plain slices,
/// which the compiler turns into vector instructions. It is made once and painted over by every
/// view.
#[derive(Clone, Debug, PartialEq)]
pub struct Canvas {
    side_px: usize,
    values: Vec<f32>,
}

impl Canvas {
    /// A black canvas of `side_px` by `side_px`.
    pub fn new(side_px: usize) -> Self {
        Self { side_px, values: vec![0.0; 3 * side_px * side_px] }
    }

    /// Width and height.
    pub fn side_px(&self) -> usize {
        self.side_px
    }

    /// Every value, `[C, H, W]`.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Every value to change, `[C, H, W]`.
    pub fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }

    /// Red, green and blue, each `[H, W]`.
    pub fn planes(&self) -> [&[f32]; 3] {
        let (red, rest) = self.values.split_at(self.plane_len());
        let (green, blue) = rest.split_at(self.plane_len());
        [red, green, blue]
    }

    /// Red, green and blue to change, each `[H, W]`.
    pub fn planes_mut(&mut self) -> [&mut [f32]; 3] {
        let plane_len = self.plane_len();
        let (red, rest) = self.values.split_at_mut(plane_len);
        let (green, blue) = rest.split_at_mut(plane_len);
        [red, green, blue]
    }

    /// The three values of every pixel, to change together.
    pub fn pixels_mut(&mut self) -> impl Iterator<Item = [&mut f32; 3]> {
        let [red, green, blue] = self.planes_mut();
        red.iter_mut().zip(green).zip(blue).map(|((red, green), blue)| [red, green, blue])
    }

    /// Paints the canvas with `rgb`, `[H, W, C]` bytes of an image of the same size.
    pub fn paint(&mut self, rgb: &[u8]) {
        debug_assert_eq!(rgb.len(), self.values.len());
        separate(Isa::best(), rgb, self.planes_mut());
    }

    fn plane_len(&self) -> usize {
        self.side_px * self.side_px
    }
}

at_every_level! {
    /// Writes the channels of `rgb`, interleaved bytes, to `planes` in 0..1.
    fn separate(rgb: &[u8], planes: [&mut [f32]; 3]) {
        let [red, green, blue] = planes;
        let pixels = red.iter_mut().zip(green).zip(blue).zip(rgb.as_chunks::<3>().0);
        for (((red, green), blue), rgb) in pixels {
            [*red, *green, *blue] = rgb.map(|byte| f32::from(byte) / 255.0);
        }
    }
}

/// Folds an index that has left `0..len` back in as a mirror at the outermost pixels' centres
/// would: -1 is 1, `len` is `len - 2`. It may have left by less than `len`.
pub(super) fn reflect(index: isize, len: usize) -> usize {
    let folded = index.unsigned_abs();
    if folded < len { folded } else { (2 * len).saturating_sub(2 + folded) }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::seed::Rng;
    use rand::RngExt;

    /// A canvas of independent uniform values.
    pub(in crate::augment) fn noise(side_px: usize, rng: &mut Rng) -> Canvas {
        let mut canvas = Canvas::new(side_px);
        canvas.values_mut().iter_mut().for_each(|value| *value = rng.random());
        canvas
    }

    /// The largest difference between two lists of equal length.
    pub(in crate::augment) fn distance(a: &[f32], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len());
        a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    }

    #[test]
    fn painting_separates_the_channels() {
        let mut canvas = Canvas::new(2);
        canvas.paint(&[255, 0, 51, 0, 51, 255, 51, 255, 0, 0, 0, 0]);
        let [red, green, blue] = canvas.planes();
        assert_eq!(red, [1.0, 0.0, 0.2, 0.0]);
        assert_eq!(green, [0.0, 0.2, 1.0, 0.0]);
        assert_eq!(blue, [0.2, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn reflection_repeats_no_border_pixel() {
        let folded: Vec<usize> = (-3..7).map(|index| reflect(index, 4)).collect();
        assert_eq!(folded, [3, 2, 1, 0, 1, 2, 3, 2, 1, 0]);
        assert_eq!(reflect(0, 1), 0);
    }
}
