//! What all parts of the engine share, and the one function that turns a durable record into state.
//!
//! What must stay true: [`Engine::apply`] is the only place where the locator learns anything, in recovery as in service; it is
//! called with the records of each digest in the order of the log, and with all others in that order, too.

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::compaction::Compaction;
use crate::digest::Digest;
use crate::disk::{Disk, Lock};
use crate::error::Refusal;
use crate::format::batch::{NewRecord, payload_place};
use crate::format::checkpoint::Location;
use crate::format::partition::PartitionName;
use crate::format::record::{Body, Record, Said};
use crate::format::seal::{Key, Place};
use crate::format::{Lsn, RESERVE_FOLDER, SegmentId, footprint};
use crate::health::{Failed, Health};
use crate::lane::HashThreads;
use crate::lease::Leases;
use crate::lending::Lending;
use crate::locator::{Blob, Change, Link, Locator};
use crate::log::{Ending, Fate, Log, Marks, Purpose, Ticket};
use crate::options::{Options, Threading};
use crate::partition::PageError;
use crate::pool::Pool;
use crate::quarantine::Quarantine;
use crate::recent::Recent;
use crate::repository::RepositoryKey;
use crate::segment::table::{Live, Table};
use crate::session::Sessions;
use crate::snapshot::Removals;
use crate::solo::Solos;
use crate::superblock::Superblocks;
use crate::sync::{Arc, AtomicBool, AtomicU64, Mutex, Ordering, lock};
use crate::units::Units;

/// File whose only purpose is the space it takes, relative to the store.
pub(crate) const RESERVE_NAME: &str = "reserve/space";

/// The parts of the engine.
pub(crate) struct Engine {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) pool: Pool,
    pub(crate) hash_threads: HashThreads,
    /// Memory for uploads.
    pub(crate) units: Arc<Units>,
    /// Memory for reading blobs.
    pub(crate) lending: Arc<Lending>,
    /// Small payloads that were read lately.
    pub(crate) recent: Recent,
    pub(crate) options: Options,
    /// Length of new log segments, from the superblock.
    pub(crate) segment_bytes: u64,
    pub(crate) key: Key,
    pub(crate) epoch: u32,
    pub(crate) superblocks: Superblocks,
    pub(crate) health: Health,
    pub(crate) locator: Locator,
    pub(crate) leases: Leases,
    pub(crate) segments: Table,
    pub(crate) sessions: Sessions,
    pub(crate) solos: Solos,
    pub(crate) log: Log,
    /// Blobs that lost their last link, by when. An entry may be outdated; the blob itself says.
    pub(crate) garbage: Mutex<BTreeSet<(u64, Digest)>>,
    /// Whether that of the partitions of the opening is among it.
    pub(crate) garbage_is_loaded: AtomicBool,
    /// When the store was opened, in milliseconds since 1970.
    pub(crate) opened_ms: u64,
    /// Until then nothing is unlinked or collected: leases of before the opening are not known.
    pub(crate) fenced_until_ms: AtomicU64,
    /// Solo files whose commit failed.
    pub(crate) abandoned: Mutex<Vec<SegmentId>>,
    /// Where the newest checkpoint says to replay from.
    pub(crate) replay_from: AtomicU64,
    /// Blobs that were quarantined since the opening.
    pub(crate) quarantines: AtomicU64,
    /// Those that are set aside now.
    pub(crate) quarantine: Quarantine,
    /// Whether a scrub is under way.
    pub(crate) scrubbing: AtomicBool,
    /// Held while a checkpoint is written.
    pub(crate) checkpointing: Mutex<()>,
    /// Whether the checkpoint that the superblock names could not be read at the opening. The first new one goes into both superblocks:
    /// nothing must speak of the lost one any more.
    pub(crate) checkpoint_was_lost: AtomicBool,
    /// Whether a replay could not be sorted, because its scratch file failed.
    pub(crate) replay_unsorted: AtomicBool,
    /// Number of the next partition.
    pub(crate) next_partition: AtomicU64,
    /// The partitions of the newest checkpoint.
    pub(crate) partitions_before: Mutex<BTreeSet<PartitionName>>,
    /// Whether a collection is under way.
    pub(crate) collecting: Arc<AtomicBool>,
    /// Whether a compaction is under way.
    pub(crate) compacting: Arc<AtomicBool>,
    /// Whether log segments are being removed.
    pub(crate) dropping: Arc<AtomicBool>,
    /// What is being compacted.
    pub(crate) compaction: Mutex<Compaction>,
    /// What may not be removed now.
    pub(crate) removals: Arc<Removals>,
    /// Whether the orphans of before the opening were looked for.
    pub(crate) swept: Mutex<bool>,
    /// Released last: whoever still has a part of the store may write.
    pub(crate) _lock: Box<dyn Lock>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

impl Engine {
    /// Whether disk calls run on the caller's thread.
    pub(crate) fn is_inline(&self) -> bool {
        self.options.threading == Threading::Inline
    }

    /// Waits for a commit. Without threads, the first who waits writes the batch for everyone.
    pub(crate) async fn wait(self: &Arc<Self>, mut ticket: Ticket) -> Result<(), Refusal> {
        self.wait_for(&mut ticket).await
    }

    /// The same for a ticket that is kept when nobody waits any more.
    pub(crate) async fn wait_for(self: &Arc<Self>, ticket: &mut Ticket) -> Result<(), Refusal> {
        if self.is_inline() {
            std::future::poll_fn(|context| {
                use std::future::Future as _;
                while ticket.is_pending() && !self.log.is_held() {
                    self.flush();
                }
                std::pin::Pin::new(&mut *ticket).poll(context)
            })
            .await
            .unwrap_or(Err(Refusal::Closing))
        } else {
            ticket.await.unwrap_or(Err(Refusal::Closing))
        }
    }

    /// Shows a durable record of the batch at `place`. A record changes only what records with a lower LSN said: a copy comes
    /// late, and what it says may be outdated.
    pub(crate) fn apply(&self, record: &Record, place: Place, time_ms: u64) {
        let segment = place.segment;
        let Said { lsn, time_ms, body } = record.said(time_ms);
        if body.is_tombstone() {
            self.segments.add_tombstone(segment, lsn);
        }
        match body {
            Body::Blob { digest, len_bytes, payload_offset_bytes } => {
                let location = Location::Inline(payload_place(place, *payload_offset_bytes));
                self.apply_blob(digest, u64::from(*len_bytes), location, segment, lsn);
            }
            Body::Solo { digest, len_bytes, segment: file, epoch, trailer } => {
                let location = Location::Solo { segment: *file, epoch: *epoch, trailer: *trailer };
                self.apply_blob(digest, *len_bytes, location, segment, lsn);
            }
            Body::Link { repository, digest } => self.apply_link(*repository, digest, lsn, segment),
            Body::Unlink { repository, digest } => self.apply_unlink(*repository, digest, lsn, time_ms),
            Body::Delete { digest } => self.apply_delete(digest, lsn, time_ms),
            Body::Corrupt { digest, location } => {
                // One that was pushed again while the record was on its way lies elsewhere, and is whole.
                if let Some(Some(blob)) = self.indexed(self.locator.write(digest).edit(digest))
                    && (location.is_none() || *location == blob.location)
                {
                    blob.quarantined = true;
                    self.quarantine.enter(digest);
                }
            }
            Body::Session(session) => {
                let taken = self.sessions.log(session, segment, footprint::session_bytes(session), lsn);
                self.segments.add_live(segment, taken.more);
                for (held, live) in taken.replaced {
                    self.segments.remove_live(held, live);
                }
            }
            Body::SessionEnd { session } => {
                for (held, live) in self.sessions.forget_logged(session, lsn) {
                    self.segments.remove_live(held, live);
                }
            }
            Body::SegmentDrop { segment } => self.segments.mark_dropped(*segment),
            Body::Seal | Body::Repaired | Body::Copy(_) => {}
        }
    }

    fn apply_blob(
        &self,
        digest: &Digest,
        len_bytes: u64,
        location: Location,
        segment: SegmentId,
        record_lsn: Lsn,
    ) {
        let mut shard = self.locator.write(digest);
        let Some(blob) = self.indexed(shard.edit_or_new(digest, segment)) else { return };
        if blob.location.is_some() && blob.record_lsn > record_lsn {
            return;
        }
        let old_live = blob.live(digest.algorithm()).unwrap_or_default();
        let old = blob.location.replace(location);
        let (old_len, old_segment) = (blob.len_bytes, blob.record_segment);
        blob.len_bytes = len_bytes;
        blob.record_segment = segment;
        blob.record_lsn = record_lsn;
        // The copy of a record leaves the bytes of a solo file where they are, and as they are.
        let was_set_aside = blob.quarantined;
        blob.quarantined &= old == Some(location);
        let is_healed = was_set_aside && !blob.quarantined;
        let live = blob.live(digest.algorithm()).unwrap_or_default();
        let is_new_garbage = old.is_none() && blob.is_garbage();
        if is_healed {
            self.quarantine.leave(digest);
        }
        shard.tally.count_blob(len_bytes, segment, live, Change::Added);
        if old.is_some() {
            shard.tally.count_blob(old_len, old_segment, old_live, Change::Removed);
        }
        if is_new_garbage {
            shard.tally.count_garbage(Change::Added);
        }
        drop(shard);
        self.add_live(segment, live);
        if let Some(old) = old {
            self.remove_live(old_segment, old_live);
            if old != location {
                self.discard(&old);
            }
        }
    }

    fn apply_link(&self, repository: RepositoryKey, digest: &Digest, lsn: Lsn, segment: SegmentId) {
        let live = Link::live(digest.algorithm());
        let mut shard = self.locator.write(digest);
        let Some(blob) = self.indexed(shard.edit_or_new(digest, segment)) else { return };
        if blob.link(repository).is_some_and(|link| link.generation > lsn) {
            return;
        }
        let was_garbage = blob.is_garbage();
        let old = blob.insert_link(Link { repository, generation: lsn, segment });
        blob.unlinked_since_ms = 0;
        shard.tally.count_link(segment, live, Change::Added);
        if let Some(old) = &old {
            shard.tally.count_link(old.segment, live, Change::Removed);
        }
        if was_garbage {
            shard.tally.count_garbage(Change::Removed);
        }
        drop(shard);
        self.add_live(segment, live);
        if let Some(old) = old {
            self.remove_live(old.segment, live);
        }
    }

    fn apply_unlink(&self, repository: RepositoryKey, digest: &Digest, lsn: Lsn, time_ms: u64) {
        self.remove_links(digest, time_ms, |link| link.repository == repository && link.generation < lsn);
    }

    /// Removes those links of a blob. It is garbage when it had some and has none any more.
    fn remove_links(&self, digest: &Digest, time_ms: u64, goes: impl Fn(&Link) -> bool) {
        let mut shard = self.locator.write(digest);
        let live = Link::live(digest.algorithm());
        let Some(Some(blob)) = self.indexed(shard.edit(digest)) else { return };
        let removed: Vec<Link> = blob.links.extract_if(.., |link| goes(link)).collect();
        let unlinked = blob.links.is_empty() && !removed.is_empty();
        if unlinked {
            blob.unlinked_since_ms = time_ms.max(1);
        }
        let is_new_garbage = unlinked && blob.is_garbage();
        for link in &removed {
            shard.tally.count_link(link.segment, live, Change::Removed);
        }
        if is_new_garbage {
            shard.tally.count_garbage(Change::Added);
        }
        drop(shard);
        for link in &removed {
            self.remove_live(link.segment, live);
        }
        if unlinked {
            lock(&self.garbage).insert((time_ms.max(1), *digest));
        }
    }

    fn apply_delete(&self, digest: &Digest, lsn: Lsn, time_ms: u64) {
        self.remove_links(digest, time_ms, |link| link.generation < lsn);
        let is_older = |blob: &Blob| blob.links.is_empty() && blob.record_lsn < lsn;
        let found = self.indexed(
            self.locator.read(digest).find(digest).map(|blob| blob.is_some_and(|blob| is_older(&blob))),
        );
        if found != Some(true) {
            return;
        }
        if let Some(Some(blob)) = self.indexed(self.forget_blob(digest))
            && let Some(location) = blob.location
        {
            self.discard(&location);
        }
    }

    /// Takes a blob and its links out of the locator and of what is live.
    pub(crate) fn forget_blob(&self, digest: &Digest) -> Result<Option<Blob>, PageError> {
        let link_live = Link::live(digest.algorithm());
        let mut shard = self.locator.write(digest);
        let Some(blob) = shard.remove(digest)? else { return Ok(None) };
        if blob.quarantined {
            self.quarantine.leave(digest);
        }
        for link in &blob.links {
            shard.tally.count_link(link.segment, link_live, Change::Removed);
            self.remove_live(link.segment, link_live);
        }
        if let Some(live) = blob.live(digest.algorithm()) {
            shard.tally.count_blob(blob.len_bytes, blob.record_segment, live, Change::Removed);
            self.remove_live(blob.record_segment, live);
        }
        if blob.is_garbage() {
            shard.tally.count_garbage(Change::Removed);
        }
        Ok(Some(blob))
    }

    /// Counts what a blob or link takes of a segment. The shard has the same figure in its tally: while the log is replayed the table
    /// waits for the sums, so that threads that replay do not wait for each other at each record.
    fn add_live(&self, segment: SegmentId, live: Live) {
        if self.is_serving() {
            self.segments.add_live(segment, live);
        }
    }

    /// See [`Engine::add_live`].
    fn remove_live(&self, segment: SegmentId, live: Live) {
        if self.is_serving() {
            self.segments.remove_live(segment, live);
        }
    }

    /// What the index said; `None` when it could not be read, and then the store is poisoned.
    pub(crate) fn indexed<T>(&self, said: Result<T, PageError>) -> Option<T> {
        said.map_err(|failed| self.index_failed(failed)).ok()
    }

    /// Sees to a page of the index that is needed for a decision or a change, and cannot be had. A damaged partition is removed: the
    /// next opening finds the checkpoint without it, and reads the log instead.
    pub(crate) fn index_failed(&self, failed: PageError) -> Refusal {
        let name = failed.name.file_name();
        if failed.is_damage() {
            drop(self.disk.remove(&name));
        }
        self.locator.set_broken();
        self.health.failed(&name, &Failed::index(failed.error))
    }

    /// The same for a lookup that decides nothing: a device that fails harms that lookup alone.
    pub(crate) fn lookup_failed(&self, failed: PageError) -> std::io::Error {
        let error = std::io::Error::new(failed.error.kind(), failed.error.to_string());
        if failed.is_damage() {
            self.index_failed(failed);
        }
        error
    }

    /// Frees the bytes of a blob whose record counts no more. Those in a log segment go with the segment. In recovery nothing is
    /// removed: a later record may speak of the file; what is left over is swept.
    fn discard(&self, location: &Location) {
        if let Location::Solo { segment, .. } = location {
            self.solos.forget(*segment);
            if self.is_serving() && !self.removals.keep(*segment) {
                self.remove_solo(*segment);
            }
        }
    }

    /// Removes a solo file on a storage thread: freeing gigabytes takes the file system a while.
    pub(crate) fn remove_solo(&self, segment: SegmentId) {
        let disk = Arc::clone(&self.disk);
        // What cannot be removed now is an orphan, and swept at the next opening.
        drop(self.pool.run(move || disk.remove(&segment.solo_name())));
    }

    /// Sees to a session whose commit failed; whoever waited for it may be gone. It is not certain that no record names the
    /// file: it is removed when it is. The log is told that the session is over, as far as it takes anything in.
    fn abandon(&self, ending: &Ending) {
        if let Some((segment, _)) = ending.file {
            lock(&self.abandoned).push(segment);
        }
        if ending.is_logged {
            let body = Body::SessionEnd { session: ending.session };
            let record = NewRecord { body, payload: Bytes::new() };
            // Not at the cost of the reserve: it is for deletions, and a push that did not fit is no deletion.
            drop(self.log.enqueue(vec![record], Purpose::Store, Marks::default(), 0));
        }
    }

    /// Removes solo files whose commit failed. Called after a batch was flushed: it lies where the failed one would, so that no
    /// recovery finds a record that names them.
    pub(crate) fn remove_abandoned(&self) {
        for segment in std::mem::take(&mut *lock(&self.abandoned)) {
            self.remove_solo(segment);
        }
    }

    /// Whether leases of before the opening may still be relied on. What is left of that time is never longer than two leases,
    /// although the clock at the opening may have run ahead of what it says now. (Two, so that a clock that is set back by a
    /// lease and then right again ends nothing early. The same holds for leases, grace times and idle sessions.)
    pub(crate) fn is_fenced(&self, now_ms: u64) -> bool {
        let latest_ms = now_ms.saturating_add(self.options.lease_ms.saturating_mul(2));
        now_ms < self.fenced_until_ms.fetch_min(latest_ms, Ordering::Relaxed).min(latest_ms)
    }

    /// Whether recovery is over.
    pub(crate) fn is_serving(&self) -> bool {
        self.replay_from.load(Ordering::Acquire) != u64::MAX
    }

    /// Takes back what [`Marks`] marked, after the group was applied.
    pub(crate) fn unmark_done(&self, marks: &Marks) {
        self.uncount_links(marks);
        if let Some(Ending { file: Some((segment, Fate::Surplus)), .. }) = marks.ending {
            self.remove_solo(segment);
        }
    }

    fn uncount_links(&self, marks: &Marks) {
        for digest in &marks.links_coming {
            if let Some(blob) = self.locator.write(digest).edit_marks(digest) {
                blob.links_coming = blob.links_coming.saturating_sub(1);
            }
        }
        for link in &marks.unlinking {
            let mut shard = self.locator.write(&link.1);
            if let Some(records) = shard.unlinking.get_mut(link) {
                *records -= 1;
                if *records == 0 {
                    shard.unlinking.remove(link);
                }
            }
        }
    }

    /// The same, after the group failed.
    pub(crate) fn unmark_failed(&self, marks: &Marks) {
        self.uncount_links(marks);
        if let Some(ending) = &marks.ending {
            self.abandon(ending);
        }
        for digest in &marks.condemned {
            let mut shard = self.locator.write(digest);
            if let Some(blob) = shard.edit_marks(digest) {
                blob.condemned = false;
                if blob.links.is_empty() {
                    lock(&self.garbage).insert((blob.unlinked_since_ms, *digest));
                }
            }
        }
    }

    /// Gives the reserve to the file system, so that a deletion finds space.
    pub(crate) fn release_reserve(&self) {
        if self.disk.remove(RESERVE_NAME).is_ok()
            && let Err(error) = self.disk.sync_dir(RESERVE_FOLDER)
        {
            self.health.failed(RESERVE_FOLDER, &Failed::flush(error));
        }
    }

    /// Takes the reserve back, when there is room for it twice. It is no loss when there is not: deletions then rely on the
    /// room of the current segment.
    pub(crate) fn refill_reserve(&self) {
        let wanted = self.options.reserve_bytes;
        let roomy = self.disk.free_bytes().is_ok_and(|free| free / 2 > wanted);
        if wanted > 0 && roomy && self.disk.open(RESERVE_NAME, crate::disk::Access::Cached).is_err() {
            drop(self.disk.create(RESERVE_NAME, wanted, crate::disk::Access::Cached));
        }
    }
}
