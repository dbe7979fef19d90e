//! What the records say the store contains: blobs, links, sessions.
//!
//! This is the checker's own reading of the records, on purpose apart from the engine's: a mistake in one of them shows.

use std::collections::{BTreeMap, BTreeSet, HashMap};

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
    pub(crate) quarantined: bool,
    pub(crate) links: BTreeMap<RepositoryKey, Lsn>,
}

/// Everything that the records say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Contents {
    pub(crate) blobs: HashMap<Digest, Blob>,
    pub(crate) sessions: BTreeMap<SessionId, SessionRecord>,
    /// Log segments that were dropped although older ones exist.
    pub(crate) dropped: BTreeSet<SegmentId>,
}

impl Contents {
    /// Takes in the records of a batch, which come in the order of the log.
    pub(crate) fn apply(&mut self, batch: &ValidBatch) {
        for record in &batch.records {
            match &record.body {
                Body::Blob { digest, len_bytes, payload_offset_bytes } => {
                    let place = payload_place(batch.place, *payload_offset_bytes);
                    self.place(digest, u64::from(*len_bytes), Location::Inline(place));
                }
                Body::Solo { digest, len_bytes, segment, epoch, trailer } => {
                    let location = Location::Solo { segment: *segment, epoch: *epoch, trailer: *trailer };
                    self.place(digest, *len_bytes, location);
                }
                Body::Link { repository, digest } => {
                    self.blobs.entry(*digest).or_default().links.insert(*repository, record.lsn);
                }
                Body::Unlink { repository, digest } => {
                    if let Some(blob) = self.blobs.get_mut(digest) {
                        blob.links.remove(repository);
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
                Body::Session(session) => self.log_session(session),
                Body::SessionEnd { session } => {
                    self.sessions.remove(session);
                }
                Body::SegmentDrop { segment } => {
                    self.dropped.insert(*segment);
                }
                Body::Seal | Body::Repaired => {}
            }
        }
    }

    /// Takes in an entry of a checkpoint.
    pub(crate) fn load(&mut self, entry: &Entry) {
        match entry {
            Entry::Segment { .. } => {}
            Entry::Dropped { segment } => {
                self.dropped.insert(*segment);
            }
            Entry::Blob { digest, len_bytes, location, quarantined, .. } => {
                let blob = self.blobs.entry(*digest).or_default();
                (blob.len_bytes, blob.location, blob.quarantined) =
                    (*len_bytes, Some(*location), *quarantined);
            }
            Entry::Links { digest, links } => {
                let blob = self.blobs.entry(*digest).or_default();
                blob.links.extend(links.iter().map(|(repository, lsn, _)| (*repository, *lsn)));
            }
            Entry::Session { session, .. } => self.log_session(session),
        }
    }

    fn place(&mut self, digest: &Digest, len_bytes: u64, location: Location) {
        let blob = self.blobs.entry(*digest).or_default();
        (blob.len_bytes, blob.location, blob.quarantined) = (len_bytes, Some(location), false);
    }

    fn log_session(&mut self, session: &SessionRecord) {
        let held = self.sessions.remove(&session.session);
        let mut crcs = held.map(|held| held.crcs).unwrap_or_default();
        crcs.truncate(usize::try_from(session.first_block).unwrap_or(usize::MAX));
        crcs.extend_from_slice(&session.crcs);
        self.sessions.insert(session.session, SessionRecord { first_block: 0, crcs, ..session.clone() });
    }

    /// Blobs that links name and no record places.
    pub(crate) fn half_known(&self) -> Vec<Digest> {
        let half_known = self.blobs.iter().filter(|(_, blob)| blob.location.is_none());
        let mut digests: Vec<Digest> = half_known.map(|(digest, _)| *digest).collect();
        digests.sort_unstable();
        digests
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
