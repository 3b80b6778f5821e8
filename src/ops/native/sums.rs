//! Sums over pixels, by parts: in f32 within a part, in f64 over them.

use crate::ops::element::Element;
use crate::ops::isa::Isa;
use crate::ops::simd;
use rayon::prelude::*;

/// Pixels whose sums stay in f32.
pub(super) const PART_ROWS: usize = 256;

/// Sums over pixels of two quantities per channel.
#[derive(Clone, Debug, Default)]
pub(super) struct Sums {
    /// Of the quantity, `[O]`.
    pub(super) first: Vec<f64>,
    /// Of its products, `[O]`.
    pub(super) second: Vec<f64>,
    /// What parts of the pixels add up to, in f32.
    pub(super) parts: Vec<f32>,
}

impl Sums {
    /// Room for `channels`, and for `parts_len` floats of parts.
    pub(super) fn grow(&mut self, channels: usize, parts_len: usize) {
        for totals in [&mut self.first, &mut self.second] {
            totals.resize(channels.max(totals.len()), 0.0);
        }
        self.parts.resize(parts_len.max(self.parts.len()), 0.0);
    }

    /// Adds up the first `parts_len` floats of parts, each `[2, padded]`, into `channels` totals.
    pub(super) fn add_up(&mut self, channels: usize, padded: usize, parts_len: usize) {
        let (first, second) = (&mut self.first[..channels], &mut self.second[..channels]);
        first.fill(0.0);
        second.fill(0.0);
        for part in self.parts[..parts_len].chunks_exact(2 * padded) {
            let (firsts, seconds) = part.split_at(padded);
            first.iter_mut().zip(firsts).for_each(|(total, &sum)| *total += f64::from(sum));
            second.iter_mut().zip(seconds).for_each(|(total, &sum)| *total += f64::from(sum));
        }
    }

    /// Room for the parts of `rows` rows of `channels`, and for their totals.
    pub(super) fn grow_rows(&mut self, rows: usize, channels: usize) {
        self.grow(channels, rows.div_ceil(PART_ROWS) * 2 * channels);
    }

    /// Makes `first [C]` the sum over the rows of `x [R, C]`.
    pub(super) fn add_rows<E: Element>(&mut self, x: &[E], channels: usize) {
        let parts_len = (x.len() / channels).div_ceil(PART_ROWS) * 2 * channels;
        let parts = self.parts[..parts_len].par_chunks_mut(2 * channels);
        parts.zip(x.par_chunks(PART_ROWS * channels)).for_each(|(sums, rows)| {
            sums.fill(0.0);
            for row in rows.chunks_exact(channels) {
                simd::add(Isa::best(), &mut sums[..channels], row);
            }
        });
        self.add_up(channels, channels, parts_len);
    }
}
