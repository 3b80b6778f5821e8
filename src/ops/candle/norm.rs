//! Batch normalisation fused with residual addition and rectifier (Ioffe and Szegedy 2015,
//! arXiv:1502.03167): for a block of a residual network one pass forward and two backward.

use super::{floats, with_floats};
use crate::ops::cpu::norm::{self as cpu, Saved, Statistics};
use candle_core::{CpuStorage, CustomOp2, CustomOp3, D, Layout, Result, Shape, Tensor, bail};

/// How [`batch_norm`] normalises.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Normalisation {
    /// Whether the result is rectified.
    pub relu: bool,
    /// Runs of N / groups consecutive images with moments of their own, at least 1. MoCo v2 splits
    /// a batch so, on one device, that a query cannot tell its key by their common moments.
    pub groups: usize,
    /// Added to the variance; 1e-5 in PyTorch.
    pub epsilon: f64,
}

/// What a batch adds to the running statistics; no gradient flows through it.
#[derive(Clone, Debug)]
pub struct Moments {
    /// Mean of each channel, `[C]`, averaged over groups.
    pub mean: Tensor,
    /// Biased variance of each channel, `[C]`, averaged over groups; times
    /// `count / (count - 1)` it is unbiased.
    pub variance: Tensor,
    /// Values a mean was taken of: rows of one group.
    pub count: usize,
}

/// Normalises `x [N, H, W, C]` or `[N, C]` by its own moments over all axes but the last, then
/// scales by `gamma [C]`, adds `beta [C]` and `residual` (of x's shape) and may rectify.
///
/// # Errors
/// If the shapes do not fit, or N is not a multiple of the groups, or there is no value.
pub fn batch_norm(
    x: &Tensor,
    gamma: &Tensor,
    beta: &Tensor,
    residual: Option<&Tensor>,
    how: Normalisation,
) -> Result<(Tensor, Moments)> {
    let channels = check(x, gamma, beta, residual)?;
    let images = x.dim(0)?;
    if how.groups == 0 || images % how.groups != 0 || x.elem_count() == 0 {
        bail!("{:?} can't be normalised in {} groups of equal size", x.shape(), how.groups);
    }
    if !x.device().is_cpu() {
        return composed(x, gamma, beta, residual, how);
    }
    let x = x.contiguous()?;
    let statistics = with_floats(&x, |x| Statistics::of(x, channels, how.groups))?;
    let moments = Moments {
        mean: average_of_groups(&statistics.mean, channels, &x)?,
        variance: average_of_groups(&statistics.variance, channels, &x)?,
        count: statistics.rows,
    };
    // Candle's nodes take at most three arguments.
    let affine = Tensor::stack(&[gamma, beta], 0)?.contiguous()?;
    let node = BatchNorm { statistics, how };
    let y = match residual {
        None => x.apply_op2(&affine, node)?,
        Some(residual) => x.apply_op3(&affine, &residual.contiguous()?, node)?,
    };
    Ok((y, moments))
}

/// [`batch_norm`] by the given `[mean, variance]`, both `[C]`: what serving computes. No gradient
/// flows through it.
///
/// # Errors
/// If the shapes do not fit.
pub fn batch_norm_inference(
    x: &Tensor,
    gamma: &Tensor,
    beta: &Tensor,
    [mean, variance]: [&Tensor; 2],
    residual: Option<&Tensor>,
    how: Normalisation,
) -> Result<Tensor> {
    let channels = check(x, gamma, beta, residual)?;
    check(x, mean, variance, None)?;
    if !x.device().is_cpu() {
        let inverse = (variance + how.epsilon)?.sqrt()?.recip()?;
        let y = x.broadcast_sub(mean)?.broadcast_mul(&(gamma * inverse)?)?.broadcast_add(beta)?;
        return Ok(finish(y, residual, how.relu)?.detach());
    }
    let statistics = Statistics {
        rows: x.elem_count() / channels.max(1),
        channels,
        mean: mean.to_vec1()?,
        variance: variance.to_vec1()?,
    };
    let affine: [Vec<f32>; 2] = [gamma.to_vec1()?, beta.to_vec1()?];
    let affine = [&affine[0][..], &affine[1][..]];
    let normalise = |x: &[f32], residual: Option<&[f32]>| {
        cpu::normalise(x, &statistics, how.epsilon, affine, residual, how.relu)
    };
    let y = with_floats(&x.contiguous()?, |x| match residual {
        None => Ok(normalise(x, None)),
        Some(residual) => with_floats(&residual.contiguous()?, |r| normalise(x, Some(r))),
    })??;
    Tensor::from_vec(y, x.shape(), x.device())
}

/// The number of channels, once all shapes fit.
fn check(x: &Tensor, gamma: &Tensor, beta: &Tensor, residual: Option<&Tensor>) -> Result<usize> {
    let channels = x.dim(D::Minus1)?;
    if gamma.dims() != [channels] || beta.dims() != [channels] {
        bail!(
            "a channel's numbers are {:?} and {:?}, they must be [{channels}] for {:?}",
            gamma.shape(),
            beta.shape(),
            x.shape()
        );
    }
    match residual {
        Some(residual) if residual.shape() != x.shape() => {
            bail!("residual is {:?}, it must be {:?}", residual.shape(), x.shape())
        }
        _ => Ok(channels),
    }
}

/// The mean over groups of `[G, C]`, on the device of `like`.
fn average_of_groups(values: &[f32], channels: usize, like: &Tensor) -> Result<Tensor> {
    Tensor::from_slice(values, (values.len() / channels, channels), like.device())?.mean(0)
}

/// [`batch_norm`] by candle's operations: what other devices run, and the oracle.
fn composed(
    x: &Tensor,
    gamma: &Tensor,
    beta: &Tensor,
    residual: Option<&Tensor>,
    how: Normalisation,
) -> Result<(Tensor, Moments)> {
    let channels = x.dim(D::Minus1)?;
    let count = x.elem_count() / channels / how.groups;
    let rows = x.reshape((how.groups, count, channels))?; // [G, R, C]
    let mean = rows.mean_keepdim(1)?; // [G, 1, C]
    let centred = rows.broadcast_sub(&mean)?;
    let variance = centred.sqr()?.mean_keepdim(1)?; // [G, 1, C]
    let normalised = centred.broadcast_div(&(&variance + how.epsilon)?.sqrt()?)?;
    let y = normalised.broadcast_mul(gamma)?.broadcast_add(beta)?.reshape(x.shape())?;
    let moments = Moments {
        mean: mean.mean((0, 1))?.detach(),
        variance: variance.mean((0, 1))?.detach(),
        count,
    };
    Ok((finish(y, residual, how.relu)?, moments))
}

fn finish(y: Tensor, residual: Option<&Tensor>, relu: bool) -> Result<Tensor> {
    let y = match residual {
        None => y,
        Some(residual) => (y + residual)?,
    };
    if relu { y.relu() } else { Ok(y) }
}

struct BatchNorm {
    statistics: Statistics,
    how: Normalisation,
}

impl BatchNorm {
    fn forward(
        &self,
        (x, x_layout): (&CpuStorage, &Layout),
        (affine, affine_layout): (&CpuStorage, &Layout),
        residual: Option<(&CpuStorage, &Layout)>,
    ) -> Result<(CpuStorage, Shape)> {
        let affine = floats(affine, affine_layout)?.split_at(self.statistics.channels);
        let y = cpu::normalise(
            floats(x, x_layout)?,
            &self.statistics,
            self.how.epsilon,
            affine.into(),
            residual.map(|(residual, layout)| floats(residual, layout)).transpose()?,
            self.how.relu,
        );
        Ok((CpuStorage::F32(y), x_layout.shape().clone()))
    }

    /// Gradients of `x` and of the stacked gamma and beta.
    fn backward(
        &self,
        x: &Tensor,
        affine: &Tensor,
        y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let work = |x_values: &[f32], affine: &[f32], y: &[f32], dy: &[f32]| {
            let saved = Saved {
                x: x_values,
                rectified: self.how.relu.then_some(y),
                gamma: &affine[..self.statistics.channels],
                statistics: &self.statistics,
                epsilon: self.how.epsilon,
            };
            cpu::backward(&saved, dy, x.track_op())
        };
        let gradients = with_floats(x, |x| {
            with_floats(affine, |affine| {
                with_floats(y, |y| with_floats(dy, |dy| work(x, affine, y, dy)))
            })
        })????;
        let dx = gradients.x.map(|dx| Tensor::from_vec(dx, x.shape(), x.device())).transpose()?;
        Ok((dx, Some(Tensor::from_vec(gradients.affine, affine.shape(), affine.device())?)))
    }
}

impl CustomOp2 for BatchNorm {
    fn name(&self) -> &'static str {
        "batch-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        affine: &CpuStorage,
        affine_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward((x, x_layout), (affine, affine_layout), None)
    }

    fn bwd(
        &self,
        x: &Tensor,
        affine: &Tensor,
        y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        self.backward(x, affine, y, &dy.contiguous()?)
    }
}

impl CustomOp3 for BatchNorm {
    fn name(&self) -> &'static str {
        "batch-norm-residual"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        affine: &CpuStorage,
        affine_layout: &Layout,
        residual: &CpuStorage,
        residual_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward((x, x_layout), (affine, affine_layout), Some((residual, residual_layout)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        affine: &Tensor,
        residual: &Tensor,
        y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let dy = dy.contiguous()?;
        let (dx, daffine) = self.backward(x, affine, y, &dy)?;
        let dresidual = match (residual.track_op(), self.how.relu) {
            (false, _) => None,
            (true, false) => Some(dy),
            (true, true) => {
                let passed = with_floats(y, |y| with_floats(&dy, |dy| cpu::pass(y, dy)))??;
                Some(Tensor::from_vec(passed, dy.shape(), dy.device())?)
            }
        };
        Ok((dx, daffine, dresidual))
    }
}

#[cfg(test)]
mod tests {
    use super::super::oracle::*;
    use super::*;
    use proptest::prelude::*;

    /// Relative to the largest value; the oracle sums in f32, so the difference is mostly its.
    const TOLERANCE: f32 = 1e-4;

    fn how(relu: bool, groups: usize) -> Normalisation {
        Normalisation { relu, groups, epsilon: 1e-5 }
    }

    /// x, gamma, beta and a residual; the mean is far from zero on purpose.
    fn inputs(shape: &[usize]) -> [Tensor; 4] {
        let channels = &shape[shape.len() - 1..];
        let x = (noise(1, shape) + 2.0).expect("f32");
        [x, (noise(2, channels) + 1.5).expect("f32"), noise(3, channels), noise(4, shape)]
    }

    fn check(shape: &[usize], with_residual: bool, how: Normalisation) {
        let inputs = inputs(shape);
        let inputs = if with_residual { &inputs[..] } else { &inputs[..3] };
        // Rounding decides on which side of a rectifier's kink a value next to it lies: such
        // values are left out of both.
        let unrectified = Normalisation { relu: false, ..how };
        let (y, _) = composed(&inputs[0], &inputs[1], &inputs[2], inputs.get(3), unrectified)
            .expect("the oracle runs");
        let clear = y.abs().and_then(|y| y.gt(1e-4)?.to_dtype(y.dtype())).expect("f32");
        assert_twins(
            &format!("{shape:?}, residual {with_residual}, {how:?}"),
            TOLERANCE,
            inputs,
            |x| batch_norm(&x[0], &x[1], &x[2], x.get(3), how)?.0 * &clear,
            |x| composed(&x[0], &x[1], &x[2], x.get(3), how)?.0 * clear.to_device(x[0].device())?,
        );
    }

    #[test]
    fn odd_shapes_equal_the_composed_path() {
        for (shape, groups) in [
            (&[7, 15, 15, 3][..], 1),
            (&[33, 28, 28, 20], 3),
            (&[2, 33, 33, 48], 2),
            (&[128, 48], 1),
            (&[64, 20], 4),
            (&[2, 4, 4, 256], 1),
        ] {
            for with_residual in [false, true] {
                for relu in [false, true] {
                    check(shape, with_residual, how(relu, groups));
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn any_shape_equals_the_composed_path(
            group_images in 1usize..4, groups in 1usize..4, side in 2usize..9,
            channels in 1usize..70, with_residual: bool, relu: bool,
        ) {
            let shape = [group_images * groups, side, side, channels];
            check(&shape, with_residual, how(relu, groups));
        }
    }

    #[test]
    fn the_output_has_mean_beta_and_deviation_gamma() -> Result<()> {
        let [x, gamma, beta, _] = inputs(&[9, 14, 14, 20]);
        let (y, moments) = batch_norm(&x, &gamma, &beta, None, how(false, 1))?;
        let rows = y.reshape(((), 20))?;
        assert!(relative_error(&rows.mean(0)?, &beta) < 1e-5);
        let deviation = rows.broadcast_sub(&rows.mean_keepdim(0)?)?.sqr()?.mean(0)?.sqrt()?;
        assert!(relative_error(&deviation, &gamma) < 1e-4, "epsilon alone costs 2e-5");
        let (_, expected) = composed(&x, &gamma, &beta, None, how(false, 1))?;
        assert!(relative_error(&moments.mean, &expected.mean) < 1e-5);
        assert!(relative_error(&moments.variance, &expected.variance) < 1e-5);
        assert_eq!((moments.count, expected.count), (9 * 14 * 14, 9 * 14 * 14));
        Ok(())
    }

    #[test]
    fn a_small_spread_about_a_large_mean_survives() -> Result<()> {
        let x = ((noise(1, &[64, 16, 16, 5]) * 1e-2)? + 100.0)?;
        let (ones, zeros) = (Tensor::ones(5, x.dtype(), x.device())?, noise(2, &[5]).zeros_like()?);
        let (_, moments) = batch_norm(&x, &ones, &zeros, None, how(false, 1))?;
        let exact: Vec<f64> = (0..5)
            .map(|channel| {
                let values: Vec<f64> =
                    flat(&x).iter().skip(channel).step_by(5).map(|x| f64::from(*x)).collect();
                let mean = values.iter().sum::<f64>() / values.len() as f64;
                values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / values.len() as f64
            })
            .collect();
        for (found, exact) in flat(&moments.variance).into_iter().zip(exact) {
            assert!((f64::from(found) / exact - 1.0).abs() < 1e-4, "{found} is not {exact}");
        }
        Ok(())
    }

    #[test]
    fn groups_are_separate_calls() -> Result<()> {
        let [x, gamma, beta, residual] = inputs(&[12, 5, 5, 20]);
        let (y, moments) = batch_norm(&x, &gamma, &beta, Some(&residual), how(true, 3))?;
        let mut means = Vec::new();
        for group in 0..3 {
            let part = |tensor: &Tensor| tensor.narrow(0, group * 4, 4);
            let (alone, of_group) =
                batch_norm(&part(&x)?, &gamma, &beta, Some(&part(&residual)?), how(true, 1))?;
            assert_eq!(flat(&part(&y)?), flat(&alone), "group {group}");
            means.push(of_group.mean);
        }
        assert!(relative_error(&moments.mean, &Tensor::stack(&means, 0)?.mean(0)?) < 1e-6);
        assert_eq!(moments.count, 100);
        Ok(())
    }

    #[test]
    fn inference_is_training_with_the_moments_given() -> Result<()> {
        for residual_too in [false, true] {
            for relu in [false, true] {
                let [x, gamma, beta, residual] = inputs(&[6, 7, 7, 20]);
                let residual = residual_too.then_some(&residual);
                let (trained, moments) = batch_norm(&x, &gamma, &beta, residual, how(relu, 1))?;
                let running = [&moments.mean, &moments.variance];
                let served =
                    batch_norm_inference(&x, &gamma, &beta, running, residual, how(relu, 1))?;
                assert!(relative_error(&served, &trained) < 1e-6);
                assert!(!served.track_op());
            }
        }
        Ok(())
    }

    #[test]
    fn slopes_are_those_of_finite_differences() {
        let inputs = inputs(&[6, 7, 7, 20]);
        assert_slopes(3e-3, &inputs, |x| {
            Ok(batch_norm(&x[0], &x[1], &x[2], Some(&x[3]), how(false, 2))?.0)
        });
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let inputs = inputs(&[33, 28, 28, 20]);
        assert_same_bits_for_any_threads(&inputs, |x| {
            Ok(batch_norm(&x[0], &x[1], &x[2], Some(&x[3]), how(true, 3))?.0)
        });
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let [x, gamma, beta, _] = inputs(&[6, 7, 7, 20]);
        let refusal = |gamma: &Tensor, residual: Option<&Tensor>, groups| {
            let result = batch_norm(&x, gamma, &beta, residual, how(true, groups));
            result.expect_err("it must be refused").to_string()
        };
        assert!(refusal(&x, None, 1).contains("they must be [20]"));
        assert!(refusal(&gamma, Some(&beta), 1).contains("it must be [6, 7, 7, 20]"));
        assert!(refusal(&gamma, None, 4).contains("4 groups"));
        assert!(refusal(&gamma, None, 0).contains("0 groups"));
    }
}
