//! Which version is `stable`: the newest one after which all candidates passed the gate for a while.

use crate::gate::monitor::UnitRows;
use crate::snapshot::Snapshot;
use anyhow::Result;
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

/// Versions that wait to become stable lie at least so many parts of the time apart: what they take of
/// memory is bounded, and the newest that may become stable is found to within a part.
const PARTS: u64 = 4;
/// The most that wait at once.
pub const MOST_WAITING: u64 = PARTS + 1;
/// Neighbours of an image that two versions are compared by.
const NEIGHBOURS: usize = 10;

/// The versions on their way.
pub(super) struct Stable {
    after_steps: u64,
    /// Oldest first.
    waiting: VecDeque<Arc<Snapshot>>,
    stable: Option<Arc<Snapshot>>,
    /// The name of the one that was stable before it.
    before: Option<String>,
    /// Prepared images, flat `[N, H, W, C]`, and N: the same ones for the whole process.
    reference: Option<(Vec<f32>, usize)>,
    /// The neighbours of each of them by the stable version, with its name.
    near_stable: Option<(String, Neighbours)>,
}

/// The nearest [`NEIGHBOURS`] of each image among the others.
type Neighbours = Vec<BTreeSet<usize>>;

impl Stable {
    /// Versions become stable after so many steps; `stable` is one from before a restart.
    pub(super) fn new(after_steps: u64, stable: Option<Arc<Snapshot>>) -> Self {
        Self {
            after_steps,
            waiting: VecDeque::new(),
            stable,
            before: None,
            reference: None,
            near_stable: None,
        }
    }

    /// Takes a version that has passed. Returns the one that is stable since, if that is another than before.
    pub(super) fn passed(&mut self, snapshot: &Arc<Snapshot>) -> Option<Arc<Snapshot>> {
        let step = snapshot.provenance.step;
        let mut newest = None;
        while self.waiting.front().is_some_and(|s| step >= s.provenance.step + self.after_steps) {
            newest = self.waiting.pop_front();
        }
        let apart = (self.after_steps / PARTS).max(1);
        if self.waiting.back().is_none_or(|last| step >= last.provenance.step + apart) {
            self.waiting.push_back(Arc::clone(snapshot));
        }
        if newest.is_some() {
            self.before = self.version().map(str::to_owned);
            self.stable.clone_from(&newest);
        }
        newest
    }

    /// A candidate has not passed: those before it do not become stable.
    pub(super) fn refused(&mut self) {
        self.waiting.clear();
    }

    /// Its name.
    pub(super) fn version(&self) -> Option<&str> {
        self.stable.as_ref().map(|stable| &stable.version[..])
    }

    /// The names of those whose files are to stay: the stable one, those that may become it, and the one before it,
    /// which the newest checkpoint may name still.
    pub(super) fn spared(&self) -> Vec<&str> {
        let waiting = self.waiting.iter().map(|snapshot| &snapshot.version[..]);
        waiting.chain(self.version()).chain(self.before.as_deref()).collect()
    }

    /// The share of an image's neighbours that it has by the stable version and by `newer`, over the images of the
    /// first call, flat `[N, H, W, C]` and N; unset while none is stable. Reported, never a gate: a healthy
    /// encoder moves.
    ///
    /// # Errors
    /// An encoder that cannot embed them.
    pub(super) fn overlap_with(
        &mut self,
        newer: &Snapshot,
        (images, n_images): (&[f32], usize),
    ) -> Result<Option<f64>> {
        let reference = self.reference.get_or_insert_with(|| (images.to_vec(), n_images));
        let Some(stable) = &self.stable else { return Ok(None) };
        let known = self.near_stable.as_ref();
        if known.is_none_or(|(version, _)| *version != stable.version) {
            self.near_stable = Some((stable.version.clone(), neighbours(stable, reference)?));
        }
        let Some((_, of_stable)) = &self.near_stable else { return Ok(None) };
        Ok(Some(overlap(of_stable, &neighbours(newer, reference)?)))
    }
}

/// The neighbours of images, flat `[N, H, W, C]` and N.
fn neighbours(snapshot: &Snapshot, (images, n_images): &(Vec<f32>, usize)) -> Result<Neighbours> {
    let embeddings = snapshot.encoder.embed(images.clone(), *n_images)?;
    let rows = UnitRows::new(embeddings, snapshot.encoder.feature_dim());
    let all: Vec<&[f32]> = rows.rows().collect();
    let of = |index: usize| {
        let mut others: Vec<(f32, usize)> = (0..all.len())
            .filter(|other| *other != index)
            .map(|other| (all[index].iter().zip(all[other]).map(|(a, b)| a * b).sum(), other))
            .collect();
        others.sort_by(|(a, _), (b, _)| b.total_cmp(a));
        others.into_iter().take(NEIGHBOURS).map(|(_, other)| other).collect()
    };
    Ok((0..all.len()).map(of).collect())
}

/// The mean share of what two encoders have in common; 1 where there is nothing to have.
fn overlap(a: &[BTreeSet<usize>], b: &[BTreeSet<usize>]) -> f64 {
    let (common, all) = a
        .iter()
        .zip(b)
        .fold((0, 0), |(common, all), (a, b)| (common + a.intersection(b).count(), all + a.len()));
    if all == 0 { 1.0 } else { common as f64 / all as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::augment::Preprocess;
    use crate::snapshot::{Encode, Provenance};

    /// Turns images of two numbers by an angle, or mirrors every other one.
    struct Toy {
        mirrors: bool,
    }

    impl Encode for Toy {
        fn feature_dim(&self) -> usize {
            2
        }

        fn embed(&self, images: Vec<f32>, _: usize) -> candle_core::Result<Vec<f32>> {
            let mirror = |(index, value): (usize, f32)| {
                if self.mirrors && (index / 2) % 2 == 1 { -value } else { value }
            };
            Ok(images.into_iter().enumerate().map(mirror).collect())
        }
    }

    fn snapshot(step: u64, mirrors: bool) -> Arc<Snapshot> {
        Arc::new(Snapshot {
            version: format!("v{step}"),
            architecture: "toy".to_owned(),
            preprocess: Preprocess::imagenet(8),
            provenance: Provenance { step, ..Provenance::default() },
            encoder: Box::new(Toy { mirrors }),
        })
    }

    /// Points of a circle.
    fn images(n_images: usize) -> Vec<f32> {
        let at = |i: usize| (i as f32 / n_images as f32 * std::f32::consts::TAU).sin_cos();
        (0..n_images).flat_map(|i| [at(i).0, at(i).1]).collect()
    }

    #[test]
    fn a_version_is_stable_once_all_passed_for_long_enough() {
        let mut stable = Stable::new(100, None);
        let pass = |stable: &mut Stable, step| {
            stable.passed(&snapshot(step, false)).map(|snapshot| snapshot.provenance.step)
        };
        let steps = [10, 20, 40, 60, 90, 109];
        assert!(steps.into_iter().all(|step| pass(&mut stable, step).is_none()));
        // 20 lay too near to 10 to wait.
        assert_eq!(pass(&mut stable, 130), Some(10));
        assert_eq!(stable.version(), Some("v10"));
        assert_eq!(pass(&mut stable, 141), Some(40));
        stable.refused();
        assert_eq!(pass(&mut stable, 200), None, "what came before the refusal does not count");
        assert_eq!(pass(&mut stable, 299), None);
        assert_eq!(pass(&mut stable, 300), Some(200));
    }

    /// It is published long before it is stable, and a checkpoint names it for a while after.
    #[test]
    fn the_file_of_a_version_is_spared_from_before_it_is_stable_until_after() {
        let mut stable = Stable::new(100, None);
        let spares = |stable: &Stable, name: &str| stable.spared().contains(&name);
        for step in 1..=250 {
            stable.passed(&snapshot(step, false));
            // Stable is v1 from step 101 on, v26 from step 126 on, v51 from step 151 on.
            assert_eq!(spares(&stable, "v26"), (26..176).contains(&step), "{step}");
            let stable_one = stable.version();
            assert!(stable_one.is_none_or(|version| spares(&stable, version)), "{step}");
            assert!(stable.spared().len() <= MOST_WAITING as usize + 2, "{step}");
        }
    }

    #[test]
    fn neighbours_are_shared_by_equal_encoders_and_half_lost_by_a_mirror() {
        let (mut stable, images) = (Stable::new(1, Some(snapshot(0, false))), images(64));
        let mut overlap =
            |mirrors| stable.overlap_with(&snapshot(2, mirrors), (&images, 64)).unwrap().unwrap();
        assert_eq!(overlap(false), 1.0);
        // On the circle, every other neighbour leaves for the other side.
        let mirrored = overlap(true);
        assert!((0.3..0.7).contains(&mirrored), "{mirrored}");
    }

    #[test]
    fn neighbours_are_those_of_the_last_stable_version_on_the_first_images() {
        let mut stable = Stable::new(1, None);
        let (first, others) = (images(64), images(8));
        let overlap = stable.overlap_with(&snapshot(1, true), (&first, 64)).unwrap();
        assert_eq!(overlap, None, "none is stable");
        stable.stable = Some(snapshot(0, false));
        let mirrored = stable.overlap_with(&snapshot(1, true), (&first, 64)).unwrap();
        assert_eq!(stable.overlap_with(&snapshot(1, true), (&others, 8)).unwrap(), mirrored);
        assert!(stable.passed(&snapshot(1, true)).is_none());
        assert!(stable.passed(&snapshot(2, true)).is_some());
        let overlap = stable.overlap_with(&snapshot(3, true), (&first, 64)).unwrap();
        assert_eq!((overlap, stable.version()), (Some(1.0), Some("v1")));
    }
}
