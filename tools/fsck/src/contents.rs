//! What the records say the store contains: blobs, links, sessions.
//!
//! This is the checker's own reading of the records, on purpose apart from the engine's: a mistake in one of them shows.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use taffrail_blobstore::format::batch::{ValidBatch, payload_place};
use taffrail_blobstore::format::checkpoint::{Entry, Location};
use taffrail_blobstore::format::record::{Body, SessionRecord};
use taffrail_blobstore::format::{Lsn, SegmentId};
use taffrail_blobstore::{Digest, RepositoryKey, SessionId};

/// A blob as the records have it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Blob {
    pub(crate) len_bytes: u64,
    /// `None` when only links speak of it.
    pub(crate) location: Option<Location>,
    /// The log segment with the record that places it.
    pub(crate) record_segment: Option<SegmentId>,
    pub(crate) quarantined: bool,
    pub(crate) links: BTreeMap<RepositoryKey, Link>,
    /// Who let go of it last, when nothing links it and the record of that was read.
    pub(crate) last_holder: Option<RepositoryKey>,
}

impl Blob {
    /// The file with its bytes, when they are in one of its own.
    pub(crate) fn solo_file(&self) -> Option<SegmentId> {
        match self.location? {
            Location::Solo { segment, .. } => Some(segment),
            Location::Inline(_) => None,
        }
    }
}

/// A link as the records have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    /// LSN of its record, which is its generation.
    pub(crate) lsn: Lsn,
    /// The log segment with its record.
    pub(crate) segment: SegmentId,
}

/// Everything that the records say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Contents {
    pub(crate) blobs: HashMap<Digest, Blob>,
    pub(crate) sessions: BTreeMap<SessionId, SessionRecord>,
    /// The log segments with their records.
    pub(crate) session_segments: BTreeMap<SessionId, BTreeSet<SegmentId>>,
    /// Log segments that were dropped although older ones exist.
    pub(crate) dropped: BTreeSet<SegmentId>,
}

impl Contents {
    /// Takes in the records of a batch, which come in the order of the log.
    pub(crate) fn apply(&mut self, batch: &ValidBatch) {
        let segment = batch.place.segment;
        for record in &batch.records {
            match &record.body {
                Body::Blob { digest, len_bytes, payload_offset_bytes } => {
                    let place = payload_place(batch.place, *payload_offset_bytes);
                    self.place(digest, u64::from(*len_bytes), Location::Inline(place), segment);
                }
                Body::Solo { digest, len_bytes, segment: file, epoch, trailer } => {
                    let location = Location::Solo { segment: *file, epoch: *epoch, trailer: *trailer };
                    self.place(digest, *len_bytes, location, segment);
                }
                Body::Link { repository, digest } => {
                    let link = Link { lsn: record.lsn, segment };
                    self.blobs.entry(*digest).or_default().links.insert(*repository, link);
                }
                Body::Unlink { repository, digest } => {
                    if let Some(blob) = self.blobs.get_mut(digest)
                        && blob.links.remove(repository).is_some()
                    {
                        blob.last_holder = Some(*repository).filter(|_| blob.links.is_empty());
                    }
                }
                Body::Delete { digest } => {
                    self.blobs.remove(digest);
                }
                Body::Corrupt { digest, location } => {
                    if let Some(blob) = self.blobs.get_mut(digest)
                        && (location.is_none() || *location == blob.location)
                    {
                        blob.quarantined = true;
                    }
                }
                Body::Session(session) => self.log_session(session, segment),
                Body::SessionEnd { session } => {
                    self.sessions.remove(session);
                    self.session_segments.remove(session);
                }
                Body::SegmentDrop { segment: dropped } => {
                    self.dropped.insert(*dropped);
                }
                Body::Seal | Body::Repaired => {}
            }
        }
    }

    /// Takes in an entry of a checkpoint.
    pub(crate) fn load(&mut self, entry: &Entry) {
        match entry {
            Entry::Segment { .. } | Entry::Shard { .. } | Entry::Live { .. } | Entry::Gone { .. } => {}
            Entry::Dropped { segment } => {
                self.dropped.insert(*segment);
            }
            Entry::Blob { digest, len_bytes, location, record_segment, quarantined, .. } => {
                self.place(digest, *len_bytes, *location, *record_segment);
                self.blobs.entry(*digest).or_default().quarantined = *quarantined;
            }
            Entry::Links { digest, links } => {
                let blob = self.blobs.entry(*digest).or_default();
                blob.links.extend(
                    links.iter().map(|(repository, lsn, segment)| {
                        (*repository, Link { lsn: *lsn, segment: *segment })
                    }),
                );
            }
            Entry::Session { session, record_segment, .. } => self.log_session(session, *record_segment),
        }
    }

    fn place(&mut self, digest: &Digest, len_bytes: u64, location: Location, record_segment: SegmentId) {
        let blob = self.blobs.entry(*digest).or_default();
        (blob.len_bytes, blob.location, blob.quarantined) = (len_bytes, Some(location), false);
        blob.record_segment = Some(record_segment);
    }

    fn log_session(&mut self, session: &SessionRecord, segment: SegmentId) {
        self.session_segments.entry(session.session).or_default().insert(segment);
        let held = self.sessions.remove(&session.session);
        let mut crcs = held.map(|held| held.crcs).unwrap_or_default();
        let first_block = usize::try_from(session.first_block).unwrap_or(usize::MAX);
        // As the engine does: behind a gap no checksum would be that of its block.
        if first_block <= crcs.len() {
            crcs.truncate(first_block);
            crcs.extend_from_slice(&session.crcs);
        }
        self.sessions.insert(session.session, SessionRecord { first_block: 0, crcs, ..session.clone() });
    }

    /// Blobs that links name and no record places.
    pub(crate) fn half_known(&self) -> Vec<Digest> {
        let half_known = self.blobs.iter().filter(|(_, blob)| blob.location.is_none());
        let mut digests: Vec<Digest> = half_known.map(|(digest, _)| *digest).collect();
        digests.sort_unstable();
        digests
    }

    /// Upload sessions that are open. One whose file is a blob's by now is over, although no record says so.
    pub(crate) fn open_sessions(&self) -> impl Iterator<Item = &SessionRecord> {
        let taken: HashSet<SegmentId> = self.blobs.values().filter_map(Blob::solo_file).collect();
        self.sessions.values().filter(move |session| !taken.contains(&session.segment))
    }

    pub(crate) fn links(&self) -> usize {
        self.blobs.values().map(|blob| blob.links.len()).sum()
    }

    /// The blobs that `other` says something else of.
    pub(crate) fn differing<'a>(&'a self, other: &'a Contents) -> Vec<Digest> {
        let mut digests: Vec<Digest> = self
            .blobs
            .keys()
            .chain(other.blobs.keys())
            .filter(|digest| {
                // A quarantine is worth a record, but goes without one when the store is closing.
                let said = |contents: &'a Contents| {
                    contents.blobs.get(digest).map(|blob| (blob.len_bytes, blob.location, &blob.links))
                };
                said(self) != said(other)
            })
            .copied()
            .collect();
        digests.sort_unstable();
        digests.dedup();
        digests
    }
}
