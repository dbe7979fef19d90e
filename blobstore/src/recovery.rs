//! Opening a store: superblock, checkpoint, replay of the log behind it.
//!
//! What must stay true: opening changes nothing that a second opening would read differently, so it may itself be interrupted
//! anywhere; a torn tail is dropped and never written over; damage before the tail cuts nothing off, it makes the store read-only.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use crate::buffer::AlignedBuffer;
use crate::disk::{Access, Disk, File, Lock};
use crate::engine::{Engine, RESERVE_NAME};
use crate::error::OpenError;
use crate::format::batch::ValidBatch;
use crate::format::checkpoint::{CheckpointHeader, Location};
use crate::format::partition::PartitionName;
use crate::format::record::Body;
use crate::format::seal::{Key, Seal};
use crate::format::segment::{Content, HEADER_BYTES, Previous, SegmentHeader, UNKNOWN_SEAL};
use crate::format::superblock::{FORMAT_VERSION, Superblock};
use crate::format::{INDEX_FOLDER, LOG_FOLDER, Lsn, RESERVE_FOLDER, SegmentId};
use crate::health::{Damage, Failed, Health, StoreState};
use crate::lane::HashThreads;
use crate::lease::Leases;
use crate::lending::Lending;
use crate::locator::{Locator, SHARDS};
use crate::log::Log;
use crate::options::{Options, Threading};
use crate::pool::Pool;
use crate::quarantine::Quarantine;
use crate::recent::Recent;
use crate::replay::{Appliers, SORT_RECORDS, SORT_RECORDS_SMALL};
use crate::segment::scan::{self, Found, Scan};
use crate::segment::table::{LogSegment, Table};
use crate::session::Sessions;
use crate::solo::{self, Solos};
use crate::superblock::{self, Superblocks};
use crate::sync::{Arc, AtomicBool, AtomicU64, Mutex, Ordering, lock};

/// A log segment as it was found.
struct OnDisk {
    header: SegmentHeader,
    /// `None` when the header is damaged and was made up from the batches.
    header_seal: Option<Seal>,
    /// For scanning, past the page cache.
    file: Arc<dyn File>,
}

/// How the log ends.
struct End {
    previous: Option<Previous>,
    next_lsn: Lsn,
    time_ms: u64,
    /// Records since deltas were last looked at.
    records_since: usize,
    /// Records that were replayed.
    records_in_all: usize,
    /// Whether sorting them was not tried yet.
    may_sort: bool,
}

/// Blobs of a shard that a replay holds in memory: 2 million in all, in 600 MB. More are written to partitions as they come, so that a
/// store of any size can be read back.
const SPILL_BLOBS: usize = 32 * 1024;

/// Records between two looks at the deltas: half of what may be in them.
const SPILL_CHECK_RECORDS: usize = SPILL_BLOBS * SHARDS / 2;

/// Opens the store on `disk`, whose `lock` is held.
pub(crate) fn open(
    disk: Arc<dyn Disk>,
    lock: Box<dyn Lock>,
    options: Options,
    now_ms: u64,
) -> Result<Engine, OpenError> {
    if !options.segment_bytes_are_valid() {
        return Err(OpenError::SegmentBytes(options.segment_bytes));
    }
    let stored = superblock::read_or_make(&*disk, &options, now_ms)?;
    let key = Key::new(stored.key, stored.uuid);
    let mut damage = Vec::new();
    let segments = find_segments(&*disk, &key, &stored, &mut damage)?;
    let writable = begin_epoch(&*disk, &stored, &segments.found, now_ms)?;
    let epoch = writable.as_ref().unwrap_or(&stored).epoch;
    let superblock = writable.as_ref().unwrap_or(&stored).clone();
    let mut engine = assemble(disk, lock, options, key, superblock, epoch, now_ms)?;
    let known = damage.clone();
    let begun = writable.is_some();
    let mut end = engine.replay_as_can_be(&stored, &segments.found, begun, &mut damage)?;
    if engine.locator.is_broken.load(Ordering::Acquire) {
        // The checkpoint led to a page that is damaged. The log alone says the same.
        engine.forget_everything();
        damage = known;
        let without_checkpoint = Superblock { checkpoint: 0, ..stored.clone() };
        end = engine.replay_as_can_be(&without_checkpoint, &segments.found, begun, &mut damage)?;
        engine.checkpoint_was_lost.store(true, Ordering::Release);
        if engine.locator.is_broken.load(Ordering::Acquire) {
            let error = io::Error::other("what was just written to the index cannot be read");
            return Err(OpenError::Io { name: INDEX_FOLDER.to_owned(), error });
        }
    }
    engine.finish_recovery(&segments, end, damage, begun, now_ms)
}

struct Segments {
    found: BTreeMap<SegmentId, OnDisk>,
    /// Files that no longer count: dropped ones, and one that was made and never used.
    leftover: Vec<SegmentId>,
    /// The highest id that was ever seen.
    highest: u64,
}

fn find_segments(
    disk: &dyn Disk,
    key: &Key,
    stored: &Superblock,
    damage: &mut Vec<Damage>,
) -> Result<Segments, OpenError> {
    let names = disk.list(LOG_FOLDER).map_err(OpenError::io(LOG_FOLDER))?;
    let ids: BTreeSet<SegmentId> = names.iter().filter_map(|name| SegmentId::from_file_name(name)).collect();
    let mut segments = Segments { found: BTreeMap::new(), leftover: Vec::new(), highest: 0 };
    let newest = ids.last().copied();
    for id in ids {
        segments.highest = id.0;
        if id.0 < stored.oldest_segment {
            segments.leftover.push(id);
            continue;
        }
        let name = id.log_name();
        match read_segment(disk, key, id).map_err(OpenError::io(&name))? {
            Opened::Used(segment) => {
                if segment.header_seal.is_none() {
                    damage.push(Damage::Header { segment: id });
                }
                segments.found.insert(id, segment);
            }
            Opened::Unused => segments.leftover.push(id),
            // The write of the newest header may have been torn. No crash explains garbage in an older one.
            Opened::Garbage if Some(id) == newest => segments.leftover.push(id),
            Opened::Garbage => damage.push(Damage::Header { segment: id }),
        }
    }
    Ok(segments)
}

/// What a file of the log turned out to be.
enum Opened {
    /// A segment.
    Used(OnDisk),
    /// Made, and never written to.
    Unused,
    /// Neither: no valid header and no valid batch, yet not empty.
    Garbage,
}

/// Opens a file of the log.
fn read_segment(disk: &dyn Disk, key: &Key, id: SegmentId) -> io::Result<Opened> {
    let file = disk.open(&id.log_name(), Access::Direct)?;
    let mut bytes = AlignedBuffer::zeroed(HEADER_BYTES);
    if file.len_bytes()? >= HEADER_BYTES as u64 {
        file.read_at(bytes.as_mut_slice(), 0)?;
    }
    if let Some(header) = SegmentHeader::decode(bytes.as_slice(), id, key) {
        let header_seal = Some(SegmentHeader::seal_of(bytes.as_slice()));
        return Ok(Opened::Used(OnDisk { header, header_seal, file }));
    }
    Ok(match scan::epoch_of(&*file, key, id)? {
        Some(epoch) => {
            let content = Content::Log { previous: None, first_lsn: 0 };
            let header = SegmentHeader { id, epoch, created_ms: 0, content };
            Opened::Used(OnDisk { header, header_seal: None, file })
        }
        None if bytes.as_slice().iter().all(|byte| *byte == 0) => Opened::Unused,
        None => Opened::Garbage,
    })
}

/// Makes the folders and writes the superblock of a new epoch, higher than any that wrote a segment. `None` on a file system that
/// is mounted read-only.
fn begin_epoch(
    disk: &dyn Disk,
    stored: &Superblock,
    segments: &BTreeMap<SegmentId, OnDisk>,
    now_ms: u64,
) -> Result<Option<Superblock>, OpenError> {
    let newest = segments.values().map(|segment| segment.header.epoch).max().unwrap_or(0);
    let mut next = stored.clone();
    // A store of an earlier format is one of this format from here on.
    next.format = FORMAT_VERSION;
    next.epoch = stored.epoch.max(newest) + 1;
    next.sequence += 1;
    next.written_ms = now_ms;
    let begun = [LOG_FOLDER, INDEX_FOLDER, RESERVE_FOLDER]
        .into_iter()
        .try_for_each(|folder| disk.create_dir(folder))
        .and_then(|()| solo::make_folder(disk))
        .map_err(Failed::write)
        .and_then(|()| {
            if stored.sequence == 0 {
                // A new store has both copies from the start: the key is in no other place.
                superblock::write(disk, &next)?;
                next.sequence += 1;
            }
            superblock::write(disk, &next)
        });
    match begun {
        Ok(()) => Ok(Some(next)),
        Err(failed) if failed.error.kind() == io::ErrorKind::ReadOnlyFilesystem => Ok(None),
        // Nobody was told of anything yet: an opening that fails needs no poison.
        Err(failed) => Err(OpenError::Io { name: "superblock".to_owned(), error: failed.error }),
    }
}

fn assemble(
    disk: Arc<dyn Disk>,
    lock: Box<dyn Lock>,
    options: Options,
    key: Key,
    superblock: Superblock,
    epoch: u32,
    now_ms: u64,
) -> Result<Engine, OpenError> {
    let (pool, hash_threads) = match options.threading {
        Threading::Inline => (Pool::inline(), 0),
        Threading::Pool { storage_threads } => {
            let pool = Pool::threads(storage_threads).map_err(OpenError::io("storage threads"))?;
            (pool, options.hash_threads)
        }
    };
    let names = disk.list(INDEX_FOLDER).map_err(OpenError::io(INDEX_FOLDER))?;
    let numbers = names.iter().filter_map(|name| PartitionName::from_file_name(name));
    let next_partition = numbers.map(|name| name.number).max().unwrap_or(0).saturating_add(1);
    let hash_threads = HashThreads::start(hash_threads).map_err(OpenError::io("hash threads"))?;
    let (lease_ms, open_files_max) = (options.lease_ms, options.open_files_max);
    let lending = Arc::new(Lending::new(options.read_ahead_bytes_max));
    let recent = Recent::new(options.recent_bytes_max);
    Ok(Engine {
        disk,
        pool,
        hash_threads,
        units: Arc::default(),
        lending,
        recent,
        segment_bytes: superblock.segment_bytes,
        options,
        key,
        epoch,
        superblocks: Superblocks::new(superblock),
        health: Health::new(StoreState::Writable),
        locator: Locator::new(),
        leases: Leases::new(lease_ms),
        segments: Table::default(),
        sessions: Sessions::default(),
        solos: Solos::new(epoch, open_files_max),
        log: Log::new(None, 1, 1, now_ms),
        garbage: Mutex::default(),
        garbage_is_loaded: AtomicBool::new(false),
        opened_ms: now_ms,
        abandoned: Mutex::default(),
        fenced_until_ms: AtomicU64::new(0),
        // Not serving yet.
        replay_from: AtomicU64::new(u64::MAX),
        quarantines: AtomicU64::new(0),
        quarantine: Quarantine::default(),
        scrubbing: AtomicBool::new(false),
        collecting: Arc::default(),
        compacting: Arc::default(),
        dropping: Arc::default(),
        compaction: Mutex::default(),
        removals: Arc::default(),
        checkpointing: Mutex::default(),
        checkpoint_was_lost: AtomicBool::new(false),
        replay_unsorted: AtomicBool::new(false),
        next_partition: AtomicU64::new(next_partition),
        partitions_before: Mutex::default(),
        swept: Mutex::new(false),
        _lock: lock,
    })
}

impl Engine {
    /// Goes back to before the replay.
    fn forget_everything(&mut self) {
        self.locator = Locator::new();
        self.segments = Table::default();
        self.sessions = Sessions::default();
        self.solos = Solos::new(self.epoch, self.options.open_files_max);
        self.garbage = Mutex::default();
        self.quarantine = Quarantine::default();
        self.partitions_before = Mutex::default();
        self.health = Health::new(StoreState::Writable);
        self.replay_from = AtomicU64::new(u64::MAX);
    }

    fn insert_segment(&self, segment: &OnDisk) -> Result<(), OpenError> {
        let name = segment.header.id.log_name();
        let file = self.disk.open(&name, Access::Cached).map_err(OpenError::io(&name))?;
        let first_lsn = match segment.header.content {
            Content::Log { first_lsn, .. } => first_lsn,
            Content::Solo { .. } => 0,
        };
        self.segments.insert(segment.header.id, LogSegment::new(segment.header.epoch, first_lsn, file));
        Ok(())
    }

    /// Replays, a second time if sorting failed.
    fn replay_as_can_be(
        &mut self,
        stored: &Superblock,
        found: &BTreeMap<SegmentId, OnDisk>,
        begun: bool,
        damage: &mut Vec<Damage>,
    ) -> Result<End, OpenError> {
        let known = damage.clone();
        let end = self.replay(stored, found, begun, damage)?;
        // Once it is set, nothing is sorted any more.
        if end.may_sort || !self.replay_unsorted.load(Ordering::Acquire) {
            return Ok(end);
        }
        self.forget_everything();
        *damage = known;
        self.replay(stored, found, begun, damage)
    }

    /// Takes up checkpoint and log. `begun` says that this opening's epoch is written, so that both superblocks name one checkpoint.
    fn replay(
        &mut self,
        stored: &Superblock,
        found: &BTreeMap<SegmentId, OnDisk>,
        begun: bool,
        damage: &mut Vec<Damage>,
    ) -> Result<End, OpenError> {
        found.values().try_for_each(|segment| self.insert_segment(segment))?;
        let checkpoint = match stored.checkpoint {
            0 => None,
            number => self.load_checkpoint(number).map_err(OpenError::io(INDEX_FOLDER))?,
        };
        if stored.checkpoint != 0 && checkpoint.is_none() {
            self.forget_everything();
            found.values().try_for_each(|segment| self.insert_segment(segment))?;
        }
        if begun {
            // What openings that did not come to their end wrote, before this one needs the space.
            self.sweep_partitions();
        }
        let engine = &*self;
        engine.with_appliers(|appliers| engine.replay_log(stored, found, checkpoint, appliers, damage))
    }

    /// Replays the log behind the checkpoint, or all of it.
    fn replay_log(
        &self,
        stored: &Superblock,
        found: &BTreeMap<SegmentId, OnDisk>,
        checkpoint: Option<CheckpointHeader>,
        appliers: &mut Appliers<'_>,
        damage: &mut Vec<Damage>,
    ) -> Result<End, OpenError> {
        self.checkpoint_was_lost.store(stored.checkpoint != 0 && checkpoint.is_none(), Ordering::Release);
        let mut end = End {
            previous: None,
            next_lsn: 1,
            time_ms: 0,
            records_since: 0,
            records_in_all: 0,
            may_sort: true,
        };
        if let Some(checkpoint) = &checkpoint {
            end.next_lsn = checkpoint.next_lsn;
        }
        let mut missing = BTreeSet::new();
        let mut following = found.values().skip(1).map(Some).chain([None]);
        for segment in found.values() {
            let next = following.next().flatten();
            if let Some(previous) = previous_of(&segment.header)
                && previous.id.0 >= stored.oldest_segment
                && !found.contains_key(&previous.id)
            {
                missing.insert(previous.id);
            }
            self.replay_segment(segment, next, checkpoint.as_ref(), appliers, &mut end, damage)
                .map_err(|error| OpenError::Io { name: segment.header.id.log_name(), error })?;
        }
        // The segment that a checkpoint goes on from cannot have been dropped.
        missing.extend(checkpoint.as_ref().map(|it| it.replay_segment).filter(|id| !found.contains_key(id)));
        let dropped = self.segments.dropped();
        damage.extend(missing.difference(&dropped).map(|segment| Damage::Missing { segment: *segment }));
        appliers.settle();
        self.locator.live().into_iter().for_each(|(segment, live)| self.segments.add_live(segment, live));
        let replay_from = checkpoint.map_or(0, |checkpoint| checkpoint.replay_segment.0);
        self.replay_from.store(replay_from, Ordering::Release);
        Ok(end)
    }

    /// Replays one segment. `next` is the one that follows, whose header states the end of this one.
    fn replay_segment(
        &self,
        segment: &OnDisk,
        next: Option<&OnDisk>,
        checkpoint: Option<&CheckpointHeader>,
        appliers: &mut Appliers<'_>,
        end: &mut End,
        damage: &mut Vec<Damage>,
    ) -> io::Result<()> {
        let id = segment.header.id;
        let covered = checkpoint.filter(|checkpoint| id <= checkpoint.replay_segment);
        if covered.is_some_and(|checkpoint| id < checkpoint.replay_segment) {
            return Ok(());
        }
        let stated = next.and_then(|next| previous_of(&next.header)).filter(|previous| previous.id == id);
        let stated_end = stated.map(|previous| previous.end_bytes);
        let mut scan =
            Scan::new(&*segment.file, &self.key, &segment.header, segment.header_seal, stated_end)?;
        if let Some(checkpoint) = covered {
            scan.skip_to(checkpoint.replay_offset_bytes);
        }
        // The batch before the one at hand, not applied yet: the last one of the log may be torn.
        let mut held: Option<(ValidBatch, Option<Seal>)> = None;
        let mut seal_before = scan.seal();
        let (end_bytes, seal) = loop {
            match scan.next_found()? {
                Found::Batch(batch) => {
                    if let Some((ready, _)) = held.take() {
                        self.apply_batch(ready, appliers, end);
                    }
                    held = Some((batch, seal_before));
                    seal_before = scan.seal();
                }
                Found::Damage { from_bytes, to_bytes } => {
                    damage.push(Damage::Log { segment: id, from_bytes, to_bytes });
                }
                Found::End { at_bytes } => {
                    if let Some((batch, seal_before)) = held.take() {
                        if next.is_none() && is_torn(&*segment.file, &self.key, &batch)? {
                            break (batch.place.offset_bytes, seal_before);
                        }
                        self.apply_batch(batch, appliers, end);
                    }
                    break (at_bytes, scan.seal());
                }
            }
        };
        if let (Some(stated), Some(seal)) = (stated, seal)
            && stated.seal != seal
            && stated.seal != UNKNOWN_SEAL
        {
            damage.push(Damage::Log { segment: id, from_bytes: end_bytes, to_bytes: end_bytes });
        }
        self.segments.advance(id, end_bytes);
        end.previous = Some(Previous { id, end_bytes, seal: seal.unwrap_or(UNKNOWN_SEAL) });
        Ok(())
    }

    fn apply_batch(&self, batch: ValidBatch, appliers: &mut Appliers<'_>, end: &mut End) {
        end.next_lsn = end.next_lsn.max(batch.first_lsn + batch.records.len() as u64);
        end.time_ms = end.time_ms.max(batch.time_ms);
        end.records_since += batch.records.len();
        end.records_in_all += batch.records.len();
        appliers.apply(batch);
        // Tests that ask for small deltas want them small here, too.
        let (blobs_max, records_max, sort_records) = self
            .options
            .index_delta_max
            .map_or((SPILL_BLOBS, SPILL_CHECK_RECORDS, SORT_RECORDS), |blobs| (blobs, 1, SORT_RECORDS_SMALL));
        let may_sort = end.may_sort && !self.replay_unsorted.load(Ordering::Acquire);
        if may_sort && end.records_in_all >= sort_records {
            end.may_sort = false;
            appliers.sort();
        }
        if end.records_since >= records_max && !appliers.is_sorting() {
            end.records_since = 0;
            appliers.wait();
            let is_long = |index: &usize| self.locator.shard(*index).delta_len() > blobs_max;
            let long: Vec<usize> = (0..SHARDS).filter(is_long).collect();
            long.into_iter().for_each(|index| {
                self.spill(index);
            });
        }
    }

    fn finish_recovery(
        mut self,
        segments: &Segments,
        end: End,
        mut damage: Vec<Damage>,
        writable: bool,
        now_ms: u64,
    ) -> Result<Engine, OpenError> {
        (0..SHARDS).for_each(|index| self.forget_finished_sessions(index));
        self.sessions.make_slots();
        self.settle_blobs(now_ms, &mut damage);
        if !segments.found.is_empty() {
            // Clients of before were told that blobs exist; their leases are not known any more.
            self.fenced_until_ms = AtomicU64::new(now_ms.saturating_add(self.options.lease_ms));
        }
        let state = if writable && damage.is_empty() {
            StoreState::Writable
        } else {
            StoreState::ReadOnly { damage }
        };
        if state == StoreState::Writable {
            self.make_tail_durable(end.previous)?;
            self.remove_leftovers(segments)?;
            self.sweep_partitions();
            self.refill_reserve();
        }
        self.health = Health::new(state);
        let time_ms = end.time_ms.max(now_ms);
        self.log = Log::new(end.previous, end.next_lsn, segments.highest + 1, time_ms);
        Ok(self)
    }

    /// A session whose file is a blob's is over, whatever the log says: nobody may write to the file or remove it. Looks at what
    /// changed in a shard.
    pub(crate) fn forget_finished_sessions(&self, index: usize) {
        let sessions = self.sessions.by_file();
        if sessions.is_empty() {
            return;
        }
        // Checkpoints have no such session, so that only what came behind it can have ended one.
        for (_, blob) in self.locator.shard(index).changed() {
            if let Some(Location::Solo { segment, .. }) = &blob.location
                && let Some(session) = sessions.get(segment)
            {
                for (held, live) in self.sessions.forget_logged(session, Lsn::MAX) {
                    self.segments.remove_live(held, live);
                }
            }
        }
    }

    /// Lists what can be collected of what changed since the checkpoint (the rest is listed by the first collection), and drops what is only half known: links whose blob's record is lost in damage.
    fn settle_blobs(&self, now_ms: u64, damage: &mut Vec<Damage>) {
        let mut half_known = Vec::new();
        for index in 0..SHARDS {
            for (digest, blob) in self.locator.shard(index).changed() {
                if blob.location.is_none() {
                    half_known.push(*digest);
                } else if blob.links.is_empty() {
                    let since_ms =
                        if blob.unlinked_since_ms == 0 { now_ms.max(1) } else { blob.unlinked_since_ms };
                    lock(&self.garbage).insert((since_ms, *digest));
                }
            }
        }
        for (since_ms, digest) in lock(&self.garbage).iter() {
            if let Some(blob) = self.locator.write(digest).edit_marks(digest) {
                blob.unlinked_since_ms = *since_ms;
            }
        }
        for digest in half_known {
            if let Some(Some(_)) = self.indexed(self.forget_blob(&digest)) {
                damage.push(Damage::Blob { digest });
            }
        }
    }

    /// What was read may be in the page cache only: after `kill -9` a batch can be valid and yet not durable. It is made so
    /// before anybody is told of it.
    fn make_tail_durable(&self, previous: Option<Previous>) -> Result<(), OpenError> {
        let Some(previous) = previous else { return Ok(()) };
        let name = previous.id.log_name();
        let Some(file) = self.segments.file(previous.id) else { return Ok(()) };
        file.sync().and_then(|()| self.disk.sync_dir(LOG_FOLDER)).map_err(OpenError::io(&name))
    }

    /// Removes them durably: one that came back beside newer segments would be taken for damage.
    fn remove_leftovers(&self, segments: &Segments) -> Result<(), OpenError> {
        let dropped = self.segments.dropped();
        for id in segments.leftover.iter().chain(dropped.iter().filter(|id| segments.found.contains_key(id)))
        {
            self.segments.remove(*id);
            drop(self.disk.remove(&id.log_name()));
        }
        if self.options.reserve_bytes == 0 {
            drop(self.disk.remove(RESERVE_NAME));
        }
        if segments.leftover.is_empty() {
            Ok(())
        } else {
            self.disk.sync_dir(LOG_FOLDER).map_err(OpenError::io(LOG_FOLDER))
        }
    }
}

fn previous_of(header: &SegmentHeader) -> Option<Previous> {
    match &header.content {
        Content::Log { previous, .. } => *previous,
        Content::Solo { .. } => None,
    }
}

/// Whether the last batch of the log was torn behind its records. A sealed segment was flushed whole.
fn is_torn(file: &dyn File, key: &Key, batch: &ValidBatch) -> io::Result<bool> {
    let sealed = batch.records.iter().any(|record| record.body == Body::Seal);
    Ok(!sealed && !scan::damaged_payloads(file, key, batch)?.is_empty())
}
