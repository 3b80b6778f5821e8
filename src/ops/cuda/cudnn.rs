//! cuDNN's convolution and its two gradients, on f32 tensors `[N, H, W, C]` and filters
//! `[O, K, K, C]`. All unsafe calls to a GPU are here: sizes are checked before, so that what this
//! file offers is safe.

use super::plan::{Problem, choose, with_plan};
use candle_core::cuda::CudaDevice;
use candle_core::cuda::cudarc::cudnn::sys::{
    cudnnConvolutionBwdDataAlgo_t as ImagesAlgorithm,
    cudnnConvolutionBwdFilterAlgo_t as FilterAlgorithm,
};
use candle_core::cuda::cudarc::cudnn::{ConvBackwardData, ConvBackwardFilter, ConvForward};
use candle_core::cuda::cudarc::driver::{CudaSlice, CudaView};
use candle_core::{CudaStorage, Layout, Result, bail};

/// An argument as candle hands it to a node.
pub(super) type Argument<'a> = (&'a CudaStorage, &'a Layout);

/// `y [N, H', W', O]` of `x [N, H, W, C]` and a filter `[O, K, K, C]`.
pub(super) fn forward(problem: &Problem, [x, filter]: [Argument<'_>; 2]) -> Result<CudaStorage> {
    let device = &x.0.device;
    let (x, filter) = (floats(x, problem.images())?, floats(filter, problem.filter())?);
    let mut y = room(device, problem.outputs())?;
    with_plan(device, problem, |plan, workspace| {
        let pass = ConvForward {
            conv: &plan.convolution,
            x: &plan.images,
            w: &plan.filter,
            y: &plan.outputs,
        };
        let (algorithm, bytes) = match plan.forward {
            Some(choice) => choice,
            None => {
                let picked = pass.pick_algorithm()?;
                *plan.forward.insert((picked, pass.get_workspace_size(picked)?))
            }
        };
        let workspace = Some(workspace.at_least(bytes)?);
        // SAFETY: the descriptors are the problem's, as are the sizes of the three arrays: `floats`
        // checked two of them and `room` made the third.
        unsafe { pass.launch(algorithm, workspace, (1.0, 0.0), &x, &filter, &mut y)? };
        Ok(())
    })?;
    Ok(CudaStorage::wrap_cuda_slice(y, device.clone()))
}

/// `dx [N, H, W, C]` of a filter `[O, K, K, C]` and `dy [N, H', W', O]`.
pub(super) fn backward_images(
    problem: &Problem,
    [filter, dy]: [Argument<'_>; 2],
) -> Result<CudaStorage> {
    let device = &dy.0.device;
    let (filter, dy) = (floats(filter, problem.filter())?, floats(dy, problem.outputs())?);
    let mut dx = room(device, problem.images())?;
    with_plan(device, problem, |plan, workspace| {
        let pass = ConvBackwardData {
            conv: &plan.convolution,
            dx: &plan.images,
            w: &plan.filter,
            dy: &plan.outputs,
        };
        let (algorithm, bytes) = match plan.backward_images {
            Some(choice) => choice,
            None => {
                let picked = pass.pick_algorithm()?;
                let repeatable = match picked {
                    ImagesAlgorithm::CUDNN_CONVOLUTION_BWD_DATA_ALGO_0 => {
                        ImagesAlgorithm::CUDNN_CONVOLUTION_BWD_DATA_ALGO_1
                    }
                    other => other,
                };
                let choice = choose(repeatable, picked, |a| pass.get_workspace_size(a))?;
                *plan.backward_images.insert(choice)
            }
        };
        let workspace = Some(workspace.at_least(bytes)?);
        // SAFETY: as in `forward`.
        unsafe { pass.launch(algorithm, workspace, (1.0, 0.0), &mut dx, &filter, &dy)? };
        Ok(())
    })?;
    Ok(CudaStorage::wrap_cuda_slice(dx, device.clone()))
}

/// The filter's gradient `[O, K, K, C]` of `x [N, H, W, C]` and `dy [N, H', W', O]`.
pub(super) fn backward_filter(
    problem: &Problem,
    [x, dy]: [Argument<'_>; 2],
) -> Result<CudaStorage> {
    let device = &x.0.device;
    let (x, dy) = (floats(x, problem.images())?, floats(dy, problem.outputs())?);
    let mut dfilter = room(device, problem.filter())?;
    with_plan(device, problem, |plan, workspace| {
        let pass = ConvBackwardFilter {
            conv: &plan.convolution,
            x: &plan.images,
            dw: &plan.filter,
            dy: &plan.outputs,
        };
        let (algorithm, bytes) = match plan.backward_filter {
            Some(choice) => choice,
            None => {
                let picked = pass.pick_algorithm()?;
                let repeatable = match picked {
                    FilterAlgorithm::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_0
                    | FilterAlgorithm::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_3 => {
                        FilterAlgorithm::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_1
                    }
                    other => other,
                };
                let choice = choose(repeatable, picked, |a| pass.get_workspace_size(a))?;
                *plan.backward_filter.insert(choice)
            }
        };
        let workspace = Some(workspace.at_least(bytes)?);
        // SAFETY: as in `forward`.
        unsafe { pass.launch(algorithm, workspace, (1.0, 0.0), &x, &mut dfilter, &dy)? };
        Ok(())
    })?;
    Ok(CudaStorage::wrap_cuda_slice(dfilter, device.clone()))
}

/// The numbers of an argument, once it has as many as `sizes` say, without gaps.
fn floats<'a>((storage, layout): Argument<'a>, sizes: [usize; 4]) -> Result<CudaView<'a, f32>> {
    let expected: usize = sizes.iter().product();
    match layout.contiguous_offsets() {
        Some((start, end)) if end - start == expected => {
            Ok(storage.as_cuda_slice::<f32>()?.slice(start..end))
        }
        _ => bail!("an argument is {layout:?}, it must be {expected} numbers without gaps"),
    }
}

/// Memory for a result of `sizes`.
fn room(device: &CudaDevice, sizes: [usize; 4]) -> Result<CudaSlice<f32>> {
    // SAFETY: each caller's launch writes every number, adding nothing to what was there (beta is
    // 0); where it fails, the memory is dropped unread.
    unsafe { device.alloc(sizes.iter().product()) }
}
