//! The class token of a transformer, and what is read of it.

use crate::ops::element::Element;
use rayon::prelude::*;

/// `y [N, T, D]`: the first of `positions [T, D]`, then the pixels `x [N, T - 1, D]` with theirs.
pub(in crate::ops::native) fn add_token<E: Element>(
    positions: &[f32],
    channels: usize,
    x: &[E],
    y: &mut [E],
) {
    let (token, places) = positions.split_at(channels);
    let images = y.par_chunks_mut(positions.len()).zip(x.par_chunks(places.len()));
    images.for_each(|(y, x)| {
        let (first, rest) = y.split_at_mut(channels);
        first.iter_mut().zip(token).for_each(|(y, &value)| *y = E::narrow(value));
        let rest = rest.iter_mut().zip(x).zip(places);
        rest.for_each(|((y, x), &place)| *y = E::narrow(x.widen() + place));
    });
}

/// The gradients of the positions and of the pixels, of `dy`.
pub(in crate::ops::native) fn pull_token<E: Element>(
    dy: &[E],
    channels: usize,
    dpositions: &mut [f32],
    dx: &mut [E],
) {
    let of_image = dpositions.len();
    dpositions.par_chunks_mut(channels).enumerate().for_each(|(token, sum)| {
        sum.fill(0.0);
        for image in dy.chunks_exact(of_image) {
            let row = &image[token * channels..][..channels];
            sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += value.widen());
        }
    });
    let images = dx.par_chunks_mut(of_image - channels).zip(dy.par_chunks(of_image));
    images.for_each(|(dx, dy)| dx.copy_from_slice(&dy[channels..]));
}

/// `y [N, C]`: the first of the `pixels` of each image of `x`.
pub(in crate::ops::native) fn first_pixel<E: Element>(
    x: &[E],
    pixels: usize,
    channels: usize,
    y: &mut [E],
) {
    let images = y.chunks_exact_mut(channels).zip(x.chunks_exact(pixels * channels));
    images.for_each(|(y, x)| y.copy_from_slice(&x[..channels]));
}

/// The gradient of `x`, of `dy`.
pub(in crate::ops::native) fn pull_first_pixel<E: Element>(
    dy: &[E],
    pixels: usize,
    channels: usize,
    dx: &mut [E],
) {
    dx.fill(E::default());
    let images = dx.chunks_exact_mut(pixels * channels).zip(dy.chunks_exact(channels));
    images.for_each(|(dx, dy)| dx[..channels].copy_from_slice(dy));
}
