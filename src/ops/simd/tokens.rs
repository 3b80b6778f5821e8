//! The loops of transformers: rows normalised, exponentials, the error function.

use super::{LANES, sum};
use crate::isa::at_every_level;

/// 1.5 * 2^23: added to a small number, it leaves its nearest integer in the lowest bits.
const ROUNDING: f32 = 12_582_912.0;

/// The greatest of `row`; what is not a number is passed over.
#[inline(always)]
fn maximum(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in row.chunks(LANES) {
        for (best, &value) in lanes.iter_mut().zip(chunk) {
            *best = if value > *best { value } else { *best };
        }
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

/// e^x for x <= 0, to 2 units in the last place; below -87 it is that of -87 (1.6e-38).
#[inline(always)]
fn exp(x: f32) -> f32 {
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = if x < -87.0 { -87.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUNDING;
    let whole = shifted - ROUNDING;
    let rest = (x - whole * LN_2_HIGH) - whole * LN_2_LOW;
    // Taylor's series: |rest| <= ln(2) / 2, where the next term is below 2e-7.
    let series = 1.0 / 720.0;
    let series = series * rest + 1.0 / 120.0;
    let series = series * rest + 1.0 / 24.0;
    let series = series * rest + 1.0 / 6.0;
    let series = series * rest + 0.5;
    let series = series * rest + 1.0;
    let series = series * rest + 1.0;
    // `shifted` ends in the integer's bits: as an exponent they are its power of two.
    let power = f32::from_bits((shifted.to_bits().wrapping_add(127)) << 23);
    series * power
}

/// Phi(x) and its derivative, Phi the normal distribution: by Abramowitz and Stegun 7.1.26, to
/// 1.5e-7.
#[inline(always)]
fn normal(x: f32) -> (f32, f32) {
    const ROOT_HALF: f32 = std::f32::consts::FRAC_1_SQRT_2;
    const DENSITY_AT_ZERO: f32 = 0.398_942_3;
    let t = 1.0 / (1.0 + 0.327_591_1 * ROOT_HALF * x.abs());
    let bell = exp(-0.5 * x * x);
    let series = 1.061_405_4;
    let series = series * t - 1.453_152;
    let series = series * t + 1.421_413_7;
    let series = series * t - 0.284_496_74;
    let series = series * t + 0.254_829_6;
    let upper = 0.5 * series * t * bell;
    (if x < 0.0 { upper } else { 1.0 - upper }, DENSITY_AT_ZERO * bell)
}

at_every_level! {
    /// `y = (x - mean) / deviation * gamma + beta` of each row of `x [R, C]`; the row's mean and
    /// inverse deviation go to `statistics [R, 2]`.
    fn layer_norm(x: &[f32], gamma: &[f32], beta: &[f32], epsilon: f32, y: &mut [f32],
                  statistics: &mut [[f32; 2]]) {
        let channels = gamma.len();
        let rows = y.chunks_exact_mut(channels).zip(x.chunks_exact(channels));
        for ((y, x), statistics) in rows.zip(statistics) {
            let mean = sum([x], |[x]| x) / channels as f32;
            let variance = sum([x], |[x]| (x - mean) * (x - mean)) / channels as f32;
            let inverse = 1.0 / (variance + epsilon).sqrt();
            *statistics = [mean, inverse];
            for ((y, &x), (&gamma, &beta)) in y.iter_mut().zip(x).zip(gamma.iter().zip(beta)) {
                *y = (x - mean) * inverse * gamma + beta;
            }
        }
    }

    /// Adds the gradient of [`layer_norm`]'s `x` to `dx`, and those of gamma and beta to `dgamma`
    /// and `dbeta`.
    fn layer_norm_pull(x: &[f32], statistics: &[[f32; 2]], gamma: &[f32], dy: &[f32],
                       dx: &mut [f32], dgamma: &mut [f32], dbeta: &mut [f32]) {
        let channels = gamma.len();
        let rows = dx.chunks_exact_mut(channels).zip(x.chunks_exact(channels));
        for (((dx, x), dy), &[mean, inverse]) in
            rows.zip(dy.chunks_exact(channels)).zip(statistics)
        {
            let pulled = sum([dy, gamma], |[dy, gamma]| dy * gamma) / channels as f32;
            let turned = sum([dy, gamma, x], |[dy, gamma, x]| {
                dy * gamma * ((x - mean) * inverse)
            }) / channels as f32;
            let weights = gamma.iter().zip(dgamma.iter_mut().zip(dbeta.iter_mut()));
            for ((dx, (&x, &dy)), (&gamma, (dgamma, dbeta))) in
                dx.iter_mut().zip(x.iter().zip(dy)).zip(weights)
            {
                let normed = (x - mean) * inverse;
                *dbeta += dy;
                *dgamma += dy * normed;
                *dx += inverse * (dy * gamma - pulled - normed * turned);
            }
        }
    }

    /// `y = x Phi(x)`.
    fn gelu(x: &[f32], y: &mut [f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = x * normal(x).0;
        }
    }

    /// `dy` times the derivative of [`gelu`] at `x`, in place.
    fn gelu_pull(x: &[f32], dy: &mut [f32]) {
        for (dy, &x) in dy.iter_mut().zip(x) {
            let (share, density) = normal(x);
            *dy *= share + x * density;
        }
    }

    /// [`gelu`] of `x` into `y` once more, and [`gelu_pull`] of `dy`: the exponential serves both.
    fn gelu_again(x: &[f32], y: &mut [f32], dy: &mut [f32]) {
        for ((&x, y), dy) in x.iter().zip(y).zip(dy) {
            let (share, density) = normal(x);
            *y = x * share;
            *dy *= share + x * density;
        }
    }

    /// Each row of `scores [R, C]` becomes `exp(scale score) / sum`; `log_sums [R]` get the
    /// logarithms of the sums.
    fn softmax(scores: &mut [f32], columns: usize, scale: f32, log_sums: &mut [f32]) {
        for (row, log_sum) in scores.chunks_exact_mut(columns).zip(log_sums) {
            let greatest = maximum(row) * scale;
            for score in row.iter_mut() {
                *score = exp(*score * scale - greatest);
            }
            let total = sum([row], |[share]| share);
            let share = 1.0 / total;
            row.iter_mut().for_each(|score| *score *= share);
            *log_sum = greatest + total.ln();
        }
    }

    /// [`softmax`] once more, by the sums that are known.
    fn softmax_again(scores: &mut [f32], columns: usize, scale: f32, log_sums: &[f32]) {
        for (row, &log_sum) in scores.chunks_exact_mut(columns).zip(log_sums) {
            for score in row {
                *score = exp(*score * scale - log_sum);
            }
        }
    }

    /// The gradient of the scores, in place of that of their `shares`:
    /// `scale share (d - sum(d share))`.
    fn softmax_pull(shares: &[f32], columns: usize, scale: f32, gradient: &mut [f32]) {
        for (gradient, shares) in
            gradient.chunks_exact_mut(columns).zip(shares.chunks_exact(columns))
        {
            let mean = sum([gradient, shares], |[gradient, share]| gradient * share);
            for (gradient, &share) in gradient.iter_mut().zip(shares) {
                *gradient = scale * share * (*gradient - mean);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Isa;
    use proptest::prelude::*;

    fn values(seed: usize, length: usize) -> Vec<f32> {
        (0..length).map(|i| ((i * 7919 + seed * 104_729) % 1009) as f32 / 100.0 - 5.0).collect()
    }

    /// Every loop once at `level`, its outputs one after another.
    fn run(isa: Isa, rows: usize, columns: usize) -> Vec<f32> {
        let length = rows * columns;
        let (x, dy) = (values(1, length), values(2, length));
        let (gamma, beta) = (values(3, columns), values(4, columns));
        let (mut all, mut out) = (vec![], values(5, length));
        let mut statistics = vec![[0.0; 2]; rows];
        layer_norm(isa, &x, &gamma, &beta, 1e-6, &mut out, &mut statistics);
        all.extend_from_slice(&out);
        let (mut dgamma, mut dbeta) = (values(6, columns), values(7, columns));
        layer_norm_pull(isa, &x, &statistics, &gamma, &dy, &mut out, &mut dgamma, &mut dbeta);
        all.extend([out.clone(), dgamma, dbeta].concat());
        gelu(isa, &x, &mut out);
        all.extend_from_slice(&out);
        gelu_pull(isa, &x, &mut out);
        all.extend_from_slice(&out);
        let mut again = dy.clone();
        gelu_again(isa, &x, &mut out, &mut again);
        all.extend([out.clone(), again].concat());
        let mut log_sums = vec![0.0; rows];
        let mut shares = x.clone();
        softmax(isa, &mut shares, columns, 0.7, &mut log_sums);
        out.copy_from_slice(&x);
        softmax_again(isa, &mut out, columns, 0.7, &log_sums);
        all.extend_from_slice(&out);
        softmax_pull(isa, &shares, columns, 0.7, &mut out);
        all.extend([out, shares, log_sums].concat());
        all
    }

    proptest! {
        #[test]
        fn every_level_gives_the_portable_bits(rows in 0usize..6, columns in 1usize..70) {
            let expected = run(Isa::PORTABLE, rows, columns);
            for isa in Isa::available() {
                let found = run(isa, rows, columns);
                for (found, expected) in found.iter().zip(&expected) {
                    prop_assert_eq!(found.to_bits(), expected.to_bits());
                }
            }
        }

        #[test]
        fn the_exponential_is_that_of_f64(x in -87.0f32..=0.0) {
            let expected = f64::from(x).exp();
            let error = (f64::from(exp(x)) - expected).abs() / expected;
            prop_assert!(error < 3e-7, "exp({x}) is off by {error}");
        }
    }

    #[test]
    fn the_exponential_ends_where_f32_does_and_keeps_what_is_no_number() {
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(-1e9) > 0.0 && exp(-1e9) < 2e-38);
        assert!(exp(f32::NAN).is_nan());
        assert!(normal(f32::NAN).0.is_nan());
    }

    /// Phi at points of the table of Abramowitz and Stegun (26.1).
    #[test]
    fn the_normal_distribution_has_its_tabled_values() {
        for (x, expected) in
            [(0.0, 0.5), (1.0, 0.841_344_8), (-1.0, 0.158_655_2), (2.5, 0.993_790_3)]
        {
            assert!((normal(x).0 - expected).abs() < 3e-7, "Phi({x})");
        }
        assert!((normal(1.0).1 - 0.241_970_72).abs() < 1e-6);
    }

    #[test]
    fn a_gelu_and_its_gradient_are_the_same_in_one_pass() {
        let (x, dy) = (values(1, 70), values(2, 70));
        let (mut y, mut pulled) = (vec![0.0; 70], dy.clone());
        gelu(Isa::best(), &x, &mut y);
        gelu_pull(Isa::best(), &x, &mut pulled);
        let (mut y_again, mut pulled_again) = (vec![f32::NAN; 70], dy);
        gelu_again(Isa::best(), &x, &mut y_again, &mut pulled_again);
        assert_eq!([y_again, pulled_again], [y, pulled]);
    }

    #[test]
    fn a_softmax_and_its_gradient_have_their_closed_forms() {
        let (mut scores, mut log_sums) = (vec![0.0, 3.0_f32.ln()], [0.0]);
        softmax(Isa::best(), &mut scores, 2, 1.0, &mut log_sums);
        assert!((scores[0] - 0.25).abs() < 1e-6 && (scores[1] - 0.75).abs() < 1e-6);
        assert!((log_sums[0] - 4.0_f32.ln()).abs() < 1e-6);
        let mut gradient = vec![1.0, 0.0];
        softmax_pull(Isa::best(), &[0.25, 0.75], 2, 2.0, &mut gradient);
        assert_eq!(gradient, [2.0 * 0.25 * 0.75, 2.0 * -0.25 * 0.75]);
    }
}
