//! How many bytes of a log segment a record takes, with the payload that it brings: what is lost when the record counts no more,
//! and what a copy of it costs.

use super::payload::PAYLOAD_HEADER_BYTES;
use super::record::{RECORD_HEADER_BYTES, SessionRecord};
use super::seal::SEAL_BYTES;
use crate::digest::Algorithm;

/// Payloads lie at multiples of this, in bytes.
pub(super) const PAYLOAD_ALIGN_BYTES: usize = 64;

/// A BLOB record of a blob of `len_bytes`, with payload header and payload, and the zeros up to the next payload.
pub fn inline_blob_bytes(algorithm: Algorithm, len_bytes: u64) -> u64 {
    let payload_bytes = (PAYLOAD_HEADER_BYTES as u64).saturating_add(len_bytes);
    record_bytes(4 + 4 + digest_bytes(algorithm)) + payload_bytes.next_multiple_of(PAYLOAD_ALIGN_BYTES as u64)
}

/// A SOLO record. The solo file is no part of the log.
pub fn solo_blob_bytes(algorithm: Algorithm) -> u64 {
    record_bytes(8 + 8 + 4 + SEAL_BYTES + digest_bytes(algorithm))
}

/// A LINK record.
pub fn link_bytes(algorithm: Algorithm) -> u64 {
    record_bytes(8 + digest_bytes(algorithm))
}

/// A SESSION record.
pub fn session_bytes(session: &SessionRecord) -> u64 {
    let mut body = Vec::new();
    session.encode(&mut body);
    record_bytes(body.len())
}

fn digest_bytes(algorithm: Algorithm) -> usize {
    1 + algorithm.digest_bytes()
}

fn record_bytes(body_bytes: usize) -> u64 {
    (RECORD_HEADER_BYTES + body_bytes).next_multiple_of(8) as u64
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::SegmentId;
    use super::super::batch::{BATCH_HEADER_BYTES, NewRecord, Position, encode};
    use super::super::record::{Body, Record, tests::samples};
    use super::super::seal::{Key, Place};
    use super::*;
    use crate::digest::Digest;

    fn encoded_bytes(body: Body) -> u64 {
        let mut out = Vec::new();
        Record { lsn: 1, body }.encode(&mut out);
        out.len() as u64
    }

    #[test]
    fn a_footprint_is_what_the_encoder_lays_out() {
        for body in samples() {
            let footprint = match &body {
                Body::Solo { digest, .. } => solo_blob_bytes(digest.algorithm()),
                Body::Link { digest, .. } => link_bytes(digest.algorithm()),
                Body::Session(session) => session_bytes(session),
                Body::Blob { .. }
                | Body::Unlink { .. }
                | Body::Delete { .. }
                | Body::Corrupt { .. }
                | Body::SessionEnd { .. }
                | Body::SegmentDrop { .. }
                | Body::Seal
                | Body::Repaired => continue,
            };
            assert_eq!(footprint, encoded_bytes(body.clone()), "{body:?}");
        }
    }

    #[test]
    fn the_footprints_of_inline_blobs_fill_their_batch() {
        let key = Key::new([1; 32], [2; 16]);
        let place = Place { segment: SegmentId(7), epoch: 3, offset_bytes: 4096 };
        let lens = [0_u64, 1, 64, 65, 9_000];
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512, Algorithm::Blake3] {
            let new: Vec<NewRecord> = lens
                .iter()
                .map(|len| {
                    let payload = Bytes::from(vec![5; usize::try_from(*len).unwrap()]);
                    let digest = Digest::of(algorithm, &payload);
                    let body = Body::Blob { digest, len_bytes: 0, payload_offset_bytes: 0 };
                    NewRecord { body, payload }
                })
                .collect();
            let position = Position { place, first_lsn: 1, previous: [0; 32], time_ms: 1 };
            let batch = encode(&key, position, new);
            let footprints: u64 = lens.iter().map(|len| inline_blob_bytes(algorithm, *len)).sum();
            // The header of the batch, the zeros before the first payload, and those behind the last one.
            let slack = batch.bytes.len() as u64 - footprints;
            assert!(
                slack >= BATCH_HEADER_BYTES as u64 && slack < BATCH_HEADER_BYTES as u64 + 64 + 4096,
                "{slack}"
            );
        }
    }
}
