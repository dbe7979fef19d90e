//! What one connection is doing, so that it can be ended when it does nothing for too long.
//!
//! Written by the wire (heads arrive), by the socket (bytes do not go out) and by the requests (one begins, one ends); read by
//! the task that drives the connection. What must stay true: [`Vitals::deadline`] looks at what was written and at nothing
//! else, so that a timer that fires late or early finds out by asking again.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// How long a connection may be in each state.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// To receive a head once it has begun; before the first request also until it begins.
    pub(crate) head: Duration,
    /// To begin the next request.
    pub(crate) keep_alive: Duration,
    /// To take some of the bytes that we have for it.
    pub(crate) write_stall: Duration,
    /// Idling after which the connection gives its buffers back; shorter than `keep_alive`.
    pub(crate) rest: Duration,
}

/// Why a connection was ended by us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Overdue {
    /// The head of a request did not come.
    Head,
    /// No request came.
    KeepAlive,
    /// The client takes nothing.
    WriteStall,
    /// Not overdue at all: time to rest.
    Rest,
}

/// Nothing of the kind is going on.
const NEVER: u64 = u64::MAX;

/// What one connection is doing.
#[derive(Debug)]
pub(crate) struct Vitals {
    born: Instant,
    // Milliseconds after `born`, or NEVER.
    head_since: AtomicU64,
    write_stalled_since: AtomicU64,
    idle_since: AtomicU64,
    requests_under_way: AtomicU64,
    requests_seen: AtomicU64,
    flooded: AtomicBool,
}

impl Vitals {
    /// A connection that has just been accepted.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            born: now,
            head_since: AtomicU64::new(NEVER),
            write_stalled_since: AtomicU64::new(NEVER),
            idle_since: AtomicU64::new(0),
            requests_under_way: AtomicU64::new(0),
            requests_seen: AtomicU64::new(0),
            flooded: AtomicBool::new(false),
        }
    }

    fn now(&self) -> u64 {
        // Relaxed everywhere: each value stands for itself, and the driving task polls the writers.
        u64::try_from(self.born.elapsed().as_millis()).unwrap_or(NEVER - 1)
    }

    fn mark(cell: &AtomicU64, value: u64) {
        if cell.load(Ordering::Relaxed) == NEVER {
            cell.store(value, Ordering::Relaxed);
        }
    }

    /// Requests may come from now on.
    pub(crate) fn begins(&self) {
        self.idle_since.store(self.now(), Ordering::Relaxed);
    }

    /// The head of a request is under way, or not (any more).
    pub(crate) fn head(&self, under_way: bool) {
        if under_way {
            Self::mark(&self.head_since, self.now());
        } else {
            self.head_since.store(NEVER, Ordering::Relaxed);
        }
    }

    /// The socket takes no bytes, or does (again).
    pub(crate) fn write_stalled(&self, stalled: bool) {
        if stalled {
            Self::mark(&self.write_stalled_since, self.now());
        } else if self.write_stalled_since.load(Ordering::Relaxed) != NEVER {
            self.write_stalled_since.store(NEVER, Ordering::Relaxed);
        }
    }

    /// A request begins.
    pub(crate) fn request_begins(&self) {
        self.requests_seen.fetch_add(1, Ordering::Relaxed);
        self.requests_under_way.fetch_add(1, Ordering::Relaxed);
        self.idle_since.store(NEVER, Ordering::Relaxed);
    }

    /// A request, and its answer, have ended.
    pub(crate) fn request_ends(&self) {
        if self.requests_under_way.fetch_sub(1, Ordering::Relaxed) == 1 {
            let now = self.now();
            self.idle_since.store(now, Ordering::Relaxed);
            // The head of a pipelined request waited for us, not we for it.
            if self.head_since.load(Ordering::Relaxed) != NEVER {
                self.head_since.store(now, Ordering::Relaxed);
            }
        }
    }

    /// The client sent more frames than it may.
    pub(crate) fn flooded(&self) {
        self.flooded.store(true, Ordering::Relaxed);
    }

    /// Whether it did.
    pub(crate) fn was_flooded(&self) -> bool {
        self.flooded.load(Ordering::Relaxed)
    }

    /// Whether any request has begun.
    pub(crate) fn has_served(&self) -> bool {
        self.requests_seen.load(Ordering::Relaxed) > 0
    }

    /// When this connection is to be ended unless it does something, and why. `None` while a request is under way that we
    /// are not waiting for.
    pub(crate) fn deadline(&self, patience: &Patience) -> Option<(Instant, Overdue)> {
        let (at, why) = self.end(patience)?;
        let idle = self.idle_since.load(Ordering::Relaxed);
        if why == Overdue::KeepAlive {
            let rest = self.born + Duration::from_millis(idle) + patience.rest;
            return Some(if rest < at { (rest, Overdue::Rest) } else { (at, why) });
        }
        Some((at, why))
    }

    /// As [`Vitals::deadline`], for a connection that rests already.
    pub(crate) fn end(&self, patience: &Patience) -> Option<(Instant, Overdue)> {
        let at = |since: u64, wait: Duration| self.born + Duration::from_millis(since) + wait;
        let stalled = self.write_stalled_since.load(Ordering::Relaxed);
        if stalled != NEVER {
            return Some((at(stalled, patience.write_stall), Overdue::WriteStall));
        }
        if self.requests_under_way.load(Ordering::Relaxed) > 0 {
            return None;
        }
        let head = self.head_since.load(Ordering::Relaxed);
        if head != NEVER {
            return Some((at(head, patience.head), Overdue::Head));
        }
        let idle = self.idle_since.load(Ordering::Relaxed);
        if idle == NEVER {
            return None;
        }
        Some(if self.has_served() {
            (at(idle, patience.keep_alive), Overdue::KeepAlive)
        } else {
            (at(idle, patience.head), Overdue::Head)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience {
        head: Duration::from_secs(10),
        keep_alive: Duration::from_secs(120),
        write_stall: Duration::from_secs(60),
        rest: Duration::from_secs(1),
    };

    fn left(vitals: &Vitals) -> Option<(u64, Overdue)> {
        let (at, why) = vitals.deadline(&PATIENCE)?;
        Some((at.duration_since(Instant::now()).as_secs(), why))
    }

    #[tokio::test(start_paused = true)]
    async fn each_state_has_its_own_patience() {
        let vitals = Vitals::new(Instant::now());
        assert_eq!(left(&vitals), Some((10, Overdue::Head)), "nothing was asked yet");
        tokio::time::advance(Duration::from_secs(4)).await;
        vitals.head(true);
        tokio::time::advance(Duration::from_secs(1)).await;
        vitals.head(true);
        assert_eq!(left(&vitals), Some((9, Overdue::Head)), "a trickle does not prolong a head");
        vitals.head(false);
        vitals.request_begins();
        assert_eq!(left(&vitals), None, "we are at work");
        vitals.write_stalled(true);
        tokio::time::advance(Duration::from_secs(5)).await;
        vitals.write_stalled(true);
        assert_eq!(left(&vitals), Some((55, Overdue::WriteStall)));
        vitals.write_stalled(false);
        assert_eq!(left(&vitals), None);
        vitals.request_ends();
        assert_eq!(left(&vitals), Some((1, Overdue::Rest)));
        let (end, why) = vitals.end(&PATIENCE).unwrap();
        assert_eq!((end.duration_since(Instant::now()).as_secs(), why), (120, Overdue::KeepAlive));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pipelined_head_is_not_held_against_the_client_while_we_answer() {
        let vitals = Vitals::new(Instant::now());
        vitals.request_begins();
        vitals.head(true);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(left(&vitals), None);
        vitals.request_ends();
        assert_eq!(left(&vitals), Some((10, Overdue::Head)));
    }
}
