//! Alignment: how far apart two views of one image lie.
//!
//! ```text
//! alignment = mean over images and pairs of views v < w of |z_v - z_w|^2
//! ```
//!
//! with embeddings at unit length: 0 where all views of an image are one point, 2 where they are
//! unrelated. Source: Wang and Isola, "Understanding Contrastive Representation Learning through
//! Alignment and Uniformity on the Hypersphere" (arXiv 2005.10242, section 4.2, alpha = 2).

use super::{UnitRows, dot};

/// The alignment of `views`, each the same images in the same order; none with fewer than two views.
pub fn alignment(views: &[UnitRows]) -> Option<f64> {
    let (mut sum, mut n_pairs) = (0.0, 0_usize);
    for (index, first) in views.iter().enumerate() {
        for second in &views[index + 1..] {
            for (a, b) in first.rows().zip(second.rows()) {
                sum += f64::from(dot(a, a) + dot(b, b) - 2.0 * dot(a, b));
                n_pairs += 1;
            }
        }
    }
    (n_pairs > 0).then(|| sum / n_pairs as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_that_agree_are_at_nothing_and_those_at_right_angles_at_two() {
        let rows = |values: [f32; 4]| UnitRows::new(values.to_vec(), 2);
        let (x, y) = (rows([1.0, 0.0, 0.0, 3.0]), rows([0.0, 2.0, 1.0, 0.0]));
        assert_eq!(alignment(&[x.clone(), x.clone()]), Some(0.0));
        assert_eq!(alignment(&[x.clone(), y.clone()]), Some(2.0));
        // Two of the three pairs differ.
        let three = alignment(&[x.clone(), x.clone(), y]).unwrap();
        assert!((three - 4.0 / 3.0).abs() < 1e-6);
        assert_eq!(alignment(&[x]), None);
    }
}
