//! What the operations of a tape compute with, and keep from one pass for the next.

use crate::encoder::{Op, Plan, Value};
use crate::ops::isa::Isa;
use crate::ops::native::convolution::Convolution;
use crate::ops::native::kernel::stored::Stored;
use crate::ops::native::kernel::tiles::Tail;
use crate::ops::native::norm::Norm;
use crate::ops::native::sizes::{Size, product_shape};
use crate::ops::native::sums::Sums;
use crate::ops::native::tokens::{Attention, LayerNorm, Positions};
use candle_core::{Result, bail};

/// One operation's.
pub(super) enum State<E: Stored> {
    /// Of a convolution or a matrix.
    Product(Box<Product<E>>),
    BatchNorm(Norm),
    LayerNorm(LayerNorm),
    Attention(Attention),
    Positions(Positions),
    /// Of an operation that needs its values alone.
    Nothing,
}

impl<E: Stored> State<E> {
    /// That of operation `index` among values of `sizes`.
    ///
    /// # Errors
    /// A batch norm that does not directly follow a convolution.
    pub(super) fn new(isa: Isa, plan: &Plan, index: usize, sizes: &[Size]) -> Result<Self> {
        let of = |Value(at): Value| sizes[at];
        let rows = |value| of(value).images * of(value).pixels();
        Ok(match plan.ops[index] {
            Op::Convolution { input, .. } | Op::Linear { input, .. } => {
                let shape = product_shape(plan, index, of(input))?;
                let convolution = Convolution::new(isa, shape, input != plan.images());
                let is_linear = matches!(plan.ops[index], Op::Linear { .. });
                Self::Product(Box::new(Product::new(
                    isa,
                    convolution,
                    of(Value(index + 1)),
                    is_linear,
                )))
            }
            Op::BatchNorm { input, .. } => {
                let is_convolved = matches!(plan.ops[..index].last(), Some(Op::Convolution { .. }));
                if input != Value(index) || !is_convolved {
                    bail!("operation {index}: a batch norm must follow its convolution")
                }
                Self::BatchNorm(Norm::new(rows(input), of(input).channels))
            }
            Op::LayerNorm { input, .. } => {
                Self::LayerNorm(LayerNorm::new(rows(input), of(input).channels))
            }
            Op::Attention { input, heads } => {
                let output = of(Value(index + 1));
                let (images, pixels) = (of(input).images, of(input).pixels());
                Self::Attention(Attention::new(isa, [images, pixels], heads, output.channels))
            }
            Op::Positions { input, .. } => {
                let Size { images, sides, channels } = of(input);
                Self::Positions(Positions::new(images, sides, channels))
            }
            Op::MaxPool { .. }
            | Op::GlobalAveragePool { .. }
            | Op::FirstPixel { .. }
            | Op::Tokens { .. }
            | Op::Gelu { .. } => Self::Nothing,
        })
    }

    /// The sums that a batch norm takes of its neighbours' outputs.
    pub(super) fn norm_sums(&mut self) -> Option<&mut Sums> {
        match self {
            Self::BatchNorm(norm) => Some(&mut norm.sums),
            _ => None,
        }
    }
}

/// A convolution, or a matrix as a window of one pixel.
pub(super) struct Product<E: Stored> {
    pub(super) convolution: Convolution<E>,
    /// A matrix's bias, zero past the last output up to a whole block.
    bias: Vec<f32>,
    /// Of the bias's gradient.
    sums: Sums,
}

impl<E: Stored> Product<E> {
    fn new(isa: Isa, convolution: Convolution<E>, output: Size, is_linear: bool) -> Self {
        let mut this = Self { convolution, bias: vec![], sums: Sums::default() };
        if is_linear {
            this.bias.resize(output.channels.next_multiple_of(isa.block()), 0.0);
            this.sums.grow_rows(output.images * output.pixels(), output.channels);
        }
        this
    }

    /// `y = x W`, with the sums of it that a norm behind it wants. `packed` is room for the weight
    /// here and below.
    pub(super) fn convolve(
        &mut self,
        weight: &[f32],
        packed: &mut [E::Word],
        x: &[E],
        y: &mut [E],
        sums: Option<&mut Sums>,
    ) {
        let packed = self.convolution.pack(weight, packed);
        self.convolution.forward(packed, x, y, Tail::default(), sums);
    }

    /// `y = x W + b + residual`.
    pub(super) fn multiply(
        &mut self,
        [weight, bias]: [&[f32]; 2],
        packed: &mut [E::Word],
        x: &[E],
        residual: Option<&[E]>,
        y: &mut [E],
    ) {
        let packed = self.convolution.pack(weight, packed);
        self.bias[..bias.len()].copy_from_slice(bias);
        let tail = Tail { bias: Some(&self.bias), residual, ..Tail::default() };
        self.convolution.forward(packed, x, y, tail, None);
    }

    /// The gradient of the input, of `dy`, finished by `tail`, with the sums that a norm before it
    /// wants.
    pub(super) fn pull(
        &self,
        (weight, packed): (&[f32], &mut [E::Word]),
        dy: &[E],
        dx: &mut [E],
        tail: Tail<'_, E>,
        sums: Option<&mut Sums>,
    ) {
        let packed = self.convolution.pack_transposed(weight, packed);
        self.convolution.backward(packed, dy, dx, tail, sums);
    }

    /// The gradient of the bias.
    pub(super) fn pull_bias(&mut self, dy: &[E], dbias: &mut [f32]) {
        self.sums.add_rows(dy, dbias.len());
        let totals = dbias.iter_mut().zip(&self.sums.first);
        totals.for_each(|(gradient, &sum)| *gradient = sum as f32);
    }
}
