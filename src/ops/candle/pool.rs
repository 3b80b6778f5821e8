//! Pooling: the mean of an image, and the maximum of windows.

use super::{floats, with_floats};
use crate::ops::cpu::pool::{self as cpu, MAX_POOL, Shape};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Tensor, bail};

/// The mean over the pixels of `x [N, H, W, C]`: `[N, C]`.
///
/// # Errors
/// If `x` has another rank or no pixel.
pub fn average_pool(x: &Tensor) -> Result<Tensor> {
    let (_, height, width, channels) = x.dims4()?;
    if height * width * channels == 0 {
        bail!("images {:?} have no pixel", x.shape());
    }
    if x.device().is_cpu() { x.contiguous()?.apply_op1(AveragePool) } else { composed_average(x) }
}

/// The greatest value in 3 x 3 windows two pixels apart, padded by one: `[N, H', W', C]` of
/// `x [N, H, W, C]`, with sides halved and rounded up.
///
/// # Errors
/// If `x` has another rank or no pixel.
pub fn max_pool(x: &Tensor) -> Result<Tensor> {
    let (_, height, width, channels) = x.dims4()?;
    if height * width * channels == 0 {
        bail!("images {:?} have no pixel", x.shape());
    }
    if !x.device().is_cpu() {
        return composed_maximum(x);
    }
    let shape = Shape::max_pool([height, width], channels);
    x.contiguous()?.apply_op1(MaxPool { shape })
}

/// [`average_pool`] by candle's operations: what other devices run, and the oracle.
fn composed_average(x: &Tensor) -> Result<Tensor> {
    x.mean((1, 2))
}

/// [`max_pool`] by candle's operations, as the maximum of nine strided copies: what other devices
/// run, and the oracle. (The backward pass of candle's own needs windows that don't overlap.)
fn composed_maximum(x: &Tensor) -> Result<Tensor> {
    let (_, height, width, _) = x.dims4()?;
    let pick = |side: usize, tap: usize| {
        // A tap in the padding reads the border instead, which the window sees anyway.
        let output_side = side.div_ceil(MAX_POOL.stride);
        let positions = (0..output_side)
            .map(|at| (at * MAX_POOL.stride + tap).saturating_sub(MAX_POOL.padding).min(side - 1))
            .map(|at| at as u32);
        Tensor::from_iter(positions, x.device())
    };
    let mut best: Option<Tensor> = None;
    for row in 0..MAX_POOL.kernel {
        let rows = x.index_select(&pick(height, row)?, 1)?;
        for column in 0..MAX_POOL.kernel {
            let pixels = rows.index_select(&pick(width, column)?, 2)?;
            best = Some(match best {
                None => pixels,
                Some(best) => best.maximum(&pixels)?,
            });
        }
    }
    best.ok_or_else(|| candle_core::Error::msg("a window without taps"))
}

struct AveragePool;

impl CustomOp1 for AveragePool {
    fn name(&self) -> &'static str {
        "average-pool"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, candle_core::Shape)> {
        let (images, height, width, channels) = layout.shape().dims4()?;
        let mut y = vec![0.0; images * channels];
        cpu::average(floats(x, layout)?, height * width, channels, &mut y);
        Ok((CpuStorage::F32(y), (images, channels).into()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let (_, height, width, channels) = x.dims4()?;
        let mut dx = vec![0.0; x.elem_count()];
        with_floats(&dy.contiguous()?, |dy| {
            cpu::backward_average(dy, height * width, channels, &mut dx);
        })?;
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}

struct MaxPool {
    shape: Shape,
}

impl CustomOp1 for MaxPool {
    fn name(&self) -> &'static str {
        "max-pool"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, candle_core::Shape)> {
        let images = layout.shape().dims4()?.0;
        let mut y = vec![0.0; images * self.shape.output()];
        cpu::maximum(&self.shape, floats(x, layout)?, &mut y);
        let [height, width] = self.shape.output_sides;
        Ok((CpuStorage::F32(y), (images, height, width, self.shape.channels).into()))
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let mut dx = vec![0.0; x.elem_count()];
        let mut unclaimed = vec![0.0; x.dim(0)? * self.shape.channels];
        with_floats(x, |x| {
            with_floats(y, |y| {
                with_floats(&dy.contiguous()?, |dy| {
                    cpu::backward_maximum(&self.shape, [x, y, dy], &mut unclaimed, &mut dx);
                })
            })
        })???;
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}

#[cfg(test)]
mod tests {
    use super::super::oracle::*;
    use super::*;
    use crate::device::under_test;
    use proptest::prelude::*;

    /// Relative to the largest value.
    const TOLERANCE: f32 = 1e-5;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn any_shape_equals_the_composed_path(
            images in 1usize..5, height in 1usize..12, width in 1usize..12,
            channels in 1usize..30,
        ) {
            let x = [noise(5, &[images, height, width, channels])];
            let twins = [
                (average_pool as fn(&Tensor) -> _, composed_average as fn(&Tensor) -> _),
                (max_pool, composed_maximum),
            ];
            for (fast, oracle) in twins {
                assert_twins("pooling", TOLERANCE, &x, |x| fast(&x[0]), |x| oracle(&x[0]));
            }
        }
    }

    #[test]
    fn the_maximum_of_a_ramp_is_each_window_s_last_pixel() -> Result<()> {
        let x = Tensor::arange(0_f32, 16.0, &under_test())?.reshape((1, 4, 4, 1))?;
        assert_eq!(flat(&max_pool(&x)?), [5.0, 7.0, 13.0, 15.0]);
        assert_eq!(flat(&average_pool(&x)?), [7.5]);
        Ok(())
    }

    #[test]
    fn among_equals_the_gradient_is_neither_lost_nor_doubled() -> Result<()> {
        let x = candle_core::Var::from_tensor(&noise(1, &[2, 7, 7, 3]).zeros_like()?)?;
        let y = max_pool(x.as_tensor())?;
        let gradients = y.sum_all()?.backward()?;
        let dx = gradients.get(&x).expect("x is a variable");
        assert_eq!(flat(dx).iter().sum::<f32>(), y.elem_count() as f32);
        Ok(())
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let x = [noise(5, &[33, 15, 15, 20])];
        assert_same_bits_for_any_threads(&x, |x| max_pool(&x[0]));
        assert_same_bits_for_any_threads(&x, |x| average_pool(&x[0]));
    }

    #[test]
    fn images_without_pixels_are_refused() {
        let empty = noise(1, &[1, 1, 3, 2]).narrow(1, 0, 0).expect("it has a row");
        assert!(average_pool(&empty).is_err_and(|error| error.to_string().contains("no pixel")));
        assert!(max_pool(&empty).is_err_and(|error| error.to_string().contains("no")));
    }
}
