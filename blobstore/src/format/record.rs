//! Records: what the main log is made of.
//!
//! A record is absolute ("this link stands since LSN 7"), never a difference, so replaying one twice changes nothing, and
//! of two records of one key the one with the higher LSN counts. A COPY, which compaction writes, says what another record
//! said, and counts with the LSN of that one.
//!
//! ```text
//!   0 u8 type    1 u8 version    2 u16 length of the record, a multiple of 8    4 u32 zero    8 u64 lsn    16 body, zero-padded
//! ```

use super::checkpoint::{Location, optional_location, put_optional_location};
use super::seal::{SEAL_BYTES, Seal};
use super::wire::{Fields, put_digest};
use super::{Lsn, SegmentId};
use crate::digest::{Algorithm, Digest};
use crate::hasher::HasherState;
use crate::repository::{RepositoryKey, SessionId};

/// Length of a record's header in bytes.
pub const RECORD_HEADER_BYTES: usize = 16;

/// Longest record in bytes; its length field has 16 bits and counts multiples of 8.
pub const RECORD_BYTES_MAX: usize = 65_528;

/// Most block checksums in one SESSION record: those of 512 MiB, eight times what is uploaded between two of them.
pub const SESSION_CRCS_MAX: usize = 2048;

/// A record and its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its log sequence number.
    pub lsn: Lsn,
    /// What it says.
    pub body: Body,
}

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// A blob whose bytes lie in this batch.
    Blob {
        /// Its digest.
        digest: Digest,
        /// Its length in bytes.
        len_bytes: u32,
        /// Where its payload header lies, in bytes from the start of the batch.
        payload_offset_bytes: u32,
    },
    /// A blob whose bytes lie in a solo file, which is sealed and durable.
    Solo {
        /// Its digest.
        digest: Digest,
        /// Its length in bytes.
        len_bytes: u64,
        /// The solo file.
        segment: SegmentId,
        /// The epoch that the solo file's header states.
        epoch: u32,
        /// The seal of the solo file's trailer.
        trailer: Seal,
    },
    /// The repository holds the blob. The link's generation is the record's LSN.
    Link {
        /// Who.
        repository: RepositoryKey,
        /// What.
        digest: Digest,
    },
    /// The repository holds the blob no more.
    Unlink {
        /// Who.
        repository: RepositoryKey,
        /// What.
        digest: Digest,
    },
    /// The blob is gone; its space is free once this is durable.
    Delete {
        /// Which.
        digest: Digest,
    },
    /// The blob's bytes are damaged where they lie: it is not served from there.
    Corrupt {
        /// Which.
        digest: Digest,
        /// Which copy. `None`: whichever the blob has at that point of the log.
        location: Option<Location>,
    },
    /// Where an upload session stands.
    Session(SessionRecord),
    /// The upload session is over.
    SessionEnd {
        /// Which.
        session: SessionId,
    },
    /// A log segment in which nothing was live was removed.
    SegmentDrop {
        /// Which.
        segment: SegmentId,
    },
    /// The segment ends here, by intention.
    Seal,
    /// A repair put this batch in the place of a damaged range; what that range said is lost.
    Repaired,
    /// What a record said that stood in another log segment, and counts still.
    Copy(Box<Copied>),
}

/// A record that was moved to the end of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copied {
    /// The LSN that it was written with: against other records of its key it counts with this one.
    pub lsn: Lsn,
    /// When the batch that it was written in was made, in milliseconds since 1970.
    pub time_ms: u64,
    /// What it said: a BLOB, SOLO, LINK, UNLINK, DELETE or SESSION_END. The payload of a BLOB lies in the batch with the copy.
    pub body: Body,
}

/// What a record says, wherever it stands.
#[derive(Clone, Copy, Debug)]
pub struct Said<'a> {
    /// The LSN that it counts with.
    pub lsn: Lsn,
    /// When it was said, in milliseconds since 1970.
    pub time_ms: u64,
    /// What; never a [`Body::Copy`].
    pub body: &'a Body,
}

/// Where an upload session with a solo file stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionRecord {
    /// Which session.
    pub session: SessionId,
    /// The repository it belongs to.
    pub repository: RepositoryKey,
    /// The algorithm it hashes with.
    pub algorithm: Algorithm,
    /// Its solo file.
    pub segment: SegmentId,
    /// The epoch that the solo file's header states.
    pub epoch: u32,
    /// When it was last used, in milliseconds since 1970.
    pub touched_ms: u64,
    /// Up to here everything is durable.
    pub durable: HashedOffset,
    /// Up to here everything was written and acknowledged; it is there unless power was lost.
    pub acknowledged: HashedOffset,
    /// Index of the first block that `crcs` covers.
    pub first_block: u32,
    /// Checksums of complete blocks since the session's record before.
    pub crcs: Vec<u32>,
}

/// An offset with the hash state of everything before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashedOffset {
    /// Bytes from the start of the blob.
    pub offset_bytes: u64,
    /// The exported hash state.
    pub state: HasherState,
}

impl Body {
    const fn number(&self) -> u8 {
        match self {
            Body::Blob { .. } => 1,
            Body::Solo { .. } => 2,
            Body::Link { .. } => 3,
            Body::Unlink { .. } => 4,
            Body::Delete { .. } => 5,
            Body::Corrupt { .. } => 6,
            Body::Session(_) => 7,
            Body::SessionEnd { .. } => 8,
            Body::SegmentDrop { .. } => 9,
            Body::Seal => 10,
            Body::Repaired => 11,
            Body::Copy(_) => 12,
        }
    }

    /// Whether it can stand in a [`Body::Copy`]. Others are said anew, or not at all.
    const fn is_copied(&self) -> bool {
        match self {
            Body::Blob { .. }
            | Body::Solo { .. }
            | Body::Link { .. }
            | Body::Unlink { .. }
            | Body::Delete { .. }
            | Body::SessionEnd { .. } => true,
            Body::Corrupt { .. }
            | Body::Session(_)
            | Body::SegmentDrop { .. }
            | Body::Seal
            | Body::Repaired
            | Body::Copy(_) => false,
        }
    }

    /// What it says, without the copy around it.
    pub fn said(&self) -> &Body {
        if let Body::Copy(copied) = self { &copied.body } else { self }
    }

    /// Where the payload that comes with it is told to lie, in bytes from the start of its batch.
    pub(super) fn payload_offset_mut(&mut self) -> Option<&mut u32> {
        match self {
            Body::Blob { payload_offset_bytes, .. } => Some(payload_offset_bytes),
            Body::Copy(copied) => copied.body.payload_offset_mut(),
            Body::Solo { .. }
            | Body::Link { .. }
            | Body::Unlink { .. }
            | Body::Delete { .. }
            | Body::Corrupt { .. }
            | Body::Session(_)
            | Body::SessionEnd { .. }
            | Body::SegmentDrop { .. }
            | Body::Seal
            | Body::Repaired => None,
        }
    }

    /// Whether the record cancels records that may lie in older segments. A segment that holds one is not dropped while
    /// an older segment exists.
    pub fn is_tombstone(&self) -> bool {
        match self.said() {
            Body::Unlink { .. }
            | Body::Delete { .. }
            | Body::Corrupt { .. }
            | Body::SessionEnd { .. }
            | Body::SegmentDrop { .. } => true,
            Body::Blob { .. }
            | Body::Solo { .. }
            | Body::Link { .. }
            | Body::Session(_)
            | Body::Seal
            | Body::Repaired
            | Body::Copy(_) => false,
        }
    }
}

impl Record {
    /// What the record says. `time_ms` is when its batch was made.
    pub fn said(&self, time_ms: u64) -> Said<'_> {
        if let Body::Copy(copied) = &self.body {
            Said { lsn: copied.lsn, time_ms: copied.time_ms, body: &copied.body }
        } else {
            Said { lsn: self.lsn, time_ms, body: &self.body }
        }
    }

    /// Appends the record to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[self.body.number(), 1, 0, 0, 0, 0, 0, 0]);
        out.extend_from_slice(&self.lsn.to_le_bytes());
        encode_body(&self.body, out);
        let len = (out.len() - start).next_multiple_of(8);
        assert!(len <= RECORD_BYTES_MAX, "records are bounded by SESSION_CRCS_MAX");
        out.resize(start + len, 0);
        out[start + 2..start + 4].copy_from_slice(&u16::try_from(len).unwrap_or(0).to_le_bytes());
    }

    /// Takes up the record at the start of `bytes`, and says how long it is.
    pub fn decode(bytes: &[u8]) -> Option<(Record, usize)> {
        let len = usize::from(u16::from_le_bytes([*bytes.get(2)?, *bytes.get(3)?]));
        if len < RECORD_HEADER_BYTES || !len.is_multiple_of(8) {
            return None;
        }
        let mut fields = Fields::new(bytes.get(..len)?);
        let number = fields.u8()?;
        let version = fields.u8()?;
        fields.u16()?;
        if version != 1 || fields.u32()? != 0 {
            return None;
        }
        let lsn = fields.u64()?;
        let body = decode_body(number, &mut fields)?;
        fields.is_padding().then_some((Record { lsn, body }, len))
    }
}

fn encode_body(body: &Body, out: &mut Vec<u8>) {
    match body {
        Body::Blob { digest, len_bytes, payload_offset_bytes } => {
            out.extend_from_slice(&len_bytes.to_le_bytes());
            out.extend_from_slice(&payload_offset_bytes.to_le_bytes());
            put_digest(out, digest);
        }
        Body::Solo { digest, len_bytes, segment, epoch, trailer } => {
            out.extend_from_slice(&len_bytes.to_le_bytes());
            out.extend_from_slice(&segment.0.to_le_bytes());
            out.extend_from_slice(&epoch.to_le_bytes());
            out.extend_from_slice(trailer);
            put_digest(out, digest);
        }
        Body::Link { repository, digest } | Body::Unlink { repository, digest } => {
            out.extend_from_slice(&repository.number().to_le_bytes());
            put_digest(out, digest);
        }
        Body::Delete { digest } => put_digest(out, digest),
        Body::Corrupt { digest, location } => {
            put_digest(out, digest);
            put_optional_location(out, location.as_ref());
        }
        Body::Session(session) => session.encode(out),
        Body::SessionEnd { session } => out.extend_from_slice(session.bytes()),
        Body::SegmentDrop { segment } => out.extend_from_slice(&segment.0.to_le_bytes()),
        Body::Seal | Body::Repaired => {}
        Body::Copy(copied) => {
            assert!(copied.body.is_copied(), "compaction copies no other records");
            out.extend_from_slice(&copied.lsn.to_le_bytes());
            out.extend_from_slice(&copied.time_ms.to_le_bytes());
            out.extend_from_slice(&u64::from(copied.body.number()).to_le_bytes());
            encode_body(&copied.body, out);
        }
    }
}

fn decode_body(number: u8, fields: &mut Fields<'_>) -> Option<Body> {
    Some(match number {
        1 => {
            let (len_bytes, payload_offset_bytes) = (fields.u32()?, fields.u32()?);
            Body::Blob { digest: fields.digest()?, len_bytes, payload_offset_bytes }
        }
        2 => {
            let (len_bytes, segment, epoch) = (fields.u64()?, SegmentId(fields.u64()?), fields.u32()?);
            let trailer = fields.array::<SEAL_BYTES>()?;
            Body::Solo { digest: fields.digest()?, len_bytes, segment, epoch, trailer }
        }
        3 => Body::Link { repository: RepositoryKey::new(fields.u64()?)?, digest: fields.digest()? },
        4 => Body::Unlink { repository: RepositoryKey::new(fields.u64()?)?, digest: fields.digest()? },
        5 => Body::Delete { digest: fields.digest()? },
        6 => Body::Corrupt { digest: fields.digest()?, location: optional_location(fields)? },
        7 => Body::Session(SessionRecord::decode(fields)?),
        8 => Body::SessionEnd { session: SessionId::new(fields.array()?) },
        9 => Body::SegmentDrop { segment: SegmentId(fields.u64()?) },
        10 => Body::Seal,
        11 => Body::Repaired,
        12 => {
            let (lsn, time_ms) = (fields.u64()?, fields.u64()?);
            let copied = u8::try_from(fields.u64()?).ok().filter(|number| *number != 12)?;
            let body = decode_body(copied, fields)?;
            body.is_copied().then(|| Body::Copy(Box::new(Copied { lsn, time_ms, body })))?
        }
        _ => return None,
    })
}

impl SessionRecord {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        assert!(self.crcs.len() <= SESSION_CRCS_MAX, "the session splits longer runs");
        out.extend_from_slice(self.session.bytes());
        out.extend_from_slice(&self.repository.number().to_le_bytes());
        out.extend_from_slice(&self.segment.0.to_le_bytes());
        out.extend_from_slice(&self.touched_ms.to_le_bytes());
        out.extend_from_slice(&self.epoch.to_le_bytes());
        out.extend_from_slice(&self.first_block.to_le_bytes());
        out.extend_from_slice(&u16::try_from(self.crcs.len()).unwrap_or(0).to_le_bytes());
        out.push(self.algorithm.number());
        for hashed in [&self.durable, &self.acknowledged] {
            let state = hashed.state.as_bytes();
            out.push(u8::try_from(state.len()).unwrap_or(0));
            out.extend_from_slice(&hashed.offset_bytes.to_le_bytes());
            out.extend_from_slice(state);
        }
        for crc in &self.crcs {
            out.extend_from_slice(&crc.to_le_bytes());
        }
    }

    pub(super) fn decode(fields: &mut Fields<'_>) -> Option<SessionRecord> {
        let session = SessionId::new(fields.array()?);
        let repository = RepositoryKey::new(fields.u64()?)?;
        let segment = SegmentId(fields.u64()?);
        let touched_ms = fields.u64()?;
        let (epoch, first_block) = (fields.u32()?, fields.u32()?);
        let crc_count = usize::from(fields.u16()?);
        let algorithm = Algorithm::from_number(fields.u8()?)?;
        let mut hashed = || {
            let len = usize::from(fields.u8()?);
            let offset_bytes = fields.u64()?;
            Some(HashedOffset { offset_bytes, state: HasherState::from_bytes(fields.bytes(len)?) })
        };
        let (durable, acknowledged) = (hashed()?, hashed()?);
        if crc_count > SESSION_CRCS_MAX {
            return None;
        }
        let crcs = (0..crc_count).map(|_| fields.u32()).collect::<Option<Vec<u32>>>()?;
        Some(SessionRecord {
            session,
            repository,
            algorithm,
            segment,
            epoch,
            touched_ms,
            durable,
            acknowledged,
            first_block,
            crcs,
        })
    }
}

const _: () = assert!(HasherState::BYTES_MAX <= u8::MAX as usize);

#[cfg(test)]
pub(super) mod tests {
    use super::super::seal::Place;
    use super::*;
    use crate::hasher::Hasher;

    pub(in crate::format) fn samples() -> Vec<Body> {
        let digest = Digest::of(Algorithm::Sha256, b"x");
        let long = Digest::of(Algorithm::Sha512, b"x");
        let repository = RepositoryKey::new(77).unwrap();
        let session = SessionId::new([4; 16]);
        let state = Hasher::new(Algorithm::Sha512).export();
        vec![
            Body::Blob { digest, len_bytes: 10, payload_offset_bytes: 256 },
            Body::Solo {
                digest: long,
                len_bytes: 1 << 40,
                segment: SegmentId(9),
                epoch: 2,
                trailer: [7; 32],
            },
            Body::Link { repository, digest: long },
            Body::Unlink { repository, digest },
            Body::Delete { digest },
            Body::Corrupt { digest: long, location: None },
            Body::Corrupt {
                digest,
                location: Some(Location::Inline(Place {
                    segment: SegmentId(4),
                    epoch: 2,
                    offset_bytes: 8320,
                })),
            },
            Body::Corrupt {
                digest: long,
                location: Some(Location::Solo { segment: SegmentId(9), epoch: 1, trailer: [5; 32] }),
            },
            Body::Session(SessionRecord {
                session,
                repository,
                algorithm: Algorithm::Sha512,
                segment: SegmentId(3),
                epoch: 1,
                touched_ms: 5,
                durable: HashedOffset { offset_bytes: 0, state: HasherState::from_bytes(&[]) },
                acknowledged: HashedOffset { offset_bytes: 1 << 33, state },
                first_block: 3,
                crcs: vec![1, 2, 3],
            }),
            Body::SessionEnd { session },
            Body::SegmentDrop { segment: SegmentId(12) },
            Body::Seal,
            Body::Repaired,
            copy(Body::Blob { digest: long, len_bytes: 9, payload_offset_bytes: 512 }),
            copy(Body::Solo {
                digest: long,
                len_bytes: 1 << 40,
                segment: SegmentId(9),
                epoch: 2,
                trailer: [7; 32],
            }),
            copy(Body::Link { repository, digest }),
            copy(Body::Unlink { repository, digest: long }),
            copy(Body::Delete { digest: long }),
            copy(Body::SessionEnd { session }),
        ]
    }

    fn copy(body: Body) -> Body {
        Body::Copy(Box::new(Copied { lsn: 1 << 40, time_ms: 1 << 41, body }))
    }

    #[test]
    fn a_copy_says_what_the_original_said_and_counts_with_its_lsn() {
        let body = Body::Delete { digest: Digest::of(Algorithm::Sha256, b"x") };
        let original = Record { lsn: 1 << 40, body: body.clone() };
        let copied = Record { lsn: 1 << 42, body: copy(body.clone()) };
        for said in [original.said(1 << 41), copied.said(1 << 43)] {
            assert_eq!((said.lsn, said.time_ms, said.body), (1 << 40, 1 << 41, &body));
        }
        assert!(copied.body.is_tombstone());
    }

    #[test]
    fn a_copy_of_a_copy_and_of_what_is_never_copied_is_refused() {
        let mut out = Vec::new();
        Record { lsn: 1, body: copy(Body::Delete { digest: Digest::of(Algorithm::Sha256, b"x") }) }
            .encode(&mut out);
        for (number, accepted) in (0..=255_u8).map(|number| (number, number == 5)) {
            let mut changed = out.clone();
            changed[RECORD_HEADER_BYTES + 16] = number;
            let decoded = Record::decode(&changed);
            let is_copied = decoded.is_some_and(|(record, _)| record.body.said().is_copied());
            assert_eq!(is_copied, accepted, "{number}");
        }
    }

    #[test]
    fn records_decode_to_what_was_encoded() {
        for (index, body) in samples().into_iter().enumerate() {
            let record = Record { lsn: index as u64 + 1, body };
            let mut out = Vec::new();
            record.encode(&mut out);
            assert_eq!(Record::decode(&out), Some((record, out.len())));
        }
    }

    /// Without a location the record is the digest and padding; no location begins with a zero.
    #[test]
    fn a_corrupt_record_without_location_is_still_read() {
        for digest in [Digest::of(Algorithm::Sha256, b"x"), Digest::of(Algorithm::Sha512, b"x")] {
            let mut old = vec![6, 1, 0, 0, 0, 0, 0, 0];
            old.extend_from_slice(&9_u64.to_le_bytes());
            put_digest(&mut old, &digest);
            old.resize(old.len().next_multiple_of(8), 0);
            old[2] = u8::try_from(old.len()).unwrap();
            let body = Body::Corrupt { digest, location: None };
            assert_eq!(Record::decode(&old), Some((Record { lsn: 9, body: body.clone() }, old.len())));
            let mut out = Vec::new();
            Record { lsn: 9, body }.encode(&mut out);
            assert_eq!(out, old, "and nothing else");
        }
    }

    #[test]
    fn truncated_records_are_refused() {
        for body in samples() {
            let mut out = Vec::new();
            Record { lsn: 1, body }.encode(&mut out);
            for len in 0..out.len() {
                assert_eq!(Record::decode(&out[..len]), None);
            }
        }
    }

    #[test]
    fn the_longest_session_record_fits() {
        let samples = samples();
        let Some(Body::Session(session)) = samples.iter().find(|body| matches!(body, Body::Session(_)))
        else {
            panic!("there is a session sample");
        };
        let session = SessionRecord { crcs: vec![0; SESSION_CRCS_MAX], ..session.clone() };
        let mut out = Vec::new();
        Record { lsn: 1, body: Body::Session(session) }.encode(&mut out);
        assert!(out.len() <= RECORD_BYTES_MAX && Record::decode(&out).is_some());
    }
}
