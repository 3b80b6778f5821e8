//! The target's pass: views through the moving average of the encoder, in parts that are normalised
//! apart.

use super::backbone::{Backbone, Shadow};
use crate::seed::{self, Purpose};
use candle_core::{Result, Tensor, bail};
use rand::seq::SliceRandom;

/// How a batch goes through the target.
#[derive(Clone, Copy, Debug)]
pub(super) struct TargetPass {
    /// Images in the batch, `N`.
    pub(super) n_images: usize,
    /// Views of each that the target sees, `V`.
    pub(super) n_views: usize,
    /// Their side.
    pub(super) side_px: usize,
    /// Parts that are normalised apart.
    pub(super) norm_groups: usize,
    /// The run's seed and the step, which seed who is in which part.
    pub(super) seed: [u64; 2],
}

impl TargetPass {
    /// The features `[V * N, D]` of `views`, flat `[V * N, H, W, C]`, in their order.
    ///
    /// # Errors
    /// A number of images that the groups don't divide, or whatever the device reports.
    pub(super) fn run(&self, encoder: &mut dyn Backbone, views: Vec<f32>) -> Result<Tensor> {
        if self.norm_groups == 1 {
            return encoder.forward_shadow(Shadow::Target, views, self.side_px);
        }
        let groups = self.groups()?;
        let view_len = views.len() / (self.n_views * self.n_images).max(1);
        let mut features = Vec::with_capacity(groups.len());
        for rows in &groups {
            let mut part = Vec::with_capacity(rows.len() * view_len);
            for row in rows {
                part.extend_from_slice(&views[row * view_len..][..view_len]);
            }
            features.push(encoder.forward_shadow(Shadow::Target, part, self.side_px)?); // [V * N / G, D]
        }
        let features = Tensor::cat(&features, 0)?; // [V * N, D], group after group
        let mut places = vec![0u32; self.n_views * self.n_images];
        for (place, row) in groups.iter().flatten().enumerate() {
            places[*row] = place as u32;
        }
        let places = Tensor::from_vec(places, self.n_views * self.n_images, features.device())?;
        features.index_select(&places, 0)
    }

    /// The rows of each part. Images are dealt at random into as many piles as there are parts; of
    /// pile p, part p gets the first views, part p + 1 the second ones, and so on round, so that
    /// views of one image meet in a part only where there are more views than parts.
    fn groups(&self) -> Result<Vec<Vec<usize>>> {
        let Self { n_images, n_views, norm_groups, .. } = *self;
        if norm_groups == 0 || n_images % norm_groups != 0 {
            bail!("{n_images} images can't be normalised in {norm_groups} groups of equal size")
        }
        let [seed, step] = self.seed;
        let mut images: Vec<usize> = (0..n_images).collect();
        images.shuffle(&mut seed::rng(seed, Purpose::NormGroups, &[step]));
        let mut groups = vec![vec![]; norm_groups];
        for view in 0..n_views {
            for (pile, images) in images.chunks_exact(n_images / norm_groups).enumerate() {
                let rows = images.iter().map(|image| view * n_images + image);
                groups[(pile + view) % norm_groups].extend(rows);
            }
        }
        Ok(groups)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoder::NamedArrays;
    use candle_core::Device;
    use proptest::prelude::*;

    fn pass(n_images: usize, n_views: usize, norm_groups: usize, step: u64) -> TargetPass {
        TargetPass { n_images, n_views, side_px: 1, norm_groups, seed: [1, step] }
    }

    proptest! {
        #[test]
        fn every_view_is_in_one_part_and_no_image_twice(
            images_per_group in 1usize..9, n_views in 1usize..4, more in 0usize..4, step: u64,
        ) {
            let norm_groups = n_views + more;
            let n_images = images_per_group * norm_groups;
            let groups = pass(n_images, n_views, norm_groups, step).groups().unwrap();
            let mut all: Vec<usize> = groups.iter().flatten().copied().collect();
            all.sort_unstable();
            prop_assert!(all.into_iter().eq(0..n_images * n_views));
            for group in groups {
                prop_assert_eq!(group.len(), images_per_group * n_views);
                let mut images: Vec<usize> = group.iter().map(|row| row % n_images).collect();
                images.sort_unstable();
                images.dedup();
                prop_assert_eq!(images.len(), images_per_group * n_views);
            }
        }
    }

    #[test]
    fn parts_change_from_step_to_step_and_are_the_same_for_one() {
        let groups = |step| pass(64, 2, 4, step).groups().unwrap();
        assert_eq!(groups(3), groups(3));
        assert_ne!(groups(3), groups(4));
    }

    /// Its features are a view's own number, and how many views were shown with it.
    struct Counts;

    impl Backbone for Counts {
        fn forward(&mut self, _views: Vec<f32>, _side_px: usize) -> Result<Tensor> {
            bail!("not the target")
        }
        fn forward_shadow(
            &mut self,
            _: Shadow,
            views: Vec<f32>,
            _side_px: usize,
        ) -> Result<Tensor> {
            let n_views = views.len() / 3;
            let rows = views.chunks(3).flat_map(|view| [view[0], n_views as f32]);
            Tensor::from_vec(rows.collect(), (n_views, 2), &Device::Cpu)
        }
        fn backward(&mut self, _gradients: &[Tensor]) -> Result<()> {
            bail!("not a pass")
        }
        fn squared_norm(&self) -> Result<f64> {
            bail!("not a pass")
        }
        fn step(&mut self, _rate: f64, _gradient_scale: f64) -> Result<()> {
            bail!("not a pass")
        }
        fn follow(&mut self, _shadow: Shadow, _momentum: f64) -> Result<()> {
            bail!("not a pass")
        }
        fn measure(&mut self, _views: Vec<f32>, _side_px: usize, _share: f64) -> Result<()> {
            bail!("not a pass")
        }
        fn served(&self) -> Result<NamedArrays> {
            bail!("not a pass")
        }
        fn to_arrays(&self) -> Result<NamedArrays> {
            bail!("not a pass")
        }
        fn load_arrays(&mut self, _arrays: &NamedArrays) -> Result<()> {
            bail!("not a pass")
        }
    }

    #[test]
    fn features_come_back_in_the_order_of_the_views() {
        let views: Vec<f32> = (0..24).flat_map(|row| [row as f32, 0.5, 0.5]).collect();
        for (norm_groups, together) in [(1, 24.0), (3, 8.0), (4, 6.0)] {
            let features = pass(12, 2, norm_groups, 5).run(&mut Counts, views.clone()).unwrap();
            let expected: Vec<[f32; 2]> = (0..24).map(|row| [row as f32, together]).collect();
            assert_eq!(features.to_vec2::<f32>().unwrap(), expected);
        }
        let error = pass(12, 2, 5, 5).run(&mut Counts, views).unwrap_err().to_string();
        assert!(error.contains("12 images") && error.contains("5 groups"), "{error}");
    }
}
