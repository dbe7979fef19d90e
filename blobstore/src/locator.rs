//! The locator: which blobs there are, where their bytes lie, and which repositories hold them.
//!
//! It is derived from the log, in shards by digest, each behind its lock. A shard is a partition, an immutable file that is read a page
//! at a time, and what changed since that was written: the delta, in memory. A lookup asks the delta first. Whatever is to be
//! changed is brought into the delta; a checkpoint writes small deltas out and merges large ones into new partitions (`merge.rs`).
//!
//! What must stay true: an entry shows only what is durable; whoever decides on what it sees (link, lease, delete) enqueues the
//! record while holding the shard's lock, so that of a link and a deletion one comes first and the other sees it; a page that cannot be
//! had is an error, never an absence.

use std::borrow::Cow;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};

use crate::digest::{Algorithm, Digest};
use crate::format::checkpoint::Location;
use crate::format::partition::{StoredBlob, StoredLink, StoredLinks, order, shard_of};
use crate::format::{Lsn, SegmentId, footprint};
use crate::partition::{PageError, Partition};
use crate::repository::RepositoryKey;
use crate::segment::table::Live;
use crate::sync::{Arc, AtomicBool, Ordering, RwLock, RwLockReadGuard, RwLockWriteGuard, read, write};

/// Number of shards.
pub(crate) const SHARDS: usize = crate::format::partition::SHARDS;

/// A blob.
#[derive(Clone, Debug)]
pub(crate) struct Blob {
    pub(crate) len_bytes: u64,
    /// `None` only while the log is replayed from a checkpoint that is older than it: the record comes later.
    pub(crate) location: Option<Location>,
    /// The log segment with its record.
    pub(crate) record_segment: SegmentId,
    /// LSN of its record.
    pub(crate) record_lsn: Lsn,
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

impl Link {
    /// What the record of a link to a digest of that algorithm takes.
    pub(crate) fn live(algorithm: Algorithm) -> Live {
        Live::record(footprint::link_bytes(algorithm))
    }
}

impl Blob {
    /// One of which nothing is known yet but that a record in `record_segment` speaks of it.
    pub(crate) fn new(record_segment: SegmentId) -> Blob {
        Blob {
            len_bytes: 0,
            location: None,
            record_segment,
            record_lsn: 0,
            quarantined: false,
            condemned: false,
            links_coming: 0,
            unlinked_since_ms: 0,
            links: Vec::new(),
        }
    }

    /// What a partition has of it.
    fn of(stored: &StoredBlob, partition: &Partition) -> Result<Blob, PageError> {
        let links = partition.links_of(stored)?;
        let link = |(repository, generation, segment)| Link { repository, generation, segment };
        Ok(Blob {
            len_bytes: stored.len_bytes,
            location: Some(stored.location),
            record_lsn: stored.record_lsn,
            quarantined: stored.quarantined,
            unlinked_since_ms: stored.unlinked_since_ms,
            links: links.into_iter().map(link).collect(),
            ..Blob::new(stored.record_segment)
        })
    }

    /// What a partition is to have of it; `None` when no record places it yet.
    pub(crate) fn stored(&self, digest: Digest) -> Option<StoredBlob> {
        let links = self.links.iter().map(|link| (link.repository, link.generation, link.segment));
        Some(StoredBlob {
            digest,
            len_bytes: self.len_bytes,
            record_segment: self.record_segment,
            record_lsn: self.record_lsn,
            location: self.location?,
            quarantined: self.quarantined,
            unlinked_since_ms: self.unlinked_since_ms,
            links: StoredLinks::Here(links.collect()),
        })
    }

    /// What its record takes of `record_segment`, when it has one.
    pub(crate) fn live(&self, algorithm: Algorithm) -> Option<Live> {
        let bytes = match self.location? {
            Location::Inline(_) => footprint::inline_blob_bytes(algorithm, self.len_bytes),
            Location::Solo { .. } => footprint::solo_blob_bytes(algorithm),
        };
        Some(Live::record(bytes))
    }

    /// Whether it can be served, linked and leased.
    pub(crate) fn is_served(&self) -> bool {
        self.location.is_some() && !self.quarantined && !self.condemned
    }

    /// Whether it waits for its grace time to end.
    pub(crate) fn is_garbage(&self) -> bool {
        self.location.is_some() && self.links.is_empty()
    }

    /// Whether it says more than a checkpoint keeps.
    fn is_marked(&self) -> bool {
        self.condemned || self.links_coming > 0 || self.location.is_none()
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
}

/// What a lookup for serving needs of a blob.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Served {
    pub(crate) len_bytes: u64,
    pub(crate) location: Location,
}

/// What a shard adds up to. Changed under the shard's lock together with what it counts, so that a checkpoint has both as they
/// belong together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) blobs: u64,
    pub(crate) bytes: u64,
    pub(crate) links: u64,
    /// Blobs without link.
    pub(crate) garbage: u64,
    /// What the shard's blobs and links take of each log segment.
    pub(crate) live: BTreeMap<SegmentId, Live>,
}

impl Tally {
    pub(crate) fn count_blob(&mut self, len_bytes: u64, segment: SegmentId, live: Live, change: Change) {
        count(&mut self.blobs, 1, change);
        count(&mut self.bytes, len_bytes, change);
        self.count_live(segment, live, change);
    }

    pub(crate) fn count_link(&mut self, segment: SegmentId, live: Live, change: Change) {
        count(&mut self.links, 1, change);
        self.count_live(segment, live, change);
    }

    pub(crate) fn count_garbage(&mut self, change: Change) {
        count(&mut self.garbage, 1, change);
    }

    fn count_live(&mut self, segment: SegmentId, live: Live, change: Change) {
        let held = self.live.entry(segment).or_default();
        match change {
            Change::Added => held.add(live),
            Change::Removed => held.remove(live),
        }
        if *held == Live::default() {
            self.live.remove(&segment);
        }
    }
}

/// Which way a statistic goes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Change {
    Added,
    Removed,
}

fn count(counter: &mut u64, by: u64, change: Change) {
    *counter = match change {
        Change::Added => counter.saturating_add(by),
        Change::Removed => counter.saturating_sub(by),
    };
}

/// What changed of a blob since the partition was written.
#[derive(Clone, Debug)]
struct Slot {
    /// Higher than that of every earlier change in the shard.
    stamp: u64,
    /// `None` when the blob is gone, although the partition may have it.
    blob: Option<Blob>,
}

/// One shard: its blobs, and the pins on them.
#[derive(Debug, Default)]
pub(crate) struct Shard {
    delta: HashMap<Digest, Slot>,
    partition: Option<Arc<Partition>>,
    pub(crate) tally: Tally,
    stamp: u64,
    /// Links that were brought in from the partition since it was written.
    ground_links: usize,
    /// Whether a partition is being made of what the shard was: what goes meanwhile must be remembered as gone.
    is_merging: bool,
    /// How many manifests on their way into the catalog need the link.
    pub(crate) pins: HashMap<(RepositoryKey, Digest), u32>,
    /// UNLINK records on their way, by link. Nobody is told of the link any more: who would rely on it, comes too late to keep it.
    pub(crate) unlinking: HashMap<(RepositoryKey, Digest), u32>,
}

/// What a partition has of a blob.
fn stored_in(partition: Option<&Partition>, digest: &Digest) -> Result<Option<Blob>, PageError> {
    let Some(partition) = partition else { return Ok(None) };
    let stored = partition.find(digest)?;
    stored.map(|stored| Blob::of(&stored, partition)).transpose()
}

/// A shard as it was at one moment.
pub(crate) struct Snapshot {
    pub(crate) partition: Option<Arc<Partition>>,
    pub(crate) tally: Tally,
    /// What changed since the partition; `None` is gone.
    pub(crate) delta: Vec<(Digest, Option<Blob>)>,
    /// No change in it is newer.
    pub(crate) stamp: u64,
}

impl Shard {
    /// Whether the link goes with a record that is on its way.
    pub(crate) fn is_unlinking(&self, repository: RepositoryKey, digest: &Digest) -> bool {
        !self.unlinking.is_empty() && self.unlinking.contains_key(&(repository, *digest))
    }

    /// The blob, when the repository holds it and it can be served.
    pub(crate) fn linked(
        &self,
        repository: RepositoryKey,
        digest: &Digest,
    ) -> Result<Option<Served>, PageError> {
        if self.is_unlinking(repository, digest) {
            return Ok(None);
        }
        if let Some((blob, _)) = self.changed_link(repository, digest) {
            let served = |location| Served { len_bytes: blob.len_bytes, location };
            return Ok(blob.location.filter(|_| blob.is_served()).map(served));
        }
        let stored = self.stored_link(repository, digest)?.filter(|(stored, _)| !stored.quarantined);
        Ok(stored.map(|(stored, _)| Served { len_bytes: stored.len_bytes, location: stored.location }))
    }

    /// The generation of a link, also of one that is on its way out.
    pub(crate) fn link_generation(
        &self,
        repository: RepositoryKey,
        digest: &Digest,
    ) -> Result<Option<Lsn>, PageError> {
        if let Some((_, link)) = self.changed_link(repository, digest) {
            return Ok(Some(link.generation));
        }
        Ok(self.stored_link(repository, digest)?.map(|(_, (_, generation, _))| generation))
    }

    /// A link to a blob of which something changed since the partition was written.
    fn changed_link(&self, repository: RepositoryKey, digest: &Digest) -> Option<(&Blob, &Link)> {
        let blob = self.delta.get(digest)?.blob.as_ref()?;
        Some((blob, blob.link(repository)?))
    }

    /// A link that is as the partition has it. What changed since is looked up all the same, and so takes whoever does not hold it
    /// as long as what is not there.
    fn stored_link(
        &self,
        repository: RepositoryKey,
        digest: &Digest,
    ) -> Result<Option<(StoredBlob, StoredLink)>, PageError> {
        let Some(partition) = &self.partition else { return Ok(None) };
        let found = partition.find_linked(digest, repository)?;
        Ok(found.filter(|_| !self.delta.contains_key(digest)))
    }

    /// Where the bytes of a blob lie, if anything of it changed since the partition was written or its page can be had.
    pub(crate) fn location(&self, digest: &Digest) -> Option<Location> {
        match self.delta.get(digest) {
            Some(slot) => slot.blob.as_ref()?.location,
            None => self.partition.as_ref()?.find(digest).ok()?.map(|stored| stored.location),
        }
    }

    /// The blob with all its links.
    pub(crate) fn find(&self, digest: &Digest) -> Result<Option<Cow<'_, Blob>>, PageError> {
        if let Some(slot) = self.delta.get(digest) {
            return Ok(slot.blob.as_ref().map(Cow::Borrowed));
        }
        Ok(self.find_stored(digest)?.map(Cow::Owned))
    }

    fn find_stored(&self, digest: &Digest) -> Result<Option<Blob>, PageError> {
        stored_in(self.partition.as_deref(), digest)
    }

    /// The blob, to be changed.
    pub(crate) fn edit(&mut self, digest: &Digest) -> Result<Option<&mut Blob>, PageError> {
        let slot = match self.delta.entry(*digest) {
            Entry::Occupied(held) => held.into_mut(),
            Entry::Vacant(place) => {
                let Some(blob) = stored_in(self.partition.as_deref(), digest)? else { return Ok(None) };
                self.ground_links += blob.links.len();
                place.insert(Slot { stamp: 0, blob: Some(blob) })
            }
        };
        self.stamp += 1;
        slot.stamp = self.stamp;
        Ok(slot.blob.as_mut())
    }

    /// The blob to be changed, or a new one that a record in `segment` speaks of.
    pub(crate) fn edit_or_new(
        &mut self,
        digest: &Digest,
        segment: SegmentId,
    ) -> Result<&mut Blob, PageError> {
        let slot = match self.delta.entry(*digest) {
            Entry::Occupied(held) => held.into_mut(),
            Entry::Vacant(place) => {
                let blob = stored_in(self.partition.as_deref(), digest)?;
                self.ground_links += blob.as_ref().map_or(0, |blob| blob.links.len());
                place.insert(Slot { stamp: 0, blob })
            }
        };
        self.stamp += 1;
        slot.stamp = self.stamp;
        Ok(slot.blob.get_or_insert_with(|| Blob::new(segment)))
    }

    /// The blob, if anything of it changed since the partition was written: to change what is marked in memory alone.
    pub(crate) fn edit_marks(&mut self, digest: &Digest) -> Option<&mut Blob> {
        self.delta.get_mut(digest)?.blob.as_mut()
    }

    /// Takes the blob out.
    pub(crate) fn remove(&mut self, digest: &Digest) -> Result<Option<Blob>, PageError> {
        let blob = match self.delta.remove(digest) {
            Some(slot) => slot.blob,
            None => self.find_stored(digest)?,
        };
        if self.partition.is_some() || self.is_merging {
            self.stamp += 1;
            self.delta.insert(*digest, Slot { stamp: self.stamp, blob: None });
        }
        Ok(blob)
    }

    /// Puts in what a checkpoint has: a blob, or that it is gone.
    pub(crate) fn load(&mut self, digest: Digest, blob: Option<Blob>) {
        self.stamp += 1;
        self.delta.insert(digest, Slot { stamp: self.stamp, blob });
    }

    /// Takes up the partition and the sums of a checkpoint.
    pub(crate) fn load_partition(&mut self, partition: Option<Arc<Partition>>, tally: Tally) {
        (self.partition, self.tally) = (partition, tally);
    }

    /// The delta, taken out to become a partition while nobody else looks at the shard.
    pub(crate) fn take_delta(&mut self) -> Snapshot {
        let delta =
            std::mem::take(&mut self.delta).into_iter().map(|(digest, slot)| (digest, slot.blob)).collect();
        self.ground_links = 0;
        Snapshot { partition: self.partition.clone(), tally: Tally::default(), delta, stamp: self.stamp }
    }

    /// Goes over to the partition that was made of it, and takes back what that cannot have; without one, all.
    pub(crate) fn end_spill(&mut self, made: Option<Arc<Partition>>, taken: Snapshot) {
        let is_made = made.is_some();
        let stays = |blob: &Option<Blob>| !is_made || blob.as_ref().is_some_and(Blob::is_marked);
        let slots = taken.delta.into_iter().filter(|(_, blob)| stays(blob));
        self.delta.extend(slots.map(|(digest, blob)| (digest, Slot { stamp: taken.stamp, blob })));
        if is_made {
            self.partition = made;
        }
    }

    /// What the delta takes, in bytes, when so many records came since it was empty. Each of them may have brought a link.
    pub(crate) fn delta_bytes(&self, records: usize) -> usize {
        // Of eight buckets a table uses seven at most, and it keeps a byte for each. A list begins with room for four.
        let slots = self.delta.capacity() * 8 / 7 * (size_of::<(Digest, Slot)>() + 1);
        slots + (self.ground_links + records).max(4 * self.delta.len()) * size_of::<Link>()
    }

    /// How much changed since the partition was written.
    pub(crate) fn delta_len(&self) -> usize {
        self.delta.len()
    }

    pub(crate) fn partition(&self) -> Option<&Arc<Partition>> {
        self.partition.as_ref()
    }

    /// What changed since the partition was written, without what is gone.
    pub(crate) fn changed(&self) -> impl Iterator<Item = (&Digest, &Blob)> {
        self.delta.iter().filter_map(|(digest, slot)| Some((digest, slot.blob.as_ref()?)))
    }

    /// The shard as it is. What goes from now on is remembered as gone until [`Shard::end_merge`].
    pub(crate) fn begin_merge(&mut self) -> Snapshot {
        self.is_merging = true;
        self.snapshot()
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let delta = self.delta.iter().map(|(digest, slot)| (*digest, slot.blob.clone())).collect();
        Snapshot { partition: self.partition.clone(), tally: self.tally.clone(), delta, stamp: self.stamp }
    }

    /// Goes over to the partition that was made of a snapshot with that stamp, if it was made, and forgets what is in it.
    pub(crate) fn end_merge(&mut self, merged: Option<Arc<Partition>>, stamp: u64) {
        self.is_merging = false;
        if let Some(partition) = merged {
            self.partition = Some(partition);
            self.delta
                .retain(|_, slot| slot.stamp > stamp || slot.blob.as_ref().is_some_and(Blob::is_marked));
            self.delta.shrink_to_fit();
            self.ground_links = 0;
        }
    }
}

impl Snapshot {
    /// Every blob that is placed, in the order of the digests.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = Result<StoredBlob, PageError>> {
        self.blobs_behind(None)
    }

    /// The same, behind a digest.
    pub(crate) fn blobs_behind(
        &self,
        after: Option<Digest>,
    ) -> impl Iterator<Item = Result<StoredBlob, PageError>> {
        let is_behind = move |digest: &Digest| after.is_none_or(|after| order(digest, &after).is_gt());
        // Not under the shard's lock.
        let mut sorted: Vec<&(Digest, Option<Blob>)> =
            self.delta.iter().filter(|(digest, _)| is_behind(digest)).collect();
        sorted.sort_unstable_by(|one, other| order(&one.0, &other.0));
        let mut changed = sorted.into_iter().peekable();
        let mut stored = self.partition.as_deref().map(|partition| {
            let walk = partition.walk_behind(after);
            (partition, walk.filter(move |blob| blob.as_ref().map_or(true, |blob| is_behind(&blob.digest))))
        });
        let mut held: Option<Result<StoredBlob, PageError>> = None;
        std::iter::from_fn(move || {
            loop {
                if held.is_none() {
                    held = stored.as_mut().and_then(|(_, walk)| walk.next());
                }
                let old = match held.take() {
                    Some(Err(error)) => return Some(Err(error)),
                    Some(Ok(old)) => Some(old),
                    None => None,
                };
                let ordering = match (&old, changed.peek()) {
                    (None, None) => return None,
                    (Some(_), None) => std::cmp::Ordering::Less,
                    (None, Some(_)) => std::cmp::Ordering::Greater,
                    (Some(old), Some((digest, _))) => order(&old.digest, digest),
                };
                if ordering.is_lt() {
                    let (old, (partition, _)) = (old?, stored.as_ref()?);
                    let links = partition.links_of(&old).map(StoredLinks::Here);
                    return Some(links.map(|links| StoredBlob { links, ..old }));
                }
                if ordering.is_gt() {
                    held = old.map(Ok);
                }
                if let Some(blob) = changed.next().and_then(|(digest, blob)| blob.as_ref()?.stored(*digest)) {
                    return Some(Ok(blob));
                }
            }
        })
    }
}

/// All shards.
#[derive(Debug)]
pub(crate) struct Locator {
    shards: Vec<RwLock<Shard>>,
    /// Whether a change could not be made, because a page could not be had: the locator is not what the log says any more.
    pub(crate) is_broken: AtomicBool,
}

impl Locator {
    pub(crate) fn new() -> Locator {
        Locator {
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            is_broken: AtomicBool::new(false),
        }
    }

    pub(crate) fn read(&self, digest: &Digest) -> RwLockReadGuard<'_, Shard> {
        read(&self.shards[shard_of(digest)])
    }

    pub(crate) fn write(&self, digest: &Digest) -> RwLockWriteGuard<'_, Shard> {
        write(&self.shards[shard_of(digest)])
    }

    /// A shard by its number, below [`SHARDS`].
    pub(crate) fn shard(&self, index: usize) -> RwLockReadGuard<'_, Shard> {
        read(&self.shards[index % SHARDS])
    }

    /// The same, to be changed.
    pub(crate) fn shard_mut(&self, index: usize) -> RwLockWriteGuard<'_, Shard> {
        write(&self.shards[index % SHARDS])
    }

    /// Locks the shards of all `digests`, in the order of their numbers, so that two callers never wait for each other.
    pub(crate) fn write_all<'a>(&self, digests: impl Iterator<Item = &'a Digest>) -> LockedShards<'_> {
        let mut numbers: Vec<usize> = digests.map(shard_of).collect();
        numbers.sort_unstable();
        numbers.dedup();
        LockedShards(numbers.into_iter().map(|number| (number, write(&self.shards[number]))).collect())
    }

    /// What all shards add up to, but for log segments.
    pub(crate) fn total(&self) -> Tally {
        let mut total = Tally::default();
        for index in 0..SHARDS {
            let shard = self.shard(index);
            total.blobs += shard.tally.blobs;
            total.bytes += shard.tally.bytes;
            total.links += shard.tally.links;
            total.garbage += shard.tally.garbage;
        }
        total
    }

    /// What blobs and links take of each log segment.
    pub(crate) fn live(&self) -> BTreeMap<SegmentId, Live> {
        let mut total: BTreeMap<SegmentId, Live> = BTreeMap::new();
        for index in 0..SHARDS {
            for (segment, live) in &self.shard(index).tally.live {
                total.entry(*segment).or_default().add(*live);
            }
        }
        total
    }

    /// Says that a change could not be made.
    pub(crate) fn set_broken(&self) {
        self.is_broken.store(true, Ordering::Release);
    }
}

/// Several locked shards.
pub(crate) struct LockedShards<'a>(Vec<(usize, RwLockWriteGuard<'a, Shard>)>);

impl LockedShards<'_> {
    /// The shard of a digest that was among those locked.
    pub(crate) fn of(&mut self, digest: &Digest) -> Option<&mut Shard> {
        let number = shard_of(digest);
        self.0.iter_mut().find(|(held, _)| *held == number).map(|(_, shard)| &mut **shard)
    }
}
