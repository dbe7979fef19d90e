//! Blobs that are set aside because their bytes are damaged: unknown to everybody, until a push brings them anew.
//!
//! What must stay true: only the copy that was found bad is set aside, whatever was pushed or moved meanwhile; whoever set it aside
//! finds it in [`Engine::set_aside_blobs`], after a restart too.

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::digest::Digest;
use crate::engine::Engine;
use crate::error::Refusal;
use crate::format::batch::NewRecord;
use crate::format::checkpoint::Location;
use crate::format::partition::StoredBlob;
use crate::format::record::Body;
use crate::locator::SHARDS;
use crate::log::{Marks, Purpose, Ticket};
use crate::partition::PageError;
use crate::repository::RepositoryKey;
use crate::sync::{AtomicBool, Mutex, Ordering, lock};

/// The blobs that are set aside.
#[derive(Default)]
pub(crate) struct Quarantine {
    /// An entry may be outdated; the blob itself says. Entered under the lock of the blob's shard.
    digests: Mutex<BTreeSet<Digest>>,
    /// Whether those of before the opening are entered that partitions have.
    is_complete: AtomicBool,
}

impl Quarantine {
    /// Enters a blob that is set aside. Called under the lock of its shard.
    pub(crate) fn enter(&self, digest: &Digest) {
        lock(&self.digests).insert(*digest);
    }

    /// Removes a blob that is healed or deleted. Called under the lock of its shard.
    pub(crate) fn leave(&self, digest: &Digest) {
        let mut digests = lock(&self.digests);
        if !digests.is_empty() {
            digests.remove(digest);
        }
    }

    /// How many are entered.
    pub(crate) fn len(&self) -> usize {
        lock(&self.digests).len()
    }
}

impl Engine {
    /// Sets a blob aside, if the copy at `location` is the one that is served: at once in memory, and in the log for after a
    /// restart. `None` when it is not, or not any more. When it cannot be recorded, the next reader finds the damage again.
    pub(crate) fn set_aside(&self, digest: &Digest, location: Location) -> Option<Result<Ticket, Refusal>> {
        let mut shard = self.locator.write(digest);
        // Pushed again or moved meanwhile: what was bad is not what is served.
        let blob = self.indexed(shard.edit(digest)).flatten();
        let blob = blob.filter(|blob| !blob.quarantined && blob.location == Some(location))?;
        blob.quarantined = true;
        self.quarantine.enter(digest);
        self.quarantines.fetch_add(1, Ordering::Relaxed);
        let body = Body::Corrupt { digest: *digest, location: Some(location) };
        let record = NewRecord { body, payload: Bytes::new() };
        Some(self.log.enqueue(vec![record], Purpose::Reclaim, Marks::default(), 0))
    }

    /// The blobs that are set aside now, in the order of their digests, with the repositories that hold them.
    ///
    /// # Errors
    /// See [`PageError`].
    pub(crate) fn set_aside_blobs(&self) -> Result<Vec<(Digest, Vec<RepositoryKey>)>, PageError> {
        let entered: Vec<Digest> = lock(&self.quarantine.digests).iter().copied().collect();
        let mut set_aside = Vec::with_capacity(entered.len());
        for digest in entered {
            let shard = self.locator.read(&digest);
            match shard.find(&digest)?.filter(|blob| blob.quarantined) {
                Some(blob) => {
                    set_aside.push((digest, blob.links.iter().map(|link| link.repository).collect()));
                }
                // Healed or deleted. Nobody enters it as long as its shard is locked.
                None => drop(lock(&self.quarantine.digests).remove(&digest)),
            }
        }
        Ok(set_aside)
    }

    /// Once after an opening: enters what the partitions have that is set aside. Reads the whole index.
    ///
    /// # Errors
    /// See [`PageError`].
    pub(crate) fn find_set_aside(&self) -> Result<(), PageError> {
        if self.quarantine.is_complete.load(Ordering::Acquire) {
            return Ok(());
        }
        for index in 0..SHARDS {
            let partition = self.locator.shard(index).partition().cloned();
            for blob in partition.iter().flat_map(|partition| partition.walk()) {
                let StoredBlob { digest, quarantined, .. } = blob?;
                if quarantined {
                    let shard = self.locator.read(&digest);
                    if shard.find(&digest)?.is_some_and(|blob| blob.quarantined) {
                        self.quarantine.enter(&digest);
                    }
                }
            }
        }
        self.quarantine.is_complete.store(true, Ordering::Release);
        Ok(())
    }
}
