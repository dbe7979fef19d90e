//! What references name, kept in memory: the pull of a manifest asks SQL only after something was written.
//!
//! What must stay true: what [`ManifestCache::find`] gives was read after the last write to the repository had ended. Each
//! entry carries the epoch of its repository from before it was read, and each write moves the epoch on after its commit and
//! before it is acknowledged; so an entry that was read beside a write is never valid after it. This holds as long as every
//! write to artifacts and tags goes through [`super::SqlCatalog`] of one process.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use moka::sync::Cache;
use taffrail_blobstore::{Digest, RepositoryKey};
use taffrail_distribution::catalog::ManifestEntry;
use taffrail_distribution::name::{Reference, Tag};

/// Entries: about 300 bytes each, 10 MiB in all.
const ENTRIES_MAX: u64 = 32_768;

/// Epochs. Repositories that share one (their keys are random) make each other's entries invalid, which costs a query.
const EPOCHS: usize = 1_024;

/// The cache. Clones are one.
#[derive(Clone)]
pub(super) struct ManifestCache {
    entries: Cache<Key, Known>,
    epochs: Arc<[AtomicU64]>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    repository: RepositoryKey,
    name: Name,
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum Name {
    Digest(Digest),
    Tag(Tag),
}

#[derive(Clone)]
struct Known {
    epoch: Epoch,
    entry: ManifestEntry,
}

/// A repository's epoch, taken before its rows are read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Epoch(u64);

impl ManifestCache {
    /// An empty one.
    pub(super) fn new() -> ManifestCache {
        ManifestCache {
            entries: Cache::new(ENTRIES_MAX),
            epochs: (0..EPOCHS).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// What the reference names, if that is known.
    pub(super) fn find(&self, repository: RepositoryKey, reference: &Reference) -> Option<ManifestEntry> {
        let known = self.entries.get(&Key::new(repository, reference))?;
        (known.epoch == self.epoch(repository)).then_some(known.entry)
    }

    /// The epoch to remember what is about to be read by.
    pub(super) fn epoch(&self, repository: RepositoryKey) -> Epoch {
        Epoch(self.counter(repository).load(Ordering::Acquire))
    }

    /// Remembers what was read in an epoch.
    pub(super) fn remember(
        &self,
        repository: RepositoryKey,
        reference: &Reference,
        epoch: Epoch,
        entry: ManifestEntry,
    ) {
        self.entries.insert(Key::new(repository, reference), Known { epoch, entry });
    }

    /// Forgets everything about a repository: after a write was committed, or may have been.
    pub(super) fn forget(&self, repository: RepositoryKey) {
        self.counter(repository).fetch_add(1, Ordering::AcqRel);
    }

    fn counter(&self, repository: RepositoryKey) -> &AtomicU64 {
        let stripe = usize::try_from(repository.number() % EPOCHS as u64).unwrap_or(0);
        &self.epochs[stripe]
    }
}

impl Key {
    fn new(repository: RepositoryKey, reference: &Reference) -> Key {
        let name = match reference {
            Reference::Digest(digest) => Name::Digest(*digest),
            Reference::Tag(tag) => Name::Tag(tag.clone()),
        };
        Key { repository, name }
    }
}

#[cfg(test)]
mod tests {
    use taffrail_blobstore::Algorithm;

    use super::*;

    #[test]
    fn what_was_read_beside_a_write_is_never_valid_after_it() {
        let cache = ManifestCache::new();
        let (here, there) = (RepositoryKey::new(1).unwrap(), RepositoryKey::new(2).unwrap());
        let digest = Digest::of(Algorithm::Sha256, b"m");
        let latest = Reference::Tag(Tag::parse("latest").unwrap());
        let entry = ManifestEntry { digest, media_type: "t".to_owned(), len_bytes: 1 };

        let before = cache.epoch(here);
        cache.forget(here);
        cache.remember(here, &latest, before, entry.clone());
        assert_eq!(cache.find(here, &latest), None);

        cache.remember(here, &latest, cache.epoch(here), entry.clone());
        assert_eq!(cache.find(here, &latest), Some(entry.clone()));
        assert_eq!(cache.find(there, &latest), None);
        assert_eq!(cache.find(here, &Reference::Digest(digest)), None);
        cache.forget(there);
        assert_eq!(cache.find(here, &latest), Some(entry));
        cache.forget(here);
        assert_eq!(cache.find(here, &latest), None);
    }
}
