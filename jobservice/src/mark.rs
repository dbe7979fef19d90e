//! Keeps in the catalog how far the store has come, so that a store restored from an older backup is noticed at the next start.
//!
//! What must stay true: what is remembered is durable in the store. A number read now may belong to a batch that a power
//! failure still takes away, and the next start would call the store too old. So each round writes down what the round before
//! it read: a batch of a minute ago is durable, or the store is poisoned and the jobs rest.

use std::sync::Arc;

use async_trait::async_trait;
use taffrail_blobstore::Store;
use taffrail_core::reconciliation::ReconciliationStore;

use crate::job::{Job, JobError, Round};
use crate::service::identity_of;

/// The job.
pub(crate) struct Mark {
    pub(crate) store: Arc<Store>,
    pub(crate) reconciliation: ReconciliationStore,
    /// What the last round read.
    pub(crate) read_lsn: u64,
    /// What is written down.
    pub(crate) written_lsn: u64,
}

#[async_trait]
impl Job for Mark {
    fn name(&self) -> &'static str {
        "store mark"
    }

    async fn round(&mut self) -> Result<Round, JobError> {
        let mut identity = identity_of(&self.store);
        let durable_lsn = std::mem::replace(&mut self.read_lsn, identity.next_lsn);
        if durable_lsn > self.written_lsn {
            identity.next_lsn = durable_lsn;
            self.reconciliation.adopt(&identity).await?;
            self.written_lsn = durable_lsn;
        }
        Ok(Round::Idle)
    }
}
