//! The table of upload sessions.
//!
//! Two views: *slots*, what the running process knows (every open session), and *logged*, what the log says (sessions that have a
//! file), from which a slot is made after a restart. What must stay true: a session is open for one writer at a time; what is
//! logged is what the newest SESSION record says, with the checksums of all of them.
//!
//! Sessions are bounded by repository, by uploader and in total, and nobody may take all of them from the others. Beginning one
//! costs a client next to nothing, so where a bound is reached, the oldest session that got no byte yet makes room: it holds
//! nothing that was acknowledged, and its client, if there is one, learns that the session is unknown and begins anew. Whoever
//! floods the table takes his own sessions from himself that way, while those of others get their first bytes within seconds of
//! being begun, and stay. Sessions with bytes are never taken for others; that one uploader cannot fill the table with these
//! either is what the bound by uploader is for. (A repository would not do: who may make one may make many.)

use std::collections::{BTreeMap, HashMap};

use crate::digest::Algorithm;
use crate::error::UploadError;
use crate::format::record::{HashedOffset, SESSION_CRCS_MAX, SessionRecord};
use crate::format::{Lsn, SegmentId};
use crate::hasher::Hasher;
use crate::lane::Lane;
use crate::options::Options;
use crate::repository::{RepositoryKey, SessionId, Uploader};
use crate::segment::table::Live;
use crate::solo::SoloWriter;
use crate::sync::{AtomicU64, Mutex, Ordering, lock};
use crate::units::Unit;
use crate::upload::Point;

/// An empty session that nobody used for so long may make room for another. Clients send the first bytes at once; this leaves
/// them several round trips and a lost packet.
const EMPTY_KEPT_MS: u64 = 10_000;

/// Compaction leaves sessions with more checksums where they are, and with them the segment, until they end: all that is said of a
/// session anew must fit one batch. These are 4 MiB, of 256 GiB uploaded.
const MOVED_CRCS_MAX: usize = 1 << 20;

/// An empty session that nobody used for so long is over, whatever the idle time of sessions is: there is nothing in it to come
/// back for, and beginning another costs one request. Long enough for a client that began all of its sessions first, and is
/// still packing its layers.
const EMPTY_IDLE_MS: u64 = 3_600_000;

/// The sessions.
#[derive(Default)]
pub(crate) struct Sessions {
    slots: Mutex<HashMap<SessionId, Slot>>,
    logged: Mutex<HashMap<SessionId, Logged>>,
    /// Bytes that sessions without a file hold in memory.
    pub(crate) memory_bytes: AtomicU64,
}

/// A session that is to be begun.
#[derive(Clone, Copy)]
pub(crate) struct Beginning {
    pub(crate) repository: RepositoryKey,
    /// Unknown for sessions of before a restart too: of those only the ones with a file are left.
    pub(crate) uploader: Option<Uploader>,
    pub(crate) id: SessionId,
    pub(crate) algorithm: Algorithm,
}

struct Slot {
    repository: RepositoryKey,
    uploader: Option<Uploader>,
    offset_bytes: u64,
    touched_ms: u64,
    state: SlotState,
}

enum SlotState {
    /// Nobody writes to it.
    Ready(Box<SessionData>),
    /// Known from the log only; the file is yet to be looked at.
    Stored,
    /// Somebody writes to it.
    Open,
    /// It is over, and unknown to whoever asks; the log is not known to have taken that in.
    Over,
}

impl Slot {
    fn is_over(&self) -> bool {
        matches!(self.state, SlotState::Over)
    }

    /// Whether nothing is lost with it: nobody has it open, and neither a client was told of a byte in it nor the log of it.
    fn is_empty(&self) -> bool {
        match &self.state {
            SlotState::Ready(data) => {
                data.offset_bytes == 0 && data.solo.is_none() && data.parked_bytes == 0 && !data.is_logged
            }
            SlotState::Stored | SlotState::Open | SlotState::Over => false,
        }
    }
}

/// Makes room for one more session among those that `counts` names, when they are `max` already.
fn make_room(
    slots: &mut HashMap<SessionId, Slot>,
    max: usize,
    now_ms: u64,
    counts: impl Fn(&Slot) -> bool,
) -> Result<(), UploadError> {
    if slots.values().filter(|slot| counts(slot)).count() < max {
        return Ok(());
    }
    let kept_ms = now_ms.saturating_sub(EMPTY_KEPT_MS);
    let oldest = slots
        .iter()
        .filter(|(_, slot)| slot.touched_ms < kept_ms && counts(slot) && slot.is_empty())
        .min_by_key(|(id, slot)| (slot.touched_ms, **id))
        .map(|(id, _)| *id);
    slots.remove(&oldest.ok_or(UploadError::TooMany)?);
    Ok(())
}

/// What the log says of a session.
#[derive(Clone, Debug)]
pub(crate) struct Logged {
    /// The newest record, with the checksums of all records before it.
    pub(crate) record: SessionRecord,
    /// Its LSN, or a higher one when it is known from a checkpoint.
    lsn: Lsn,
    /// The log segments with its records, each once, with what its records take there. A state that a later record in the same
    /// segment replaced counts as well: its checksums still do.
    pub(crate) segments: Vec<(SegmentId, Live)>,
}

/// What a SESSION record changed of what counts in the log.
pub(crate) struct Taken {
    /// In the segment with the record.
    pub(crate) more: Live,
    /// What counts no more.
    pub(crate) replaced: Vec<(SegmentId, Live)>,
}

/// The state of a session, owned by whoever writes to it.
pub(crate) struct SessionData {
    pub(crate) algorithm: Algorithm,
    pub(crate) hasher: Hasher,
    /// Bytes received.
    pub(crate) offset_bytes: u64,
    /// The bytes so far of a session without a file.
    pub(crate) tail: Vec<u8>,
    /// With a file, the bytes from its `written_bytes` to `offset_bytes`, if there are any.
    pub(crate) unit: Option<Unit>,
    /// How many of the unit's bytes are in the hash.
    pub(crate) hashed_bytes: usize,
    /// Full units on their way to the hash: until it is settled, `hasher` and the file's checksums lack them.
    pub(crate) lane: Option<Lane>,
    /// The file, once there is one.
    pub(crate) solo: Option<SoloWriter>,
    /// Whether the unit was left in the file to spare memory, and how long it is; it is read again when the session is opened.
    pub(crate) parked_bytes: usize,
    /// How far everything is durable, with the hash state at that point.
    pub(crate) durable: HashedOffset,
    /// Where a durable point is on its way, beside the reception.
    pub(crate) point: Option<Box<Point>>,
    /// Whether a SESSION record was enqueued: from then on the log is told when the session ends.
    pub(crate) is_logged: bool,
    /// The offset of the newest SESSION record; 0 without one.
    pub(crate) logged_bytes: u64,
    /// Blocks whose checksums are in the log.
    pub(crate) logged_blocks: usize,
}

impl SessionData {
    pub(crate) fn new(algorithm: Algorithm) -> SessionData {
        let hasher = Hasher::new(algorithm);
        let durable = HashedOffset { offset_bytes: 0, state: hasher.export() };
        SessionData {
            algorithm,
            hasher,
            offset_bytes: 0,
            tail: Vec::new(),
            unit: None,
            hashed_bytes: 0,
            lane: None,
            solo: None,
            parked_bytes: 0,
            durable,
            point: None,
            is_logged: false,
            logged_bytes: 0,
            logged_blocks: 0,
        }
    }

    /// Bytes that the session holds in memory because it has no file.
    pub(crate) fn memory_bytes(&self) -> usize {
        if self.solo.is_none() { self.tail.len() } else { 0 }
    }
}

/// What opening a session gives.
pub(crate) enum Opened {
    Ready(Box<SessionData>),
    Stored(Box<Logged>),
}

impl Sessions {
    pub(crate) fn begin(
        &self,
        beginning: Beginning,
        options: &Options,
        now_ms: u64,
    ) -> Result<(), UploadError> {
        let Beginning { repository, uploader, id, algorithm } = beginning;
        let mut slots = lock(&self.slots);
        if slots.contains_key(&id) {
            return Err(UploadError::TooMany);
        }
        // His own bound comes first: whoever is past it costs nobody else a session.
        if uploader.is_some() {
            make_room(&mut slots, options.sessions_per_uploader_max, now_ms, |slot| {
                slot.uploader == uploader
            })?;
        }
        make_room(&mut slots, options.sessions_per_repository_max, now_ms, |slot| {
            slot.repository == repository
        })?;
        make_room(&mut slots, options.sessions_max, now_ms, |_| true)?;
        let state = SlotState::Ready(Box::new(SessionData::new(algorithm)));
        slots.insert(id, Slot { repository, uploader, offset_bytes: 0, touched_ms: now_ms, state });
        Ok(())
    }

    /// Forgets the empty sessions that nobody used for [`EMPTY_IDLE_MS`]; says how many. At once and under the lock, so that none
    /// is forgotten that got its first bytes meanwhile.
    pub(crate) fn forget_empty(&self, now_ms: u64) -> usize {
        let Some(before_ms) = now_ms.checked_sub(EMPTY_IDLE_MS) else { return 0 };
        let mut slots = lock(&self.slots);
        let before = slots.len();
        slots.retain(|_, slot| slot.touched_ms > before_ms || !slot.is_empty());
        before - slots.len()
    }

    /// The offset of a session of that repository.
    pub(crate) fn offset(&self, repository: RepositoryKey, id: SessionId, now_ms: u64) -> Option<u64> {
        let mut slots = lock(&self.slots);
        let slot = slots.get_mut(&id).filter(|slot| slot.repository == repository && !slot.is_over())?;
        slot.touched_ms = slot.touched_ms.max(now_ms);
        Some(slot.offset_bytes)
    }

    pub(crate) fn open(
        &self,
        repository: RepositoryKey,
        id: SessionId,
        now_ms: u64,
    ) -> Result<Opened, UploadError> {
        let mut slots = lock(&self.slots);
        let slot = slots
            .get_mut(&id)
            .filter(|slot| slot.repository == repository && !slot.is_over())
            .ok_or(UploadError::Unknown)?;
        let opened = match std::mem::replace(&mut slot.state, SlotState::Open) {
            SlotState::Open | SlotState::Over => return Err(UploadError::Busy),
            SlotState::Ready(data) => Opened::Ready(data),
            SlotState::Stored => match lock(&self.logged).get(&id) {
                Some(logged) => Opened::Stored(Box::new(logged.clone())),
                None => {
                    slots.remove(&id);
                    return Err(UploadError::Unknown);
                }
            },
        };
        slot.touched_ms = slot.touched_ms.max(now_ms);
        Ok(opened)
    }

    /// Puts a session back that [`Sessions::open`] gave out.
    pub(crate) fn put_back(&self, id: SessionId, data: Box<SessionData>) {
        if let Some(slot) = lock(&self.slots).get_mut(&id) {
            slot.offset_bytes = data.offset_bytes;
            slot.state = SlotState::Ready(data);
        }
    }

    /// Ends an open session. One that the log knows is kept in mind until the log knows that it is over.
    pub(crate) fn end(&self, id: SessionId, is_logged: bool) {
        let mut slots = lock(&self.slots);
        match slots.get_mut(&id) {
            Some(slot) if is_logged => slot.state = SlotState::Over,
            Some(_) => drop(slots.remove(&id)),
            None => {}
        }
    }

    /// Sessions that are over, and of which the log may not know it, in the order of their ids.
    pub(crate) fn over(&self) -> Vec<SessionId> {
        let slots = lock(&self.slots);
        let mut over: Vec<SessionId> =
            slots.iter().filter(|(_, slot)| slot.is_over()).map(|(id, _)| *id).collect();
        over.sort_unstable();
        over
    }

    /// Sessions that nobody used since `before_ms` and nobody has open, in the order of their ids. One that is dated after
    /// `latest_ms`, by a clock that ran ahead, counts as used then.
    pub(crate) fn idle(&self, before_ms: u64, latest_ms: u64) -> Vec<(RepositoryKey, SessionId)> {
        let mut slots = lock(&self.slots);
        for slot in slots.values_mut() {
            slot.touched_ms = slot.touched_ms.min(latest_ms);
        }
        let mut idle: Vec<(RepositoryKey, SessionId)> = slots
            .iter()
            .filter(|(_, slot)| {
                slot.touched_ms <= before_ms && !matches!(slot.state, SlotState::Open | SlotState::Over)
            })
            .map(|(id, slot)| (slot.repository, *id))
            .collect();
        idle.sort_unstable_by_key(|(_, id)| *id);
        idle
    }

    pub(crate) fn count(&self) -> usize {
        lock(&self.slots).values().filter(|slot| !slot.is_over()).count()
    }

    pub(crate) fn count_of(&self, repository: RepositoryKey) -> usize {
        let slots = lock(&self.slots);
        slots.values().filter(|slot| slot.repository == repository && !slot.is_over()).count()
    }

    /// Takes in a durable SESSION record, which takes `bytes` of that log segment. Several records of a session in a segment are
    /// one state. One that begins with the first checksum says all there is to say: those before it count no more.
    pub(crate) fn log(&self, record: &SessionRecord, segment: SegmentId, bytes: u64, lsn: Lsn) -> Taken {
        let mut logged = lock(&self.logged);
        let entry = logged.entry(record.session).or_insert_with(|| Logged {
            record: SessionRecord { first_block: 0, crcs: Vec::new(), ..record.clone() },
            lsn,
            segments: Vec::new(),
        });
        entry.lsn = lsn;
        let mut crcs = std::mem::take(&mut entry.record.crcs);
        let first_block = usize::try_from(record.first_block).unwrap_or(usize::MAX);
        // Behind a gap no checksum would be that of its block. Without it, too few are there when the session is opened.
        if first_block <= crcs.len() {
            crcs.truncate(first_block);
            crcs.extend_from_slice(&record.crcs);
        }
        entry.record = SessionRecord { first_block: 0, crcs, ..record.clone() };
        let replaced = if first_block == 0 { std::mem::take(&mut entry.segments) } else { Vec::new() };
        let mut more = Live::record(bytes);
        if let Some((_, live)) = entry.segments.iter_mut().find(|(held, _)| *held == segment) {
            more.records = 0;
            live.bytes += more.bytes;
        } else {
            entry.segments.push((segment, more));
        }
        Taken { more, replaced }
    }

    /// Whether a record of the session in that log segment counts.
    pub(crate) fn counts_in(&self, id: &SessionId, segment: SegmentId) -> bool {
        let logged = lock(&self.logged);
        logged.get(id).is_some_and(|it| it.segments.iter().any(|(held, _)| *held == segment))
    }

    /// The session as the log has it, in records that say all of it anew; `None` when none of its records in that segment counts,
    /// or when it has more checksums than [`MOVED_CRCS_MAX`].
    pub(crate) fn said_anew(&self, id: &SessionId, segment: SegmentId) -> Option<Vec<SessionRecord>> {
        let logged = lock(&self.logged);
        let logged = logged.get(id).filter(|it| it.segments.iter().any(|(held, _)| *held == segment))?;
        let crcs = &logged.record.crcs;
        if crcs.len() > MOVED_CRCS_MAX {
            return None;
        }
        let runs = crcs.len().div_ceil(SESSION_CRCS_MAX).max(1);
        let said = (0..runs).map(|run| {
            let from = run * SESSION_CRCS_MAX;
            let to = (from + SESSION_CRCS_MAX).min(crcs.len());
            let first_block = u32::try_from(from).unwrap_or(u32::MAX);
            SessionRecord { first_block, crcs: crcs[from..to].to_vec(), ..logged.record.clone() }
        });
        Some(said.collect())
    }

    /// Forgets what was logged before `lsn`, and a session that is over; gives the log segments with its records, and what these took.
    /// A session that was started over has records behind the one that ended it, and stays.
    pub(crate) fn forget_logged(&self, id: &SessionId, lsn: Lsn) -> Vec<(SegmentId, Live)> {
        let mut slots = lock(&self.slots);
        let mut all = lock(&self.logged);
        if all.get(id).is_some_and(|logged| logged.lsn > lsn) {
            return Vec::new();
        }
        if slots.get(id).is_some_and(Slot::is_over) {
            slots.remove(id);
        }
        all.remove(id).map(|logged| logged.segments).unwrap_or_default()
    }

    /// Puts a session back that is known from the log only, and could not be looked at to the end.
    pub(crate) fn put_back_stored(&self, id: SessionId) {
        if let Some(slot) = lock(&self.slots).get_mut(&id) {
            slot.state = SlotState::Stored;
        }
    }

    /// Everything logged, for a checkpoint.
    pub(crate) fn logged(&self) -> Vec<Logged> {
        lock(&self.logged).values().cloned().collect()
    }

    /// The sessions that the log knows, by the solo files that they write to.
    pub(crate) fn by_file(&self) -> BTreeMap<SegmentId, SessionId> {
        lock(&self.logged).values().map(|it| (it.record.segment, it.record.session)).collect()
    }

    /// Makes slots of what is logged, when recovery is over.
    pub(crate) fn make_slots(&self) {
        let mut slots = lock(&self.slots);
        for (id, logged) in lock(&self.logged).iter() {
            slots.insert(
                *id,
                Slot {
                    repository: logged.record.repository,
                    uploader: None,
                    offset_bytes: logged.record.acknowledged.offset_bytes,
                    touched_ms: logged.record.touched_ms,
                    state: SlotState::Stored,
                },
            );
        }
    }

    /// Solo files that sessions write to.
    pub(crate) fn solo_segments(&self) -> Vec<SegmentId> {
        let mut segments: Vec<SegmentId> =
            lock(&self.logged).values().map(|logged| logged.record.segment).collect();
        for slot in lock(&self.slots).values() {
            if let SlotState::Ready(data) = &slot.state {
                segments.extend(data.solo.as_ref().map(|solo| solo.segment));
            }
        }
        segments
    }

    pub(crate) fn add_memory(&self, bytes: usize) {
        self.memory_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn sub_memory(&self, bytes: usize) {
        self.memory_bytes.fetch_sub(bytes as u64, Ordering::Relaxed);
    }
}
