//! Where replayed images lie in the segments, and where new ones will.
//!
//! The learner gives each new image its place when it takes a copy for a checkpoint, so that the copy names
//! places that do not change; the segment is written later, on the checkpoint thread. A segment that has
//! become mostly dead is copied forward: its living images count as new.

use crate::replay::{Entry, StoredAt};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

/// A segment with less than this share alive is copied forward: a guess that bounds the folder at
/// about twice the budget.
const MIN_ALIVE: f64 = 0.5;

/// What the learner knows of the segments.
#[derive(Debug, Default)]
pub struct Places {
    next: u64,
    len_bytes: BTreeMap<u64, u64>,
}

/// A segment that is yet to be written.
#[derive(Debug)]
pub struct NewSegment {
    pub(super) number: u64,
    /// Its images, one after the other; their bytes are shared with the buffer, not copied.
    pub(super) images: Vec<Bytes>,
}

impl NewSegment {
    pub(super) fn len_bytes(&self) -> u64 {
        self.images.iter().map(|image| image.len() as u64).sum()
    }
}

impl Places {
    /// Beside segments of these lengths.
    pub(super) fn new(len_bytes: BTreeMap<u64, u64>) -> Self {
        let next = len_bytes.last_key_value().map_or(0, |(last, _)| last + 1);
        Self { next, len_bytes }
    }

    /// Gives a place to every entry that has none, or lies in a worn-out segment. The segment that holds
    /// them is to be written before a manifest that names it.
    #[must_use]
    pub fn assign(&mut self, entries: &mut [&mut Entry]) -> Option<NewSegment> {
        let worn = self.worn_out(entries);
        let is_new = |entry: &Entry| entry.stored_at.is_none_or(|at| worn.contains(&at.segment));
        let mut segment = NewSegment { number: self.next, images: vec![] };
        let mut position = 0;
        for entry in entries.iter_mut().filter(|entry| is_new(entry)) {
            entry.stored_at = Some(StoredAt { segment: segment.number, position });
            position += entry.bytes.len() as u64;
            segment.images.push(entry.bytes.clone());
        }
        if segment.images.is_empty() {
            return None;
        }
        self.len_bytes.insert(segment.number, position);
        self.next += 1;
        Some(segment)
    }

    fn worn_out(&self, entries: &[&mut Entry]) -> BTreeSet<u64> {
        let mut alive = BTreeMap::<u64, u64>::new();
        for entry in entries {
            if let Some(at) = entry.stored_at {
                *alive.entry(at.segment).or_default() += entry.bytes.len() as u64;
            }
        }
        let is_worn = |segment: &u64, alive: u64| {
            let len = self.len_bytes.get(segment).copied().unwrap_or(0);
            (alive as f64) < MIN_ALIVE * len as f64
        };
        alive.iter().filter(|(segment, alive)| is_worn(segment, **alive)).map(|(s, _)| *s).collect()
    }

    /// These segments are no more.
    pub fn forget(&mut self, removed: &[u64]) {
        for number in removed {
            self.len_bytes.remove(number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Origin;
    use std::sync::Arc;

    fn entry(offset: i64, len: usize) -> Entry {
        let origin = Origin { topic: Arc::from("images"), partition: 0, offset };
        Entry { origin, bytes: Bytes::from(vec![offset as u8; len]), stored_at: None, sketch: None }
    }

    fn assign(places: &mut Places, entries: &mut [Entry]) -> Option<NewSegment> {
        places.assign(&mut entries.iter_mut().collect::<Vec<_>>())
    }

    fn place(segment: u64, position: u64) -> Option<StoredAt> {
        Some(StoredAt { segment, position })
    }

    #[test]
    fn new_images_lie_one_after_the_other_and_old_ones_stay() {
        let mut places = Places::new([(3, 7)].into());
        let mut entries = vec![entry(0, 10), entry(1, 20)];
        let segment = assign(&mut places, &mut entries).unwrap();
        assert_eq!((segment.number, segment.len_bytes()), (4, 30));
        let at: Vec<_> = entries.iter().map(|entry| entry.stored_at).collect();
        assert_eq!(at, [place(4, 0), place(4, 10)]);
        assert!(assign(&mut places, &mut entries).is_none(), "nothing is new");

        entries.push(entry(2, 5));
        let segment = assign(&mut places, &mut entries).unwrap();
        assert_eq!((segment.number, segment.images), (5, vec![Bytes::from(vec![2; 5])]));
        let at: Vec<_> = entries.iter().map(|entry| entry.stored_at).collect();
        assert_eq!(at, [place(4, 0), place(4, 10), place(5, 0)]);
    }

    #[test]
    fn what_lives_in_a_worn_segment_is_copied_forward() {
        let mut places = Places::new(BTreeMap::new());
        let mut entries = vec![entry(0, 10), entry(1, 20)];
        assert_eq!(assign(&mut places, &mut entries).unwrap().number, 0);
        // A third is alive.
        entries.truncate(1);
        let segment = assign(&mut places, &mut entries).unwrap();
        assert_eq!((segment.number, segment.len_bytes()), (1, 10));
        assert_eq!(entries[0].stored_at, place(1, 0));
        places.forget(&[0]);
        assert_eq!(places.len_bytes, [(1, 10)].into());
    }
}
