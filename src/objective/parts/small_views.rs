//! Multi-crop (Caron et al., "SwAV", arXiv 2006.09882, section 3.2): beside two large views, small
//! ones that show little of an image and cost little.
//!
//! In simclr, moco-v3 and byol. `emp` is made of many crops anyway; the others are written for views of one side.

use crate::augment::{Side, ViewGroup};
use crate::objective::{SeenBy, Views};
use crate::setting::{Invalid, ordered_pair, within};
use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};

/// `[objective.small_views]`: how many, and what they are like.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Small views of each image; 0 is none.
    pub count: usize,
    /// Their side; unset, half of that of the large ones.
    pub side_px: Option<usize>,
    /// Least and largest share of the area that they show. SwAV has .05 to .14 of photos; small
    /// images have less to show.
    pub crop_area: [f32; 2],
}

impl Default for Config {
    fn default() -> Self {
        // The area is a guess.
        Self { count: 0, side_px: None, crop_area: [0.1, 0.3] }
    }
}

impl Config {
    /// Checks every value.
    ///
    /// # Errors
    /// The first value that is not allowed, by key.
    pub fn validate(&self) -> std::result::Result<(), Invalid> {
        within("objective.small_views.count", self.count, 0..=64, "from 0 to 64")?;
        if let Some(side_px) = self.side_px {
            within("objective.small_views.side_px", side_px, 8..=1024, "from 8 to 1024")?;
        }
        let allowed = "two shares of the area above 0 and up to 1, the smaller one first";
        ordered_pair("objective.small_views.crop_area", self.crop_area, 0.001..=1.0, allowed)
    }

    /// Their side, beside large views of the usual one.
    pub fn side(&self) -> Side {
        self.side_px.map_or(Side::Half, Side::Px)
    }

    /// Two large views that `seen_by` sees, and the small ones, which the encoder alone sees.
    pub fn beside_large(&self, seen_by: SeenBy) -> Vec<Views> {
        let large = Views { seen_by, ..Views::alike(2) };
        let group = ViewGroup {
            side: self.side(),
            crop_area: Some(self.crop_area),
            ..ViewGroup::alike(self.count)
        };
        let small = Views { group, seen_by: SeenBy::Encoder };
        if self.count == 0 { vec![large] } else { vec![large, small] }
    }
}

/// The mean of `loss` over each of `views` with each of `targets` that is of another view: the
/// targets' views are the first of `views`.
///
/// # Errors
/// What `loss` reports.
pub fn mean_over_pairs(
    views: &[Tensor],
    targets: &[Tensor],
    loss: impl Fn(&Tensor, &Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let mut losses = vec![];
    for (view_index, view) in views.iter().enumerate() {
        for (target_index, target) in targets.iter().enumerate() {
            if view_index != target_index {
                losses.push(loss(view, target)?);
            }
        }
    }
    Tensor::stack(&losses, 0)?.mean_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn a_view_is_paired_with_every_target_but_its_own() {
        let scalars = |values: &[f32]| -> Vec<Tensor> {
            values.iter().map(|value| Tensor::new(*value, &Device::Cpu).unwrap()).collect()
        };
        // 1 * 20 + 2 * 10 + 3 * (10 + 20), of four pairs.
        let (views, targets) = (scalars(&[1.0, 2.0, 3.0]), scalars(&[10.0, 20.0]));
        let mean = mean_over_pairs(&views, &targets, |view, target| view * target).unwrap();
        assert_eq!(mean.to_scalar::<f32>().unwrap(), 130.0 / 4.0);
    }

    #[test]
    fn small_views_are_for_the_encoder_alone() {
        let config = Config { count: 3, side_px: Some(8), crop_area: [0.1, 0.2] };
        let [large, small] = config.beside_large(SeenBy::Both)[..] else { panic!("two groups") };
        assert_eq!((large.group, large.seen_by), (ViewGroup::alike(2), SeenBy::Both));
        assert_eq!((small.group.views_per_image, small.seen_by), (3, SeenBy::Encoder));
        assert_eq!((small.group.side, small.group.crop_area), (Side::Px(8), Some([0.1, 0.2])));
        assert_eq!(Config::default().beside_large(SeenBy::Encoder), [Views::alike(2)]);
    }
}
