//! The operations of transformers on `[N, H, W, C]`, composed of candle's: what other devices run,
//! and the oracle of the native ones.

use super::LAYER_NORM_EPSILON;
use crate::ops::positions;
use candle_core::{D, Result, Tensor, bail};
use candle_nn::ops::softmax;

/// `x W + b`: `[N, H, W, O]`, `weight [I, O]`, `bias [O]`.
///
/// # Errors
/// Shapes that do not fit.
pub fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (images, height, width, channels) = x.dims4()?;
    let rows = x.reshape((images * height * width, channels))?;
    let product = rows.matmul(weight)?.broadcast_add(bias)?; // [N H W, O]
    product.reshape((images, height, width, bias.dim(0)?))
}

/// Each pixel less its mean over its deviation, times `gamma [C]`, plus `beta [C]`.
///
/// # Errors
/// Shapes that do not fit.
pub fn layer_norm(x: &Tensor, gamma: &Tensor, beta: &Tensor) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?; // [N, H, W, 1]
    let normed = centred.broadcast_div(&(variance + LAYER_NORM_EPSILON)?.sqrt()?)?;
    normed.broadcast_mul(gamma)?.broadcast_add(beta)
}

/// `x Phi(x)`.
///
/// # Errors
/// Whatever candle reports.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    x.gelu_erf()
}

/// `softmax(Q K^T / sqrt(D / heads)) V` of `joined [N, H, W, 3 D]`, for each of `heads`:
/// `[N, H, W, D]`.
///
/// # Errors
/// Channels that heads do not divide.
pub fn attention(joined: &Tensor, heads: usize) -> Result<Tensor> {
    let (images, height, width, channels) = joined.dims4()?;
    if heads == 0 || channels % (3 * heads) != 0 {
        bail!("{channels} channels are not 3 x {heads} heads")
    }
    let (tokens, of_head) = (height * width, channels / 3 / heads);
    let parts = joined.reshape((images, tokens, 3, heads, of_head))?;
    let part = |part: usize| -> Result<Tensor> {
        // [N, heads, T, D / heads]
        parts.narrow(2, part, 1)?.squeeze(2)?.transpose(1, 2)?.contiguous()
    };
    let (queries, keys, values) = (part(0)?, part(1)?, part(2)?);
    let scores = queries.matmul(&keys.t()?.contiguous()?)?; // [N, heads, T, T]
    let shares = softmax(&(scores / (of_head as f64).sqrt())?, D::Minus1)?;
    let mixed = shares.matmul(&values)?.transpose(1, 2)?.contiguous()?; // [N, T, heads, D / heads]
    mixed.reshape((images, height, width, channels / 3))
}

/// `x` plus `bias [D]` plus each pixel's place.
///
/// # Errors
/// Shapes that do not fit.
pub fn add_positions(x: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (_, height, width, channels) = x.dims4()?;
    let table = positions::table([height, width], channels);
    let table = Tensor::from_vec(table, (height, width, channels), x.device())?;
    x.broadcast_add(&table)?.broadcast_add(bias)
}

/// A class token before the pixels of `x`, in a row, each with its position of `positions [T, D]`:
/// `[N, 1, T, D]`.
///
/// # Errors
/// Another number of pixels than T - 1.
pub fn add_token(x: &Tensor, positions: &Tensor) -> Result<Tensor> {
    let (images, height, width, channels) = x.dims4()?;
    let (tokens, pixels) = (positions.dim(0)?, height * width);
    if tokens != pixels + 1 {
        bail!("{tokens} positions are not those of {pixels} patches and a class token")
    }
    let patches = x.reshape((images, pixels, channels))?;
    let patches = patches.broadcast_add(&positions.narrow(0, 1, pixels)?)?;
    let token = positions.narrow(0, 0, 1)?.broadcast_as((images, 1, channels))?;
    Tensor::cat(&[&token, &patches], 1)?.reshape((images, 1, tokens, channels))
}

/// The first pixel of each image of `x [N, H, W, C]`: `[N, C]`.
///
/// # Errors
/// Tensors of other axes.
pub fn first_pixel(x: &Tensor) -> Result<Tensor> {
    let (images, _, _, channels) = x.dims4()?;
    x.narrow(1, 0, 1)?.narrow(2, 0, 1)?.contiguous()?.reshape((images, channels))
}

#[cfg(test)]
mod tests {
    use super::super::oracle::{assert_slopes, noise};
    use super::*;

    /// Candle cuts some gradients silently; these must be whole.
    #[test]
    fn gradients_are_those_of_finite_differences() {
        let x = noise(1, &[2, 3, 2, 8]);
        let (weight, bias) = (noise(2, &[8, 5]), noise(3, &[5]));
        assert_slopes(1e-2, &[x.clone(), weight, bias], |t| linear(&t[0], &t[1], &t[2]));
        let affine = [noise(4, &[8]), noise(5, &[8])];
        let inputs = [x.clone(), affine[0].clone(), affine[1].clone()];
        assert_slopes(1e-2, &inputs, |t| layer_norm(&t[0], &t[1], &t[2]));
        assert_slopes(1e-2, std::slice::from_ref(&x), |t| gelu(&t[0]));
        assert_slopes(1e-2, &[noise(6, &[2, 3, 2, 24])], |t| attention(&t[0], 2));
        assert_slopes(1e-2, &[x.clone(), noise(7, &[8])], |t| add_positions(&t[0], &t[1]));
        assert_slopes(1e-2, &[x.clone(), noise(8, &[7, 8])], |t| add_token(&t[0], &t[1]));
        assert_slopes(1e-2, std::slice::from_ref(&x), |t| first_pixel(&t[0]));
        assert!(add_token(&x, &noise(9, &[6, 8])).is_err());
    }

    /// With equal keys every token's share is the same: attention is the mean of the values.
    #[test]
    fn attention_among_equals_is_their_mean() {
        let values = noise(1, &[1, 2, 3, 4]);
        let joined =
            Tensor::cat(&[&values.zeros_like().unwrap(), &values.ones_like().unwrap(), &values], 3);
        let found = attention(&joined.unwrap(), 2).unwrap();
        let expected = values.mean_keepdim((1, 2)).unwrap().broadcast_as(found.shape()).unwrap();
        let error = (found - expected).unwrap().abs().unwrap().max_all().unwrap();
        assert!(error.to_scalar::<f32>().unwrap() < 1e-6);
    }
}
