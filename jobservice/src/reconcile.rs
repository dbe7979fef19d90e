//! Holds the engine's links against the catalog's names, both ways.
//!
//! A link that nothing names is the rest of a push that was never finished, or of a crash between the link and the catalog; it
//! may also be a push that is still under way. So it is remembered when first seen, and given up a day later, unless its
//! repository has an upload session then. A name without a link is damage; nothing can be done about it here but to say so.

use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use taffrail_blobstore::{Store, UnlinkError};
use taffrail_core::context::Context;
use taffrail_core::outbox::Outbox;
use taffrail_core::reconciliation::{Named, NamedPosition, ReconciliationStore, Unclaimed};
use taffrail_core::repository::store::RepositoryStore;

use crate::counters::Counters;
use crate::job::{Job, JobError, Round};

/// How long a link lives that nothing names, in microseconds: a day, longer than any push takes.
pub(crate) const UNCLAIMED_LIFE_US: i64 = 24 * 3_600 * 1_000_000;

/// Rows in one page of names, or of remembered links.
const ROWS: i64 = 512;

/// Damage named one by one in the log, per pass. The counter has the whole number.
const REPORTS_MAX: u64 = 100;

/// The job. A round is a whole pass; it keeps nothing between its pages that would be missed.
pub(crate) struct Reconcile {
    pub(crate) store: Arc<Store>,
    pub(crate) outbox: Outbox,
    pub(crate) reconciliation: ReconciliationStore,
    pub(crate) repositories: RepositoryStore,
    pub(crate) context: Context,
    pub(crate) counters: Arc<Counters>,
}

#[async_trait]
impl Job for Reconcile {
    fn name(&self) -> &'static str {
        "reconciliation"
    }

    async fn round(&mut self) -> Result<Round, JobError> {
        let mut unclaimed = 0;
        for page in 0..Store::LINK_PAGES {
            unclaimed += self.look_for_names(page).await?;
            // A page is some milliseconds of a core.
            tokio::task::yield_now().await;
        }
        self.forget_what_is_settled().await?;
        let missing = self.look_for_links().await?;
        self.counters.set_unclaimed(unclaimed);
        self.counters.set_missing(missing);
        self.counters.add_passes(1);
        if missing > 0 {
            tracing::error!(missing, "the catalog names blobs that the store does not hold");
        }
        tracing::debug!(unclaimed, missing, "reconciled catalog and store");
        Ok(Round::Idle)
    }
}

impl Reconcile {
    /// Looks whether each link of a page is named, and gives up those that were not for long. Says how many are not.
    async fn look_for_names(&self, page: usize) -> Result<u64, JobError> {
        let mut unclaimed = Vec::new();
        let store = Arc::clone(&self.store);
        // It reads a part of the index, which may have to come from the disk.
        let links = tokio::task::spawn_blocking(move || store.links_page(page)).await;
        for link in links.map_err(io::Error::other)?? {
            // The generation is older than the answer: a push in between makes a new one, which `unlink_if` refuses.
            if !self.outbox.is_named(link.repository, &link.digest).await? {
                let (repository, digest, generation) = (link.repository, link.digest, link.generation);
                unclaimed.push(Unclaimed { repository, digest, generation });
            }
        }
        if unclaimed.is_empty() {
            return Ok(0);
        }
        let since_us = self.reconciliation.unclaimed_since(&unclaimed).await?;
        let now_us = self.context.now_micros();
        let mut gone = Vec::new();
        for (link, since_us) in unclaimed.iter().zip(since_us) {
            let old = now_us.saturating_sub(since_us) >= UNCLAIMED_LIFE_US;
            if old && self.store.sessions_of(link.repository) == 0 && self.give_up(link).await? {
                gone.push(*link);
            }
        }
        if !gone.is_empty() {
            self.reconciliation.forget(&gone).await?;
        }
        Ok((unclaimed.len() - gone.len()) as u64)
    }

    /// Drops a link unless the engine knows better. Says whether it is gone.
    async fn give_up(&self, link: &Unclaimed) -> Result<bool, JobError> {
        let now_ms = self.context.now_ms();
        match self.store.unlink_if(link.repository, &link.digest, link.generation, now_ms).await {
            Ok(true) => {
                tracing::info!(repository = ?link.repository, digest = %link.digest, "gave up a link that nothing names");
                self.counters.add_given_up(1);
                Ok(true)
            }
            Ok(false) | Err(UnlinkError::Unknown | UnlinkError::Pinned) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Forgets links that were remembered as unclaimed and are renewed, named or gone by now.
    async fn forget_what_is_settled(&self) -> Result<(), JobError> {
        let mut after = None;
        loop {
            let links = self.reconciliation.remembered(after.as_ref(), ROWS).await?;
            let Some(last) = links.last() else { return Ok(()) };
            after = Some(*last);
            let mut settled = Vec::new();
            for link in links {
                let stands =
                    self.store.link_generation(link.repository, &link.digest) == Some(link.generation);
                if !stands || self.outbox.is_named(link.repository, &link.digest).await? {
                    settled.push(link);
                }
            }
            if !settled.is_empty() {
                self.reconciliation.forget(&settled).await?;
            }
        }
    }

    /// Looks whether everything that is named has its link. Says how much has not.
    async fn look_for_links(&self) -> Result<u64, JobError> {
        let mut missing = 0;
        let mut position = NamedPosition::default();
        loop {
            let (page, next) = self.reconciliation.named(position, ROWS).await?;
            for named in &page {
                if self.is_missing(named).await? {
                    missing += 1;
                    if missing <= REPORTS_MAX {
                        self.report(named).await?;
                    }
                }
            }
            let Some(next) = next else { return Ok(missing) };
            position = next;
        }
    }

    /// A name that was read before its deletion looks like damage, so that it is asked for again when its link is not there; and
    /// the link once more, which a new push may have brought between the two.
    async fn is_missing(&self, named: &Named) -> Result<bool, JobError> {
        let absent = || self.store.link_generation(named.repository, &named.digest).is_none();
        Ok(absent() && self.outbox.is_named(named.repository, &named.digest).await? && absent())
    }

    async fn report(&self, named: &Named) -> Result<(), JobError> {
        let repository = self.repositories.by_key(named.repository).await?;
        let name = repository.map_or_else(|| "?".to_owned(), |repository| repository.name.to_string());
        tracing::error!(repository = name, digest = %named.digest, "the store does not hold what the catalog names");
        Ok(())
    }
}
