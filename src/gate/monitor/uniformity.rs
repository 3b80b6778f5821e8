//! Uniformity: how evenly embeddings fill the sphere.
//!
//! ```text
//! uniformity = ln mean over pairs i < j of exp(-2 |z_i - z_j|^2)
//! ```
//!
//! with embeddings at unit length: 0 where all are one point, near -4 where they are unrelated in many
//! dimensions. Source: Wang and Isola (arXiv 2005.10242, section 4.2, t = 2).

use super::{UnitRows, dot};

/// The uniformity of `rows`; none with fewer than two.
pub fn uniformity(rows: &UnitRows) -> Option<f64> {
    let all: Vec<&[f32]> = rows.rows().collect();
    let (mut sum, mut n_pairs) = (0.0, 0_usize);
    for (index, a) in all.iter().enumerate() {
        for b in &all[index + 1..] {
            let squared = f64::from(dot(a, a) + dot(b, b) - 2.0 * dot(a, b));
            sum += (-2.0 * squared).exp();
            n_pairs += 1;
        }
    }
    (n_pairs > 0).then(|| (sum / n_pairs as f64).ln())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_has_none_and_right_angles_have_four() {
        let axes: Vec<f32> = (0..16).map(|i| if i % 5 == 0 { 1.0 } else { 0.0 }).collect();
        assert!((uniformity(&UnitRows::new(axes, 4)).unwrap() + 4.0).abs() < 1e-6);
        let point = UnitRows::new(vec![2.0; 12], 4);
        assert!(uniformity(&point).unwrap().abs() < 1e-6);
        assert_eq!(uniformity(&UnitRows::new(vec![1.0; 4], 4)), None);
    }
}
