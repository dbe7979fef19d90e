//! Segment headers: the first 4096 bytes of every log segment and solo file.
//!
//! ```text
//!   0  magic "TAFFSEG1"      8 u16 version     10 u8 kind (1 log, 2 solo)    11 u8 zero
//!  12 u32 epoch             16 uuid[16]        32 u64 segment id             40 u64 created_ms
//!  log:  48 u64 previous segment (0: none)     56 u64 where it ends          64 u64 first lsn   72 seal[32] of its last batch
//!  solo: 48 session id[16]  64 u8 algorithm
//!  4064 seal[32]
//! ```

use super::seal::{Key, Kind, Place, SEAL_BYTES, Seal};
use super::wire::Fields;
use super::{ALIGN_BYTES, Lsn, SegmentId};
use crate::digest::Algorithm;
use crate::repository::SessionId;

/// Length of a segment header in bytes.
pub const HEADER_BYTES: usize = ALIGN_BYTES;

/// Stands in [`Previous`] for a seal that is not known: an opening that starts behind the last batch, where a checkpoint ends,
/// never reads it, and what stands behind a repaired range continues a seal that is lost.
pub const UNKNOWN_SEAL: Seal = [0; SEAL_BYTES];

const MAGIC: [u8; 8] = *b"TAFFSEG1";
const VERSION: u16 = 1;
const SEAL_OFFSET: usize = HEADER_BYTES - SEAL_BYTES;

/// A validated segment header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Which segment this is.
    pub id: SegmentId,
    /// The epoch of the opening that made it.
    pub epoch: u32,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: u64,
    /// What it holds.
    pub content: Content,
}

/// What a segment holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Batches of the main log.
    Log {
        /// The segment before it, and where that one's valid batches end; `None` for the first of a store.
        previous: Option<Previous>,
        /// The LSN of its first record.
        first_lsn: Lsn,
    },
    /// One large blob.
    Solo {
        /// The upload session that writes it.
        session: SessionId,
        /// The algorithm the session hashes with.
        algorithm: Algorithm,
    },
}

/// How the segment before ends. It is written when that segment is finished, and makes its end explicit: whatever lies behind
/// it was never acknowledged, whatever is damaged before it is damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Previous {
    /// Its id.
    pub id: SegmentId,
    /// Offset behind its last batch.
    pub end_bytes: u64,
    /// Seal of its last batch, or of its header when it has none; [`UNKNOWN_SEAL`] when the writer did not read it.
    pub seal: Seal,
}

impl SegmentHeader {
    /// The bytes to write at offset 0.
    pub fn encode(&self, key: &Key) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.push(if matches!(self.content, Content::Log { .. }) { 1 } else { 2 });
        out.push(0);
        out.extend_from_slice(&self.epoch.to_le_bytes());
        out.extend_from_slice(key.uuid());
        out.extend_from_slice(&self.id.0.to_le_bytes());
        out.extend_from_slice(&self.created_ms.to_le_bytes());
        match &self.content {
            Content::Log { previous, first_lsn } => {
                let (id, end_bytes, seal) = previous.map_or((0, 0, [0; SEAL_BYTES]), |previous| {
                    (previous.id.0, previous.end_bytes, previous.seal)
                });
                out.extend_from_slice(&id.to_le_bytes());
                out.extend_from_slice(&end_bytes.to_le_bytes());
                out.extend_from_slice(&first_lsn.to_le_bytes());
                out.extend_from_slice(&seal);
            }
            Content::Solo { session, algorithm } => {
                out.extend_from_slice(session.bytes());
                out.push(algorithm.number());
            }
        }
        out.resize(SEAL_OFFSET, 0);
        let seal = key.seal(Kind::SegmentHeader, self.place(), &[&out]);
        out.extend_from_slice(&seal);
        out
    }

    /// Takes up and validates what was read from offset 0 of the file that is called `id`.
    pub fn decode(bytes: &[u8], id: SegmentId, key: &Key) -> Option<SegmentHeader> {
        let (sealed, seal) = bytes.split_at_checked(SEAL_OFFSET)?;
        let mut fields = Fields::new(sealed);
        if fields.array::<8>()? != MAGIC || fields.u16()? != VERSION {
            return None;
        }
        let kind = fields.u8()?;
        fields.u8()?;
        let epoch = fields.u32()?;
        let uuid = fields.array::<16>()?;
        let stored_id = SegmentId(fields.u64()?);
        let created_ms = fields.u64()?;
        if uuid != *key.uuid() || stored_id != id {
            return None;
        }
        let content = match kind {
            1 => {
                let (previous, end_bytes, first_lsn) = (fields.u64()?, fields.u64()?, fields.u64()?);
                let seal = fields.array::<SEAL_BYTES>()?;
                let previous =
                    (previous != 0).then_some(Previous { id: SegmentId(previous), end_bytes, seal });
                Content::Log { previous, first_lsn }
            }
            2 => Content::Solo {
                session: SessionId::new(fields.array()?),
                algorithm: Algorithm::from_number(fields.u8()?)?,
            },
            _ => return None,
        };
        let header = SegmentHeader { id, epoch, created_ms, content };
        (key.seal(Kind::SegmentHeader, header.place(), &[sealed]) == seal).then_some(header)
    }

    /// The seal at the end of an encoded header.
    pub fn seal_of(encoded: &[u8]) -> Seal {
        let mut seal = [0; SEAL_BYTES];
        if let Some(bytes) = encoded.get(SEAL_OFFSET..HEADER_BYTES) {
            seal.copy_from_slice(bytes);
        }
        seal
    }

    fn place(&self) -> Place {
        Place { segment: self.id, epoch: self.epoch, offset_bytes: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_decode_to_what_was_encoded_and_only_under_their_name() {
        let key = Key::new([1; 32], [2; 16]);
        let previous = Some(Previous { id: SegmentId(6), end_bytes: 8192, seal: [3; 32] });
        for content in [
            Content::Log { previous: None, first_lsn: 1 },
            Content::Log { previous, first_lsn: 77 },
            Content::Solo { session: SessionId::new([5; 16]), algorithm: Algorithm::Sha512 },
        ] {
            let header = SegmentHeader { id: SegmentId(7), epoch: 2, created_ms: 1, content };
            let bytes = header.encode(&key);
            assert_eq!(bytes.len(), HEADER_BYTES);
            assert_eq!(SegmentHeader::decode(&bytes, header.id, &key).as_ref(), Some(&header));
            assert_eq!(SegmentHeader::decode(&bytes, SegmentId(8), &key), None);
            assert_eq!(SegmentHeader::decode(&bytes[..4000], header.id, &key), None);
            for bit in (0..HEADER_BYTES * 8).step_by(97) {
                let mut damaged = bytes.clone();
                damaged[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(SegmentHeader::decode(&damaged, header.id, &key), None, "bit {bit}");
            }
        }
    }
}
