//! Where refused records go, as the learner sees it.

use crate::sink::dead_letter::{Acknowledged, DeadLetters};
use tokio::sync::mpsc;

/// Where refused records go.
pub struct Refuse {
    /// What the dead-letter topic's broker has acknowledged. It stands first to be dropped first: the
    /// producer ends only when its thread does, and that waits for room here.
    pub acknowledged: mpsc::Receiver<Acknowledged>,
    /// The dead-letter topic; without one, refused records are counted and dropped.
    pub letters: Option<DeadLetters>,
}

impl Refuse {
    /// Refused records are counted and dropped.
    pub fn and_drop() -> Self {
        Self { letters: None, acknowledged: mpsc::channel(1).1 }
    }
}
