//! How well a candidate tells the labelled images that arrived last, beside the version that serves.
//!
//! The prequential accuracy of [`prequential`](super::prequential) is that of versions that served, each on what
//! arrived meanwhile: it comes too late to judge a candidate by, and it falls for healthy reasons, as where a
//! stream is sorted by class or has become harder. So the measure is taken anew for a candidate and for the
//! version that serves, over the same images in the same order: whatever is hard about them is hard for both.
//! Each of the newer half of the last [`REMEMBERED`] labelled images is told by kNN among all those before it.

use super::encoder::embed_by;
use super::{Embeddings, EvaluateError, Example, Reference};
use crate::decode;
use crate::gate::Accuracy;
use crate::snapshot::Snapshot;
use std::collections::VecDeque;
use std::sync::Arc;
use tracing::debug;

/// Labelled images that are compared by, as many as the monitors look at; the learner waits for two forward passes
/// of each. And how few are too few: half of them are told. Guesses.
pub(super) const REMEMBERED: usize = 256;
const ENOUGH: usize = 128;

/// The labelled images that arrived last, oldest first.
#[derive(Default)]
pub(super) struct Recent(VecDeque<(Arc<str>, Example)>);

impl Recent {
    /// Takes an image, named by its origin; one that comes again, after going back, is the same.
    pub(super) fn push(&mut self, label: Arc<str>, example: Example) {
        if self.0.iter().any(|(_, known)| known.name == example.name) {
            return;
        }
        self.0.push_back((label, example));
        if self.0.len() > REMEMBERED {
            self.0.pop_front();
        }
    }

    /// The accuracy of both on the images that decode, as `decode` says, where there are enough of them.
    ///
    /// # Errors
    /// An encoder that fails, or an embedding that is not finite.
    pub(super) fn compare(
        &self,
        candidate: &Snapshot,
        served: &Snapshot,
        decode: &decode::Config,
    ) -> Result<Option<Accuracy>, EvaluateError> {
        if self.0.len() < ENOUGH {
            return Ok(None);
        }
        // Which decode hangs on the images alone, so they are the same for both.
        let (of_candidate, classes) = self.embed(candidate, decode)?;
        if classes.len() < ENOUGH {
            return Ok(None);
        }
        let (of_served, _) = self.embed(served, decode)?;
        let candidate = told_right(&of_candidate, &classes)?;
        let served = told_right(&of_served, &classes)?;
        let n_images = classes.len() - classes.len() / 2;
        Ok(Some(Accuracy { candidate, served, n_images }))
    }

    /// The embeddings of the images that decode, with their classes.
    fn embed(
        &self,
        snapshot: &Snapshot,
        decode: &decode::Config,
    ) -> Result<(Embeddings, Vec<usize>), EvaluateError> {
        let (mut values, mut classes) = (vec![], vec![]);
        for ((_, example), class) in self.0.iter().zip(self.classes()) {
            // One image a call: queries of the version that serves wait for no more than its pass.
            match embed_by(snapshot, std::slice::from_ref(example), decode) {
                Ok(embedding) => {
                    values.extend_from_slice(embedding.row(0));
                    classes.push(class);
                }
                Err(error @ EvaluateError::Refused { .. }) => {
                    debug!(%error, "a labelled image is left out");
                }
                Err(error) => return Err(error),
            }
        }
        Ok((Embeddings::new(values, snapshot.encoder.feature_dim())?, classes))
    }

    /// The class of each image as a number.
    fn classes(&self) -> Vec<usize> {
        let mut names: Vec<&str> = self.0.iter().map(|(label, _)| &**label).collect();
        names.sort_unstable();
        names.dedup();
        let number = |(label, _): &(Arc<str>, Example)| names.binary_search(&&**label).ok();
        self.0.iter().filter_map(number).collect()
    }
}

/// The share of the newer half of `embeddings` whose class is told by those before.
fn told_right(embeddings: &Embeddings, classes: &[usize]) -> Result<f64, EvaluateError> {
    let (n_images, dim) = (embeddings.len(), embeddings.dim());
    let newer = n_images / 2..n_images;
    let n_told = newer.len();
    let values: Vec<f32> = embeddings.rows().flatten().copied().collect();
    let mut n_right = 0;
    for index in newer {
        let before = Embeddings::new(values[..index * dim].to_vec(), dim)?;
        let query = Embeddings::new(embeddings.row(index).to_vec(), dim)?;
        let found = Reference::new(&before, &classes[..index])?.classify(&query)?;
        n_right += usize::from(found == classes[index..=index]);
    }
    Ok(n_right as f64 / n_told as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::fixtures::{channel_means, flat, png};

    fn snapshot(is_blind: bool) -> Snapshot {
        channel_means("a", if is_blind { [0.0, 1.0] } else { [1.0, 0.0] })
    }

    /// `n_images` shades of red, green and blue; `class` says which colour each has.
    fn recent(n_images: usize, class: impl Fn(usize) -> usize) -> Recent {
        let mut recent = Recent::default();
        for index in 0..n_images {
            let class = class(index);
            let mut colour = [20; 3];
            colour[class] = 150 + (index % 100) as u8;
            let bytes = png(colour).into();
            recent.push(
                class.to_string().into(),
                Example { name: index.to_string(), bytes, label: 0 },
            );
        }
        recent
    }

    #[test]
    fn one_that_has_gone_blind_stands_out_beside_what_serves() {
        let (sees, blind) = (snapshot(false), snapshot(true));
        let in_turn = recent(200, |index| index % 3);
        let same = in_turn.compare(&sees, &sees, &decode::Config::default()).unwrap();
        assert_eq!(same, Some(Accuracy { candidate: 1.0, served: 1.0, n_images: 100 }));
        let told = in_turn.compare(&blind, &sees, &decode::Config::default()).unwrap();
        let Accuracy { candidate, served, .. } = told.unwrap();
        assert_eq!(served, 1.0);
        assert!(candidate < 0.5, "{candidate}: all are equally near");
    }

    /// Where only new classes come, nobody can tell them: both fall alike.
    #[test]
    fn a_stream_sorted_by_class_is_as_hard_for_both() {
        let sees = snapshot(false);
        let sorted = recent(200, |index| index / 99);
        let told = sorted.compare(&sees, &sees, &decode::Config::default()).unwrap().unwrap();
        // Only the first of the two of the last class that come at the end is not known.
        assert_eq!(told.candidate, told.served);
        assert!(told.candidate < 1.0, "{told:?}");
    }

    /// One image that a run takes, and the default does not, must not spare a candidate its judgement; nor must
    /// one that nobody takes.
    #[test]
    fn images_are_decoded_as_the_run_does_and_those_that_do_not_decode_are_left_out() {
        let sees = snapshot(false);
        let mut recent = recent(ENOUGH, |index| index % 3);
        let add = |recent: &mut Recent, name: &str, bytes: bytes::Bytes| {
            recent.push("0".into(), Example { name: name.to_owned(), bytes, label: 0 });
        };
        add(&mut recent, "none", bytes::Bytes::from_static(b"no image"));
        add(&mut recent, "flat", flat().into());
        let n_images = |decode: &decode::Config| {
            recent.compare(&sees, &sees, decode).unwrap().map(|told| told.n_images)
        };
        assert_eq!(n_images(&decode::Config::default()), Some(ENOUGH / 2), "neither decodes");
        // Of an odd number the newer half is the larger.
        let run = decode::Config { min_side_px: 2, ..decode::Config::default() };
        assert_eq!(n_images(&run), Some(ENOUGH / 2 + 1), "the flat one decodes");
        let narrow = decode::Config { max_pixels: 1, ..decode::Config::default() };
        assert_eq!(n_images(&narrow), None, "too few are left");
    }

    #[test]
    fn too_few_say_nothing_and_the_oldest_leave() {
        let sees = snapshot(false);
        let few = recent(ENOUGH - 1, |index| index % 3);
        assert_eq!(few.compare(&sees, &sees, &decode::Config::default()).unwrap(), None);
        let mut full = recent(REMEMBERED + 10, |index| index % 3);
        assert_eq!(full.0.len(), REMEMBERED);
        assert_eq!(full.0[0].1.name, "10");
        // What is read again is known.
        let again = full.0[5].clone();
        full.push(again.0, again.1);
        assert_eq!(full.0.len(), REMEMBERED);
        assert_eq!(full.0[0].1.name, "10");
    }
}
