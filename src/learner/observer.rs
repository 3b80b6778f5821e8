//! Who looks on as records arrive, without a part in learning.

use crate::gate::Accuracy;
use crate::snapshot::Snapshot;
use crate::source::Record;

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
