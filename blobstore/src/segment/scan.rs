//! Reads a log segment batch by batch, and tells a torn tail from damage.
//!
//! The rule: batches are written one at a time, each durable before the next. So an invalid place with a valid batch behind
//! it was once valid: that is damage. An invalid place with nothing valid behind it is where the log ended, or where a write
//! was torn that nobody was told of. Where the next segment's header states the end, the statement decides.
//!
//! Recovery and the offline checker both read through here.

use std::io;

use bytes::Bytes;

use crate::buffer::AlignedBuffer;
use crate::disk::File;
use crate::format::batch::{BATCH_HEADER_BYTES, RawBatchHeader, ValidBatch, payload_place};
use crate::format::payload::{PAYLOAD_HEADER_BYTES, PayloadHeader};
use crate::format::record::Body;
use crate::format::seal::{Key, Place, Seal};
use crate::format::segment::{HEADER_BYTES, SegmentHeader};
use crate::format::{ALIGN_BYTES, BLOCK_BYTES, SegmentId, aligned};

use crate::digest::Digest;

const ALIGN: u64 = ALIGN_BYTES as u64;

/// How much is read at once, in bytes.
const WINDOW_BYTES: usize = 1024 * 1024;

/// What comes next in a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// A valid batch.
    Batch(ValidBatch),
    /// A range that should hold batches and does not. It is empty when a valid batch does not continue the one before it.
    Damage {
        /// Offset of its first byte.
        from_bytes: u64,
        /// Offset behind its last byte.
        to_bytes: u64,
    },
    /// No batch from here on.
    End {
        /// Offset behind the last batch.
        at_bytes: u64,
    },
}

/// A pass over one log segment.
pub struct Scan<'a> {
    window: Window<'a>,
    key: &'a Key,
    place: Place,
    /// The end that the next segment states.
    stated_end: Option<u64>,
    /// Seal that the next batch continues; `None` behind damage, where it is not known.
    seal: Option<Seal>,
    /// A batch that was found behind damage and is yet to be handed out.
    found: Option<ValidBatch>,
}

impl<'a> Scan<'a> {
    /// Begins behind the header of the segment, whose seal is unknown when it is damaged. `stated_end` is what the next segment's header says of this one.
    ///
    /// # Errors
    /// Whatever the disk says.
    pub fn new(
        file: &'a dyn File,
        key: &'a Key,
        header: &SegmentHeader,
        header_seal: Option<Seal>,
        stated_end: Option<u64>,
    ) -> io::Result<Scan<'a>> {
        let place = Place { segment: header.id, epoch: header.epoch, offset_bytes: HEADER_BYTES as u64 };
        Ok(Scan { window: Window::new(file)?, key, place, stated_end, seal: header_seal, found: None })
    }

    /// Goes to `offset_bytes`, which a checkpoint names; the seal before is not known there.
    pub fn skip_to(&mut self, offset_bytes: u64) {
        if offset_bytes > self.place.offset_bytes {
            self.place.offset_bytes = offset_bytes;
            self.seal = None;
        }
    }

    /// Goes on where an earlier scan stopped: at `offset_bytes`, behind a batch of that seal, when it is known.
    pub fn go_on(&mut self, offset_bytes: u64, seal: Option<Seal>) {
        (self.place.offset_bytes, self.seal) = (offset_bytes, seal);
    }

    /// What comes next. After [`Found::End`] it stays at the end.
    ///
    /// # Errors
    /// Whatever the disk says; an unreadable place is not taken for the end of the log.
    pub fn next_found(&mut self) -> io::Result<Found> {
        if let Some(batch) = self.found.take() {
            return Ok(self.pass(batch));
        }
        let from_bytes = self.place.offset_bytes;
        let end = self.stated_end.unwrap_or(self.window.file_len);
        if from_bytes >= end {
            return Ok(Found::End { at_bytes: from_bytes });
        }
        if let Some(batch) = self.batch_at(from_bytes)? {
            let continues = self.seal.is_none_or(|seal| batch.continues(&seal));
            if continues {
                return Ok(self.pass(batch));
            }
            self.found = Some(batch);
            return Ok(Found::Damage { from_bytes, to_bytes: from_bytes });
        }
        let mut offset = from_bytes + ALIGN;
        while offset < end {
            if let Some(batch) = self.batch_at(offset)? {
                self.found = Some(batch);
                return Ok(Found::Damage { from_bytes, to_bytes: offset });
            }
            offset += ALIGN;
        }
        if self.stated_end.is_some() {
            self.place.offset_bytes = end;
            self.seal = None;
            return Ok(Found::Damage { from_bytes, to_bytes: end });
        }
        Ok(Found::End { at_bytes: from_bytes })
    }

    /// Seal of the last batch handed out, or of the header.
    pub fn seal(&self) -> Option<Seal> {
        self.seal
    }

    fn pass(&mut self, batch: ValidBatch) -> Found {
        self.place.offset_bytes = batch.place.offset_bytes + batch.batch_len as u64;
        // What stands behind a repaired range continues what was there before.
        self.seal = (!batch.repaired).then_some(batch.seal);
        Found::Batch(batch)
    }

    fn batch_at(&mut self, offset_bytes: u64) -> io::Result<Option<ValidBatch>> {
        let Some(head) = self.window.fetch(offset_bytes, BATCH_HEADER_BYTES)? else { return Ok(None) };
        let Some(raw) = RawBatchHeader::decode(head) else { return Ok(None) };
        let wanted = BATCH_HEADER_BYTES + raw.records_len;
        let Some(bytes) = self.window.fetch(offset_bytes, wanted)? else { return Ok(None) };
        let (header, records) = bytes.split_at(BATCH_HEADER_BYTES);
        let place = Place { offset_bytes, ..self.place };
        Ok(raw
            .validate(header, records, self.key, place)
            .filter(|batch| offset_bytes + batch.batch_len as u64 <= self.window.file_len))
    }
}

/// The epoch of the first valid batch of the segment called `id`, whatever its header looks like; `None` when there is none: then
/// the file was made and never used.
///
/// # Errors
/// Whatever the disk says.
pub fn epoch_of(file: &dyn File, key: &Key, id: SegmentId) -> io::Result<Option<u32>> {
    let mut window = Window::new(file)?;
    let mut offset_bytes = HEADER_BYTES as u64;
    while offset_bytes < window.file_len {
        let raw = window.fetch(offset_bytes, BATCH_HEADER_BYTES)?.and_then(RawBatchHeader::decode);
        if let Some(raw) = raw
            && let Some(bytes) = window.fetch(offset_bytes, BATCH_HEADER_BYTES + raw.records_len)?
        {
            let (header, records) = bytes.split_at(BATCH_HEADER_BYTES);
            let place = Place { segment: id, epoch: raw.stated_epoch(), offset_bytes };
            if raw.validate(header, records, key, place).is_some() {
                return Ok(Some(place.epoch));
            }
        }
        offset_bytes += ALIGN;
    }
    Ok(None)
}

/// The digests of those blobs of a batch whose payload is not what was written.
///
/// # Errors
/// Whatever the disk says.
pub fn damaged_payloads(file: &dyn File, key: &Key, batch: &ValidBatch) -> io::Result<Vec<Digest>> {
    let mut window = Window::new(file)?;
    let mut damaged = Vec::new();
    for record in &batch.records {
        let Body::Blob { digest, len_bytes, payload_offset_bytes } = record.body.said() else { continue };
        let place = payload_place(batch.place, *payload_offset_bytes);
        let len = usize::try_from(*len_bytes).unwrap_or(usize::MAX);
        if !payload_is_intact(&mut window, key, place, digest, len)? {
            damaged.push(*digest);
        }
    }
    Ok(damaged)
}

/// Reads payloads of a segment, one behind the other.
pub(crate) struct Payloads<'a> {
    window: Window<'a>,
    key: &'a Key,
}

impl<'a> Payloads<'a> {
    pub(crate) fn new(file: &'a dyn File, key: &'a Key) -> io::Result<Payloads<'a>> {
        Ok(Payloads { window: Window::new(file)?, key })
    }

    /// The payload whose header lies at `place`; `None` when it is not what was written.
    pub(crate) fn read(&mut self, place: Place, digest: &Digest, len: usize) -> io::Result<Option<Bytes>> {
        if !payload_is_intact(&mut self.window, self.key, place, digest, len)? {
            return Ok(None);
        }
        let start = place.offset_bytes + PAYLOAD_HEADER_BYTES as u64;
        Ok(self.window.fetch(start, len)?.map(Bytes::copy_from_slice))
    }
}

fn payload_is_intact(
    window: &mut Window<'_>,
    key: &Key,
    place: Place,
    digest: &Digest,
    len: usize,
) -> io::Result<bool> {
    let header = window
        .fetch(place.offset_bytes, PAYLOAD_HEADER_BYTES)?
        .and_then(|bytes| PayloadHeader::decode(bytes, key, place))
        .filter(|header| header.digest == *digest && header.len_bytes == len);
    let Some(header) = header else { return Ok(false) };
    let start = place.offset_bytes + PAYLOAD_HEADER_BYTES as u64;
    for (index, from) in (0..len).step_by(BLOCK_BYTES).enumerate() {
        let block_len = BLOCK_BYTES.min(len - from);
        match window.fetch(start + from as u64, block_len)? {
            Some(block) if header.block_is_intact(key, place, index, block) => {}
            _ => return Ok(false),
        }
    }
    Ok(true)
}

/// A stretch of a file, read past the page cache: after a failed flush the cache may show what the disk does not hold.
struct Window<'a> {
    file: &'a dyn File,
    file_len: u64,
    buffer: AlignedBuffer,
    start: u64,
    len: usize,
}

impl<'a> Window<'a> {
    fn new(file: &'a dyn File) -> io::Result<Window<'a>> {
        let file_len = file.len_bytes()? / ALIGN * ALIGN;
        Ok(Window { file, file_len, buffer: AlignedBuffer::zeroed(0), start: 0, len: 0 })
    }

    /// The bytes at `offset`; `None` when the file ends before.
    fn fetch(&mut self, offset: u64, len: usize) -> io::Result<Option<&[u8]>> {
        let beyond = offset.checked_add(len as u64).is_none_or(|end| end > self.file_len);
        if beyond {
            return Ok(None);
        }
        let held = offset >= self.start && offset + len as u64 <= self.start + self.len as u64;
        if !held {
            let start = offset / ALIGN * ALIGN;
            let skipped = usize::try_from(offset - start).unwrap_or(0);
            let rest = usize::try_from(self.file_len - start).unwrap_or(usize::MAX);
            let wanted = aligned(skipped + len).max(WINDOW_BYTES).min(rest);
            if self.buffer.as_slice().len() < wanted {
                self.buffer = AlignedBuffer::zeroed(wanted);
            }
            self.len = 0;
            self.file.read_at(&mut self.buffer.as_mut_slice()[..wanted], start)?;
            (self.start, self.len) = (start, wanted);
        }
        let from = usize::try_from(offset - self.start).unwrap_or(usize::MAX);
        Ok(self.buffer.as_slice().get(from..from + len))
    }
}
