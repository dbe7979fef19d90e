//! Where a blob's bytes lie, and how its blocks are read and checked there. Everything here blocks on the disk.

use std::io::{self, IoSliceMut};
use std::sync::OnceLock;

use bytes::Bytes;

use crate::buffer::AlignedBuffer;
use crate::digest::Digest;
use crate::disk::{Access, DIRECT_ALIGN_BYTES, Disk, File};
use crate::engine::Engine;
use crate::format::checkpoint::Location;
use crate::format::payload::{PAYLOAD_HEADER_BYTES, PayloadHeader};
use crate::format::seal::{Key, Place};
use crate::format::solo::{PAYLOAD_OFFSET_BYTES, block_place};
use crate::format::{BLOCK_BYTES, SegmentId, aligned};
use crate::lending::Loan;
use crate::mapped::Pair;
use crate::solo::{OpenedSolo, SealedSolo};
use crate::sync::Arc;

/// Where a blob lies. Header and trailer are kept from the first read on.
#[derive(Clone)]
pub(crate) enum Source {
    Inline { file: Arc<dyn File>, place: Place, header: Option<Arc<PayloadHeader>> },
    Solo { location: Location, open: Option<Arc<SealedSolo>> },
}

/// What reading a block gave.
pub(crate) enum Block {
    Intact(Bytes, Source),
    /// Not what was written, at this offset of this file.
    Damaged {
        segment: SegmentId,
        offset_bytes: u64,
    },
}

/// A block that is to be read.
#[derive(Clone, Copy)]
pub(crate) struct Wanted {
    pub(crate) digest: Digest,
    /// Length of the whole blob.
    pub(crate) len_bytes: u64,
    pub(crate) number: u64,
}

/// A blob whose checksums are known, apart from the engine: blocks that are read ahead must not keep the engine.
#[derive(Clone)]
pub(crate) struct Extent {
    key: Key,
    file: Arc<dyn File>,
    sums: Sums,
    len_bytes: u64,
}

/// A way to a file past the page cache; opened at the first read.
pub(crate) struct Direct {
    disk: Arc<dyn Disk>,
    name: String,
    file: OnceLock<Arc<dyn File>>,
}

#[derive(Clone)]
enum Sums {
    Inline(Place, Arc<PayloadHeader>),
    Solo(Arc<SealedSolo>),
}

/// Length of a block of a blob of `len_bytes`.
fn block_len(len_bytes: u64, number: u64) -> usize {
    let left = len_bytes.saturating_sub(number * BLOCK_BYTES as u64);
    usize::try_from(left).unwrap_or(usize::MAX).min(BLOCK_BYTES)
}

impl Extent {
    fn offset_bytes(&self, number: u64) -> u64 {
        let start = match &self.sums {
            Sums::Inline(place, _) => place.offset_bytes + PAYLOAD_HEADER_BYTES as u64,
            Sums::Solo(_) => PAYLOAD_OFFSET_BYTES,
        };
        start + number * BLOCK_BYTES as u64
    }

    /// A block of a file that is mapped, to be sent, when it is in memory.
    pub(crate) fn mapped_block(&self, pair: &Pair, number: u64) -> Option<Bytes> {
        let (from, len) = self.place_in_file(number)?;
        pair.verified(from, len, |bytes| self.is_intact(number, bytes))
    }

    /// Whether a block of a file that is mapped is in memory.
    pub(crate) fn is_resident(&self, pair: &Pair, number: u64) -> bool {
        self.place_in_file(number).is_some_and(|(from, len)| pair.is_resident(from, len))
    }

    fn place_in_file(&self, number: u64) -> Option<(usize, usize)> {
        Some((usize::try_from(self.offset_bytes(number)).ok()?, block_len(self.len_bytes, number)))
    }

    fn is_intact(&self, number: u64, bytes: &[u8]) -> bool {
        let Ok(index) = usize::try_from(number) else { return false };
        match &self.sums {
            Sums::Inline(place, header) => header.block_is_intact(&self.key, *place, index, bytes),
            Sums::Solo(solo) => {
                let crc = self.key.block_crc(block_place(solo.segment, solo.epoch, number), bytes);
                solo.crcs.get(index) == Some(&crc)
            }
        }
    }

    /// Reads and checks blocks from `first` on, one into each loan; gives those before the first that is not had intact.
    pub(crate) fn read_run(&self, first: u64, loans: Vec<Loan>, direct: Option<&Direct>) -> Vec<Bytes> {
        match direct.and_then(Direct::file) {
            Some(file) => self.read_run_direct(file, first, loans),
            None => self.read_run_cached(first, loans),
        }
    }

    fn read_run_direct(&self, file: &Arc<dyn File>, first: u64, mut loans: Vec<Loan>) -> Vec<Bytes> {
        let numbered = || (first..).map(|number| (number, block_len(self.len_bytes, number)));
        let mut slices: Vec<IoSliceMut<'_>> = numbered()
            .zip(&mut loans)
            // Behind the payload a solo file goes on, aligned.
            .map(|((_, len), loan)| IoSliceMut::new(&mut loan.as_mut_slice()[..aligned(len)]))
            .collect();
        if file.read_vectored_at(&mut slices, self.offset_bytes(first)).is_err() {
            return Vec::new();
        }
        let is_intact =
            |(number, len): (u64, usize), loan: &Loan| self.is_intact(number, &loan.as_ref()[..len]);
        numbered()
            .zip(loans)
            .map_while(|(block, loan)| {
                is_intact(block, &loan).then(|| Bytes::from_owner(loan).slice(..block.1))
            })
            .collect()
    }

    fn read_run_cached(&self, first: u64, loans: Vec<Loan>) -> Vec<Bytes> {
        // Announced as a whole. Left to itself the system caches in large pages: a quarter faster where that memory was in use
        // lately, and two to three times slower where it was not, as in a virtual machine that gives unused memory to its host.
        self.file.will_read(self.offset_bytes(first), (loans.len() * BLOCK_BYTES) as u64);
        let mut blocks = Vec::with_capacity(loans.len());
        for (number, mut loan) in (first..).zip(loans) {
            let len = block_len(self.len_bytes, number);
            let bytes = &mut loan.as_mut_slice()[..len];
            let read = self.file.read_at(bytes, self.offset_bytes(number));
            // Checked at once, while the block is in the processor's cache.
            if read.is_err() || !self.is_intact(number, bytes) {
                break;
            }
            blocks.push(Bytes::from_owner(loan).slice(..len));
        }
        blocks
    }
}

impl Direct {
    pub(crate) fn new(disk: Arc<dyn Disk>, segment: SegmentId) -> Direct {
        Direct { disk, name: segment.solo_name(), file: OnceLock::new() }
    }

    /// None when it cannot be opened any more: the blob was deleted.
    fn file(&self) -> Option<&Arc<dyn File>> {
        if self.file.get().is_none() {
            let opened = self.disk.open(&self.name, Access::Direct).ok()?;
            // Another run of the same reader may have been faster.
            let _ = self.file.set(opened);
        }
        self.file.get()
    }
}

impl Source {
    pub(crate) fn segment(&self) -> SegmentId {
        match self.location() {
            Location::Inline(place) => place.segment,
            Location::Solo { segment, .. } => segment,
        }
    }

    pub(crate) fn location(&self) -> Location {
        match self {
            Source::Inline { place, .. } => Location::Inline(*place),
            Source::Solo { location, .. } => *location,
        }
    }

    /// The blob's extent, once a block of it was read.
    pub(crate) fn extent(&self, key: &Key, len_bytes: u64) -> Option<Extent> {
        let (file, sums) = match self {
            Source::Inline { file, place, header } => {
                (file, Sums::Inline(*place, Arc::clone(header.as_ref()?)))
            }
            Source::Solo { open, .. } => {
                let solo = open.as_ref()?;
                (&solo.file, Sums::Solo(Arc::clone(solo)))
            }
        };
        Some(Extent { key: key.clone(), file: Arc::clone(file), sums, len_bytes })
    }

    /// Reads and checks one block. Past the page cache nothing is used that was read before.
    pub(crate) fn read_block(self, engine: &Engine, wanted: &Wanted, access: Access) -> io::Result<Block> {
        let known = self.extent(&engine.key, wanted.len_bytes).filter(|_| access == Access::Cached);
        let (source, extent) = match (known, self) {
            (Some(extent), source) => (source, extent),
            (None, Source::Inline { file, place, .. }) => {
                let len = block_len(wanted.len_bytes, 0);
                // A small blob comes with its header in one read.
                if wanted.number == 0 && PAYLOAD_HEADER_BYTES + len <= BLOCK_BYTES {
                    return read_small(engine, wanted, file, place, access);
                }
                let head = Range { offset_bytes: place.offset_bytes, len: PAYLOAD_HEADER_BYTES };
                let head = read_range(engine, &file, &place.segment.log_name(), head, access)?;
                let Some(header) = payload_header(engine, wanted, place, &head) else {
                    return Ok(Block::Damaged { segment: place.segment, offset_bytes: place.offset_bytes });
                };
                opened(engine, wanted, Source::Inline { file, place, header: Some(header) })?
            }
            (None, Source::Solo { location, .. }) => {
                let Location::Solo { segment, epoch, trailer } = location else {
                    return Err(io::ErrorKind::InvalidInput.into());
                };
                let (digest, len_bytes) = (&wanted.digest, wanted.len_bytes);
                match engine.open_solo(segment, epoch, &trailer, digest, len_bytes, access)? {
                    OpenedSolo::Intact(solo) => {
                        opened(engine, wanted, Source::Solo { location, open: Some(solo) })?
                    }
                    OpenedSolo::Damaged(offset_bytes) => return Ok(Block::Damaged { segment, offset_bytes }),
                }
            }
        };
        let (segment, name) = match &source {
            Source::Inline { place, .. } => (place.segment, place.segment.log_name()),
            Source::Solo { .. } => (source.segment(), source.segment().solo_name()),
        };
        let offset_bytes = extent.offset_bytes(wanted.number);
        let range = Range { offset_bytes, len: block_len(wanted.len_bytes, wanted.number) };
        let bytes = read_range(engine, &extent.file, &name, range, access)?;
        if extent.is_intact(wanted.number, &bytes) {
            Ok(Block::Intact(bytes, source))
        } else {
            Ok(Block::Damaged { segment, offset_bytes })
        }
    }
}

fn opened(engine: &Engine, wanted: &Wanted, source: Source) -> io::Result<(Source, Extent)> {
    let extent = source.extent(&engine.key, wanted.len_bytes);
    extent.map(|extent| (source, extent)).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

fn payload_header(
    engine: &Engine,
    wanted: &Wanted,
    place: Place,
    bytes: &[u8],
) -> Option<Arc<PayloadHeader>> {
    PayloadHeader::decode(bytes, &engine.key, place)
        .filter(|header| header.digest == wanted.digest && header.len_bytes as u64 == wanted.len_bytes)
        .map(Arc::new)
}

/// Reads an inline blob of one block together with its header.
fn read_small(
    engine: &Engine,
    wanted: &Wanted,
    file: Arc<dyn File>,
    place: Place,
    access: Access,
) -> io::Result<Block> {
    let len = PAYLOAD_HEADER_BYTES + block_len(wanted.len_bytes, 0);
    let range = Range { offset_bytes: place.offset_bytes, len };
    let bytes = read_range(engine, &file, &place.segment.log_name(), range, access)?;
    let header = payload_header(engine, wanted, place, &bytes);
    let payload = bytes.slice(PAYLOAD_HEADER_BYTES..);
    match header.filter(|header| header.block_is_intact(&engine.key, place, 0, &payload)) {
        Some(header) => Ok(Block::Intact(payload, Source::Inline { file, place, header: Some(header) })),
        None => Ok(Block::Damaged { segment: place.segment, offset_bytes: place.offset_bytes }),
    }
}

/// At most one block of a file.
#[derive(Clone, Copy)]
struct Range {
    offset_bytes: u64,
    len: usize,
}

/// Reads a range of a file, through the page cache with the handle at hand or past it with a new one.
fn read_range(
    engine: &Engine,
    file: &Arc<dyn File>,
    name: &str,
    range: Range,
    access: Access,
) -> io::Result<Bytes> {
    match access {
        Access::Cached if range.len == BLOCK_BYTES => {
            let mut loan = engine.lending.lend();
            file.read_at(loan.as_mut_slice(), range.offset_bytes)?;
            Ok(Bytes::from_owner(loan))
        }
        Access::Cached => {
            let mut bytes = vec![0; range.len];
            file.read_at(&mut bytes, range.offset_bytes)?;
            Ok(bytes.into())
        }
        Access::Direct => read_past_the_cache(&*engine.disk, name, range),
    }
}

fn read_past_the_cache(disk: &dyn Disk, name: &str, range: Range) -> io::Result<Bytes> {
    let align = DIRECT_ALIGN_BYTES as u64;
    let start = range.offset_bytes / align * align;
    let skipped = usize::try_from(range.offset_bytes - start).unwrap_or(0);
    let mut buffer = AlignedBuffer::zeroed((skipped + range.len).next_multiple_of(DIRECT_ALIGN_BYTES));
    disk.open(name, Access::Direct)?.read_at(buffer.as_mut_slice(), start)?;
    Ok(Bytes::copy_from_slice(&buffer.as_slice()[skipped..skipped + range.len]))
}
