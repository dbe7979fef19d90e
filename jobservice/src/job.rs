//! What a job is.

use std::time::Duration;

use async_trait::async_trait;
use taffrail_blobstore::{Refusal, UnlinkError};
use taffrail_core::db::DbError;

/// A job: work that comes again and again.
///
/// It may be dropped at any `.await` of a round, and then be run anew: what a round did stands, what it did not is found again.
#[async_trait]
pub(crate) trait Job: Send + 'static {
    /// Its name in logs.
    fn name(&self) -> &'static str;

    /// Does one portion of the work.
    async fn round(&mut self) -> Result<Round, JobError>;
}

/// What is to be done after a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Round {
    /// There is more; go on at once.
    More,
    /// There is more; go on after a rest of this length.
    After(Duration),
    /// Everything is done for now.
    Idle,
}

/// Why a round ended early. It is tried again later.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JobError {
    /// The catalog does not answer.
    #[error(transparent)]
    Database(#[from] DbError),
    /// The store takes no writes.
    #[error(transparent)]
    Store(#[from] Refusal),
    /// The index of the store could not be read.
    #[error("the links cannot be listed: {0}")]
    Index(#[from] std::io::Error),
    /// A link could not be dropped.
    #[error(transparent)]
    Unlink(#[from] UnlinkError),
}
