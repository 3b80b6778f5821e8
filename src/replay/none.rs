//! No replay: each image is learned once, and a step waits for a whole batch of fresh ones.

use super::{Entry, Replay};

/// A buffer that keeps nothing.
#[derive(Default)]
pub(super) struct None {
    offered: u64,
}

impl Replay for None {
    fn offer(&mut self, _entry: Entry) {
        self.offered += 1;
    }

    fn offered(&self) -> u64 {
        self.offered
    }

    fn entries(&self) -> &[Entry] {
        &[]
    }

    fn entries_mut(&mut self) -> &mut [Entry] {
        &mut []
    }

    fn retain(&mut self, _is_kept: &dyn Fn(&Entry) -> bool) {}

    fn restore(&mut self, _entries: Vec<Entry>, offered: u64) {
        self.offered = offered;
    }
}
