//! Runs a [`Plan`] on candle tensors: with autograd to train, without to serve.

use super::{BATCH_NORM_EPSILON, Moments, Normalisation, average_pool, batch_norm};
use super::{add_positions, add_token, attention, first_pixel, gelu, layer_norm, linear};
use super::{batch_norm_inference, convolution, max_pool};
use crate::encoder::{Op, Params, Plan, Value};
use candle_core::{Result, Tensor, bail};

/// What a training pass makes.
pub struct Trained {
    /// `[N, D]`, differentiable in the weights.
    pub features: Tensor,
    /// The batch's moments of each batch norm, in the order of [`Plan::moments`].
    pub moments: Vec<Moments>,
}

/// A pass over `images [N, H, W, C]` by the batch's own statistics.
///
/// # Errors
/// Images of another shape than the plan is for.
pub fn forward_train(plan: &Plan, params: &Params, images: &Tensor) -> Result<Trained> {
    let mut moments = Vec::with_capacity(plan.moments.len());
    let features = run(plan, params, images, |op, x, residual| {
        let norm = Normalisation { relu: op.relu, groups: 1, epsilon: BATCH_NORM_EPSILON };
        let (gamma, beta) = (&params.weights[op.gamma], &params.weights[op.beta]);
        let (y, batch_moments) = batch_norm(x, gamma, beta, residual, norm)?;
        moments.push(batch_moments);
        Ok(y)
    })?;
    Ok(Trained { features, moments })
}

/// A pass over `images [N, H, W, C]` by the running statistics: `[N, D]`, without gradients.
///
/// # Errors
/// Images of another shape than the plan is for.
pub fn forward_inference(plan: &Plan, params: &Params, images: &Tensor) -> Result<Tensor> {
    let features = run(plan, params, images, |op, x, residual| {
        let norm = Normalisation { relu: op.relu, groups: 1, epsilon: BATCH_NORM_EPSILON };
        let (gamma, beta) = (&params.weights[op.gamma], &params.weights[op.beta]);
        let running = &params.moments[op.moments];
        let moments = [&running.mean, &running.variance];
        batch_norm_inference(x, &gamma.detach(), &beta.detach(), moments, residual, norm)
    })?;
    Ok(features.detach())
}

/// A batch norm of the plan, as the two passes see it.
struct NormOp {
    gamma: usize,
    beta: usize,
    moments: usize,
    relu: bool,
}

fn run(
    plan: &Plan,
    params: &Params,
    images: &Tensor,
    mut norm: impl FnMut(&NormOp, &Tensor, Option<&Tensor>) -> Result<Tensor>,
) -> Result<Tensor> {
    let last_use = plan.last_readers();
    let mut values: Vec<Option<Tensor>> = vec![Some(images.clone())];
    for (index, op) in plan.ops.iter().enumerate() {
        let value = |Value(at): Value| match values.get(at) {
            Some(Some(tensor)) => Ok(tensor.clone()),
            _ => bail!("operation {index} reads value {at}, which is not there"),
        };
        let weight = |weight: usize| params.weights[weight].as_tensor();
        let output = match *op {
            Op::Convolution { input, weight: kernel, geometry } => {
                convolution(&value(input)?, weight(kernel), geometry)?
            }
            Op::BatchNorm { input, gamma, beta, moments, residual, relu } => {
                let residual = residual.map(value).transpose()?;
                let op = NormOp { gamma, beta, moments, relu };
                norm(&op, &value(input)?, residual.as_ref())?
            }
            Op::Linear { input, weight: matrix, bias, residual } => {
                let product = linear(&value(input)?, weight(matrix), weight(bias))?;
                match residual {
                    Some(residual) => (product + value(residual)?)?,
                    None => product,
                }
            }
            Op::LayerNorm { input, gamma, beta } => {
                layer_norm(&value(input)?, weight(gamma), weight(beta))?
            }
            Op::Gelu { input } => gelu(&value(input)?)?,
            Op::Attention { input, heads } => attention(&value(input)?, heads)?,
            Op::Positions { input, bias } => add_positions(&value(input)?, weight(bias))?,
            Op::Tokens { input, positions } => add_token(&value(input)?, weight(positions))?,
            Op::FirstPixel { input } => first_pixel(&value(input)?)?,
            Op::MaxPool { input } => max_pool(&value(input)?)?,
            Op::GlobalAveragePool { input } => average_pool(&value(input)?)?,
        };
        // Serving frees each activation after its last use; training's graph keeps what it needs.
        for (at, value) in values.iter_mut().enumerate() {
            if last_use[at].is_none_or(|last| last <= index) {
                *value = None;
            }
        }
        values.push(Some(output));
    }
    match values.pop() {
        Some(Some(features)) => Ok(features),
        _ => bail!("a plan has at least one operation"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::under_test;
    use crate::encoder::Architecture;

    fn images(n: usize, side: usize) -> Tensor {
        let len = n * side * side * 3;
        let values = (0..len).map(|i| ((i * 7919) % 1009) as f32 / 504.5 - 1.0).collect();
        Tensor::from_vec(values, (n, side, side, 3), &under_test()).unwrap()
    }

    fn params(plan: &Plan) -> Params {
        Params::init(&plan.weights, &plan.moments, [1, 0], &under_test()).unwrap()
    }

    #[test]
    fn every_architecture_trains_and_serves_odd_shapes() {
        for architecture in Architecture::ALL {
            let plan = architecture.plan();
            let params = params(&plan);
            for (n, side) in [(2, 28), (3, 33)] {
                let trained = forward_train(&plan, &params, &images(n, side)).unwrap();
                assert_eq!(trained.features.dims(), [n, plan.feature_dim]);
                assert_eq!(trained.moments.len(), plan.moments.len());
                let served = forward_inference(&plan, &params, &images(n, side)).unwrap();
                assert_eq!(served.dims(), [n, plan.feature_dim]);
            }
        }
    }

    #[test]
    fn a_step_along_the_gradient_lowers_the_loss_by_as_much_as_it_says() {
        let plan = Architecture::SlimResnet.plan();
        let params = params(&plan);
        let images = images(4, 16);
        let target: Vec<f32> = (0..4 * plan.feature_dim).map(|i| (i % 5) as f32).collect();
        let target = Tensor::from_vec(target, (4, plan.feature_dim), &under_test()).unwrap();
        let loss = || {
            let features = forward_train(&plan, &params, &images).unwrap().features;
            (features - &target).unwrap().sqr().unwrap().mean_all().unwrap()
        };
        let before = loss();
        let gradients = before.backward().unwrap();
        let squared = |weight: &candle_core::Var| -> f64 {
            let gradient = gradients.get(weight).expect("a gradient").sqr().unwrap();
            f64::from(gradient.sum_all().unwrap().to_scalar::<f32>().unwrap())
        };
        let norm_squared: f64 = params.weights.iter().map(squared).sum();
        let before = f64::from(before.to_scalar::<f32>().unwrap());
        let rate = 1e-3 * before / norm_squared;
        for weight in &params.weights {
            let step = (gradients.get(weight).unwrap() * rate).unwrap();
            weight.set(&(weight.as_tensor() - step).unwrap()).unwrap();
        }
        let fell = before - f64::from(loss().to_scalar::<f32>().unwrap());
        let predicted = rate * norm_squared;
        assert!((fell / predicted - 1.0).abs() < 0.1, "fell {fell}, predicted {predicted}");
    }

    #[test]
    fn serving_is_a_function_of_each_image_alone() {
        let plan = Architecture::SlimResnet.plan();
        let params = params(&plan);
        let all = forward_inference(&plan, &params, &images(3, 28)).unwrap();
        let one = images(3, 28).narrow(0, 1, 1).unwrap().contiguous().unwrap();
        let alone = forward_inference(&plan, &params, &one).unwrap();
        let all = all.narrow(0, 1, 1).unwrap();
        let difference = (all - alone).unwrap().abs().unwrap().max_all().unwrap();
        assert!(difference.to_scalar::<f32>().unwrap() < 1e-5);
    }
}
