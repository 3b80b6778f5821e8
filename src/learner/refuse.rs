//! Where refused records go, as the learner sees it.

use crate::sink::dead_letter::{Acknowledged, DeadLetters};
use tokio::sync::mpsc;

/// Where refused records go.
pub struct Refuse {
    /// The dead-letter topic; without one, refused records are counted and dropped.
    pub letters: Option<DeadLetters>,
    /// What its broker has acknowledged.
    pub acknowledged: mpsc::Receiver<Acknowledged>,
}

impl Refuse {
    /// Refused records are counted and dropped.
    pub fn and_drop() -> Self {
        Self { letters: None, acknowledged: mpsc::channel(1).1 }
    }
}
