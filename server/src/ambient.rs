//! Time and randomness: read here, passed inwards (architecture invariant 10).

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use taffrail_core::context::{Clock, Context, Entropy};

/// Time since 1970. A clock before that counts as 1970.
#[expect(clippy::disallowed_methods, reason = "this is where the clock is read")]
fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO)
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    u64::try_from(since_epoch().as_millis()).unwrap_or(u64::MAX)
}

/// Fills `bytes` from the operating system.
///
/// Aborts the process when there are none: nothing that this server does is safe without them, and the call does not fail
/// on a system that has booted.
#[expect(clippy::disallowed_methods, reason = "this is where randomness is drawn")]
fn fill_random(bytes: &mut [u8]) {
    if let Err(error) = getrandom::fill(bytes) {
        tracing::error!(%error, "the operating system gives no random bytes");
        std::process::abort();
    }
}

/// `N` random bytes.
pub(crate) fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    fill_random(&mut bytes);
    bytes
}

/// The operating system as core sees it.
struct System;

impl Clock for System {
    fn now_micros(&self) -> i64 {
        i64::try_from(since_epoch().as_micros()).unwrap_or(i64::MAX)
    }
}

impl Entropy for System {
    fn fill(&self, bytes: &mut [u8]) {
        fill_random(bytes);
    }
}

/// Time and randomness for core.
pub(crate) fn context() -> Context {
    Context { clock: Arc::new(System), entropy: Arc::new(System) }
}
