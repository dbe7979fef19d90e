//! Ends upload sessions that nobody uses.

use std::sync::Arc;

use async_trait::async_trait;
use taffrail_blobstore::Store;
use taffrail_core::context::Context;

use crate::counters::Counters;
use crate::job::{Job, JobError, Round};

/// The job.
pub(crate) struct Expiry {
    pub(crate) store: Arc<Store>,
    pub(crate) context: Context,
    pub(crate) counters: Arc<Counters>,
}

#[async_trait]
impl Job for Expiry {
    fn name(&self) -> &'static str {
        "upload expiry"
    }

    async fn round(&mut self) -> Result<Round, JobError> {
        let expired = self.store.expire_sessions(self.context.now_ms()).await;
        if expired > 0 {
            tracing::info!(sessions = expired, "ended idle upload sessions");
            self.counters.add_expired(expired as u64);
        }
        Ok(Round::Idle)
    }
}
