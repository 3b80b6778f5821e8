//! Which records are taken where the topic is faster than the learner.
//!
//! Without a target all are, and the lag grows. With one, one record in n is taken, evenly. With A the
//! records that arrive in a second and F those that the learner takes, both as moving averages,
//!
//! ```text
//! n = max(1, (A + (lag - target) / SETTLE) / F),    1 while the lag is below half the target
//! ```
//!
//! reads so fast that what the lag is too much is gone in [`SETTLE`] (feedback on the lag with the arrivals
//! fed forward: it settles without swinging, however fast the topic is). Below half the target nothing is
//! skipped, so that a short burst passes whole.

use std::time::{Duration, Instant};

/// Time between two readings that count.
const EVERY: Duration = Duration::from_secs(1);
/// Time in which the lag comes to its target. A guess: slow enough for readings a second apart.
const SETTLE: Duration = Duration::from_secs(10);
/// Share of a moving average that a reading replaces. A guess: some five readings count.
const SHARE: f64 = 0.2;
/// One record in so many is always taken.
const MOST_RECORDS: f64 = 10_000.0;

/// Tells the records that are taken from those that are skipped.
#[derive(Debug)]
pub(super) struct Pace {
    target_records: Option<u64>,
    one_in: f64,
    /// What is owed of the next record to take.
    credit: f64,
    /// Since the last reading.
    n_read: u64,
    n_taken: u64,
    last: Option<Reading>,
}

/// The topic at one time.
#[derive(Debug)]
struct Reading {
    at: Instant,
    lag_records: u64,
    /// Records a second.
    arriving: f64,
    taken: f64,
}

impl Pace {
    /// A pace that holds the lag to `target_records`, or takes all.
    pub(super) fn new(target_records: Option<u64>) -> Self {
        Self { target_records, one_in: 1.0, credit: 0.0, n_read: 0, n_taken: 0, last: None }
    }

    /// Looks at the lag, if it is time to.
    pub(super) fn observe(&mut self, lag_records: u64, now: Instant) {
        let Some(target) = self.target_records else { return };
        let is_low = (lag_records as f64) < target as f64 / 2.0;
        if is_low {
            // At once: of what is left of a burst nothing may be taken by which its end could be measured.
            self.one_in = 1.0;
        }
        let is_early = |last: &Reading| now.duration_since(last.at) < EVERY;
        // A learner that takes nothing is busy or stopped, not slow.
        if self.last.as_ref().is_some_and(is_early) || self.n_taken == 0 {
            return;
        }
        let (n_read, n_taken) =
            (std::mem::take(&mut self.n_read), std::mem::take(&mut self.n_taken));
        let Some(last) = &self.last else {
            self.last = Some(Reading { at: now, lag_records, arriving: 0.0, taken: 0.0 });
            return;
        };
        let seconds = now.duration_since(last.at).as_secs_f64();
        let grown = lag_records as f64 - last.lag_records as f64;
        let average = |before: f64, records: f64| {
            let now = records / seconds;
            if before == 0.0 { now } else { before + SHARE * (now - before) }
        };
        let arriving = average(last.arriving, n_read as f64 + grown).max(0.0);
        let taken = average(last.taken, n_taken as f64);
        self.last = Some(Reading { at: now, lag_records, arriving, taken });
        let (lag, target) = (lag_records as f64, target as f64);
        let wanted = (arriving + (lag - target) / SETTLE.as_secs_f64()) / taken;
        self.one_in = if is_low { 1.0 } else { wanted.clamp(1.0, MOST_RECORDS) };
    }

    /// Whether the next record is taken.
    pub(super) fn takes(&mut self) -> bool {
        self.credit += 1.0 / self.one_in;
        let is_taken = self.credit >= 1.0;
        if is_taken {
            self.credit -= 1.0;
        }
        self.n_read += 1;
        self.n_taken += u64::from(is_taken);
        is_taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A topic of `arriving(second)` records and a learner of `learning(second)`, for `seconds`: the lag
    /// after each, and whether a record was skipped in it.
    fn simulate(
        pace: &mut Pace,
        arriving: impl Fn(u32) -> u32,
        learning: impl Fn(u32) -> u32,
        seconds: u32,
    ) -> Vec<(u32, bool)> {
        let began = pace.last.as_ref().map_or_else(Instant::now, |last| last.at);
        let (mut lag, mut seen) = (0, vec![]);
        for second in 0..seconds {
            lag += arriving(second);
            let (mut room, mut has_skipped) = (learning(second), false);
            while room > 0 && lag > 0 {
                lag -= 1;
                let is_taken = pace.takes();
                room -= u32::from(is_taken);
                has_skipped |= !is_taken;
            }
            pace.observe(u64::from(lag), began + EVERY * (second + 1));
            seen.push((lag, has_skipped));
        }
        seen
    }

    #[test]
    fn a_topic_that_is_too_fast_is_sampled_and_its_lag_held() {
        for (target, arriving) in [(5000_u32, 1000), (1000, 1000), (20_000, 3000), (2000, 150)] {
            let mut pace = Pace::new(Some(u64::from(target)));
            let seen = simulate(&mut pace, |_| arriving, |_| 100, 600);
            let late = seen[400..].iter().map(|(lag, _)| f64::from(*lag) / f64::from(target));
            assert!(late.clone().all(|lag| (0.9..1.1).contains(&lag)), "{target}, {arriving}");
            assert!((pace.one_in / f64::from(arriving) * 100.0 - 1.0).abs() < 0.05);
        }
    }

    #[test]
    fn what_the_learner_can_take_is_taken_whole() {
        let skips = |pace: &mut Pace, arriving: fn(u32) -> u32| {
            simulate(pace, arriving, |_| 100, 200).iter().any(|(_, has_skipped)| *has_skipped)
        };
        assert!(!skips(&mut Pace::new(None), |_| 1000), "without a target");
        let mut pace = Pace::new(Some(5000));
        assert!(!skips(&mut pace, |_| 90), "a slow topic");
        assert!(!skips(&mut pace, |second| if second < 2 { 1000 } else { 50 }), "a short burst");
        assert!(skips(&mut pace, |_| 1000));
        // When the topic slows down, all are taken again.
        simulate(&mut pace, |_| 10, |_| 100, 300);
        assert!(!skips(&mut pace, |_| 10));
    }

    /// However few records come then: one in thousands may be none of them for minutes.
    #[test]
    fn after_a_burst_nothing_is_skipped() {
        let mut pace = Pace::new(Some(5000));
        simulate(&mut pace, |_| 30_000, |_| 10, 60);
        assert!(pace.one_in > 1000.0, "{}", pace.one_in);
        // What was left of the burst has been read; a few records come in the second after.
        let seen = simulate(&mut pace, |_| 5, |_| 100, 60);
        assert!(seen[1..].iter().all(|(_, has_skipped)| !has_skipped), "{seen:?}");
    }

    #[test]
    fn a_learner_that_stops_for_a_while_is_no_slow_one() {
        let mut pace = Pace::new(Some(5000));
        let stops = |second: u32| if (200..230).contains(&second) { 0 } else { 100 };
        let seen = simulate(&mut pace, |_| 1000, stops, 400);
        assert!(seen[230..].iter().all(|(lag, _)| *lag > 4000), "not emptied");
        assert!((4500..5500).contains(&seen[399].0), "{:?}", seen[399]);
    }

    #[test]
    fn records_are_taken_evenly() {
        let mut pace = Pace { one_in: 3.7, ..Pace::new(Some(1)) };
        let taken: Vec<usize> = (0..3700).filter(|_| pace.takes()).collect();
        assert!((taken.len() as i64 - 1000).abs() <= 1);
        assert!(taken.windows(2).all(|pair| (3..=4).contains(&(pair[1] - pair[0]))));
    }
}
