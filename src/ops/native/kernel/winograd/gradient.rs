//! The gradient of a transformed weight, by the transpose of what the forward pass does:
//! `dg = G^T [sum over tiles of (A dy A^T) . (B^T d B)] G`, each point a product of matrices that is
//! summed over the tiles.

use super::super::stored::Stored;
use super::super::strip::{Strip, Walk};
use super::transform::{Bundles, Images, Points};
use crate::ops::isa::Isa;
use crate::ops::native::winograd::{Grid, POINTS, restore_weight};
use crate::ops::with_scratch;
use rayon::prelude::*;
use std::ops::Range;

/// Tasks of one gradient, at least, where its size allows: enough for a few threads to end together.
const TASKS: usize = 16;

/// Floats of all partial sums of a gradient together (2 MiB, so that they stay in a cache), unless one
/// alone is larger.
const PARTIAL_FLOATS: usize = 1 << 19;

/// The gradient of a weight `[3, 3, C, O]`.
#[derive(Clone, Copy)]
pub(in crate::ops::native) struct Gradient<'a> {
    pub(in crate::ops::native) isa: Isa,
    pub(in crate::ops::native) grid: &'a Grid,
    /// C and O, multiples of 16.
    pub(in crate::ops::native) channels: [usize; 2],
}

impl Gradient<'_> {
    fn blocks(&self) -> usize {
        self.channels[1].div_ceil(self.isa.block())
    }

    /// Floats of a block of a partial sum, `[16, C, block]`.
    fn block_len(&self) -> usize {
        POINTS * self.channels[0] * self.isa.block()
    }

    fn partial_len(&self) -> usize {
        self.blocks() * self.block_len()
    }

    /// Partial sums over tiles, and groups of blocks: what the work is split by.
    fn split(&self) -> [usize; 2] {
        let parts = (PARTIAL_FLOATS / self.partial_len()).clamp(1, TASKS);
        let parts = parts.min(self.grid.parts().len()).max(1);
        [parts, TASKS.div_ceil(parts).min(self.blocks())]
    }

    /// Floats of scratch that [`gradient`] needs.
    pub(in crate::ops::native) fn scratch_len(&self) -> usize {
        self.split()[0] * self.partial_len()
    }
}

/// `dw [3, 3, C, O]` of `x [N, H, W, C]` and `dy [N, H, W, O]`; `scratch` holds partial sums.
///
/// # Panics
/// If a length does not fit.
pub(in crate::ops::native) fn gradient<E: Stored>(
    gradient: &Gradient<'_>,
    x: &[E],
    dy: &[E],
    dw: &mut [f32],
    scratch: &mut [f32],
) {
    let [channels, outputs] = gradient.channels;
    assert!(channels % 16 == 0 && outputs % 16 == 0, "channels of whole vectors");
    assert_eq!(x.len(), gradient.grid.pixels() * channels, "images of a gradient");
    assert_eq!(dy.len(), gradient.grid.pixels() * outputs, "gradient of the output");
    assert_eq!(dw.len(), 9 * channels * outputs, "gradient of the weight");
    let [parts, groups] = gradient.split();
    let scratch = &mut scratch[..parts * gradient.partial_len()];
    let (tiles, group_blocks) = (gradient.grid.tiles(), gradient.blocks().div_ceil(groups));
    let part_sums = scratch.par_chunks_mut(gradient.partial_len()).with_max_len(1);
    part_sums.enumerate().for_each(|(part, sums)| {
        let tiles = part * tiles / parts..(part + 1) * tiles / parts;
        let group_len = group_blocks * gradient.block_len();
        sums.par_chunks_mut(group_len).with_max_len(1).enumerate().for_each(|(group, sums)| {
            sums.fill(0.0);
            add_tiles(gradient, x, dy, tiles.clone(), group * group_blocks, sums);
        });
    });
    restore_weight(scratch, [channels, outputs], gradient.isa.block(), dw);
}

/// Adds the products of `tiles` to the `sums [blocks, 16, C, block]` of some blocks, `first` and more.
fn add_tiles<E: Stored>(
    gradient: &Gradient<'_>,
    x: &[E],
    dy: &[E],
    tiles: Range<usize>,
    first: usize,
    sums: &mut [f32],
) {
    let Gradient { isa, grid, channels: [channels, outputs] } = *gradient;
    let block = isa.block();
    let points = Points::of(channels);
    let panel_points = Points { row: block, ..points };
    let x = Images { grid, pixels: x, channels };
    let dy = Images { grid, pixels: dy, channels: outputs };
    let [panels, inputs] = E::panels();
    with_scratch(inputs, points.len(), |inputs| {
        with_scratch(panels, panel_points.len(), |panels| {
            for start in tiles.clone().step_by(points.rows * E::PER_WORD) {
                let tiles = start..(start + points.rows * E::PER_WORD).min(tiles.end);
                let walk = Walk::in_a_row(tiles.len().div_ceil(E::PER_WORD), [points.row, block]);
                let to = Bundles {
                    images: x,
                    are_gradients: false,
                    tiles: tiles.clone(),
                    columns: 0..channels,
                    to: &mut *inputs,
                    points,
                };
                // SAFETY: the lengths are checked above; the scratch is as long as `points` says.
                unsafe { isa.run(to) };
                for (nth, sums) in sums.chunks_exact_mut(gradient.block_len()).enumerate() {
                    let first = (first + nth) * block;
                    let to = Bundles {
                        images: dy,
                        are_gradients: true,
                        tiles: tiles.clone(),
                        columns: first..(first + block).min(outputs),
                        to: &mut *panels,
                        points: panel_points,
                    };
                    // SAFETY: as above.
                    unsafe { isa.run(to) };
                    for (point, sums) in sums.chunks_exact_mut(channels * block).enumerate() {
                        let x = &inputs[point * points.matrix()..][..points.matrix()];
                        let panel = &panels[point * panel_points.matrix()..];
                        let panel = &panel[..panel_points.matrix()];
                        let work = Strip::<E> { channels, x, panel, walk, sums };
                        work.check(block);
                        // SAFETY: `check` made sure that the walk stays in its slices.
                        unsafe { isa.run(work) };
                    }
                }
            }
        });
    });
}
