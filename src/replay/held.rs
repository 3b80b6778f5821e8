//! Entries with their sketches, found by their origin, under a budget of bytes.

use super::Entry;
use super::sketch::{self, Sketch};
use std::collections::HashMap;

/// What a policy that looks at sketches holds.
pub(super) struct Held {
    max_bytes: usize,
    bytes: usize,
    entries: Vec<Entry>,
    /// Places by [`Entry::id`].
    places: HashMap<u64, usize>,
}

impl Held {
    /// Nothing, of at most `max_bytes` bytes of images and their sketches.
    pub(super) fn new(max_bytes: usize) -> Self {
        Self { max_bytes, bytes: 0, entries: vec![], places: HashMap::new() }
    }

    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub(super) fn entries_mut(&mut self) -> &mut [Entry] {
        &mut self.entries
    }

    /// Whether `entry` alone keeps the budget.
    pub(super) fn can_hold(&self, entry: &Entry) -> bool {
        cost(entry) <= self.max_bytes
    }

    /// Whether something must leave.
    pub(super) fn is_over_budget(&self) -> bool {
        self.bytes > self.max_bytes
    }

    /// Adds `entry` at the end, whatever the budget.
    pub(super) fn push(&mut self, entry: Entry) {
        self.bytes += cost(&entry);
        self.places.insert(entry.id(), self.entries.len());
        self.entries.push(entry);
    }

    /// Removes what is at `place`; the last entry takes it.
    pub(super) fn swap_remove(&mut self, place: usize) {
        let entry = self.entries.swap_remove(place);
        self.bytes -= cost(&entry);
        self.places.remove(&entry.id());
        if let Some(moved) = self.entries.get(place) {
            self.places.insert(moved.id(), place);
        }
    }

    /// Moves the sketch of the image `id` towards a newer one; returns its place, if it is held.
    pub(super) fn follow(&mut self, id: u64, newer: &Sketch) -> Option<usize> {
        let place = *self.places.get(&id)?;
        let entry = &mut self.entries[place];
        entry.sketch = Some(match &entry.sketch {
            Some(sketch) => sketch.followed_by(newer),
            None => newer.clone(),
        });
        Some(place)
    }

    /// The distance of two entries' sketches; 1 where one has none.
    pub(super) fn distance(&self, a: usize, b: usize) -> f32 {
        match (&self.entries[a].sketch, &self.entries[b].sketch) {
            (Some(a), Some(b)) => a.distance(b),
            _ => 1.0,
        }
    }

    /// Becomes what held `entries`.
    pub(super) fn restore(&mut self, entries: Vec<Entry>) {
        *self = Self::new(self.max_bytes);
        entries.into_iter().for_each(|entry| self.push(entry));
    }
}

fn cost(entry: &Entry) -> usize {
    entry.bytes.len() + sketch::BYTES
}
