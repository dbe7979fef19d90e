//! The engine's protocol under a model checker: shuttle takes the place of locks and threads (`src/sync.rs`), and chooses at each
//! of them, and at each call of the disk, who goes on. Built and run by `cargo xtask shuttle`, with `--cfg shuttle`; without it
//! nothing is here.
//!
//! `TAFFRAIL_SEED` repeats a run. A failure prints the schedule besides, and `TAFFRAIL_SCHEDULE` runs that one alone; name the
//! test with it. `TAFFRAIL_SHUTTLE_SECONDS` is the time for each check.
//!
//! What a check cannot see is what std's locks do beyond their promise; and atomics are taken as sequentially consistent.
#![cfg(shuttle)]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod checks;
mod closing;
mod deleting;
mod failing;
mod scene;
mod storing;
