//! From the planes of a JPEG to RGB: chroma brought to the size of luma, then colours.
//!
//! Both are libjpeg's to the bit: the triangle filter of `jdsample.c` ("fancy upsampling") and the
//! 16-bit constants of `jdcolor.c`.

use crate::isa::{Isa, at_every_level};

/// One component of an image: whole blocks, of which a part is shown.
pub(super) struct Plane {
    pub(super) samples: Vec<u8>,
    /// Samples from one row to the next.
    pub(super) stride: usize,
    /// The part that is shown, which the image's size calls for.
    pub(super) width: usize,
    pub(super) height: usize,
}

impl Plane {
    fn row(&self, y: usize) -> &[u8] {
        &self.samples[y * self.stride..][..self.width]
    }
}

/// How many pixels a chroma sample covers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Covers {
    One,
    TwoAcross,
    TwoByTwo,
}

/// Grey, repeated in each channel.
pub(super) fn grey_to_rgb(luma: &Plane) -> Vec<u8> {
    let rows = (0..luma.height).flat_map(|y| luma.row(y));
    rows.flat_map(|&grey| [grey; 3]).collect()
}

/// YCbCr of which a chroma sample covers as many pixels as `covers` says. Where it covers two
/// across, the planes of chroma must be at least two wide.
pub(super) fn ycbcr_to_rgb([luma, blue, red]: &[Plane; 3], covers: Covers) -> Vec<u8> {
    let isa = Isa::best();
    let mut rgb = Vec::with_capacity(luma.width * luma.height * 3);
    let mut row = vec![0; luma.width * 3];
    let mut sums = vec![0; blue.width + 2];
    let mut wide = [blue, red].map(|chroma| vec![0; 2 * chroma.width]);
    for y in 0..luma.height {
        for (chroma, wide) in [blue, red].into_iter().zip(&mut wide) {
            match covers {
                Covers::One => {}
                Covers::TwoAcross => widen(isa, chroma.row(y), wide),
                Covers::TwoByTwo => {
                    let near = y / 2;
                    let far = if y % 2 == 0 { near.saturating_sub(1) } else { near + 1 };
                    let far = far.min(chroma.height - 1);
                    add_rows(isa, chroma.row(near), chroma.row(far), &mut sums);
                    widen_sums(isa, &sums, wide);
                }
            }
        }
        let [blue, red] = match covers {
            Covers::One => [blue.row(y), red.row(y)],
            _ => [&wide[0][..luma.width], &wide[1][..luma.width]],
        };
        colour(isa, luma.row(y), blue, red, &mut row);
        rgb.extend_from_slice(&row);
    }
    rgb
}

at_every_level! {
    /// `out`, twice as long as `row`: three quarters of the sample a pixel lies in and a quarter of
    /// the nearest other.
    fn widen(row: &[u8], out: &mut [u8]) {
        let (out, _) = out.as_chunks_mut::<2>();
        let n = row.len();
        let pixels = |before: u8, here: u8, after: u8| {
            let [before, here, after] = [before, here, after].map(u16::from);
            [((3 * here + before + 1) >> 2) as u8, ((3 * here + after + 2) >> 2) as u8]
        };
        for (out, around) in out[1..n - 1].iter_mut().zip(row.windows(3)) {
            *out = pixels(around[0], around[1], around[2]);
        }
        // At the ends the sample itself stands in for the one that is not there.
        out[0] = pixels(row[0], row[0], row[1]);
        out[n - 1] = pixels(row[n - 2], row[n - 1], row[n - 1]);
    }

    /// `sums`, with a copy of its ends before and after: three times `near` and once `far`.
    fn add_rows(near: &[u8], far: &[u8], sums: &mut [u16]) {
        let n = near.len();
        for ((sum, &near), &far) in sums[1..=n].iter_mut().zip(near).zip(far) {
            *sum = 3 * u16::from(near) + u16::from(far);
        }
        (sums[0], sums[n + 1]) = (sums[1], sums[n]);
    }

    /// What [`widen`] does, of sums of two rows.
    fn widen_sums(sums: &[u16], out: &mut [u8]) {
        for (out, around) in out.as_chunks_mut::<2>().0.iter_mut().zip(sums.windows(3)) {
            let here = 3 * around[1];
            *out = [((here + around[0] + 8) >> 4) as u8, ((here + around[2] + 7) >> 4) as u8];
        }
    }

    /// `rgb`, interleaved, of as many pixels as there are in each of the others.
    fn colour(luma: &[u8], blue: &[u8], red: &[u8], rgb: &mut [u8]) {
        // A stretch of channels by themselves: that is two loops over vectors, of sums and of turns.
        let mut channels = [[0; STRETCH]; 3];
        let stretches = luma.chunks(STRETCH).zip(blue.chunks(STRETCH)).zip(red.chunks(STRETCH));
        for (rgb, ((luma, blue), red)) in rgb.chunks_mut(3 * STRETCH).zip(stretches) {
            let [r, g, b] = channels.each_mut().map(|channel| &mut channel[..luma.len()]);
            let pixels = r.iter_mut().zip(g.iter_mut()).zip(b.iter_mut());
            for (((r, g), b), ((&y, &blue), &red)) in pixels.zip(luma.iter().zip(blue).zip(red)) {
                [*r, *g, *b] = pixel(y, blue, red);
            }
            let pixels = r.iter().zip(g.iter()).zip(b.iter());
            for (rgb, ((&r, &g), &b)) in rgb.as_chunks_mut::<3>().0.iter_mut().zip(pixels) {
                *rgb = [r, g, b];
            }
        }
    }
}

/// Pixels of which colours are computed before they are interleaved.
const STRETCH: usize = 64;

/// Red, green and blue: the products are rounded sums of 16-bit ones, `1.402 red`,
/// `-0.34414 blue - 0.71414 red` and `1.772 blue` times 2^16, less what is whole in them.
#[inline(always)]
fn pixel(y: u8, blue: u8, red: u8) -> [u8; 3] {
    let [y, blue, red] = [i16::from(y), i16::from(blue) - 128, i16::from(red) - 128];
    let product = |number: i16, factor: i16| {
        // The upper half of twice the product, then half of it, rounded.
        let upper = ((i32::from(2 * number) * i32::from(factor)) >> 16) as i16;
        (upper + 1) >> 1
    };
    let green = (18_734 * i32::from(red) - 22_554 * i32::from(blue) + 32_768) >> 16;
    let pixel = [
        y + red + product(red, 26_345),
        y - red + green as i16,
        y + 2 * blue + product(blue, -14_942),
    ];
    pixel.map(|sample| sample.clamp(0, 255) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(n: usize) -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(any::<u8>(), n)
    }

    fn plane(samples: &[u8], width: usize) -> Plane {
        Plane { samples: samples.to_vec(), stride: width, width, height: samples.len() / width }
    }

    /// The mean of the four samples around the middle of pixel `x`, `y`, weighted by nearness.
    fn oracle(chroma: &Plane, covers: Covers, x: usize, y: usize) -> f64 {
        let around = |at: usize, n: usize| {
            let near = at / 2;
            let far = if at.is_multiple_of(2) { near.saturating_sub(1) } else { near + 1 };
            [(near, 0.75), (far.min(n - 1), 0.25)]
        };
        let columns = around(x, chroma.width);
        let rows = match covers {
            Covers::TwoByTwo => around(y, chroma.height),
            _ => [(y, 1.0), (y, 0.0)],
        };
        let terms = rows.into_iter().flat_map(|(row, of_row)| {
            columns
                .map(|(column, of_column)| f64::from(chroma.row(row)[column]) * of_row * of_column)
        });
        terms.sum()
    }

    proptest! {
        #[test]
        fn every_level_widens_and_colours_alike(row in bytes(70), other in bytes(70), luma in bytes(70)) {
            let all = |isa| {
                let (mut wide, mut both) = (vec![0; 140], vec![0; 140]);
                let (mut sums, mut rgb) = (vec![0; 72], vec![0; 210]);
                widen(isa, &row, &mut wide);
                add_rows(isa, &row, &other, &mut sums);
                widen_sums(isa, &sums, &mut both);
                colour(isa, &luma, &row, &other, &mut rgb);
                (wide, both, rgb)
            };
            let portable = all(Isa::PORTABLE);
            for isa in Isa::available() {
                prop_assert_eq!(&all(isa), &portable);
            }
        }

        #[test]
        fn colours_are_the_matrix_of_bt_601(y: u8, blue: u8, red: u8) {
            let mut rgb = [0; 3];
            colour(Isa::best(), &[y], &[blue], &[red], &mut rgb);
            let [y, blue, red] = [y, blue, red].map(f64::from);
            let (blue, red) = (blue - 128.0, red - 128.0);
            let exact = [
                y + 1.402 * red,
                y - 0.344_136_286 * blue - 0.714_136_286 * red,
                y + 1.772 * blue,
            ];
            for (sample, exact) in rgb.into_iter().zip(exact) {
                prop_assert!((f64::from(sample) - exact.clamp(0.0, 255.0)).abs() < 0.51);
            }
        }

        #[test]
        fn chroma_is_brought_to_size_by_the_triangle_filter(samples in bytes(15)) {
            // Grey, so that red is what the red chroma adds to it.
            for (covers, height) in [(Covers::TwoAcross, 3), (Covers::TwoByTwo, 6)] {
                let chroma = plane(&samples, 5);
                let grey = plane(&vec![128; 10 * height], 10);
                let flat = plane(&[128; 15], 5);
                let exact: Vec<f64> = (0..10 * height)
                    .map(|at| 128.0 + 1.402 * (oracle(&chroma, covers, at % 10, at / 10) - 128.0))
                    .collect();
                let rgb = ycbcr_to_rgb(&[grey, flat, chroma], covers);
                for (rgb, exact) in rgb.chunks(3).zip(exact) {
                    // The filter and the colour are rounded one after the other.
                    prop_assert!((f64::from(rgb[0]) - exact.clamp(0.0, 255.0)).abs() < 1.3);
                }
            }
        }
    }
}
