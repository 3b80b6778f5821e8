//! Waiting for a future on a plain thread, without a runtime, for a limited time.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// Wakes by unparking the thread that waits.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits for `future` as long as it takes.
pub(super) fn wait<F: Future>(future: F) -> F::Output {
    drive(future, || {
        thread::park();
        true
    })
    .expect("parking without a limit never gives up")
}

/// Waits for `future` at most `limit`; `None` if that was not enough. A future that is ready at
/// once is taken even when `limit` is zero.
pub(super) fn wait_within<F: Future>(future: F, limit: Duration) -> Option<F::Output> {
    let start = Instant::now();
    drive(future, || {
        let left = limit.saturating_sub(start.elapsed());
        thread::park_timeout(left);
        !left.is_zero()
    })
}

/// Polls `future` until it is ready or `park` returns false. Wakes that come early are harmless:
/// they cost one more poll.
fn drive<F: Future>(future: F, park: impl Fn() -> bool) -> Option<F::Output> {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return Some(output);
        }
        if !park() {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    #[test]
    fn a_ready_future_needs_no_time() {
        assert_eq!(wait_within(async { 3 }, Duration::ZERO), Some(3));
    }

    #[test]
    fn a_future_that_is_never_ready_costs_the_limit_and_no_more_polls_than_wakes() {
        let limit = Duration::from_millis(20);
        let start = Instant::now();
        assert_eq!(wait_within(std::future::pending::<()>(), limit), None);
        assert!(start.elapsed() >= limit);
    }

    #[test]
    fn another_thread_wakes_the_one_that_waits() {
        let (sender, receiver) = oneshot::channel();
        let (ready_sender, ready_receiver) = oneshot::channel();
        let waiting = thread::spawn(move || {
            ready_sender.send(()).unwrap();
            wait(receiver)
        });
        wait(ready_receiver).unwrap();
        sender.send(5).unwrap();
        assert_eq!(waiting.join().unwrap(), Ok(5));
    }
}
