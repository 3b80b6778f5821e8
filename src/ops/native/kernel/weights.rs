//! The gradient of a convolution's weight: a register tile of R input channels by two vectors of
//! output channels sums over the pixels that one tap sees, images, rows and columns alike.

#![expect(
    clippy::needless_range_loop,
    reason = "counted loops over arrays unroll, which keeps a tile in registers"
)]

use super::{Kernel, Lanes, Unit};
use crate::ops::Geometry;
use crate::ops::with_scratch;
use rayon::prelude::*;
use std::cell::Cell;
use std::ops::Range;

thread_local! {
    static PANEL: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    static COLUMNS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Output pixels whose gradients make up a panel, about: 16 KiB a block on AVX2, half of a
/// first-level cache.
const PANEL_PIXELS: usize = 256;

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
    pub(in crate::ops::native) unit: Unit,
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
struct Chunk {
    images: Range<usize>,
    rows: Range<usize>,
}

impl Shape {
    fn blocks(&self) -> usize {
        self.outputs.div_ceil(self.unit.block())
    }

    fn taps(&self) -> usize {
        self.geometry.kernel.pow(2)
    }

    /// Floats of a partial sum, `[blocks, taps, channels, block]`.
    fn partial_len(&self) -> usize {
        self.blocks() * self.block_len()
    }

    fn block_len(&self) -> usize {
        self.taps() * self.channels * self.unit.block()
    }

    fn is_narrow(&self) -> bool {
        self.output_sides[1] <= NARROW_PIXELS
    }

    /// Images of a chunk, and output rows of a chunk.
    fn chunk_sizes(&self) -> [usize; 2] {
        let [height, width] = self.output_sides;
        if self.is_narrow() {
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
        let parts = (PARTIAL_FLOATS / self.partial_len().max(1)).clamp(1, TASKS);
        let parts = parts.min(self.chunks()).max(1);
        [parts, TASKS.div_ceil(parts).min(self.blocks())]
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
    // Groups of blocks lie one after another in a partial sum, so the tasks' places do too.
    let mut rest = &mut *scratch;
    let mut tasks = Vec::with_capacity(parts * groups);
    for part in 0..parts {
        for group in 0..groups {
            let blocks = group * blocks / groups..(group + 1) * blocks / groups;
            let (sums, after) = rest.split_at_mut(blocks.len() * shape.block_len());
            rest = after;
            let chunks = part * chunks / parts..(part + 1) * chunks / parts;
            tasks.push((chunks, blocks, sums));
        }
    }
    tasks.into_par_iter().with_max_len(1).for_each(|(chunks, blocks, sums)| {
        sums.fill(0.0);
        for chunk in chunks {
            add_chunk(shape, input, dy, &shape.chunk(chunk), blocks.clone(), sums);
        }
    });
    collect(shape, scratch, dw);
}

/// Adds the parts up, in order, into the weight's own order.
fn collect(shape: &Shape, partials: &[f32], dw: &mut [f32]) {
    let (block, channels, outputs) = (shape.unit.block(), shape.channels, shape.outputs);
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
    let block = shape.unit.block();
    let mut work = |x: &[f32], is_gathered: bool| {
        with_scratch(&PANEL, n_pixels * block, |panel| {
            for (index, sums) in blocks.clone().zip(sums.chunks_exact_mut(shape.block_len())) {
                fill_panel(shape, dy, chunk, index, panel);
                for tap in 0..shape.taps() {
                    let Some(walk) = walk(shape, chunk, tap, is_gathered) else { continue };
                    let rows = shape.channels * block;
                    let sums = &mut sums[tap * rows..][..rows];
                    let work = Strip { channels: shape.channels, x, panel, walk, sums };
                    work.check(block);
                    // SAFETY: `check` made sure that the walk stays in its slices.
                    unsafe { shape.unit.run(work) };
                }
            }
        });
    };
    match input {
        Input::Images(images) => work(images, false),
        Input::Columns(gather) => {
            let pixels = chunk.rows.start * width..chunk.rows.end * width;
            let image = pixels.len() * shape.channels;
            with_scratch(&COLUMNS, n_pixels * shape.channels, |columns| {
                for (image, columns) in chunk.images.clone().zip(columns.chunks_exact_mut(image)) {
                    gather(image, pixels.clone(), columns);
                }
                work(columns, true);
            });
        }
    }
}

/// Copies the gradients of block `index` of a chunk together: `[images, rows, W', block]`, or
/// `[rows, W', images, block]` where images are narrow; zero past the last output.
fn fill_panel(shape: &Shape, dy: &[f32], chunk: &Chunk, index: usize, panel: &mut [f32]) {
    let [height, width] = shape.output_sides;
    let (block, outputs) = (shape.unit.block(), shape.outputs);
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

/// One loop of a [`Walk`]: how often, and how many floats further in the input and in the panel.
#[derive(Clone, Copy, Debug)]
struct Loop {
    times: usize,
    x: usize,
    panel: usize,
}

/// The pixels that one tap sees, as three nested loops, the innermost last.
#[derive(Clone, Copy, Debug)]
struct Walk {
    /// Where the first input pixel is, in floats.
    x: usize,
    /// Where its gradient is in the panel, in floats.
    panel: usize,
    loops: [Loop; 3],
}

impl Walk {
    /// One past the last float of the input and of the panel that are read, given the floats of a
    /// pixel.
    fn end(&self, [x, panel]: [usize; 2]) -> [usize; 2] {
        let last = |first: usize, step: fn(&Loop) -> usize| -> usize {
            first + self.loops.iter().map(|l| (l.times - 1) * step(l)).sum::<usize>()
        };
        [last(self.x, |l| l.x) + x, last(self.panel, |l| l.panel) + panel]
    }
}

/// The outputs `0..n` along a side whose tap `tap` lies inside the input.
fn inside(geometry: Geometry, tap: usize, side: usize, outputs: Range<usize>) -> Range<usize> {
    let Geometry { stride, padding, .. } = geometry;
    let first = padding.saturating_sub(tap).div_ceil(stride);
    let end = (side + padding).saturating_sub(tap).div_ceil(stride);
    first.max(outputs.start)..end.min(outputs.end)
}

/// The walk of tap `tap` over `chunk`, unless it sees nothing.
fn walk(shape: &Shape, chunk: &Chunk, tap: usize, is_gathered: bool) -> Option<Walk> {
    let (channels, block, kernel) = (shape.channels, shape.unit.block(), shape.geometry.kernel);
    let Geometry { stride, padding, .. } = shape.geometry;
    let ([height, width], output_width) = (shape.sides, shape.output_sides[1]);
    let (tap_row, tap_column) = (tap / kernel, tap % kernel);
    let rows = inside(shape.geometry, tap_row, height, chunk.rows.clone());
    let columns = inside(shape.geometry, tap_column, width, 0..output_width);
    if rows.is_empty() || columns.is_empty() {
        return None;
    }
    // Gathered columns begin with the chunk; images with the batch.
    let (first_image, first_row, image) = if is_gathered {
        (0, rows.start - chunk.rows.start, chunk.rows.len() * width)
    } else {
        (chunk.images.start, rows.start * stride + tap_row - padding, height * width)
    };
    let first_column = columns.start * stride + tap_column - padding;
    let n_images = chunk.images.len();
    let (panel_pixel, panel_image) = if shape.is_narrow() {
        (n_images * block, block)
    } else {
        (block, chunk.rows.len() * output_width * block)
    };
    let images = Loop { times: n_images, x: image * channels, panel: panel_image };
    let rows_loop =
        Loop { times: rows.len(), x: stride * width * channels, panel: output_width * panel_pixel };
    let columns_loop = Loop { times: columns.len(), x: stride * channels, panel: panel_pixel };
    let nth_pixel = (rows.start - chunk.rows.start) * output_width + columns.start;
    Some(Walk {
        x: (first_image * image + first_row * width + first_column) * channels,
        panel: nth_pixel * panel_pixel,
        loops: if shape.is_narrow() {
            [rows_loop, columns_loop, images]
        } else {
            [images, rows_loop, columns_loop]
        },
    })
}

/// One tap's rows of the gradient, one block wide.
struct Strip<'a> {
    channels: usize,
    x: &'a [f32],
    panel: &'a [f32],
    walk: Walk,
    /// `[channels, block]`.
    sums: &'a mut [f32],
}

impl Strip<'_> {
    fn check(&self, block: usize) {
        let [x, panel] = self.walk.end([self.channels, block]);
        assert!(
            x <= self.x.len() && panel <= self.panel.len(),
            "{:?} leaves its slices",
            self.walk
        );
        assert_eq!(self.sums.len(), self.channels * block, "sums of a strip");
    }
}

impl Kernel for Strip<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Self { channels, x, panel, walk, sums } = self;
        let sums = sums.as_mut_ptr();
        // Tiles of nearly equal height, since a low one keeps the unit waiting for its sums.
        let tiles = channels.div_ceil(L::ROWS);
        for index in 0..tiles {
            let first = index * channels / tiles;
            let rows = (index + 1) * channels / tiles - first;
            // SAFETY: `check`; `rows` channels from `first` on lie in every pixel.
            unsafe {
                let x = x.as_ptr().add(walk.x + first);
                let panel = panel.as_ptr().add(walk.panel);
                let sums = sums.add(first * 2 * L::WIDTH);
                let loops = &walk.loops;
                match rows {
                    1 => tile::<L, 1>(x, panel, sums, loops),
                    2 => tile::<L, 2>(x, panel, sums, loops),
                    3 => tile::<L, 3>(x, panel, sums, loops),
                    4 => tile::<L, 4>(x, panel, sums, loops),
                    5 => tile::<L, 5>(x, panel, sums, loops),
                    6 => tile::<L, 6>(x, panel, sums, loops),
                    7 => tile::<L, 7>(x, panel, sums, loops),
                    8 => tile::<L, 8>(x, panel, sums, loops),
                    9 => tile::<L, 9>(x, panel, sums, loops),
                    10 => tile::<L, 10>(x, panel, sums, loops),
                    11 => tile::<L, 11>(x, panel, sums, loops),
                    12 => tile::<L, 12>(x, panel, sums, loops),
                    rows => unreachable!("no tile of {rows} rows is compiled"),
                }
            }
        }
    }
}

/// Adds `R` channels of `x`, times a block of the panel, over the loops, to `sums [R, block]`.
///
/// # Safety
/// The loops stay in the slices that the pointers are into; the processor has the unit.
#[inline(always)]
unsafe fn tile<L: Lanes, const R: usize>(
    x: *const f32,
    panel: *const f32,
    sums: *mut f32,
    loops: &[Loop; 3],
) {
    // SAFETY: the contract above.
    unsafe {
        let place = |row: usize, half: usize| sums.add(row * 2 * L::WIDTH + half * L::WIDTH);
        let mut totals = [[L::splat(0.0); 2]; R];
        for row in 0..R {
            totals[row] = [L::load(place(row, 0)), L::load(place(row, 1))];
        }
        let [outer, middle, inner] = *loops;
        for i in 0..outer.times {
            for j in 0..middle.times {
                let mut x = x.add(i * outer.x + j * middle.x);
                let mut panel = panel.add(i * outer.panel + j * middle.panel);
                for _ in 0..inner.times {
                    let d = [L::load(panel), L::load(panel.add(L::WIDTH))];
                    for row in 0..R {
                        let x = L::splat(*x.add(row));
                        totals[row][0] = L::multiply_add(x, d[0], totals[row][0]);
                        totals[row][1] = L::multiply_add(x, d[1], totals[row][1]);
                    }
                    // The last step may point past the slice, where nothing is read.
                    x = x.wrapping_add(inner.x);
                    panel = panel.wrapping_add(inner.panel);
                }
            }
        }
        for row in 0..R {
            L::store(place(row, 0), totals[row][0]);
            L::store(place(row, 1), totals[row][1]);
        }
    }
}
