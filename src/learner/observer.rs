//! Who looks on as records arrive, without a part in learning.

use crate::gate::Accuracy;
use crate::snapshot::Snapshot;
use crate::source::Record;
use crate::source::offsets::{Partition, Place};
use std::collections::HashMap;
use std::sync::Arc;

/// Sees every record that was decoded, before it is learned. The learner waits for it, so it must be
/// quick.
pub trait Observer: Send + Sync {
    /// A decoded record has arrived.
    fn arrived(&self, record: &Record);

    /// The accuracy that it has found so far, for the history.
    fn accuracy(&self) -> Option<f64>;

    /// How well a candidate does beside the version that serves, for the gate; unset by who cannot tell. The learner
    /// waits for it at each candidate.
    fn compare(&self, _candidate: &Snapshot) -> Option<Accuracy> {
        None
    }
}

/// The observers of a run. They see each record once, although going back reads it again: to them nothing
/// has changed.
pub(super) struct Audience {
    observers: Vec<Arc<dyn Observer>>,
    /// The first offset of each partition that they have not been shown.
    unseen: HashMap<Partition, i64>,
}

impl Audience {
    pub(super) fn new(observers: Vec<Arc<dyn Observer>>) -> Self {
        Self { observers, unseen: HashMap::new() }
    }

    /// `partition` is read from `place`; offsets of a topic that was made anew are other records.
    pub(super) fn begin(&mut self, partition: &Partition, place: Place) {
        if place.is_anew {
            self.unseen.remove(partition);
        }
    }

    /// Shows a decoded record.
    pub(super) fn arrived(&mut self, record: &Record) {
        let offset = record.origin.offset;
        let unseen = self.unseen.entry(Partition::from(&record.origin)).or_insert(offset);
        if offset >= *unseen {
            *unseen = offset + 1;
            self.observers.iter().for_each(|observer| observer.arrived(record));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Origin;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Notes(Mutex<Vec<(i32, i64)>>);

    impl Observer for Notes {
        fn arrived(&self, record: &Record) {
            let Origin { partition, offset, .. } = record.origin;
            self.0.lock().unwrap().push((partition, offset));
        }

        fn accuracy(&self) -> Option<f64> {
            None
        }
    }

    #[test]
    fn a_record_is_shown_once_unless_its_topic_was_made_anew() {
        let notes = Arc::new(Notes::default());
        let mut audience = Audience::new(vec![Arc::clone(&notes) as Arc<dyn Observer>]);
        let origin = |(partition, offset)| Origin { topic: Arc::from("images"), partition, offset };
        let show = |audience: &mut Audience, places: &[(i32, i64)]| {
            places.iter().for_each(|at| audience.arrived(&Record::skipped(origin(*at), 1)));
            std::mem::take(&mut *notes.0.lock().unwrap())
        };
        let first = [(0, 7), (1, 3), (0, 8), (1, 5)];
        assert_eq!(show(&mut audience, &first), first);
        let again = [(0, 7), (0, 8), (0, 9), (1, 3), (1, 4), (1, 6)];
        assert_eq!(show(&mut audience, &again), [(0, 9), (1, 6)]);
        let partition = Partition::from(&origin((0, 0)));
        audience.begin(&partition, Place { offset: 2, lost: 0, is_anew: false });
        assert_eq!(show(&mut audience, &[(0, 2)]), []);
        audience.begin(&partition, Place { offset: 0, lost: 0, is_anew: true });
        assert_eq!(show(&mut audience, &[(0, 0), (1, 0)]), [(0, 0)]);
    }
}
