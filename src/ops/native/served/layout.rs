//! A plan laid out for a number of images.

use crate::encoder::{Op, Plan, Value};
use crate::ops::isa::Isa;
use crate::ops::native::convolution::Convolution;
use crate::ops::native::sizes::{Size, product_shape, sizes};
use crate::ops::native::tokens::{Attention, LayerNorm, Positions};
use candle_core::Result;

/// What an operation computes with.
pub(super) enum Stage {
    /// A convolution, or a matrix as a window of one pixel.
    Product(Box<Convolution<f32>>),
    LayerNorm(LayerNorm),
    Attention(Attention),
    Positions(Positions),
    /// A batch norm, which is folded into the convolution before it, or loops without state.
    Nothing,
}

/// The sizes of every value, and the stage of every operation.
pub(super) struct Layout {
    pub(super) sizes: Vec<Size>,
    pub(super) stages: Vec<Stage>,
}

impl Layout {
    pub(super) fn new(isa: Isa, plan: &Plan, images: usize, side_px: usize) -> Result<Self> {
        let sizes = sizes(plan, images, side_px)?;
        let stage = |(index, op): (usize, &Op)| {
            let of = |Value(at): Value| sizes[at];
            let rows = |value| of(value).images * of(value).pixels();
            Ok(match *op {
                Op::Convolution { input, .. } | Op::Linear { input, .. } => {
                    let shape = product_shape(plan, index, of(input))?;
                    Stage::Product(Box::new(Convolution::new(isa, shape, false)))
                }
                Op::LayerNorm { input, .. } => {
                    Stage::LayerNorm(LayerNorm::new(rows(input), of(input).channels))
                }
                Op::Attention { input, heads } => {
                    let (images, pixels) = (of(input).images, of(input).pixels());
                    let channels = of(Value(index + 1)).channels;
                    Stage::Attention(Attention::new(isa, [images, pixels], heads, channels))
                }
                Op::Positions { input, .. } => {
                    let Size { images, sides, channels } = of(input);
                    Stage::Positions(Positions::new(images, sides, channels))
                }
                Op::BatchNorm { .. }
                | Op::MaxPool { .. }
                | Op::GlobalAveragePool { .. }
                | Op::FirstPixel { .. }
                | Op::Tokens { .. }
                | Op::Gelu { .. } => Stage::Nothing,
            })
        };
        Ok(Self { stages: plan.ops.iter().enumerate().map(stage).collect::<Result<_>>()?, sizes })
    }
}
