//! Colour dropping: every pixel becomes its luma.

use super::{Augmentation, Canvas};
use crate::seed::Rng;

/// ITU-R BT.601's weights of red, green and blue, to the digits torchvision has.
const LUMA_WEIGHTS: [f32; 3] = [0.2989, 0.587, 0.114];

/// How bright a colour looks.
#[inline(always)]
pub(super) fn luma(red: f32, green: f32, blue: f32) -> f32 {
    LUMA_WEIGHTS[0] * red + LUMA_WEIGHTS[1] * green + LUMA_WEIGHTS[2] * blue
}

/// Takes the colour away.
pub(super) struct Greyscale;

impl Augmentation for Greyscale {
    fn apply(&mut self, canvas: &mut Canvas, _rng: &mut Rng) {
        for [red, green, blue] in canvas.pixels_mut() {
            let grey = luma(*red, *green, *blue);
            (*red, *green, *blue) = (grey, grey, grey);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::canvas::tests::noise;
    use super::*;
    use crate::seed::{Purpose, rng};

    #[test]
    fn channels_become_equal_and_white_stays_white() {
        let mut rng = rng(1, Purpose::View, &[]);
        let original = noise(5, &mut rng);
        let mut canvas = original.clone();
        Greyscale.apply(&mut canvas, &mut rng);
        let ([red, green, blue], old) = (canvas.planes(), original.planes());
        assert_eq!(red, green);
        assert_eq!(green, blue);
        for i in 0..25 {
            let exact = 0.2989 * old[0][i] + 0.587 * old[1][i] + 0.114 * old[2][i];
            assert!((red[i] - exact).abs() < 1e-6);
        }
        // torchvision's weights sum to 0.9999.
        assert!((luma(1.0, 1.0, 1.0) - 0.9999).abs() < 1e-6);
    }
}
