//! Has the engine rewrite log segments that are mostly dead, as fast as the operator allows.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use taffrail_blobstore::Store;
use taffrail_core::context::Context;

use crate::counters::Counters;
use crate::job::{Job, JobError, Round};

/// Read and written per second unless the operator says otherwise, in bytes: a quarter of what a hard disk does one after the
/// other, and several hundred gigabytes of garbage in a day.
pub(crate) const BYTES_PER_SEC: u64 = 32 * 1024 * 1024;

/// Portions are done so often in a second, so that the disk is not busy with one for long: a portion reads some MiB at most.
const PORTIONS_PER_SEC: u64 = 20;

/// The job.
pub(crate) struct Compaction {
    pub(crate) store: Arc<Store>,
    pub(crate) context: Context,
    pub(crate) counters: Arc<Counters>,
    /// What may be read and written in a second; 0 for nothing at all.
    pub(crate) bytes_per_sec: u64,
}

#[async_trait]
impl Job for Compaction {
    fn name(&self) -> &'static str {
        "compaction"
    }

    async fn round(&mut self) -> Result<Round, JobError> {
        if self.bytes_per_sec == 0 {
            return Ok(Round::Idle);
        }
        let began_ms = self.context.now_ms();
        let budget_bytes = (self.bytes_per_sec / PORTIONS_PER_SEC).max(1);
        let compacted = self.store.compact(began_ms, budget_bytes).await?;
        let counters = &self.counters;
        counters.add_compaction_copied_bytes(compacted.copied_bytes);
        counters.add_compaction_freed_bytes(compacted.freed_bytes);
        counters.add_compacted_segments(compacted.segments);
        counters.add_compaction_ms(self.context.now_ms().saturating_sub(began_ms));
        if compacted.segments > 0 {
            tracing::info!(
                segments = compacted.segments,
                freed_bytes = compacted.freed_bytes,
                "gave compacted log segments back"
            );
        }
        if !compacted.more {
            return Ok(Round::Idle);
        }
        // A portion is not cut short: how long the rest is follows from what it was.
        let done_bytes = compacted.copied_bytes + compacted.read_bytes;
        Ok(Round::After(Duration::from_millis(done_bytes.saturating_mul(1_000) / self.bytes_per_sec)))
    }
}
