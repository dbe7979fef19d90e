//! Compaction: moves what still counts in a log segment that is mostly dead to the end of the log, so that the segment can go.
//!
//! What must stay true: a record is copied only while it is the one that counts, and before anything that cancels it; a copy counts
//! with the LSN of its original, so that of two records of one key the newer one wins wherever they stand; a tombstone is copied as
//! long as another segment holds records that are older than it; bytes are verified before they are copied, and readers go on with
//! the old ones until the copy is durable; a segment goes only when the copies of everything in it that counts are durable. So the
//! log alone says the same before, between and behind any two steps.
//!
//! A pass goes through one segment from its start, a portion at a time, and may stop after any portion. It is kept in memory alone:
//! after a restart another one begins, and finds what was moved before dead.

mod item;
mod portion;
mod victim;

use std::collections::BTreeMap;

use self::portion::Portion;
use self::victim::Candidate;
use crate::disk::{Access, File};
use crate::engine::Engine;
use crate::error::Refusal;
use crate::format::SegmentId;
use crate::format::segment::SegmentHeader;
use crate::gc::Turn;
use crate::log::{Copying, Purpose};
use crate::segment::table::LogSegment;
use crate::sync::{Arc, Ordering, lock};

/// Records that are found to be on their way out are looked at again in another round through the segment; so often at most.
const ROUNDS_MAX: u32 = 3;

/// What a compaction did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compacted {
    /// Bytes that were appended to the log: records that still count, with their payloads.
    pub copied_bytes: u64,
    /// Bytes of segments that were gone through to find them.
    pub read_bytes: u64,
    /// Log segments removed.
    pub segments: u64,
    /// Their bytes.
    pub freed_bytes: u64,
    /// Whether there is more to do now.
    pub more: bool,
}

/// What the log takes, and what of it still counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogUse {
    /// Bytes of all log segments up to where they end.
    pub bytes: u64,
    /// What in finished segments neither counts nor must be kept because it cancels something: what compaction can give back.
    pub dead_bytes: u64,
    /// What is dead in the segments that compaction would rewrite now.
    pub backlog_bytes: u64,
    /// Log segments that compaction left alone, because something in them is damaged or cannot be moved yet.
    pub unmovable_segments: u64,
}

/// What is under way, and what was given up for now.
#[derive(Debug, Default)]
pub(crate) struct Compaction {
    pass: Option<Pass>,
    /// Segments that hold something that cannot be moved, with the number of live records at that time: when it changes, one of
    /// them may have been the obstacle.
    unmovable: BTreeMap<SegmentId, i64>,
}

/// One segment, on its way.
#[derive(Clone, Debug)]
struct Pass {
    header: SegmentHeader,
    /// Past the page cache: what is read here is read once.
    file: Arc<dyn File>,
    end_bytes: u64,
    at: Position,
    round: u32,
    /// Whether something was left behind for another round.
    is_partial: bool,
}

/// A record in a segment: the offset of its batch, and its number there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Position {
    offset_bytes: u64,
    record: usize,
}

impl Engine {
    /// Compacts until `budget_bytes` were read or written or nothing is left that is worth it. Portions are not cut short, so that
    /// it may be a little more.
    pub(crate) async fn compact(
        self: &Arc<Self>,
        now_ms: u64,
        budget_bytes: u64,
    ) -> Result<Compacted, Refusal> {
        let mut compacted = Compacted::default();
        if let Some(refusal) = self.health.refusal() {
            return Err(refusal);
        }
        let Some(_turn) = Turn::take(&self.compacting, &self.removals) else { return Ok(compacted) };
        // What can go as it is needs no copying.
        self.give_back(now_ms, &mut compacted).await?;
        while compacted.copied_bytes + compacted.read_bytes < budget_bytes {
            let Some(pass) = self.take_up().await? else { return Ok(compacted) };
            let id = pass.header.id;
            let (engine, looked_at) = (Arc::clone(self), pass.clone());
            let read = self.pool.run(move || engine.read_portion(&looked_at)).await;
            let portion = match read {
                None => return Err(Refusal::Closing),
                // It harms this segment alone, and what is live in it is read and judged by whoever asks for it.
                Some(Err(_)) => {
                    self.give_up(id);
                    continue;
                }
                Some(Ok(portion)) => portion,
            };
            compacted.read_bytes += portion.read_bytes;
            let left_behind = self.copy(id, &portion, now_ms, &mut compacted).await?;
            let is_partial = pass.is_partial || left_behind;
            if portion.is_damaged {
                self.give_up(id);
            } else if portion.is_last {
                self.end_pass(Pass { is_partial, ..pass });
                self.give_back(now_ms, &mut compacted).await?;
            } else {
                lock(&self.compaction).pass = Some(Pass { at: portion.next, is_partial, ..pass });
            }
        }
        compacted.more = self.take_up().await?.is_some();
        Ok(compacted)
    }

    /// The next pass, from a storage thread: a segment may have to be opened.
    async fn take_up(self: &Arc<Self>) -> Result<Option<Pass>, Refusal> {
        let engine = Arc::clone(self);
        self.pool.run(move || engine.pass()).await.ok_or(Refusal::Closing)
    }

    async fn give_back(self: &Arc<Self>, now_ms: u64, compacted: &mut Compacted) -> Result<(), Refusal> {
        let dropped = self.drop_segments(now_ms).await?;
        compacted.segments += dropped.segments;
        compacted.freed_bytes += dropped.bytes;
        Ok(())
    }

    /// The pass under way, or a new one through the segment that is most worth it.
    fn pass(&self) -> Option<Pass> {
        let mut compaction = lock(&self.compaction);
        // A segment may also go without it.
        let under_way = compaction.pass.take().filter(|pass| self.segments.live(pass.header.id).is_some());
        if under_way.is_some() {
            compaction.pass.clone_from(&under_way);
            return under_way;
        }
        loop {
            let candidates = self.candidates_for_compaction(&mut compaction);
            let id = victim::choose(&candidates, self.locator.total().bytes)?;
            let segments = self.segments.snapshot();
            let end_bytes = segments.iter().find(|(other, _)| *other == id)?.1.end_bytes;
            let opened = self.disk.open(&id.log_name(), Access::Direct);
            let opened = opened.and_then(|file| Ok((portion::read_header(&*file, &self.key, id)?, file)));
            if let Ok((Some(header), file)) = opened {
                let pass =
                    Pass { header, file, end_bytes, at: Position::default(), round: 0, is_partial: false };
                compaction.pass = Some(pass);
                return compaction.pass.clone();
            }
            let live = self.segments.live(id)?;
            compaction.unmovable.insert(id, live.records);
        }
    }

    /// Segments that can go once what counts in them is copied.
    fn candidates_for_compaction(&self, compaction: &mut Compaction) -> Vec<Candidate> {
        let replay_from = SegmentId(self.replay_from.load(Ordering::Acquire));
        let segments = self.segments.snapshot();
        compaction
            .unmovable
            .retain(|id, records| self.segments.live(*id).is_some_and(|live| live.records == *records));
        sealed(&segments)
            .filter(|candidate| {
                candidate.id < replay_from && !compaction.unmovable.contains_key(&candidate.id)
            })
            .collect()
    }

    /// What the log takes.
    pub(crate) fn log_use(&self) -> LogUse {
        let segments = self.segments.snapshot();
        let sealed: Vec<Candidate> = sealed(&segments).collect();
        let mut compaction = lock(&self.compaction);
        let candidates = self.candidates_for_compaction(&mut compaction);
        LogUse {
            bytes: segments.iter().map(|(_, segment)| segment.end_bytes).sum(),
            dead_bytes: sealed.iter().map(Candidate::dead_bytes).sum(),
            backlog_bytes: victim::backlog_bytes(&candidates, self.locator.total().bytes),
            unmovable_segments: compaction.unmovable.len() as u64,
        }
    }

    /// Copies what of a portion still counts, and waits until that is durable. Says whether something was left behind that counts
    /// until a record that is on its way is durable.
    async fn copy(
        self: &Arc<Self>,
        id: SegmentId,
        portion: &Portion,
        now_ms: u64,
        compacted: &mut Compacted,
    ) -> Result<bool, Refusal> {
        // On a full disk the reserve is for what gives space back. That is this as well, where it leaves most of it to deletions.
        let live_bytes = self.segments.live(id).and_then(|live| u64::try_from(live.bytes).ok());
        let is_modest = live_bytes.is_none_or(|bytes| bytes <= self.options.reserve_bytes / 2);
        let purpose = if is_modest { Purpose::Reclaim } else { Purpose::Store };
        let mut tickets = Vec::new();
        let mut left_behind = false;
        for item in &portion.items {
            match self.enqueue_copy(id, item, purpose, now_ms)? {
                Copying::Enqueued(ticket) => {
                    tickets.push(ticket);
                    compacted.copied_bytes += item.copied_bytes();
                }
                Copying::Busy => left_behind = true,
                Copying::Needless => {}
            }
        }
        // All are waited for, also when one of them failed: what comes next must not meet them.
        let mut outcome = Ok(());
        for ticket in tickets {
            outcome = outcome.and(self.wait(ticket).await);
        }
        outcome.map(|()| left_behind)
    }

    /// The pass came to the end of its segment.
    fn end_pass(&self, pass: Pass) {
        let id = pass.header.id;
        let is_empty = self.segments.live(id).is_none_or(|live| live.records <= 0);
        if is_empty {
            self.segments.mark_compacted(id);
            lock(&self.compaction).pass = None;
        } else if pass.is_partial && pass.round + 1 < ROUNDS_MAX {
            let next = Pass { at: Position::default(), round: pass.round + 1, is_partial: false, ..pass };
            lock(&self.compaction).pass = Some(next);
        } else {
            self.give_up(id);
        }
    }

    /// Leaves a segment as it is until something in it changes.
    fn give_up(&self, id: SegmentId) {
        let mut compaction = lock(&self.compaction);
        compaction.pass = None;
        if let Some(live) = self.segments.live(id) {
            compaction.unmovable.insert(id, live.records);
        }
    }
}

/// The segments that are not written to any more.
fn sealed(segments: &[(SegmentId, LogSegment)]) -> impl Iterator<Item = Candidate> {
    let oldest_lsn = segments.first().map_or(0, |(_, segment)| segment.first_lsn);
    let newest = segments.last().map_or(0, |(id, _)| id.0);
    // What was compacted only waits to be removed.
    let is_sealed = |segment: &LogSegment| segment.finished && !segment.compacted;
    let finished = segments.iter().enumerate().filter(move |(_, (_, segment))| is_sealed(segment));
    finished.map(move |(index, (id, segment))| {
        let may_cancel = index > 0 && segment.newest_tombstone > oldest_lsn;
        Candidate {
            id: *id,
            bytes: segment.end_bytes,
            live: segment.live,
            tombstones: if may_cancel { segment.tombstones } else { 0 },
            is_oldest: index == 0,
            age: newest - id.0,
        }
    })
}
