//! Solarisation: bright values are inverted.
//!
//! BYOL (arXiv 2006.07733, appendix B): `v` becomes `1 - v` where it is at least the threshold.

use super::{Augmentation, Canvas};
use crate::seed::Rng;

/// Inverts what is bright.
pub(super) struct Solarise {
    /// The least value that is inverted.
    pub(super) threshold: f32,
}

impl Augmentation for Solarise {
    fn apply(&mut self, canvas: &mut Canvas, _rng: &mut Rng) {
        for value in canvas.values_mut() {
            *value = if *value >= self.threshold { 1.0 - *value } else { *value };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::{Purpose, rng};

    #[test]
    fn values_from_the_threshold_on_are_inverted() {
        let mut canvas = Canvas::new(1);
        canvas.values_mut().copy_from_slice(&[0.25, 0.5, 1.0]);
        Solarise { threshold: 0.5 }.apply(&mut canvas, &mut rng(1, Purpose::View, &[]));
        assert_eq!(canvas.values(), [0.25, 0.5, 0.0]);
        canvas.values_mut().copy_from_slice(&[0.25, 0.5, 0.75]);
        Solarise { threshold: 0.6 }.apply(&mut canvas, &mut rng(1, Purpose::View, &[]));
        assert_eq!(canvas.values(), [0.25, 0.5, 0.25]);
    }
}
