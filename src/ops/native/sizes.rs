//! The sizes of every value of a plan, for one shape of images.

use crate::encoder::{Geometry, Op, Plan, Value};
use crate::ops::cpu::convolution::Shape;
use candle_core::{Result, bail};

/// The size of one value: `[N, H, W, C]`; features have one pixel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) images: usize,
    pub(super) sides: [usize; 2],
    pub(super) channels: usize,
}

impl Size {
    pub(super) fn pixels(&self) -> usize {
        self.sides[0] * self.sides[1]
    }

    pub(super) fn len(&self) -> usize {
        self.images * self.pixels() * self.channels
    }
}

/// The size of each value of `plan` for `images` images of side `side_px`, by [`Value`].
///
/// # Errors
/// An operation whose window fits nowhere, or whose weight is for other channels.
pub(super) fn sizes(plan: &Plan, images: usize, side_px: usize) -> Result<Vec<Size>> {
    let mut sizes = vec![Size { images, sides: [side_px; 2], channels: 3 }];
    for (index, op) in plan.ops.iter().enumerate() {
        let of = |Value(at): Value| sizes[at];
        let size = match *op {
            Op::Convolution { input, .. } | Op::Linear { input, .. } => {
                let shape = product_shape(plan, index, of(input))?;
                Size { images, sides: shape.output_sides, channels: shape.outputs }
            }
            Op::BatchNorm { input, .. } | Op::LayerNorm { input, .. } | Op::Gelu { input } => {
                of(input)
            }
            Op::MaxPool { input } => {
                let sides = of(input).sides.map(|side| side.div_ceil(2));
                Size { sides, ..of(input) }
            }
            Op::GlobalAveragePool { input } | Op::FirstPixel { input } => {
                Size { sides: [1, 1], ..of(input) }
            }
            Op::Tokens { input, positions } => {
                let (size, tokens) = (of(input), of(input).pixels() + 1);
                let shape = &plan.weights[positions].shape;
                if *shape != [tokens, size.channels] {
                    bail!(
                        "operation {index}: positions of shape {shape:?} meet {} patches of {} \
                         channels",
                        size.pixels(),
                        size.channels
                    )
                }
                Size { sides: [1, tokens], ..size }
            }
            Op::Attention { input, heads } => {
                let joined = of(input);
                if heads == 0 || joined.channels % (3 * heads) != 0 {
                    bail!(
                        "operation {index}: {} channels are not 3 x {heads} heads",
                        joined.channels
                    )
                }
                Size { channels: joined.channels / 3, ..joined }
            }
            Op::Positions { input, .. } => {
                if of(input).channels % 4 != 0 {
                    bail!("operation {index}: positions need channels by fours")
                }
                of(input)
            }
        };
        sizes.push(size);
    }
    Ok(sizes)
}

/// The sizes of the convolution or matrix product that is operation `index`, on an input of size
/// `input`: a matrix is a window of one pixel.
///
/// # Errors
/// As [`sizes`].
pub(super) fn product_shape(plan: &Plan, index: usize, input: Size) -> Result<Shape> {
    let (weight, geometry) = match plan.ops[index] {
        Op::Convolution { weight, geometry, .. } => (weight, geometry),
        Op::Linear { weight, .. } => (weight, Geometry { kernel: 1, stride: 1, padding: 0 }),
        _ => bail!("operation {index} multiplies by no weight"),
    };
    let (channels, outputs) = match plan.weights[weight].shape[..] {
        [_, _, channels, outputs] | [channels, outputs] => (channels, outputs),
        _ => bail!("operation {index}: a weight has two or four axes"),
    };
    let output_side = |side: usize| geometry.output_side(side);
    let [Some(height), Some(width)] = input.sides.map(output_side) else {
        bail!("operation {index}: no window of {geometry:?} fits images of {:?}", input.sides)
    };
    if channels != input.channels {
        bail!("operation {index}: a weight for {channels} channels meets {}", input.channels)
    }
    Ok(Shape {
        images: input.images,
        sides: input.sides,
        output_sides: [height, width],
        channels,
        outputs,
        geometry,
    })
}
