//! The engine against its reference model: histories of operations on every back end, crashes at every write, faults, rot.
//!
//! `TAFFRAIL_SEED` repeats a run (every failure prints it), `TAFFRAIL_CRASH_POINTS` and `TAFFRAIL_CRASH_SECONDS` lengthen
//! the crash sweep. A failure also prints the smallest history that was found for it, to be pasted into `regressions.rs`.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]
#![expect(clippy::wildcard_enum_match_arm, reason = "an answer that was not expected is reported whole")]

#[cfg(feature = "uring")]
mod backends;
mod beside;
mod budget;
mod cachedamage;
mod canary;
mod catalog;
mod clock;
mod compaction;
mod concurrent;
mod corruption;
mod crash;
mod differential;
mod faults;
mod hangups;
mod leaving;
mod lifetimes;
mod limits;
mod mapped;
mod meddled;
mod names;
mod operation;
mod quarantine;
mod reading;
mod recent;
mod reference;
mod regressions;
mod scrub;
mod sessions;
mod snapshot;
mod watched;
mod world;
mod zeros;
