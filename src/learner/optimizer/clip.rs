//! The length of gradients on tensors, and what cuts it.

use crate::encoder::Params;
use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, bail};

/// The sum of the squares of the gradients of `params`.
///
/// # Errors
/// A weight without a gradient, by name.
pub fn squared_norm(params: &Params, gradients: &GradStore) -> Result<f64> {
    let mut sum = 0.0;
    for (spec, weight) in params.specs.iter().zip(&params.weights) {
        let Some(gradient) = gradients.get(weight) else {
            bail!("weight {} has no gradient", spec.name)
        };
        sum += squares(gradient)?;
    }
    Ok(sum)
}

/// Multiplies the gradients of `params` by `factor`.
///
/// # Errors
/// Whatever the device reports.
pub fn scale(params: &Params, gradients: &mut GradStore, factor: f64) -> Result<()> {
    for weight in &params.weights {
        if let Some(gradient) = gradients.remove(weight) {
            gradients.insert(weight, (gradient * factor)?);
        }
    }
    Ok(())
}

fn squares(gradient: &Tensor) -> Result<f64> {
    Ok(f64::from(gradient.sqr()?.sum_all()?.to_scalar::<f32>()?))
}
