//! Principal components: the two directions in which embeddings differ most.

use super::Embeddings;
use nalgebra::DMatrix;

/// Embeddings on their first two principal axes.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Plane {
    /// One point an embedding; the mean is at the origin.
    pub(super) points: Vec<[f64; 2]>,
    /// The share of all variance along each axis.
    pub(super) shares: [f64; 2],
}

/// Projects `embeddings`, `[N, D]`, on the two axes of their largest variance (Pearson 1901), by the
/// singular values of the centred matrix. An axis points to where the farthest point lies, so that the
/// plane is a function of the embeddings. Meant for some hundred rows: it takes N D min(N, D)
/// products.
pub(super) fn plane(embeddings: &Embeddings) -> Plane {
    let (n, dim) = (embeddings.len(), embeddings.dim());
    let mut centred = DMatrix::from_fn(n, dim, |i, j| f64::from(embeddings.row(i)[j])); // [N, D]
    if n == 0 {
        return Plane { points: vec![], shares: [0.0; 2] };
    }
    for mut column in centred.column_iter_mut() {
        let mean = column.mean();
        column.add_scalar_mut(-mean);
    }
    let all: f64 = centred.norm_squared();
    let decomposed = centred.svd(true, false); // largest first
    let left = decomposed.u.expect("it was asked for"); // [N, min(N, D)]
    let mut plane = Plane { points: vec![[0.0; 2]; n], shares: [0.0; 2] };
    for axis in 0..2.min(left.ncols()) {
        let singular = decomposed.singular_values[axis];
        let column = left.column(axis);
        let farthest = column[column.icamax()];
        let scale = if farthest < 0.0 { -singular } else { singular };
        for (point, value) in plane.points.iter_mut().zip(&column) {
            point[axis] = value * scale;
        }
        plane.shares[axis] = if all > 0.0 { singular * singular / all } else { 0.0 };
    }
    plane
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::{self, Purpose};
    use rand::RngExt;

    #[test]
    fn points_of_a_plane_are_found_in_it() {
        // 3 u along one axis and v along another of a turned frame in 5 dimensions.
        let (a, b) = ([0.6, 0.0, 0.8, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0, 0.0]);
        let corners = [(4.0, 1.0), (-4.0, 1.0), (4.0, -1.0), (-4.0, -1.0), (0.0, 0.0)];
        let row = |(u, v): (f32, f32)| (0..5).map(move |j| 7.0 + u * a[j] + v * b[j]);
        let embeddings = Embeddings::new(corners.into_iter().flat_map(row).collect(), 5).unwrap();
        let plane = plane(&embeddings);
        for (point, (u, v)) in plane.points.iter().zip(corners) {
            assert!((point[0].abs() - f64::from(u).abs()).abs() < 1e-5, "{plane:?}");
            assert!((point[1].abs() - f64::from(v).abs()).abs() < 1e-5, "{plane:?}");
        }
        assert!((plane.shares[0] - 16.0 / 17.0).abs() < 1e-6);
        assert!((plane.shares[1] - 1.0 / 17.0).abs() < 1e-6);
    }

    #[test]
    fn variances_along_the_axes_fall_and_are_their_shares() {
        let mut rng = seed::rng(1, Purpose::Evaluate, &[]);
        for (n, dim) in [(40, 6), (6, 40), (1, 3), (3, 1)] {
            let values = (0..n * dim).map(|_| rng.random_range(-1.0..1.0)).collect();
            let embeddings = Embeddings::new(values, dim).unwrap();
            let plane = plane(&embeddings);
            let sum = |axis: usize| plane.points.iter().map(|point| point[axis]).sum::<f64>();
            let squares =
                |axis: usize| -> f64 { plane.points.iter().map(|point| point[axis].powi(2)).sum() };
            assert!(sum(0).abs() < 1e-9 && sum(1).abs() < 1e-9);
            assert!(squares(0) >= squares(1));
            assert!(plane.shares.iter().sum::<f64>() <= 1.0 + 1e-9);
            if plane.shares[1] > 0.0 {
                let ratio = plane.shares[0] / plane.shares[1];
                assert!((squares(0) / squares(1) / ratio - 1.0).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn nothing_and_a_single_point_have_no_axes() {
        let none = plane(&Embeddings::new(vec![], 3).unwrap());
        assert_eq!(none, Plane { points: vec![], shares: [0.0; 2] });
        let same = plane(&Embeddings::new([1.0, 2.0, 3.0].repeat(4), 3).unwrap());
        assert_eq!(same, Plane { points: vec![[0.0; 2]; 4], shares: [0.0; 2] });
    }
}
