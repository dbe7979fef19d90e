//! Tells the operator what damaged blobs mean: which repositories and tags cannot be pulled until somebody pushes them again.
//!
//! The engine sets blobs aside by itself, whoever found the damage: a pull, or the scrub. Here they get names.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use taffrail_blobstore::{Digest, RepositoryKey, Store};
use taffrail_core::repository::store::RepositoryStore;
use taffrail_core::scrub::ScrubStore;

use crate::job::{Job, JobError, Round};

/// Images named for one blob in one repository.
const IMAGES_MAX: i64 = 10;

/// Repositories named for one blob.
const REPOSITORIES_MAX: usize = 20;

/// Blobs named in one round; the others follow in the next ones.
const BLOBS_MAX: usize = 100;

/// The job.
pub(crate) struct Quarantine {
    pub(crate) store: Arc<Store>,
    pub(crate) scrubs: ScrubStore,
    pub(crate) repositories: RepositoryStore,
    /// Those that were named since the start, and still are set aside.
    pub(crate) named: BTreeSet<Digest>,
}

#[async_trait]
impl Job for Quarantine {
    fn name(&self) -> &'static str {
        "quarantine"
    }

    async fn round(&mut self) -> Result<Round, JobError> {
        let store = Arc::clone(&self.store);
        // It reads the index, which may have to come from the disk.
        let set_aside = tokio::task::spawn_blocking(move || store.quarantined()).await;
        let set_aside = set_aside.map_err(io::Error::other)??;
        let now: BTreeSet<Digest> = set_aside.iter().map(|(digest, _)| *digest).collect();
        for healed in self.named.difference(&now) {
            tracing::info!(digest = %healed, "a damaged blob is whole again, or gone");
        }
        self.named.retain(|digest| now.contains(digest));
        let fresh: Vec<_> = set_aside.iter().filter(|(digest, _)| !self.named.contains(digest)).collect();
        for (digest, holders) in fresh.iter().take(BLOBS_MAX) {
            for holder in holders.iter().take(REPOSITORIES_MAX) {
                self.report(*holder, digest, now.len()).await?;
            }
            self.named.insert(*digest);
        }
        Ok(if fresh.len() > BLOBS_MAX { Round::More } else { Round::Idle })
    }
}

impl Quarantine {
    async fn report(&self, holder: RepositoryKey, digest: &Digest, blobs: usize) -> Result<(), JobError> {
        let repository = self.repositories.by_key(holder).await?;
        let repository = repository.map_or_else(|| "?".to_owned(), |repository| repository.name.to_string());
        let harmed = self.scrubs.harmed(holder, digest, IMAGES_MAX).await?;
        let images: Vec<String> = harmed.iter().map(ToString::to_string).collect();
        tracing::warn!(
            %digest,
            repository,
            images = images.join(" "),
            set_aside = blobs,
            "a blob is damaged and set aside; push one of its images again to heal it"
        );
        Ok(())
    }
}
