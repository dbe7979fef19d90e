//! Reading blobs: every block is checked against its checksum for every answer.
//!
//! What must stay true: no byte leaves that does not match. A block that is bad is read once more past the page cache; when it is
//! bad there as well, the blob is quarantined: unknown to everybody until it is pushed again.

use std::io;

use bytes::Bytes;

use crate::buffer::AlignedBuffer;
use crate::digest::Digest;
use crate::disk::{Access, DIRECT_ALIGN_BYTES, Disk, File};
use crate::engine::Engine;
use crate::error::ReadError;
use crate::format::batch::NewRecord;
use crate::format::checkpoint::Location;
use crate::format::payload::{PAYLOAD_HEADER_BYTES, PayloadHeader};
use crate::format::record::Body;
use crate::format::seal::Place;
use crate::format::solo::{PAYLOAD_OFFSET_BYTES, block_place};
use crate::format::{BLOCK_BYTES, SegmentId};
use crate::log::{Marks, Purpose};
use crate::repository::RepositoryKey;
use crate::solo::{OpenedSolo, SealedSolo};
use crate::sync::{Arc, Ordering};

/// An open blob. It stays readable when the blob is deleted meanwhile.
pub struct BlobReader {
    engine: Arc<Engine>,
    repository: RepositoryKey,
    digest: Digest,
    len_bytes: u64,
    source: Source,
    /// The block read last: parallel and small ranges hit it again.
    block: Option<(u64, Bytes)>,
}

#[derive(Clone)]
enum Source {
    Inline { file: Arc<dyn File>, place: Place, header: Option<Arc<PayloadHeader>> },
    Solo { location: Location, open: Option<Arc<SealedSolo>> },
}

impl std::fmt::Debug for BlobReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlobReader").field("digest", &self.digest).finish_non_exhaustive()
    }
}

/// What reading a block gave.
enum Block {
    Intact(Bytes, Source),
    /// Not what was written, at this offset of this file.
    Damaged {
        segment: SegmentId,
        offset_bytes: u64,
    },
}

impl BlobReader {
    pub(crate) fn open(
        engine: Arc<Engine>,
        repository: RepositoryKey,
        digest: Digest,
    ) -> Result<BlobReader, ReadError> {
        let (len_bytes, source) = locate(&engine, repository, &digest)?;
        Ok(BlobReader { engine, repository, digest, len_bytes, source, block: None })
    }

    /// Length of the blob in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// Verified bytes from `from_bytes` on: at least one, at most to `to_bytes` (exclusive) and to the end of the 256 KiB block.
    ///
    /// # Errors
    /// `Range` when `from_bytes < to_bytes <= len_bytes()` does not hold; `Corrupt`, `Io`.
    pub async fn read(&mut self, from_bytes: u64, to_bytes: u64) -> Result<Bytes, ReadError> {
        if from_bytes >= to_bytes || to_bytes > self.len_bytes {
            return Err(ReadError::Range { from_bytes, to_bytes, len_bytes: self.len_bytes });
        }
        let number = from_bytes / BLOCK_BYTES as u64;
        let block = match &self.block {
            Some((held, block)) if *held == number => block.clone(),
            _ => {
                let block = self.verified_block(number).await?;
                self.block = Some((number, block.clone()));
                block
            }
        };
        let start = number * BLOCK_BYTES as u64;
        let from = usize::try_from(from_bytes - start).unwrap_or(usize::MAX);
        let to = usize::try_from(to_bytes - start).unwrap_or(usize::MAX).min(block.len());
        Ok(block.slice(from..to))
    }

    async fn verified_block(&mut self, number: u64) -> Result<Bytes, ReadError> {
        let mut relocated = false;
        loop {
            let outcome = match self.read_block(number, Access::Cached).await {
                Ok(Block::Damaged { .. }) => self.read_block(number, Access::Direct).await,
                outcome => outcome,
            };
            return match outcome {
                Ok(Block::Intact(bytes, source)) => {
                    self.source = source;
                    Ok(bytes)
                }
                Ok(Block::Damaged { segment, offset_bytes }) => {
                    quarantine(&self.engine, &self.digest, &self.source);
                    Err(ReadError::Corrupt { digest: self.digest, segment, offset_bytes })
                }
                // The file was replaced or removed between looking it up and opening it. Look once more.
                Err(error) if error.kind() == io::ErrorKind::NotFound && !relocated => {
                    relocated = true;
                    let (_, source) = locate(&self.engine, self.repository, &self.digest)?;
                    self.source = source;
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    quarantine(&self.engine, &self.digest, &self.source);
                    let segment = self.source.segment();
                    Err(ReadError::Corrupt { digest: self.digest, segment, offset_bytes: 0 })
                }
                Err(error) => Err(ReadError::Io { digest: self.digest, error }),
            };
        }
    }

    async fn read_block(&self, number: u64, access: Access) -> io::Result<Block> {
        let engine = Arc::clone(&self.engine);
        let (source, digest, len_bytes) = (self.source.clone(), self.digest, self.len_bytes);
        let segment = self.source.segment();
        let read =
            self.engine.pool.run(move || source.read_block(&engine, &digest, len_bytes, number, access));
        match read.await.unwrap_or_else(|| Err(io::Error::other("the store is closing"))) {
            // The file lost its end.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Ok(Block::Damaged { segment, offset_bytes: number * BLOCK_BYTES as u64 })
            }
            outcome => outcome,
        }
    }
}

fn locate(engine: &Engine, repository: RepositoryKey, digest: &Digest) -> Result<(u64, Source), ReadError> {
    let shard = engine.locator.read(digest);
    let blob = shard.linked(repository, digest).ok_or(ReadError::Unknown)?;
    let location = blob.location.ok_or(ReadError::Unknown)?;
    let source = match location {
        Location::Inline(place) => {
            let file = engine.segments.file(place.segment).ok_or(ReadError::Unknown)?;
            Source::Inline { file, place, header: None }
        }
        Location::Solo { .. } => Source::Solo { location, open: None },
    };
    Ok((blob.len_bytes, source))
}

/// Sets a blob aside: at once in memory, and in the log for after a restart.
fn quarantine(engine: &Engine, digest: &Digest, source: &Source) {
    let mut shard = engine.locator.write(digest);
    let Some(blob) = shard.blobs.get_mut(digest) else { return };
    // Pushed again or moved meanwhile: what was bad is not what is served.
    if blob.quarantined || blob.location != Some(source.location()) {
        return;
    }
    blob.quarantined = true;
    engine.quarantines.fetch_add(1, Ordering::Relaxed);
    let record = NewRecord { body: Body::Corrupt { digest: *digest }, payload: Bytes::new() };
    // When it cannot be recorded, the next reader finds the damage again.
    drop(engine.log.enqueue(vec![record], Purpose::Reclaim, Marks::default(), 0));
}

impl Source {
    fn segment(&self) -> SegmentId {
        match self.location() {
            Location::Inline(place) => place.segment,
            Location::Solo { segment, .. } => segment,
        }
    }

    fn location(&self) -> Location {
        match self {
            Source::Inline { place, .. } => Location::Inline(*place),
            Source::Solo { location, .. } => *location,
        }
    }

    /// Reads and checks one block. Blocks on the disk.
    fn read_block(
        self,
        engine: &Engine,
        digest: &Digest,
        len_bytes: u64,
        number: u64,
        access: Access,
    ) -> io::Result<Block> {
        let start = number * BLOCK_BYTES as u64;
        let len = usize::try_from(len_bytes - start).unwrap_or(usize::MAX).min(BLOCK_BYTES);
        match self {
            Source::Inline { file, place, header } => read_inline(
                engine,
                digest,
                InlineBlock { file, place, header, number, len, len_bytes },
                access,
            ),
            Source::Solo { location, open } => {
                read_solo(engine, digest, SoloBlock { location, open, number, len, len_bytes }, access)
            }
        }
    }
}

struct InlineBlock {
    file: Arc<dyn File>,
    place: Place,
    header: Option<Arc<PayloadHeader>>,
    number: u64,
    len: usize,
    len_bytes: u64,
}

fn read_inline(engine: &Engine, digest: &Digest, block: InlineBlock, access: Access) -> io::Result<Block> {
    let InlineBlock { file, place, header, number, len, len_bytes } = block;
    let name = place.segment.log_name();
    let index = usize::try_from(number).unwrap_or(usize::MAX);
    let payload_offset = place.offset_bytes + PAYLOAD_HEADER_BYTES as u64;
    let damaged = Block::Damaged { segment: place.segment, offset_bytes: place.offset_bytes };
    // The first read brings header and first block in one.
    let (header, bytes) = match header.filter(|_| access == Access::Cached) {
        Some(header) => {
            let from = payload_offset + number * BLOCK_BYTES as u64;
            (header, read_range(&*engine.disk, &file, &name, from, len, access)?)
        }
        None => {
            let wanted = if number == 0 { PAYLOAD_HEADER_BYTES + len } else { PAYLOAD_HEADER_BYTES };
            let read = read_range(&*engine.disk, &file, &name, place.offset_bytes, wanted, access)?;
            let header = PayloadHeader::decode(&read, &engine.key, place)
                .filter(|header| header.digest == *digest && header.len_bytes as u64 == len_bytes);
            let Some(header) = header else { return Ok(damaged) };
            let bytes = if number == 0 {
                Bytes::from(read).slice(PAYLOAD_HEADER_BYTES..).to_vec()
            } else {
                let from = payload_offset + number * BLOCK_BYTES as u64;
                read_range(&*engine.disk, &file, &name, from, len, access)?
            };
            (Arc::new(header), bytes)
        }
    };
    if header.block_is_intact(&engine.key, place, index, &bytes) {
        Ok(Block::Intact(Bytes::from(bytes), Source::Inline { file, place, header: Some(header) }))
    } else {
        Ok(damaged)
    }
}

struct SoloBlock {
    location: Location,
    open: Option<Arc<SealedSolo>>,
    number: u64,
    len: usize,
    len_bytes: u64,
}

fn read_solo(engine: &Engine, digest: &Digest, block: SoloBlock, access: Access) -> io::Result<Block> {
    let SoloBlock { location, open, number, len, len_bytes } = block;
    let Location::Solo { segment, epoch, trailer } = location else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let solo = match open.filter(|_| access == Access::Cached) {
        Some(solo) => solo,
        None => match engine.open_solo(segment, epoch, &trailer, digest, len_bytes, access)? {
            OpenedSolo::Intact(solo) => solo,
            OpenedSolo::Damaged(offset_bytes) => return Ok(Block::Damaged { segment, offset_bytes }),
        },
    };
    let offset_bytes = PAYLOAD_OFFSET_BYTES + number * BLOCK_BYTES as u64;
    let bytes = read_range(&*engine.disk, &solo.file, &segment.solo_name(), offset_bytes, len, access)?;
    let expected = usize::try_from(number).ok().and_then(|index| solo.crcs.get(index));
    let actual = engine.key.block_crc(block_place(segment, solo.epoch, number), &bytes);
    if expected == Some(&actual) {
        Ok(Block::Intact(Bytes::from(bytes), Source::Solo { location, open: Some(solo) }))
    } else {
        Ok(Block::Damaged { segment, offset_bytes })
    }
}

/// Reads a range of a file, through the page cache with the handle at hand or past it with a new one.
fn read_range(
    disk: &dyn Disk,
    file: &Arc<dyn File>,
    name: &str,
    offset_bytes: u64,
    len: usize,
    access: Access,
) -> io::Result<Vec<u8>> {
    match access {
        Access::Cached => {
            let mut bytes = vec![0; len];
            file.read_at(&mut bytes, offset_bytes)?;
            Ok(bytes)
        }
        Access::Direct => {
            let align = DIRECT_ALIGN_BYTES as u64;
            let start = offset_bytes / align * align;
            let skipped = usize::try_from(offset_bytes - start).unwrap_or(0);
            let mut buffer = AlignedBuffer::zeroed((skipped + len).next_multiple_of(DIRECT_ALIGN_BYTES));
            disk.open(name, Access::Direct)?.read_at(buffer.as_mut_slice(), start)?;
            Ok(buffer.as_slice()[skipped..skipped + len].to_vec())
        }
    }
}
