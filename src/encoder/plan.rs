//! An encoder as data: the list of operations that turns images into features.
//!
//! A plan owns no numbers. [`Params`](super::Params) hold them, and the interpreters in
//! [`ops`](crate::ops) compute.

use super::op::{Geometry, Op, Value};

/// How a weight starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// All zero.
    Zeros,
    /// All one.
    Ones,
    /// Normal with this standard deviation.
    Normal {
        /// The standard deviation of the weights about a mean of zero.
        deviation: f32,
    },
    /// Normal with variance 2 / `fan` (He et al. 2015, arXiv 1502.01852, eq. 10).
    HeNormal {
        /// Inputs (or outputs) that a unit sums over.
        fan: usize,
    },
    /// Normal with variance 2 / (`inputs` + `outputs`) (Glorot and Bengio 2010, "Understanding the
    /// difficulty of training deep feedforward neural networks", eq. 12).
    GlorotNormal {
        /// Inputs of the layer.
        inputs: usize,
        /// Outputs of the layer.
        outputs: usize,
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
        let gamma = self.vector(format!("{name}.gamma"), channels, Init::Ones);
        let beta = self.vector(format!("{name}.beta"), channels, Init::Zeros);
        self.moments.push(MomentsSpec { name: name.to_owned(), channels });
        let moments = self.moments.len() - 1;
        self.push(Op::BatchNorm { input, gamma, beta, moments, residual, relu })
    }

    /// Adds the ImageNet stem's maximum.
    pub fn max_pool(&mut self, input: Value) -> Value {
        self.push(Op::MaxPool { input })
    }

    /// Adds a product by a matrix `[I, O]`, with a bias and what is added to it.
    pub fn linear(
        &mut self,
        name: &str,
        input: Value,
        [inputs, outputs]: [usize; 2],
        residual: Option<Value>,
    ) -> Value {
        let weight = self.weight(WeightSpec {
            name: format!("{name}.weight"),
            shape: vec![inputs, outputs],
            init: Init::GlorotNormal { inputs, outputs },
            decay: true,
            adapt: true,
        });
        let bias = self.vector(format!("{name}.bias"), outputs, Init::Zeros);
        self.push(Op::Linear { input, weight, bias, residual })
    }

    /// Adds a product that makes queries, keys and values of `width` channels, and attention among
    /// them.
    pub fn attention(&mut self, name: &str, input: Value, width: usize, heads: usize) -> Value {
        let joined = self.linear(name, input, [width, 3 * width], None);
        // Three matrices of their own, stored side by side.
        if let Some(Op::Linear { weight, .. }) = self.ops.last() {
            self.weights[*weight].init = Init::GlorotNormal { inputs: width, outputs: width };
        }
        self.push(Op::Attention { input: joined, heads })
    }

    /// Adds a layer norm of `channels`.
    pub fn layer_norm(&mut self, name: &str, input: Value, channels: usize) -> Value {
        let gamma = self.vector(format!("{name}.gamma"), channels, Init::Ones);
        let beta = self.vector(format!("{name}.beta"), channels, Init::Zeros);
        self.push(Op::LayerNorm { input, gamma, beta })
    }

    /// Adds a GELU.
    pub fn gelu(&mut self, input: Value) -> Value {
        self.push(Op::Gelu { input })
    }

    /// Adds a bias and the positions of pixels of `channels`.
    pub fn positions(&mut self, name: &str, input: Value, channels: usize) -> Value {
        let bias = self.vector(format!("{name}.bias"), channels, Init::Zeros);
        self.push(Op::Positions { input, bias })
    }

    /// Adds a class token before the pixels and a position to each of these `tokens`, of `channels`.
    pub fn tokens(&mut self, input: Value, [tokens, channels]: [usize; 2]) -> Value {
        let positions = self.weight(WeightSpec {
            name: "tokens.positions".to_owned(),
            shape: vec![tokens, channels],
            // As timm's and DINO's begin.
            init: Init::Normal { deviation: 0.02 },
            decay: false,
            adapt: false,
        });
        self.push(Op::Tokens { input, positions })
    }

    /// Ends the plan: features are the first pixel of `input`, `channels` long.
    pub fn first_pixel(&mut self, input: Value, channels: usize) {
        self.feature_dim = channels;
        self.push(Op::FirstPixel { input });
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

    /// A scale, shift or bias.
    fn vector(&mut self, name: String, channels: usize, init: Init) -> usize {
        let shape = vec![channels];
        self.weight(WeightSpec { name, shape, init, decay: false, adapt: false })
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
