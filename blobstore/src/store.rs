//! The store: what callers see of the engine.
//!
//! Operations that wait are plain `std` futures; `now_ms` is milliseconds since 1970, passed in. `Ok` from anything that writes
//! means durable. Dropping a store without [`Store::close`] is safe, and costs the next opening a replay.

use std::io;

use bytes::Bytes;

use crate::compaction::{Compacted, LogUse};
use crate::digest::{Algorithm, Digest};
use crate::disk::{Counters, Disk};
use crate::engine::Engine;
use crate::error::{LinkError, OpenError, PutError, ReadError, Refusal, UnlinkError, UploadError};
use crate::format::batch::NewRecord;
use crate::format::record::Body;
use crate::format::{INLINE_BYTES_MAX, Lsn, SegmentId};
use crate::gc::Collected;
use crate::health::StoreState;
use crate::locator::{LockedShards, SHARDS, Shard};
use crate::log::{Marks, Purpose, Ticket};
use crate::merge::Threshold;
use crate::options::{Options, Threading};
use crate::reader::BlobReader;
use crate::recovery;
use crate::repository::{RepositoryKey, SessionId, Uploader};
use crate::scrub::{ScrubDepth, ScrubPosition, Scrubber};
use crate::session::Beginning;
use crate::sync::{AbortOnPanic, Arc, Ordering, lock, thread};
use crate::upload::Upload;

/// References that are named as missing when a manifest is refused, at most: the shards of all are locked while they are looked up, and
/// those that nobody has cost most.
const MISSING_MAX: usize = 100;

/// A blob, as a lookup gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlobStat {
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub len_bytes: u64,
}

/// An upload session, as a lookup gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UploadStatus {
    /// Its id.
    pub id: SessionId,
    /// Bytes received.
    pub offset_bytes: u64,
}

/// Figures of a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Blobs.
    pub blobs: u64,
    /// Their bytes.
    pub blob_bytes: u64,
    /// Links.
    pub links: u64,
    /// Open upload sessions.
    pub sessions: u64,
    /// Bytes of sessions that are in memory only.
    pub session_memory_bytes: u64,
    /// Log segments.
    pub log_segments: u64,
    /// What the log takes, and what compaction could give back.
    pub log: LogUse,
    /// Blobs without link, waiting for their grace time.
    pub garbage: u64,
    /// Blobs that were found damaged since the opening.
    pub quarantines: u64,
    /// Blobs that are set aside now, as far as they were found since the opening ([`Store::quarantined`] finds the others).
    pub quarantined: u64,
    /// What the disk did.
    pub disk: Counters,
    /// Bytes that the disk has left; 0 when it does not say.
    pub free_bytes: u64,
}

/// The links of one blob, for the reconciliation with a catalog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkEntry {
    /// The blob.
    pub digest: Digest,
    /// Who holds it.
    pub repository: RepositoryKey,
    /// Of which generation the link is.
    pub generation: Lsn,
}

/// An open store. Its lock is held until everything that it gave out is dropped as well.
pub struct Store {
    engine: Arc<Engine>,
    appender: Option<thread::JoinHandle<()>>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("epoch", &self.engine.epoch).finish_non_exhaustive()
    }
}

/// Keeps the links of a manifest from being removed while the catalog takes the manifest in. Dropping it lets go.
pub struct Pins {
    engine: Arc<Engine>,
    repository: RepositoryKey,
    digests: Vec<Digest>,
}

impl std::fmt::Debug for Pins {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pins").field("digests", &self.digests).finish_non_exhaustive()
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        for digest in &self.digests {
            let mut shard = self.engine.locator.write(digest);
            if let Some(pins) = shard.pins.get_mut(&(self.repository, *digest)) {
                *pins -= 1;
                if *pins == 0 {
                    shard.pins.remove(&(self.repository, *digest));
                }
            }
        }
    }
}

/// Keeps commits in the queue until it is dropped, so that a test can put several into one batch.
#[derive(Debug)]
pub struct Hold<'a>(&'a Store);

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.0.engine.log.release();
    }
}

impl Store {
    /// Parts that [`Store::links_page`] takes the links in.
    pub const LINK_PAGES: usize = SHARDS;

    /// Opens the store on `disk`, making it when the disk is empty. Blocks until the log is replayed.
    ///
    /// # Errors
    /// See [`OpenError`]. A damaged log is no error: see [`Store::state`].
    pub fn open(disk: Arc<dyn Disk>, options: Options, now_ms: u64) -> Result<Store, OpenError> {
        let lock = disk.lock("taffrail")?;
        let threaded = matches!(options.threading, Threading::Pool { .. });
        let engine = Arc::new(recovery::open(disk, lock, options, now_ms)?);
        let appender = if threaded {
            let engine = Arc::clone(&engine);
            let append = move || {
                let _guard = AbortOnPanic;
                engine.append_until_closed();
            };
            let spawned = thread::Builder::new().name("taffrail-log".to_owned()).spawn(append);
            Some(spawned.map_err(OpenError::io("appender thread"))?)
        } else {
            None
        };
        Ok(Store { engine, appender })
    }

    /// Finishes what is queued, seals the log and writes a checkpoint, so that the next opening replays nothing.
    ///
    /// # Errors
    /// See [`Refusal`]; the store is safe all the same.
    pub fn close(mut self) -> Result<(), Refusal> {
        self.stop();
        let engine = &self.engine;
        engine.flush();
        if let Some(refusal) = engine.health.refusal() {
            return Err(refusal);
        }
        engine.seal_log()?;
        engine.write_checkpoint(engine.threshold(Threshold::CLOSING))
    }

    fn stop(&mut self) {
        self.engine.log.close();
        if let Some(appender) = self.appender.take() {
            drop(appender.join());
        }
    }

    /// Looks a blob up in a repository, and leases it to whoever is told.
    ///
    /// # Errors
    /// `Unknown`.
    pub fn stat(
        &self,
        repository: RepositoryKey,
        digest: &Digest,
        now_ms: u64,
    ) -> Result<BlobStat, ReadError> {
        let shard = self.engine.locator.read(digest);
        let found = shard.linked(repository, digest);
        let found = found
            .map_err(|failed| ReadError::Io { digest: *digest, error: self.engine.lookup_failed(failed) })?;
        let blob = found.ok_or(ReadError::Unknown)?;
        self.engine.leases.grant(repository, digest, now_ms);
        Ok(BlobStat { digest: *digest, len_bytes: blob.len_bytes })
    }

    /// Opens a blob for reading. It stays readable when it is deleted meanwhile.
    ///
    /// # Errors
    /// `Unknown`.
    pub fn open_blob(&self, repository: RepositoryKey, digest: &Digest) -> Result<BlobReader, ReadError> {
        BlobReader::open(Arc::clone(&self.engine), repository, *digest)
    }

    /// Repositories that hold the blob, at most `limit`; none when the index cannot be read.
    pub fn holders(&self, digest: &Digest, limit: usize) -> Vec<RepositoryKey> {
        let shard = self.engine.locator.read(digest);
        let blob = self.engine.indexed(shard.find(digest)).flatten().filter(|blob| blob.is_served());
        blob.map(|blob| blob.links.iter().take(limit).map(|link| link.repository).collect())
            .unwrap_or_default()
    }

    /// The generation of a link, for [`Store::unlink_if`].
    pub fn link_generation(&self, repository: RepositoryKey, digest: &Digest) -> Option<Lsn> {
        let shard = self.engine.locator.read(digest);
        self.engine.indexed(shard.link_generation(repository, digest)).flatten()
    }

    /// The generation of a link that may be dropped, for [`Store::unlink_if`]: to be asked before the catalog is.
    ///
    /// A link that a manifest on its way into the catalog needs is not one: the catalog does not name it yet, and when it does, this
    /// generation stands still and the pin is gone.
    ///
    /// # Errors
    /// `Unknown` when there is none, `Pinned`, `Refused`.
    pub fn droppable_generation(
        &self,
        repository: RepositoryKey,
        digest: &Digest,
    ) -> Result<Lsn, UnlinkError> {
        let shard = self.engine.locator.read(digest);
        let found = shard.find(digest).map_err(|failed| self.engine.index_failed(failed))?;
        let link = found.as_ref().and_then(|blob| blob.link(repository)).ok_or(UnlinkError::Unknown)?;
        if shard.pins.contains_key(&(repository, *digest)) {
            return Err(UnlinkError::Pinned);
        }
        Ok(link.generation)
    }

    /// Links a blob that `from` holds into `to`. One small commit, whatever the blob's size.
    ///
    /// # Errors
    /// `Unknown` when `from` does not hold it.
    pub async fn mount(
        &self,
        from: RepositoryKey,
        to: RepositoryKey,
        digest: &Digest,
        now_ms: u64,
    ) -> Result<BlobStat, LinkError> {
        let (ticket, stat) = {
            let mut shard = self.engine.locator.write(digest);
            let found = shard.linked(from, digest).map_err(|failed| self.engine.index_failed(failed))?;
            let len_bytes = found.ok_or(LinkError::Unknown)?.len_bytes;
            let marks = Marks { links_coming: vec![*digest], ..Marks::default() };
            let ticket = self.enqueue(vec![link(to, digest)], Purpose::Store, marks, now_ms)?;
            if let Some(Some(blob)) = self.engine.indexed(shard.edit(digest)) {
                blob.links_coming += 1;
            }
            self.engine.leases.grant(to, digest, now_ms);
            (ticket, BlobStat { digest: *digest, len_bytes })
        };
        self.engine.wait(ticket).await?;
        Ok(stat)
    }

    /// Removes a link although it may be leased: a client's own wish. `generation` is what [`Store::link_generation`] said before
    /// the caller found that nothing needs the link.
    ///
    /// # Errors
    /// `Unknown`; `Pinned` when a manifest needs it or it was renewed since; `Held` while a backup holds links
    /// ([`Store::links_may_go`]).
    pub async fn unlink(
        &self,
        repository: RepositoryKey,
        digest: &Digest,
        generation: Lsn,
        now_ms: u64,
    ) -> Result<(), UnlinkError> {
        let ticket = {
            let mut shard = self.engine.locator.write(digest);
            if self.engine.removals.hold_links() {
                return Err(UnlinkError::Held);
            }
            let found = shard.find(digest).map_err(|failed| self.engine.index_failed(failed))?;
            let blob = found.filter(|blob| !blob.condemned).ok_or(UnlinkError::Unknown)?;
            let link = blob.link(repository).ok_or(UnlinkError::Unknown)?;
            if shard.is_unlinking(repository, digest) {
                return Err(UnlinkError::Unknown);
            }
            if link.generation != generation || shard.pins.contains_key(&(repository, *digest)) {
                return Err(UnlinkError::Pinned);
            }
            self.enqueue_unlink(&mut shard, repository, digest, now_ms)?
        };
        Ok(self.engine.wait(ticket).await?)
    }

    /// Waits as long as a backup holds links ([`Store::hold_removals`]), which is as long as it takes to copy the catalog.
    pub async fn links_may_go(&self) {
        self.engine.removals.links_may_go().await;
    }

    /// The parts of the engine.
    pub(crate) fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// Removes a link if it is still of that generation, neither pinned, leased nor held by a backup. Says whether it did.
    ///
    /// # Errors
    /// `Refused`.
    pub async fn unlink_if(
        &self,
        repository: RepositoryKey,
        digest: &Digest,
        generation: Lsn,
        now_ms: u64,
    ) -> Result<bool, UnlinkError> {
        let ticket = {
            let mut shard = self.engine.locator.write(digest);
            let found = shard.find(digest).map_err(|failed| self.engine.index_failed(failed))?;
            let link = found.as_ref().and_then(|blob| blob.link(repository));
            let held = self.engine.removals.hold_links()
                || link.is_none_or(|link| link.generation != generation)
                || shard.is_unlinking(repository, digest)
                || shard.pins.contains_key(&(repository, *digest))
                || self.engine.is_fenced(now_ms)
                || self.engine.leases.stands(Some(repository), digest, now_ms);
            if held {
                return Ok(false);
            }
            self.enqueue_unlink(&mut shard, repository, digest, now_ms)?
        };
        self.engine.wait(ticket).await?;
        Ok(true)
    }

    /// Enqueues an UNLINK. From here on the link is not there for whoever asks: a lease that was granted now would not keep it.
    fn enqueue_unlink(
        &self,
        shard: &mut Shard,
        repository: RepositoryKey,
        digest: &Digest,
        now_ms: u64,
    ) -> Result<Ticket, Refusal> {
        let marks = Marks { unlinking: vec![(repository, *digest)], ..Marks::default() };
        let ticket = self.enqueue(vec![unlink(repository, digest)], Purpose::Reclaim, marks, now_ms)?;
        *shard.unlinking.entry((repository, *digest)).or_default() += 1;
        Ok(ticket)
    }

    /// Stores a manifest, links it and renews the links of everything it refers to, in one batch; pins them all until the result is
    /// dropped. Each of `references` comes with the length that the manifest states.
    ///
    /// # Errors
    /// See [`PutError`]; after an error nothing is linked.
    pub async fn put(
        &self,
        repository: RepositoryKey,
        digest: &Digest,
        bytes: Bytes,
        references: &[(Digest, u64)],
        now_ms: u64,
    ) -> Result<Pins, PutError> {
        if bytes.len() > INLINE_BYTES_MAX {
            return Err(PutError::TooLarge(bytes.len()));
        }
        let actual = Digest::of(digest.algorithm(), &bytes);
        if actual != *digest {
            return Err(PutError::Mismatch(actual));
        }
        let mut digests: Vec<Digest> =
            references.iter().map(|(digest, _)| *digest).chain([*digest]).collect();
        digests.sort_unstable();
        digests.dedup();
        let (pins, ticket) = {
            let mut shards = self.engine.locator.write_all(digests.iter());
            self.check_references(&mut shards, repository, references)?;
            self.enqueue_put(&mut shards, repository, digest, bytes, digests, now_ms)?
        };
        self.engine.wait(ticket).await?;
        Ok(pins)
    }

    /// Whether the repository holds everything, in the stated lengths.
    fn check_references(
        &self,
        shards: &mut LockedShards<'_>,
        repository: RepositoryKey,
        references: &[(Digest, u64)],
    ) -> Result<(), PutError> {
        let mut missing = Vec::new();
        for (digest, stated_bytes) in references {
            if missing.len() == MISSING_MAX {
                break;
            }
            let found = shards.of(digest).map(|shard| shard.linked(repository, digest)).transpose();
            let found = found.map_err(|failed| self.engine.index_failed(failed))?;
            match found.flatten().map(|blob| blob.len_bytes) {
                None => missing.push(*digest),
                Some(actual_bytes) if actual_bytes != *stated_bytes => {
                    return Err(PutError::Length {
                        digest: *digest,
                        actual_bytes,
                        stated_bytes: *stated_bytes,
                    });
                }
                Some(_) => {}
            }
        }
        missing.dedup();
        if missing.is_empty() { Ok(()) } else { Err(PutError::Missing(missing)) }
    }

    fn enqueue_put(
        &self,
        shards: &mut LockedShards<'_>,
        repository: RepositoryKey,
        digest: &Digest,
        bytes: Bytes,
        digests: Vec<Digest>,
        now_ms: u64,
    ) -> Result<(Pins, Ticket), Refusal> {
        let mut marks = Marks::default();
        let mut records = Vec::with_capacity(digests.len() + 1);
        let found = shards.of(digest).map(|shard| shard.find(digest)).transpose();
        let found = found.map_err(|failed| self.engine.index_failed(failed))?;
        let stored = found.flatten().is_some_and(|blob| blob.is_served());
        if !stored {
            let len_bytes = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            let body = Body::Blob { digest: *digest, len_bytes, payload_offset_bytes: 0 };
            records.push(NewRecord { body, payload: bytes });
        }
        for linked in &digests {
            records.push(link(repository, linked));
            if stored || linked != digest {
                marks.links_coming.push(*linked);
            }
        }
        let coming = marks.links_coming.clone();
        let ticket = self.enqueue(records, Purpose::Store, marks, now_ms)?;
        for linked in &coming {
            let Some(shard) = shards.of(linked) else { continue };
            if let Some(Some(blob)) = self.engine.indexed(shard.edit(linked)) {
                blob.links_coming += 1;
            }
        }
        for pinned in &digests {
            if let Some(shard) = shards.of(pinned) {
                *shard.pins.entry((repository, *pinned)).or_default() += 1;
            }
            self.engine.leases.grant(repository, pinned, now_ms);
        }
        Ok((Pins { engine: Arc::clone(&self.engine), repository, digests }, ticket))
    }

    fn enqueue(
        &self,
        records: Vec<NewRecord>,
        purpose: Purpose,
        marks: Marks,
        now_ms: u64,
    ) -> Result<Ticket, Refusal> {
        match self.engine.health.refusal() {
            Some(refusal) => Err(refusal),
            None => self.engine.log.enqueue(records, purpose, marks, now_ms),
        }
    }

    /// Begins an upload session, for nobody in particular, under an id from the caller's random source. What counts are the
    /// bounds on the sessions of a repository and on all of them.
    ///
    /// # Errors
    /// `TooMany`, `Refused`.
    pub fn begin_upload(
        &self,
        repository: RepositoryKey,
        algorithm: Algorithm,
        id: SessionId,
        now_ms: u64,
    ) -> Result<UploadStatus, UploadError> {
        self.begin(Beginning { repository, uploader: None, id, algorithm }, now_ms)
    }

    /// Begins an upload session as [`Store::begin_upload`] does, and counts it among those of `uploader` until it ends or the
    /// store is opened anew.
    ///
    /// # Errors
    /// `TooMany`, `Refused`.
    pub fn begin_upload_of(
        &self,
        uploader: Uploader,
        repository: RepositoryKey,
        algorithm: Algorithm,
        id: SessionId,
        now_ms: u64,
    ) -> Result<UploadStatus, UploadError> {
        self.begin(Beginning { repository, uploader: Some(uploader), id, algorithm }, now_ms)
    }

    fn begin(&self, beginning: Beginning, now_ms: u64) -> Result<UploadStatus, UploadError> {
        let id = beginning.id;
        if let Some(refusal) = self.engine.health.refusal() {
            return Err(UploadError::Refused(refusal));
        }
        self.engine.sessions.begin(beginning, &self.engine.options, now_ms)?;
        Ok(UploadStatus { id, offset_bytes: 0 })
    }

    /// Where a session of the repository stands.
    ///
    /// # Errors
    /// `Unknown`.
    pub fn upload_status(
        &self,
        repository: RepositoryKey,
        id: SessionId,
        now_ms: u64,
    ) -> Result<UploadStatus, UploadError> {
        let offset_bytes = self.engine.sessions.offset(repository, id, now_ms).ok_or(UploadError::Unknown)?;
        Ok(UploadStatus { id, offset_bytes })
    }

    /// Opens a session for writing; one at a time. After a restart it may read back up to 64 MiB to learn what survived, so the
    /// offset can be smaller than [`Store::upload_status`] said.
    ///
    /// # Errors
    /// `Unknown`, `Busy`; `Unreadable`, and then the session stands; `Io`, and then it is gone.
    pub async fn open_upload(
        &self,
        repository: RepositoryKey,
        id: SessionId,
        now_ms: u64,
    ) -> Result<Upload, UploadError> {
        Upload::open(Arc::clone(&self.engine), repository, id, now_ms).await
    }

    /// Ends a session and frees its bytes.
    ///
    /// # Errors
    /// `Unknown`, `Busy`, `Refused`.
    pub async fn abort_upload(
        &self,
        repository: RepositoryKey,
        id: SessionId,
        now_ms: u64,
    ) -> Result<(), UploadError> {
        Upload::abort(&self.engine, repository, id, now_ms).await
    }

    /// Ends the sessions that nobody used for the idle time, and those without a byte that nobody used for an hour; says how many.
    pub async fn expire_sessions(&self, now_ms: u64) -> usize {
        self.engine.tell_ends(now_ms).await;
        let mut expired = self.engine.sessions.forget_empty(now_ms);
        let Some(before_ms) = now_ms.checked_sub(self.engine.options.session_idle_ms) else { return expired };
        let latest_ms = now_ms.saturating_add(self.engine.options.session_idle_ms);
        for (repository, id) in self.engine.sessions.idle(before_ms, latest_ms) {
            // Taken up again meanwhile, or failing: the next round looks at it once more.
            if Upload::abort(&self.engine, repository, id, now_ms).await.is_ok() {
                expired += 1;
            }
        }
        expired
    }

    /// Open sessions of a repository.
    pub fn sessions_of(&self, repository: RepositoryKey) -> usize {
        self.engine.sessions.count_of(repository)
    }

    /// Deletes up to `budget` blobs that lost their last link a grace time ago, and drops what became empty. Waits one lease time
    /// after an opening before it does anything.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn collect(&self, now_ms: u64, budget: usize) -> Result<Collected, Refusal> {
        self.engine.collect(now_ms, budget).await
    }

    /// Rewrites log segments that are mostly dead, so that they can go, until `budget_bytes` were read and written or nothing is
    /// left that is worth it; it may be a portion of some hundred KiB more. [`Compacted::more`] says that there is more. What is
    /// behind the last checkpoint is left alone. Dropping it is safe, and does part of the work again.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn compact(&self, now_ms: u64, budget_bytes: u64) -> Result<Compacted, Refusal> {
        self.engine.compact(now_ms, budget_bytes).await
    }

    /// Writes a checkpoint, on a storage thread, while commits go on.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn checkpoint(&self) -> Result<(), Refusal> {
        let engine = Arc::clone(&self.engine);
        self.engine
            .pool
            .run(move || engine.write_checkpoint(engine.threshold(Threshold::SERVING)))
            .await
            .unwrap_or(Err(Refusal::Closing))
    }

    /// Bytes of log that an opening would replay now.
    pub fn replay_bytes(&self) -> u64 {
        let replay_from = SegmentId(self.engine.replay_from.load(Ordering::Acquire));
        let segments = self.engine.segments.snapshot();
        segments.iter().filter(|(id, _)| *id >= replay_from).map(|(_, segment)| segment.end_bytes).sum()
    }

    /// The links of part `page`, below [`Store::LINK_PAGES`]. Reads a part of the index; blocks on the disk.
    ///
    /// # Errors
    /// Whatever the disk says. After damage the store is poisoned, and whole when it is opened again.
    pub fn links_page(&self, page: usize) -> io::Result<Vec<LinkEntry>> {
        let shard = self.engine.locator.shard(page).snapshot();
        let mut links = Vec::new();
        for blob in shard.blobs() {
            let blob = blob.map_err(|failed| self.engine.lookup_failed(failed))?;
            links.extend(blob.holders().map(|(repository, generation)| LinkEntry {
                digest: blob.digest,
                repository,
                generation,
            }));
        }
        Ok(links)
    }

    /// Blobs that are set aside because their bytes are damaged, in the order of their digests, with the repositories that hold
    /// them. The first call after an opening reads the whole index, the others cost a lookup for each; blocks on the disk.
    ///
    /// # Errors
    /// As [`Store::links_page`].
    pub fn quarantined(&self) -> io::Result<Vec<(Digest, Vec<RepositoryKey>)>> {
        let found = self.engine.find_set_aside().and_then(|()| self.engine.set_aside_blobs());
        found.map_err(|failed| self.engine.lookup_failed(failed))
    }

    /// Begins to read everything again, or goes on where another pass stood; `None` when one is under way.
    pub fn scrub(&self, position: ScrubPosition, depth: ScrubDepth) -> Option<Scrubber> {
        Scrubber::begin(&self.engine, position, depth)
    }

    /// Whether the store takes writes.
    pub fn state(&self) -> StoreState {
        self.engine.health.state()
    }

    /// The store's identity, which a catalog remembers.
    pub fn uuid(&self) -> [u8; 16] {
        *self.engine.key.uuid()
    }

    /// The LSN that the next record gets.
    pub fn next_lsn(&self) -> Lsn {
        lock(&self.engine.log.writer).next_lsn
    }

    /// Keeps commits in the queue until the result is dropped: for tests of group commit.
    pub fn hold_commits(&self) -> Hold<'_> {
        self.engine.log.hold();
        Hold(self)
    }

    /// Figures for the operator.
    pub fn stats(&self) -> Stats {
        let engine = &self.engine;
        let total = engine.locator.total();
        Stats {
            blobs: total.blobs,
            blob_bytes: total.bytes,
            links: total.links,
            sessions: engine.sessions.count() as u64,
            session_memory_bytes: engine.sessions.memory_bytes.load(Ordering::Relaxed),
            log_segments: engine.segments.len() as u64,
            log: engine.log_use(),
            garbage: total.garbage,
            quarantines: engine.quarantines.load(Ordering::Relaxed),
            quarantined: engine.quarantine.len() as u64,
            disk: engine.disk.counters(),
            free_bytes: engine.disk.free_bytes().unwrap_or(0),
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Engine {
    /// Ends the log for a clean close, and gives back what the last segment did not use.
    fn seal_log(&self) -> Result<(), Refusal> {
        let mut writer = lock(&self.log.writer);
        self.seal_current(&mut writer)?;
        self.give_back_tail(writer.previous());
        Ok(())
    }
}

fn link(repository: RepositoryKey, digest: &Digest) -> NewRecord {
    NewRecord { body: Body::Link { repository, digest: *digest }, payload: Bytes::new() }
}

fn unlink(repository: RepositoryKey, digest: &Digest) -> NewRecord {
    NewRecord { body: Body::Unlink { repository, digest: *digest }, payload: Bytes::new() }
}
