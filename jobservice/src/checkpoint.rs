//! Bounds the time that the next start needs, by a checkpoint whenever much log would have to be replayed.

use std::sync::Arc;

use async_trait::async_trait;
use taffrail_blobstore::Store;

use crate::counters::Counters;
use crate::job::{Job, JobError, Round};

/// Log that a start may have to replay before a checkpoint is due, in bytes: about a second of reading on a slow disk.
pub(crate) const REPLAY_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// The job.
pub(crate) struct Checkpoint {
    pub(crate) store: Arc<Store>,
    pub(crate) counters: Arc<Counters>,
    /// What stayed to be replayed after the last checkpoint, in bytes: the segment that is being written cannot be left out, so
    /// that without this a segment longer than the bound would bring a checkpoint every time.
    pub(crate) floor_bytes: u64,
    /// [`REPLAY_BYTES_MAX`], or less in tests.
    pub(crate) replay_bytes_max: u64,
}

#[async_trait]
impl Job for Checkpoint {
    fn name(&self) -> &'static str {
        "checkpoint"
    }

    async fn round(&mut self) -> Result<Round, JobError> {
        let replay_bytes = self.store.replay_bytes();
        // A collection or another checkpoint may have taken segments off meanwhile.
        self.floor_bytes = self.floor_bytes.min(replay_bytes);
        if replay_bytes - self.floor_bytes <= self.replay_bytes_max {
            return Ok(Round::Idle);
        }
        self.store.checkpoint().await?;
        self.floor_bytes = self.store.replay_bytes();
        self.counters.add_checkpoints(1);
        tracing::debug!(before_bytes = replay_bytes, after_bytes = self.floor_bytes, "wrote a checkpoint");
        Ok(Round::Idle)
    }
}
