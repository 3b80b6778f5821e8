//! Weights `[K, K, C, O]` in the order that the tiles of a convolution read them, block after block of its
//! results. They come in f32, and are rounded to elements.

use super::kernel::stored::Stored;
use rayon::prelude::*;

/// Words of the channels that are summed over, `channels` of the images or of a column.
pub(super) fn words<E: Stored>(channels: usize) -> usize {
    channels.div_ceil(E::PER_WORD)
}

/// `weight [taps, C, O]` as the forward pass reads it: `packed [blocks, taps, words of C, block]`, zero past
/// the last output.
pub(super) fn pack<E: Stored>(
    weight: &[f32],
    [taps, inputs, outputs]: [usize; 3],
    block: usize,
    packed: &mut [E::Word],
) {
    let tasks = packed.par_chunks_mut(words::<E>(inputs) * block);
    tasks.enumerate().for_each(|(index, rows)| {
        let first = index / taps * block;
        let tap = &weight[index % taps * inputs * outputs..][..inputs * outputs];
        let columns = first..(first + block).min(outputs);
        let bundles = tap.chunks(E::PER_WORD * outputs);
        for (row, bundle) in rows.chunks_exact_mut(block).zip(bundles) {
            let (weights, next) = bundle.split_at(outputs);
            let (row, past) = row.split_at_mut(columns.len());
            let next = (!next.is_empty()).then(|| &next[columns.clone()]);
            pack_row::<E>(&weights[columns.clone()], next, row);
            past.fill(E::Word::default());
        }
    });
}

/// `weight [taps, C, O]` as the gradient of the images reads it: `packed [blocks, taps, words of O, block]`,
/// zero past the last channel.
pub(super) fn pack_transposed<E: Stored>(
    weight: &[f32],
    [taps, channels, outputs]: [usize; 3],
    block: usize,
    packed: &mut [E::Word],
) {
    let tap = channels * outputs;
    let tasks = packed.par_chunks_mut(words::<E>(outputs) * block);
    tasks.enumerate().for_each(|(index, rows)| {
        let (first, weight) = (index / taps * block, &weight[index % taps * tap..][..tap]);
        let columns = block.min(channels - first);
        for row in rows.chunks_exact_mut(block) {
            row[columns..].fill(E::Word::default());
        }
        let weight = weight[first * outputs..].chunks_exact(outputs).take(columns);
        for (column, weight) in weight.enumerate() {
            let bundles = weight.chunks(E::PER_WORD);
            for (row, bundle) in rows.chunks_exact_mut(block).zip(bundles) {
                let next = bundle.get(1).map_or(E::default(), |&next| E::narrow(next));
                row[column] = E::join(E::narrow(bundle[0]), next);
            }
        }
    });
}

/// A row of a packed weight: `weights`, joined with the `next` ones if there are any.
fn pack_row<E: Stored>(weights: &[f32], next: Option<&[f32]>, row: &mut [E::Word]) {
    match next {
        Some(next) => {
            for (word, (&weight, &next)) in row.iter_mut().zip(weights.iter().zip(next)) {
                *word = E::join(E::narrow(weight), E::narrow(next));
            }
        }
        None => {
            for (word, &weight) in row.iter_mut().zip(weights) {
                *word = E::join(E::narrow(weight), E::default());
            }
        }
    }
}
