//! The gradient of a convolution's weight, split over parts of the pixels and groups of output
//! channels.

use super::strip::{self, Strip, Walk, walk};
use crate::ops::Geometry;
use crate::ops::isa::Isa;
use crate::ops::with_scratch;
use rayon::prelude::*;
use std::cell::Cell;
use std::ops::Range;

thread_local! {
    static PANEL: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    static COLUMNS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    static ROWS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Output pixels whose gradients make up a panel, about: 16 KiB a block on AVX2, half of a
/// first-level cache.
const PANEL_PIXELS: usize = 256;

/// Floats of a chunk's rows where they are packed, about: 256 KiB, half of a second-level cache.
const ROWS_FLOATS: usize = 1 << 16;

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

/// What the convolution read, as in the forward pass.
pub(in crate::ops::native) use super::tiles::Input;

/// Some images, some rows of their outputs: what one panel holds.
#[derive(Clone, Debug)]
pub(super) struct Chunk {
    pub(super) images: Range<usize>,
    pub(super) rows: Range<usize>,
}

impl Shape {
    fn blocks(&self) -> usize {
        self.outputs.div_ceil(self.isa.block())
    }

    fn taps(&self) -> usize {
        self.geometry.kernel.pow(2)
    }

    /// Floats of a partial sum, `[blocks, taps, channels, block]`.
    fn partial_len(&self) -> usize {
        self.blocks() * self.block_len()
    }

    fn block_len(&self) -> usize {
        self.taps() * self.channels * self.isa.block()
    }

    pub(super) fn is_narrow(&self) -> bool {
        self.output_sides[1] <= NARROW_PIXELS
    }

    /// Whether images are pixels that are read alone, so that the gradient is a product of matrices.
    fn is_matrix(&self) -> bool {
        self.taps() == 1 && self.sides == [1, 1] && self.output_sides == [1, 1]
    }

    /// Images of a chunk, and output rows of a chunk.
    fn chunk_sizes(&self) -> [usize; 2] {
        let [height, width] = self.output_sides;
        if self.is_matrix() {
            [(ROWS_FLOATS / self.channels).clamp(PANEL_PIXELS / 8, PANEL_PIXELS), 1]
        } else if self.is_narrow() {
            [(PANEL_PIXELS / (height * width)).max(1), height]
        } else {
            [1, (PANEL_PIXELS / width).clamp(1, height)]
        }
    }

    fn chunks(&self) -> usize {
        let [images, rows] = self.chunk_sizes();
        self.images.div_ceil(images) * self.output_sides[0].div_ceil(rows)
    }

    fn chunk(&self, index: usize) -> Chunk {
        let [images, rows] = self.chunk_sizes();
        let runs = self.output_sides[0].div_ceil(rows);
        let (image, row) = (index / runs * images, index % runs * rows);
        Chunk {
            images: image..(image + images).min(self.images),
            rows: row..(row + rows).min(self.output_sides[0]),
        }
    }

    /// Partial sums over pixels, and groups of blocks: what the work is split by.
    fn split(&self) -> [usize; 2] {
        // Each group packs a matrix's rows anew, which pays for many blocks only.
        let (partial_floats, group_blocks) =
            if self.is_matrix() { (4 * PARTIAL_FLOATS, 16) } else { (PARTIAL_FLOATS, 1) };
        let parts = (partial_floats / self.partial_len().max(1)).clamp(1, TASKS);
        let parts = parts.min(self.chunks()).max(1);
        [parts, TASKS.div_ceil(parts).min(self.blocks().div_ceil(group_blocks))]
    }

    /// Floats of scratch that [`gradient`] needs.
    pub(in crate::ops::native) fn scratch_len(&self) -> usize {
        self.split()[0] * self.partial_len()
    }
}

/// `dw [K, K, C, O]` of `input` and `dy [N, H', W', O]`; `scratch` holds partial sums.
///
/// # Panics
/// If a length does not fit.
pub(in crate::ops::native) fn gradient(
    shape: &Shape,
    input: Input<'_>,
    dy: &[f32],
    dw: &mut [f32],
    scratch: &mut [f32],
) {
    let output_pixels = shape.output_sides[0] * shape.output_sides[1];
    assert_eq!(dy.len(), shape.images * output_pixels * shape.outputs, "gradient of the output");
    assert_eq!(dw.len(), shape.taps() * shape.channels * shape.outputs, "gradient of the weight");
    let [parts, groups] = shape.split();
    let scratch = &mut scratch[..parts * shape.partial_len()];
    let (blocks, chunks) = (shape.blocks(), shape.chunks());
    let group_blocks = blocks.div_ceil(groups);
    // A task is a part of the pixels and a group of blocks, which lie one after another in the part's
    // sums.
    let part_sums = scratch.par_chunks_mut(shape.partial_len()).with_max_len(1);
    part_sums.enumerate().for_each(|(part, sums)| {
        let chunks = part * chunks / parts..(part + 1) * chunks / parts;
        let group_sums = sums.par_chunks_mut(group_blocks * shape.block_len()).with_max_len(1);
        group_sums.enumerate().for_each(|(group, sums)| {
            let first = group * group_blocks;
            let blocks = first..first + sums.len() / shape.block_len();
            sums.fill(0.0);
            for chunk in chunks.clone() {
                add_chunk(shape, input, dy, &shape.chunk(chunk), blocks.clone(), sums);
            }
        });
    });
    collect(shape, scratch, dw);
}

/// Adds the parts up, in order, into the weight's own order.
fn collect(shape: &Shape, partials: &[f32], dw: &mut [f32]) {
    let (block, channels, outputs) = (shape.isa.block(), shape.channels, shape.outputs);
    dw.par_chunks_mut(outputs * 16).enumerate().for_each(|(chunk, rows)| {
        for (index, row) in rows.chunks_exact_mut(outputs).enumerate() {
            let at = (chunk * 16 + index) * block; // [tap, channel] in a block's sums
            row.fill(0.0);
            for partial in partials.chunks_exact(shape.partial_len()) {
                for (index, row) in row.chunks_mut(block).enumerate() {
                    let sums = &partial[index * shape.taps() * channels * block + at..];
                    row.iter_mut().zip(sums).for_each(|(sum, value)| *sum += value);
                }
            }
        }
    });
}

/// Adds one chunk's share to `sums [blocks, taps, channels, block]`.
fn add_chunk(
    shape: &Shape,
    input: Input<'_>,
    dy: &[f32],
    chunk: &Chunk,
    blocks: Range<usize>,
    sums: &mut [f32],
) {
    let width = shape.output_sides[1];
    let n_pixels = chunk.images.len() * chunk.rows.len() * width;
    let block = shape.isa.block();
    let mut work = |x: &[f32], is_gathered: bool, is_packed: bool| {
        with_scratch(&PANEL, n_pixels * block, |panel| {
            for (index, sums) in blocks.clone().zip(sums.chunks_exact_mut(shape.block_len())) {
                fill_panel(shape, dy, chunk, index, panel);
                if is_packed {
                    add_packed(shape, x, panel, sums);
                    continue;
                }
                for tap in 0..shape.taps() {
                    let Some(walk) = walk(shape, chunk, tap, is_gathered) else { continue };
                    let rows = shape.channels * block;
                    let sums = &mut sums[tap * rows..][..rows];
                    let work = Strip { channels: shape.channels, x, panel, walk, sums };
                    work.check(block);
                    // SAFETY: `check` made sure that the walk stays in its slices.
                    unsafe { shape.isa.run(work) };
                }
            }
        });
    };
    match input {
        Input::Images(images) if shape.is_matrix() => {
            let x = &images[chunk.images.start * shape.channels..][..n_pixels * shape.channels];
            with_scratch(&ROWS, x.len(), |rows| {
                pack_rows(shape, x, rows);
                work(rows, false, true);
            });
        }
        Input::Images(images) => work(images, false, false),
        Input::Columns(gather) => {
            let pixels = chunk.rows.start * width..chunk.rows.end * width;
            let image = pixels.len() * shape.channels;
            with_scratch(&COLUMNS, n_pixels * shape.channels, |columns| {
                for (image, columns) in chunk.images.clone().zip(columns.chunks_exact_mut(image)) {
                    gather(image, pixels.clone(), columns);
                }
                work(columns, true, false);
            });
        }
    }
}

/// Copies the rows `x [P, C]` of a matrix by the tiles of a strip, `[tiles, P, channels of a tile]`: a
/// tile of few channels would take a part of every cache line that it touches.
fn pack_rows(shape: &Shape, x: &[f32], packed: &mut [f32]) {
    let n_rows = x.len() / shape.channels;
    for tile in strip::tiles(shape.channels, shape.isa.rows()) {
        let packed = &mut packed[n_rows * tile.start..n_rows * tile.end];
        let rows = x.chunks_exact(shape.channels).map(|row| &row[tile.clone()]);
        // A length that is known makes a copy a few instructions.
        match tile.len() {
            6 => copy_rows::<6>(rows, packed),
            12 => copy_rows::<12>(rows, packed),
            length => {
                let packed = packed.chunks_exact_mut(length);
                packed.zip(rows).for_each(|(to, from)| to.copy_from_slice(from));
            }
        }
    }
}

fn copy_rows<'a, const R: usize>(rows: impl Iterator<Item = &'a [f32]>, packed: &mut [f32]) {
    let (packed, _) = packed.as_chunks_mut::<R>();
    packed.iter_mut().zip(rows).for_each(|(to, from)| to.copy_from_slice(&from[..R]));
}

/// Adds the product of packed rows and a panel to `sums [channels, block]`.
fn add_packed(shape: &Shape, packed: &[f32], panel: &[f32], sums: &mut [f32]) {
    let block = shape.isa.block();
    let n_rows = panel.len() / block;
    for tile in strip::tiles(shape.channels, shape.isa.rows()) {
        let channels = tile.len();
        let x = &packed[n_rows * tile.start..n_rows * tile.end];
        let sums = &mut sums[tile.start * block..tile.end * block];
        let walk = Walk::in_a_row(n_rows, [channels, block]);
        let work = Strip { channels, x, panel, walk, sums };
        work.check(block);
        // SAFETY: `check` made sure that the walk stays in its slices.
        unsafe { shape.isa.run(work) };
    }
}

/// Copies the gradients of block `index` of a chunk together: `[images, rows, W', block]`, or
/// `[rows, W', images, block]` where images are narrow; zero past the last output.
fn fill_panel(shape: &Shape, dy: &[f32], chunk: &Chunk, index: usize, panel: &mut [f32]) {
    let [height, width] = shape.output_sides;
    let (block, outputs) = (shape.isa.block(), shape.outputs);
    let columns = block.min(outputs - index * block);
    let pixels = chunk.rows.start * width..chunk.rows.end * width;
    let (image_step, pixel_step) =
        if shape.is_narrow() { (1, chunk.images.len()) } else { (pixels.len(), 1) };
    for (nth_image, image) in chunk.images.clone().enumerate() {
        for (nth_pixel, pixel) in pixels.clone().enumerate() {
            let from = (image * height * width + pixel) * outputs + index * block;
            let place = nth_image * image_step + nth_pixel * pixel_step;
            let to = &mut panel[place * block..][..block];
            // A length that is known makes the copy a few instructions.
            if columns == block {
                to.copy_from_slice(&dy[from..from + block]);
            } else {
                to[..columns].copy_from_slice(&dy[from..from + columns]);
                to[columns..].fill(0.0);
            }
        }
    }
}
