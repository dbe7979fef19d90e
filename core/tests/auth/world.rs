//! A clock that is moved by hand, and a seeded source of random bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use taffrail_core::context::{Clock, Context, Entropy};

/// Where every clock starts, in microseconds since 1970.
const START_US: i64 = 1_700_000_000_000_000;

pub(crate) struct SteppedClock(AtomicI64);

impl SteppedClock {
    pub(crate) fn advance_secs(&self, secs: i64) {
        self.0.fetch_add(secs * 1_000_000, Ordering::SeqCst);
    }
}

impl Clock for SteppedClock {
    fn now_micros(&self) -> i64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// splitmix64: deterministic, and good enough that no two keys collide.
struct Seeded(AtomicU64);

impl Entropy for Seeded {
    fn fill(&self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let mut word = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::SeqCst);
            word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            chunk.copy_from_slice(&(word ^ (word >> 31)).to_le_bytes()[..chunk.len()]);
        }
    }
}

/// Time and randomness of a test.
pub(crate) fn context(seed: u64) -> (Context, Arc<SteppedClock>) {
    let clock = Arc::new(SteppedClock(AtomicI64::new(START_US)));
    let entropy = Arc::new(Seeded(AtomicU64::new(seed)));
    (Context { clock: Arc::clone(&clock) as Arc<dyn Clock>, entropy }, clock)
}
