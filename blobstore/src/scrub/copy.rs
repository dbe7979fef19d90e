//! One copy of a blob, read past the page cache and held against its checksums. Everything here blocks on the disk.

use std::io;

use crate::buffer::AlignedBuffer;
use crate::digest::Digest;
use crate::disk::{Access, File};
use crate::engine::Engine;
use crate::format::checkpoint::Location;
use crate::format::payload::{PAYLOAD_HEADER_BYTES, PayloadHeader};
use crate::format::seal::Place;
use crate::format::solo::{PAYLOAD_OFFSET_BYTES, block_place};
use crate::format::{ALIGN_BYTES, BLOCK_BYTES, aligned};
use crate::solo::{OpenedSolo, SealedSolo};
use crate::sync::Arc;

/// A blob that is to be read, and where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) digest: Digest,
    pub(super) len_bytes: u64,
    pub(super) location: Location,
}

impl Wanted {
    pub(super) fn blocks(&self) -> u64 {
        self.len_bytes.div_ceil(BLOCK_BYTES as u64)
    }
}

/// A copy whose checksums were read and are sealed.
pub(super) struct Copy {
    wanted: Wanted,
    file: Arc<dyn File>,
    sums: Sums,
    window: Window,
}

enum Sums {
    Inline(Place, Box<PayloadHeader>),
    Solo(Arc<SealedSolo>),
}

/// What was read.
pub(super) enum Found<T> {
    Good(T),
    /// Not what was written.
    Bad,
}

impl Copy {
    /// Opens the copy and reads its checksums, and with those of an inline blob its first block. Gives the bytes read, too.
    pub(super) fn open(engine: &Engine, wanted: &Wanted) -> io::Result<(Found<Copy>, u64)> {
        match wanted.location {
            Location::Inline(place) => {
                let file = engine.disk.open(&place.segment.log_name(), Access::Direct)?;
                let mut window = Window::default();
                let first = BLOCK_BYTES.min(usize::try_from(wanted.len_bytes).unwrap_or(usize::MAX));
                let read = window.fetch(&*file, place.offset_bytes, PAYLOAD_HEADER_BYTES + first);
                let Some(bytes) = whole(read)? else { return Ok((Found::Bad, 0)) };
                let header = PayloadHeader::decode(bytes, &engine.key, place).filter(|header| {
                    header.digest == wanted.digest && header.len_bytes as u64 == wanted.len_bytes
                });
                let read_bytes = window.read_bytes;
                let Some(header) = header else { return Ok((Found::Bad, read_bytes)) };
                let sums = Sums::Inline(place, Box::new(header));
                Ok((Found::Good(Copy { wanted: *wanted, file, sums, window }), read_bytes))
            }
            Location::Solo { segment, epoch, trailer } => {
                let (digest, len_bytes) = (&wanted.digest, wanted.len_bytes);
                let read_bytes = wanted.blocks() * 4 + ALIGN_BYTES as u64;
                match engine.open_solo(segment, epoch, &trailer, digest, len_bytes, Access::Direct)? {
                    OpenedSolo::Intact(solo) => {
                        let file = Arc::clone(&solo.file);
                        let (sums, window) = (Sums::Solo(solo), Window::default());
                        Ok((Found::Good(Copy { wanted: *wanted, file, sums, window }), read_bytes))
                    }
                    OpenedSolo::Damaged(_) => Ok((Found::Bad, read_bytes)),
                }
            }
        }
    }

    pub(super) fn is_of(&self, wanted: &Wanted) -> bool {
        self.wanted == *wanted
    }

    /// Reads and checks a block. Gives the bytes read, too.
    pub(super) fn block(&mut self, engine: &Engine, number: u64) -> io::Result<(Found<&[u8]>, u64)> {
        let start = match &self.sums {
            Sums::Inline(place, _) => place.offset_bytes + PAYLOAD_HEADER_BYTES as u64,
            Sums::Solo(_) => PAYLOAD_OFFSET_BYTES,
        };
        let skipped_bytes = number * BLOCK_BYTES as u64;
        let left = usize::try_from(self.wanted.len_bytes.saturating_sub(skipped_bytes)).unwrap_or(usize::MAX);
        let before = self.window.read_bytes;
        let read = self.window.fetch(&*self.file, start + skipped_bytes, left.min(BLOCK_BYTES));
        let Some(bytes) = whole(read)? else { return Ok((Found::Bad, 0)) };
        let index = usize::try_from(number).unwrap_or(usize::MAX);
        let is_intact = match &self.sums {
            Sums::Inline(place, header) => header.block_is_intact(&engine.key, *place, index, bytes),
            Sums::Solo(solo) => {
                let crc = engine.key.block_crc(block_place(solo.segment, solo.epoch, number), bytes);
                solo.crcs.get(index) == Some(&crc)
            }
        };
        let read_bytes = self.window.read_bytes - before;
        if !is_intact {
            return Ok((Found::Bad, read_bytes));
        }
        // Again, because the compiler takes the first one as lent on both ways.
        let held = self.window.held(start + skipped_bytes, left.min(BLOCK_BYTES)).unwrap_or_default();
        Ok((Found::Good(held), read_bytes))
    }
}

/// `None` when the file ended before its time.
fn whole(read: io::Result<&[u8]>) -> io::Result<Option<&[u8]>> {
    match read {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

/// The stretch of a file that was read last, with the alignment that reads past the page cache need.
#[derive(Default)]
struct Window {
    buffer: Option<AlignedBuffer>,
    start: u64,
    len: usize,
    read_bytes: u64,
}

impl Window {
    fn fetch(&mut self, file: &dyn File, offset_bytes: u64, len: usize) -> io::Result<&[u8]> {
        if self.held(offset_bytes, len).is_none() {
            let start = offset_bytes / ALIGN_BYTES as u64 * ALIGN_BYTES as u64;
            let skipped = usize::try_from(offset_bytes - start).unwrap_or(0);
            let wanted = aligned(skipped + len);
            let buffer = match self.buffer.take() {
                Some(buffer) if buffer.as_slice().len() >= wanted => self.buffer.insert(buffer),
                _ => self.buffer.insert(AlignedBuffer::zeroed(wanted)),
            };
            self.len = 0;
            file.read_at(&mut buffer.as_mut_slice()[..wanted], start)?;
            (self.start, self.len) = (start, wanted);
            self.read_bytes += wanted as u64;
        }
        self.held(offset_bytes, len).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn held(&self, offset_bytes: u64, len: usize) -> Option<&[u8]> {
        let from = usize::try_from(offset_bytes.checked_sub(self.start)?).ok()?;
        let to = from.checked_add(len).filter(|to| *to <= self.len)?;
        self.buffer.as_ref()?.as_slice().get(from..to)
    }
}
