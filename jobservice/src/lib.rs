//! Background work beside the server: links dropped after deletions, uploads expired, garbage collected, the log checkpointed,
//! catalog and engine reconciled, everything read again in search of rot.
//!
//! What must stay true: every job is safe to run twice and to be dropped at any `.await`; no job decides by age alone that
//! bytes may go, but asks the catalog and then leaves the last word to the engine ([`taffrail_blobstore::Store::unlink_if`]).
//!
//! Start at [`start`]; one file is one job.

mod checkpoint;
mod collection;
mod compaction;
mod counters;
mod expiry;
mod job;
mod mark;
mod outbox;
mod quarantine;
mod reconcile;
mod runner;
mod scrub;
mod service;

pub use counters::Counters;
pub use scrub::ScrubOptions;
pub use service::{Held, Jobs, JobsOptions, Sources, start};

#[cfg(test)]
mod tests;
