//! Where a pixel is, as sines and cosines.

use crate::ops::element::Element;
use crate::ops::native::sums::Sums;
use crate::ops::positions;
use rayon::prelude::*;

/// The positions of one shape of images, with the bias that goes with them.
pub(in crate::ops::native) struct Positions {
    channels: usize,
    /// `[H, W, D]`.
    table: Vec<f32>,
    /// Of the gradient of the bias.
    sums: Sums,
}

impl Positions {
    /// For `images` images of `sides`.
    pub(in crate::ops::native) fn new(images: usize, sides: [usize; 2], channels: usize) -> Self {
        let mut sums = Sums::default();
        sums.grow_rows(images * sides[0] * sides[1], channels);
        Self { channels, table: positions::table(sides, channels), sums }
    }

    /// `y = x + bias + position`.
    pub(in crate::ops::native) fn forward<E: Element>(&self, bias: &[f32], x: &[E], y: &mut [E]) {
        let images = y.par_chunks_mut(self.table.len()).zip(x.par_chunks(self.table.len()));
        images.for_each(|(y, x)| {
            let table = self.table.chunks_exact(self.channels);
            let pixels = y.chunks_exact_mut(self.channels).zip(x.chunks_exact(self.channels));
            for ((y, x), place) in pixels.zip(table) {
                for ((y, x), (&place, &bias)) in y.iter_mut().zip(x).zip(place.iter().zip(bias)) {
                    *y = E::narrow(x.widen() + (place + bias));
                }
            }
        });
    }

    /// The gradient of the bias; that of the images is `dy` itself.
    pub(in crate::ops::native) fn backward<E: Element>(&mut self, dy: &[E], dbias: &mut [f32]) {
        self.sums.add_rows(dy, self.channels);
        let totals = dbias.iter_mut().zip(&self.sums.first);
        totals.for_each(|(gradient, &sum)| *gradient = sum as f32);
    }
}
