//! What the demo streams, and the tenth of it that is held back.

use super::generated;
use crate::decode;
use crate::source::collection::Collection;
use anyhow::{Context, Result};
use std::path::Path;
use tempfile::TempDir;

/// Where Debian's package dataset-fashion-mnist puts its files.
const FASHION_MNIST: &str = "/usr/share/datasets/fashion-mnist";
/// One image of this many is held back.
const HELD_BACK: usize = 10;
/// Images whose size is looked at.
const SIZE_SAMPLE: usize = 32;
/// Sides of input that a CPU learns on within minutes.
const SIDES_PX: [usize; 2] = [16, 64];
pub(super) const SEED: u64 = 20;

/// The images of a demo.
pub(super) struct DemoImages {
    collection: Collection,
    streamed: Vec<usize>,
    held_back: Vec<usize>,
    side_px: usize,
    description: String,
    _generated: Option<TempDir>,
}

impl DemoImages {
    /// Opens `path`, or Debian's Fashion-MNIST, or generates images and says so.
    pub(super) fn open(path: Option<&Path>) -> Result<Self> {
        let fashion = Path::new(FASHION_MNIST);
        let (collection, what, generated) = match path {
            Some(path) => (Collection::open(path).context("--images")?, "your images", None),
            None if fashion.is_dir() => (Collection::open(fashion)?, "Fashion-MNIST", None),
            None => {
                let dir = generated::write()?;
                let what = "GENERATED shapes (install dataset-fashion-mnist or give --images)";
                (Collection::open(dir.path())?, what, Some(dir))
            }
        };
        let mut streamed = collection.shuffled_order(SEED, 0);
        let held_back = streamed.split_off(streamed.len() - streamed.len() / HELD_BACK);
        let side_px = choose_side(&collection, &streamed)?;
        let description = format!(
            "streaming {what}: {} images at {side_px} px, {} more held back",
            streamed.len(),
            held_back.len()
        );
        Ok(Self { collection, streamed, held_back, side_px, description, _generated: generated })
    }

    /// The images.
    pub(super) fn collection(&self) -> &Collection {
        &self.collection
    }

    /// Positions of those that enter the topic.
    pub(super) fn streamed(&self) -> &[usize] {
        &self.streamed
    }

    /// Positions of those that never do.
    pub(super) fn held_back(&self) -> &[usize] {
        &self.held_back
    }

    /// Side of the encoder's input.
    pub(super) fn side_px(&self) -> usize {
        self.side_px
    }

    /// What is streamed, in a sentence.
    pub(super) fn description(&self) -> &str {
        &self.description
    }
}

/// The median of the shorter sides of a sample, as a multiple of 4 within what a CPU can learn on.
fn choose_side(collection: &Collection, streamed: &[usize]) -> Result<usize> {
    let config = decode::Config::default();
    let mut sides: Vec<usize> = vec![];
    for &index in streamed.iter().take(SIZE_SAMPLE) {
        // An image that does not decode is refused on the stream, not here.
        if let Ok(pixels) = decode::decode(&collection.read(index)?, None, &config) {
            sides.push(pixels.width_px.min(pixels.height_px) as usize);
        }
    }
    sides.sort_unstable();
    let median = sides.get(sides.len() / 2).context("none of the first images can be decoded")?;
    Ok((median / 4 * 4).clamp(SIDES_PX[0], SIDES_PX[1]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn a_tenth_is_held_back_and_the_side_is_the_images() {
        let dir = generated::write().unwrap();
        let images = DemoImages::open(Some(dir.path())).unwrap();
        assert_eq!(images.side_px(), generated::SIDE_PX as usize);
        assert_eq!(images.held_back().len(), images.collection().len() / HELD_BACK);
        let streamed: HashSet<_> = images.streamed().iter().collect();
        assert!(images.held_back().iter().all(|index| !streamed.contains(index)));
        assert_eq!(streamed.len() + images.held_back().len(), images.collection().len());
    }
}
