//! What the jobs have done since the start, for metrics and tests.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts since the start; but for those that say that they are a state.
#[derive(Debug, Default)]
pub struct Counters {
    unlinked: AtomicU64,
    put_off: AtomicU64,
    expired: AtomicU64,
    collected_blobs: AtomicU64,
    collected_bytes: AtomicU64,
    collected_segments: AtomicU64,
    compacted_segments: AtomicU64,
    compaction_copied_bytes: AtomicU64,
    compaction_freed_bytes: AtomicU64,
    compaction_ms: AtomicU64,
    checkpoints: AtomicU64,
    passes: AtomicU64,
    unclaimed: AtomicU64,
    given_up: AtomicU64,
    missing: AtomicU64,
    failures: AtomicU64,
    scrub_bytes: AtomicU64,
    scrub_blobs: AtomicU64,
    scrub_bad_blobs: AtomicU64,
    scrub_passes: AtomicU64,
    scrub_permille: AtomicU64,
    scrub_completed_us: AtomicU64,
    scrub_log_damages: AtomicU64,
    scrub_unreadable: AtomicU64,
}

/// Declares how a counter is read and how a job adds to it.
macro_rules! counter {
    ($(#[$doc:meta])* $field:ident, $add:ident) => {
        $(#[$doc])*
        pub fn $field(&self) -> u64 {
            self.$field.load(Ordering::Relaxed)
        }

        pub(crate) fn $add(&self, more: u64) {
            self.$field.fetch_add(more, Ordering::Relaxed);
        }
    };
}

/// The same for a number that each pass over everything replaces.
macro_rules! gauge {
    ($(#[$doc:meta])* $field:ident, $set:ident) => {
        $(#[$doc])*
        pub fn $field(&self) -> u64 {
            self.$field.load(Ordering::Relaxed)
        }

        pub(crate) fn $set(&self, now: u64) {
            self.$field.store(now, Ordering::Relaxed);
        }
    };
}

impl Counters {
    counter!(
        /// Links that were dropped because a deletion left them without any name.
        unlinked,
        add_unlinked
    );
    counter!(
        /// Attempts to drop a link that the engine refused (leased, pinned, or newer); tried again later.
        put_off,
        add_put_off
    );
    counter!(
        /// Upload sessions that were ended because nobody used them.
        expired,
        add_expired
    );
    counter!(
        /// Blobs whose bytes were given back.
        collected_blobs,
        add_collected_blobs
    );
    counter!(
        /// Their bytes.
        collected_bytes,
        add_collected_bytes
    );
    counter!(
        /// Log segments that were given back.
        collected_segments,
        add_collected_segments
    );
    counter!(
        /// Log segments that compaction gave back.
        compacted_segments,
        add_compacted_segments
    );
    counter!(
        /// Bytes that compaction wrote.
        compaction_copied_bytes,
        add_compaction_copied_bytes
    );
    counter!(
        /// Bytes of the log segments that compaction gave back.
        compaction_freed_bytes,
        add_compaction_freed_bytes
    );
    counter!(
        /// Milliseconds that compaction was at work, its pauses left out.
        compaction_ms,
        add_compaction_ms
    );
    counter!(
        /// Checkpoints written.
        checkpoints,
        add_checkpoints
    );
    counter!(
        /// Reconciliations that went through.
        passes,
        add_passes
    );
    gauge!(
        /// Links that nothing names, as the last reconciliation found.
        unclaimed,
        set_unclaimed
    );
    counter!(
        /// Links that were given up because nothing named them for long.
        given_up,
        add_given_up
    );
    gauge!(
        /// Names without link, as the last reconciliation found: damage.
        missing,
        set_missing
    );
    counter!(
        /// Rounds that failed.
        failures,
        add_failures
    );
    counter!(
        /// Bytes that the scrub went through.
        scrub_bytes,
        add_scrub_bytes
    );
    counter!(
        /// Blobs that the scrub found whole.
        scrub_blobs,
        add_scrub_blobs
    );
    counter!(
        /// Blobs that the scrub found bad, and that were set aside.
        scrub_bad_blobs,
        add_scrub_bad_blobs
    );
    counter!(
        /// Passes over the whole store that went through.
        scrub_passes,
        add_scrub_passes
    );
    gauge!(
        /// How far the pass under way is, in thousandths; 0 between passes.
        scrub_permille,
        set_scrub_permille
    );
    gauge!(
        /// When the last pass went through, in microseconds since 1970, also before the start; 0 when none did.
        scrub_completed_us,
        set_scrub_completed_us
    );
    gauge!(
        /// Damaged places of the log that the last pass found, or the one under way.
        scrub_log_damages,
        set_scrub_log_damages
    );
    gauge!(
        /// Blobs and log segments that the disk did not give in the last pass, or the one under way.
        scrub_unreadable,
        set_scrub_unreadable
    );
}
