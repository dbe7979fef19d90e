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
use crate::format::record::Body;
use crate::log::{Marks, Purpose, Ticket};
use crate::repository::RepositoryKey;
use crate::sync::{Mutex, Ordering, lock};

/// The blobs that are set aside.
#[derive(Default)]
pub(crate) struct Quarantine {
    /// An entry may be outdated; the blob itself says. Entered under the lock of the blob's shard.
    digests: Mutex<BTreeSet<Digest>>,
}

impl Quarantine {
    /// Enters a blob that is set aside. Called under the lock of its shard.
    pub(crate) fn enter(&self, digest: &Digest) {
        lock(&self.digests).insert(*digest);
    }
}

impl Engine {
    /// Sets a blob aside, if the copy at `location` is the one that is served: at once in memory, and in the log for after a
    /// restart. `None` when it is not, or not any more. When it cannot be recorded, the next reader finds the damage again.
    pub(crate) fn set_aside(&self, digest: &Digest, location: Location) -> Option<Result<Ticket, Refusal>> {
        let mut shard = self.locator.write(digest);
        // Pushed again or moved meanwhile: what was bad is not what is served.
        let blob = shard
            .blobs
            .get_mut(digest)
            .filter(|blob| !blob.quarantined && blob.location == Some(location))?;
        blob.quarantined = true;
        self.quarantine.enter(digest);
        self.quarantines.fetch_add(1, Ordering::Relaxed);
        let body = Body::Corrupt { digest: *digest, location: Some(location) };
        let record = NewRecord { body, payload: Bytes::new() };
        Some(self.log.enqueue(vec![record], Purpose::Reclaim, Marks::default(), 0))
    }

    /// The blobs that are set aside now, in the order of their digests, with the repositories that hold them.
    pub(crate) fn set_aside_blobs(&self) -> Vec<(Digest, Vec<RepositoryKey>)> {
        let entered: Vec<Digest> = lock(&self.quarantine.digests).iter().copied().collect();
        let mut set_aside = Vec::with_capacity(entered.len());
        for digest in entered {
            let shard = self.locator.read(&digest);
            match shard.blobs.get(&digest).filter(|blob| blob.quarantined) {
                Some(blob) => {
                    set_aside.push((digest, blob.links.iter().map(|link| link.repository).collect()));
                }
                // Healed or deleted. Nobody enters it as long as its shard is locked.
                None => drop(lock(&self.quarantine.digests).remove(&digest)),
            }
        }
        set_aside
    }
}
