//! An upload session while somebody writes to it.
//!
//! What must stay true: bytes are hashed exactly once, in order, as they are taken in, so that at every await the session is at a
//! consistent offset and may be dropped there; what the log says of a session is never contradicted by its file, so bytes below a
//! logged offset are only ever overwritten by themselves.

mod end;
mod point;
mod reopen;
mod share;

use std::io;

use bytes::Bytes;

use crate::buffer::AlignedBuffer;
use crate::digest::{Algorithm, Digest};
use crate::engine::Engine;
use crate::error::{Refusal, UploadError, refusal_of};
use crate::format::batch::NewRecord;
use crate::format::record::{Body, HashedOffset, SESSION_CRCS_MAX, SessionRecord};
use crate::format::solo::PAYLOAD_OFFSET_BYTES;
use crate::format::{UPLOAD_INLINE_BYTES_MAX, aligned};
use crate::hasher::Hasher;
use crate::lane::{HASHING_MAX, Lane, Piece};
use crate::log::{Ending, Fate, Marks, Purpose, Ticket};
use crate::repository::{RepositoryKey, SessionId};
use crate::session::{Opened, SessionData};
use crate::solo::{SoloWriter, WRITE_BYTES};
use crate::store::{BlobStat, UploadStatus};
use crate::sync::{Arc, Ordering};
use crate::units::Unit;

pub(crate) use point::Point;

use end::{Over, end, end_unattended, tell_end, tell_end_of};
use reopen::{Reopening, load, rehash};
pub use share::Shared;

/// An upload session that is open for writing. Dropping it leaves the session at the bytes taken in so far, unless
/// [`Upload::end_when_dropped`] was called.
pub struct Upload {
    engine: Arc<Engine>,
    repository: RepositoryKey,
    id: SessionId,
    /// `None` once the session is over.
    data: Option<Box<SessionData>>,
    mark: Mark,
    when_dropped: WhenDropped,
}

/// What becomes of a session whose writer is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WhenDropped {
    /// It stands where the writer left it, for the next one.
    Stands,
    /// It is over.
    Ends,
}

/// Where the session stood when it was opened.
struct Mark {
    offset_bytes: u64,
    hasher: Hasher,
    /// The unit that was being filled, kept when it is written out.
    tail: Option<Vec<u8>>,
    tail_len: usize,
}

impl std::fmt::Debug for Upload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upload").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Upload {
    pub(crate) async fn open(
        engine: Arc<Engine>,
        repository: RepositoryKey,
        id: SessionId,
        now_ms: u64,
    ) -> Result<Upload, UploadError> {
        let opened = engine.sessions.open(repository, id, now_ms)?;
        let (data, loaded) = match opened {
            Opened::Ready(data) => (data, Ok(())),
            Opened::Stored(logged) => {
                let stored = Reopening { engine: &engine, id, is_done: false };
                let loaded = load(&engine, *logged).await?;
                stored.done();
                loaded
            }
        };
        let mark = Mark { offset_bytes: 0, hasher: Hasher::new(data.algorithm), tail: None, tail_len: 0 };
        // From here on a drop puts the session back.
        let when_dropped = WhenDropped::Stands;
        let mut upload = Upload { engine, repository, id, data: Some(data), mark, when_dropped };
        if let Err(error) = loaded {
            return Err(upload.fail(error).await);
        }
        if let Err(error) = upload.unpark().await {
            return Err(upload.fail(error).await);
        }
        if let Some(data) = &upload.data {
            upload.mark = Mark {
                offset_bytes: data.offset_bytes,
                hasher: data.hasher.clone(),
                tail: None,
                tail_len: data.tail.len(),
            };
        }
        Ok(upload)
    }

    /// From now on the session ends with this writer, however that ends: for uploads of one request, whose session nobody was told
    /// of. A session that becomes a blob is over in any case.
    pub fn end_when_dropped(&mut self) {
        self.when_dropped = WhenDropped::Ends;
    }

    /// Where the next byte goes.
    pub fn offset_bytes(&self) -> u64 {
        self.data.as_ref().map_or(0, |data| data.offset_bytes)
    }

    /// Appends bytes: up to 1 MiB they are hashed on the caller's thread; past that, full units are handed to the disk, and to a
    /// thread that hashes where one is free. Waits while too much is under way to either. When the future is dropped, some of the
    /// bytes may have been taken in; the offset says how many.
    ///
    /// # Errors
    /// `TooLarge`; `Refused` and `Io`, and then the session is gone.
    pub async fn write(&mut self, bytes: Bytes, now_ms: u64) -> Result<(), UploadError> {
        let limit_bytes = self.engine.options.blob_bytes_max;
        if self.offset_bytes().saturating_add(bytes.len() as u64) > limit_bytes {
            return Err(UploadError::TooLarge { limit_bytes });
        }
        if let Some(refusal) = self.engine.health.refusal() {
            return Err(UploadError::Refused(refusal));
        }
        match self.take_in(&bytes, now_ms).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.fail(error).await),
        }
    }

    async fn take_in(&mut self, bytes: &[u8], now_ms: u64) -> Result<(), UploadError> {
        self.log_rewind(now_ms).await?;
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.must_spill(rest.len()) {
                self.spill(now_ms).await?;
            }
            let Some(data) = self.data.as_mut() else { return Err(UploadError::Unknown) };
            let Some(solo) = data.solo.as_mut() else {
                data.hasher.update(rest);
                data.tail.extend_from_slice(rest);
                data.offset_bytes += rest.len() as u64;
                self.engine.sessions.add_memory(rest.len());
                return Ok(());
            };
            if let Some(lane) = &data.lane {
                lane.settle(HASHING_MAX).await;
            }
            solo.make_way().await.map_err(write_error)?;
            let mut unit = data.unit.take().unwrap_or_else(|| self.engine.units.lend(&*self.engine.disk));
            let (now, later) = rest.split_at(rest.len().min(unit.room_bytes()));
            unit.push(now);
            data.offset_bytes += now.len() as u64;
            rest = later;
            if unit.room_bytes() > 0 {
                data.unit = Some(unit);
            } else {
                self.mark.keep(unit.as_slice(), solo.written_bytes);
                let (unit, from) = (Arc::new(unit), std::mem::take(&mut data.hashed_bytes));
                let first_block = Some(solo.next_block());
                let piece = Piece { unit: Arc::clone(&unit), from, first_block };
                solo.submit_unit(&self.engine, unit);
                data.hash(&self.engine, piece);
                self.follow_point(now_ms).await?;
            }
        }
        Ok(())
    }

    fn must_spill(&self, more: usize) -> bool {
        let Some(data) = self.data.as_ref().filter(|data| data.solo.is_none()) else { return false };
        let in_memory = self.engine.sessions.memory_bytes.load(Ordering::Relaxed) + more as u64;
        data.tail.len() + more > UPLOAD_INLINE_BYTES_MAX
            || in_memory > self.engine.options.session_memory_bytes_max
    }

    /// Gives the session a file.
    async fn spill(&mut self, now_ms: u64) -> Result<(), UploadError> {
        let Some(data) = self.data.as_mut() else { return Err(UploadError::Unknown) };
        let (engine, id, algorithm) = (Arc::clone(&self.engine), self.id, data.algorithm);
        let created = self.engine.pool.run(move || SoloWriter::create(&engine, id, algorithm, now_ms));
        let created = created.await.unwrap_or_else(|| Err(closing()));
        let mut solo = created.map_err(|error| solo_error(&self.engine, error))?;
        self.engine.sessions.sub_memory(data.tail.len());
        let tail = std::mem::take(&mut data.tail);
        let whole = tail.len() / WRITE_BYTES * WRITE_BYTES;
        for bytes in tail[..whole].chunks(WRITE_BYTES) {
            self.mark.keep(bytes, solo.written_bytes);
            let target = solo.target(&self.engine);
            solo.crcs.extend(target.checksums(solo.next_block(), bytes));
            let mut unit = self.engine.units.lend(&*self.engine.disk);
            unit.push(bytes);
            solo.submit_unit(&self.engine, Arc::new(unit));
        }
        data.keep_hashed(&self.engine, &tail[whole..]);
        data.solo = Some(solo);
        Ok(())
    }

    /// Logs where the session stands.
    async fn log_state(&mut self, now_ms: u64) -> Result<(), UploadError> {
        let Some(data) = self.data.as_mut() else { return Err(UploadError::Unknown) };
        data.settle_hash().await;
        let acknowledged = HashedOffset { offset_bytes: data.offset_bytes, state: data.hasher.export() };
        let blocks = data.solo.as_ref().map_or(0, |solo| solo.crcs.len());
        let Some(ticket) = self.enqueue_state(&acknowledged, blocks, now_ms)? else { return Ok(()) };
        self.engine.wait(ticket).await?;
        if let Some(data) = self.data.as_mut() {
            (data.logged_bytes, data.logged_blocks) = (acknowledged.offset_bytes, blocks);
        }
        Ok(())
    }

    /// Enqueues what is to be known of the session: that it stands at `acknowledged`, with the checksums of so many blocks.
    fn enqueue_state(
        &mut self,
        acknowledged: &HashedOffset,
        blocks: usize,
        now_ms: u64,
    ) -> Result<Option<Ticket>, UploadError> {
        let Some(data) = self.data.as_mut() else { return Err(UploadError::Unknown) };
        let Some(solo) = data.solo.as_ref() else { return Ok(None) };
        let record = |first_block: usize, crcs: &[u32]| {
            let record = SessionRecord {
                session: self.id,
                repository: self.repository,
                algorithm: data.algorithm,
                segment: solo.segment,
                epoch: solo.epoch,
                touched_ms: now_ms,
                durable: data.durable.clone(),
                acknowledged: acknowledged.clone(),
                first_block: u32::try_from(first_block).unwrap_or(u32::MAX),
                crcs: crcs.to_vec(),
            };
            NewRecord { body: Body::Session(record), payload: Bytes::new() }
        };
        let blocks = blocks.min(solo.crcs.len());
        let from = data.logged_blocks.min(blocks);
        let mut records: Vec<NewRecord> = solo.crcs[from..blocks]
            .chunks(SESSION_CRCS_MAX)
            .zip((from..).step_by(SESSION_CRCS_MAX))
            .map(|(crcs, first_block)| record(first_block, crcs))
            .collect();
        if records.is_empty() {
            records.push(record(from, &[]));
        }
        let ticket = self.engine.log.enqueue(records, Purpose::Store, Marks::default(), now_ms)?;
        // From here on the record may come or not, whether or not anybody waits for it: until that is known, the log is taken to say
        // as much as it may, and to hold as little as it must.
        data.is_logged = true;
        data.logged_bytes = data.logged_bytes.max(acknowledged.offset_bytes);
        Ok(Some(ticket))
    }

    /// After going back behind what is logged, logs it before a byte is overwritten.
    async fn log_rewind(&mut self, now_ms: u64) -> Result<(), UploadError> {
        let behind = self.data.as_ref().is_some_and(|data| data.offset_bytes < data.logged_bytes);
        if behind { self.log_state(now_ms).await } else { Ok(()) }
    }

    /// Throws away every byte: a client that starts over at offset 0.
    ///
    /// # Errors
    /// `Refused`; the session is gone, or stands at 0.
    pub async fn restart(&mut self, now_ms: u64) -> Result<(), UploadError> {
        let Some(data) = self.data.as_mut() else { return Err(UploadError::Unknown) };
        self.engine.sessions.sub_memory(data.memory_bytes());
        let algorithm = data.algorithm;
        let mut old = std::mem::replace(&mut **data, SessionData::new(algorithm));
        self.mark = Mark { offset_bytes: 0, hasher: Hasher::new(algorithm), tail: None, tail_len: 0 };
        if !old.is_logged {
            return Ok(());
        }
        // A new file takes the new bytes. Until the log is known to have forgotten the old one, it is told of the session's end.
        data.is_logged = true;
        let told = match tell_end(&self.engine, self.id, old.solo.as_mut(), now_ms) {
            Ok(ticket) => self.engine.wait(ticket).await,
            Err(refusal) => Err(refusal),
        };
        match told {
            Ok(()) => {
                data.is_logged = false;
                Ok(())
            }
            Err(refusal) => Err(self.fail(UploadError::Refused(refusal)).await),
        }
    }

    /// Goes back to where the session stood when it was opened.
    pub fn rewind(&mut self) {
        let Some(data) = self.data.as_mut() else { return };
        self.engine.sessions.sub_memory(data.memory_bytes());
        // What is not hashed yet, or was to be durable, belongs to what is given up.
        data.lane = None;
        data.point = None;
        match data.solo.as_mut() {
            Some(solo) => {
                solo.rewind(self.mark.offset_bytes);
                let len = usize::try_from(self.mark.offset_bytes - solo.written_bytes).unwrap_or(0);
                match self.mark.tail.take() {
                    Some(tail) => data.keep_hashed(&self.engine, tail.get(..len).unwrap_or(&tail)),
                    None => {
                        if let Some(unit) = &mut data.unit {
                            unit.truncate(len);
                        }
                        data.hashed_bytes = len;
                    }
                }
            }
            None => data.tail.truncate(self.mark.tail_len),
        }
        data.offset_bytes = self.mark.offset_bytes;
        data.hasher = self.mark.hasher.clone();
        if data.durable.offset_bytes > data.offset_bytes {
            data.durable = HashedOffset { offset_bytes: data.offset_bytes, state: data.hasher.export() };
        }
        if let Some(solo) = &data.solo {
            data.logged_blocks = data.logged_blocks.min(solo.crcs.len());
        }
        self.engine.sessions.add_memory(data.memory_bytes());
    }

    /// Acknowledges what was written. A session with a file resumes here after `kill -9`; a smaller one may be forgotten.
    ///
    /// # Errors
    /// `Refused` and `Io`, and then the session is gone.
    pub async fn acknowledge(mut self, now_ms: u64) -> Result<UploadStatus, UploadError> {
        match self.settle_and_log(now_ms).await {
            Ok(()) => Ok(UploadStatus { id: self.id, offset_bytes: self.offset_bytes() }),
            Err(error) => Err(self.fail(error).await),
        }
    }

    async fn settle_and_log(&mut self, now_ms: u64) -> Result<(), UploadError> {
        let Some(data) = self.data.as_mut() else { return Err(UploadError::Unknown) };
        let SessionData { solo: Some(solo), unit, .. } = &mut **data else { return Ok(()) };
        let rest = unit.as_ref().map(Unit::as_slice).unwrap_or_default();
        solo.submit_partial(&self.engine, rest);
        solo.settle(1).await.map_err(write_error)?;
        self.settle_point().await?;
        let Some(data) = self.data.as_mut() else { return Err(UploadError::Unknown) };
        data.settle_hash().await;
        data.parked_bytes = data.unit.as_ref().map_or(0, Unit::len_bytes);
        self.log_state(now_ms).await
    }

    /// Ends the session: its bytes become a blob of the session's repository. Durable when this returns. Once the records are
    /// enqueued the blob comes even when the future is dropped.
    ///
    /// # Errors
    /// `Mismatch`: the session goes back to where it stood when it was opened. `Refused` and `Io`: the session is gone.
    pub async fn commit(mut self, digest: &Digest, now_ms: u64) -> Result<BlobStat, UploadError> {
        let actual = match self.digest(digest.algorithm()).await {
            Ok(actual) => actual,
            Err(error) => return Err(self.fail(error).await),
        };
        if actual != *digest {
            self.rewind();
            return match self.log_rewind(now_ms).await {
                Ok(()) => Err(UploadError::Mismatch { actual }),
                Err(error) => Err(self.fail(error).await),
            };
        }
        match self.store(*digest, now_ms).await {
            Ok(stat) => Ok(stat),
            Err(error) => Err(self.fail(error).await),
        }
    }

    /// The digest of the session's bytes; hashes them again when the session used another algorithm.
    async fn digest(&mut self, algorithm: Algorithm) -> Result<Digest, UploadError> {
        let Some(data) = self.data.as_mut() else { return Err(UploadError::Unknown) };
        data.settle_hash().await;
        if algorithm == data.algorithm {
            return Ok(data.hasher.clone().finish());
        }
        let mut hasher = Hasher::new(algorithm);
        if let Some(solo) = data.solo.as_mut() {
            solo.settle(1).await.map_err(write_error)?;
            let (file, len_bytes) = (solo.file(), solo.written_bytes);
            let hashed = self.engine.pool.run(move || rehash(&*file, hasher, 0, len_bytes));
            hasher = hashed.await.unwrap_or_else(|| Err(closing())).map_err(UploadError::Unreadable)?;
        }
        hasher.update(data.rest());
        Ok(hasher.finish())
    }

    async fn store(&mut self, digest: Digest, now_ms: u64) -> Result<BlobStat, UploadError> {
        let engine = Arc::clone(&self.engine);
        let Some(data) = self.data.as_mut() else { return Err(UploadError::Unknown) };
        let len_bytes = data.offset_bytes;
        let mut payload = Bytes::new();
        let SessionData { solo, unit, tail, .. } = &mut **data;
        let body = match solo {
            Some(solo) => {
                // Sealed and flushed even when the blob turns out to exist: how long an upload takes must not tell.
                let rest = unit.as_ref().map(Unit::as_slice).unwrap_or_default();
                let sealed = solo.seal(&engine, rest, len_bytes, digest).await;
                let trailer = sealed.map_err(|error| solo_error(&engine, error))?;
                Body::Solo { digest, len_bytes, segment: solo.segment, epoch: solo.epoch, trailer }
            }
            None => {
                payload = Bytes::copy_from_slice(tail);
                let len_bytes = u32::try_from(payload.len()).unwrap_or(u32::MAX);
                Body::Blob { digest, len_bytes, payload_offset_bytes: 0 }
            }
        };
        let ticket = self.enqueue_blob(digest, body, payload, now_ms)?;
        let mut over = Over::new(&engine, self.id, self.data.take());
        engine.wait(ticket).await?;
        over.is_told = true;
        Ok(BlobStat { digest, len_bytes })
    }

    /// Enqueues the blob, or only its link when it exists.
    fn enqueue_blob(
        &self,
        digest: Digest,
        body: Body,
        payload: Bytes,
        now_ms: u64,
    ) -> Result<Ticket, Refusal> {
        let engine = &self.engine;
        let mut records = Vec::new();
        let mut marks = Marks::default();
        let mut shard = engine.locator.write(&digest);
        let existing = shard.find(&digest).map_err(|failed| engine.index_failed(failed))?;
        let exists = existing.is_some_and(|blob| blob.is_served());
        if exists {
            marks.links_coming.push(digest);
        } else {
            records.push(NewRecord { body, payload });
        }
        let link = Body::Link { repository: self.repository, digest };
        records.push(NewRecord { body: link, payload: Bytes::new() });
        let is_logged = self.data.as_ref().is_some_and(|data| data.is_logged);
        if is_logged {
            records.push(NewRecord { body: Body::SessionEnd { session: self.id }, payload: Bytes::new() });
        }
        let fate = if exists { Fate::Surplus } else { Fate::Kept };
        let solo = self.data.as_ref().and_then(|data| data.solo.as_ref());
        let file = solo.map(|solo| (solo.segment, fate));
        marks.ending = Some(Ending { session: self.id, is_logged, file });
        let ticket = engine.log.enqueue(records, Purpose::Store, marks, now_ms)?;
        if exists && let Some(Some(blob)) = engine.indexed(shard.edit(&digest)) {
            blob.links_coming += 1;
        }
        engine.leases.grant(self.repository, &digest, now_ms);
        Ok(ticket)
    }

    /// Reads the unit being filled back from the file.
    async fn unpark(&mut self) -> Result<(), UploadError> {
        let Some(data) = self.data.as_mut() else { return Ok(()) };
        data.settle_hash().await;
        let Some(solo) = data.solo.as_mut().filter(|_| data.parked_bytes > 0) else { return Ok(()) };
        solo.settle(1).await.map_err(write_error)?;
        let (file, offset, len) = (solo.file(), solo.written_bytes, data.parked_bytes);
        let read = self.engine.pool.run(move || {
            let mut buffer = AlignedBuffer::zeroed(aligned(len));
            file.read_at(buffer.as_mut_slice(), PAYLOAD_OFFSET_BYTES + offset)?;
            Ok(buffer)
        });
        let read = read.await.unwrap_or_else(|| Err(closing())).map_err(UploadError::Unreadable)?;
        data.keep_hashed(&self.engine, &read.as_slice()[..len]);
        data.parked_bytes = 0;
        Ok(())
    }

    /// Ends the session because of `error`, where the error means that; frees its bytes.
    async fn fail(&mut self, error: UploadError) -> UploadError {
        let ends = match &error {
            UploadError::Io(_) => true,
            UploadError::Refused(Refusal::NoSpace | Refusal::Poisoned) => true,
            // After a failed write there is a hole in the file, whatever the failure was called.
            UploadError::Refused(_) => {
                self.data.as_ref().and_then(|data| data.solo.as_ref()).is_some_and(|solo| solo.is_broken)
            }
            UploadError::Unknown
            | UploadError::Busy
            | UploadError::TooMany
            | UploadError::Mismatch { .. }
            | UploadError::TooLarge { .. }
            | UploadError::Unreadable(_) => false,
        };
        if ends && let Some(data) = self.data.take() {
            // What the log does not take in now, it is told when sessions expire.
            let _ = end(&self.engine, self.id, *data, 0).await;
        }
        error
    }

    /// Ends a session that nobody has open, and frees its bytes. They are not looked at: who cannot read them can still end it.
    pub(crate) async fn abort(
        engine: &Arc<Engine>,
        repository: RepositoryKey,
        id: SessionId,
        now_ms: u64,
    ) -> Result<(), UploadError> {
        // At time 0, which is no use of it: when the log does not take its end in, it is as old as before.
        match engine.sessions.open(repository, id, 0)? {
            Opened::Ready(data) => end(engine, id, *data, now_ms).await?,
            Opened::Stored(logged) => {
                let stored = Reopening { engine, id, is_done: false };
                let told = tell_end_of(engine, id, Some(logged.record.segment), now_ms)?;
                stored.done();
                engine.sessions.end(id, true);
                engine.wait(told).await?;
            }
        }
        Ok(())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let Some(mut data) = self.data.take() else { return };
        if self.when_dropped == WhenDropped::Ends {
            drop(end_unattended(&self.engine, self.id, *data, 0));
            return;
        }
        if let Some(solo) = data.solo.as_mut() {
            // The unit being filled waits in the file, not in memory; whoever opens the session waits for the write.
            let unit = data.unit.take().filter(|unit| data.parked_bytes == 0 && unit.len_bytes() > 0);
            if let Some(unit) = unit {
                solo.submit_partial(&self.engine, unit.as_slice());
                data.parked_bytes = unit.len_bytes();
                let (unit, from) = (Arc::new(unit), data.hashed_bytes);
                data.hash(&self.engine, Piece { unit, from, first_block: None });
            }
            data.hashed_bytes = 0;
        }
        self.engine.sessions.put_back(self.id, data);
    }
}

impl SessionData {
    /// The bytes that are in no full unit.
    fn rest(&self) -> &[u8] {
        if self.solo.is_some() {
            self.unit.as_ref().map(Unit::as_slice).unwrap_or_default()
        } else {
            &self.tail
        }
    }

    /// Fills a unit with bytes that are in the hash already.
    fn keep_hashed(&mut self, engine: &Engine, bytes: &[u8]) {
        let mut unit = engine.units.lend(&*engine.disk);
        unit.push(bytes);
        (self.unit, self.hashed_bytes) = (Some(unit), bytes.len());
    }

    /// Hands bytes to the hash, behind those that it has.
    fn hash(&mut self, engine: &Engine, piece: Piece) {
        let Some(solo) = &self.solo else { return };
        let lane = self.lane.get_or_insert_with(|| Lane::new(self.hasher.clone(), solo.target(engine)));
        lane.push(&engine.hash_threads, piece);
    }

    /// Waits for the hash, and takes in the bytes that it lacks: afterwards it is that of all bytes up to `offset_bytes`, and the
    /// file has the checksums of all full units.
    async fn settle_hash(&mut self) {
        if let Some(lane) = &self.lane {
            lane.settle(1).await;
        }
        if let (Some(lane), Some(solo)) = (self.lane.take(), &mut self.solo) {
            let (hasher, crcs) = lane.finish();
            self.hasher = hasher;
            solo.crcs.extend(crcs);
        }
        if let Some(unit) = &self.unit {
            self.hasher.update(unit.as_slice().get(self.hashed_bytes..).unwrap_or_default());
            self.hashed_bytes = unit.len_bytes();
        }
    }
}

impl Mark {
    /// Keeps the unit that is being written out, when the mark lies within it.
    fn keep(&mut self, unit: &[u8], unit_offset_bytes: u64) {
        let within =
            self.offset_bytes.checked_sub(unit_offset_bytes).and_then(|len| usize::try_from(len).ok());
        if let Some(len) = within.filter(|len| *len < unit.len())
            && self.tail.is_none()
        {
            self.tail = Some(unit[..len].to_vec());
        }
    }
}

fn closing() -> io::Error {
    io::Error::other("the store is closing")
}

/// A failed write harms its upload alone.
fn write_error(error: io::Error) -> UploadError {
    refusal_of(&error).map_or(UploadError::Io(error), UploadError::Refused)
}

/// A failed flush has poisoned the store; anything else harms the upload alone.
fn solo_error(engine: &Engine, error: io::Error) -> UploadError {
    match engine.health.refusal() {
        Some(Refusal::Poisoned) => UploadError::Refused(Refusal::Poisoned),
        _ => write_error(error),
    }
}
