//! The inverse discrete cosine transform of a block, at the scales that a block can be shown in.
//!
//! In one dimension it is a product with a matrix, in two dimensions two of them. At full scale the
//! numbers are those of libjpeg's `jidctint.c` (Loeffler, Ligtenberg and Moschytz 1989 with 13-bit
//! constants): that algorithm is a chain of sums and products without rounding in between, so its
//! result is a matrix of sums of its constants, and equal to the bit. At a reduced scale the N
//! lowest frequencies of a side make N pixels, as in libjpeg from version 7 on: what is left out is
//! what N pixels cannot show.

use super::huffman::NATURAL;
use crate::isa::at_every_level;

/// How many pixels a side of a block is shown in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    One,
    Two,
    Four,
    Eight,
}

impl Side {
    /// Shortest first.
    pub(super) const ALL: [Self; 4] = [Self::One, Self::Two, Self::Four, Self::Eight];

    pub(super) fn n(self) -> usize {
        1 << self as u32
    }
}

/// What the frequencies of one dimension, in rows, add to each of the N pixels of a side, times 2^13.
type Basis<const N: usize> = [[i32; N]; N];

static ONE: Basis<1> = [[8192]];
static TWO: Basis<2> = [[8192, 8192], [8192, -8192]];
static FOUR: Basis<4> = [
    [8192, 8192, 8192, 8192],
    [10703, 4433, -4433, -10703],
    [8192, -8192, -8192, 8192],
    [4433, -10703, 10703, -4433],
];
static EIGHT: Basis<8> = [
    [8192, 8192, 8192, 8192, 8192, 8192, 8192, 8192],
    [11363, 9633, 6437, 2260, -2260, -6437, -9633, -11363],
    [10703, 4433, -4433, -10703, -10703, -4433, 4433, 10703],
    [9633, -2259, -11362, -6436, 6436, 11362, 2259, -9633],
    [8192, -8192, -8192, 8192, 8192, -8192, -8192, 8192],
    [6437, -11362, 2261, 9633, -9633, -2261, 11362, -6437],
    [4433, -10704, 10704, -4433, -4433, 10704, -10704, 4433],
    [2260, -6436, 9633, -11363, 11363, -9633, 6436, -2260],
];

/// For so many places of the zigzag: the side of the square at the lowest frequencies they lie in.
const SQUARE_OF: [u8; 65] = {
    let mut sides = [0; 65];
    let mut place = 0;
    while place < 64 {
        let (row, column) = (NATURAL[place] / 8 + 1, NATURAL[place] % 8 + 1);
        let side = if row > column { row } else { column };
        sides[place + 1] = if side > sides[place] { side } else { sides[place] };
        place += 1;
    }
    sides
};

at_every_level! {
    /// Shows `block`, of which `length` places of the zigzag may be other than zero, in rows of
    /// samples at the start of `out`, `stride` apart: as many as `down`, of as many as `across`.
    fn show(block: &[i32; 64], length: usize, down: Side, across: Side, out: &mut [u8],
            stride: usize) {
        let side = usize::from(SQUARE_OF[length.min(64)]);
        match (down, across) {
            (Side::Eight, Side::Eight) => show_as(block, side, &EIGHT, &EIGHT, out, stride),
            (Side::Eight, Side::Four) => show_as(block, side, &EIGHT, &FOUR, out, stride),
            (Side::Eight, Side::Two) => show_as(block, side, &EIGHT, &TWO, out, stride),
            (Side::Eight, Side::One) => show_as(block, side, &EIGHT, &ONE, out, stride),
            (Side::Four, Side::Eight) => show_as(block, side, &FOUR, &EIGHT, out, stride),
            (Side::Four, Side::Four) => show_as(block, side, &FOUR, &FOUR, out, stride),
            (Side::Four, Side::Two) => show_as(block, side, &FOUR, &TWO, out, stride),
            (Side::Four, Side::One) => show_as(block, side, &FOUR, &ONE, out, stride),
            (Side::Two, Side::Eight) => show_as(block, side, &TWO, &EIGHT, out, stride),
            (Side::Two, Side::Four) => show_as(block, side, &TWO, &FOUR, out, stride),
            (Side::Two, Side::Two) => show_as(block, side, &TWO, &TWO, out, stride),
            (Side::Two, Side::One) => show_as(block, side, &TWO, &ONE, out, stride),
            (Side::One, Side::Eight) => show_as(block, side, &ONE, &EIGHT, out, stride),
            (Side::One, Side::Four) => show_as(block, side, &ONE, &FOUR, out, stride),
            (Side::One, Side::Two) => show_as(block, side, &ONE, &TWO, out, stride),
            (Side::One, Side::One) => show_as(block, side, &ONE, &ONE, out, stride),
        }
    }
}

/// [`show`] for one pair of sides; what lies beyond the `side` lowest frequencies is zero.
#[inline(always)]
fn show_as<const H: usize, const W: usize>(
    block: &[i32; 64],
    side: usize,
    vertical: &Basis<H>,
    horizontal: &Basis<W>,
    out: &mut [u8],
    stride: usize,
) {
    let (frequencies, _) = block.as_chunks::<8>();
    // Down the columns. Even frequencies are the same from both ends, odd ones the opposite; the
    // lower half is reached from there.
    let (mut even, mut odd) = ([[1 << 10; 8]; H], [[0; 8]; H]);
    for v in (0..side.min(H)).step_by(2) {
        for y in 0..H.div_ceil(2) {
            add_product(&mut even[y], &frequencies[v], vertical[v][y]);
        }
    }
    for v in (1..side.min(H)).step_by(2) {
        for y in 0..H.div_ceil(2) {
            add_product(&mut odd[y], &frequencies[v], vertical[v][y]);
        }
    }
    // Two more bits than a sample are kept.
    let mut rows = [[0; 8]; H];
    for y in 0..H.div_ceil(2) {
        for x in 0..8 {
            rows[y][x] = even[y][x].wrapping_add(odd[y][x]) >> 11;
            rows[H - 1 - y][x] = even[y][x].wrapping_sub(odd[y][x]) >> 11;
        }
    }
    // In memory, from where a number is spread over a vector as it is loaded: left in registers it
    // takes three instructions, and the transform half as long again.
    let rows = std::hint::black_box(&rows);
    for (y, row) in rows.iter().enumerate() {
        let mut samples = [(128 << 18) + (1 << 17); W];
        for u in 0..side.min(W) {
            add_product(&mut samples, &horizontal[u], row[u]);
        }
        let out = &mut out[y * stride..][..W];
        for x in 0..W {
            out[x] = (samples[x] >> 18).clamp(0, 255) as u8;
        }
    }
}

/// `sums += row * factor`. Numbers of a corrupt file may wrap.
#[inline(always)]
fn add_product<const N: usize>(sums: &mut [i32; N], row: &[i32; N], factor: i32) {
    for x in 0..N {
        sums[x] = sums[x].wrapping_add(row[x].wrapping_mul(factor));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Isa;
    use proptest::prelude::*;
    use std::f64::consts::{PI, SQRT_2};

    /// What frequency `u` adds to pixel `x` of `n` (T.81, A.3.3, for one dimension and times
    /// the square root of 8, which both dimensions together take back as 8).
    fn cosine(n: usize, u: usize, x: usize) -> f64 {
        let angle = (2 * x + 1) as f64 * u as f64 * PI / (2 * n) as f64;
        if u == 0 { 1.0 } else { SQRT_2 * angle.cos() }
    }

    /// The two-dimensional sum of the frequencies that are shown, in f64.
    fn oracle(block: &[i32; 64], down: usize, across: usize) -> Vec<f64> {
        let pixel = |y: usize, x: usize| -> f64 {
            let terms = (0..down * across).map(|at| {
                let (v, u) = (at / across, at % across);
                cosine(down, v, y) * cosine(across, u, x) * f64::from(block[8 * v + u])
            });
            (terms.sum::<f64>() / 8.0 + 128.0).clamp(0.0, 255.0)
        };
        (0..down * across).map(|at| pixel(at / across, at % across)).collect()
    }

    /// `block` in rows of 11.
    fn shown(isa: Isa, block: &[i32; 64], length: usize, down: Side, across: Side) -> Vec<u8> {
        let mut out = vec![7; (down.n() - 1) * 11 + across.n()];
        show(isa, block, length, down, across, &mut out, 11);
        out
    }

    fn check<const N: usize>(basis: &Basis<N>) {
        for (u, row) in basis.iter().enumerate() {
            for (x, &number) in row.iter().enumerate() {
                // Sums of up to three rounded constants.
                let error = f64::from(number) - cosine(N, u, x) * 8192.0;
                assert!(error.abs() < 1.6, "{u} {x} of {N}: {error}");
                // What the first half is computed from the last by.
                let sign = if u.is_multiple_of(2) { 1 } else { -1 };
                assert_eq!(number, sign * row[N - 1 - x]);
            }
        }
    }

    #[test]
    fn bases_are_cosines_to_the_rounding_of_their_constants() {
        check(&TWO);
        check(&FOUR);
        check(&EIGHT);
        assert_eq!(ONE, [[8192]]);
    }

    proptest! {
        #[test]
        fn blocks_are_the_sums_of_their_frequencies(
            places in prop::collection::vec((0..64_usize, -300..300_i32), 0..30),
            down in 0..4_usize,
            across in 0..4_usize,
        ) {
            let mut block = [0; 64];
            let mut length = 1;
            for (place, number) in places {
                block[usize::from(NATURAL[place])] = number;
                length = length.max(place + 1);
            }
            let (down, across) = (Side::ALL[down], Side::ALL[across]);
            let (n_down, n_across) = (down.n(), across.n());
            let exact = oracle(&block, n_down, n_across);
            let portable = shown(Isa::PORTABLE, &block, length, down, across);
            for (at, exact) in exact.iter().enumerate() {
                let sample = f64::from(portable[at / n_across * 11 + at % n_across]);
                prop_assert!((sample - exact).abs() < 0.75, "{sample} is not {exact}");
            }
            for isa in Isa::available() {
                prop_assert_eq!(&shown(isa, &block, length, down, across), &portable);
                // What lies beyond the last coefficient may be left out.
                prop_assert_eq!(&shown(isa, &block, 64, down, across), &portable);
            }
        }
    }

    #[test]
    fn a_frequency_that_fewer_pixels_cannot_show_leaves_the_mean() {
        let mut block = [0; 64];
        (block[0], block[7]) = (80, 500);
        for side in [Side::One, Side::Two, Side::Four] {
            let flat = shown(Isa::best(), &block, 64, side, side);
            let n = side.n();
            assert!((0..n * n).all(|at| flat[at / n * 11 + at % n] == 138), "{flat:?}");
        }
    }
}
