//! What a weight's gradient reads, laid out for its strips: gradients a block at a time, and where an
//! element is not a word, the input with its bundles of images joined.

use super::shape::{Chunk, Shape};
use super::stored::Stored;
use super::strip;
use crate::ops::isa::Isa;

/// Words of a chunk's gradients of one block.
pub(super) fn gradients_len(shape: &Shape, chunk: &Chunk) -> usize {
    chunk.bundles.len() * chunk.rows.len() * shape.output_sides[1] * shape.isa.block()
}

/// Words of what a chunk sees of its input.
pub(super) fn input_len(shape: &Shape, chunk: &Chunk) -> usize {
    let rows = shape.input_rows(&chunk.rows).len();
    chunk.bundles.len() * rows * shape.sides[1] * shape.channels
}

/// What a chunk sees of its input, image after image.
pub(super) struct Seen<'a, E> {
    pub(super) elements: &'a [E],
    /// Elements from one image to the next.
    pub(super) image: usize,
    /// Elements at the start of each image that are not seen.
    pub(super) skipped: usize,
}

/// Joins the images of each bundle: `words [bundles, rows, W, C]`, the rows being those that the
/// chunk sees.
pub(super) fn join<E: Stored>(
    shape: &Shape,
    chunk: &Chunk,
    seen: Seen<'_, E>,
    words: &mut [E::Word],
) {
    let Seen { elements, image, skipped } = seen;
    let length = input_len(shape, chunk) / chunk.bundles.len();
    let images = shape.images_of(chunk).len();
    let seen = |nth: usize| &elements[nth * image + skipped..][..length];
    for (bundle, words) in words.chunks_exact_mut(length).enumerate() {
        let first = bundle * E::PER_WORD;
        let second = (E::PER_WORD > 1 && first + 1 < images).then(|| seen(first + 1));
        join_rows(shape.isa, seen(first), second, words);
    }
}

/// Packs the rows `x [P, C]` of a matrix by the tiles of a strip, joined:
/// `[tiles, bundles, channels of a tile]`. A tile of few channels would take a part of every cache
/// line that it touches.
pub(super) fn pack_rows<E: Stored>(shape: &Shape, x: &[E], packed: &mut [E::Word]) {
    let channels = shape.channels;
    let n_bundles = (x.len() / channels).div_ceil(E::PER_WORD);
    for tile in strip::tiles(channels, shape.isa.rows()) {
        let packed = &mut packed[n_bundles * tile.start..n_bundles * tile.end];
        let bundles = x.chunks(E::PER_WORD * channels).map(|bundle| {
            let (first, second) = bundle.split_at(channels);
            (&first[tile.clone()], second.get(tile.clone()))
        });
        // A length that is known makes a copy a few instructions.
        match tile.len() {
            6 => pack_tile::<E, 6>(bundles, packed),
            12 => pack_tile::<E, 12>(bundles, packed),
            length => {
                for (to, (first, second)) in packed.chunks_exact_mut(length).zip(bundles) {
                    join_few(first, second, to);
                }
            }
        }
    }
}

fn pack_tile<'a, E: Stored, const R: usize>(
    bundles: impl Iterator<Item = (&'a [E], Option<&'a [E]>)>,
    packed: &mut [E::Word],
) {
    let (packed, _) = packed.as_chunks_mut::<R>();
    for (to, (first, second)) in packed.iter_mut().zip(bundles) {
        join_few(&first[..R], second.map(|second| &second[..R]), to);
    }
}

/// [`join_rows`] of so few elements that a call would cost more than they do.
#[inline(always)]
fn join_few<E: Stored>(first: &[E], second: Option<&[E]>, to: &mut [E::Word]) {
    if let Some(words) = E::as_words(first) {
        to.copy_from_slice(words);
    } else if let Some(second) = second {
        let both = first.iter().zip(second);
        to.iter_mut().zip(both).for_each(|(to, (&first, &second))| *to = E::join(first, second));
    } else {
        to.iter_mut().zip(first).for_each(|(to, &first)| *to = E::join(first, E::default()));
    }
}

/// Copies the gradients of as many blocks of a chunk as `panels` has room for, from block `first` on,
/// each together: `[blocks, bundles, rows, W', block]`, or `[blocks, rows, W', bundles, block]` where
/// images are narrow; zero past the last output.
pub(super) fn fill<E: Stored>(
    shape: &Shape,
    dy: &[E],
    chunk: &Chunk,
    first: usize,
    panels: &mut [E::Word],
) {
    // A length that is known makes a copy a few instructions.
    match shape.isa.block() {
        8 => fill_blocks::<E, 8>(shape, dy, chunk, first, panels),
        16 => fill_blocks::<E, 16>(shape, dy, chunk, first, panels),
        32 => fill_blocks::<E, 32>(shape, dy, chunk, first, panels),
        block => unreachable!("no panel of {block} columns is compiled"),
    }
}

/// [`fill`] for blocks of `BLOCK` outputs.
fn fill_blocks<E: Stored, const BLOCK: usize>(
    shape: &Shape,
    dy: &[E],
    chunk: &Chunk,
    first_block: usize,
    panels: &mut [E::Word],
) {
    let ([height, width], outputs) = (shape.output_sides, shape.outputs);
    let pixels = chunk.rows.start * width..chunk.rows.end * width;
    let (bundle_step, pixel_step) =
        if shape.is_narrow() { (1, chunk.bundles.len()) } else { (pixels.len(), 1) };
    let panel_len = chunk.bundles.len() * pixels.len();
    let (panels, _) = panels.as_chunks_mut::<BLOCK>();
    let first_output = first_block * BLOCK;
    let end = outputs.min(first_output + panels.len() / panel_len * BLOCK);
    for (nth_bundle, bundle) in chunk.bundles.clone().enumerate() {
        let image = bundle * E::PER_WORD;
        let next = (E::PER_WORD > 1 && image + 1 < shape.images).then_some(image + 1);
        for (nth_pixel, pixel) in pixels.clone().enumerate() {
            let from = |image: usize| {
                let row = &dy[(image * height * width + pixel) * outputs..];
                &row[first_output..end]
            };
            let (first, second) = (from(image), next.map(from));
            let place = nth_bundle * bundle_step + nth_pixel * pixel_step;
            for (nth, to) in panels[place..].iter_mut().step_by(panel_len).enumerate() {
                let columns = nth * BLOCK..first.len().min((nth + 1) * BLOCK);
                let (first, second) = (&first[columns.clone()], second.map(|s| &s[columns]));
                if first.len() == BLOCK {
                    join_rows(shape.isa, &first[..BLOCK], second.map(|s| &s[..BLOCK]), to);
                } else {
                    let (row, past) = to.split_at_mut(first.len());
                    join_rows(shape.isa, first, second, row);
                    past.fill(E::Word::default());
                }
            }
        }
    }
}

/// Joins rows of two images, or of one and zeros, or copies the one where it is words already.
#[inline(always)]
fn join_rows<E: Stored>(isa: Isa, first: &[E], second: Option<&[E]>, to: &mut [E::Word]) {
    match second {
        Some(second) => E::join_all(isa, first, second, to),
        None => join_few(first, None, to),
    }
}
