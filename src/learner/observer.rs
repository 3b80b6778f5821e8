//! Who looks on as records arrive, without a part in learning.

use crate::source::Record;

/// Sees every record that was decoded, before it is learned. The learner waits for it, so it must be
/// quick.
pub trait Observer: Send + Sync {
    /// A decoded record has arrived.
    fn arrived(&self, record: &Record);

    /// The accuracy that it has found so far, for the history.
    fn accuracy(&self) -> Option<f64>;
}
