//! One pass over the whole log: where its segments begin and end, what is damaged, and what the records say.
//!
//! It finds what recovery would find, and goes on where recovery need not look: before the checkpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use taffrail_blobstore::Digest;
use taffrail_blobstore::disk::{Access, Disk};
use taffrail_blobstore::format::batch::ValidBatch;
use taffrail_blobstore::format::checkpoint::{CheckpointHeader, Entry};
use taffrail_blobstore::format::payload::{PAYLOAD_HEADER_BYTES, PayloadHeader};
use taffrail_blobstore::format::record::Body;
use taffrail_blobstore::format::seal::{Key, Place, Seal};
use taffrail_blobstore::format::segment::{Content, HEADER_BYTES, Previous, SegmentHeader, UNKNOWN_SEAL};
use taffrail_blobstore::format::superblock::Superblock;
use taffrail_blobstore::format::{LOG_FOLDER, Lsn, SegmentId};
use taffrail_blobstore::segment::scan::{Found, Scan, damaged_payloads, epoch_of};

use crate::contents::Contents;
use crate::finding::Findings;
use crate::window::Window;

/// Payload headers start at multiples of this, in bytes (`format::batch`).
const PAYLOAD_ALIGN_BYTES: usize = 64;

/// Unit, in bytes, in which damaged ranges are searched for payloads.
const SEARCH_BYTES: u64 = 1024 * 1024;

/// A log segment as it was found.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    pub(crate) file_bytes: u64,
    /// `None` when it is damaged.
    pub(crate) header: Option<SegmentHeader>,
    /// Seal of the header, when it is valid.
    pub(crate) header_seal: Option<Seal>,
    pub(crate) epoch: u32,
    /// How the next segment says that this one ends.
    pub(crate) stated: Option<Previous>,
    /// The first valid batch, without its records.
    pub(crate) first: Option<FirstBatch>,
    /// Offset behind the last batch.
    pub(crate) end_bytes: u64,
    /// Seal of the last batch or of the header, where it is known.
    pub(crate) end_seal: Option<Seal>,
    /// When the last batch was made; 0 when there is none.
    pub(crate) last_time_ms: u64,
    /// LSN of the first record behind this segment.
    pub(crate) next_lsn: Lsn,
    /// Bytes that the payloads of its BLOB records take, dead ones included.
    pub(crate) payload_bytes: u64,
    /// Records that cancel others.
    pub(crate) tombstones: u64,
}

/// What a header can be made up from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FirstBatch {
    pub(crate) offset_bytes: u64,
    pub(crate) first_lsn: Lsn,
    pub(crate) previous: [u8; 16],
}

/// A range that should hold batches and does not.
#[derive(Clone, Debug)]
pub(crate) struct Range {
    pub(crate) segment: SegmentId,
    pub(crate) from_bytes: u64,
    pub(crate) to_bytes: u64,
    /// LSN of the first record that is lost.
    pub(crate) first_lsn: Lsn,
    /// LSN of the first record behind, when there is one.
    pub(crate) next_lsn: Option<Lsn>,
    /// When the batch before was made.
    pub(crate) time_ms: u64,
    /// Seal of what stands before, where it is known.
    pub(crate) seal_before: Option<Seal>,
    /// Whether the checkpoint has what these records said.
    pub(crate) covered: bool,
    /// Payloads that are still whole inside of it.
    pub(crate) payloads: Vec<Payload>,
}

/// A valid batch, or the end of a segment, that does not continue what stands before it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Break {
    pub(crate) segment: SegmentId,
    pub(crate) at_bytes: u64,
    pub(crate) seal_before: Option<Seal>,
    /// Whether it is the next segment's header that does not continue this one.
    pub(crate) at_end: bool,
}

/// An inline payload whose header is valid, found without a record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Payload {
    pub(crate) digest: Digest,
    pub(crate) len_bytes: usize,
    pub(crate) place: Place,
}

/// Where a checkpoint ends. An opening reads on from there, so that no batch may reach across.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CheckpointEnd {
    pub(crate) segment: SegmentId,
    pub(crate) at_bytes: u64,
    pub(crate) next_lsn: Lsn,
}

impl CheckpointEnd {
    pub(crate) fn of(header: &CheckpointHeader) -> CheckpointEnd {
        CheckpointEnd {
            segment: header.replay_segment,
            at_bytes: header.replay_offset_bytes,
            next_lsn: header.next_lsn,
        }
    }
}

/// The checkpoints that a superblock names.
#[derive(Debug, Default)]
pub(crate) struct Checkpoints {
    /// The one that an opening starts from, when it is whole.
    pub(crate) in_force: Option<(CheckpointHeader, Vec<Entry>)>,
    /// Where the whole ones end.
    pub(crate) ends: Vec<CheckpointEnd>,
    /// Numbers of the damaged ones.
    pub(crate) bad: Vec<u64>,
}

/// Everything that one pass over the log gives.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    pub(crate) segments: BTreeMap<SegmentId, Segment>,
    /// Files that were made and never used, or are older than the oldest segment.
    pub(crate) leftover: Vec<SegmentId>,
    pub(crate) ranges: Vec<Range>,
    pub(crate) breaks: Vec<Break>,
    pub(crate) missing: BTreeSet<SegmentId>,
    /// Ranges that an earlier repair gave up: segment, offset, length.
    pub(crate) repaired: Vec<(SegmentId, u64, u64)>,
    /// Payloads in ranges that an earlier repair gave up.
    pub(crate) stray_payloads: Vec<Payload>,
    /// The last batch of the log, when its payloads are torn: recovery takes it for one that nobody was told of.
    pub(crate) torn: Option<ValidBatch>,
    /// Where the checkpoint in force ends: log segment and offset.
    pub(crate) checkpoint_end: Option<(SegmentId, u64)>,
    /// Where any checkpoint ends.
    pub(crate) checkpoint_ends: Vec<CheckpointEnd>,
    pub(crate) next_lsn: Lsn,
    pub(crate) time_ms: u64,
    pub(crate) batches: u64,
    pub(crate) records: u64,
    /// What the log says from its start.
    pub(crate) logged: Contents,
    /// What an opening would show: the checkpoint, and the log behind it.
    pub(crate) served: Contents,
}

impl Survey {
    /// Reads the whole log. What cannot be read is reported, and the rest is read all the same.
    pub(crate) fn take(
        disk: &dyn Disk,
        key: &Key,
        superblock: &Superblock,
        checkpoints: &Checkpoints,
        findings: &mut Findings,
    ) -> io::Result<Survey> {
        let mut survey = Survey { next_lsn: 1, ..Survey::default() };
        survey.checkpoint_ends.clone_from(&checkpoints.ends);
        let checkpoint = checkpoints.in_force.as_ref();
        for entry in checkpoint.iter().flat_map(|(_, entries)| entries) {
            survey.served.load(entry);
        }
        let checkpoint = checkpoint.map(|(header, _)| header);
        survey.checkpoint_end =
            checkpoint.map(|checkpoint| (checkpoint.replay_segment, checkpoint.replay_offset_bytes));
        survey.find_segments(disk, key, superblock, findings)?;
        let ids: Vec<SegmentId> = survey.segments.keys().copied().collect();
        for (index, id) in ids.iter().enumerate() {
            let last = index + 1 == ids.len();
            if let Err(error) = survey.read_segment(disk, key, *id, last) {
                findings.unreadable(&id.log_name(), &error);
            }
        }
        survey.find_missing(superblock);
        let known = checkpoint.map_or(1, |checkpoint| checkpoint.next_lsn);
        survey.next_lsn = survey.next_lsn.max(known);
        Ok(survey)
    }

    fn find_segments(
        &mut self,
        disk: &dyn Disk,
        key: &Key,
        superblock: &Superblock,
        findings: &mut Findings,
    ) -> io::Result<()> {
        let names = disk.list(LOG_FOLDER)?;
        let ids: BTreeSet<SegmentId> =
            names.iter().filter_map(|name| SegmentId::from_file_name(name)).collect();
        for id in ids {
            if id.0 < superblock.oldest_segment {
                self.leftover.push(id);
                continue;
            }
            match identify(disk, key, id) {
                Ok(Some(segment)) => {
                    self.segments.insert(id, segment);
                }
                Ok(None) => self.leftover.push(id),
                Err(error) => findings.unreadable(&id.log_name(), &error),
            }
        }
        let stated: Vec<Previous> = self.segments.values().filter_map(Segment::previous).collect();
        for previous in stated {
            if let Some(segment) = self.segments.get_mut(&previous.id) {
                segment.stated = Some(previous);
            }
        }
        Ok(())
    }

    /// A segment is missing when the next one names it, or when the checkpoint goes on from it: neither can have been dropped
    /// without a record.
    fn find_missing(&mut self, superblock: &Superblock) {
        let named = self.segments.values().filter_map(Segment::previous).map(|previous| previous.id);
        let missing: BTreeSet<SegmentId> = named
            .filter(|id| id.0 >= superblock.oldest_segment)
            .chain(self.checkpoint_end.map(|(id, _)| id))
            .filter(|id| !self.segments.contains_key(id))
            .collect();
        self.missing = missing.difference(&self.served.dropped).copied().collect();
    }

    fn read_segment(&mut self, disk: &dyn Disk, key: &Key, id: SegmentId, last: bool) -> io::Result<()> {
        let Some(mut segment) = self.segments.get(&id).cloned() else { return Ok(()) };
        let Some(window) = Window::open(disk, &id.log_name(), Access::Direct)? else { return Ok(()) };
        let content = Content::Log { previous: None, first_lsn: 0 };
        let made_up = SegmentHeader { id, epoch: segment.epoch, created_ms: 0, content };
        let header = &segment.header.clone().unwrap_or(made_up);
        if let Content::Log { first_lsn, .. } = header.content {
            self.next_lsn = self.next_lsn.max(first_lsn);
            if let Some(range) = self.ranges.last_mut().filter(|_| segment.header.is_some()) {
                range.next_lsn.get_or_insert(first_lsn);
            }
        }
        let stated_end = segment.stated.map(|previous| previous.end_bytes);
        let mut scan = Scan::new(&*window.file, key, header, segment.end_seal, stated_end)?;
        let (end_bytes, end_seal) = loop {
            let seal_before = scan.seal();
            match scan.next_found()? {
                Found::Batch(batch) => {
                    segment.first.get_or_insert(FirstBatch {
                        offset_bytes: batch.place.offset_bytes,
                        first_lsn: batch.first_lsn,
                        previous: batch.previous,
                    });
                    // Only the very last batch of an unsealed log may be torn behind its records.
                    let position = (id, batch.place.offset_bytes);
                    let behind = self.checkpoint_end.is_none_or(|end| position >= end);
                    let ends_log =
                        last && behind && batch.records.iter().all(|record| record.body != Body::Seal);
                    if ends_log
                        && !damaged_payloads(&*window.file, key, &batch)?.is_empty()
                        && nothing_behind(&window, key, header, &batch)?
                    {
                        let end = (batch.place.offset_bytes, seal_before);
                        self.torn = Some(batch);
                        break end;
                    }
                    segment.last_time_ms = batch.time_ms;
                    segment.count(&batch);
                    if batch.repaired {
                        let to_bytes = batch.place.offset_bytes + batch.batch_len as u64;
                        let range = batch.place.offset_bytes..to_bytes;
                        self.stray_payloads.extend(payloads_in(&window, key, id, segment.epoch, range)?);
                    }
                    self.take_batch(&batch, behind);
                }
                Found::Damage { from_bytes, to_bytes } if from_bytes == to_bytes => {
                    self.breaks.push(Break { segment: id, at_bytes: from_bytes, seal_before, at_end: false });
                }
                Found::Damage { from_bytes, to_bytes } => {
                    let stretch = from_bytes..to_bytes;
                    self.take_damage(&window, key, id, &segment, stretch, seal_before)?;
                }
                Found::End { at_bytes } => break (at_bytes, scan.seal()),
            }
        };
        let (end_bytes, end_seal) = match self.checkpoint_end {
            // The checkpoint was written when these batches were durable.
            Some((of, covered_end)) if of == id && end_bytes < covered_end => {
                self.take_damage(&window, key, id, &segment, end_bytes..covered_end, end_seal)?;
                (covered_end, None)
            }
            Some(_) | None => (end_bytes, end_seal),
        };
        let stated_seal = segment.stated.map(|previous| previous.seal).filter(|seal| *seal != UNKNOWN_SEAL);
        if let (Some(stated), Some(seal)) = (stated_seal, end_seal)
            && stated != seal
        {
            self.breaks.push(Break { segment: id, at_bytes: end_bytes, seal_before: end_seal, at_end: true });
        }
        (segment.end_bytes, segment.end_seal, segment.next_lsn) = (end_bytes, end_seal, self.next_lsn);
        self.segments.insert(id, segment);
        Ok(())
    }

    /// Takes down a damaged range, in parts where a checkpoint ends inside of it: what is before is covered.
    fn take_damage(
        &mut self,
        window: &Window,
        key: &Key,
        id: SegmentId,
        segment: &Segment,
        stretch: std::ops::Range<u64>,
        seal_before: Option<Seal>,
    ) -> io::Result<()> {
        let (mut from_bytes, mut first_lsn, mut seal_before) = (stretch.start, self.next_lsn, seal_before);
        for (to_bytes, next_lsn) in self.parts(id, stretch) {
            self.ranges.push(Range {
                segment: id,
                from_bytes,
                to_bytes,
                first_lsn,
                next_lsn,
                time_ms: segment.last_time_ms,
                seal_before,
                covered: self.checkpoint_end.is_some_and(|end| (id, to_bytes) <= end),
                payloads: payloads_in(window, key, id, segment.epoch, from_bytes..to_bytes)?,
            });
            (from_bytes, first_lsn, seal_before) = (to_bytes, next_lsn.unwrap_or(first_lsn), None);
        }
        Ok(())
    }

    /// Where the parts of a stretch of a segment end, and the LSN behind each but the last.
    pub(crate) fn parts(&self, id: SegmentId, stretch: std::ops::Range<u64>) -> Vec<(u64, Option<Lsn>)> {
        let inside = |end: &&CheckpointEnd| {
            end.segment == id && end.at_bytes > stretch.start && end.at_bytes < stretch.end
        };
        let mut parts: Vec<(u64, Option<Lsn>)> = self
            .checkpoint_ends
            .iter()
            .filter(inside)
            .map(|end| (end.at_bytes, Some(end.next_lsn)))
            .collect();
        parts.push((stretch.end, None));
        parts.sort_unstable();
        parts.dedup_by_key(|(at_bytes, _)| *at_bytes);
        parts
    }

    fn take_batch(&mut self, batch: &ValidBatch, behind_checkpoint: bool) {
        if let Some(range) = self.ranges.last_mut() {
            range.next_lsn.get_or_insert(batch.first_lsn);
        }
        if batch.repaired {
            self.repaired.push((batch.place.segment, batch.place.offset_bytes, batch.batch_len as u64));
        }
        self.logged.apply(batch);
        if behind_checkpoint {
            self.served.apply(batch);
        }
        self.batches += 1;
        self.records += batch.records.len() as u64;
        self.next_lsn = self.next_lsn.max(batch.first_lsn + batch.records.len() as u64);
        self.time_ms = self.time_ms.max(batch.time_ms);
    }

    /// Whether the log from its start is all there: then it must agree with the checkpoint.
    pub(crate) fn log_is_whole(&self) -> bool {
        self.ranges.is_empty()
            && self.missing.is_empty()
            && self.repaired.is_empty()
            && self.breaks.is_empty()
            && self.segments.values().all(|segment| segment.header.is_some())
    }
}

impl Segment {
    /// What this segment's header says of the one before.
    pub(crate) fn previous(&self) -> Option<Previous> {
        match &self.header.as_ref()?.content {
            Content::Log { previous, .. } => *previous,
            Content::Solo { .. } => None,
        }
    }

    fn count(&mut self, batch: &ValidBatch) {
        for record in &batch.records {
            self.tombstones += u64::from(record.body.is_tombstone());
            if let Body::Blob { len_bytes, .. } = record.body.said() {
                self.payload_bytes += payload_slot_bytes(u64::from(*len_bytes));
            }
        }
    }
}

/// Bytes of a log segment that the payload of a blob of `len_bytes` takes, with its header, up to where the next one may begin.
pub(crate) fn payload_slot_bytes(len_bytes: u64) -> u64 {
    (PAYLOAD_HEADER_BYTES as u64).saturating_add(len_bytes).div_ceil(PAYLOAD_ALIGN_BYTES as u64)
        * PAYLOAD_ALIGN_BYTES as u64
}

/// Reads a header; `None` when the file was made and never used.
fn identify(disk: &dyn Disk, key: &Key, id: SegmentId) -> io::Result<Option<Segment>> {
    let Some(window) = Window::open(disk, &id.log_name(), Access::Direct)? else { return Ok(None) };
    let bytes = window.read(0, HEADER_BYTES)?.unwrap_or_default();
    let header =
        SegmentHeader::decode(&bytes, id, key).filter(|header| matches!(header.content, Content::Log { .. }));
    let epoch = match &header {
        Some(header) => Some(header.epoch),
        None => epoch_of(&*window.file, key, id)?,
    };
    Ok(epoch.map(|epoch| Segment {
        file_bytes: window.len_bytes,
        epoch,
        stated: None,
        first: None,
        end_bytes: HEADER_BYTES as u64,
        end_seal: header.as_ref().map(|_| SegmentHeader::seal_of(&bytes)),
        last_time_ms: 0,
        next_lsn: 1,
        payload_bytes: 0,
        tombstones: 0,
        header_seal: header.as_ref().map(|_| SegmentHeader::seal_of(&bytes)),
        header,
    }))
}

/// Whether no valid batch follows `batch` in its segment.
fn nothing_behind(
    window: &Window,
    key: &Key,
    header: &SegmentHeader,
    batch: &ValidBatch,
) -> io::Result<bool> {
    let mut rest = Scan::new(&*window.file, key, header, None, None)?;
    rest.skip_to(batch.place.offset_bytes + batch.batch_len as u64);
    Ok(matches!(rest.next_found()?, Found::End { .. }))
}

/// The payloads with a valid header in a range of a log segment.
fn payloads_in(
    window: &Window,
    key: &Key,
    segment: SegmentId,
    epoch: u32,
    range: std::ops::Range<u64>,
) -> io::Result<Vec<Payload>> {
    let mut payloads = Vec::new();
    let end = range.end.min(window.len_bytes);
    let mut from = range.start;
    while from < end {
        // A header may begin in the last bytes of one stretch and end in the next.
        let wanted = (SEARCH_BYTES + PAYLOAD_HEADER_BYTES as u64).min(end - from);
        let len = usize::try_from(wanted).unwrap_or(usize::MAX);
        let bytes = window.read(from, len)?.unwrap_or_default();
        let stretch = bytes.len().min(usize::try_from(SEARCH_BYTES).unwrap_or(usize::MAX));
        for at in (0..stretch).step_by(PAYLOAD_ALIGN_BYTES) {
            let Some(head) = bytes.get(at..).filter(|head| head.starts_with(b"TFPL")) else { continue };
            let place = Place { segment, epoch, offset_bytes: from + at as u64 };
            if let Some(header) = PayloadHeader::decode(head, key, place) {
                payloads.push(Payload { digest: header.digest, len_bytes: header.len_bytes, place });
            }
        }
        from += SEARCH_BYTES;
    }
    Ok(payloads)
}
