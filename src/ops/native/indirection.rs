//! Where the tiles of a convolution read and write (Dukhan, "The Indirect Convolution Algorithm",
//! arXiv:1907.02129, section 3): instead of copying every window into a column, a tile of output
//! pixels has, for each tap, the offset of the input pixel that each of them sees.
//!
//! Differs from the paper: offsets stand for a group of images and are shared by all groups of a
//! batch; a tap that lies in the padding for a whole tile is left out; and where images are narrow a
//! tile takes one pixel of several images, so that this happens often.

use crate::ops::Geometry;
use std::ops::Range;

/// Marks a tap in the padding.
pub(super) const OUTSIDE: i32 = -1;

/// Pixels of a task, about: enough work to be worth one, few enough to stay in a second-level cache
/// (a guess; 256 to 1024 were alike on a Zen 3).
const TASK_PIXELS: usize = 512;

/// Grids up to this wide are walked image by image at each pixel.
const NARROW_PIXELS: usize = 8;

/// How a grid of output pixels reads a grid of input pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    /// Height and width of the input.
    pub(super) input: [usize; 2],
    /// Height and width of the output.
    pub(super) output: [usize; 2],
    /// The convolution's window.
    pub(super) geometry: Geometry,
    /// Whether this is the convolution's transpose: the output is its input, and the other way
    /// round.
    pub(super) is_transposed: bool,
}

impl Window {
    /// What tap `tap` of output coordinate `at` reads along axis `axis`.
    fn source(&self, axis: usize, at: usize, tap: usize) -> Option<usize> {
        let Geometry { stride, padding, .. } = self.geometry;
        let source = if self.is_transposed {
            let reach = (at + padding).checked_sub(tap)?;
            (reach % stride == 0).then_some(reach / stride)?
        } else {
            (at * stride + tap).checked_sub(padding)?
        };
        (source < self.input[axis]).then_some(source)
    }

    /// The pixel that tap `tap` of output pixel `pixel` reads.
    pub(super) fn source_pixel(&self, pixel: usize, tap: usize) -> Option<usize> {
        let (kernel, width) = (self.geometry.kernel, self.output[1]);
        let y = self.source(0, pixel / width, tap / kernel)?;
        let x = self.source(1, pixel % width, tap % kernel)?;
        Some(y * self.input[1] + x)
    }

    /// Every output pixel, those that see the same taps of a strided transpose together.
    fn pixels(&self) -> Vec<usize> {
        let width = self.output[1];
        let mut pixels: Vec<usize> = (0..self.output[0] * width).collect();
        if self.is_transposed {
            let stride = self.geometry.stride;
            pixels.sort_by_key(|pixel| (pixel / width % stride, pixel % width % stride));
        }
        pixels
    }

    /// Neighbours of a pixel that see the same taps, along a row.
    fn run(&self) -> usize {
        let step = if self.is_transposed { self.geometry.stride } else { 1 };
        self.output[1].div_ceil(step)
    }
}

/// One tile of [`Indirection`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tile {
    /// Its taps, as indices into [`Indirection::taps`].
    pub(super) taps: Range<usize>,
    /// Rows that are pixels of their own; the others repeat the last one and are not stored.
    pub(super) valid: usize,
}

/// The tiles of one group of images. Every output pixel of the group is in exactly one tile.
#[derive(Clone, Debug)]
pub(super) struct Indirection {
    /// Rows of a tile, R.
    rows: usize,
    /// Images of the group.
    images: usize,
    tiles: Vec<Tile>,
    /// The tap of each listed one, an index into the kernel's K K.
    taps: Vec<u32>,
    /// Input pixel of each listed tap and row, `[taps, R]`, counted from the group's first image.
    sources: Vec<i32>,
    /// Output pixel of each row, `[tiles, R]`, counted from the group's first image.
    targets: Vec<u32>,
}

impl Indirection {
    /// The tiles of `images` images, `rows` output pixels each.
    fn new(window: &Window, images: usize, rows: usize) -> Self {
        let [input_pixels, output_pixels] =
            [window.input, window.output].map(|[height, width]| height * width);
        let pixels: Vec<(usize, usize)> = window
            .pixels()
            .into_iter()
            .flat_map(|pixel| (0..images).map(move |image| (image, pixel)))
            .collect();
        let mut this =
            Self { rows, images, tiles: vec![], taps: vec![], sources: vec![], targets: vec![] };
        for chunk in pixels.chunks(rows) {
            let row = |index: usize| chunk[index.min(chunk.len() - 1)];
            let first = this.taps.len();
            for tap in 0..window.geometry.kernel.pow(2) {
                let source = |row: usize| {
                    let (image, pixel) = chunk[row];
                    let source = window.source_pixel(pixel, tap)?;
                    Some((image * input_pixels + source) as i32)
                };
                if (0..chunk.len()).any(|row| source(row).is_some()) {
                    this.taps.push(tap as u32);
                    let rows = (0..rows).map(|row| row.min(chunk.len() - 1));
                    this.sources.extend(rows.map(|row| source(row).unwrap_or(OUTSIDE)));
                }
            }
            this.targets.extend((0..rows).map(|index| {
                let (image, pixel) = row(index);
                (image * output_pixels + pixel) as u32
            }));
            this.tiles.push(Tile { taps: first..this.taps.len(), valid: chunk.len() });
        }
        this
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn tiles(&self) -> &[Tile] {
        &self.tiles
    }

    /// The tap of listed tap `listed`, and the input pixels that the tile's rows read for it.
    pub(super) fn tap(&self, listed: usize) -> (usize, &[i32]) {
        (self.taps[listed] as usize, &self.sources[listed * self.rows..][..self.rows])
    }

    /// The output pixels of tile `tile`.
    pub(super) fn targets(&self, tile: usize) -> &[u32] {
        &self.targets[tile * self.rows..][..self.rows]
    }
}

/// Some tiles of one group: what a task computes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// First image of the group in the batch.
    pub(super) first_image: usize,
    /// The tiles.
    pub(super) tiles: Range<usize>,
}

/// The tiles of a batch, cut into parts. The cut depends on shapes and the unit's rows alone.
#[derive(Clone, Debug)]
pub(super) struct Route {
    window: Window,
    images: usize,
    group: Indirection,
    /// The last group, where the others don't divide the batch.
    rest: Option<Indirection>,
    parts: Vec<Part>,
}

impl Route {
    /// The tiles of `images` images.
    pub(super) fn new(window: Window, images: usize, rows: usize) -> Self {
        let pixels = (window.output[0] * window.output[1]).max(1);
        let group_images = if window.run() <= NARROW_PIXELS {
            (TASK_PIXELS / pixels).clamp(1, images.max(1))
        } else {
            1
        };
        Self::in_groups(window, images, group_images, rows)
    }

    /// The tiles of `images` images, none of which takes pixels of two.
    pub(super) fn image_by_image(window: Window, images: usize, rows: usize) -> Self {
        Self::in_groups(window, images, 1, rows)
    }

    fn in_groups(window: Window, images: usize, group_images: usize, rows: usize) -> Self {
        let group = Indirection::new(&window, group_images, rows);
        let rest = images % group_images;
        let rest = (rest > 0).then(|| Indirection::new(&window, rest, rows));
        let mut this = Self { window, images, group, rest, parts: vec![] };
        let step = TASK_PIXELS.div_ceil(rows);
        for first_image in (0..images).step_by(group_images) {
            let tiles = this.indirection(first_image).tiles.len();
            // Parts of equal length, so that no thread waits for a long last one.
            let parts = tiles.div_ceil(step).max(1);
            this.parts.extend((0..parts).map(|part| Part {
                first_image,
                tiles: part * tiles / parts..(part + 1) * tiles / parts,
            }));
        }
        this
    }

    /// The tiles of the group that starts at `first_image`.
    pub(super) fn indirection(&self, first_image: usize) -> &Indirection {
        match &self.rest {
            Some(rest) if first_image + rest.images == self.images => rest,
            _ => &self.group,
        }
    }

    pub(super) fn window(&self) -> &Window {
        &self.window
    }

    pub(super) fn images(&self) -> usize {
        self.images
    }

    pub(super) fn parts(&self) -> &[Part] {
        &self.parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn window(sides: [usize; 2], geometry: Geometry, is_transposed: bool) -> Option<Window> {
        let small = [geometry.output_side(sides[0])?, geometry.output_side(sides[1])?];
        let [input, output] = if is_transposed { [small, sides] } else { [sides, small] };
        Some(Window { input, output, geometry, is_transposed })
    }

    proptest! {
        /// Every output pixel is in exactly one tile and part, and its taps are those of the
        /// window's definition.
        #[test]
        fn tiles_cover_each_pixel_once_with_its_taps(
            images in 1usize..40, height in 1usize..20, width in 1usize..20, kernel in 1usize..5,
            stride in 1usize..4, padding in 0usize..3, is_transposed: bool, rows in 1usize..13,
        ) {
            let geometry = Geometry { kernel, stride, padding };
            let Some(window) = window([height, width], geometry, is_transposed) else {
                return Ok(());
            };
            let route = Route::new(window, images, rows);
            let [input_pixels, output_pixels] =
                [window.input, window.output].map(|[height, width]| height * width);
            let mut seen = vec![0; images * output_pixels];
            for part in route.parts() {
                let group = route.indirection(part.first_image);
                for tile in part.tiles.clone() {
                    for row in 0..group.tiles()[tile].valid {
                        let target = group.targets(tile)[row] as usize;
                        seen[part.first_image * output_pixels + target] += 1;
                        let (image, pixel) = (target / output_pixels, target % output_pixels);
                        let mut expected: Vec<_> = (0..kernel * kernel).filter_map(|tap| {
                            let source = window.source_pixel(pixel, tap)?;
                            Some((tap, (image * input_pixels + source) as i32))
                        }).collect();
                        for listed in group.tiles()[tile].taps.clone() {
                            let (tap, sources) = group.tap(listed);
                            if sources[row] != OUTSIDE {
                                prop_assert_eq!(expected.remove(0), (tap, sources[row]));
                            }
                        }
                        prop_assert!(expected.is_empty(), "taps left out: {:?}", expected);
                    }
                }
            }
            prop_assert!(seen.iter().all(|&times| times == 1), "{:?}", seen);
        }

        /// The transpose reads exactly the pairs that the convolution reads, the other way round.
        #[test]
        fn a_transposed_window_turns_every_pair_round(
            height in 1usize..9, width in 1usize..9, kernel in 1usize..5, stride in 1usize..4,
            padding in 0usize..3,
        ) {
            let geometry = Geometry { kernel, stride, padding };
            let (Some(there), Some(back)) = (
                window([height, width], geometry, false), window([height, width], geometry, true),
            ) else {
                return Ok(());
            };
            let pairs = |window: &Window| -> Vec<(usize, usize, usize)> {
                let pixels = 0..window.output[0] * window.output[1];
                pixels.flat_map(|pixel| (0..kernel * kernel).filter_map(move |tap| {
                    Some((tap, pixel, window.source_pixel(pixel, tap)?))
                })).collect()
            };
            let mut turned: Vec<_> =
                pairs(&back).into_iter().map(|(tap, to, from)| (tap, from, to)).collect();
            let mut pairs = pairs(&there);
            pairs.sort_unstable();
            turned.sort_unstable();
            prop_assert_eq!(pairs, turned);
        }
    }

    #[test]
    fn a_corner_of_narrow_images_leaves_out_the_taps_in_the_padding() {
        let geometry = Geometry { kernel: 3, stride: 1, padding: 1 };
        let route = Route::new(window([4, 4], geometry, false).unwrap(), 32, 6);
        let corner = &route.indirection(0).tiles()[0];
        assert_eq!((corner.taps.len(), corner.valid), (4, 6));
    }
}
