//! What cuDNN has to know of a convolution and what it chose for it, kept for each thread.

use crate::ops::cpu::convolution::Shape;
use candle_core::cuda::cudarc::cudnn::sys::{
    cudnnConvolutionBwdDataAlgo_t, cudnnConvolutionBwdFilterAlgo_t, cudnnConvolutionFwdAlgo_t,
    cudnnConvolutionMode_t, cudnnMathType_t, cudnnTensorFormat_t,
};
use candle_core::cuda::cudarc::cudnn::{
    ConvDescriptor, Cudnn, CudnnError, FilterDescriptor, TensorDescriptor,
};
use candle_core::cuda::cudarc::driver::{CudaSlice, CudaStream};
use candle_core::cuda::{CudaDevice, DeviceId};
use candle_core::{Error, Result};
use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_int;
use std::sync::Arc;

/// What f32 numbers are multiplied as; sums are f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::ops) enum Math {
    /// As they are.
    F32,
    /// Rounded to the 11 significant bits of TF32, on GPUs with tensor cores for it (Ampere on).
    Tf32,
}

impl Math {
    /// TF32, as in PyTorch's convolutions by default. Tests take f32, since what finite differences
    /// look for is lost in TF32's rounding.
    pub(in crate::ops) const USUAL: Self = if cfg!(test) { Self::F32 } else { Self::Tf32 };

    fn of_cudnn(self) -> cudnnMathType_t {
        match self {
            Self::F32 => cudnnMathType_t::CUDNN_FMA_MATH,
            // The types named after tensor cores may round to f16, which overflows at 65,504.
            Self::Tf32 => cudnnMathType_t::CUDNN_DEFAULT_MATH,
        }
    }
}

/// A convolution and how it is multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Problem {
    pub(super) shape: Shape,
    pub(super) math: Math,
}

impl Problem {
    /// `[N, C, H, W]`, the order of cuDNN's calls whatever the layout.
    pub(super) fn images(&self) -> [usize; 4] {
        let Shape { images, sides: [height, width], channels, .. } = self.shape;
        [images, channels, height, width]
    }

    /// `[O, C, K, K]`.
    pub(super) fn filter(&self) -> [usize; 4] {
        let Shape { channels, outputs, geometry, .. } = self.shape;
        [outputs, channels, geometry.kernel, geometry.kernel]
    }

    /// `[N, O, H', W']`.
    pub(super) fn outputs(&self) -> [usize; 4] {
        let Shape { images, output_sides: [height, width], outputs, .. } = self.shape;
        [images, outputs, height, width]
    }
}

/// An algorithm and the bytes it computes in.
pub(super) type Choice<A> = (A, usize);

/// What cuDNN has to know of a problem, and what it chose for each pass once one was asked for.
pub(super) struct Plan {
    pub(super) convolution: ConvDescriptor<f32>,
    pub(super) images: TensorDescriptor<f32>,
    pub(super) filter: FilterDescriptor<f32>,
    pub(super) outputs: TensorDescriptor<f32>,
    pub(super) forward: Option<Choice<cudnnConvolutionFwdAlgo_t>>,
    pub(super) backward_images: Option<Choice<cudnnConvolutionBwdDataAlgo_t>>,
    pub(super) backward_filter: Option<Choice<cudnnConvolutionBwdFilterAlgo_t>>,
}

impl Plan {
    fn new(cudnn: &Arc<Cudnn>, problem: &Problem) -> Result<Self> {
        const NHWC: cudnnTensorFormat_t = cudnnTensorFormat_t::CUDNN_TENSOR_NHWC;
        let geometry = problem.shape.geometry;
        let [padding, stride] = counts([geometry.padding, geometry.stride])?;
        let mut convolution = cudnn.create_conv2d(
            [padding; 2],
            [stride; 2],
            [1, 1],
            cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION,
        )?;
        convolution.set_math_type(problem.math.of_cudnn())?;
        Ok(Self {
            convolution,
            images: cudnn.create_4d_tensor(NHWC, counts(problem.images())?)?,
            filter: cudnn.create_4d_filter(NHWC, counts(problem.filter())?)?,
            outputs: cudnn.create_4d_tensor(NHWC, counts(problem.outputs())?)?,
            forward: None,
            backward_images: None,
            backward_filter: None,
        })
    }
}

/// Memory to compute in. One piece serves every problem: a stream runs them one after another.
pub(super) struct Workspace {
    stream: Arc<CudaStream>,
    memory: Option<CudaSlice<u8>>,
}

impl Workspace {
    /// At least `bytes` of it, with any content.
    pub(super) fn at_least(&mut self, bytes: usize) -> Result<&mut CudaSlice<u8>> {
        let memory = match self.memory.take().filter(|memory| memory.len() >= bytes) {
            Some(memory) => memory,
            // CUDA gives no memory of no bytes.
            None => self.stream.alloc_zeros(bytes.max(1))?,
        };
        Ok(self.memory.insert(memory))
    }
}

/// cuDNN for one device, on one thread.
struct Library {
    cudnn: Arc<Cudnn>,
    /// As many as there are layers and batch sizes, so they are kept for good.
    plans: HashMap<Problem, Plan>,
    workspace: Workspace,
}

thread_local! {
    static LIBRARIES: RefCell<HashMap<DeviceId, Library>> = RefCell::default();
}

/// Lends the thread's plan of `problem`, made at its first use, and the workspace to `work`.
pub(super) fn with_plan<R>(
    device: &CudaDevice,
    problem: &Problem,
    work: impl FnOnce(&mut Plan, &mut Workspace) -> Result<R>,
) -> Result<R> {
    LIBRARIES.with_borrow_mut(|libraries| {
        let Library { cudnn, plans, workspace } = match libraries.entry(device.id()) {
            Entry::Occupied(library) => library.into_mut(),
            Entry::Vacant(free) => {
                let stream = device.cuda_stream();
                let cudnn = Cudnn::new(Arc::clone(&stream))?;
                let workspace = Workspace { stream, memory: None };
                free.insert(Library { cudnn, plans: HashMap::new(), workspace })
            }
        };
        let plan = match plans.entry(*problem) {
            Entry::Occupied(plan) => plan.into_mut(),
            Entry::Vacant(free) => free.insert(Plan::new(cudnn, problem)?),
        };
        work(plan, workspace)
    })
}

/// The `repeatable` algorithm, which adds in one order, or where cuDNN lacks it for this problem
/// what it `picked`: a run that can't be repeated to the bit is better than none.
pub(super) fn choose<A: Copy>(
    repeatable: A,
    picked: A,
    bytes: impl Fn(A) -> std::result::Result<usize, CudnnError>,
) -> Result<Choice<A>> {
    match bytes(repeatable) {
        Ok(bytes) => Ok((repeatable, bytes)),
        Err(_) => Ok((picked, bytes(picked)?)),
    }
}

/// `sizes` as cuDNN counts.
fn counts<const N: usize>(sizes: [usize; N]) -> Result<[c_int; N]> {
    let mut counts = [0; N];
    for (count, size) in counts.iter_mut().zip(sizes) {
        *count = c_int::try_from(size)
            .map_err(|_| Error::msg(format!("{size} is too large a size for cuDNN")))?;
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_beyond_cudnn_s_counts_are_refused() {
        assert_eq!(counts([0, 7, 1 << 30]).expect("they fit"), [0, 7, 1 << 30]);
        let error = counts([1, 1 << 31]).expect_err("it must be refused").to_string();
        assert!(error.contains("2147483648 is too large"), "{error}");
    }

    #[test]
    fn a_repeatable_algorithm_is_taken_where_there_is_one() {
        use candle_core::cuda::cudarc::cudnn::sys::cudnnStatus_t;
        let missing = CudnnError(cudnnStatus_t::CUDNN_STATUS_NOT_SUPPORTED);
        assert_eq!(choose('r', 'p', |_| Ok(5)).expect("both are there"), ('r', 5));
        let only_picked = |a| if a == 'p' { Ok(7) } else { Err(missing) };
        assert_eq!(choose('r', 'p', only_picked).expect("one is there"), ('p', 7));
        assert!(choose('r', 'p', |_| Err(missing)).is_err());
    }
}
