//! Weights that serve: packed once, each batch norm folded into the convolution before it.

use super::layout::{Layout, Stage};
use crate::encoder::{HostParams, Op, Plan, Value};
use crate::ops::candle::BATCH_NORM_EPSILON;
use crate::ops::isa::Isa;

/// What an operation has of the encoder's numbers.
pub(super) enum Weights {
    /// The weight of a product, and what is added to it: zero past the last output up to a whole
    /// block.
    Product {
        packed: Vec<f32>,
        bias: Vec<f32>,
    },
    /// A layer norm's scale and shift.
    Affine {
        gamma: Vec<f32>,
        beta: Vec<f32>,
    },
    /// What goes with positions, or they themselves.
    Bias(Vec<f32>),
    Nothing,
}

/// Those of operation `index`; a convolution has the norm after it in its own: the weight by
/// gamma / deviation, and what that leaves.
pub(super) fn fold(
    isa: Isa,
    plan: &Plan,
    params: &HostParams,
    layout: &Layout,
    index: usize,
) -> Weights {
    let values = |weight| params.weight(weight).to_vec();
    let outputs = layout.sizes[index + 1].channels;
    let mut bias = vec![0.0; outputs.next_multiple_of(isa.block())];
    let weight = match plan.ops[index] {
        Op::LayerNorm { gamma, beta, .. } => {
            return Weights::Affine { gamma: values(gamma), beta: values(beta) };
        }
        Op::Positions { bias, .. } => return Weights::Bias(values(bias)),
        Op::Tokens { positions, .. } => return Weights::Bias(values(positions)),
        Op::Linear { weight, bias: shift, .. } => {
            bias[..outputs].copy_from_slice(params.weight(shift));
            values(weight)
        }
        Op::Convolution { weight, .. } => {
            let mut weight = values(weight);
            fold_norm(plan, params, index, &mut weight, &mut bias[..outputs]);
            weight
        }
        _ => return Weights::Nothing,
    };
    let Stage::Product(convolution) = &layout.stages[index] else { return Weights::Nothing };
    let mut packed = vec![0.0; convolution.forward_len()];
    convolution.pack(&weight, &mut packed);
    Weights::Product { packed, bias }
}

/// Puts the norm that follows convolution `index`, if one does, into its weight and bias.
fn fold_norm(plan: &Plan, params: &HostParams, index: usize, weight: &mut [f32], bias: &mut [f32]) {
    let Some(&Op::BatchNorm { input, gamma, beta, moments, .. }) = plan.ops.get(index + 1) else {
        return;
    };
    if input != Value(index + 1) {
        return;
    }
    let (gamma, beta) = (params.weight(gamma), params.weight(beta));
    let running = &params.moments[moments];
    let scales = running.variance.iter().zip(gamma).map(|(&variance, &gamma)| {
        f64::from(gamma) / (f64::from(variance) + BATCH_NORM_EPSILON).sqrt()
    });
    let scales: Vec<f64> = scales.collect();
    for (channel, scale) in scales.iter().enumerate() {
        let mean = f64::from(running.mean[channel]);
        bias[channel] = (f64::from(beta[channel]) - mean * scale) as f32;
    }
    for row in weight.chunks_exact_mut(scales.len()) {
        for (weight, scale) in row.iter_mut().zip(&scales) {
            *weight = (f64::from(*weight) * scale) as f32;
        }
    }
}
