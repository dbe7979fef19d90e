//! The appender of the main log: queue, group commit, and the step from one segment to the next.
//!
//! Batches go past the page cache where there are zeros ahead of the log's end ([`crate::zeros`]), elsewhere through it.
//!
//! What must stay true: one batch is in flight at a time, and its waiters are told only after its flush and after the
//! locator shows it; a failed flush, or a failed write that does not heal (`health.rs`), poisons the store; a new segment
//! starts only after the old one's seal is durable.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::buffer::AlignedBytes;
use crate::completion::{Completer, Completion, completion};
use crate::digest::Digest;
use crate::disk::{Access, File, NotDurable};
use crate::engine::Engine;
use crate::error::{Refusal, refusal_of};
use crate::format::batch::{
    self, BATCH_BYTES_MAX, BATCH_BYTES_SOFT, BATCH_HEADER_BYTES, NewRecord, Position, record_bytes_bound,
};
use crate::format::record::{Body, Record};
use crate::format::seal::{Place, Seal};
use crate::format::segment::{Content, HEADER_BYTES, Previous, SegmentHeader};
use crate::format::superblock::SEGMENT_BYTES_MIN;
use crate::format::{ALIGN_BYTES, LOG_FOLDER, Lsn, SegmentId, aligned};
use crate::health::Failed;
use crate::in_flight::{InFlight, Key};
use crate::repository::{RepositoryKey, SessionId};
use crate::segment::table::LogSegment;
use crate::sync::{Arc, Condvar, Mutex, PoisonError, lock};
use crate::zeros::Zeros;

/// Most bytes that wait in the queue; past it, commits are refused as overloaded. 256 MiB is a hundred milliseconds of a
/// fast disk, and bounds memory whatever the clients do.
const QUEUE_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Memory of a batch that is kept for the next one, in bytes at most: what 256 small commits take.
const SPARE_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Room kept at the end of a segment for its seal.
const SEAL_ROOM_BYTES: u64 = ALIGN_BYTES as u64;

/// What a commit is for: whether the reserve may be spent on it when the disk is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// It stores something.
    Store,
    /// It gives space back, or records damage.
    Reclaim,
}

/// Queue and writer.
pub(crate) struct Log {
    queue: Mutex<Queue>,
    wake: Condvar,
    pub(crate) writer: Mutex<Writer>,
    /// Held while names of segments are made durable ([`Engine::sync_segment_names`]).
    names: Mutex<()>,
    zeros: Arc<Zeros>,
}

#[derive(Default)]
struct Queue {
    groups: VecDeque<Group>,
    bytes: usize,
    closing: bool,
    holds: usize,
    in_flight: InFlight,
}

/// Records that become durable together or not at all.
struct Group {
    records: Vec<NewRecord>,
    bytes: usize,
    purpose: Purpose,
    now_ms: u64,
    marks: Marks,
    /// What copies must not come behind.
    keys: Vec<Key>,
    done: Completer<Result<(), Refusal>>,
}

/// What became of a copy.
pub(crate) enum Copying {
    /// It is on its way.
    Enqueued(Ticket),
    /// A record of the same key is on its way, and may cancel what would be copied.
    Busy,
    /// There is nothing to copy any more.
    Needless,
}

/// What was marked when the group was enqueued, to be unmarked when it is through, whether or not anybody waits for it.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    /// Blobs whose `links_coming` was raised.
    pub(crate) links_coming: Vec<Digest>,
    /// Links that an UNLINK takes away: nobody is told of them any more, unless it fails.
    pub(crate) unlinking: Vec<(RepositoryKey, Digest)>,
    /// Blobs that were condemned; they are served again when the DELETE fails.
    pub(crate) condemned: Vec<Digest>,
    /// The upload session that the group ends.
    pub(crate) ending: Option<Ending>,
}

/// An upload session whose commit is on its way.
#[derive(Debug)]
pub(crate) struct Ending {
    pub(crate) session: SessionId,
    /// Whether the log knows the session.
    pub(crate) is_logged: bool,
    /// Its file, and what becomes of that.
    pub(crate) file: Option<(SegmentId, Fate)>,
}

/// What becomes of the file of a session when its commit is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is the blob's.
    Kept,
    /// The blob existed.
    Surplus,
}

/// Where the log ends.
#[derive(Debug)]
pub(crate) struct Writer {
    current: Option<Current>,
    /// The end of the last segment, when there is no current one.
    previous: Option<Previous>,
    pub(crate) next_lsn: Lsn,
    next_segment: u64,
    time_ms: u64,
    /// Memory of an earlier batch.
    spare: AlignedBytes,
}

#[derive(Debug)]
struct Current {
    id: SegmentId,
    file: Arc<dyn File>,
    offset_bytes: u64,
    capacity_bytes: u64,
    seal: Seal,
}

/// A commit on its way.
pub(crate) type Ticket = Completion<Result<(), Refusal>>;

impl Log {
    pub(crate) fn new(previous: Option<Previous>, next_lsn: Lsn, next_segment: u64, time_ms: u64) -> Log {
        let writer = Writer {
            current: None,
            previous,
            next_lsn,
            next_segment,
            time_ms,
            spare: AlignedBytes::default(),
        };
        Log {
            queue: Mutex::default(),
            wake: Condvar::new(),
            writer: Mutex::new(writer),
            names: Mutex::default(),
            zeros: Arc::default(),
        }
    }

    /// Puts a group into the queue. Called under the locks of the shards it decides on; never waits.
    pub(crate) fn enqueue(
        &self,
        records: Vec<NewRecord>,
        purpose: Purpose,
        marks: Marks,
        now_ms: u64,
    ) -> Result<Ticket, Refusal> {
        let ticket = lock(&self.queue).push(records, purpose, marks, now_ms)?;
        self.wake.notify_one();
        Ok(ticket)
    }

    /// Puts copies into the queue, unless it holds a record that may cancel what they say: behind that one they would raise the
    /// dead. Copies are made while nothing else gets into the queue; those of blobs and links under the lock of their shard as well.
    pub(crate) fn enqueue_copy(
        &self,
        key: &Key,
        copies: impl FnOnce() -> Option<Vec<NewRecord>>,
        purpose: Purpose,
        now_ms: u64,
    ) -> Result<Copying, Refusal> {
        let mut queue = lock(&self.queue);
        if queue.in_flight.has(key) {
            return Ok(Copying::Busy);
        }
        let Some(records) = copies() else { return Ok(Copying::Needless) };
        let ticket = queue.push(records, purpose, Marks::default(), now_ms)?;
        drop(queue);
        self.wake.notify_one();
        Ok(Copying::Enqueued(ticket))
    }

    /// Whether flushing is held back ([`crate::Store::hold_commits`]).
    pub(crate) fn is_held(&self) -> bool {
        lock(&self.queue).holds > 0
    }

    pub(crate) fn hold(&self) {
        lock(&self.queue).holds += 1;
    }

    pub(crate) fn release(&self) {
        let mut queue = lock(&self.queue);
        queue.holds = queue.holds.saturating_sub(1);
        drop(queue);
        self.wake.notify_one();
    }

    /// Takes nothing more in. The appender thread ends when the queue is empty.
    pub(crate) fn close(&self) {
        lock(&self.queue).closing = true;
        self.wake.notify_all();
    }

    fn take_groups(&self) -> Vec<Group> {
        let mut queue = lock(&self.queue);
        let mut groups = Vec::new();
        let mut bytes = 0;
        while let Some(group) = queue.groups.front() {
            if !groups.is_empty() && bytes + group.bytes > BATCH_BYTES_SOFT {
                break;
            }
            bytes += group.bytes;
            groups.extend(queue.groups.pop_front());
        }
        queue.bytes -= bytes;
        groups
    }

    /// The group with these keys is through.
    fn leave(&self, keys: &[Key]) {
        if !keys.is_empty() {
            lock(&self.queue).in_flight.leave(keys);
        }
    }

    /// Waits for work; `false` when the log was closed and nothing is left.
    fn wait(&self) -> bool {
        let mut queue = lock(&self.queue);
        loop {
            let idle = queue.groups.is_empty() || (queue.holds > 0 && !queue.closing);
            if !idle {
                return true;
            }
            if queue.closing {
                return false;
            }
            queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Queue {
    fn push(
        &mut self,
        records: Vec<NewRecord>,
        purpose: Purpose,
        marks: Marks,
        now_ms: u64,
    ) -> Result<Ticket, Refusal> {
        let bytes: usize = records.iter().map(record_bytes_bound).sum();
        if aligned(BATCH_HEADER_BYTES + bytes) > BATCH_BYTES_MAX {
            return Err(Refusal::Overloaded);
        }
        if self.closing {
            return Err(Refusal::Closing);
        }
        if self.bytes.saturating_add(bytes) > QUEUE_BYTES_MAX {
            return Err(Refusal::Overloaded);
        }
        let (done, ticket) = completion();
        let keys = Key::of(&records);
        self.in_flight.enter(&keys);
        self.bytes += bytes;
        self.groups.push_back(Group { records, bytes, purpose, now_ms, marks, keys, done });
        Ok(ticket)
    }
}

impl Writer {
    /// How the last finished segment ends.
    pub(crate) fn previous(&self) -> Option<Previous> {
        self.previous
    }

    /// Where the next batch goes: what a checkpoint taken now does not cover.
    pub(crate) fn position(&self) -> (SegmentId, u64) {
        match (&self.current, &self.previous) {
            (Some(current), _) => (current.id, current.offset_bytes),
            (None, Some(previous)) => (previous.id, previous.end_bytes),
            (None, None) => (SegmentId(0), 0),
        }
    }
}

impl Engine {
    /// The appender thread.
    pub(crate) fn append_until_closed(&self) {
        while self.log.wait() {
            self.flush();
        }
    }

    /// Writes what waits in the queue, as one batch of at most [`BATCH_BYTES_SOFT`].
    pub(crate) fn flush(&self) {
        let mut writer = lock(&self.log.writer);
        let mut groups = self.log.take_groups();
        if groups.is_empty() {
            return;
        }
        if let Some(refusal) = self.health.refusal() {
            self.fail(groups, refusal);
            return;
        }
        if let Err(refusal) = self.make_room(&mut writer, &groups) {
            // The reserve is for what gives space back.
            let may_go_on = |group: &Group| refusal == Refusal::NoSpace && group.purpose == Purpose::Reclaim;
            let (reclaim, refused): (Vec<Group>, Vec<Group>) = groups.into_iter().partition(may_go_on);
            self.fail(refused, refusal);
            groups = reclaim;
            if groups.is_empty() {
                return;
            }
            self.release_reserve();
            if let Err(refusal) = self.make_room(&mut writer, &groups) {
                self.fail(groups, refusal);
                return;
            }
        }
        if let Some(refusal) = self.health.refusal() {
            self.fail(groups, refusal);
            return;
        }
        self.write_groups(&mut writer, groups);
    }

    fn write_groups(&self, writer: &mut Writer, groups: Vec<Group>) {
        let now_ms = groups.iter().map(|group| group.now_ms).max().unwrap_or(0);
        writer.time_ms = writer.time_ms.max(now_ms);
        let mut records = Vec::new();
        let mut waiters = Vec::new();
        for group in groups {
            records.extend(group.records);
            waiters.push((group.marks, group.keys, group.done));
        }
        match self.append(writer, records) {
            Ok((records, place)) => {
                for record in &records {
                    self.apply(record, place, writer.time_ms);
                }
                self.remove_abandoned();
                for (marks, keys, done) in waiters {
                    self.unmark_done(&marks);
                    self.log.leave(&keys);
                    done.complete(Ok(()));
                }
                self.write_zeros();
            }
            Err(refusal) => {
                for (marks, keys, done) in waiters {
                    self.unmark_failed(&marks);
                    self.log.leave(&keys);
                    done.complete(Err(refusal));
                }
            }
        }
    }

    /// Writes and flushes one batch.
    fn append(&self, writer: &mut Writer, records: Vec<NewRecord>) -> Result<(Vec<Record>, Place), Refusal> {
        let time_ms = writer.time_ms;
        let first_lsn = writer.next_lsn;
        let Some(current) = &mut writer.current else { return Err(Refusal::Poisoned) };
        let place = Place { segment: current.id, epoch: self.epoch, offset_bytes: current.offset_bytes };
        let position = Position { place, first_lsn, previous: current.seal, time_ms };
        let batch = batch::encode_into(std::mem::take(&mut writer.spare), &self.key, position, records);
        let len_bytes = batch.bytes.len() as u64;
        if let Err(failed) = self.write_batch(current, &batch.bytes) {
            // What was refused may have left pages that the cache writes out later. They must not come over a batch that went past
            // the cache: from here on none does.
            self.log.zeros.end();
            return Err(self.health.failed(&current.id.log_name(), &failed));
        }
        // A flush that failed meanwhile may have been of a name that this batch needs, and only one caller was told of it.
        if let Some(refusal) = self.health.refusal() {
            return Err(refusal);
        }
        current.offset_bytes += len_bytes;
        current.seal = batch.seal;
        writer.next_lsn += batch.records.len() as u64;
        if batch.bytes.capacity() <= SPARE_BYTES_MAX {
            writer.spare = batch.bytes;
        }
        self.segments.advance(current.id, current.offset_bytes);
        self.log.zeros.advance(current.offset_bytes);
        Ok((batch.records, place))
    }

    fn write_batch(&self, current: &Current, bytes: &[u8]) -> Result<(), Failed> {
        if let Some(direct) = self.log.zeros.claim(bytes.len() as u64) {
            return direct.write_durably_at(bytes, current.offset_bytes).map_err(|failed| match failed {
                NotDurable::Write(error) => Failed::log_write(error),
                NotDurable::Flush(error) => Failed::flush(error),
            });
        }
        // After a write that was refused nothing is flushed, and the next batch is written over it.
        current.file.write_at(bytes, current.offset_bytes).map_err(Failed::log_write)?;
        current.file.sync().map_err(Failed::flush)
    }

    /// Writes the next zeros ahead of the log's end, on a storage thread, if they are wanted.
    fn write_zeros(&self) {
        if self.log.zeros.take_job() {
            let zeros = Arc::clone(&self.log.zeros);
            // Nobody waits for it but a batch that comes to the place that it is writing to.
            drop(self.pool.run(move || zeros.write_piece()));
        }
    }

    fn make_room(&self, writer: &mut Writer, groups: &[Group]) -> Result<(), Refusal> {
        let bytes: usize = groups.iter().map(|group| group.bytes).sum();
        let needed = aligned(BATCH_HEADER_BYTES + bytes) as u64;
        let fits = writer
            .current
            .as_ref()
            .is_some_and(|current| current.offset_bytes + needed + SEAL_ROOM_BYTES <= current.capacity_bytes);
        if fits { Ok(()) } else { self.next_segment(writer, needed) }
    }

    /// Makes the next segment and goes over to it. Its space is reserved before the old one is sealed, so that a full disk
    /// leaves the old one as it is.
    fn next_segment(&self, writer: &mut Writer, needed: u64) -> Result<(), Refusal> {
        let id = SegmentId(writer.next_segment);
        let name = id.log_name();
        let (file, capacity_bytes) = self.create_segment(&name, needed)?;
        if let Err(refusal) = self.seal_current(writer) {
            drop(self.disk.remove(&name));
            return Err(refusal);
        }
        let header = SegmentHeader {
            id,
            epoch: self.epoch,
            created_ms: writer.time_ms,
            content: Content::Log { previous: writer.previous, first_lsn: writer.next_lsn },
        };
        let bytes = header.encode(&self.key);
        if let Err(error) = file.write_at(&bytes, 0) {
            // Some file systems find out only now that there is no space. Nothing speaks of the file yet.
            drop(self.disk.remove(&name));
            return Err(self.health.failed(&name, &Failed::log_write(error)));
        }
        file.sync().map_err(|error| self.health.failed(&name, &Failed::flush(error)))?;
        self.sync_segment_names()?;
        writer.next_segment += 1;
        self.give_back_tail(writer.previous);
        let segment =
            LogSegment { finished: false, ..LogSegment::new(self.epoch, writer.next_lsn, Arc::clone(&file)) };
        let end_bytes = segment.end_bytes;
        self.segments.insert(id, segment);
        let seal = SegmentHeader::seal_of(&bytes);
        if file.gains_from_zeros()
            && let Ok(direct) = self.disk.open(&name, Access::Direct)
        {
            self.log.zeros.begin(direct, end_bytes, capacity_bytes);
            self.write_zeros();
        }
        writer.current = Some(Current { id, file, offset_bytes: end_bytes, capacity_bytes, seal });
        Ok(())
    }

    /// Makes creations and removals of segments durable. Blocks on the disk. A failure poisons the store, whether or not anybody
    /// waits.
    ///
    /// One at a time, up to the poisoning: the kernel tells an error of the folder once, to whoever asks first. The next one would
    /// hear that all is well, and rely on a name that is not durable.
    pub(crate) fn sync_segment_names(&self) -> Result<(), Refusal> {
        let _turn = lock(&self.log.names);
        if let Some(refusal) = self.health.refusal() {
            return Err(refusal);
        }
        let synced = self.disk.sync_dir(LOG_FOLDER).map_err(Failed::flush);
        synced.map_err(|failed| self.health.failed(LOG_FOLDER, &failed))
    }

    /// Makes the file of a segment with room for `needed` bytes. On a disk that is nearly full it is made smaller.
    fn create_segment(&self, name: &str, needed: u64) -> Result<(Arc<dyn File>, u64), Refusal> {
        let least = HEADER_BYTES as u64 + needed + SEAL_ROOM_BYTES;
        let mut wanted = self.segment_bytes;
        loop {
            let capacity_bytes = wanted.max(least);
            match self.disk.create(name, capacity_bytes, Access::Cached) {
                Ok(file) => return Ok((file, capacity_bytes)),
                Err(error) if refusal_of(&error).is_none() || wanted <= SEGMENT_BYTES_MIN => {
                    return Err(self.health.failed(name, &Failed::log_write(error)));
                }
                Err(_) => wanted /= 4,
            }
        }
    }

    /// Ends the current segment, if there is one, with a SEAL record.
    pub(crate) fn seal_current(&self, writer: &mut Writer) -> Result<(), Refusal> {
        if writer.current.is_none() {
            return Ok(());
        }
        self.append(writer, vec![NewRecord { body: Body::Seal, payload: Bytes::new() }])?;
        // Before anybody cuts the file to its end.
        self.log.zeros.end();
        if let Some(current) = writer.current.take() {
            self.segments.finish(current.id);
            let (id, end_bytes, seal) = (current.id, current.offset_bytes, current.seal);
            writer.previous = Some(Previous { id, end_bytes, seal });
        }
        Ok(())
    }

    /// Gives the unused tail of a finished segment back to the file system. Its end is durable in the header of the next
    /// one, so that whether this survives a crash makes no difference.
    pub(crate) fn give_back_tail(&self, previous: Option<Previous>) {
        if let Some(previous) = previous
            && let Some(file) = self.segments.file(previous.id)
        {
            drop(file.truncate(previous.end_bytes));
        }
    }

    fn fail(&self, groups: Vec<Group>, refusal: Refusal) {
        for group in groups {
            self.unmark_failed(&group.marks);
            self.log.leave(&group.keys);
            group.done.complete(Err(refusal));
        }
    }
}
