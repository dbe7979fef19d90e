//! Drops the links that deletions left without a name.
//!
//! The order decides: first the link's generation, which no manifest on its way may pin, then the question whether anything names the
//! digest, then the unlinking of just that generation. A push in between renews the link, and the engine refuses.

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::future::join_all;
use taffrail_blobstore::{Refusal, Store, UnlinkError};
use taffrail_core::context::Context;
use taffrail_core::outbox::{Outbox, OutboxRow};

use crate::counters::Counters;
use crate::job::{Job, JobError, Round};

/// Rows in one round. They share the engine's commits.
const ROWS: i64 = 128;

/// The job.
pub(crate) struct OutboxJob {
    pub(crate) store: Arc<Store>,
    pub(crate) outbox: Outbox,
    pub(crate) context: Context,
    pub(crate) counters: Arc<Counters>,
}

/// What came of a row.
enum Outcome {
    /// The link is dropped, or there was nothing to drop.
    Done,
    /// The engine keeps it for now.
    Later,
    /// The store takes no writes.
    Refused(Refusal),
}

#[async_trait]
impl Job for OutboxJob {
    fn name(&self) -> &'static str {
        "outbox"
    }

    async fn round(&mut self) -> Result<Round, JobError> {
        let rows = self.outbox.due(ROWS).await?;
        if rows.is_empty() {
            return Ok(Round::Idle);
        }
        let outcomes = join_all(rows.iter().map(|row| self.unlink(row))).await;
        let mut done = Vec::new();
        let mut later = Vec::new();
        let mut refusal = None;
        let mut failure = None;
        for (row, outcome) in rows.iter().zip(outcomes) {
            match outcome {
                Ok(Outcome::Done) => done.push(row.id),
                Ok(Outcome::Later) => later.push(*row),
                Ok(Outcome::Refused(refused)) => refusal = Some(refused),
                Err(error) => failure = Some(error),
            }
        }
        self.counters.add_put_off(later.len() as u64);
        self.outbox.settle(&done, &later).await?;
        match (refusal, failure) {
            (Some(refusal), _) => Err(refusal.into()),
            (None, Some(failure)) => Err(failure),
            (None, None) => Ok(Round::More),
        }
    }
}

impl OutboxJob {
    async fn unlink(&self, row: &OutboxRow) -> Result<Outcome, JobError> {
        let generation = match self.store.droppable_generation(row.repository, &row.digest) {
            Ok(generation) => generation,
            Err(UnlinkError::Unknown) => return Ok(Outcome::Done),
            Err(UnlinkError::Pinned) => return Ok(Outcome::Later),
            Err(UnlinkError::Refused(refusal)) => return Ok(Outcome::Refused(refusal)),
            Err(error) => return Err(error.into()),
        };
        if self.outbox.is_named(row.repository, &row.digest).await? {
            return Ok(Outcome::Done);
        }
        let now_ms = self.context.now_ms();
        match self.store.unlink_if(row.repository, &row.digest, generation, now_ms).await {
            Ok(true) => {
                self.counters.add_unlinked(1);
                Ok(Outcome::Done)
            }
            Ok(false) | Err(UnlinkError::Unknown | UnlinkError::Pinned) => Ok(Outcome::Later),
            Err(UnlinkError::Refused(refusal)) => Ok(Outcome::Refused(refusal)),
            Err(error) => Err(error.into()),
        }
    }
}
