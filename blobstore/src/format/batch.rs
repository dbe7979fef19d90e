//! Commit batches: the unit of atomicity and of flushing.
//!
//! A batch is valid whole or not at all, as far as its records go; the payloads behind them verify themselves
//! ([`super::payload`]). Each carries the seal of the batch before it.
//!
//! ```text
//!   0 u32 magic "TFBT"    4 u32 length of the records    8 u32 length of the batch, a multiple of 4096    12 u32 number of records
//!  16 u64 first lsn      24 u32 epoch                   28 u32 flags                                    32 u64 time_ms
//!  40 u64 segment        48 first 16 bytes of the seal before                                          64 seal[32]   96 zeros
//! 128 records, then payloads each at a multiple of 64, then zeros
//! ```

use bytes::Bytes;

use super::footprint::PAYLOAD_ALIGN_BYTES;
use super::payload::{PAYLOAD_HEADER_BYTES, PayloadHeader};
use super::record::{Body, Record};
use super::seal::{Key, Kind, Place, SEAL_BYTES, Seal};
use super::wire::Fields;
use super::{ALIGN_BYTES, Lsn, SegmentId, aligned};
use crate::buffer::AlignedBytes;

/// Length of a batch header in bytes.
pub const BATCH_HEADER_BYTES: usize = 128;

/// No batch is longer, in bytes: a manifest of 4 MiB and links to the forty thousand blobs that it can name need half.
pub const BATCH_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The appender takes no further group into a batch past this length, in bytes: enough to amortise a flush, little enough
/// that nobody waits long behind it.
pub const BATCH_BYTES_SOFT: usize = 8 * 1024 * 1024;

const MAGIC: u32 = u32::from_le_bytes(*b"TFBT");
const SEAL_OFFSET: usize = 64;
/// Set when the batch stands in the place of a damaged range, or before a place where the chain of seals was broken. Its length is
/// bounded by the segment only, and the batch behind it does not continue its seal.
const FLAG_REPAIRED: u32 = 1;

/// A record on its way into a batch, with the payload that a [`Body::Blob`] or a copy of one brings. Its LSN and payload offset are set when
/// the batch is made.
#[derive(Clone, Debug)]
pub struct NewRecord {
    /// What it says.
    pub body: Body,
    /// The bytes of a [`Body::Blob`], or of the one copied; empty for every other.
    pub payload: Bytes,
}

/// Where a batch goes, and what it continues.
#[derive(Clone, Copy, Debug)]
pub struct Position {
    /// Place of the batch.
    pub place: Place,
    /// LSN of its first record.
    pub first_lsn: Lsn,
    /// Seal of the batch or header before.
    pub previous: Seal,
    /// Now, in milliseconds since 1970.
    pub time_ms: u64,
}

/// A batch ready to be written.
#[derive(Debug)]
pub struct Batch {
    /// Header, records, payloads, padding: what is written, at an address that a write past the page cache accepts.
    pub bytes: AlignedBytes,
    /// The records, with LSN and payload offset set.
    pub records: Vec<Record>,
    /// The batch's seal, for the one behind it.
    pub seal: Seal,
}

/// An upper bound of the bytes that `record` takes in a batch.
pub fn record_bytes_bound(record: &NewRecord) -> usize {
    // The longest record besides SESSION is the copy of a SOLO with a 64-byte digest, 160 bytes.
    let body = if let Body::Session(session) = &record.body { 600 + session.crcs.len() * 4 } else { 176 };
    let payload = if matches!(record.body.said(), Body::Blob { .. }) {
        PAYLOAD_HEADER_BYTES + record.payload.len() + PAYLOAD_ALIGN_BYTES
    } else {
        0
    };
    body + payload
}

/// Makes a batch.
pub fn encode(key: &Key, position: Position, new: Vec<NewRecord>) -> Batch {
    encode_into(AlignedBytes::default(), key, position, new)
}

/// Makes a batch in the memory of `spare`, where it suffices.
pub(crate) fn encode_into(spare: AlignedBytes, key: &Key, position: Position, new: Vec<NewRecord>) -> Batch {
    let (mut records, payloads): (Vec<Record>, Vec<Bytes>) = new
        .into_iter()
        .zip(position.first_lsn..)
        .map(|(new, lsn)| (Record { lsn, body: new.body }, new.payload))
        .unzip();
    // Payload offsets are known only when the length of the records is; that does not depend on the offsets.
    let mut bytes = AlignedBytes::with_room(BATCH_HEADER_BYTES, spare);
    bytes.append(|out| records.iter().for_each(|record| record.encode(out)));
    let records_len = bytes.len();
    let mut offset = BATCH_HEADER_BYTES + records_len;
    for (record, payload) in records.iter_mut().zip(&payloads) {
        if let Some(payload_offset_bytes) = record.body.payload_offset_mut() {
            offset = offset.next_multiple_of(PAYLOAD_ALIGN_BYTES);
            *payload_offset_bytes = len_u32(offset);
            offset += PAYLOAD_HEADER_BYTES + payload.len();
        }
    }
    let len = aligned(offset);
    assert!(len <= BATCH_BYTES_MAX, "the appender bounds what goes into a batch");
    bytes = AlignedBytes::with_room(len, bytes);
    bytes.resize(BATCH_HEADER_BYTES);
    bytes.append(|out| records.iter().for_each(|record| record.encode(out)));
    for (record, payload) in records.iter().zip(&payloads) {
        if let Body::Blob { digest, payload_offset_bytes, .. } = record.body.said() {
            bytes.resize(bytes.len().next_multiple_of(PAYLOAD_ALIGN_BYTES));
            let place = payload_place(position.place, *payload_offset_bytes);
            bytes.append(|out| PayloadHeader::encode(out, key, place, digest, payload));
        }
    }
    bytes.resize(len);
    let seal = put_header(&mut bytes, key, position, records_len, records.len(), 0);
    Batch { bytes, records, seal }
}

/// Makes the batch that stands in the place of a damaged range of `len_bytes`, a multiple of 4096; it has one record, which
/// says so. Only the header and that record are made; the rest of the range is zeros.
pub fn encode_repaired(key: &Key, position: Position, len_bytes: u32) -> Batch {
    let record = Record { lsn: position.first_lsn, body: Body::Repaired };
    let mut bytes = AlignedBytes::with_room(ALIGN_BYTES, AlignedBytes::default());
    bytes.resize(BATCH_HEADER_BYTES);
    bytes.append(|out| record.encode(out));
    let records_len = bytes.len() - BATCH_HEADER_BYTES;
    bytes.resize(ALIGN_BYTES);
    bytes[8..12].copy_from_slice(&len_bytes.to_le_bytes());
    let seal = put_header(&mut bytes, key, position, records_len, 1, FLAG_REPAIRED);
    Batch { bytes, records: vec![record], seal }
}

/// Makes a batch continue `previous` in place of what it continued, for repairs: `bytes` are its header and records, as they lie at
/// `place`. Like a repaired range it is flagged, so that the batch behind it need not continue its new seal. `None`, and nothing is
/// changed, when they are no valid batch.
pub fn reseal(bytes: &mut [u8], key: &Key, place: Place, previous: &Seal) -> Option<Seal> {
    let raw = RawBatchHeader::decode(bytes)?;
    let records = bytes.get(BATCH_HEADER_BYTES..BATCH_HEADER_BYTES + raw.records_len)?;
    let valid = raw.validate(bytes, records, key, place)?;
    let position = Position { place, first_lsn: raw.first_lsn, previous: *previous, time_ms: raw.time_ms };
    Some(put_header(bytes, key, position, raw.records_len, valid.records.len(), raw.flags | FLAG_REPAIRED))
}

fn put_header(
    bytes: &mut [u8],
    key: &Key,
    position: Position,
    records_len: usize,
    record_count: usize,
    flags: u32,
) -> Seal {
    let batch_len = if flags & FLAG_REPAIRED == 0 {
        len_u32(bytes.len())
    } else {
        u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]])
    };
    let mut header = Vec::with_capacity(SEAL_OFFSET);
    header.extend_from_slice(&MAGIC.to_le_bytes());
    header.extend_from_slice(&len_u32(records_len).to_le_bytes());
    header.extend_from_slice(&batch_len.to_le_bytes());
    header.extend_from_slice(&len_u32(record_count).to_le_bytes());
    header.extend_from_slice(&position.first_lsn.to_le_bytes());
    header.extend_from_slice(&position.place.epoch.to_le_bytes());
    header.extend_from_slice(&flags.to_le_bytes());
    header.extend_from_slice(&position.time_ms.to_le_bytes());
    header.extend_from_slice(&position.place.segment.0.to_le_bytes());
    header.extend_from_slice(&position.previous[..16]);
    bytes[..SEAL_OFFSET].copy_from_slice(&header);
    let sealed = &bytes[BATCH_HEADER_BYTES..BATCH_HEADER_BYTES + records_len];
    let seal = key.seal(Kind::Batch, position.place, &[&header, sealed]);
    bytes[SEAL_OFFSET..SEAL_OFFSET + SEAL_BYTES].copy_from_slice(&seal);
    seal
}

fn len_u32(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

/// The place of a payload header within a batch.
pub fn payload_place(batch: Place, payload_offset_bytes: u32) -> Place {
    Place { offset_bytes: batch.offset_bytes + u64::from(payload_offset_bytes), ..batch }
}

/// A batch header as read, not validated: it says how much more to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawBatchHeader {
    /// Length of the records, in bytes.
    pub records_len: usize,
    /// Length of the whole batch, in bytes.
    pub batch_len: usize,
    record_count: u32,
    first_lsn: Lsn,
    epoch: u32,
    flags: u32,
    time_ms: u64,
    segment: SegmentId,
    previous: [u8; 16],
    seal: Seal,
}

impl RawBatchHeader {
    /// Takes up what was read; `None` when it can be no batch header.
    pub fn decode(bytes: &[u8]) -> Option<RawBatchHeader> {
        let mut fields = Fields::new(bytes.get(..BATCH_HEADER_BYTES)?);
        if fields.u32()? != MAGIC {
            return None;
        }
        let records_len = usize::try_from(fields.u32()?).ok()?;
        let batch_len = usize::try_from(fields.u32()?).ok()?;
        let record_count = fields.u32()?;
        let first_lsn = fields.u64()?;
        let (epoch, flags) = (fields.u32()?, fields.u32()?);
        let time_ms = fields.u64()?;
        let segment = SegmentId(fields.u64()?);
        let (previous, seal) = (fields.array()?, fields.array()?);
        let bounded = batch_len <= BATCH_BYTES_MAX || flags & FLAG_REPAIRED != 0;
        let fits = records_len.checked_add(BATCH_HEADER_BYTES)? <= batch_len.min(BATCH_BYTES_MAX);
        if !bounded || !fits || batch_len % ALIGN_BYTES != 0 || !fields.is_padding() {
            return None;
        }
        Some(RawBatchHeader {
            records_len,
            batch_len,
            record_count,
            first_lsn,
            epoch,
            flags,
            time_ms,
            segment,
            previous,
            seal,
        })
    }

    /// The epoch that it claims.
    pub const fn stated_epoch(&self) -> u32 {
        self.epoch
    }

    /// Validates the header together with the `records_len` bytes behind it, which lie at `place`.
    pub fn validate(&self, header: &[u8], records: &[u8], key: &Key, place: Place) -> Option<ValidBatch> {
        let sealed = header.get(..SEAL_OFFSET)?;
        let placed = self.segment == place.segment && self.epoch == place.epoch;
        if !placed || key.seal(Kind::Batch, place, &[sealed, records]) != self.seal {
            return None;
        }
        let mut decoded = Vec::new();
        let mut rest = records;
        while !rest.is_empty() {
            let (record, len) = Record::decode(rest)?;
            rest = rest.get(len..)?;
            decoded.push(record);
        }
        let counted = u32::try_from(decoded.len()).ok()? == self.record_count;
        let numbered = decoded.iter().zip(self.first_lsn..).all(|(record, lsn)| record.lsn == lsn);
        if !counted || !numbered {
            return None;
        }
        Some(ValidBatch {
            place,
            batch_len: self.batch_len,
            first_lsn: self.first_lsn,
            time_ms: self.time_ms,
            previous: self.previous,
            seal: self.seal,
            repaired: self.flags & FLAG_REPAIRED != 0,
            records: decoded,
        })
    }
}

/// A batch whose seal holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValidBatch {
    /// Where it lies.
    pub place: Place,
    /// Its length, in bytes.
    pub batch_len: usize,
    /// LSN of its first record.
    pub first_lsn: Lsn,
    /// When it was made, in milliseconds since 1970.
    pub time_ms: u64,
    /// First 16 bytes of the seal that it continues.
    pub previous: [u8; 16],
    /// Its seal.
    pub seal: Seal,
    /// Whether it is flagged *repaired*: it stands in the place of a damaged range, or was made to continue another seal.
    pub repaired: bool,
    /// Its records.
    pub records: Vec<Record>,
}

impl ValidBatch {
    /// Whether it continues what ended with `seal`.
    pub fn continues(&self, seal: &Seal) -> bool {
        self.previous == seal[..16]
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::Copied;
    use super::*;
    use crate::digest::{Algorithm, Digest};

    fn decode(bytes: &[u8], key: &Key, place: Place) -> Option<ValidBatch> {
        let raw = RawBatchHeader::decode(bytes)?;
        let records = bytes.get(BATCH_HEADER_BYTES..BATCH_HEADER_BYTES + raw.records_len)?;
        raw.validate(&bytes[..BATCH_HEADER_BYTES], records, key, place)
    }

    fn sample() -> (Key, Position, Batch) {
        let key = Key::new([1; 32], [2; 16]);
        let place = Place { segment: SegmentId(7), epoch: 3, offset_bytes: 4096 };
        let position = Position { place, first_lsn: 100, previous: [9; 32], time_ms: 5 };
        let mut new: Vec<NewRecord> = super::super::record::tests::samples()
            .into_iter()
            .filter(|body| !matches!(body.said(), Body::Blob { .. }))
            .map(|body| NewRecord { body, payload: Bytes::new() })
            .collect();
        for payload in [&b"first"[..], b"", b"second one"] {
            let digest = Digest::of(Algorithm::Sha256, payload);
            let body = Body::Blob { digest, len_bytes: len_u32(payload.len()), payload_offset_bytes: 0 };
            let copied = Body::Copy(Box::new(Copied { lsn: 3, time_ms: 4, body: body.clone() }));
            for body in [body, copied] {
                new.push(NewRecord { body, payload: Bytes::copy_from_slice(payload) });
            }
        }
        let bound: usize = new.iter().map(record_bytes_bound).sum();
        let batch = encode(&key, position, new);
        assert!(batch.bytes.len() <= aligned(BATCH_HEADER_BYTES + bound));
        (key, position, batch)
    }

    #[test]
    fn a_batch_decodes_to_what_was_encoded_and_its_payloads_verify() {
        let (key, position, batch) = sample();
        let valid = decode(&batch.bytes, &key, position.place).unwrap();
        assert_eq!(valid.records, batch.records);
        assert_eq!(valid.batch_len, batch.bytes.len());
        assert!(valid.continues(&[9; 32]) && !valid.continues(&[8; 32]));
        let mut payloads = 0;
        for record in &valid.records {
            if let Body::Blob { digest, len_bytes, payload_offset_bytes } = record.body.said() {
                let place = payload_place(position.place, *payload_offset_bytes);
                let start = *payload_offset_bytes as usize;
                let header = PayloadHeader::decode(&batch.bytes[start..], &key, place).unwrap();
                assert_eq!((&header.digest, header.len_bytes), (digest, *len_bytes as usize));
                let payload = &batch.bytes[start + PAYLOAD_HEADER_BYTES..][..header.len_bytes];
                assert_eq!(Digest::of(Algorithm::Sha256, payload), *digest);
                payloads += 1;
            }
        }
        assert_eq!(payloads, 6);
    }

    #[test]
    fn a_batch_is_invalid_elsewhere_and_with_any_bit_of_its_records_flipped() {
        let (key, position, batch) = sample();
        let elsewhere = Place { offset_bytes: 8192, ..position.place };
        assert_eq!(decode(&batch.bytes, &key, elsewhere), None);
        let raw = RawBatchHeader::decode(&batch.bytes).unwrap();
        for bit in (0..(BATCH_HEADER_BYTES + raw.records_len) * 8).step_by(5) {
            let mut damaged = batch.bytes.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&damaged, &key, position.place), None, "bit {bit}");
        }
    }

    #[test]
    fn a_repaired_range_is_a_batch_of_its_length() {
        let (key, position, _) = sample();
        let batch = encode_repaired(&key, position, 64 << 20);
        let valid = decode(&batch.bytes, &key, position.place).unwrap();
        assert!(valid.repaired);
        assert_eq!(valid.batch_len, 64 << 20);
    }

    #[test]
    fn a_resealed_batch_says_the_same_and_continues_another() {
        let (key, position, batch) = sample();
        let mut bytes = batch.bytes.to_vec();
        assert_eq!(reseal(&mut bytes[..200], &key, position.place, &[8; 32]), None);
        assert_eq!(bytes, *batch.bytes);
        let seal = reseal(&mut bytes, &key, position.place, &[8; 32]).unwrap();
        let valid = decode(&bytes, &key, position.place).unwrap();
        assert_eq!((valid.records, valid.batch_len), (batch.records, batch.bytes.len()));
        assert!(valid.seal == seal && valid.repaired && valid.previous == [8; 16]);
        assert_eq!(bytes[BATCH_HEADER_BYTES..], batch.bytes[BATCH_HEADER_BYTES..]);
    }
}
