//! Direct convolution over the tiles of a [`Route`], shared out to the threads.

use super::stored::Stored;
pub(in crate::ops::native) use super::tail::Tail;
use super::tile::Tiles;
use crate::ops::isa::Isa;
use crate::ops::native::indirection::{Part, Route};
use crate::ops::with_scratch;
use rayon::prelude::*;
use std::ops::Range;

/// A convolution with packed weights.
pub(in crate::ops::native) struct Convolution<'a, E: Stored> {
    pub(in crate::ops::native) isa: Isa,
    pub(in crate::ops::native) route: &'a Route,
    /// Input channels; of a column where the input is gathered.
    pub(in crate::ops::native) channels: usize,
    /// Output channels, O.
    pub(in crate::ops::native) outputs: usize,
    /// Packed weights `[blocks, taps, words of channels, block]`, zero past the last output and
    /// beside the last of an odd number of channels.
    pub(in crate::ops::native) weights: &'a [E::Word],
    /// At least `channels` zeros: what a tap in the padding reads.
    pub(in crate::ops::native) zeros: &'a [E],
}

/// Writes the columns of some of an image's output pixels, `[pixels, channels]`.
pub(in crate::ops::native) type Gather<'a, E> = dyn Fn(usize, Range<usize>, &mut [E]) + Sync + 'a;

/// What a convolution reads.
#[derive(Clone, Copy)]
pub(in crate::ops::native) enum Input<'a, E> {
    /// Images `[N, H, W, C]`.
    Images(&'a [E]),
    /// Columns, made for the tiles of one task at a time: for few channels, where each tap alone would be too little work. The
    /// route has one tap that reads each pixel itself.
    Columns(&'a Gather<'a, E>),
}

/// A pointer that tasks share, each writing its own part of what it points to.
pub(super) struct Shared<T>(pub(super) *mut T);

// SAFETY: tasks write disjoint elements, which may be sent; see `convolve`.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub(super) fn pointer(&self) -> *mut T {
        self.0
    }
}

impl<E: Stored> Convolution<'_, E> {
    fn block(&self) -> usize {
        self.isa.block()
    }

    fn blocks(&self) -> usize {
        self.outputs.div_ceil(self.block())
    }

    /// Floats that [`convolve`] writes sums into: `[parts, 2, blocks, block]`.
    pub(in crate::ops::native) fn sums_len(&self) -> usize {
        self.route.parts().len() * self.part_sums()
    }

    pub(super) fn part_sums(&self) -> usize {
        2 * self.blocks() * self.block()
    }
}

/// `output [N, H', W', O]` of the convolution, finished by `tail`. If `sums` is not empty, each
/// part's sums over its pixels of the outputs, and of the outputs times `tail.factor`, go into its
/// place there.
///
/// # Panics
/// If a length does not fit.
pub(in crate::ops::native) fn convolve<E: Stored>(
    convolution: &Convolution<'_, E>,
    input: Input<'_, E>,
    output: &mut [E],
    tail: Tail<'_, E>,
    sums: &mut [f32],
) {
    check(convolution, input, output, &tail);
    let part_sums = convolution.part_sums();
    assert!(sums.is_empty() || sums.len() == convolution.sums_len(), "sums");
    let parts = convolution.route.parts();
    // Few pixels, as of one image to be served, are shared out by their blocks too.
    let splits = (8 / parts.len().max(1)).clamp(1, convolution.blocks());
    let shared = Shared(output.as_mut_ptr());
    let shared_sums = Shared(sums.as_mut_ptr());
    (0..parts.len() * splits).into_par_iter().with_max_len(1).for_each(|task| {
        let (index, split) = (task / splits, task % splits);
        let blocks = convolution.blocks();
        let blocks = split * blocks / splits..(split + 1) * blocks / splits;
        // SAFETY: where sums are asked for there are `part_sums` for each part, checked above.
        let sums =
            (!sums.is_empty()).then(|| unsafe { shared_sums.pointer().add(index * part_sums) });
        let run = |part: &Part, input: *const E| {
            let (blocks, output) = (blocks.clone(), shared.pointer());
            let work = Tiles { convolution, part, blocks, input, output, tail: &tail, sums };
            // SAFETY: `check` made sure that every pixel of the route lies in its tensor. A route
            // has each output pixel in exactly one tile and part, and each task its own blocks of
            // it, so no two tasks write the same element of the output or the sums.
            unsafe { convolution.isa.run(work) }
        };
        let part = &parts[index];
        let window = convolution.route.window();
        match input {
            Input::Images(images) => {
                let image = window.input[0] * window.input[1] * convolution.channels;
                run(part, images[part.first_image * image..].as_ptr());
            }
            Input::Columns(gather) => {
                let rows = convolution.isa.rows();
                let end = (part.tiles.end * rows).min(window.output[0] * window.output[1]);
                let pixels = part.tiles.start * rows..end;
                let length = pixels.len() * convolution.channels;
                with_scratch(E::columns(), length, |columns| {
                    gather(part.first_image, pixels.clone(), columns);
                    // The tiles count from the image's first pixel.
                    let skipped = pixels.start * convolution.channels;
                    run(part, columns.as_ptr().wrapping_sub(skipped));
                });
            }
        }
    });
}

/// Panics unless every index that the tiles use lies in its slice.
fn check<E: Stored>(
    convolution: &Convolution<'_, E>,
    input: Input<'_, E>,
    output: &[E],
    tail: &Tail<'_, E>,
) {
    let Convolution { isa, route, channels, outputs, weights, zeros } = *convolution;
    let window = route.window();
    let taps = window.geometry.kernel.pow(2);
    let blocks = convolution.blocks() * isa.block();
    if let Input::Images(images) = input {
        let pixels = route.images() * window.input[0] * window.input[1];
        assert_eq!(images.len(), pixels * channels, "input of a convolution");
    } else {
        let is_itself = taps == 1 && window.geometry.stride == 1 && window.input == window.output;
        assert!(is_itself && !window.is_transposed, "columns are read pixel by pixel");
    }
    let pixels = route.images() * window.output[0] * window.output[1];
    assert_eq!(output.len(), pixels * outputs, "output of a convolution");
    assert_eq!(weights.len(), taps * channels.div_ceil(E::PER_WORD) * blocks, "packed weights");
    assert!(zeros.len() >= channels, "zeros");
    tail.check(output.len(), blocks);
    for part in route.parts() {
        assert_eq!(route.indirection(part.first_image).rows(), isa.rows(), "rows of a tile");
    }
}
