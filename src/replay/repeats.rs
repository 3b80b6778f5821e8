//! Frames that repeat: of images that look alike and arrive near each other, one is kept.

use super::{State, named};
use crate::decode::fingerprint::difference;
use std::collections::VecDeque;

/// The name of the fingerprints in checkpoints: four numbers of 16 bits each, exact in f32.
const FINGERPRINTS: &str = "fingerprints";

/// The fingerprints of the images that were kept last.
#[derive(Debug, Default)]
pub struct Repeats {
    window: usize,
    max_bits: u32,
    kept: VecDeque<u64>,
}

impl Repeats {
    /// Looks back at the `window` images that were kept last; two are alike if their fingerprints
    /// differ in at most `max_bits` bits.
    pub fn new(window: usize, max_bits: u32) -> Self {
        Self { window, max_bits, kept: VecDeque::new() }
    }

    /// Whether it looks at all.
    pub fn is_on(&self) -> bool {
        self.window > 0
    }

    /// Whether an image repeats one of those; if not, it is one of them from now on. As it is
    /// compared with what was kept, a slow change is noticed when it has gone far enough.
    pub fn is_repeat(&mut self, fingerprint: u64) -> bool {
        if !self.is_on() {
            return false;
        }
        if self.kept.iter().any(|kept| difference(*kept, fingerprint) <= self.max_bits) {
            return true;
        }
        if self.kept.len() == self.window {
            self.kept.pop_front();
        }
        self.kept.push_back(fingerprint);
        false
    }

    /// What it needs to go on, for checkpoints.
    pub fn state(&self) -> State {
        let parts = |kept: &u64| [48, 32, 16, 0].map(|shift| (*kept >> shift & 0xffff) as f32);
        named([(FINGERPRINTS, self.kept.iter().flat_map(parts).collect())])
    }

    /// Takes what `state` gave.
    pub fn load_state(&mut self, state: &State) {
        let Some(values) = state.get(FINGERPRINTS) else { return };
        let (parts, _) = values.as_chunks::<4>();
        let whole = |parts: &[f32; 4]| parts.iter().fold(0, |all, part| all << 16 | *part as u64);
        self.kept = parts.iter().map(whole).collect();
        while self.kept.len() > self.window {
            self.kept.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_burst_the_first_is_kept_and_a_slow_change_is_noticed() {
        let mut repeats = Repeats::new(3, 2);
        // Each frame differs from the one before in one bit.
        let frames = (0..12).map(|n| (1_u64 << n) - 1);
        let kept: Vec<bool> = frames.map(|frame| !repeats.is_repeat(frame)).collect();
        let every_third: Vec<bool> = (0..12).map(|n| n % 3 == 0).collect();
        assert_eq!(kept, every_third);
        // What is out of the window is new again.
        assert!(!repeats.is_repeat(0));
        assert!(repeats.is_repeat(1));
        let mut off = Repeats::new(0, 64);
        assert!(!off.is_repeat(0) && !off.is_repeat(0) && !off.is_on());
    }

    #[test]
    fn it_goes_through_its_state() {
        let mut repeats = Repeats::new(5, 0);
        let numbers = [u64::MAX, 0x0123_4567_89ab_cdef, 1, 0];
        assert!(numbers.iter().all(|number| !repeats.is_repeat(*number)));
        let mut restored = Repeats::new(5, 0);
        restored.load_state(&repeats.state());
        assert_eq!(restored.kept, numbers);
        // A smaller window keeps the newest.
        let mut smaller = Repeats::new(2, 0);
        smaller.load_state(&repeats.state());
        assert_eq!(smaller.kept, [1, 0]);
    }
}
