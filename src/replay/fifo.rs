//! First in, first out: the newest images that fit the budget of bytes.

use super::{Entry, Replay};

/// The newest images offered, oldest first.
pub(super) struct Fifo {
    max_bytes: usize,
    bytes: usize,
    offered: u64,
    entries: Vec<Entry>,
    /// Entries at the front that have left; they are cleared away when they are half of all, so that
    /// leaving costs little.
    left: usize,
}

impl Fifo {
    /// An empty queue of at most `max_bytes` bytes of images.
    pub(super) fn new(max_bytes: usize) -> Self {
        Self { max_bytes, bytes: 0, offered: 0, entries: vec![], left: 0 }
    }

    fn leave(&mut self) {
        let oldest = &mut self.entries[self.left];
        self.bytes -= oldest.bytes.len();
        oldest.bytes.clear();
        self.left += 1;
        if 2 * self.left >= self.entries.len() {
            self.entries.drain(..self.left);
            self.left = 0;
        }
    }
}

impl Replay for Fifo {
    fn offer(&mut self, entry: Entry) {
        self.offered += 1;
        let len = entry.bytes.len();
        if len > self.max_bytes {
            return;
        }
        while self.bytes + len > self.max_bytes {
            self.leave();
        }
        self.bytes += len;
        self.entries.push(entry);
    }

    fn offered(&self) -> u64 {
        self.offered
    }

    fn entries(&self) -> &[Entry] {
        &self.entries[self.left..]
    }

    fn entries_mut(&mut self) -> &mut [Entry] {
        &mut self.entries[self.left..]
    }

    fn retain(&mut self, is_kept: &dyn Fn(&Entry) -> bool) {
        self.entries.drain(..self.left);
        self.left = 0;
        self.entries.retain(is_kept);
        self.bytes = self.entries.iter().map(|entry| entry.bytes.len()).sum();
    }

    fn restore(&mut self, entries: Vec<Entry>, offered: u64) {
        self.bytes = entries.iter().map(|entry| entry.bytes.len()).sum();
        self.offered = offered;
        self.entries = entries;
        self.left = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::entry;
    use super::*;

    #[test]
    fn the_newest_that_fit_stay_in_their_order() {
        let mut fifo = Fifo::new(1000);
        for offset in 0..50 {
            fifo.offer(entry(offset, 100 + 10 * (offset as usize % 3)));
        }
        let offsets: Vec<i64> = fifo.entries().iter().map(|entry| entry.origin.offset).collect();
        // 110 on average: nine fit.
        assert_eq!(offsets, (41..50).collect::<Vec<_>>());
        fifo.offer(entry(50, 1001));
        assert_eq!(fifo.entries().len(), 9, "an image over the budget displaces none");
        fifo.offer(entry(51, 1000));
        assert_eq!(fifo.entries().len(), 1);
    }
}
