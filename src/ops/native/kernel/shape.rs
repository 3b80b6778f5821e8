//! The sizes of a weight's gradient, and how its work is cut up.

use crate::ops::Geometry;
use crate::ops::isa::Isa;
use std::ops::Range;

/// Output pixels whose gradients make up a panel, about: 16 KiB a block on AVX2, half of a
/// first-level cache.
const PANEL_PIXELS: usize = 256;

/// Words of a chunk's rows where they are packed, about: 256 KiB, half of a second-level cache.
const ROWS_WORDS: usize = 1 << 16;

/// Output grids up to this wide are summed image by image at each pixel.
const NARROW_PIXELS: usize = 8;

/// Tasks of one gradient, at least, where its size allows: enough for a few threads to end together.
const TASKS: usize = 16;

/// Floats of all partial sums of a gradient together (2 MiB, so that they stay in a cache), unless
/// one alone is larger.
const PARTIAL_FLOATS: usize = 1 << 19;

/// The sizes of the gradient.
#[derive(Clone, Copy, Debug)]
pub(in crate::ops::native) struct Shape {
    pub(in crate::ops::native) isa: Isa,
    pub(in crate::ops::native) images: usize,
    /// Images of a bundle: those that share a word.
    pub(in crate::ops::native) bundle: usize,
    /// H and W; of the output where the input is gathered.
    pub(in crate::ops::native) sides: [usize; 2],
    /// H' and W'.
    pub(in crate::ops::native) output_sides: [usize; 2],
    /// C; of a column where the input is gathered.
    pub(in crate::ops::native) channels: usize,
    /// O.
    pub(in crate::ops::native) outputs: usize,
    pub(in crate::ops::native) geometry: Geometry,
}

/// Some bundles of images, some rows of their outputs: what one panel holds.
#[derive(Clone, Debug)]
pub(super) struct Chunk {
    pub(super) bundles: Range<usize>,
    pub(super) rows: Range<usize>,
}

impl Shape {
    pub(super) fn blocks(&self) -> usize {
        self.outputs.div_ceil(self.isa.block())
    }

    pub(super) fn taps(&self) -> usize {
        self.geometry.kernel.pow(2)
    }

    /// Floats of a partial sum, `[blocks, taps, channels, block]`.
    pub(super) fn partial_len(&self) -> usize {
        self.blocks() * self.block_len()
    }

    pub(super) fn block_len(&self) -> usize {
        self.taps() * self.channels * self.isa.block()
    }

    pub(super) fn is_narrow(&self) -> bool {
        self.output_sides[1] <= NARROW_PIXELS
    }

    /// Whether images are pixels that are read alone, so that the gradient is a product of matrices.
    pub(super) fn is_matrix(&self) -> bool {
        self.taps() == 1 && self.sides == [1, 1] && self.output_sides == [1, 1]
    }

    /// Bundles of images of the batch.
    fn bundles(&self) -> usize {
        self.images.div_ceil(self.bundle)
    }

    /// The images of a chunk's bundles.
    pub(super) fn images_of(&self, chunk: &Chunk) -> Range<usize> {
        let Range { start, end } = chunk.bundles;
        start * self.bundle..(end * self.bundle).min(self.images)
    }

    /// The input rows that output rows see.
    pub(super) fn input_rows(&self, rows: &Range<usize>) -> Range<usize> {
        let Geometry { kernel, stride, padding } = self.geometry;
        let first = (rows.start * stride).saturating_sub(padding);
        let end = ((rows.end - 1) * stride + kernel).saturating_sub(padding).min(self.sides[0]);
        first.min(end)..end
    }

    /// Bundles of a chunk, and output rows of a chunk.
    fn chunk_sizes(&self) -> [usize; 2] {
        let [height, width] = self.output_sides;
        if self.is_matrix() {
            [(ROWS_WORDS / self.channels).clamp(PANEL_PIXELS / 8, PANEL_PIXELS), 1]
        } else if self.is_narrow() {
            [(PANEL_PIXELS / (height * width)).max(1), height]
        } else {
            [1, (PANEL_PIXELS / width).clamp(1, height)]
        }
    }

    pub(super) fn chunks(&self) -> usize {
        let [bundles, rows] = self.chunk_sizes();
        self.bundles().div_ceil(bundles) * self.output_sides[0].div_ceil(rows)
    }

    pub(super) fn chunk(&self, index: usize) -> Chunk {
        let [bundles, rows] = self.chunk_sizes();
        let runs = self.output_sides[0].div_ceil(rows);
        let (bundle, row) = (index / runs * bundles, index % runs * rows);
        Chunk {
            bundles: bundle..(bundle + bundles).min(self.bundles()),
            rows: row..(row + rows).min(self.output_sides[0]),
        }
    }

    /// Partial sums over pixels, and groups of blocks: what the work is split by.
    pub(super) fn split(&self) -> [usize; 2] {
        // Each group packs a matrix's rows anew, which pays for many blocks only; and a matrix has few
        // products for each sum, so that fewer parts are cheaper to add up.
        let (partial_floats, tasks, group_blocks) = if self.is_matrix() {
            (2 * PARTIAL_FLOATS, TASKS / 2, 16)
        } else {
            (PARTIAL_FLOATS, TASKS, 1)
        };
        let parts = (partial_floats / self.partial_len().max(1)).clamp(1, tasks);
        let parts = parts.min(self.chunks()).max(1);
        [parts, tasks.div_ceil(parts).min(self.blocks().div_ceil(group_blocks))]
    }

    /// Floats of scratch that [`gradient`](super::weights::gradient) needs.
    pub(in crate::ops::native) fn scratch_len(&self) -> usize {
        self.split()[0] * self.partial_len()
    }
}
