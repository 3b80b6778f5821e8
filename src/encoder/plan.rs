//! An encoder as data: the list of operations that turns images into features.
//!
//! A plan owns no numbers. [`Params`](super::Params) hold them, and the interpreters in
//! [`ops`](crate::ops) compute.

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

/// How a weight starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// All zero.
    Zeros,
    /// All one.
    Ones,
    /// Normal with variance 2 / `fan` (He et al. 2015, arXiv 1502.01852, eq. 10).
    HeNormal {
        /// Inputs (or outputs) that a unit sums over.
        fan: usize,
    },
}

/// A trainable weight: its name, shape and how optimisers may treat it.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightSpec {
    /// Dotted name, unique in its set.
    pub name: String,
    /// Shape as stored.
    pub shape: Vec<usize>,
    /// Its first value.
    pub init: Init,
    /// Whether weight decay applies; not to norms and biases.
    pub decay: bool,
    /// Whether layer-wise rate adaptation (LARS) applies; not to norms and biases.
    pub adapt: bool,
}

/// A batch norm's running moments: its name and channels.
#[derive(Clone, Debug, PartialEq)]
pub struct MomentsSpec {
    /// Dotted name.
    pub name: String,
    /// Channels.
    pub channels: usize,
}

/// One step of a plan. Weights are indices into [`Plan::weights`].
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
        /// Index into [`Plan::moments`].
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
}

impl Op {
    /// The values that it reads.
    pub fn reads(&self) -> impl Iterator<Item = Value> + use<> {
        let (input, residual) = match *self {
            Self::Convolution { input, .. }
            | Self::MaxPool { input }
            | Self::GlobalAveragePool { input } => (input, None),
            Self::BatchNorm { input, residual, .. } => (input, residual),
        };
        [Some(input), residual].into_iter().flatten()
    }
}

/// An encoder's operations, in order; the last one's output is the features `[N, D]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Name of the architecture.
    pub architecture: String,
    /// Length of a feature vector, `D`.
    pub feature_dim: usize,
    /// Operations; operation `i` makes `Value(i + 1)`.
    pub ops: Vec<Op>,
    /// Trainable weights.
    pub weights: Vec<WeightSpec>,
    /// Running moments of the batch norms.
    pub moments: Vec<MomentsSpec>,
}

impl Plan {
    /// An empty plan, to be filled by the methods below.
    pub fn new(architecture: &str) -> Self {
        Self {
            architecture: architecture.to_owned(),
            feature_dim: 0,
            ops: vec![],
            weights: vec![],
            moments: vec![],
        }
    }

    /// The images.
    pub fn images(&self) -> Value {
        Value(0)
    }

    /// Adds a convolution without bias from `channels` `[C, O]`.
    pub fn convolution(
        &mut self,
        name: &str,
        input: Value,
        [channels_in, channels_out]: [usize; 2],
        geometry: Geometry,
    ) -> Value {
        let kernel = geometry.kernel;
        // The fan of the outputs, as torchvision's ResNets start.
        let fan = channels_out * kernel * kernel;
        let weight = self.weight(WeightSpec {
            name: format!("{name}.weight"),
            shape: vec![kernel, kernel, channels_in, channels_out],
            init: Init::HeNormal { fan },
            decay: true,
            adapt: true,
        });
        self.push(Op::Convolution { input, weight, geometry })
    }

    /// Adds a batch norm of `channels`, with what follows it fused.
    pub fn batch_norm(
        &mut self,
        name: &str,
        input: Value,
        channels: usize,
        residual: Option<Value>,
        relu: bool,
    ) -> Value {
        let spec = |suffix: &str, init| WeightSpec {
            name: format!("{name}.{suffix}"),
            shape: vec![channels],
            init,
            decay: false,
            adapt: false,
        };
        let gamma = self.weight(spec("gamma", Init::Ones));
        let beta = self.weight(spec("beta", Init::Zeros));
        self.moments.push(MomentsSpec { name: name.to_owned(), channels });
        let moments = self.moments.len() - 1;
        self.push(Op::BatchNorm { input, gamma, beta, moments, residual, relu })
    }

    /// Adds the ImageNet stem's maximum.
    pub fn max_pool(&mut self, input: Value) -> Value {
        self.push(Op::MaxPool { input })
    }

    /// Ends the plan: features are the mean over pixels of `input`, `channels` long.
    pub fn global_average_pool(&mut self, input: Value, channels: usize) {
        self.feature_dim = channels;
        self.push(Op::GlobalAveragePool { input });
    }

    /// The last operation that reads each value, if any does.
    pub fn last_readers(&self) -> Vec<Option<usize>> {
        let mut last = vec![None; self.ops.len() + 1];
        for (index, op) in self.ops.iter().enumerate() {
            for Value(value) in op.reads() {
                last[value] = Some(index);
            }
        }
        last
    }

    /// The first operation that reads each value, if any does.
    pub fn first_readers(&self) -> Vec<Option<usize>> {
        let mut first = vec![None; self.ops.len() + 1];
        for (index, op) in self.ops.iter().enumerate() {
            for Value(value) in op.reads() {
                first[value] = first[value].or(Some(index));
            }
        }
        first
    }

    fn weight(&mut self, spec: WeightSpec) -> usize {
        self.weights.push(spec);
        self.weights.len() - 1
    }

    fn push(&mut self, op: Op) -> Value {
        self.ops.push(op);
        Value(self.ops.len())
    }
}
