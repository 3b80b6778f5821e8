//! Counter-seeded randomness: every draw is a pure function of the run's seed, a purpose and
//! counters, so a checkpoint has no generator state to save and any use can be made again.

use rand::SeedableRng;

/// The generator handed to everything that draws.
pub type Rng = rand_xoshiro::Xoshiro256PlusPlus;

/// What a generator is for; two purposes never share a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Initial weights; counters: parameter index.
    Init,
    /// A view of an image; counters: origin hash, use, view index.
    View,
    /// Which replayed images top up a batch; counters: step.
    Draw,
    /// Which image the reservoir evicts; counters: images seen.
    Reservoir,
    /// The order in which a folder is streamed; counters: pass.
    Shuffle,
    /// Splits and probes of an evaluation; counters: caller's own.
    Evaluate,
    /// Which images share the target's batch statistics; counters: step.
    NormGroups,
    /// The projection of features to sketches; no counters.
    Sketch,
    /// Which image a policy that looks at sketches gives up; counters: images offered.
    Evict,
    /// How a reference of embeddings is drawn apart; counters: draw.
    Drift,
}

/// A generator for `purpose` at `counters` of the run seeded by `seed`.
pub fn rng(seed: u64, purpose: Purpose, counters: &[u64]) -> Rng {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.update(&[purpose as u8]);
    for counter in counters {
        hasher.update(&counter.to_le_bytes());
    }
    Rng::from_seed(*hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::RngExt;

    #[test]
    fn same_counters_same_draws_and_any_other_differs() {
        let draw = |seed, purpose, counters: &[u64]| rng(seed, purpose, counters).random::<u64>();
        let first = draw(7, Purpose::View, &[1, 2]);
        assert_eq!(first, draw(7, Purpose::View, &[1, 2]));
        assert_ne!(first, draw(8, Purpose::View, &[1, 2]));
        assert_ne!(first, draw(7, Purpose::Draw, &[1, 2]));
        assert_ne!(first, draw(7, Purpose::View, &[2, 1]));
    }
}
