//! The least redundant images (MinRed: Purushwalkam et al., "The Challenges of Continuous
//! Self-Supervised Learning", arXiv 2203.12710, section 4.2): whoever is nearest to another by the
//! cosine distance of their features is the one that the buffer needs least.
//!
//! ```text
//! leaves = argmin_i min_{j != i} d(i, j),    d = 1 - cos(z_i, z_j)
//! z_i   <- moving average of the features of image i, at each step that uses it
//! ```
//!
//! Differs from the paper: z are [sketches](super::sketch); the closest pair has two ends, and which
//! of them leaves is drawn. Distances to nearest neighbours are kept, and looked up again only when
//! they decide: an image whose sketch moved, or whose neighbour left or moved, is compared anew when it is
//! next the one to leave. An offer costs a few passes over the sketches, a step none.

use super::held::Held;
use super::sketch::Sketch;
use super::{Entry, Replay, State, named};
use crate::seed::{self, Purpose};
use rand::RngExt;

/// The names of what is kept beside the sketches.
const NEIGHBOUR: &str = "neighbour";
const DISTANCE: &str = "distance";
const STALE: &str = "stale";

/// An entry's nearest neighbour.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Nearest {
    place: usize,
    distance: f32,
    /// Whether it may no longer be true.
    is_stale: bool,
}

/// To be looked up.
const UNKNOWN: Nearest = Nearest { place: 0, distance: f32::INFINITY, is_stale: true };

/// The least redundant of the images offered.
pub(super) struct MinRed {
    seed: u64,
    offered: u64,
    held: Held,
    nearest: Vec<Nearest>,
}

impl MinRed {
    /// An empty buffer of at most `max_bytes` bytes.
    pub(super) fn new(max_bytes: usize, seed: u64) -> Self {
        Self { seed, offered: 0, held: Held::new(max_bytes), nearest: vec![] }
    }

    /// Finds the neighbour of what is at `place`, which may become that of others.
    fn look_up(&mut self, place: usize) {
        let mut found = Nearest { is_stale: false, ..UNKNOWN };
        for other in 0..self.nearest.len() {
            if other == place {
                continue;
            }
            let distance = self.held.distance(place, other);
            if distance < found.distance {
                found = Nearest { place: other, distance, is_stale: false };
            }
            if distance < self.nearest[other].distance {
                let is_stale = self.nearest[other].is_stale;
                self.nearest[other] = Nearest { place, distance, is_stale };
            }
        }
        self.nearest[place] = found;
    }

    /// One of the closest pair.
    fn most_redundant(&mut self, rng: &mut seed::Rng) -> usize {
        loop {
            let by_distance = |a: &usize, b: &usize| {
                self.nearest[*a].distance.total_cmp(&self.nearest[*b].distance)
            };
            let place = (0..self.nearest.len()).min_by(by_distance).unwrap_or(0);
            let nearest = self.nearest[place];
            if !nearest.is_stale && self.is_as_far(place, nearest) {
                return if rng.random() { place } else { nearest.place };
            }
            self.look_up(place);
        }
    }

    /// Whether the neighbour of what is at `place` has not moved; one that has none has an infinite distance.
    fn is_as_far(&self, place: usize, nearest: Nearest) -> bool {
        nearest.distance == f32::INFINITY
            || self.held.distance(place, nearest.place) == nearest.distance
    }

    fn leave(&mut self, place: usize) {
        self.held.swap_remove(place);
        self.nearest.swap_remove(place);
        let moved = self.nearest.len();
        for nearest in &mut self.nearest {
            if nearest.place == place {
                // At least as far as it was: the true neighbour is found when it matters. Until then
                // the place says nothing, but is one that there is.
                *nearest = Nearest { place: 0, is_stale: true, ..*nearest };
            } else if nearest.place == moved {
                nearest.place = place;
            }
        }
    }
}

impl Replay for MinRed {
    fn offer(&mut self, entry: Entry) {
        self.offered += 1;
        if !self.held.can_hold(&entry) {
            return;
        }
        self.held.push(entry);
        self.nearest.push(UNKNOWN);
        self.look_up(self.nearest.len() - 1);
        let mut rng = seed::rng(self.seed, Purpose::Evict, &[self.offered]);
        while self.held.is_over_budget() {
            let place = self.most_redundant(&mut rng);
            self.leave(place);
        }
    }

    fn offered(&self) -> u64 {
        self.offered
    }

    fn entries(&self) -> &[Entry] {
        self.held.entries()
    }

    fn entries_mut(&mut self) -> &mut [Entry] {
        self.held.entries_mut()
    }

    fn retain(&mut self, is_kept: &dyn Fn(&Entry) -> bool) {
        // From the end, as the last takes the place of whoever leaves.
        for place in (0..self.nearest.len()).rev() {
            if !is_kept(&self.held.entries()[place]) {
                self.leave(place);
            }
        }
    }

    fn restore(&mut self, entries: Vec<Entry>, offered: u64) {
        self.offered = offered;
        self.nearest = vec![UNKNOWN; entries.len()];
        self.held.restore(entries);
    }

    fn wants_sketches(&self) -> bool {
        true
    }

    fn seen(&mut self, id: u64, sketch: &Sketch) {
        if let Some(place) = self.held.follow(id, sketch) {
            self.nearest[place].is_stale = true;
        }
    }

    fn state(&self) -> State {
        let column = |of: fn(&Nearest) -> f32| self.nearest.iter().map(of).collect();
        named([
            (NEIGHBOUR, column(|nearest| nearest.place as f32)),
            (DISTANCE, column(|nearest| nearest.distance)),
            (STALE, column(|nearest| f32::from(u8::from(nearest.is_stale)))),
        ])
    }

    fn load_state(&mut self, state: &State) {
        let columns = [NEIGHBOUR, DISTANCE, STALE].map(|name| state.get(name));
        let [Some(places), Some(distances), Some(stale)] = columns else { return };
        let n = self.nearest.len();
        if [places, distances, stale].iter().any(|column| column.len() != n) {
            return;
        }
        for (index, nearest) in self.nearest.iter_mut().enumerate() {
            let place = (places[index] as usize).min(n - 1);
            *nearest = Nearest { place, distance: distances[index], is_stale: stale[index] != 0.0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sketch::{BYTES, LEN};
    use super::super::tests::entry;
    use super::*;

    /// On a circle, at `degrees`.
    fn at(degrees: f32) -> Sketch {
        let mut values = [0.0; LEN];
        (values[0], values[1]) = (degrees.to_radians().cos(), degrees.to_radians().sin());
        Sketch::new(values)
    }

    fn held(min_red: &MinRed) -> Vec<i64> {
        let mut offsets: Vec<i64> =
            min_red.entries().iter().map(|entry| entry.origin.offset).collect();
        offsets.sort_unstable();
        offsets
    }

    fn offer(min_red: &mut MinRed, offset: i64, degrees: f32) {
        min_red.offer(Entry { sketch: Some(at(degrees)), ..entry(offset, 100) });
    }

    /// Bursts of near duplicates: one of each stays, whatever came between.
    #[test]
    fn one_of_each_burst_stays() {
        for seed in 0..20 {
            let mut min_red = MinRed::new(4 * (100 + BYTES), seed);
            for burst in 0..4 {
                for frame in 0..10 {
                    let degrees = 80.0 * burst as f32 + 0.5 * frame as f32;
                    offer(&mut min_red, burst * 10 + frame, degrees);
                }
            }
            let bursts: Vec<i64> = held(&min_red).into_iter().map(|offset| offset / 10).collect();
            assert_eq!(bursts, [0, 1, 2, 3], "seed {seed}");
        }
    }

    /// The one that leaves is an end of the closest pair of all, by loops over all pairs.
    #[test]
    fn whoever_leaves_is_of_the_closest_pair() {
        let mut min_red = MinRed::new(12 * (100 + BYTES), 3);
        let mut all: Vec<(i64, f32)> = vec![];
        for offset in 0..80_i64 {
            let degrees = ((offset * 7919) % 1800) as f32 / 10.0;
            offer(&mut min_red, offset, degrees);
            all.push((offset, degrees));
            if all.len() > 12 {
                let distance = |a: &(i64, f32), b: &(i64, f32)| at(a.1).distance(&at(b.1));
                let mut pairs: Vec<(f32, i64, i64)> = vec![];
                for (index, a) in all.iter().enumerate() {
                    pairs.extend(all[..index].iter().map(|b| (distance(a, b), a.0, b.0)));
                }
                pairs.sort_by(|a, b| a.0.total_cmp(&b.0));
                let left: Vec<i64> = all
                    .iter()
                    .map(|(offset, _)| *offset)
                    .filter(|offset| !held(&min_red).contains(offset))
                    .collect();
                let [left] = left[..] else { panic!("one leaves: {left:?}") };
                // Of equal pairs any.
                let closest = pairs.iter().take_while(|pair| pair.0 <= pairs[0].0 + 1e-6);
                assert!(closest.into_iter().any(|pair| [pair.1, pair.2].contains(&left)));
                all.retain(|(offset, _)| *offset != left);
            }
        }
    }

    #[test]
    fn a_sketch_follows_what_is_seen_of_its_image_later() {
        let mut min_red = MinRed::new(3 * (100 + BYTES), 1);
        for (offset, degrees) in [(0, 0.0), (1, 60.0), (2, 120.0)] {
            offer(&mut min_red, offset, degrees);
        }
        // The second turns out to be much like the first; nobody else is near anyone.
        let id = entry(1, 1).id();
        (0..12).for_each(|_| min_red.seen(id, &at(1.0)));
        min_red.seen(77, &at(120.0));
        offer(&mut min_red, 3, 200.0);
        let held = held(&min_red);
        assert!(held.contains(&2) && held.contains(&3) && held.len() == 3, "{held:?}");
    }

    /// Its image never moved, but what it was close to has.
    #[test]
    fn an_image_whose_neighbour_moves_away_is_not_redundant() {
        for seed in 0..20 {
            let mut min_red = MinRed::new(4 * (100 + BYTES), seed);
            for (offset, degrees) in [(0, 0.0), (1, 1.0), (2, 100.0), (3, 110.0)] {
                offer(&mut min_red, offset, degrees);
            }
            // The first goes far from the second; the closest are the third and the fourth.
            let id = entry(0, 1).id();
            (0..12).for_each(|_| min_red.seen(id, &at(300.0)));
            offer(&mut min_red, 4, 200.0);
            let held = held(&min_red);
            assert!(held.contains(&0) && held.contains(&1) && held.contains(&4), "{held:?}");
        }
    }
}
