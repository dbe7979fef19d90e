//! Figures that others count, read when the page is made.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use taffrail_blobstore::{Stats, Store, StoreState};
use taffrail_jobservice::Counters;

/// The store's figures. Weak, so that the page does not keep the store from being closed.
pub(crate) struct StoreFigures(pub(crate) Weak<Store>);

impl fmt::Debug for StoreFigures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoreFigures")
    }
}

/// A figure: name without prefix, and help.
type Name = (&'static str, &'static str);

/// A figure and where it is read.
type Figure<T> = (Name, fn(&T) -> u64);

const WRITABLE: Name = ("store_writable", "1 while the store takes writes.");
const POISONED: Name = ("store_poisoned", "1 after a failed flush, or a failed write of the log.");
const DAMAGES: Name = ("store_damages", "Damaged places for which the store is read-only.");
const STORE_GAUGES: [Figure<Stats>; 13] = [
    (("store_blobs", "Blobs."), |stats| stats.blobs),
    (("store_blob_bytes", "Bytes of all blobs, each counted once."), |stats| stats.blob_bytes),
    (("store_links", "Links of blobs in repositories."), |stats| stats.links),
    (("store_upload_sessions", "Open upload sessions."), |stats| stats.sessions),
    (("store_upload_memory_bytes", "Bytes of upload sessions in memory."), |stats| {
        stats.session_memory_bytes
    }),
    (("store_log_segments", "Segments of the main log."), |stats| stats.log_segments),
    (("store_log_bytes", "Bytes of all log segments."), |stats| stats.log.bytes),
    (("store_log_dead_bytes", "Bytes of finished log segments that nothing needs."), |stats| {
        stats.log.dead_bytes
    }),
    (("store_log_backlog_bytes", "Those of them that compaction gives back next."), |stats| {
        stats.log.backlog_bytes
    }),
    (("store_log_unmovable_segments", "Log segments that compaction leaves alone."), |stats| {
        stats.log.unmovable_segments
    }),
    (("store_garbage_blobs", "Blobs without a link."), |stats| stats.garbage),
    (("store_quarantined_blobs", "Damaged blobs that are set aside."), |stats| stats.quarantined),
    (("store_free_bytes", "Bytes that the file system has left."), |stats| stats.free_bytes),
];
const STORE_COUNTERS: [Figure<Stats>; 5] = [
    (("store_corrupt_blobs", "Blobs found damaged, and set aside."), |stats| stats.quarantines),
    (("store_flushes", "Flushes to the disk."), |stats| stats.disk.flushes),
    (("store_written_bytes", "Bytes written to the disk."), |stats| stats.disk.written_bytes),
    (("store_ring_written_bytes", "Bytes of them that went through io_uring."), |stats| {
        stats.disk.ring_written_bytes
    }),
    (("store_read_bytes", "Bytes read from the disk."), |stats| stats.disk.read_bytes),
];

fn gauge(encoder: &mut DescriptorEncoder<'_>, (name, help): Name, value: u64) -> fmt::Result {
    let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
    gauge.encode(encoder.encode_descriptor(name, help.trim_end_matches('.'), None, gauge.metric_type())?)
}

fn counter(encoder: &mut DescriptorEncoder<'_>, (name, help): Name, value: u64) -> fmt::Result {
    let counter = ConstCounter::new(value);
    counter.encode(encoder.encode_descriptor(
        name,
        help.trim_end_matches('.'),
        None,
        counter.metric_type(),
    )?)
}

impl Collector for StoreFigures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        // Gone while the process ends.
        let Some(store) = self.0.upgrade() else { return Ok(()) };
        let (stats, state) = (store.stats(), store.state());
        drop(store);
        gauge(&mut encoder, WRITABLE, u64::from(matches!(state, StoreState::Writable)))?;
        gauge(&mut encoder, POISONED, u64::from(matches!(state, StoreState::Poisoned { .. })))?;
        let damages = match &state {
            StoreState::ReadOnly { damage } => damage.len() as u64,
            StoreState::Writable | StoreState::Poisoned { .. } => 0,
        };
        gauge(&mut encoder, DAMAGES, damages)?;
        for (name, value) in STORE_GAUGES {
            gauge(&mut encoder, name, value(&stats))?;
        }
        for (name, value) in STORE_COUNTERS {
            counter(&mut encoder, name, value(&stats))?;
        }
        Ok(())
    }
}

/// How many log lines were dropped.
#[derive(Debug)]
pub(crate) struct LogFigures(pub(crate) Arc<AtomicU64>);

impl Collector for LogFigures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let name = ("log_lines_dropped", "Log lines dropped because their reader stalled.");
        counter(&mut encoder, name, self.0.load(Ordering::Relaxed))
    }
}

/// What the background jobs did.
#[derive(Debug)]
pub(crate) struct JobFigures(pub(crate) Arc<Counters>);

const JOB_COUNTERS: [Figure<Counters>; 18] = [
    (("jobs_links_dropped", "Links dropped after deletions."), Counters::unlinked),
    (("jobs_links_put_off", "Links that were in use when they were to be dropped."), Counters::put_off),
    (("jobs_uploads_expired", "Upload sessions ended for being idle."), Counters::expired),
    (("jobs_collected_blobs", "Blobs whose bytes were freed."), Counters::collected_blobs),
    (("jobs_collected_bytes", "Bytes of blobs that were freed."), Counters::collected_bytes),
    (("jobs_collected_segments", "Log segments freed."), Counters::collected_segments),
    (("jobs_compacted_segments", "Log segments compacted and freed."), Counters::compacted_segments),
    (("jobs_compaction_copied_bytes", "Bytes compaction wrote."), Counters::compaction_copied_bytes),
    (("jobs_compaction_freed_bytes", "Bytes of segments it freed."), Counters::compaction_freed_bytes),
    (("jobs_compaction_milliseconds", "Time it was at work."), Counters::compaction_ms),
    (("jobs_checkpoints", "Checkpoints of the log."), Counters::checkpoints),
    (("jobs_reconcile_passes", "Comparisons of catalog and store."), Counters::passes),
    (("jobs_links_given_up", "Unclaimed links that were given up."), Counters::given_up),
    (("jobs_failures", "Runs of a job that failed."), Counters::failures),
    (("jobs_scrub_bytes", "Bytes that the scrub went through."), Counters::scrub_bytes),
    (("jobs_scrub_blobs", "Blobs that the scrub found whole."), Counters::scrub_blobs),
    (("jobs_scrub_bad_blobs", "Blobs that the scrub found damaged."), Counters::scrub_bad_blobs),
    (("jobs_scrub_passes", "Passes of the scrub over the whole store."), Counters::scrub_passes),
];

const SCRUB_GAUGES: [Figure<Counters>; 4] = [
    (("jobs_scrub_progress_permille", "How far the scrub is in its pass."), Counters::scrub_permille),
    (("jobs_scrub_completed_timestamp_seconds", "When the scrub last ended a pass."), |counters| {
        counters.scrub_completed_us() / 1_000_000
    }),
    (("jobs_scrub_log_damages", "Damaged places of the log."), Counters::scrub_log_damages),
    (
        ("jobs_scrub_unreadable", "Blobs and log segments that the disk did not give."),
        Counters::scrub_unreadable,
    ),
];

impl Collector for JobFigures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for (name, value) in JOB_COUNTERS {
            counter(&mut encoder, name, value(&self.0))?;
        }
        let unclaimed = ("jobs_links_unclaimed", "Links that nothing in the catalog names.");
        gauge(&mut encoder, unclaimed, self.0.unclaimed())?;
        let missing = ("jobs_links_missing", "Blobs that the catalog refers to and the store does not hold.");
        gauge(&mut encoder, missing, self.0.missing())?;
        for (name, value) in SCRUB_GAUGES {
            gauge(&mut encoder, name, value(&self.0))?;
        }
        Ok(())
    }
}

/// What core counts.
pub(crate) struct CoreFigures {
    /// Passwords hashed since the start.
    pub(crate) password_hashes: Box<dyn Fn() -> u64 + Send + Sync>,
}

impl fmt::Debug for CoreFigures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CoreFigures")
    }
}

impl Collector for CoreFigures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        counter(&mut encoder, ("password_hashes", "Passwords that were hashed."), (self.password_hashes)())
    }
}
