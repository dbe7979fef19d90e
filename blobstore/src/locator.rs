//! The locator: which blobs there are, where their bytes lie, and which repositories hold them.
//!
//! It is derived from the log and kept in memory, in shards by digest, each behind its lock. What must stay true: an entry
//! shows only what is durable; whoever decides on what it sees (link, lease, delete) enqueues the record while holding the
//! shard's lock, so that of a link and a deletion one comes first and the other sees it.

use std::collections::HashMap;

use crate::digest::Digest;
use crate::format::checkpoint::Location;
use crate::format::{Lsn, SegmentId};
use crate::repository::RepositoryKey;
use crate::sync::{AtomicU64, Ordering, RwLock, RwLockReadGuard, RwLockWriteGuard, read, write};

/// Number of shards.
pub(crate) const SHARDS: usize = 64;

/// A blob.
#[derive(Clone, Debug)]
pub(crate) struct Blob {
    pub(crate) len_bytes: u64,
    /// `None` only while the log is replayed from a checkpoint that is older than it: the record comes later.
    pub(crate) location: Option<Location>,
    /// The log segment with its record.
    pub(crate) record_segment: SegmentId,
    /// Not served, until it is pushed again.
    pub(crate) quarantined: bool,
    /// A DELETE is on its way; nobody sees the blob any more.
    pub(crate) condemned: bool,
    /// LINK records on their way.
    pub(crate) links_coming: u32,
    /// Since when nothing links it, in milliseconds since 1970; 0 when something does.
    pub(crate) unlinked_since_ms: u64,
    /// Sorted by repository.
    pub(crate) links: Vec<Link>,
}

/// A link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) repository: RepositoryKey,
    /// LSN of its record.
    pub(crate) generation: Lsn,
    /// The log segment with its record.
    pub(crate) segment: SegmentId,
}

impl Blob {
    pub(crate) fn new(record_segment: SegmentId) -> Blob {
        Blob {
            len_bytes: 0,
            location: None,
            record_segment,
            quarantined: false,
            condemned: false,
            links_coming: 0,
            unlinked_since_ms: 0,
            links: Vec::new(),
        }
    }

    /// Whether it can be served, linked and leased.
    pub(crate) fn is_served(&self) -> bool {
        self.location.is_some() && !self.quarantined && !self.condemned
    }

    pub(crate) fn link(&self, repository: RepositoryKey) -> Option<&Link> {
        let index = self.links.binary_search_by_key(&repository, |link| link.repository).ok()?;
        self.links.get(index)
    }

    /// Inserts or renews a link; gives back the one it replaces.
    pub(crate) fn insert_link(&mut self, link: Link) -> Option<Link> {
        match self.links.binary_search_by_key(&link.repository, |link| link.repository) {
            Ok(index) => Some(std::mem::replace(&mut self.links[index], link)),
            Err(index) => {
                self.links.insert(index, link);
                None
            }
        }
    }

    pub(crate) fn remove_link(&mut self, repository: RepositoryKey) -> Option<Link> {
        let index = self.links.binary_search_by_key(&repository, |link| link.repository).ok()?;
        Some(self.links.remove(index))
    }
}

/// One shard: its blobs, and the pins on them.
#[derive(Debug, Default)]
pub(crate) struct Shard {
    pub(crate) blobs: HashMap<Digest, Blob>,
    /// How many manifests on their way into the catalog need the link.
    pub(crate) pins: HashMap<(RepositoryKey, Digest), u32>,
    /// UNLINK records on their way, by link. Nobody is told of the link any more: who would rely on it, comes too late to keep it.
    pub(crate) unlinking: HashMap<(RepositoryKey, Digest), u32>,
}

impl Shard {
    /// Whether the link goes with a record that is on its way.
    pub(crate) fn is_unlinking(&self, repository: RepositoryKey, digest: &Digest) -> bool {
        !self.unlinking.is_empty() && self.unlinking.contains_key(&(repository, *digest))
    }

    /// The blob, when the repository holds it and it can be served.
    pub(crate) fn linked(&self, repository: RepositoryKey, digest: &Digest) -> Option<&Blob> {
        let blob = self.blobs.get(digest)?;
        let is_linked = blob.link(repository).is_some() && !self.is_unlinking(repository, digest);
        (blob.is_served() && is_linked).then_some(blob)
    }
}

/// All shards.
#[derive(Debug)]
pub(crate) struct Locator {
    shards: Vec<RwLock<Shard>>,
    /// Blobs and their bytes, for the statistics.
    pub(crate) blobs: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) links: AtomicU64,
}

impl Locator {
    pub(crate) fn new() -> Locator {
        Locator {
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            blobs: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            links: AtomicU64::new(0),
        }
    }

    /// The shard of a digest.
    pub(crate) fn shard_of(digest: &Digest) -> usize {
        usize::from(digest.bytes()[0]) % SHARDS
    }

    pub(crate) fn read(&self, digest: &Digest) -> RwLockReadGuard<'_, Shard> {
        read(&self.shards[Locator::shard_of(digest)])
    }

    pub(crate) fn write(&self, digest: &Digest) -> RwLockWriteGuard<'_, Shard> {
        write(&self.shards[Locator::shard_of(digest)])
    }

    /// A shard by its number, below [`SHARDS`].
    pub(crate) fn shard(&self, index: usize) -> RwLockReadGuard<'_, Shard> {
        read(&self.shards[index % SHARDS])
    }

    /// Locks the shards of all `digests`, in the order of their numbers, so that two callers never wait for each other.
    pub(crate) fn write_all<'a>(&self, digests: impl Iterator<Item = &'a Digest>) -> LockedShards<'_> {
        let mut numbers: Vec<usize> = digests.map(Locator::shard_of).collect();
        numbers.sort_unstable();
        numbers.dedup();
        LockedShards(numbers.into_iter().map(|number| (number, write(&self.shards[number]))).collect())
    }

    pub(crate) fn count_blob(&self, len_bytes: u64, change: Change) {
        count(&self.blobs, 1, change);
        count(&self.bytes, len_bytes, change);
    }

    pub(crate) fn count_links(&self, links: usize, change: Change) {
        count(&self.links, links as u64, change);
    }
}

/// Which way a statistic goes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Change {
    Added,
    Removed,
}

fn count(counter: &AtomicU64, by: u64, change: Change) {
    match change {
        Change::Added => counter.fetch_add(by, Ordering::Relaxed),
        Change::Removed => counter.fetch_sub(by, Ordering::Relaxed),
    };
}

/// Several locked shards.
pub(crate) struct LockedShards<'a>(Vec<(usize, RwLockWriteGuard<'a, Shard>)>);

impl LockedShards<'_> {
    /// The shard of a digest that was among those locked.
    pub(crate) fn of(&mut self, digest: &Digest) -> Option<&mut Shard> {
        let number = Locator::shard_of(digest);
        self.0.iter_mut().find(|(held, _)| *held == number).map(|(_, shard)| &mut **shard)
    }
}
