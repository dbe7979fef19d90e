//! Polling a connection for as long as it wakes itself.
//!
//! The HTTP library and the handler of a request live in one task and hand each other every piece of a body by waking that task.
//! Through the runtime such a wake is dear: the task goes to the end of a queue, and another processor is woken to look for it
//! there, tens of microseconds on a virtual machine. Here it costs one more turn of a loop.
//!
//! What must stay true: a wake that comes while the connection is polled leads to one more poll, any other to a wake of the task.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::AtomicWaker;

/// Turns after which other tasks of the processor get theirs. A body that is there already comes in pieces of tens of kilobytes, so
/// this is about a millisecond.
const TURNS_MAX: usize = 64;

/// Nobody polls.
const AWAY: u8 = 0;
/// The connection is being polled.
const POLLING: u8 = 1;
/// It was woken while it was.
const AGAIN: u8 = 2;

/// The turns of one connection.
#[derive(Debug)]
pub(crate) struct Turns {
    shared: Arc<Shared>,
    waker: Waker,
}

#[derive(Debug)]
struct Shared {
    state: AtomicU8,
    task: AtomicWaker,
}

impl Wake for Shared {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Whoever polls looks at the state before it leaves; from then on the task itself has to be woken. It is written also when it
        // says so already: the poll that follows must see what this wake is about, however little its source orders of itself.
        let again = |state: u8| (state != AWAY).then_some(AGAIN);
        if self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, again).is_err() {
            self.task.wake();
        }
    }
}

impl Turns {
    /// Turns of a connection that was not polled yet.
    pub(crate) fn new() -> Self {
        let shared = Arc::new(Shared { state: AtomicU8::new(AWAY), task: AtomicWaker::new() });
        let waker = Waker::from(Arc::clone(&shared));
        Self { shared, waker }
    }

    /// Polls until there is an outcome, or nothing to do that it knows of. `poll` gets a waker that is the same in every call.
    pub(crate) fn poll<T>(
        &self,
        context: &Context<'_>,
        mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        let state = &self.shared.state;
        self.shared.task.register(context.waker());
        for _ in 0..TURNS_MAX {
            // Not a plain store: see the wake.
            state.swap(POLLING, Ordering::AcqRel);
            if let Poll::Ready(outcome) = poll(&mut Context::from_waker(&self.waker)) {
                state.store(AWAY, Ordering::Release);
                return Poll::Ready(outcome);
            }
            if state.compare_exchange(POLLING, AWAY, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                return Poll::Pending;
            }
        }
        state.store(AWAY, Ordering::Release);
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(Debug, Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn counted() -> (Arc<Count>, Waker) {
        let count = Arc::new(Count::default());
        (Arc::clone(&count), Waker::from(count))
    }

    #[test]
    fn a_wake_during_a_poll_is_one_more_poll_and_none_of_the_task() {
        let (wakes, waker) = counted();
        let (turns, mut polls) = (Turns::new(), 0);
        let outcome = turns.poll(&Context::from_waker(&waker), |context| {
            polls += 1;
            if polls < 5 {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            Poll::Ready("done")
        });
        assert_eq!((outcome, polls), (Poll::Ready("done"), 5));
        assert_eq!(wakes.0.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_wake_after_a_poll_wakes_the_task() {
        let (wakes, waker) = counted();
        let (turns, mut kept) = (Turns::new(), None);
        for expected in 1..4 {
            let outcome: Poll<()> = turns.poll(&Context::from_waker(&waker), |context| {
                kept = Some(context.waker().clone());
                Poll::Pending
            });
            assert!(outcome.is_pending());
            kept.take().unwrap().wake();
            assert_eq!(wakes.0.load(Ordering::Relaxed), expected);
        }
    }

    #[test]
    fn a_connection_that_never_rests_lets_others_have_a_turn() {
        let (wakes, waker) = counted();
        let mut polls = 0;
        let outcome: Poll<()> = Turns::new().poll(&Context::from_waker(&waker), |context| {
            polls += 1;
            context.waker().wake_by_ref();
            Poll::Pending
        });
        assert!(outcome.is_pending());
        assert_eq!((polls, wakes.0.load(Ordering::Relaxed)), (TURNS_MAX, 1));
    }

    #[test]
    fn no_wake_of_another_thread_is_lost() {
        let turns = Turns::new();
        let left = Arc::new(AtomicUsize::new(0));
        for round in 0..2000 {
            left.store(1, Ordering::Relaxed);
            let mut other = None;
            let mut waiting = std::future::poll_fn(|context| {
                turns.poll(context, |context| {
                    if left.load(Ordering::Acquire) == 0 {
                        return Poll::Ready(());
                    }
                    if other.is_none() {
                        let (left, waker) = (Arc::clone(&left), context.waker().clone());
                        other = Some(std::thread::spawn(move || {
                            left.store(0, Ordering::Release);
                            waker.wake();
                        }));
                    }
                    Poll::Pending
                })
            });
            tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(&mut waiting);
            drop(waiting);
            other.unwrap().join().unwrap();
            assert_eq!(left.load(Ordering::Relaxed), 0, "round {round}");
        }
    }
}
