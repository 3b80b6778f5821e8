//! Threads that stay awake for short work. The layers of one image take tens of microseconds each, and
//! between two of them a thread that finds nothing to do falls asleep; to wake it takes as long.

use rayon::Yield;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long a thread looks for tasks in vain before it may sleep after all. It must: where it began to
/// look while it waited inside a task of this very work, the work waits for it.
const PATIENCE: Duration = Duration::from_micros(100);

/// Ends the others' watch however the work ends.
struct Watch(Arc<AtomicBool>);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// The result of `work`; until it is there, the other threads of its rayon pool look for its tasks, and
/// rest only where there is none for a while. Outside a pool it is just the work.
pub fn awake<R>(work: impl FnOnce() -> R) -> R {
    let Some(own) = rayon::current_thread_index() else { return work() };
    if rayon::current_num_threads() == 1 {
        return work();
    }
    let watch = Watch(Arc::new(AtomicBool::new(false)));
    let is_over = Arc::clone(&watch.0);
    rayon::spawn_broadcast(move |context| {
        // A thread that waits for a task of this very work may come by its own copy.
        if context.index() != own {
            look_for_tasks(&is_over);
        }
    });
    work()
}

fn look_for_tasks(is_over: &AtomicBool) {
    let mut idle_since = Instant::now();
    while !is_over.load(Ordering::Acquire) {
        if rayon::yield_now() == Some(Yield::Executed) {
            idle_since = Instant::now();
        } else if idle_since.elapsed() > PATIENCE {
            return;
        } else {
            // Whoever else wants this core has it.
            std::thread::yield_now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rayon::prelude::*;

    #[test]
    fn work_is_done_in_pools_of_any_size_and_outside_them() {
        let sum = || (0..1000_u64).into_par_iter().sum::<u64>();
        let layers = || awake(|| (0..20).map(|_| sum()).sum::<u64>());
        assert_eq!(layers(), 20 * 499_500);
        for threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            for _ in 0..50 {
                assert_eq!(pool.install(layers), 20 * 499_500);
            }
        }
    }

    /// Works one after another, so that threads may come by a watch while they wait inside tasks that the
    /// work waits for: with endless patience embedding 64 images on two threads stood still in the end.
    #[test]
    fn a_watch_inside_a_task_of_its_work_ends() {
        let task = |n: usize| (0..2000 * (n % 7)).fold(n, |sum, i| std::hint::black_box(sum ^ i));
        for threads in [2, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                for _ in 0..3000 {
                    let work = || (0..32_usize).into_par_iter().with_max_len(1).map(task).max();
                    assert!(awake(work).is_some());
                }
            });
        }
    }

    /// Dropping the pool joins its threads.
    #[test]
    fn a_panic_ends_the_watch_too() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        let work = || pool.install(|| awake(|| panic!("on purpose")));
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err());
        drop(pool);
    }
}
