//! Two-dimensional convolution without bias.

use super::{floats, with_floats};
use crate::ops::Geometry;
use crate::ops::cpu::convolution::{self as cpu, Shape};
#[cfg(feature = "cuda")]
use crate::ops::cuda;
use candle_core::{CpuStorage, CustomOp2, Device, Layout, Result, Tensor, bail};

/// Convolves `x [N, H, W, C]` with `weight [K, K, C, O]` to `[N, H', W', O]`.
///
/// # Errors
/// If the shapes do not fit each other and `geometry`, a number is not f32, or no window fits.
pub fn convolution(x: &Tensor, weight: &Tensor, geometry: Geometry) -> Result<Tensor> {
    let shape = shape(x, weight, geometry)?;
    match x.device() {
        Device::Cpu => x.contiguous()?.apply_op2(&weight.contiguous()?, Convolution { shape }),
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => cuda::convolution(x, weight, shape, cuda::Math::USUAL),
        _ => composed(x, weight, geometry),
    }
}

/// The same by candle's own convolution: the oracle, and what devices without a fast path run. Its
/// backward pass refuses images whose height and width leave different numbers of pixels that no
/// window reaches.
fn composed(x: &Tensor, weight: &Tensor, geometry: Geometry) -> Result<Tensor> {
    let images = x.permute((0, 3, 1, 2))?.contiguous()?;
    let kernel = weight.permute((3, 2, 0, 1))?.contiguous()?;
    let y = images.conv2d(&kernel, geometry.padding, geometry.stride, 1, 1)?;
    y.permute((0, 2, 3, 1))?.contiguous()
}

fn shape(x: &Tensor, weight: &Tensor, geometry: Geometry) -> Result<Shape> {
    let (images, height, width, channels) = x.dims4()?;
    let (kernel, kernel_width, weight_channels, outputs) = weight.dims4()?;
    if (kernel, kernel_width) != (geometry.kernel, geometry.kernel) || weight_channels != channels {
        bail!(
            "weight is {:?}, it must be [{k}, {k}, {channels}, outputs] for images {:?}",
            weight.shape(),
            x.shape(),
            k = geometry.kernel
        );
    }
    let sides = (geometry.output_side(height), geometry.output_side(width));
    let (Some(output_height), Some(output_width)) = sides else {
        bail!("no window of {geometry:?} fits images {:?}", x.shape());
    };
    Ok(Shape {
        images,
        sides: [height, width],
        output_sides: [output_height, output_width],
        channels,
        outputs,
        geometry,
    })
}

struct Convolution {
    shape: Shape,
}

impl CustomOp2 for Convolution {
    fn name(&self) -> &'static str {
        "convolution-nhwc"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, candle_core::Shape)> {
        let y = cpu::forward(&self.shape, floats(x, x_layout)?, floats(weight, weight_layout)?);
        let [height, width] = self.shape.output_sides;
        Ok((CpuStorage::F32(y), (self.shape.images, height, width, self.shape.outputs).into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dy = &dy.contiguous()?;
        type Kernel<'a> = &'a dyn Fn(&[f32], &[f32]) -> Vec<f32>;
        let gradient = |of: &Tensor, kernel: Kernel<'_>, with: &Tensor| {
            let values = with_floats(with, |with| with_floats(dy, |dy| kernel(with, dy)))??;
            Tensor::from_vec(values, of.shape(), of.device())
        };
        let shape = &self.shape;
        // The images of a stem track nothing, and their gradient would be the costliest of all.
        let dx = x
            .track_op()
            .then(|| gradient(x, &|weight, dy| cpu::backward_images(shape, weight, dy), weight))
            .transpose()?;
        let dw = weight
            .track_op()
            .then(|| gradient(weight, &|x, dy| cpu::backward_weight(shape, x, dy), x))
            .transpose()?;
        Ok((dx, dw))
    }
}

#[cfg(test)]
mod tests {
    use super::super::oracle::*;
    use super::*;
    #[cfg(feature = "cuda")]
    use crate::device::under_test;
    use candle_core::Var;
    use proptest::prelude::*;

    /// Relative to the largest value; sums of at most 40,000 products in f32.
    const TOLERANCE: f32 = 2e-5;

    const fn geometry(kernel: usize, stride: usize, padding: usize) -> Geometry {
        Geometry { kernel, stride, padding }
    }

    fn inputs(
        images: usize,
        sides: [usize; 2],
        channels: [usize; 2],
        kernel: usize,
    ) -> [Tensor; 2] {
        let [channels, outputs] = channels;
        [
            noise(1, &[images, sides[0], sides[1], channels]),
            noise(2, &[kernel, kernel, channels, outputs]),
        ]
    }

    fn check(images: usize, sides: [usize; 2], channels: [usize; 2], geometry: Geometry) {
        let context = format!("{images} x {sides:?}, channels {channels:?}, {geometry:?}");
        assert_twins(
            &context,
            TOLERANCE,
            &inputs(images, sides, channels, geometry.kernel),
            |x| convolution(&x[0], &x[1], geometry),
            |x| composed(&x[0], &x[1], geometry),
        );
    }

    #[test]
    fn odd_shapes_equal_the_composed_path() {
        for (images, side, channels, geometry) in [
            (1, 15, [3, 20], geometry(3, 1, 1)),
            (7, 28, [20, 48], geometry(3, 1, 1)),
            (33, 15, [48, 20], geometry(3, 1, 1)),
            (7, 33, [20, 20], geometry(3, 2, 1)),
            (7, 28, [20, 48], geometry(3, 2, 1)),
            (1, 33, [48, 20], geometry(1, 1, 0)),
            (7, 15, [20, 48], geometry(1, 2, 0)),
            (33, 28, [3, 20], geometry(1, 2, 0)),
            (7, 33, [3, 48], geometry(7, 2, 3)),
            (7, 15, [3, 20], geometry(7, 1, 3)),
            (1, 28, [20, 3], geometry(7, 1, 0)),
            (7, 15, [3, 3], geometry(3, 1, 2)),
            (7, 15, [3, 3], geometry(1, 1, 1)),
            (33, 4, [64, 128], geometry(3, 1, 1)),
        ] {
            check(images, [side, side], channels, geometry);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn shapes_equal_the_composed_path(
            images in 1usize..5, height in 1usize..12, width in 1usize..12,
            channels in 1usize..12, outputs in 1usize..12,
            kernel in 1usize..6, stride in 1usize..4, padding in 0usize..4,
        ) {
            let geometry = geometry(kernel, stride, padding);
            // Candle's backward pass has one number for the pixels that no window reaches, for
            // both axes, and computes it without padding beyond the kernel. The rest is tested
            // against the loops of `cpu` alone.
            let unreached = |side: usize| {
                (side + 2 * padding).checked_sub(kernel).map(|free| free % stride)
            };
            prop_assume!(padding < kernel);
            prop_assume!(unreached(height).is_some() && unreached(height) == unreached(width));
            check(images, [height, width], [channels, outputs], geometry);
        }
    }

    #[test]
    fn a_centre_tap_of_one_copies_the_image() -> Result<()> {
        let x = noise(1, &[2, 5, 6, 1]);
        let mut weight = vec![0.0_f32; 9];
        weight[4] = 1.0;
        let weight = Tensor::from_vec(weight, (3, 3, 1, 1), x.device())?;
        assert_eq!(flat(&convolution(&x, &weight, geometry(3, 1, 1))?), flat(&x));
        Ok(())
    }

    #[test]
    fn slopes_are_those_of_finite_differences() {
        for geometry in [geometry(3, 1, 1), geometry(3, 2, 1), geometry(7, 2, 3)] {
            let inputs = inputs(3, [15, 15], [3, 20], geometry.kernel);
            assert_slopes(1e-3, &inputs, |x| convolution(&x[0], &x[1], geometry));
        }
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        for geometry in [geometry(3, 1, 1), geometry(3, 2, 1), geometry(1, 1, 0)] {
            let inputs = inputs(33, [28, 28], [20, 48], geometry.kernel);
            assert_same_bits_for_any_threads(&inputs, |x| convolution(&x[0], &x[1], geometry));
        }
    }

    #[test]
    fn untracked_images_and_frozen_weights_get_no_gradient() -> Result<()> {
        let [x, weight] = inputs(2, [5, 5], [3, 4], 3);
        let (x, weight) = (Var::from_tensor(&x)?, Var::from_tensor(&weight)?);
        for (x, weight) in [
            (x.as_detached_tensor(), weight.as_tensor().clone()),
            (x.as_tensor().clone(), weight.as_detached_tensor()),
        ] {
            let y = convolution(&x, &weight, geometry(3, 1, 1))?;
            let gradients = y.sum_all()?.backward()?;
            for argument in [x, weight] {
                assert_eq!(gradients.get(&argument).is_some(), argument.track_op());
            }
        }
        Ok(())
    }

    #[test]
    fn views_that_are_not_contiguous_are_understood() {
        let x = noise(1, &[2, 4, 6, 5]);
        let weight = noise(2, &[3, 3, 4, 6]);
        let turn = |x: &Tensor| x.permute((0, 3, 2, 1)); // [2, 5, 6, 4]
        assert_twins(
            "a permuted view",
            TOLERANCE,
            &[x, weight],
            |x| convolution(&turn(&x[0])?, &x[1], geometry(3, 1, 1))?.permute((3, 1, 2, 0)),
            |x| composed(&turn(&x[0])?, &x[1], geometry(3, 1, 1))?.permute((3, 1, 2, 0)),
        );
    }

    /// TF32 keeps 11 significant bits of each factor. Cut off, a product is off by 2^-9 at most; a
    /// sum of products of either sign is taken to be off by no more than 2^-8 of the largest sum.
    #[cfg(feature = "cuda")]
    #[test]
    fn tf32_is_off_by_its_rounding_alone() {
        if !under_test().is_cuda() {
            println!("skipped: SELFSTREAM_TEST_DEVICE is not cuda");
            return;
        }
        for geometry in [geometry(3, 1, 1), geometry(3, 2, 1), geometry(1, 2, 0)] {
            let on_gpu = |x: &[Tensor]| {
                let shape = shape(&x[0], &x[1], geometry)?;
                cuda::convolution(&x[0], &x[1], shape, cuda::Math::Tf32)
            };
            let inputs = inputs(33, [15, 15], [64, 48], geometry.kernel);
            assert_twins(&format!("{geometry:?}"), 1.0 / 256.0, &inputs, on_gpu, |x| {
                composed(&x[0], &x[1], geometry)
            });
        }
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let [x, weight] = inputs(1, [5, 5], [3, 4], 3);
        let refusal = |x: &Tensor, weight: &Tensor, geometry| {
            convolution(x, weight, geometry).expect_err("it must be refused").to_string()
        };
        assert!(refusal(&x, &weight, geometry(1, 1, 0)).contains("it must be [1, 1, 3, outputs]"));
        assert!(refusal(&weight, &x, geometry(5, 1, 0)).contains("weight is [1, 5, 5, 3]"));
        let small = noise(1, &[1, 2, 2, 3]);
        assert!(refusal(&small, &weight, geometry(3, 1, 0)).contains("no window"));
        assert!(refusal(&x, &weight, geometry(3, 0, 0)).contains("no window"));
    }
}
