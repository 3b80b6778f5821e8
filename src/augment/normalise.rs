//! The end of every view: values in 0..1 become the encoder's input, channels interleaved.

use super::{Canvas, Preprocess};
use crate::isa::{Isa, at_every_level};

/// Computes `(v - mean) / std` per channel.
pub(super) struct Normalise {
    scale: [f32; 3],
    shift: [f32; 3],
}

impl Normalise {
    pub(super) fn new(preprocess: &Preprocess) -> Self {
        let Preprocess { mean, std, .. } = preprocess;
        let channels = [0, 1, 2];
        Self {
            scale: channels.map(|channel| 1.0 / std[channel]),
            shift: channels.map(|channel| -mean[channel] / std[channel]),
        }
    }

    /// Normalises `canvas` into `out`, `[H, W, C]`.
    pub(super) fn canvas(&self, canvas: &Canvas, out: &mut [f32]) {
        interleave(Isa::best(), canvas.planes(), self, out);
    }

    /// Normalises the bytes of an image, `[H, W, C]`, into `out` of the same shape.
    pub(super) fn bytes(&self, rgb: &[u8], out: &mut [f32]) {
        convert(Isa::best(), rgb, self, out);
    }

    #[inline(always)]
    fn pixel(&self, [red, green, blue]: [f32; 3]) -> [f32; 3] {
        let ([a, b, c], [d, e, f]) = (self.scale, self.shift);
        [red * a + d, green * b + e, blue * c + f]
    }
}

at_every_level! {
    /// Normalises `planes` into `out`.
    fn interleave(planes: [&[f32]; 3], normalise: &Normalise, out: &mut [f32]) {
        let [red, green, blue] = planes;
        let pixels = out.as_chunks_mut::<3>().0.iter_mut().zip(red).zip(green).zip(blue);
        for (((out, &red), &green), &blue) in pixels {
            *out = normalise.pixel([red, green, blue]);
        }
    }

    /// Normalises `rgb` into `out`, both interleaved.
    fn convert(rgb: &[u8], normalise: &Normalise, out: &mut [f32]) {
        for (out, rgb) in out.as_chunks_mut::<3>().0.iter_mut().zip(rgb.as_chunks::<3>().0) {
            *out = normalise.pixel(rgb.map(|byte| f32::from(byte) / 255.0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::canvas::tests::distance;
    use super::*;

    #[test]
    fn canvas_and_bytes_become_the_same_interleaved_input() {
        let preprocess = Preprocess { side_px: 2, mean: [0.5, 0.4, 0.3], std: [0.5, 0.2, 0.1] };
        let rgb = [0, 51, 102, 153, 204, 255, 10, 20, 30, 255, 255, 255];
        let exact: Vec<f32> = (0..12)
            .map(|i| (f32::from(rgb[i]) / 255.0 - preprocess.mean[i % 3]) / preprocess.std[i % 3])
            .collect();
        let normalise = Normalise::new(&preprocess);
        let (mut from_canvas, mut from_bytes) = ([0.0; 12], [0.0; 12]);
        let mut canvas = Canvas::new(2);
        canvas.paint(&rgb);
        normalise.canvas(&canvas, &mut from_canvas);
        normalise.bytes(&rgb, &mut from_bytes);
        assert_eq!(from_canvas, from_bytes);
        // Values reach 7; the multiplied form rounds a few times more than the divided one.
        assert!(distance(&from_canvas, &exact) < 2e-6);
    }
}
