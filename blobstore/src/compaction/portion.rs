//! Reading the segment that is compacted, a portion at a time.

use std::io;

use bytes::Bytes;

use super::item::Item;
use super::{Pass, Position};
use crate::buffer::AlignedBuffer;
use crate::digest::Digest;
use crate::disk::File;
use crate::engine::Engine;
use crate::format::batch::payload_place;
use crate::format::checkpoint::Location;
use crate::format::record::{Body, Said};
use crate::format::seal::{Key, Place};
use crate::format::segment::{HEADER_BYTES, SegmentHeader};
use crate::format::{Lsn, SegmentId};
use crate::segment::scan::{Found, Payloads, Scan};

/// A portion is closed past this length of what it copies, in bytes: commits that arrive meanwhile share the batch with it, and wait
/// as much longer as it takes to write so much.
const PORTION_BYTES_SOFT: u64 = 256 * 1024;

/// A portion is closed when so much of the segment was gone through, in bytes, whatever was found: a storage thread is busy with it,
/// and the caller learns how much was read only then.
const READ_BYTES_SOFT: u64 = 4 * 1024 * 1024;

/// Part of a segment.
#[derive(Default)]
pub(super) struct Portion {
    /// What looked as if it counted when it was read.
    pub(super) items: Vec<Item>,
    /// Where the next one begins.
    pub(super) next: Position,
    /// How much was gone through.
    pub(super) read_bytes: u64,
    /// Whether the segment ends here.
    pub(super) is_last: bool,
    /// Whether what follows cannot be told from what is damaged.
    pub(super) is_damaged: bool,
}

/// The header of a log segment; `None` when it is damaged.
pub(super) fn read_header(file: &dyn File, key: &Key, id: SegmentId) -> io::Result<Option<SegmentHeader>> {
    let mut bytes = AlignedBuffer::zeroed(HEADER_BYTES);
    file.read_at(bytes.as_mut_slice(), 0)?;
    Ok(SegmentHeader::decode(bytes.as_slice(), id, key))
}

impl Engine {
    /// Reads on from where `pass` is. Blocks on the disk.
    pub(super) fn read_portion(&self, pass: &Pass) -> io::Result<Portion> {
        let id = pass.header.id;
        let horizon = self.segments.horizon(id);
        let mut scan = Scan::new(&*pass.file, &self.key, &pass.header, None, Some(pass.end_bytes))?;
        scan.skip_to(pass.at.offset_bytes);
        let mut payloads = Payloads::new(&*pass.file, &self.key)?;
        let mut portion = Portion { next: pass.at, ..Portion::default() };
        let mut copied_bytes = 0;
        while copied_bytes < PORTION_BYTES_SOFT && portion.read_bytes < READ_BYTES_SOFT {
            let batch = match scan.next_found()? {
                Found::Batch(batch) => batch,
                Found::Damage { .. } => return Ok(Portion { is_damaged: true, ..portion }),
                Found::End { .. } => return Ok(Portion { is_last: true, ..portion }),
            };
            let begun = batch.place.offset_bytes == portion.next.offset_bytes;
            let first = if begun { portion.next.record } else { 0 };
            let mut records = batch.records.iter().enumerate().skip(first);
            let stopped_at = loop {
                let Some((number, record)) = records.next() else { break None };
                if copied_bytes >= PORTION_BYTES_SOFT {
                    break Some(number);
                }
                let said = record.said(batch.time_ms);
                // All that is said of a session is said anew at once.
                if let Body::Session(session) = said.body
                    && portion.items.iter().any(|item| item.is_of(&session.session))
                {
                    continue;
                }
                if let Some(item) = self.item(pass, &said, batch.place, horizon, &mut payloads)? {
                    copied_bytes += item.copied_bytes();
                    portion.items.push(item);
                }
            };
            match stopped_at {
                Some(record) => {
                    portion.next = Position { offset_bytes: batch.place.offset_bytes, record };
                    // The rest of the batch is gone through next time.
                    return Ok(portion);
                }
                None => {
                    let offset_bytes = batch.place.offset_bytes + batch.batch_len as u64;
                    portion.next = Position { offset_bytes, record: 0 };
                    portion.read_bytes += batch.batch_len as u64;
                }
            }
        }
        Ok(portion)
    }

    /// What must be copied of a record, as far as can be told now.
    fn item(
        &self,
        pass: &Pass,
        said: &Said<'_>,
        batch: Place,
        horizon: Lsn,
        payloads: &mut Payloads<'_>,
    ) -> io::Result<Option<Item>> {
        let id = pass.header.id;
        // Those of the first round were copied then.
        let is_first_round = pass.round == 0;
        let counts = match said.body {
            Body::Blob { digest, .. }
            | Body::Solo { digest, .. }
            | Body::Link { digest, .. }
            | Body::Corrupt { digest, .. } => {
                let item = Item::new(said, batch);
                self.indexed(item.moved(&self.locator.read(digest), id)).flatten().is_some()
            }
            Body::Session(session) => self.sessions.counts_in(&session.session, id),
            Body::Unlink { .. } | Body::Delete { .. } | Body::SessionEnd { .. } => {
                is_first_round && said.lsn > horizon
            }
            Body::SegmentDrop { segment } => is_first_round && self.segments.dropped().contains(segment),
            Body::Seal | Body::Repaired | Body::Copy(_) => false,
        };
        if !counts {
            return Ok(None);
        }
        let mut item = Item::new(said, batch);
        if let Body::Blob { digest, len_bytes, payload_offset_bytes } = said.body {
            let place = payload_place(batch, *payload_offset_bytes);
            // Past the page cache both times, and afresh the second time: only what is bad twice is.
            let payload = match intact(payloads, place, digest, *len_bytes)? {
                Some(payload) => Some(payload),
                None => intact(&mut Payloads::new(&*pass.file, &self.key)?, place, digest, *len_bytes)?,
            };
            let Some(payload) = payload else {
                drop(self.set_aside(digest, Location::Inline(place)));
                return Ok(None);
            };
            item.payload = payload;
        }
        Ok(Some(item))
    }
}

/// The payload at `place`. Held against the digest as well: in the copy its blocks get checksums of their own, and what went wrong
/// in memory before that would be right for ever.
fn intact(
    payloads: &mut Payloads<'_>,
    place: Place,
    digest: &Digest,
    len_bytes: u32,
) -> io::Result<Option<Bytes>> {
    let len = usize::try_from(len_bytes).unwrap_or(usize::MAX);
    let payload = payloads.read(place, digest, len)?;
    Ok(payload.filter(|payload| Digest::of(digest.algorithm(), payload) == *digest))
}
