//! Balanced over what images look like: an online k-means over their sketches, and the cluster that
//! holds the most gives one of its images up (the balance of "Class-balancing reservoir sampling",
//! Chrysakis and Moens, ICML 2020, with clusters in the place of labels, which a stream has not).
//!
//! ```text
//! k = argmin_k d(z, c_k);    c_k <- c_k + (z - c_k) / min(n_k, 1000)
//! leaves = a random image of the largest cluster
//! ```
//!
//! The first images each begin a cluster. A centroid forgets what is a thousand images old, so that
//! clusters go where the stream goes.

use super::held::Held;
use super::sketch::{LEN, Sketch};
use super::{Entry, Replay, State, named};
use crate::seed::{self, Purpose};
use rand::RngExt;

/// Images that a centroid is the mean of, at most; a guess.
const MEMORY_IMAGES: f32 = 1000.0;
/// The names of what is kept beside the sketches.
const CENTROIDS: &str = "centroids";
const SIZES: &str = "sizes";
const CLUSTERS: &str = "clusters";

/// A balanced sample of the images offered.
pub(super) struct Balanced {
    seed: u64,
    max_clusters: usize,
    offered: u64,
    held: Held,
    /// The cluster of each entry.
    clusters: Vec<usize>,
    centroids: Vec<Centroid>,
}

#[derive(Clone, Debug)]
struct Centroid {
    at: Sketch,
    /// Images that moved it.
    seen: f32,
}

impl Balanced {
    /// An empty buffer of at most `max_bytes` bytes, over `max_clusters` clusters.
    pub(super) fn new(max_bytes: usize, max_clusters: usize, seed: u64) -> Self {
        let held = Held::new(max_bytes);
        Self { seed, max_clusters, offered: 0, held, clusters: vec![], centroids: vec![] }
    }

    /// The nearest cluster; `None` where there is none.
    fn nearest(&self, sketch: &Sketch) -> Option<usize> {
        let distance = |cluster: &usize| self.centroids[*cluster].at.distance(sketch);
        (0..self.centroids.len()).min_by(|a, b| distance(a).total_cmp(&distance(b)))
    }

    /// The cluster of a new image, which moves its centroid.
    fn join(&mut self, sketch: &Sketch) -> usize {
        if self.centroids.len() < self.max_clusters {
            self.centroids.push(Centroid { at: sketch.clone(), seen: 1.0 });
            return self.centroids.len() - 1;
        }
        let cluster = self.nearest(sketch).unwrap_or(0);
        let centroid = &mut self.centroids[cluster];
        centroid.seen = (centroid.seen + 1.0).min(MEMORY_IMAGES);
        let mut values = *centroid.at.values();
        for (value, target) in values.iter_mut().zip(sketch.values()) {
            *value += (target - *value) / centroid.seen;
        }
        centroid.at = Sketch::new(values);
        cluster
    }

    /// A random image of the largest cluster.
    fn surplus(&self, rng: &mut seed::Rng) -> usize {
        let mut sizes = vec![0_usize; self.centroids.len().max(1)];
        self.clusters.iter().for_each(|cluster| sizes[*cluster] += 1);
        let largest = (0..sizes.len()).max_by_key(|cluster| sizes[*cluster]).unwrap_or(0);
        let nth = rng.random_range(0..sizes[largest].max(1));
        let members = self.clusters.iter().enumerate().filter(|(_, of)| **of == largest);
        members.map(|(place, _)| place).nth(nth).unwrap_or(0)
    }

    fn leave(&mut self, place: usize) {
        self.held.swap_remove(place);
        self.clusters.swap_remove(place);
    }
}

impl Replay for Balanced {
    fn offer(&mut self, entry: Entry) {
        self.offered += 1;
        if !self.held.can_hold(&entry) {
            return;
        }
        let sketch = entry.sketch.clone().unwrap_or_else(|| Sketch::new([0.0; LEN]));
        let cluster = self.join(&sketch);
        self.clusters.push(cluster);
        self.held.push(entry);
        let mut rng = seed::rng(self.seed, Purpose::Evict, &[self.offered]);
        while self.held.is_over_budget() {
            let place = self.surplus(&mut rng);
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
        for place in (0..self.clusters.len()).rev() {
            if !is_kept(&self.held.entries()[place]) {
                self.leave(place);
            }
        }
    }

    fn restore(&mut self, entries: Vec<Entry>, offered: u64) {
        self.offered = offered;
        self.centroids = vec![];
        self.clusters = vec![];
        for entry in &entries {
            let sketch = entry.sketch.clone().unwrap_or_else(|| Sketch::new([0.0; LEN]));
            let cluster = self.join(&sketch);
            self.clusters.push(cluster);
        }
        self.held.restore(entries);
    }

    fn wants_sketches(&self) -> bool {
        true
    }

    fn seen(&mut self, id: u64, sketch: &Sketch) {
        let Some(place) = self.held.follow(id, sketch) else { return };
        let followed = self.held.entries()[place].sketch.as_ref();
        if let Some(cluster) = followed.and_then(|sketch| self.nearest(sketch)) {
            self.clusters[place] = cluster;
        }
    }

    fn state(&self) -> State {
        let centroids = self.centroids.iter().flat_map(|centroid| *centroid.at.values());
        named([
            (CENTROIDS, centroids.collect()),
            (SIZES, self.centroids.iter().map(|centroid| centroid.seen).collect()),
            (CLUSTERS, self.clusters.iter().map(|cluster| *cluster as f32).collect()),
        ])
    }

    fn load_state(&mut self, state: &State) {
        let columns = [CENTROIDS, SIZES, CLUSTERS].map(|name| state.get(name));
        let [Some(centroids), Some(seen), Some(clusters)] = columns else { return };
        let n = seen.len();
        let fits = centroids.len() == n * LEN && n <= self.max_clusters;
        let is_known = |cluster: &f32| (*cluster as usize) < n;
        if !fits || clusters.len() != self.clusters.len() || !clusters.iter().all(is_known) {
            return;
        }
        self.clusters = clusters.iter().map(|cluster| *cluster as usize).collect();
        let (rows, _) = centroids.as_chunks::<LEN>();
        let centroid =
            |(row, seen): (&[f32; LEN], &f32)| Centroid { at: Sketch::restored(*row), seen: *seen };
        self.centroids = rows.iter().zip(seen).map(centroid).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::super::sketch::BYTES;
    use super::super::tests::entry;
    use super::*;

    /// Along an axis, with a little of another.
    fn along(axis: usize, aside: f32) -> Sketch {
        let mut values = [0.0; LEN];
        (values[axis], values[LEN - 1]) = (1.0, aside);
        Sketch::new(values)
    }

    /// One kind arrives a hundred times as often as each of three others.
    #[test]
    fn kinds_share_the_buffer_however_often_they_arrive() {
        let mut balanced = Balanced::new(40 * (100 + BYTES), 4, 1);
        let kind_of = |offset: i64| if offset < 4 { offset } else { 0.max(offset % 100 - 96) };
        for offset in 0..4000 {
            let sketch = along(kind_of(offset) as usize, (offset % 7) as f32 / 100.0);
            balanced.offer(Entry { sketch: Some(sketch), ..entry(offset, 100) });
        }
        let mut counts = [0; 4];
        for entry in balanced.entries() {
            counts[kind_of(entry.origin.offset) as usize] += 1;
        }
        assert_eq!(counts, [10; 4]);
    }

    #[test]
    fn centroids_are_the_means_of_what_joined_them() {
        let mut balanced = Balanced::new(1_000_000, 2, 1);
        for (offset, (axis, aside)) in
            [(0, 0.0), (1, 0.0), (0, 0.2), (0, 0.1), (1, 0.4)].into_iter().enumerate()
        {
            let sketch = Some(along(axis, aside));
            balanced.offer(Entry { sketch, ..entry(offset as i64, 100) });
        }
        assert_eq!(balanced.clusters, [0, 1, 0, 0, 1]);
        // Means on the sphere: near the mean of the sides.
        let aside = |cluster: usize| balanced.centroids[cluster].at.values()[LEN - 1];
        assert!((aside(0) - 0.1).abs() < 0.01 && (aside(1) - 0.2).abs() < 0.02);
        // An image that comes to look like the other kind changes sides.
        let id = entry(2, 1).id();
        (0..8).for_each(|_| balanced.seen(id, &along(1, 0.0)));
        assert_eq!(balanced.clusters, [0, 1, 1, 0, 1]);
    }
}
