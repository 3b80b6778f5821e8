//! The images that a candidate is looked at by.

use super::Learner;
use crate::augment::ViewGroup;
use crate::batch::assemble::{Order, ViewSpec, assemble, unreadable};
use crate::gate;
use crate::replay;
use std::borrow::Cow;

/// Views that a candidate is checked on.
pub(super) struct Probe {
    /// Flat `[N, H, W, C]`.
    pub(super) views: Vec<f32>,
    /// N.
    pub(super) n_images: usize,
    /// Whether they are of images enough to tell one that has collapsed, see [`gate::can_tell`].
    pub(super) can_tell: bool,
}

impl Learner {
    /// Views of as many kept images as a batch has, some twice where there are fewer; `None` where there are none.
    ///
    /// Those that no longer decode are passed over. They stay until a batch meets one, as draws are to hang on steps
    /// alone, and not on when candidates are looked at.
    pub(super) fn replayed_probe(&mut self) -> Option<Probe> {
        let step = self.trainer.progress().steps;
        let kept = match self.replay.entries() {
            [] => &self.pending[..],
            entries => entries,
        };
        let mut kept = Cow::Borrowed(kept);
        loop {
            if !self.unreadable.is_empty() {
                kept.to_mut().retain(|entry| !self.unreadable.contains(&entry.id()));
            }
            let replayed = replay::draw_from(&kept, self.batch.images, self.views.seed, step);
            if replayed.is_empty() {
                return None;
            }
            let n_images = replayed.len();
            let groups = vec![ViewGroup::alike(1)];
            let views = ViewSpec { groups, fingerprints: false, ..self.views.clone() };
            let batch = assemble(&views, Order { step, fresh: vec![], replayed });
            if batch.unreadable.is_empty() {
                let can_tell = gate::can_tell(kept.len(), self.batch.images);
                return Some(Probe { views: batch.views, n_images, can_tell });
            }
            // Once for all: whatever comes after has been decoded on arrival.
            let all = unreadable(&kept, &self.views.decode);
            let met = batch.unreadable.into_iter().chain(all);
            self.unreadable.extend(met.map(|(origin, _)| origin.seed()));
        }
    }
}
