//! Rows of views: unit length, partners, and how likely a classifier finds the right one.

use candle_core::{D, DType, Device, Result, Tensor, bail};
use candle_nn::ops::log_softmax;

/// Added to a logit that must not count. It is finite, as infinity times zero is no number.
pub const EXCLUDED: f64 = -1e9;

/// Rows of unit length; a zero row stays zero.
///
/// # Errors
/// Whatever the device reports.
pub fn normalise(rows: &Tensor) -> Result<Tensor> {
    let norm = (rows.sqr()?.sum_keepdim(D::Minus1)? + 1e-12)?.sqrt()?;
    rows.broadcast_div(&norm)
}

/// The `[N, P]` rows of each of `n_views` views, out of `[n_views * N, P]`.
///
/// # Errors
/// A number of rows that the views don't divide.
pub fn per_view(rows: &Tensor, n_views: usize) -> Result<Vec<Tensor>> {
    let (n_rows, _) = rows.dims2()?;
    if n_views == 0 || n_rows % n_views != 0 {
        bail!("{n_views} views of each image can't have {n_rows} rows")
    }
    rows.chunk(n_views, 0)
}

/// `[2N, P]` with the first views' rows and the second views' exchanged: row i of the result
/// belongs to the other view of row i's image.
///
/// # Errors
/// An odd number of rows.
pub fn partners(rows: &Tensor) -> Result<Tensor> {
    let views = per_view(rows, 2)?;
    Tensor::cat(&[&views[1], &views[0]], 0)
}

/// The mean over `unit [M, P]` of -log the share that their `own [M, P]` has against the
/// vectors `others [K, P]`; `excluded [M, K]` is added to the others' logits.
///
/// # Errors
/// Shapes that don't fit.
pub fn info_nce(
    unit: &Tensor,
    own: &Tensor,
    (others, excluded): (&Tensor, &Tensor),
    temperature: f64,
) -> Result<Tensor> {
    let (rows, _) = unit.dims2()?;
    let own = (unit.mul(&own.detach())?.sum_keepdim(D::Minus1)? / temperature)?; // [M, 1]
    let others = (unit.matmul(&others.detach().t()?)? / temperature)?; // [M, K]
    cross_entropy(&Tensor::cat(&[&own, &(others + excluded)?], 1)?, vec![0; rows])
}

/// The mean over rows of `-log softmax(logits)[label]`, logits `[M, C]`.
///
/// # Errors
/// Another number of labels than rows, or a label beyond the columns.
pub fn cross_entropy(logits: &Tensor, labels: Vec<u32>) -> Result<Tensor> {
    let (n_rows, _) = logits.dims2()?;
    let labels = Tensor::from_vec(labels, (n_rows, 1), logits.device())?;
    log_softmax(logits, D::Minus1)?.gather(&labels, 1)?.mean_all()?.neg()
}

/// `[N, N]` that excludes the diagonal when it is added to logits.
///
/// # Errors
/// Whatever the device reports.
pub fn off_diagonal(n_rows: usize, device: &Device) -> Result<Tensor> {
    Tensor::eye(n_rows, DType::F32, device)? * EXCLUDED
}
