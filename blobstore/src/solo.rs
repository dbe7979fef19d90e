//! Solo files: written in place while a large blob is uploaded, then sealed and read.
//!
//! What must stay true: a file is written only by the upload that has its session open, sealed (checksums, trailer, flush) before
//! its SOLO record is enqueued, and never written again after that.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;

use crate::buffer::AlignedBuffer;
use crate::completion::Completion;
use crate::digest::{Algorithm, Digest};
use crate::disk::{Access, Disk, File, Source};
use crate::engine::Engine;
use crate::format::checkpoint::Location;
use crate::format::seal::Seal;
use crate::format::segment::{Content, HEADER_BYTES, SegmentHeader};
use crate::format::solo::{Layout, PAYLOAD_OFFSET_BYTES, Trailer, encode_tail};
use crate::format::{BLOCK_BYTES, SOLO_FOLDER, SegmentId, aligned};
use crate::health::Failed;
use crate::lane::Target;
use crate::mapped::Mapped;
use crate::reader::Pulls;
use crate::repository::SessionId;
use crate::sync::{Arc, AtomicU32, Mutex, Ordering, Weak, lock};
use crate::units::Unit;

/// Bytes of one write: two blocks. Larger writes gain nothing on measured disks; smaller ones cost system calls.
pub(crate) const WRITE_BYTES: usize = 2 * BLOCK_BYTES;

/// Writes of one upload that may be under way: with four a disk took 1.15 times as much as with two from threads, and 1.5 times from a
/// ring (`docs/decisions/0011-what-goes-through-io-uring.md`). With those that may be under way to the hash, and the one
/// that is being filled, an upload takes 3.5 MiB at most.
pub(crate) const IN_FLIGHT_MAX: usize = 4;

/// Space is reserved in steps of this many bytes: few enough system calls, little enough to give back.
const ALLOCATE_STEP_BYTES: u64 = 16 * 1024 * 1024;

const _: () = assert!(WRITE_BYTES.is_multiple_of(BLOCK_BYTES));

/// Hands out ids, remembers folders that exist, and keeps sealed files open.
pub(crate) struct Solos {
    epoch: u32,
    next: AtomicU32,
    folders: Mutex<HashSet<String>>,
    open: Mutex<OpenFiles>,
    open_max: usize,
}

#[derive(Default)]
struct OpenFiles {
    files: HashMap<SegmentId, Arc<SealedSolo>>,
    order: VecDeque<SegmentId>,
}

/// A sealed solo file, open for reading.
#[derive(Debug)]
pub(crate) struct SealedSolo {
    pub(crate) segment: SegmentId,
    pub(crate) epoch: u32,
    pub(crate) file: Arc<dyn File>,
    pub(crate) crcs: Vec<u32>,
    pub(crate) mapped: Mapped,
    pub(crate) pulls: Pulls,
}

impl Solos {
    /// `open_max` sealed files are kept open.
    pub(crate) fn new(epoch: u32, open_max: usize) -> Solos {
        let (folders, open) = (Mutex::default(), Mutex::default());
        Solos { epoch, next: AtomicU32::new(1), folders, open, open_max }
    }

    fn next_id(&self) -> SegmentId {
        let counter = self.next.fetch_add(1, Ordering::Relaxed);
        SegmentId(u64::from(self.epoch) << 32 | u64::from(counter))
    }

    /// Closes a file that is being removed.
    pub(crate) fn forget(&self, segment: SegmentId) {
        let mut open = lock(&self.open);
        if open.files.remove(&segment).is_some() {
            open.order.retain(|other| *other != segment);
        }
    }

    /// A sealed file that is open.
    pub(crate) fn cached(&self, segment: SegmentId) -> Option<Arc<SealedSolo>> {
        lock(&self.open).files.get(&segment).cloned()
    }

    fn keep(&self, solo: &Arc<SealedSolo>) {
        let mut open = lock(&self.open);
        if open.files.insert(solo.segment, Arc::clone(solo)).is_none() {
            open.order.push_back(solo.segment);
        }
        while open.order.len() > self.open_max {
            if let Some(oldest) = open.order.pop_front() {
                open.files.remove(&oldest);
            }
        }
    }
}

/// What a sealed solo file turned out to be.
pub(crate) enum OpenedSolo {
    Intact(Arc<SealedSolo>),
    /// Header or trailer are not what was written, at this offset.
    Damaged(u64),
}

impl Engine {
    /// Opens a sealed solo file and checks its trailer. Blocks on the disk, unless it is open already.
    pub(crate) fn open_solo(
        &self,
        segment: SegmentId,
        epoch: u32,
        trailer_seal: &Seal,
        digest: &Digest,
        len_bytes: u64,
        access: Access,
    ) -> io::Result<OpenedSolo> {
        if access == Access::Cached
            && let Some(solo) = self.solos.cached(segment)
        {
            return Ok(OpenedSolo::Intact(solo));
        }
        let file = self.disk.open(&segment.solo_name(), access)?;
        let Some(layout) = Layout::new(len_bytes) else { return Ok(OpenedSolo::Damaged(0)) };
        let damaged = OpenedSolo::Damaged(layout.trailer_offset_bytes);
        let tail_len = usize::try_from(layout.file_bytes - layout.crcs_offset_bytes).unwrap_or(usize::MAX);
        let mut tail = AlignedBuffer::zeroed(tail_len);
        match file.read_at(tail.as_mut_slice(), layout.crcs_offset_bytes) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(damaged),
            Err(error) => return Err(error),
        }
        let trailer = Trailer::decode(tail.as_slice(), &self.key, segment, epoch, &layout)
            .filter(|trailer| trailer.seal == *trailer_seal && trailer.digest == *digest);
        let Some(trailer) = trailer else { return Ok(damaged) };
        let (mapped, pulls) = (Mapped::default(), Pulls::default());
        let solo = Arc::new(SealedSolo { segment, epoch, file, crcs: trailer.crcs, mapped, pulls });
        if access == Access::Cached {
            self.solos.keep(&solo);
            // Whoever deletes the blob takes it out of the locator first and closes the file then. When it is out already, the
            // file may have been closed before it was kept, and would hold its space for as long as it stays open.
            let shard = self.locator.read(digest);
            let location = shard.location(digest);
            if !matches!(location, Some(Location::Solo { segment: held, .. }) if held == segment) {
                self.solos.forget(segment);
            }
        }
        Ok(OpenedSolo::Intact(solo))
    }
}

/// A solo file while it is written. Offsets are those of the blob; `written_bytes` of it were handed to the disk, in whole
/// units of [`WRITE_BYTES`].
///
/// Dropping it removes the file, unless it was [`SoloWriter::keep`]t.
pub(crate) struct SoloWriter {
    /// Weak, because the engine holds the sessions that hold the writers.
    engine: Weak<Engine>,
    pub(crate) segment: SegmentId,
    pub(crate) epoch: u32,
    file: Arc<dyn File>,
    pub(crate) written_bytes: u64,
    allocated_bytes: u64,
    /// Checksums of the blocks below `written_bytes`, once the hash is settled.
    pub(crate) crcs: Vec<u32>,
    /// Writes and flushes under way, in order. Nothing else touches the file before they are through.
    in_flight: VecDeque<Completion<io::Result<()>>>,
    /// Whether writes under way may overlap the next one.
    overlaps: bool,
    /// Whether a write failed: the file has a hole, and nothing is made of it any more.
    pub(crate) is_broken: bool,
    is_kept: bool,
    /// Whether the file's name is durable.
    pub(crate) name_is_durable: bool,
}

impl SoloWriter {
    /// Makes a file with its header. Blocks on the disk. When its folder cannot be made the store may be poisoned.
    pub(crate) fn create(
        engine: &Arc<Engine>,
        session: SessionId,
        algorithm: Algorithm,
        now_ms: u64,
    ) -> io::Result<SoloWriter> {
        let (segment, file) = loop {
            let segment = engine.solos.next_id();
            let folder = segment.solo_folder();
            if !lock(&engine.solos.folders).contains(&folder) {
                engine.disk.create_dir(&folder).map_err(|error| {
                    // It may be the flush of the folder above that failed: with it, the names of all files to come.
                    let failed = Failed::log_write(error);
                    engine.health.failed(&folder, &failed);
                    failed.error
                })?;
                lock(&engine.solos.folders).insert(folder);
            }
            match engine.disk.create(&segment.solo_name(), ALLOCATE_STEP_BYTES, Access::Direct) {
                Ok(file) => break (segment, file),
                // An epoch is used twice only when the newer superblock was damaged.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        };
        let content = Content::Solo { session, algorithm };
        let header = SegmentHeader { id: segment, epoch: engine.epoch, created_ms: now_ms, content };
        let mut bytes = AlignedBuffer::zeroed(HEADER_BYTES);
        bytes.as_mut_slice().copy_from_slice(&header.encode(&engine.key));
        if let Err(error) = file.write_at(bytes.as_slice(), 0) {
            drop(engine.disk.remove(&segment.solo_name()));
            return Err(error);
        }
        Ok(SoloWriter {
            engine: Arc::downgrade(engine),
            segment,
            epoch: engine.epoch,
            file,
            written_bytes: 0,
            allocated_bytes: ALLOCATE_STEP_BYTES,
            crcs: Vec::new(),
            in_flight: VecDeque::new(),
            overlaps: false,
            is_broken: false,
            is_kept: false,
            name_is_durable: false,
        })
    }

    /// Takes up a file that an earlier opening of the store left. It is kept until [`SoloWriter::adopt`].
    pub(crate) fn reopen(
        engine: &Arc<Engine>,
        segment: SegmentId,
        epoch: u32,
        written_bytes: u64,
        crcs: Vec<u32>,
    ) -> io::Result<SoloWriter> {
        let file = engine.disk.open(&segment.solo_name(), Access::Direct)?;
        let allocated_bytes = file.len_bytes()?;
        let in_flight = VecDeque::new();
        Ok(SoloWriter {
            engine: Arc::downgrade(engine),
            segment,
            epoch,
            file,
            written_bytes,
            allocated_bytes,
            crcs,
            in_flight,
            overlaps: false,
            is_broken: false,
            is_kept: true,
            name_is_durable: false,
        })
    }

    /// The file belongs to somebody else now: to a blob, or to the log, which still names it.
    pub(crate) fn keep(&mut self) {
        self.is_kept = true;
    }

    /// The file belongs to this writer again.
    pub(crate) fn adopt(&mut self) {
        self.is_kept = false;
    }

    pub(crate) fn file(&self) -> Arc<dyn File> {
        Arc::clone(&self.file)
    }

    /// Waits until another write may be handed over.
    ///
    /// # Errors
    /// The first write that failed.
    pub(crate) async fn make_way(&mut self) -> io::Result<()> {
        self.settle(if self.overlaps { 1 } else { IN_FLIGHT_MAX }).await?;
        self.overlaps = false;
        Ok(())
    }

    /// Waits until fewer than `below` writes are under way.
    ///
    /// # Errors
    /// The first write that failed.
    pub(crate) async fn settle(&mut self, below: usize) -> io::Result<()> {
        while self.in_flight.len() >= below.max(1) {
            if let Some(oldest) = self.in_flight.front_mut() {
                let outcome = oldest.await;
                self.in_flight.pop_front();
                if let Err(error) = outcome.unwrap_or_else(|| Err(io::Error::other("the store is closing"))) {
                    self.is_broken = true;
                    return Err(error);
                }
            }
        }
        if self.is_broken { Err(io::Error::other("an earlier write of the upload failed")) } else { Ok(()) }
    }

    /// Where units go, for their checksums.
    pub(crate) fn target(&self, engine: &Engine) -> Target {
        Target { key: engine.key.clone(), segment: self.segment, epoch: self.epoch }
    }

    /// Number of the next unit's first block.
    pub(crate) fn next_block(&self) -> u64 {
        self.written_bytes / BLOCK_BYTES as u64
    }

    /// Hands a full unit to the disk. Its checksums are the caller's to make.
    pub(crate) fn submit_unit(&mut self, engine: &Engine, unit: Arc<Unit>) {
        debug_assert!(unit.len_bytes() == WRITE_BYTES, "only whole units advance the file");
        self.submit(engine, Source::Unit(unit));
        self.written_bytes += WRITE_BYTES as u64;
    }

    /// Writes a unit that is not full yet, to be written again when it is. It is padded with zeros.
    pub(crate) fn submit_partial(&mut self, engine: &Engine, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let mut buffer = engine.disk.lend(aligned(bytes.len()));
        let (filled, padding) = buffer.as_mut_slice().split_at_mut(bytes.len());
        filled.copy_from_slice(bytes);
        padding.fill(0);
        self.submit(engine, Source::Buffer(buffer));
    }

    fn submit(&mut self, engine: &Engine, source: Source) {
        let offset = PAYLOAD_OFFSET_BYTES + self.written_bytes;
        let end = offset + source.as_slice().len() as u64;
        let grow = (end > self.allocated_bytes).then(|| end.next_multiple_of(ALLOCATE_STEP_BYTES));
        self.allocated_bytes = grow.unwrap_or(self.allocated_bytes);
        let file = Arc::clone(&self.file);
        self.in_flight.push_back(match grow {
            Some(len_bytes) => engine.pool.run(move || {
                file.allocate(len_bytes)?;
                file.write_at(source.as_slice(), offset)
            }),
            None => engine.pool.write(file, source, offset),
        });
    }

    /// Goes back to `offset_bytes`, rounded down to a unit; what was written behind is written again.
    pub(crate) fn rewind(&mut self, offset_bytes: u64) {
        let unit = WRITE_BYTES as u64;
        self.written_bytes = self.written_bytes.min(offset_bytes / unit * unit);
        let blocks = usize::try_from(self.written_bytes / BLOCK_BYTES as u64).unwrap_or(usize::MAX);
        self.crcs.truncate(blocks);
        self.overlaps = true;
    }

    /// Seals the file: the rest of the blob, checksums, trailer, exact length, flush, and the flush of its folder. Gives the
    /// trailer's seal.
    ///
    /// # Errors
    /// The first write or flush that failed; a failed flush has poisoned the store.
    pub(crate) async fn seal(
        &mut self,
        engine: &Arc<Engine>,
        rest: &[u8],
        len_bytes: u64,
        digest: Digest,
    ) -> io::Result<Seal> {
        let layout = Layout::new(len_bytes).ok_or(io::ErrorKind::FileTooLarge)?;
        self.settle(1).await?;
        let mut crcs = self.crcs.clone();
        crcs.extend(self.target(engine).checksums(self.next_block(), rest));
        self.submit_partial(engine, rest);
        self.settle(1).await?;
        let (tail, seal) = encode_tail(&engine.key, self.segment, self.epoch, &layout, &digest, &crcs);
        let file = Arc::clone(&self.file);
        let flush = self.flushing(engine);
        self.allocated_bytes = layout.file_bytes;
        // Among the writes under way, so that whoever goes on after this future was dropped waits for it: it writes, and cuts the file,
        // where the next unit would go.
        self.overlaps = true;
        self.in_flight.push_back(engine.pool.run(move || {
            let mut buffer = AlignedBuffer::zeroed(tail.len());
            buffer.as_mut_slice().copy_from_slice(&tail);
            file.allocate(layout.file_bytes)?;
            file.write_at(buffer.as_slice(), layout.crcs_offset_bytes)?;
            file.truncate(layout.file_bytes)?;
            flush()
        }));
        self.settle(1).await?;
        self.name_is_durable = true;
        Ok(seal)
    }

    /// Begins to make everything written so far durable, and the file's name. What is written meanwhile may be durable then, too.
    ///
    /// # Errors
    /// As [`SoloWriter::seal`].
    pub(crate) async fn flush(&mut self, engine: &Arc<Engine>) -> io::Result<Completion<io::Result<()>>> {
        self.settle(1).await?;
        Ok(engine.pool.run(self.flushing(engine)))
    }

    /// The flush of file and name. A failure poisons the store, whether or not anybody waits.
    fn flushing(&self, engine: &Arc<Engine>) -> impl FnOnce() -> io::Result<()> + Send + 'static + use<> {
        let (file, engine) = (Arc::clone(&self.file), Arc::clone(engine));
        let folder = (!self.name_is_durable).then(|| self.segment.solo_folder());
        let name = self.segment.solo_name();
        move || {
            let flushed =
                file.sync().and_then(|()| folder.map_or(Ok(()), |folder| engine.disk.sync_dir(&folder)));
            flushed.map_err(|error| {
                let failed = Failed::flush_ahead(error);
                engine.health.failed(&name, &failed);
                failed.error
            })
        }
    }
}

impl Drop for SoloWriter {
    fn drop(&mut self) {
        if !self.is_kept
            && let Some(engine) = self.engine.upgrade()
        {
            engine.remove_solo(self.segment);
        }
    }
}

/// Removes every solo file that `is_wanted` does not name; gives their number and bytes. Blocks on the disk.
pub(crate) fn sweep(disk: &dyn Disk, is_wanted: impl Fn(SegmentId) -> bool) -> io::Result<(u64, u64)> {
    let (mut files, mut bytes) = (0, 0);
    for number in 0..=0xff_u64 {
        let folder = SegmentId(number).solo_folder();
        for name in disk.list(&folder)? {
            let Some(segment) = SegmentId::from_file_name(&name) else { continue };
            if !is_wanted(segment) {
                let name = format!("{folder}/{name}");
                bytes += disk.open(&name, Access::Cached).and_then(|file| file.len_bytes()).unwrap_or(0);
                disk.remove(&name)?;
                files += 1;
            }
        }
    }
    Ok((files, bytes))
}

/// Makes the folder above the solo folders.
pub(crate) fn make_folder(disk: &dyn Disk) -> io::Result<()> {
    disk.create_dir(SOLO_FOLDER)
}
