//! What the log must look like so that it can be read from one end to the other: damaged ranges given up, headers made again,
//! missing segments replaced, broken chains joined.

use std::io;

use taffrail_blobstore::disk::{Access, Disk};
use taffrail_blobstore::format::batch::{
    BATCH_HEADER_BYTES, Position, RawBatchHeader, encode_repaired, reseal,
};
use taffrail_blobstore::format::record::RECORD_HEADER_BYTES;
use taffrail_blobstore::format::seal::{Key, Place, Seal};
use taffrail_blobstore::format::segment::{Content, HEADER_BYTES, Previous, SegmentHeader, UNKNOWN_SEAL};
use taffrail_blobstore::format::superblock::Superblock;
use taffrail_blobstore::format::{Lsn, SegmentId};

use super::files::NewFile;
use crate::survey::{Range, Segment, Survey};
use crate::window::Window;

/// Header and record of a REPAIRED batch. What else lies in a range that is given up stays: it may hold whole payloads.
const REPAIRED_BYTES: usize = BATCH_HEADER_BYTES + RECORD_HEADER_BYTES;

/// The new form of a log segment, and why.
#[derive(Debug)]
pub(crate) struct NewSegment {
    pub(crate) file: NewFile,
    pub(crate) why: Vec<String>,
}

/// A header that is to be written, or the one that stays.
struct Header {
    epoch: u32,
    seal: Option<Seal>,
    /// The encoded header, when it changes.
    bytes: Option<Vec<u8>>,
}

/// Says what must change. One round may uncover the need of another: joining a chain changes the seal of its end.
pub(crate) fn plan(
    disk: &dyn Disk,
    key: &Key,
    superblock: &Superblock,
    survey: &Survey,
) -> io::Result<Vec<NewSegment>> {
    let mut planned = Vec::new();
    for id in &survey.missing {
        planned.push(replace_missing(key, superblock, survey, *id));
    }
    for (id, segment) in &survey.segments {
        planned.extend(mend(disk, key, survey, *id, segment)?);
    }
    Ok(planned)
}

/// An epoch that no file of the store has.
pub(crate) fn new_epoch(superblock: &Superblock, survey: &Survey) -> u32 {
    let newest = survey.segments.values().map(|segment| segment.epoch).max().unwrap_or(0);
    superblock.epoch.max(newest).saturating_add(1)
}

/// The segment before `id` that exists, as a header names it.
fn before(survey: &Survey, id: SegmentId) -> Option<(Previous, &Segment)> {
    let (before, segment) = survey.segments.range(..id).next_back()?;
    let seal = segment.end_seal.unwrap_or(UNKNOWN_SEAL);
    Some((Previous { id: *before, end_bytes: segment.end_bytes, seal }, segment))
}

fn replace_missing(key: &Key, superblock: &Superblock, survey: &Survey, id: SegmentId) -> NewSegment {
    let previous = before(survey, id);
    let (first_lsn, time_ms) =
        previous.map_or((1, 0), |(_, segment)| (segment.next_lsn, segment.last_time_ms));
    let stated = survey.segments.values().filter_map(Segment::previous).find(|previous| previous.id == id);
    let covered = survey.checkpoint_end.filter(|(of, _)| *of == id).map(|(_, end_bytes)| end_bytes);
    let end_bytes = stated.map(|previous| previous.end_bytes).or(covered).unwrap_or(HEADER_BYTES as u64);
    let epoch = new_epoch(superblock, survey);
    let content = Content::Log { previous: previous.map(|(previous, _)| previous), first_lsn };
    let header = SegmentHeader { id, epoch, created_ms: time_ms, content }.encode(key);
    let seal = SegmentHeader::seal_of(&header);
    let mut overlays = vec![(0, header)];
    let (mut from_bytes, mut lsn, mut previous_seal) = (HEADER_BYTES as u64, first_lsn, seal);
    for (to_bytes, next_lsn) in survey.parts(id, from_bytes..end_bytes) {
        let place = Place { segment: id, epoch, offset_bytes: from_bytes };
        overlays.extend(given_up(key, place, to_bytes, lsn, previous_seal, time_ms));
        (from_bytes, lsn, previous_seal) = (to_bytes, next_lsn.unwrap_or(lsn), UNKNOWN_SEAL);
    }
    NewSegment {
        file: NewFile { name: id.log_name(), len_bytes: end_bytes, overlays },
        why: vec!["replace the missing segment".to_owned()],
    }
}

/// The start of a REPAIRED batch from `place` to `end_bytes`; nothing when that is empty.
fn given_up(
    key: &Key,
    place: Place,
    end_bytes: u64,
    first_lsn: Lsn,
    previous: Seal,
    time_ms: u64,
) -> Option<(u64, Vec<u8>)> {
    let len = end_bytes.checked_sub(place.offset_bytes).filter(|len| *len > 0)?;
    let position = Position { place, first_lsn, previous, time_ms };
    let bytes = encode_repaired(key, position, u32::try_from(len).ok()?).bytes;
    Some((place.offset_bytes, bytes.get(..REPAIRED_BYTES)?.to_vec()))
}

fn mend(
    disk: &dyn Disk,
    key: &Key,
    survey: &Survey,
    id: SegmentId,
    segment: &Segment,
) -> io::Result<Option<NewSegment>> {
    let mut new = NewSegment { file: NewFile { name: id.log_name(), ..NewFile::default() }, why: Vec::new() };
    let header = mend_header(key, survey, id, segment, &mut new);
    let Some(window) = Window::open(disk, &id.log_name(), Access::Direct)? else { return Ok(None) };
    let place = |offset_bytes| Place { segment: id, epoch: header.epoch, offset_bytes };
    let joins_header = |previous: &[u8; 16]| header.seal.is_some_and(|seal| seal[..16] == *previous);
    if let Some(first) = segment.first.filter(|first| first.offset_bytes == HEADER_BYTES as u64)
        && header.bytes.is_some()
        && !joins_header(&first.previous)
    {
        let seal = header.seal.unwrap_or(UNKNOWN_SEAL);
        new.file.overlays.extend(rejoined(&window, key, place(first.offset_bytes), &seal)?);
    }
    for range in survey.ranges.iter().filter(|range| range.segment == id) {
        let seal = seal_before(range, &header);
        let at = place(range.from_bytes);
        new.file.overlays.extend(given_up(key, at, range.to_bytes, range.first_lsn, seal, range.time_ms));
        new.file.len_bytes = new.file.len_bytes.max(range.to_bytes);
        new.why.push(format!("give up bytes {} to {}", range.from_bytes, range.to_bytes));
    }
    for broken in survey.breaks.iter().filter(|broken| broken.segment == id && !broken.at_end) {
        let seal = broken.seal_before.unwrap_or(UNKNOWN_SEAL);
        new.file.overlays.extend(rejoined(&window, key, place(broken.at_bytes), &seal)?);
        new.why.push(format!("join the batch at {} to the one before", broken.at_bytes));
    }
    new.file.overlays.extend(header.bytes.map(|bytes| (0, bytes)));
    Ok((!new.file.overlays.is_empty()).then_some(new))
}

fn seal_before(range: &Range, header: &Header) -> Seal {
    let known = if range.from_bytes == HEADER_BYTES as u64 { header.seal } else { range.seal_before };
    known.unwrap_or(UNKNOWN_SEAL)
}

fn mend_header(key: &Key, survey: &Survey, id: SegmentId, segment: &Segment, new: &mut NewSegment) -> Header {
    let broken = segment
        .previous()
        .filter(|previous| survey.breaks.iter().any(|broken| broken.at_end && broken.segment == previous.id));
    let made = match (&segment.header, broken) {
        (Some(_), None) => return Header { epoch: segment.epoch, seal: segment.header_seal, bytes: None },
        (Some(header), Some(previous)) => {
            new.why.push(format!("join the segment to {}", previous.id));
            let first_lsn = segment.first.map_or(survey.next_lsn, |first| first.first_lsn);
            let previous = Some(Previous { seal: UNKNOWN_SEAL, ..previous });
            SegmentHeader { content: Content::Log { previous, first_lsn }, ..header.clone() }
        }
        (None, _) => {
            new.why.push("make the header again".to_owned());
            let previous = before(survey, id);
            // The appender stamps a header with the time of the batch that sealed the segment before.
            let created_ms = previous.map_or(0, |(_, before)| before.last_time_ms);
            let lost_lsn = previous.map_or(1, |(_, before)| before.next_lsn);
            let first_lsn = segment.first.map_or(lost_lsn, |first| first.first_lsn);
            let content = Content::Log { previous: previous.map(|(previous, _)| previous), first_lsn };
            SegmentHeader { id, epoch: segment.epoch, created_ms, content }
        }
    };
    let bytes = made.encode(key);
    Header { epoch: segment.epoch, seal: Some(SegmentHeader::seal_of(&bytes)), bytes: Some(bytes) }
}

/// Header and records of the batch at `place`, continuing `previous`.
fn rejoined(window: &Window, key: &Key, place: Place, previous: &Seal) -> io::Result<Option<(u64, Vec<u8>)>> {
    let Some(head) = window.read(place.offset_bytes, BATCH_HEADER_BYTES)? else { return Ok(None) };
    let Some(raw) = RawBatchHeader::decode(&head) else { return Ok(None) };
    let Some(mut bytes) = window.read(place.offset_bytes, BATCH_HEADER_BYTES + raw.records_len)? else {
        return Ok(None);
    };
    Ok(reseal(&mut bytes, key, place, previous).map(|_| (place.offset_bytes, bytes)))
}
