//! Plain loops compiled for the vector instructions of the processor they run on.
//!
//! Each loop here is written once, in safe code, and compiled at every level of [`crate::isa`].
//!
//! No loop fuses a product with a sum, and those that sum a row do so by [`LANES`] partial sums in
//! one fixed order, so every instruction set gives the same bits; the portable one is the oracle of
//! the tests.

use super::update::{AdamW, Sgd};
use crate::isa::at_every_level;

pub(crate) mod tokens;

/// Partial sums of a row.
const LANES: usize = 16;

/// The sum of `term` over the elements of `operands`, which are equally long.
#[inline(always)]
fn sum<const N: usize>(operands: [&[f32]; N], term: impl Fn([f32; N]) -> f32) -> f32 {
    let length = operands.iter().map(|operand| operand.len()).min().unwrap_or(0);
    let whole = length / LANES * LANES;
    let mut lanes = [0.0; LANES];
    for start in (0..whole).step_by(LANES) {
        // One check for all lanes, so that their loop becomes vectors.
        let chunks = operands.map(|operand| &operand[start..start + LANES]);
        for (lane, total) in lanes.iter_mut().enumerate() {
            *total += term(chunks.map(|chunk| chunk[lane]));
        }
    }
    for (lane, total) in lanes.iter_mut().enumerate().take(length - whole) {
        *total += term(operands.map(|operand| operand[whole + lane]));
    }
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// `gradient` where the rectifier let the value through, zero elsewhere; an output that is not a
/// number lets it through, so that divergence stays visible.
#[inline(always)]
fn passed(gradient: f32, output: f32) -> f32 {
    if output <= 0.0 { 0.0 } else { gradient }
}

/// max(value, floor) that keeps a value which is not a number.
#[inline(always)]
fn at_least(value: f32, floor: f32) -> f32 {
    if value < floor { floor } else { value }
}

at_every_level! {
    /// `sum += values`, elementwise.
    fn add(sum: &mut [f32], values: &[f32]) {
        for (sum, &value) in sum.iter_mut().zip(values) {
            *sum += value;
        }
    }

    /// Adds the rows of `x [R, C]` less `shift [C]`, and their squares, to `sums` and `squares`,
    /// both `[C]`.
    fn add_moments(x: &[f32], shift: &[f32], sums: &mut [f32], squares: &mut [f32]) {
        for row in x.chunks_exact(shift.len()) {
            let sums = sums.iter_mut().zip(squares.iter_mut());
            for ((&x, &shift), (sum, square)) in row.iter().zip(shift).zip(sums) {
                let centred = x - shift;
                *sum += centred;
                *square += centred * centred;
            }
        }
    }

    /// `y = max(x * scale + offset, floor)`; `x`, `y` are `[R, C]`, `scale`, `offset` `[C]`.
    fn affine(x: &[f32], scale: &[f32], offset: &[f32], floor: f32, y: &mut [f32]) {
        let channels = scale.len();
        for (y, x) in y.chunks_exact_mut(channels).zip(x.chunks_exact(channels)) {
            for ((y, &x), (&scale, &offset)) in y.iter_mut().zip(x).zip(scale.iter().zip(offset)) {
                *y = at_least(x * scale + offset, floor);
            }
        }
    }

    /// `y = max(x * scale + offset + residual, floor)`; the shapes are [`affine`]'s.
    fn affine_onto(x: &[f32], scale: &[f32], offset: &[f32], floor: f32, residual: &[f32],
                   y: &mut [f32]) {
        let channels = scale.len();
        let inputs = x.chunks_exact(channels).zip(residual.chunks_exact(channels));
        for (y, (x, residual)) in y.chunks_exact_mut(channels).zip(inputs) {
            let inputs = x.iter().zip(residual).zip(scale.iter().zip(offset));
            for (y, ((&x, &residual), (&scale, &offset))) in y.iter_mut().zip(inputs) {
                *y = at_least(x * scale + offset + residual, floor);
            }
        }
    }

    /// Adds the rows of `dy [R, C]`, and of `dy * (x - mean)`, to `sums` and `products`, both `[C]`.
    fn add_products(x: &[f32], dy: &[f32], mean: &[f32], sums: &mut [f32],
                    products: &mut [f32]) {
        let channels = mean.len();
        for (x, dy) in x.chunks_exact(channels).zip(dy.chunks_exact(channels)) {
            let sums = sums.iter_mut().zip(products.iter_mut());
            for (((&x, &dy), &mean), (sum, product)) in x.iter().zip(dy).zip(mean).zip(sums) {
                *sum += dy;
                *product += dy * (x - mean);
            }
        }
    }

    /// [`add_products`] of the gradient that passed the rectifier whose outputs are `y [R, C]`.
    fn add_passed_products(x: &[f32], y: &[f32], dy: &[f32], mean: &[f32], sums: &mut [f32],
                           products: &mut [f32]) {
        let channels = mean.len();
        let rows = x.chunks_exact(channels).zip(y.chunks_exact(channels));
        for ((x, y), dy) in rows.zip(dy.chunks_exact(channels)) {
            let sums = sums.iter_mut().zip(products.iter_mut());
            let row = x.iter().zip(y).zip(dy).zip(mean);
            for ((((&x, &y), &dy), &mean), (sum, product)) in row.zip(sums) {
                let gradient = passed(dy, y);
                *sum += gradient;
                *product += gradient * (x - mean);
            }
        }
    }

    /// `dx = dy * of_dy + x * of_x + constant`; rows `[R, C]`, coefficients `[3, C]` in this order.
    fn combine(x: &[f32], dy: &[f32], coefficients: &[f32], dx: &mut [f32]) {
        let channels = coefficients.len() / 3;
        let (of_dy, rest) = coefficients.split_at(channels);
        let (of_x, constant) = rest.split_at(channels);
        let rows = x.chunks_exact(channels).zip(dy.chunks_exact(channels));
        for (dx, (x, dy)) in dx.chunks_exact_mut(channels).zip(rows) {
            let row = x.iter().zip(dy).zip(of_dy).zip(of_x).zip(constant);
            for (dx, ((((&x, &dy), &of_dy), &of_x), &constant)) in dx.iter_mut().zip(row) {
                *dx = dy * of_dy + (x * of_x + constant);
            }
        }
    }

    /// [`combine`] of the gradient that passed the rectifier whose outputs are `y [R, C]`.
    fn combine_passed(x: &[f32], y: &[f32], dy: &[f32], coefficients: &[f32], dx: &mut [f32]) {
        let channels = coefficients.len() / 3;
        let (of_dy, rest) = coefficients.split_at(channels);
        let (of_x, constant) = rest.split_at(channels);
        let rows = x.chunks_exact(channels).zip(y.chunks_exact(channels));
        let rows = rows.zip(dy.chunks_exact(channels));
        for (dx, ((x, y), dy)) in dx.chunks_exact_mut(channels).zip(rows) {
            let row = x.iter().zip(y).zip(dy).zip(of_dy).zip(of_x).zip(constant);
            for (dx, (((((&x, &y), &dy), &of_dy), &of_x), &constant)) in dx.iter_mut().zip(row) {
                *dx = passed(dy, y) * of_dy + (x * of_x + constant);
            }
        }
    }

    /// [`combine`] in place of `dy`.
    fn combine_in_place(x: &[f32], coefficients: &[f32], dy: &mut [f32]) {
        let channels = coefficients.len() / 3;
        let (of_dy, rest) = coefficients.split_at(channels);
        let (of_x, constant) = rest.split_at(channels);
        for (dy, x) in dy.chunks_exact_mut(channels).zip(x.chunks_exact(channels)) {
            let row = x.iter().zip(of_dy).zip(of_x).zip(constant);
            for (dy, (((&x, &of_dy), &of_x), &constant)) in dy.iter_mut().zip(row) {
                *dy = *dy * of_dy + (x * of_x + constant);
            }
        }
    }

    /// `out = dy` where the rectifier whose outputs are `y` let it through, else zero.
    fn pass(y: &[f32], dy: &[f32], out: &mut [f32]) {
        for (out, (&y, &dy)) in out.iter_mut().zip(y.iter().zip(dy)) {
            *out = passed(dy, y);
        }
    }

    /// [`pass`] in place of `dy`.
    fn pass_in_place(y: &[f32], dy: &mut [f32]) {
        for (dy, &y) in dy.iter_mut().zip(y) {
            *dy = passed(*dy, y);
        }
    }

    /// The sum of squares.
    fn sum_of_squares(x: &[f32]) -> f32 {
        sum([x], |[x]| x * x)
    }

    /// One step of [`update::sgd`](crate::ops::update::sgd).
    fn sgd(rule: Sgd, weights: &mut [f32], velocity: &mut [f32], gradient: &[f32]) {
        let state = weights.iter_mut().zip(velocity);
        for ((weight, velocity), &gradient) in state.zip(gradient) {
            let direction = gradient + rule.decay * *weight;
            *velocity = rule.momentum * *velocity + rule.trust * direction;
            *weight -= rule.rate * *velocity;
        }
    }

    /// One step of [`update::adamw`](crate::ops::update::adamw).
    fn adamw(rule: AdamW, weights: &mut [f32], mean: &mut [f32], square: &mut [f32],
             gradient: &[f32]) {
        let state = weights.iter_mut().zip(mean.iter_mut().zip(square));
        for ((weight, (mean, square)), &gradient) in state.zip(gradient) {
            *mean = rule.beta1 * *mean + (1.0 - rule.beta1) * gradient;
            *square = rule.beta2 * *square + (1.0 - rule.beta2) * (gradient * gradient);
            let spread = (*square * rule.square_scale).sqrt() + rule.epsilon;
            let direction = *mean * rule.mean_scale / spread + rule.decay * *weight;
            *weight -= rule.rate * direction;
        }
    }

    /// `average = kept average + taken values`, elementwise.
    fn average(average: &mut [f32], values: &[f32], kept: f32, taken: f32) {
        for (average, &value) in average.iter_mut().zip(values) {
            *average = kept * *average + taken * value;
        }
    }

    /// `best = max(best, values)`, elementwise; what is not a number stays.
    fn raise(best: &mut [f32], values: &[f32]) {
        for (best, &value) in best.iter_mut().zip(values) {
            *best = if value > *best || value.is_nan() { value } else { *best };
        }
    }

    /// Moves `unclaimed` to `dx` where `x` equals the maximum `y`, and leaves zero in its place.
    fn claim(x: &[f32], y: &[f32], unclaimed: &mut [f32], dx: &mut [f32]) {
        for ((&x, &y), (unclaimed, dx)) in x.iter().zip(y).zip(unclaimed.iter_mut().zip(dx)) {
            let is_maximum = x == y;
            *dx += if is_maximum { *unclaimed } else { 0.0 };
            *unclaimed = if is_maximum { 0.0 } else { *unclaimed };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Isa;
    use proptest::prelude::*;

    /// Values of either sign with zeros and infinities among them.
    fn values(seed: usize, length: usize) -> Vec<f32> {
        (0..length)
            .map(|i| match (i * 7919 + seed * 104_729) % 1009 {
                0 => f32::INFINITY,
                residue if residue % 10 == 0 => 0.0,
                residue => residue as f32 / 100.0 - 5.0,
            })
            .collect()
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|value| value.to_bits()).collect()
    }

    /// Every loop once at `level`, its outputs one after another.
    fn run(isa: Isa, rows: usize, channels: usize) -> Vec<f32> {
        let length = rows * channels;
        let (x, y, dy) = (values(1, length), values(2, length), values(3, length));
        let (mean, scale) = (values(4, channels), values(5, channels));
        let coefficients = values(6, 3 * channels);
        let mut all = Vec::new();
        let mut out = |work: &dyn Fn(&mut [f32])| {
            let mut out = values(7, length);
            work(&mut out);
            all.extend(out);
        };
        out(&|out| add(isa, out, &x));
        out(&|out| affine(isa, &x, &mean, &scale, 0.0, out));
        out(&|out| affine_onto(isa, &x, &mean, &scale, f32::NEG_INFINITY, &dy, out));
        out(&|out| combine(isa, &x, &dy, &coefficients, out));
        out(&|out| combine_passed(isa, &x, &y, &dy, &coefficients, out));
        out(&|out| combine_in_place(isa, &x, &coefficients, out));
        out(&|out| pass(isa, &y, &dy, out));
        out(&|out| pass_in_place(isa, &y, out));
        out(&|out| raise(isa, out, &x));
        out(&|out| average(isa, out, &x, 0.9, 0.1));
        let rule = Sgd { rate: 0.1, momentum: 0.9, decay: 0.01, trust: 0.7 };
        out(&|out| sgd(isa, rule, out, &mut dy.clone(), &x));
        out(&|out| sgd(isa, rule, &mut dy.clone(), out, &x));
        let (beta1, beta2, epsilon, decay) = (0.9, 0.999, 1e-8, 0.1);
        let (rate, mean_scale, square_scale) = (0.1, 2.0, 3.0);
        let rule = AdamW { rate, beta1, beta2, epsilon, decay, mean_scale, square_scale };
        out(&|out| adamw(isa, rule, out, &mut dy.clone(), &mut y.clone(), &x));
        out(&|out| adamw(isa, rule, &mut dy.clone(), out, &mut y.clone(), &x));
        out(&|out| claim(isa, &x, &y, &mut dy.clone(), out));
        out(&|out| claim(isa, &x, &x, out, &mut dy.clone()));
        all.push(sum_of_squares(isa, &mean));
        let mut pair = |work: &dyn Fn(&mut [f32], &mut [f32])| {
            let (mut first, mut second) = (values(8, channels), values(9, channels));
            work(&mut first, &mut second);
            all.extend(first);
            all.extend(second);
        };
        pair(&|first, second| add_moments(isa, &x, &mean, first, second));
        pair(&|first, second| add_products(isa, &x, &dy, &mean, first, second));
        pair(&|first, second| add_passed_products(isa, &x, &y, &dy, &mean, first, second));
        all
    }

    proptest! {
        #[test]
        fn every_level_gives_the_portable_bits(rows in 0usize..9, channels in 1usize..70) {
            let expected = run(Isa::PORTABLE, rows, channels);
            for isa in Isa::available() {
                let found = run(isa, rows, channels);
                // Which bits an invalid operation's NaN carries is not specified.
                for (&found, &expected) in found.iter().zip(&expected) {
                    prop_assert!(
                        found.to_bits() == expected.to_bits()
                            || found.is_nan() && expected.is_nan(),
                        "{found} is not {expected} at {isa:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn closed_forms() {
        let isa = Isa::best();
        let mut y = [0.0; 4];
        affine(isa, &[1.0, -1.0, 2.0, f32::NAN], &[2.0, 3.0], &[0.5, 1.0], 0.0, &mut y);
        assert_eq!(bits(&y[..3]), bits(&[2.5, 0.0, 4.5]));
        assert!(y[3].is_nan(), "a rectifier must not hide divergence");
        pass(isa, &[1.0, 0.0, -1.0, f32::NAN], &[5.0, 6.0, 7.0, 8.0], &mut y);
        assert_eq!(y, [5.0, 0.0, 0.0, 8.0]);
        let (mut sums, mut squares) = ([0.0; 2], [0.0; 2]);
        add_moments(isa, &[1.0, 2.0, 3.0, 5.0], &[1.0, 1.0], &mut sums, &mut squares);
        assert_eq!((sums, squares), ([2.0, 5.0], [4.0, 17.0]));
    }
}
