//! The convolution as a node of candle's graph; its gradients are passes of the same node.

use super::cudnn::{self, Argument};
use super::plan::{Math, Problem};
use crate::ops::cpu::convolution::Shape;
use candle_core::{CpuStorage, CudaStorage, CustomOp2, Error, Layout, Result, Tensor, bail};

/// Convolves `x [N, H, W, C]` with `weight [K, K, C, O]` to `[N, H', W', O]`, both on a GPU and of
/// the sizes of `shape`.
///
/// # Errors
/// A number that is not f32, or whatever cuDNN reports.
pub(in crate::ops) fn convolution(
    x: &Tensor,
    weight: &Tensor,
    shape: Shape,
    math: Math,
) -> Result<Tensor> {
    // A node of the graph too: the gradient is turned back by candle.
    let filter = weight.permute((3, 0, 1, 2))?.contiguous()?; // [O, K, K, C]
    let problem = Problem { shape, math };
    x.contiguous()?.apply_op2(&filter, Node { problem, pass: Pass::Forward })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pass {
    /// Of images and filter.
    Forward,
    /// The gradient of the images: of filter and `dy`.
    BackwardImages,
    /// The gradient of the filter: of images and `dy`.
    BackwardFilter,
}

struct Node {
    problem: Problem,
    pass: Pass,
}

impl Node {
    /// Runs another pass of the same problem, outside the graph.
    fn gradient(&self, pass: Pass, of: &Tensor, dy: &Tensor) -> Result<Tensor> {
        of.apply_op2_no_bwd(dy, &Self { problem: self.problem, pass })
    }
}

impl CustomOp2 for Node {
    fn name(&self) -> &'static str {
        "convolution-cudnn"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, candle_core::Shape)> {
        bail!("{} was given tensors of the CPU", self.name())
    }

    fn cuda_fwd(
        &self,
        a: &CudaStorage,
        a_layout: &Layout,
        b: &CudaStorage,
        b_layout: &Layout,
    ) -> Result<(CudaStorage, candle_core::Shape)> {
        let arguments: [Argument<'_>; 2] = [(a, a_layout), (b, b_layout)];
        let Shape { images, sides, output_sides, channels, outputs, geometry } = self.problem.shape;
        Ok(match self.pass {
            Pass::Forward => {
                let [height, width] = output_sides;
                let y = cudnn::forward(&self.problem, arguments)?;
                (y, (images, height, width, outputs).into())
            }
            Pass::BackwardImages => {
                let [height, width] = sides;
                let dx = cudnn::backward_images(&self.problem, arguments)?;
                (dx, (images, height, width, channels).into())
            }
            Pass::BackwardFilter => {
                let dfilter = cudnn::backward_filter(&self.problem, arguments)?;
                (dfilter, (outputs, geometry.kernel, geometry.kernel, channels).into())
            }
        })
    }

    fn bwd(
        &self,
        x: &Tensor,
        filter: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        if self.pass != Pass::Forward {
            return Err(Error::BackwardNotSupported { op: self.name() });
        }
        let dy = dy.contiguous()?;
        // The images of a stem track nothing, and their gradient would be for nothing.
        let dx = x.track_op().then(|| self.gradient(Pass::BackwardImages, filter, &dy));
        let dfilter = filter.track_op().then(|| self.gradient(Pass::BackwardFilter, x, &dy));
        Ok((dx.transpose()?, dfilter.transpose()?))
    }
}
