//! Direct convolution over tiles of a [`Route`]: a register tile of R output pixels by two vectors
//! of output channels sums over taps and input channels, and is finished before it is stored.

#![expect(
    clippy::needless_range_loop,
    reason = "counted loops over arrays unroll, which keeps a tile in registers"
)]

use super::{Kernel, Lanes, Unit};
use crate::ops::native::indirection::{Indirection, OUTSIDE, Part, Route};
use crate::ops::with_scratch;
use rayon::prelude::*;
use std::cell::Cell;
use std::ops::Range;

thread_local! {
    static COLUMNS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Floats of the widest block of any unit.
const BLOCK_MAX: usize = 32;

/// A convolution with packed weights.
pub(in crate::ops::native) struct Convolution<'a> {
    pub(in crate::ops::native) unit: Unit,
    pub(in crate::ops::native) route: &'a Route,
    /// Input channels; of a column where the input is gathered.
    pub(in crate::ops::native) channels: usize,
    /// Output channels, O.
    pub(in crate::ops::native) outputs: usize,
    /// Packed weights `[blocks, taps, channels, block]`, zero past the last output.
    pub(in crate::ops::native) weights: &'a [f32],
    /// At least `channels` zeros: what a tap in the padding reads.
    pub(in crate::ops::native) zeros: &'a [f32],
}

/// Writes the columns of some of an image's output pixels, `[pixels, channels]`.
pub(in crate::ops::native) type Gather<'a> = dyn Fn(usize, Range<usize>, &mut [f32]) + Sync + 'a;

/// What a convolution reads.
#[derive(Clone, Copy)]
pub(in crate::ops::native) enum Input<'a> {
    /// Images `[N, H, W, C]`.
    Images(&'a [f32]),
    /// Columns, made for the tiles of one task at a time: for few channels, where each tap alone would be too little work. The
    /// route has one tap that reads each pixel itself.
    Columns(&'a Gather<'a>),
}

/// What happens to a finished output before it is stored, in this order. The tensors have the
/// output's shape.
#[derive(Clone, Copy, Default)]
pub(in crate::ops::native) struct Tail<'a> {
    /// Added to each channel, zero past the last one up to a whole block.
    pub(in crate::ops::native) bias: Option<&'a [f32]>,
    /// Whether the output's present numbers are added.
    pub(in crate::ops::native) accumulates: bool,
    /// Added.
    pub(in crate::ops::native) residual: Option<&'a [f32]>,
    /// Whether numbers below zero become zero.
    pub(in crate::ops::native) relu: bool,
    /// Zero where this is zero or below: the gradient of a rectifier with this output.
    pub(in crate::ops::native) passed: Option<&'a [f32]>,
    /// What the outputs are multiplied by in the second sum; themselves if nothing.
    pub(in crate::ops::native) factor: Option<&'a [f32]>,
}

/// A pointer that tasks share, each writing its own part of what it points to.
#[derive(Clone, Copy)]
struct Shared(*mut f32);

// SAFETY: tasks write disjoint elements; see `convolve`.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    fn pointer(self) -> *mut f32 {
        self.0
    }
}

impl Convolution<'_> {
    fn block(&self) -> usize {
        self.unit.block()
    }

    fn blocks(&self) -> usize {
        self.outputs.div_ceil(self.block())
    }

    /// Floats that [`convolve`] writes sums into: `[parts, 2, blocks, block]`.
    pub(in crate::ops::native) fn sums_len(&self) -> usize {
        self.route.parts().len() * self.part_sums()
    }

    fn part_sums(&self) -> usize {
        2 * self.blocks() * self.block()
    }
}

/// `output [N, H', W', O]` of the convolution, finished by `tail`. If `sums` is not empty, each
/// part's sums over its pixels of the outputs, and of the outputs times `tail.factor`, go into its
/// place there.
///
/// # Panics
/// If a length does not fit.
pub(in crate::ops::native) fn convolve(
    convolution: &Convolution<'_>,
    input: Input<'_>,
    output: &mut [f32],
    tail: Tail<'_>,
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
        let run = |part: &Part, input: *const f32| {
            let (blocks, output) = (blocks.clone(), shared.pointer());
            let work = Tiles { convolution, part, blocks, input, output, tail: &tail, sums };
            // SAFETY: `check` made sure that every pixel of the route lies in its tensor. A route
            // has each output pixel in exactly one tile and part, and each task its own blocks of
            // it, so no two tasks write the same element of the output or the sums.
            unsafe { convolution.unit.run(work) }
        };
        let part = &parts[index];
        let window = convolution.route.window();
        match input {
            Input::Images(images) => {
                let image = window.input[0] * window.input[1] * convolution.channels;
                run(part, images[part.first_image * image..].as_ptr());
            }
            Input::Columns(gather) => {
                let rows = convolution.unit.rows();
                let end = (part.tiles.end * rows).min(window.output[0] * window.output[1]);
                let pixels = part.tiles.start * rows..end;
                let length = pixels.len() * convolution.channels;
                with_scratch(&COLUMNS, length, |columns| {
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
fn check(convolution: &Convolution<'_>, input: Input<'_>, output: &[f32], tail: &Tail<'_>) {
    let Convolution { unit, route, channels, outputs, weights, zeros } = *convolution;
    let window = route.window();
    let taps = window.geometry.kernel.pow(2);
    let blocks = convolution.blocks() * unit.block();
    if let Input::Images(images) = input {
        let pixels = route.images() * window.input[0] * window.input[1];
        assert_eq!(images.len(), pixels * channels, "input of a convolution");
    } else {
        let is_itself = taps == 1 && window.geometry.stride == 1 && window.input == window.output;
        assert!(is_itself && !window.is_transposed, "columns are read pixel by pixel");
    }
    let pixels = route.images() * window.output[0] * window.output[1];
    assert_eq!(output.len(), pixels * outputs, "output of a convolution");
    assert_eq!(weights.len(), taps * channels * blocks, "packed weights");
    assert!(zeros.len() >= channels, "zeros");
    assert!(tail.bias.is_none_or(|bias| bias.len() == blocks), "bias");
    for tensor in [tail.residual, tail.passed, tail.factor].into_iter().flatten() {
        assert_eq!(tensor.len(), output.len(), "a tensor of the tail");
    }
    for part in route.parts() {
        assert_eq!(route.indirection(part.first_image).rows(), unit.rows(), "rows of a tile");
    }
}

/// The tiles of one part, some blocks of their outputs.
struct Tiles<'a> {
    convolution: &'a Convolution<'a>,
    part: &'a Part,
    blocks: Range<usize>,
    /// Where the first pixel of the group's first image is, or would be.
    input: *const f32,
    output: *mut f32,
    tail: &'a Tail<'a>,
    /// The part's place for sums.
    sums: Option<*mut f32>,
}

impl Kernel for Tiles<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        // SAFETY: the caller's contract; `check` compared the route's rows with the unit's.
        unsafe {
            match L::ROWS {
                6 => self.rows::<L, 6>(),
                12 => self.rows::<L, 12>(),
                rows => unreachable!("no tile of {rows} rows is compiled"),
            }
        }
    }
}

/// A tile's rows by its two vectors.
type Accumulators<L, const R: usize> = [[<L as Lanes>::Vector; 2]; R];

impl Tiles<'_> {
    /// # Safety
    /// Every pixel of the part lies in its tensor; nobody else writes the part's blocks; the
    /// processor has the unit's instructions. So for the functions below.
    #[inline(always)]
    unsafe fn rows<L: Lanes, const R: usize>(&self) {
        let Convolution { route, outputs, .. } = *self.convolution;
        let block = 2 * L::WIDTH;
        let group = route.indirection(self.part.first_image);
        for index in self.blocks.clone() {
            let columns = block.min(outputs - index * block);
            // SAFETY: above; sums hold two runs of whole blocks.
            unsafe {
                let mut sums = [[L::splat(0.0); 2]; 2];
                for tile in self.part.tiles.clone() {
                    let accumulators = self.accumulate::<L, R>(group, tile, index);
                    let valid = group.tiles()[tile].valid;
                    let targets = group.targets(tile);
                    self.finish::<L, R>(accumulators, targets, valid, (index, columns), &mut sums);
                }
                if let Some(place) = self.sums {
                    let second = self.convolution.part_sums() / 2;
                    for (at, sums) in [(0, sums[0]), (second, sums[1])] {
                        let place = place.add(at + index * block);
                        L::store(place, sums[0]);
                        L::store(place.add(L::WIDTH), sums[1]);
                    }
                }
            }
        }
    }

    /// The sums of one tile over its taps and all input channels.
    #[inline(always)]
    unsafe fn accumulate<L: Lanes, const R: usize>(
        &self,
        group: &Indirection,
        tile: usize,
        block: usize,
    ) -> Accumulators<L, R> {
        let Convolution { route, channels, weights, zeros, .. } = *self.convolution;
        let window = route.window();
        let taps = window.geometry.kernel.pow(2);
        let tap_floats = channels * 2 * L::WIDTH;
        // SAFETY: the route's pixels lie in the input (where that is columns its start may not,
        // hence the wrapping arithmetic); packed weights hold `taps * tap_floats` for each block.
        unsafe {
            let weights = weights.as_ptr().add(block * taps * tap_floats);
            let mut sums = [[L::splat(0.0); 2]; R];
            for listed in group.tiles().get_unchecked(tile).taps.clone() {
                let (tap, sources) = group.tap(listed);
                let mut pixels = [zeros.as_ptr(); R];
                for row in 0..R {
                    let source = *sources.get_unchecked(row);
                    if source != OUTSIDE {
                        pixels[row] = self.input.wrapping_add(source as usize * channels);
                    }
                }
                let mut weight = weights.add(tap * tap_floats);
                for channel in 0..channels {
                    let w = [L::load(weight), L::load(weight.add(L::WIDTH))];
                    for row in 0..R {
                        let x = L::splat(*pixels[row].add(channel));
                        sums[row][0] = L::multiply_add(x, w[0], sums[row][0]);
                        sums[row][1] = L::multiply_add(x, w[1], sums[row][1]);
                    }
                    weight = weight.add(2 * L::WIDTH);
                }
            }
            sums
        }
    }

    /// Finishes one tile by the tail and stores it; `sums` grow by it.
    #[inline(always)]
    unsafe fn finish<L: Lanes, const R: usize>(
        &self,
        mut tile: Accumulators<L, R>,
        targets: &[u32],
        valid: usize,
        (block, columns): (usize, usize),
        sums: &mut [[L::Vector; 2]; 2],
    ) {
        let Convolution { route, outputs, .. } = *self.convolution;
        let window = route.window();
        let image = window.output[0] * window.output[1] * outputs;
        let column = block * 2 * L::WIDTH;
        let first = self.part.first_image * image + column;
        // SAFETY: targets are pixels of the output, whose shape the tail's tensors have; `columns`
        // channels from `column` on are left in each.
        unsafe {
            let place = |row: usize| first + *targets.get_unchecked(row) as usize * outputs;
            let mut add_rows = |from: *const f32| {
                for row in 0..R {
                    let values = load_pair::<L>(from.add(place(row)), columns);
                    tile[row] = add_pair::<L>(tile[row], values);
                }
            };
            if self.tail.accumulates {
                add_rows(self.output);
            }
            if let Some(residual) = self.tail.residual {
                add_rows(residual.as_ptr());
            }
            if let Some(bias) = self.tail.bias {
                let bias = load_pair::<L>(bias.as_ptr().add(column), 2 * L::WIDTH);
                for row in 0..R {
                    tile[row] = add_pair::<L>(tile[row], bias);
                }
            }
            if self.tail.relu {
                let zero = L::splat(0.0);
                for row in 0..R {
                    tile[row] = tile[row].map(
                        #[inline(always)]
                        |value| L::at_least(value, zero),
                    );
                }
            }
            if let Some(output) = self.tail.passed {
                for row in 0..R {
                    let output = load_pair::<L>(output.as_ptr().add(place(row)), columns);
                    for half in 0..2 {
                        tile[row][half] = L::passed(tile[row][half], output[half]);
                    }
                }
            }
            if self.sums.is_some() {
                // Kept in registers: the reference would be written in every round.
                let mut totals = *sums;
                for row in 0..R {
                    if row < valid {
                        let factor = match self.tail.factor {
                            Some(factor) => {
                                load_pair::<L>(factor.as_ptr().add(place(row)), columns)
                            }
                            None => tile[row],
                        };
                        totals[0] = add_pair::<L>(totals[0], tile[row]);
                        for half in 0..2 {
                            totals[1][half] =
                                L::multiply_add(tile[row][half], factor[half], totals[1][half]);
                        }
                    }
                }
                *sums = totals;
            }
            for row in 0..R {
                if row < valid {
                    store_pair::<L>(self.output.add(place(row)), tile[row], columns);
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn add_pair<L: Lanes>(a: [L::Vector; 2], b: [L::Vector; 2]) -> [L::Vector; 2] {
    // SAFETY: the caller has the unit.
    unsafe { [L::add(a[0], b[0]), L::add(a[1], b[1])] }
}

/// `columns` floats, and zeros up to two vectors.
#[inline(always)]
unsafe fn load_pair<L: Lanes>(from: *const f32, columns: usize) -> [L::Vector; 2] {
    // SAFETY: `columns` floats can be read at `from`; a block has at most `BLOCK_MAX`.
    unsafe {
        if columns == 2 * L::WIDTH {
            return [L::load(from), L::load(from.add(L::WIDTH))];
        }
        let mut floats = [0.0; BLOCK_MAX];
        std::ptr::copy_nonoverlapping(from, floats.as_mut_ptr(), columns);
        [L::load(floats.as_ptr()), L::load(floats.as_ptr().add(L::WIDTH))]
    }
}

/// The first `columns` floats of two vectors.
#[inline(always)]
unsafe fn store_pair<L: Lanes>(to: *mut f32, pair: [L::Vector; 2], columns: usize) {
    // SAFETY: `columns` floats can be written at `to`; a block has at most `BLOCK_MAX`.
    unsafe {
        if columns == 2 * L::WIDTH {
            L::store(to, pair[0]);
            L::store(to.add(L::WIDTH), pair[1]);
            return;
        }
        let mut floats = [0.0; BLOCK_MAX];
        L::store(floats.as_mut_ptr(), pair[0]);
        L::store(floats.as_mut_ptr().add(L::WIDTH), pair[1]);
        std::ptr::copy_nonoverlapping(floats.as_ptr(), to, columns);
    }
}
