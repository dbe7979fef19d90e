//! The table of log segments that exist: handles for readers, and what is still live in each.
//!
//! What must stay true: a segment is dropped only when nothing in it is live, the checkpoint no longer needs it, and either it
//! holds no tombstone or no older segment exists whose records its tombstones cancel.

use std::collections::{BTreeMap, BTreeSet};

use crate::disk::File;
use crate::format::SegmentId;
use crate::sync::{Arc, RwLock, read, write};

/// A log segment.
#[derive(Clone, Debug)]
pub(crate) struct LogSegment {
    /// Epoch of its header.
    pub(crate) epoch: u32,
    /// For reading, through the page cache.
    pub(crate) file: Arc<dyn File>,
    /// Offset behind its last batch.
    pub(crate) end_bytes: u64,
    /// Whether nothing more is appended.
    pub(crate) finished: bool,
    /// What here still counts.
    pub(crate) live: Live,
    /// Records here that cancel others.
    pub(crate) tombstones: u64,
}

/// Blobs, links and session states whose record still counts. What is dead in a segment is the rest of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Live {
    pub(crate) records: i64,
    /// What these take ([`crate::format::footprint`]).
    pub(crate) bytes: i64,
}

impl Live {
    /// One record.
    pub(crate) fn record(bytes: u64) -> Live {
        Live { records: 1, bytes: i64::try_from(bytes).unwrap_or(i64::MAX) }
    }

    pub(crate) fn add(&mut self, more: Live) {
        self.records = self.records.saturating_add(more.records);
        self.bytes = self.bytes.saturating_add(more.bytes);
    }

    pub(crate) fn remove(&mut self, less: Live) {
        self.records = self.records.saturating_sub(less.records);
        self.bytes = self.bytes.saturating_sub(less.bytes);
    }
}

/// All log segments.
#[derive(Debug, Default)]
pub(crate) struct Table {
    inner: RwLock<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    segments: BTreeMap<SegmentId, LogSegment>,
    /// Segments that were dropped from the middle of the log.
    dropped: BTreeSet<SegmentId>,
}

/// A segment that may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Droppable {
    pub(crate) id: SegmentId,
    /// Whether no older one exists.
    pub(crate) oldest: bool,
    pub(crate) bytes: u64,
}

impl Table {
    pub(crate) fn insert(&self, id: SegmentId, segment: LogSegment) {
        write(&self.inner).segments.insert(id, segment);
    }

    pub(crate) fn remove(&self, id: SegmentId) {
        write(&self.inner).segments.remove(&id);
    }

    /// The handle for reading, and the epoch.
    pub(crate) fn file(&self, id: SegmentId) -> Option<Arc<dyn File>> {
        read(&self.inner).segments.get(&id).map(|segment| Arc::clone(&segment.file))
    }

    pub(crate) fn add_live(&self, id: SegmentId, live: Live) {
        if let Some(segment) = write(&self.inner).segments.get_mut(&id) {
            segment.live.add(live);
        }
    }

    pub(crate) fn remove_live(&self, id: SegmentId, live: Live) {
        if let Some(segment) = write(&self.inner).segments.get_mut(&id) {
            segment.live.remove(live);
        }
    }

    pub(crate) fn add_tombstone(&self, id: SegmentId) {
        if let Some(segment) = write(&self.inner).segments.get_mut(&id) {
            segment.tombstones += 1;
        }
    }

    pub(crate) fn advance(&self, id: SegmentId, end_bytes: u64) {
        if let Some(segment) = write(&self.inner).segments.get_mut(&id) {
            segment.end_bytes = end_bytes;
        }
    }

    pub(crate) fn finish(&self, id: SegmentId) {
        if let Some(segment) = write(&self.inner).segments.get_mut(&id) {
            segment.finished = true;
        }
    }

    pub(crate) fn set_tombstones(&self, id: SegmentId, tombstones: u64) {
        if let Some(segment) = write(&self.inner).segments.get_mut(&id) {
            segment.tombstones = tombstones;
        }
    }

    pub(crate) fn mark_dropped(&self, id: SegmentId) {
        write(&self.inner).dropped.insert(id);
    }

    pub(crate) fn dropped(&self) -> BTreeSet<SegmentId> {
        read(&self.inner).dropped.clone()
    }

    /// Forgets the drops that nobody will ask for: those of segments older than the oldest that exists.
    pub(crate) fn forget_drops_before(&self, oldest: SegmentId) {
        let mut inner = write(&self.inner);
        inner.dropped = inner.dropped.split_off(&oldest);
    }

    pub(crate) fn oldest(&self) -> Option<SegmentId> {
        read(&self.inner).segments.keys().next().copied()
    }

    pub(crate) fn snapshot(&self) -> Vec<(SegmentId, LogSegment)> {
        read(&self.inner).segments.iter().map(|(id, segment)| (*id, segment.clone())).collect()
    }

    pub(crate) fn len(&self) -> usize {
        read(&self.inner).segments.len()
    }

    /// The next segment that may go, all of it before `replay_from`, the segment from which an opening replays.
    pub(crate) fn droppable(&self, replay_from: SegmentId) -> Option<Droppable> {
        let inner = read(&self.inner);
        let oldest = inner.segments.keys().next().copied();
        inner
            .segments
            .range(..replay_from)
            .find(|(id, segment)| {
                let free_of_tombstones = segment.tombstones == 0 || Some(**id) == oldest;
                segment.finished && segment.live.records <= 0 && free_of_tombstones
            })
            .map(|(id, segment)| Droppable { id: *id, oldest: Some(*id) == oldest, bytes: segment.end_bytes })
    }
}
