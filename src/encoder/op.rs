//! The operations that plans are made of.

/// The output of one operation; `Value(0)` is the images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Value(pub usize);

/// How a square window moves over an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Geometry {
    /// Side of the window, at least 1.
    pub kernel: usize,
    /// Distance of neighbouring windows, at least 1.
    pub stride: usize,
    /// Zeros put around the image.
    pub padding: usize,
}

impl Geometry {
    /// Windows along a side of `side` pixels, or `None` if not one fits.
    pub fn output_side(&self, side: usize) -> Option<usize> {
        let free = (side + 2 * self.padding).checked_sub(self.kernel)?;
        Some(free.checked_div(self.stride)? + 1)
    }
}

/// One step of a plan. Weights are indices into [`Plan::weights`](super::Plan::weights).
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// `[N, H, W, C]` to `[N, H', W', O]`; weight `[K, K, C, O]`.
    Convolution {
        /// What is convolved.
        input: Value,
        /// Index of the kernel.
        weight: usize,
        /// Its window.
        geometry: Geometry,
    },
    /// Batch norm, then an optional residual, then an optional ReLU.
    BatchNorm {
        /// What is normalised, `[N, H, W, C]`.
        input: Value,
        /// Index of the scale `[C]`.
        gamma: usize,
        /// Index of the shift `[C]`.
        beta: usize,
        /// Index into [`Plan::moments`](super::Plan::moments).
        moments: usize,
        /// Added after the norm, `[N, H, W, C]`.
        residual: Option<Value>,
        /// Whether negative sums become zero.
        relu: bool,
    },
    /// 3x3 maximum of stride 2, padding 1.
    MaxPool {
        /// What is pooled.
        input: Value,
    },
    /// `[N, H, W, C]` to `[N, C]`.
    GlobalAveragePool {
        /// What is pooled.
        input: Value,
    },
    /// Each pixel of `[N, H, W, I]` by a matrix: `x W + b`, then an optional residual; weight
    /// `[I, O]`.
    Linear {
        /// What is multiplied.
        input: Value,
        /// Index of the matrix.
        weight: usize,
        /// Index of the bias `[O]`.
        bias: usize,
        /// Added after the product, `[N, H, W, O]`.
        residual: Option<Value>,
    },
    /// Each pixel normalised over its channels, then scaled and shifted (Ba et al. 2016, arXiv
    /// 1607.06450).
    LayerNorm {
        /// What is normalised, `[N, H, W, C]`.
        input: Value,
        /// Index of the scale `[C]`.
        gamma: usize,
        /// Index of the shift `[C]`.
        beta: usize,
    },
    /// `x Phi(x)`, Phi the normal distribution (Hendrycks and Gimpel 2016, arXiv 1606.08415).
    Gelu {
        /// What it is taken of.
        input: Value,
    },
    /// Self-attention among the pixels of an image: `[N, H, W, 3 D]`, which are queries, keys and
    /// values, to `[N, H, W, D]` (Vaswani et al. 2017, arXiv 1706.03762, section 3.2).
    Attention {
        /// Queries, keys and values, each `D` channels, head after head.
        input: Value,
        /// Heads, each `D / heads` channels.
        heads: usize,
    },
    /// Adds a bias and each pixel's place as sines and cosines, half of the channels for either
    /// axis (Chen et al. 2021, arXiv 2104.02057, section 5.3; MoCo v3).
    Positions {
        /// What they are added to, `[N, H, W, D]`, `D` a multiple of 4.
        input: Value,
        /// Index of the bias `[D]`.
        bias: usize,
    },
    /// Puts a class token before the pixels, in a row, and adds a learned position to each:
    /// `[N, H, W, D]` to `[N, 1, H W + 1, D]` (Dosovitskiy et al. 2020, arXiv 2010.11929, eq. 1).
    Tokens {
        /// The pixels.
        input: Value,
        /// Index of the positions `[H W + 1, D]`; the first one is the class token with its own.
        positions: usize,
    },
    /// `[N, H, W, C]` to `[N, C]`: the first pixel's.
    FirstPixel {
        /// What it is taken of.
        input: Value,
    },
}

impl Op {
    /// The values that it reads.
    pub fn reads(&self) -> impl Iterator<Item = Value> + use<> {
        let (input, residual) = match *self {
            Self::Convolution { input, .. }
            | Self::MaxPool { input }
            | Self::GlobalAveragePool { input }
            | Self::LayerNorm { input, .. }
            | Self::Gelu { input }
            | Self::Attention { input, .. }
            | Self::Positions { input, .. }
            | Self::Tokens { input, .. }
            | Self::FirstPixel { input } => (input, None),
            Self::BatchNorm { input, residual, .. } | Self::Linear { input, residual, .. } => {
                (input, residual)
            }
        };
        [Some(input), residual].into_iter().flatten()
    }
}
