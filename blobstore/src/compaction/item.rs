//! A record that compaction found, and how it is copied.

use bytes::Bytes;

use crate::engine::Engine;
use crate::error::Refusal;
use crate::format::batch::{NewRecord, payload_place, record_bytes_bound};
use crate::format::checkpoint::Location;
use crate::format::record::{Body, Copied, Said};
use crate::format::seal::Place;
use crate::format::{Lsn, SegmentId};
use crate::in_flight::Key;
use crate::locator::{Blob, Shard};
use crate::log::{Copying, Marks, Purpose};
use crate::partition::PageError;
use crate::repository::SessionId;
use crate::sync::Arc;

/// A record that may have to be copied.
pub(super) struct Item {
    /// What it counts with.
    lsn: Lsn,
    time_ms: u64,
    /// What it says; never a copy.
    pub(super) body: Body,
    /// The place of its batch.
    batch: Place,
    /// The bytes of a blob, once they were read and found intact.
    pub(super) payload: Bytes,
}

impl Item {
    pub(super) fn new(said: &Said<'_>, batch: Place) -> Item {
        let Said { lsn, time_ms, body } = *said;
        Item { lsn, time_ms, body: body.clone(), batch, payload: Bytes::new() }
    }

    /// Whether it says where that upload session stands.
    pub(super) fn is_of(&self, session: &SessionId) -> bool {
        matches!(&self.body, Body::Session(record) if record.session == *session)
    }

    /// Where the bytes lie that it speaks of.
    fn location(&self) -> Option<Location> {
        match &self.body {
            Body::Blob { payload_offset_bytes, .. } => {
                Some(Location::Inline(payload_place(self.batch, *payload_offset_bytes)))
            }
            Body::Solo { segment, epoch, trailer, .. } => {
                Some(Location::Solo { segment: *segment, epoch: *epoch, trailer: *trailer })
            }
            Body::Corrupt { location, .. } => *location,
            Body::Link { .. }
            | Body::Unlink { .. }
            | Body::Delete { .. }
            | Body::Session(_)
            | Body::SessionEnd { .. }
            | Body::SegmentDrop { .. }
            | Body::Seal
            | Body::Repaired
            | Body::Copy(_) => None,
        }
    }

    /// What its copy takes of the log, about.
    pub(super) fn copied_bytes(&self) -> u64 {
        record_bytes_bound(&self.copy()) as u64
    }

    fn copy(&self) -> NewRecord {
        let Item { lsn, time_ms, body, payload, .. } = self;
        let copied = Copied { lsn: *lsn, time_ms: *time_ms, body: body.clone() };
        NewRecord { body: Body::Copy(Box::new(copied)), payload: payload.clone() }
    }

    /// What to write so that the log says the same without this record, when it is of a blob or link and counts: it is the one that
    /// the locator goes by, and no deletion of the blob is on its way. `None` when it does not, or cannot be moved.
    pub(super) fn moved(
        &self,
        shard: &Shard,
        segment: SegmentId,
    ) -> Result<Option<Vec<NewRecord>>, PageError> {
        let (Body::Blob { digest, .. }
        | Body::Solo { digest, .. }
        | Body::Link { digest, .. }
        | Body::Corrupt { digest, .. }) = &self.body
        else {
            return Ok(None);
        };
        Ok(shard.find(digest)?.and_then(|blob| self.moved_for(&blob, segment)))
    }

    fn moved_for(&self, blob: &Blob, segment: SegmentId) -> Option<Vec<NewRecord>> {
        match &self.body {
            Body::Blob { .. } => {
                // Damaged bytes stay where they are, and with them the segment, until they are pushed again or deleted.
                let is_moved = blob.location == self.location() && !blob.condemned && !blob.quarantined;
                is_moved.then(|| vec![self.copy()])
            }
            Body::Solo { digest, .. } => {
                if blob.location != self.location() {
                    return None;
                }
                if blob.condemned || blob.record_segment != segment {
                    return None;
                }
                let mut records = vec![self.copy()];
                if blob.quarantined {
                    // The record of the damage may stand, and go, before this copy.
                    records.push(corrupt(digest, blob.location));
                }
                Some(records)
            }
            Body::Link { repository, .. } => {
                let link = blob.link(*repository).filter(|_| !blob.condemned)?;
                (link.generation == self.lsn && link.segment == segment).then(|| vec![self.copy()])
            }
            Body::Corrupt { digest, location } => {
                let is_meant = blob.quarantined && (location.is_none() || *location == blob.location);
                // Of the place where it lies now, whatever that was: a copy behind this lies elsewhere, and is whole.
                is_meant.then(|| vec![corrupt(digest, blob.location)])
            }
            Body::Unlink { .. }
            | Body::Delete { .. }
            | Body::Session(_)
            | Body::SessionEnd { .. }
            | Body::SegmentDrop { .. }
            | Body::Seal
            | Body::Repaired
            | Body::Copy(_) => None,
        }
    }
}

fn corrupt(digest: &crate::digest::Digest, location: Option<Location>) -> NewRecord {
    NewRecord { body: Body::Corrupt { digest: *digest, location }, payload: Bytes::new() }
}

impl Engine {
    /// Copies a record if it counts at this moment. What cancels it comes before, and is seen, or comes behind the copy.
    pub(super) fn enqueue_copy(
        self: &Arc<Self>,
        id: SegmentId,
        item: &Item,
        purpose: Purpose,
        now_ms: u64,
    ) -> Result<Copying, Refusal> {
        match &item.body {
            Body::Blob { digest, .. }
            | Body::Solo { digest, .. }
            | Body::Link { digest, .. }
            | Body::Corrupt { digest, .. } => {
                // Whoever decides on the blob does so under this lock, and cannot meanwhile.
                let shard = self.locator.read(digest);
                self.log.enqueue_copy(
                    &Key::Digest(*digest),
                    || self.indexed(item.moved(&shard, id)).flatten(),
                    purpose,
                    now_ms,
                )
            }
            Body::Session(session) => {
                let key = Key::Session(session.session);
                let plain = |session| NewRecord { body: Body::Session(session), payload: Bytes::new() };
                let said_anew = || {
                    let records = self.sessions.said_anew(&session.session, id)?;
                    Some(records.into_iter().map(plain).collect())
                };
                self.log.enqueue_copy(&key, said_anew, purpose, now_ms)
            }
            // They spare what is newer than their original, so that they may come behind whatever is on its way.
            Body::Unlink { .. } | Body::Delete { .. } | Body::SessionEnd { .. } => {
                let copied = self.log.enqueue(vec![item.copy()], purpose, Marks::default(), now_ms)?;
                Ok(Copying::Enqueued(copied))
            }
            // Ids of segments are not used again.
            Body::SegmentDrop { .. } => {
                let said_anew = NewRecord { body: item.body.clone(), payload: Bytes::new() };
                let ticket = self.log.enqueue(vec![said_anew], purpose, Marks::default(), now_ms)?;
                Ok(Copying::Enqueued(ticket))
            }
            Body::Seal | Body::Repaired | Body::Copy(_) => Ok(Copying::Needless),
        }
    }
}
