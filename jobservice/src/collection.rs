//! Has the engine give back the bytes of blobs that lost their last link a grace time ago.

use std::sync::Arc;

use async_trait::async_trait;
use taffrail_blobstore::Store;
use taffrail_core::context::Context;

use crate::counters::Counters;
use crate::job::{Job, JobError, Round};

/// Blobs in one step: a step is one small batch in the log, and pushes go on between two of them.
const BUDGET_BLOBS: usize = 256;

/// The job.
pub(crate) struct Collection {
    pub(crate) store: Arc<Store>,
    pub(crate) context: Context,
    pub(crate) counters: Arc<Counters>,
}

#[async_trait]
impl Job for Collection {
    fn name(&self) -> &'static str {
        "collection"
    }

    async fn round(&mut self) -> Result<Round, JobError> {
        let collected = self.store.collect(self.context.now_ms(), BUDGET_BLOBS).await?;
        self.counters.add_collected_blobs(collected.blobs);
        self.counters.add_collected_bytes(collected.bytes);
        self.counters.add_collected_segments(collected.segments);
        if collected.blobs > 0 || collected.segments > 0 || collected.orphans > 0 {
            tracing::info!(
                blobs = collected.blobs,
                bytes = collected.bytes,
                segments = collected.segments,
                orphans = collected.orphans,
                "collected garbage"
            );
        }
        Ok(if collected.blobs == BUDGET_BLOBS as u64 { Round::More } else { Round::Idle })
    }
}
