//! Every policy beside what must be true of any buffer, and beside itself with restarts between; and whether
//! what is drawn, and what a reservoir keeps, is drawn evenly.

use super::tests::{MAX_BYTES, entry, look, small};
use super::{Config, Entry, Policy, Replay, StoredAt, draw, sketch};
use proptest::prelude::*;
use proptest::sample::Index;

/// One thing that happens to a buffer.
#[derive(Clone, Debug)]
enum Event {
    /// An image of so many bytes is offered, of this look.
    Offer(usize, usize),
    /// A step makes this of an image that was offered.
    Seen(Index, usize),
    /// The bytes of what is held are put on disk.
    Store,
    /// The process ends and begins with what was saved.
    Restart,
}

fn event() -> impl Strategy<Value = Event> {
    let len_bytes = prop_oneof![12 => 1usize..400, 1 => MAX_BYTES - 400..MAX_BYTES + 400];
    prop_oneof![
        12 => (len_bytes, 0usize..77).prop_map(|(len, look)| Event::Offer(len, look)),
        4 => (any::<Index>(), 0usize..77).prop_map(|(of, look)| Event::Seen(of, look)),
        1 => Just(Event::Store),
        1 => Just(Event::Restart),
    ]
}

/// A buffer that is never interrupted, and one that is.
struct Pair {
    policy: Policy,
    straight: Box<dyn Replay>,
    resumed: Box<dyn Replay>,
    n_offered: usize,
    n_stored: u64,
    /// Whether something that could be held found too little room.
    has_been_full: bool,
}

impl Pair {
    fn new(policy: Policy) -> Self {
        let (straight, resumed) = (small(policy), small(policy));
        Self { policy, straight, resumed, n_offered: 0, n_stored: 0, has_been_full: false }
    }

    fn cost(&self, entries: &[Entry]) -> usize {
        let beside = if self.straight.wants_sketches() { sketch::BYTES } else { 0 };
        entries.iter().map(|entry| entry.bytes.len() + beside).sum()
    }

    fn happen(&mut self, event: &Event) -> Result<(), TestCaseError> {
        match event {
            Event::Offer(len, number) => self.offer(*len, *number)?,
            Event::Seen(_, _) if self.n_offered == 0 => {}
            Event::Seen(of, number) => self.see(of.index(self.n_offered) as i64, *number)?,
            Event::Store => {
                self.n_stored += 1;
                for buffer in [&mut self.straight, &mut self.resumed] {
                    for (position, entry) in (0..).zip(buffer.entries_mut()) {
                        let here = StoredAt { segment: self.n_stored, position };
                        entry.stored_at.get_or_insert(here);
                    }
                }
            }
            Event::Restart => {
                let mut restored = small(self.policy);
                restored.restore(self.resumed.entries().to_vec(), self.resumed.offered());
                restored.load_state(&self.resumed.state());
                self.resumed = restored;
            }
        }
        self.check()
    }

    fn offer(&mut self, len: usize, number: usize) -> Result<(), TestCaseError> {
        let new = Entry { sketch: Some(look(number)), ..entry(self.n_offered as i64, len) };
        self.n_offered += 1;
        let before = self.straight.entries().to_vec();
        self.straight.offer(new.clone());
        self.resumed.offer(new.clone());
        let after = self.straight.entries();
        let all = [before.clone(), vec![new.clone()]].concat();
        if self.policy == Policy::None {
            prop_assert!(after.is_empty());
        } else if self.cost(&[new]) > MAX_BYTES {
            prop_assert_eq!(after, &before[..], "what cannot be held displaces none");
        } else if self.policy == Policy::Reservoir && self.has_been_full && after == before {
            // It drew that this one stays out, though there may be room.
        } else if self.cost(&all) <= MAX_BYTES {
            prop_assert_eq!(after, &all[..], "nothing leaves while there is room");
        } else {
            self.has_been_full = true;
            let (held, left): (Vec<Entry>, Vec<Entry>) =
                all.iter().cloned().partition(|entry| after.contains(entry));
            prop_assert_eq!(held.len(), after.len(), "something is held that was not offered");
            // Before the last one left, there was too much.
            let last =
                left.iter().map(|last| self.cost(after) + self.cost(std::slice::from_ref(last)));
            prop_assert!(last.max() > Some(MAX_BYTES), "more left than had to: {:?}", left);
            if self.policy == Policy::Fifo {
                prop_assert_eq!(after, &all[left.len()..]);
            }
        }
        Ok(())
    }

    fn see(&mut self, offset: i64, number: usize) -> Result<(), TestCaseError> {
        let mut expected = self.straight.entries().to_vec();
        if self.straight.wants_sketches() {
            for entry in expected.iter_mut().filter(|entry| entry.origin.offset == offset) {
                let followed = entry.sketch.as_ref().map(|old| old.followed_by(&look(number)));
                entry.sketch = followed;
            }
        }
        let id = entry(offset, 1).id();
        self.straight.seen(id, &look(number));
        self.resumed.seen(id, &look(number));
        prop_assert_eq!(self.straight.entries(), &expected[..]);
        Ok(())
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let (straight, resumed) = (&*self.straight, &*self.resumed);
        prop_assert!(self.cost(straight.entries()) <= MAX_BYTES);
        prop_assert_eq!(straight.offered(), self.n_offered as u64);
        prop_assert_eq!(straight.entries(), resumed.entries());
        prop_assert_eq!(straight.offered(), resumed.offered());
        prop_assert_eq!(straight.state(), resumed.state());
        let step = self.n_offered as u64;
        for n in [1, 7, 40] {
            prop_assert_eq!(draw(straight, n, 3, step), draw(resumed, n, 3, step));
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn whatever_happens_a_buffer_keeps_its_budget_and_forgets_nothing_in_a_restart(
        events in prop::collection::vec(event(), 0..120),
    ) {
        for policy in Policy::ALL {
            let mut pair = Pair::new(policy);
            for event in &events {
                pair.happen(event)?;
            }
        }
    }
}

/// How far `counts` of so many `runs`, each of which took `n_taken` different ones, are from even: a number of
/// the chi-squared distribution with one degree of freedom less than there are counts.
fn unevenness(counts: &[usize], n_taken: usize, runs: usize) -> f64 {
    let (n, runs) = (counts.len() as f64, runs as f64);
    let share = n_taken as f64 / n;
    let squares = counts.iter().map(|count| (*count as f64 - runs * share).powi(2)).sum::<f64>();
    // What is taken at once is taken without replacement, so counts vary less, and against each other.
    squares / (runs * share * (1.0 - share)) * (n - 1.0) / n
}

/// Six deviations above the mean of that distribution: the seeds are fixed, so it holds for ever or never.
fn bound(counts: &[usize]) -> f64 {
    let degrees = (counts.len() - 1) as f64;
    degrees + 6.0 * (2.0 * degrees).sqrt()
}

#[test]
fn a_reservoir_keeps_every_image_as_likely_with_a_restart_between() {
    const KEPT: usize = 12;
    const RUNS: usize = 3000;
    let config = Config { max_bytes: KEPT * 100, ..Config::default() };
    let mut stays = [0; 60];
    for run in 0..RUNS {
        let mut reservoir = config.build(run as u64);
        for offset in 0..stays.len() {
            if offset == 35 {
                let mut restored = config.build(run as u64);
                restored.restore(reservoir.entries().to_vec(), reservoir.offered());
                reservoir = restored;
            }
            reservoir.offer(entry(offset as i64, 100));
        }
        assert_eq!(reservoir.entries().len(), KEPT);
        for entry in reservoir.entries() {
            stays[entry.origin.offset as usize] += 1;
        }
    }
    let unevenness = unevenness(&stays, KEPT, RUNS);
    assert!(unevenness < bound(&stays), "{unevenness}: {stays:?}");
}

#[test]
fn every_entry_is_drawn_as_often() {
    const DRAWN: usize = 5;
    const STEPS: usize = 4000;
    let mut replay = Config::default().build(1);
    let mut counts = [0; 20];
    (0..counts.len()).for_each(|offset| replay.offer(entry(offset as i64, 100)));
    for step in 0..STEPS {
        for entry in draw(&*replay, DRAWN, 7, step as u64) {
            counts[entry.origin.offset as usize] += 1;
        }
    }
    let unevenness = unevenness(&counts, DRAWN, STEPS);
    assert!(unevenness < bound(&counts), "{unevenness}: {counts:?}");
}

/// The measure tells what is uneven: of counts as above, one in twenty that is drawn half as often again.
#[test]
fn an_uneven_draw_is_told() {
    let mut counts = [1000; 20];
    assert!(unevenness(&counts, 5, 4000) < 1e-9);
    counts[3] = 1500;
    assert!(unevenness(&counts, 5, 4000) > bound(&counts));
}
