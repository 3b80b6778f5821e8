//! The rule of dynamic batching, free of threads and clocks: who goes into the next batch.
//!
//! A batch holds items of one kind (one snapshot), oldest first. It leaves when an item has
//! waited for `max_wait`, with whatever company it has, or when it is full. Of both, the item that
//! has waited too long goes first, or a steady load on a new version would starve the old one.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// When a batch leaves.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rule {
    /// Most items in a batch; at least 1.
    pub(super) max_items: usize,
    /// How long an item may wait for company.
    pub(super) max_wait: Duration,
}

/// Items of one kind that leave together.
#[derive(Debug, PartialEq)]
pub(super) struct Batch<K, T> {
    pub(super) kind: K,
    /// Never empty, oldest first.
    pub(super) items: Vec<T>,
}

/// What to do now.
#[derive(Debug, PartialEq)]
pub(super) enum Next<K, T> {
    /// This batch leaves.
    Batch(Batch<K, T>),
    /// Nothing leaves before this moment, unless more arrives.
    WaitUntil(Instant),
    /// Nothing is waiting.
    Empty,
}

/// Items that wait, in groups of one kind each.
pub(super) struct Queue<K, T> {
    rule: Rule,
    groups: Vec<Group<K, T>>,
}

/// Never empty.
struct Group<K, T> {
    kind: K,
    items: VecDeque<(Instant, T)>,
}

impl<K, T> Group<K, T> {
    fn oldest(&self) -> Instant {
        self.items.front().expect("a group is removed with its last item").0
    }
}

impl<K: Clone + PartialEq, T> Queue<K, T> {
    pub(super) fn new(rule: Rule) -> Self {
        Self { rule, groups: Vec::new() }
    }

    /// Adds an item that has been waiting since `since`.
    pub(super) fn push(&mut self, kind: K, since: Instant, item: T) {
        match self.groups.iter_mut().find(|group| group.kind == kind) {
            Some(group) => group.items.push_back((since, item)),
            None => self.groups.push(Group { kind, items: VecDeque::from([(since, item)]) }),
        }
    }

    /// The batch that leaves at `now`, if one does.
    pub(super) fn next(&mut self, now: Instant) -> Next<K, T> {
        let Some(oldest) = self.oldest_group() else { return Next::Empty };
        let deadline = self.groups[oldest].oldest() + self.rule.max_wait;
        if deadline <= now {
            return Next::Batch(self.take(oldest));
        }
        match self.groups.iter().position(|group| group.items.len() >= self.rule.max_items) {
            Some(full) => Next::Batch(self.take(full)),
            None => Next::WaitUntil(deadline),
        }
    }

    /// A batch with the oldest item, whether or not it has waited enough.
    pub(super) fn take_oldest(&mut self) -> Option<Batch<K, T>> {
        self.oldest_group().map(|oldest| self.take(oldest))
    }

    fn oldest_group(&self) -> Option<usize> {
        (0..self.groups.len()).min_by_key(|&index| self.groups[index].oldest())
    }

    fn take(&mut self, index: usize) -> Batch<K, T> {
        let group = &mut self.groups[index];
        let n_items = group.items.len().min(self.rule.max_items);
        let kind = group.kind.clone();
        let items = group.items.drain(..n_items).map(|(_, item)| item).collect();
        if group.items.is_empty() {
            self.groups.remove(index);
        }
        Batch { kind, items }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RULE: Rule = Rule { max_items: 3, max_wait: Duration::from_millis(2) };

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn one_item_leaves_at_its_deadline_and_not_before() {
        let start = Instant::now();
        let mut queue = Queue::new(RULE);
        assert_eq!(queue.next(start), Next::Empty);
        queue.push("a", start, 1);
        assert_eq!(queue.next(start + ms(1)), Next::WaitUntil(start + ms(2)));
        let batch = Batch { kind: "a", items: vec![1] };
        assert_eq!(queue.next(start + ms(2)), Next::Batch(batch));
        assert_eq!(queue.next(start + ms(2)), Next::Empty);
    }

    #[test]
    fn a_full_batch_leaves_at_once_and_the_rest_waits() {
        let start = Instant::now();
        let mut queue = Queue::new(RULE);
        for item in 0..4 {
            queue.push("a", start, item);
        }
        assert_eq!(queue.next(start), Next::Batch(Batch { kind: "a", items: vec![0, 1, 2] }));
        assert_eq!(queue.next(start), Next::WaitUntil(start + ms(2)));
    }

    #[test]
    fn a_full_batch_of_another_kind_overtakes_until_the_deadline() {
        let start = Instant::now();
        for (now, kind) in [(start + ms(1), "new"), (start + ms(2), "old")] {
            let mut queue = Queue::new(RULE);
            queue.push("old", start, 0);
            for item in 1..4 {
                queue.push("new", start + ms(1), item);
            }
            let Next::Batch(batch) = queue.next(now) else { panic!("nothing left at {now:?}") };
            assert_eq!(batch.kind, kind);
        }
    }

    #[derive(Debug, Clone)]
    enum Event {
        Push(u8),
        Pass(u64),
        Poll,
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let event = prop_oneof![
            3 => (0u8..3).prop_map(Event::Push),
            1 => (0u64..4).prop_map(Event::Pass),
            2 => Just(Event::Poll),
        ];
        prop::collection::vec(event, 0..200)
    }

    /// What waits: number, kind, since when.
    type Waiting = Vec<(usize, u8, Instant)>;

    /// Checks one batch against the model and removes its items from it.
    fn leave(waiting: &mut Waiting, batch: &Batch<u8, usize>, rule: Rule) {
        let of_kind = waiting.iter().filter(|(_, kind, _)| *kind == batch.kind);
        let expected: Vec<usize> = of_kind.map(|(n, ..)| *n).take(rule.max_items).collect();
        // Size, order, one kind, and that nothing comes out that did not wait: no doubles.
        assert!(!batch.items.is_empty());
        assert_eq!(batch.items, expected);
        waiting.retain(|(n, ..)| !batch.items.contains(n));
    }

    proptest! {
        #[test]
        fn none_lost_none_doubled_in_order_in_size_in_time(
            events in events(), max_items in 1usize..5, max_wait_ms in 0u64..5,
        ) {
            let rule = Rule { max_items, max_wait: ms(max_wait_ms) };
            let mut queue = Queue::new(rule);
            let mut now = Instant::now();
            let mut waiting = Waiting::new();
            for (n, event) in events.into_iter().enumerate() {
                match event {
                    Event::Push(kind) => {
                        queue.push(kind, now, n);
                        waiting.push((n, kind, now));
                    }
                    Event::Pass(passed_ms) => now += ms(passed_ms),
                    Event::Poll => {
                        let oldest = waiting.first().copied();
                        let is_due = oldest.is_some_and(|(_, _, s)| s + rule.max_wait <= now);
                        match queue.next(now) {
                            Next::Empty => prop_assert!(oldest.is_none()),
                            Next::WaitUntil(deadline) => {
                                prop_assert!(!is_due);
                                prop_assert_eq!(Some(deadline), oldest.map(|o| o.2 + rule.max_wait));
                                for kind in 0..3 {
                                    let n_items = waiting.iter().filter(|w| w.1 == kind).count();
                                    prop_assert!(n_items < max_items);
                                }
                            }
                            Next::Batch(batch) => {
                                prop_assert!(is_due || batch.items.len() == max_items);
                                // The item that waited longest never waits for a full batch.
                                let leaves = oldest.is_some_and(|o| batch.items.contains(&o.0));
                                let is_tie = oldest.is_some_and(|o| {
                                    waiting.iter().any(|w| w.2 == o.2 && batch.items.contains(&w.0))
                                });
                                prop_assert!(!is_due || leaves || is_tie);
                                leave(&mut waiting, &batch, rule);
                            }
                        }
                    }
                }
            }
            while let Some(batch) = queue.take_oldest() {
                leave(&mut waiting, &batch, rule);
            }
            prop_assert!(waiting.is_empty());
        }
    }
}
