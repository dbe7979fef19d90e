//! The bytes of blobs: payload headers, block checksums and, when asked, digests, in log segments and solo files.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;

use taffrail_blobstore::disk::{Access, Disk};
use taffrail_blobstore::format::checkpoint::Location;
use taffrail_blobstore::format::payload::{PAYLOAD_HEADER_BYTES, PayloadHeader};
use taffrail_blobstore::format::record::SessionRecord;
use taffrail_blobstore::format::seal::{Key, Place, Seal};
use taffrail_blobstore::format::segment::{Content, HEADER_BYTES, SegmentHeader};
use taffrail_blobstore::format::solo::{Layout, PAYLOAD_OFFSET_BYTES, TRAILER_BYTES, Trailer, block_place};
use taffrail_blobstore::format::{BLOCK_BYTES, SegmentId};
use taffrail_blobstore::{Digest, Hasher};

use crate::contents::Blob;
use crate::finding::{Finding, Findings, Kind, Severity};
use crate::progress::Progress;
use crate::survey::Payload;
use crate::window::Window;

/// How much of a blob is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Depth {
    /// Every block against its checksum.
    Checksums,
    /// And all of them against the digest.
    Digests,
}

/// Something wrong with the bytes of a blob.
struct Fault {
    kind: Kind,
    offset_bytes: u64,
    len_bytes: u64,
    what: String,
}

/// What checking of blobs needs.
pub(crate) struct Checker<'a> {
    pub(crate) disk: &'a dyn Disk,
    pub(crate) key: &'a Key,
    pub(crate) depth: Depth,
    pub(crate) progress: &'a Progress,
}

impl Checker<'_> {
    /// Checks all blobs that have a location; gives those that are damaged.
    pub(crate) fn check_all(
        &self,
        blobs: &HashMap<Digest, Blob>,
        findings: &mut Findings,
    ) -> BTreeSet<Digest> {
        // In the order of their places, so that the disk is read forwards.
        let mut placed: Vec<(&Digest, &Blob, Location)> =
            blobs.iter().filter_map(|(digest, blob)| Some((digest, blob, blob.location?))).collect();
        placed.sort_by_key(|(_, _, location)| match location {
            Location::Inline(place) => (place.segment, place.offset_bytes),
            Location::Solo { segment, .. } => (*segment, 0),
        });
        let mut damaged = BTreeSet::new();
        let mut log = LogFiles { disk: self.disk, open: None };
        for (digest, blob, location) in placed {
            let (file, faults) = match location {
                Location::Inline(place) => {
                    (place.segment.log_name(), self.check_inline(&mut log, place, digest, blob.len_bytes))
                }
                Location::Solo { segment, epoch, trailer } => {
                    let named = Named { segment, epoch, trailer };
                    (segment.solo_name(), self.check_solo(&named, digest, blob.len_bytes))
                }
            };
            self.progress.advance(blob.len_bytes);
            match faults {
                Ok(faults) => {
                    if faults.iter().any(|fault| !fault.is_harmless()) {
                        damaged.insert(*digest);
                    }
                    faults.into_iter().for_each(|fault| findings.add(fault.finding(&file, *digest, blob)));
                }
                Err(error) => findings.unreadable(&file, &error),
            }
        }
        damaged
    }

    fn check_inline(
        &self,
        log: &mut LogFiles<'_>,
        place: Place,
        digest: &Digest,
        len_bytes: u64,
    ) -> io::Result<Vec<Fault>> {
        let header_fault = |what: &str| Fault {
            kind: Kind::PayloadHeader,
            offset_bytes: place.offset_bytes,
            len_bytes: PAYLOAD_HEADER_BYTES as u64,
            what: what.to_owned(),
        };
        let Some(window) = log.file(place.segment)? else {
            return Ok(vec![header_fault("the log segment with the bytes of this blob is missing")]);
        };
        let header = window
            .read(place.offset_bytes, PAYLOAD_HEADER_BYTES)?
            .and_then(|bytes| PayloadHeader::decode(&bytes, self.key, place))
            .filter(|header| header.digest == *digest && header.len_bytes as u64 == len_bytes);
        let Some(header) = header else {
            return Ok(vec![header_fault("the header of this blob's bytes is damaged")]);
        };
        let start = place.offset_bytes + PAYLOAD_HEADER_BYTES as u64;
        let mut hasher = self.hasher(digest);
        let mut faults = Vec::new();
        for (index, from) in (0..header.len_bytes).step_by(BLOCK_BYTES).enumerate() {
            let len = BLOCK_BYTES.min(header.len_bytes - from);
            let block = window.read(start + from as u64, len)?;
            match block.filter(|block| header.block_is_intact(self.key, place, index, block)) {
                Some(block) => hasher.iter_mut().for_each(|hasher| hasher.update(&block)),
                None => faults.push(Fault::block(Kind::PayloadBlock, start + from as u64, len)),
            }
        }
        Ok(conclude(hasher, digest, start, len_bytes, faults))
    }

    /// Whether all bytes of a payload without a record are there.
    pub(crate) fn is_whole(&self, payload: &Payload) -> bool {
        let mut log = LogFiles { disk: self.disk, open: None };
        let faults = self.check_inline(&mut log, payload.place, &payload.digest, payload.len_bytes as u64);
        faults.is_ok_and(|faults| faults.is_empty())
    }

    fn check_solo(&self, named: &Named, digest: &Digest, len_bytes: u64) -> io::Result<Vec<Fault>> {
        let Some(window) = Window::open(self.disk, &named.segment.solo_name(), Access::Direct)? else {
            return Ok(vec![Fault {
                kind: Kind::SoloMissing,
                offset_bytes: 0,
                len_bytes,
                what: "the file of this blob is missing".to_owned(),
            }]);
        };
        let mut faults = Vec::new();
        let head = window.read(0, HEADER_BYTES)?.unwrap_or_default();
        let header = SegmentHeader::decode(&head, named.segment, self.key);
        if !header.is_some_and(|header| {
            header.epoch == named.epoch && matches!(header.content, Content::Solo { .. })
        }) {
            faults.push(Fault {
                kind: Kind::SoloHeader,
                offset_bytes: 0,
                len_bytes: HEADER_BYTES as u64,
                // Reading goes by record and trailer.
                what: "the header of this file is damaged; the blob is served all the same".to_owned(),
            });
        }
        let Some(layout) = Layout::new(len_bytes) else {
            faults.push(Fault::trailer(0, 0));
            return Ok(faults);
        };
        if window.len_bytes > layout.file_bytes {
            faults.push(Fault {
                kind: Kind::SoloLength,
                offset_bytes: layout.file_bytes,
                len_bytes: window.len_bytes - layout.file_bytes,
                what: "the file is longer than its blob needs".to_owned(),
            });
        }
        let trailer = self
            .trailer(&window, named.segment, named.epoch, &layout)?
            .filter(|trailer| trailer.seal == named.trailer && trailer.digest == *digest);
        let Some(trailer) = trailer else {
            faults
                .push(Fault::trailer(layout.crcs_offset_bytes, layout.file_bytes - layout.crcs_offset_bytes));
            return Ok(faults);
        };
        let mut hasher = self.hasher(digest);
        let mut from = 0;
        for (block, crc) in (0..layout.blocks).zip(&trailer.crcs) {
            let len = usize::try_from(len_bytes - from).unwrap_or(usize::MAX).min(BLOCK_BYTES);
            let bytes = window.read(PAYLOAD_OFFSET_BYTES + from, len)?;
            let place = block_place(named.segment, named.epoch, block);
            match bytes.filter(|bytes| self.key.block_crc(place, bytes) == *crc) {
                Some(bytes) => hasher.iter_mut().for_each(|hasher| hasher.update(&bytes)),
                None => faults.push(Fault::block(Kind::SoloBlock, PAYLOAD_OFFSET_BYTES + from, len)),
            }
            from += len as u64;
        }
        Ok(conclude(hasher, digest, PAYLOAD_OFFSET_BYTES, len_bytes, faults))
    }

    fn trailer(
        &self,
        window: &Window,
        segment: SegmentId,
        epoch: u32,
        layout: &Layout,
    ) -> io::Result<Option<Trailer>> {
        let len = usize::try_from(layout.file_bytes - layout.crcs_offset_bytes).unwrap_or(usize::MAX);
        let tail = window.read(layout.crcs_offset_bytes, len)?;
        Ok(tail.and_then(|tail| Trailer::decode(&tail, self.key, segment, epoch, layout)))
    }

    fn hasher(&self, digest: &Digest) -> Option<Hasher> {
        (self.depth == Depth::Digests).then(|| Hasher::new(digest.algorithm()))
    }

    /// Checks the files of open upload sessions: what is durable must have the checksums that were logged.
    pub(crate) fn check_sessions<'s>(
        &self,
        sessions: impl Iterator<Item = &'s SessionRecord>,
        findings: &mut Findings,
    ) {
        for session in sessions {
            let name = session.segment.solo_name();
            match self.check_session(session) {
                Ok(None) => {}
                Ok(Some(fault)) => {
                    let what = format!("upload session {}: {}", session.session, fault.what);
                    // Before its first flush nothing of the file need survive a power loss, not even its name.
                    let promised = session.durable.offset_bytes > 0;
                    let severity = if promised { Severity::Repairable } else { Severity::Note };
                    let finding = Finding::new(severity, Kind::Session, &name, what);
                    findings.add(finding.at(fault.offset_bytes, fault.len_bytes));
                }
                Err(error) => findings.unreadable(&name, &error),
            }
        }
    }

    fn check_session(&self, session: &SessionRecord) -> io::Result<Option<Fault>> {
        let fault = |offset_bytes, len_bytes, what: &str| {
            let what = format!("{what}; the client starts again");
            Some(Fault { kind: Kind::Session, offset_bytes, len_bytes, what })
        };
        let Some(window) = Window::open(self.disk, &session.segment.solo_name(), Access::Direct)? else {
            return Ok(fault(0, 0, "its file is missing"));
        };
        let head = window.read(0, HEADER_BYTES)?.unwrap_or_default();
        let header = SegmentHeader::decode(&head, session.segment, self.key);
        let is_its_own = header.is_some_and(|header| {
            header.epoch == session.epoch
                && matches!(header.content, Content::Solo { session: of, .. } if of == session.session)
        });
        if !is_its_own {
            return Ok(fault(0, HEADER_BYTES as u64, "the header of its file is damaged"));
        }
        let durable_blocks = session.durable.offset_bytes / BLOCK_BYTES as u64;
        for (block, crc) in (0..durable_blocks).zip(&session.crcs) {
            let place = block_place(session.segment, session.epoch, block);
            let bytes = window.read(place.offset_bytes, BLOCK_BYTES)?;
            if bytes.is_none_or(|bytes| self.key.block_crc(place, &bytes) != *crc) {
                return Ok(fault(place.offset_bytes, BLOCK_BYTES as u64, "a durable block of it is damaged"));
            }
        }
        Ok(None)
    }

    /// The sealed solo files that no record names, by digest: their blobs are whole.
    pub(crate) fn sealed_orphans(
        &self,
        orphans: &BTreeMap<SegmentId, u64>,
    ) -> io::Result<HashMap<Digest, Sealed>> {
        let mut sealed = HashMap::new();
        for (segment, file_bytes) in orphans {
            let Some(window) = Window::open(self.disk, &segment.solo_name(), Access::Direct)? else {
                continue;
            };
            let head = window.read(0, HEADER_BYTES)?.unwrap_or_default();
            let Some(header) = SegmentHeader::decode(&head, *segment, self.key) else { continue };
            let Some(trailer_offset) = file_bytes.checked_sub(TRAILER_BYTES as u64) else { continue };
            let Some(stated) = window.read(trailer_offset, 16)? else { continue };
            let len_bytes = u64::from_le_bytes(stated[8..].try_into().unwrap_or_default());
            let layout = Layout::new(len_bytes).filter(|layout| layout.file_bytes == *file_bytes);
            let Some(layout) = layout else { continue };
            if let Some(trailer) = self.trailer(&window, *segment, header.epoch, &layout)? {
                let named = Named { segment: *segment, epoch: header.epoch, trailer: trailer.seal };
                if self.check_solo(&named, &trailer.digest, len_bytes)?.is_empty() {
                    sealed.insert(trailer.digest, Sealed { named, len_bytes });
                }
            }
        }
        Ok(sealed)
    }
}

/// A solo file as a record names it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Named {
    pub(crate) segment: SegmentId,
    pub(crate) epoch: u32,
    pub(crate) trailer: Seal,
}

/// A whole solo file without a record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sealed {
    pub(crate) named: Named,
    pub(crate) len_bytes: u64,
}

/// The log segment that was read last stays open: blobs are checked in the order of their places.
struct LogFiles<'a> {
    disk: &'a dyn Disk,
    open: Option<(SegmentId, Option<Window>)>,
}

impl LogFiles<'_> {
    fn file(&mut self, segment: SegmentId) -> io::Result<Option<&Window>> {
        if self.open.as_ref().is_none_or(|(open, _)| *open != segment) {
            self.open = Some((segment, Window::open(self.disk, &segment.log_name(), Access::Direct)?));
        }
        Ok(self.open.as_ref().and_then(|(_, window)| window.as_ref()))
    }
}

impl Fault {
    fn block(kind: Kind, offset_bytes: u64, len: usize) -> Fault {
        let what = "a block of this blob is not what was written".to_owned();
        Fault { kind, offset_bytes, len_bytes: len as u64, what }
    }

    fn trailer(offset_bytes: u64, len_bytes: u64) -> Fault {
        let what = "checksums or trailer of this blob are damaged".to_owned();
        Fault { kind: Kind::SoloTrailer, offset_bytes, len_bytes, what }
    }

    /// Whether the blob is served all the same.
    fn is_harmless(&self) -> bool {
        matches!(self.kind, Kind::SoloHeader | Kind::SoloLength)
    }

    fn finding(self, file: &str, digest: Digest, blob: &Blob) -> Finding {
        let (severity, why) = if self.is_harmless() {
            (Severity::Repairable, "")
        } else if blob.links.is_empty() {
            (Severity::Repairable, "; no repository holds it, and it will be collected")
        } else if blob.quarantined {
            (Severity::Repairable, "; it is set aside, and the next push of it heals it")
        } else {
            (Severity::Lost, "; the next push of it heals it")
        };
        let finding = Finding::new(severity, self.kind, file, format!("{}{why}", self.what));
        finding.at(self.offset_bytes, self.len_bytes).harming(vec![digest])
    }
}

fn conclude(
    hasher: Option<Hasher>,
    digest: &Digest,
    start: u64,
    len_bytes: u64,
    mut faults: Vec<Fault>,
) -> Vec<Fault> {
    let blocks_are_whole = faults.iter().all(Fault::is_harmless);
    if let Some(hasher) = hasher.filter(|_| blocks_are_whole) {
        let actual = hasher.finish();
        if actual != *digest {
            let what = format!("the checksums hold and the bytes are those of {actual}");
            faults.push(Fault { kind: Kind::Digest, offset_bytes: start, len_bytes, what });
        }
    }
    faults
}
