//! How the views of a batch lie, and which of them an encoder sees in one pass.

use crate::augment::{Side, ViewGroup};
use crate::objective::{SeenBy, Views};
use candle_core::{Result, Tensor, bail};

/// The groups of views that an objective asks for, in the order in which they lie.
#[derive(Clone, Debug)]
pub(super) struct Arrangement {
    views: Vec<Views>,
    side_px: usize,
}

/// Groups of one side, which an encoder sees together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pass {
    /// Their side.
    pub(super) side_px: usize,
    /// Which they are, in order.
    groups: Vec<usize>,
}

impl Arrangement {
    /// `views`, of `side_px` where they have no side of their own.
    pub(super) fn new(views: Vec<Views>, side_px: usize) -> Self {
        Self { views, side_px }
    }

    /// What to make of each image, each group with its side.
    pub(super) fn groups(&self) -> Vec<ViewGroup> {
        let sided = |Views { group, .. }: &Views| ViewGroup {
            side: Side::Px(group.side.px(self.side_px)),
            ..*group
        };
        self.views.iter().map(sided).collect()
    }

    /// Checks that `views` are those of `n_images` images.
    ///
    /// # Errors
    /// Another number of floats.
    pub(super) fn check(&self, views: &[f32], n_images: usize) -> Result<()> {
        let lens = (0..self.views.len()).map(|index| self.group_len(index));
        let expected = lens.sum::<usize>() * n_images;
        if views.len() != expected {
            bail!("views of {n_images} images are {expected} floats, not {}", views.len())
        }
        Ok(())
    }

    /// The passes of the encoder that `is_seen` names, one a side, in the order of their first
    /// groups.
    pub(super) fn passes(&self, is_seen: fn(SeenBy) -> bool) -> Vec<Pass> {
        let mut passes: Vec<Pass> = vec![];
        for (index, Views { group, seen_by }) in self.views.iter().enumerate() {
            if !is_seen(*seen_by) {
                continue;
            }
            let side_px = group.side.px(self.side_px);
            match passes.iter_mut().find(|pass| pass.side_px == side_px) {
                Some(pass) => pass.groups.push(index),
                None => passes.push(Pass { side_px, groups: vec![index] }),
            }
        }
        passes
    }

    /// Views of each image that `pass` shows.
    pub(super) fn n_views(&self, pass: &Pass) -> usize {
        pass.groups.iter().map(|index| self.views[*index].group.views_per_image).sum()
    }

    /// The views of `pass`, out of those of all groups; nothing is left where it is all of them.
    pub(super) fn take(&self, views: &mut Vec<f32>, pass: &Pass, n_images: usize) -> Vec<f32> {
        if pass.groups.len() == self.views.len() {
            return std::mem::take(views);
        }
        let (mut begin, mut taken) = (0, vec![]);
        for index in 0..self.views.len() {
            let end = begin + self.group_len(index) * n_images;
            if pass.groups.contains(&index) {
                taken.extend_from_slice(&views[begin..end]);
            }
            begin = end;
        }
        taken
    }

    /// The features `[views_per_image * N, D]` of each group that was seen, in their order, out of
    /// those of each pass.
    ///
    /// # Errors
    /// Features of fewer views than the passes showed.
    pub(super) fn split(
        &self,
        passes: &[Pass],
        features: &[Tensor],
        n_images: usize,
    ) -> Result<Vec<Tensor>> {
        let mut split = vec![];
        for (pass, features) in passes.iter().zip(features) {
            let mut begin = 0;
            for index in &pass.groups {
                let len = self.views[*index].group.views_per_image * n_images;
                split.push((*index, features.narrow(0, begin, len)?));
                begin += len;
            }
        }
        split.sort_by_key(|(index, _)| *index);
        Ok(split.into_iter().map(|(_, features)| features).collect())
    }

    /// Floats of one image's views in group `index`.
    fn group_len(&self, index: usize) -> usize {
        let group = &self.views[index].group;
        group.views_per_image * group.view_len(self.side_px)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    const N_IMAGES: usize = 3;

    /// Large views for both, small ones for the encoder, large ones for the target.
    fn arrangement() -> Arrangement {
        let large = ViewGroup::alike(2);
        let small = ViewGroup { side: Side::Px(1), ..ViewGroup::alike(4) };
        let views = [
            Views { group: large, seen_by: SeenBy::Both },
            Views { group: small, seen_by: SeenBy::Encoder },
            Views { group: ViewGroup::alike(1), seen_by: SeenBy::Both },
        ];
        Arrangement::new(views.to_vec(), 2)
    }

    /// Views whose numbers are all their group's.
    fn views() -> Vec<f32> {
        let group =
            |n_views: usize, len: usize, number: f32| vec![number; n_views * N_IMAGES * len];
        [group(2, 12, 0.0), group(4, 3, 1.0), group(1, 12, 2.0)].concat()
    }

    #[test]
    fn a_pass_shows_the_views_of_one_side_to_those_who_see_them() {
        let arrangement = arrangement();
        arrangement.check(&views(), N_IMAGES).unwrap();
        assert!(arrangement.check(&views(), N_IMAGES + 1).is_err());
        let encoder = arrangement.passes(SeenBy::encoder);
        let expected = [(2, vec![0, 2]), (1, vec![1])];
        let expected = expected.map(|(side_px, groups)| Pass { side_px, groups });
        assert_eq!(encoder, expected);
        assert_eq!(arrangement.passes(SeenBy::target), expected[..1]);
        assert_eq!(arrangement.n_views(&encoder[0]), 3);
        let mut all = views();
        let large = arrangement.take(&mut all, &encoder[0], N_IMAGES);
        assert_eq!(large, [vec![0.0; 72], vec![2.0; 36]].concat());
        assert_eq!(arrangement.take(&mut all, &encoder[1], N_IMAGES), [1.0; 36]);
        assert_eq!(all, views());

        let sides: Vec<_> = arrangement.groups().iter().map(|group| group.side).collect();
        assert_eq!(sides, [2, 1, 2].map(Side::Px));
        let whole = Arrangement::new(vec![Views::alike(2)], 2);
        let mut all = vec![1.0; 12];
        let pass = &whole.passes(SeenBy::encoder)[0];
        assert_eq!(whole.take(&mut all, pass, 1).len(), 12);
        assert!(all.is_empty());
    }

    #[test]
    fn features_are_split_into_groups_in_the_order_of_the_views() {
        let arrangement = arrangement();
        let passes = arrangement.passes(SeenBy::encoder);
        let rows = |first: usize, n: usize| {
            let values: Vec<f32> = (first..first + n).map(|row| row as f32).collect();
            Tensor::from_vec(values, (n, 1), &Device::Cpu).unwrap()
        };
        // Of the large ones 6 rows are the first group's and 3 the last one's.
        let features = [rows(0, 9), rows(100, 12)];
        let split = arrangement.split(&passes, &features, N_IMAGES).unwrap();
        let first = |tensor: &Tensor| tensor.to_vec2::<f32>().unwrap()[0][0];
        let found: Vec<_> = split.iter().map(|t| (t.dim(0).unwrap(), first(t))).collect();
        assert_eq!(found, [(6, 0.0), (12, 100.0), (3, 6.0)]);
    }
}
