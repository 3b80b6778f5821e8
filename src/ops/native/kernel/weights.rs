//! The gradient of a convolution's weight, split over parts of the pixels and groups of output
//! channels.

use super::panel::{self, Seen};
use super::shape::Chunk;
pub(in crate::ops::native) use super::shape::Shape;
use super::stored::Stored;
use super::strip::{self, Strip, Walk, walk};
use super::tiles::Input;
use crate::ops::with_scratch;
use rayon::prelude::*;
use std::ops::Range;

/// `dw [K, K, C, O]` of `input` and `dy [N, H', W', O]`; `scratch` holds partial sums.
///
/// # Panics
/// If a length does not fit.
pub(in crate::ops::native) fn gradient<E: Stored>(
    shape: &Shape,
    input: Input<'_, E>,
    dy: &[E],
    dw: &mut [f32],
    scratch: &mut [f32],
) {
    assert_eq!(shape.bundle, E::PER_WORD, "images of a word");
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

/// Blocks whose gradients are laid out together: neighbouring lines of memory, read together.
const FILLED_BLOCKS: usize = 4;

/// Rows of a weight that a task adds up.
const COLLECTED_ROWS: usize = 16;

/// Adds the parts up, in order, into the weight's own order. A block of a task's rows lies in one piece
/// in every part, and is read as one.
fn collect(shape: &Shape, partials: &[f32], dw: &mut [f32]) {
    let (block, outputs) = (shape.isa.block(), shape.outputs);
    let tasks = dw.par_chunks_mut(outputs * COLLECTED_ROWS);
    tasks.enumerate().for_each(|(task, dw)| {
        dw.fill(0.0);
        let length = dw.len() / outputs * block;
        for index in 0..shape.blocks() {
            let columns = index * block..outputs.min((index + 1) * block);
            let first = index * shape.block_len() + task * COLLECTED_ROWS * block;
            for partial in partials.chunks_exact(shape.partial_len()) {
                let rows = partial[first..][..length].chunks_exact(block);
                for (row, values) in dw.chunks_exact_mut(outputs).zip(rows) {
                    let sums = row[columns.clone()].iter_mut();
                    sums.zip(values).for_each(|(sum, value)| *sum += value);
                }
            }
        }
    });
}

/// Adds one chunk's share to `sums [blocks, taps, channels, block]`.
fn add_chunk<E: Stored>(
    shape: &Shape,
    input: Input<'_, E>,
    dy: &[E],
    chunk: &Chunk,
    blocks: Range<usize>,
    sums: &mut [f32],
) {
    let [gradients, inputs] = E::panels();
    let panel_len = panel::gradients_len(shape, chunk);
    let mut add = |x: &[E::Word], place: Place| {
        with_scratch(gradients, FILLED_BLOCKS * panel_len, |panels| {
            let filled_sums = sums.chunks_mut(FILLED_BLOCKS * shape.block_len());
            for (first, sums) in blocks.clone().step_by(FILLED_BLOCKS).zip(filled_sums) {
                let sums = sums.chunks_exact_mut(shape.block_len());
                let panels = &mut panels[..sums.len() * panel_len];
                panel::fill(shape, dy, chunk, first, panels);
                for (panel, sums) in panels.chunks_exact(panel_len).zip(sums) {
                    match place {
                        Place::Rows => add_rows::<E>(shape, x, panel, sums),
                        Place::Batch => add_taps::<E>(shape, chunk, (x, false), panel, sums),
                        Place::Chunk => add_taps::<E>(shape, chunk, (x, true), panel, sums),
                    }
                }
            }
        });
    };
    let images = shape.images_of(chunk);
    let row = shape.sides[1] * shape.channels;
    let with_joined = |seen: Seen<'_, E>, add: &mut dyn FnMut(&[E::Word], Place)| {
        with_scratch(inputs, panel::input_len(shape, chunk), |words| {
            if shape.is_matrix() {
                panel::pack_rows(shape, seen.elements, words);
                add(words, Place::Rows);
            } else {
                panel::join(shape, chunk, seen, words);
                add(words, Place::Chunk);
            }
        });
    };
    match input {
        Input::Images(all) => {
            let image = shape.sides[0] * row;
            let elements = &all[images.start * image..images.end * image];
            let skipped = shape.input_rows(&chunk.rows).start * row;
            match E::as_words(all) {
                Some(words) if !shape.is_matrix() => add(words, Place::Batch),
                _ => with_joined(Seen { elements, image, skipped }, &mut add),
            }
        }
        Input::Columns(gather) => {
            let pixels = chunk.rows.start * shape.sides[1]..chunk.rows.end * shape.sides[1];
            let image = pixels.len() * shape.channels;
            with_scratch(E::columns(), images.len() * image, |columns| {
                for (image, columns) in images.clone().zip(columns.chunks_exact_mut(image)) {
                    gather(image, pixels.clone(), columns);
                }
                match E::as_words(columns) {
                    Some(words) => add(words, Place::Chunk),
                    None => with_joined(Seen { elements: columns, image, skipped: 0 }, &mut add),
                }
            });
        }
    }
}

/// Where the words of an input lie.
#[derive(Clone, Copy)]
enum Place {
    /// As the batch's images do.
    Batch,
    /// As the part of them does that the chunk sees.
    Chunk,
    /// By [`panel::pack_rows`].
    Rows,
}

/// Adds the products of `x`, which begins with the chunk or with the batch, and a panel to
/// `sums [taps, channels, block]`.
fn add_taps<E: Stored>(
    shape: &Shape,
    chunk: &Chunk,
    (x, is_chunk): (&[E::Word], bool),
    panel: &[E::Word],
    sums: &mut [f32],
) {
    let (channels, block) = (shape.channels, shape.isa.block());
    for (tap, sums) in sums.chunks_exact_mut(channels * block).enumerate() {
        let Some(walk) = walk(shape, chunk, tap, is_chunk) else { continue };
        let work = Strip::<E> { channels, x, panel, walk, sums };
        work.check(block);
        // SAFETY: `check` made sure that the walk stays in its slices.
        unsafe { shape.isa.run(work) };
    }
}

/// Adds the product of packed rows and a panel to `sums [channels, block]`.
fn add_rows<E: Stored>(shape: &Shape, packed: &[E::Word], panel: &[E::Word], sums: &mut [f32]) {
    let block = shape.isa.block();
    let n_rows = panel.len() / block;
    for tile in strip::tiles(shape.channels, shape.isa.rows()) {
        let channels = tile.len();
        let x = &packed[n_rows * tile.start..n_rows * tile.end];
        let sums = &mut sums[tile.start * block..tile.end * block];
        let walk = Walk::in_a_row(n_rows, [channels, block]);
        let work = Strip::<E> { channels, x, panel, walk, sums };
        work.check(block);
        // SAFETY: `check` made sure that the walk stays in its slices.
        unsafe { shape.isa.run(work) };
    }
}
