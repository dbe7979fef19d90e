//! Inline payloads: a sealed header of 192 bytes, then the blob's bytes.
//!
//! The header repeats digest and length and carries a CRC per block, so that one read verifies itself without the batch
//! around it.
//!
//! ```text
//!   0 u32 magic "TFPL"    4 u32 payload length    8 u8 algorithm, digest padded to 64    80 u32 × 16 block CRCs    144 zeros    160 seal[32]
//! ```

use super::seal::{Key, Kind, Place, SEAL_BYTES};
use super::wire::Fields;
use super::{BLOCK_BYTES, INLINE_BLOCKS_MAX, INLINE_BYTES_MAX};
use crate::digest::{Algorithm, Digest};

/// Length of the header in bytes.
pub const PAYLOAD_HEADER_BYTES: usize = 192;

const MAGIC: u32 = u32::from_le_bytes(*b"TFPL");
const CRC_OFFSET: usize = 80;
const SEAL_OFFSET: usize = PAYLOAD_HEADER_BYTES - SEAL_BYTES;
const _: () = assert!(CRC_OFFSET + INLINE_BLOCKS_MAX * 4 <= SEAL_OFFSET);

/// A validated payload header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PayloadHeader {
    /// The blob's digest.
    pub digest: Digest,
    /// The blob's length in bytes, at most [`INLINE_BYTES_MAX`].
    pub len_bytes: usize,
    crcs: [u32; INLINE_BLOCKS_MAX],
}

impl PayloadHeader {
    /// Appends header and payload to `out`; the header will lie at `place`.
    pub fn encode(out: &mut Vec<u8>, key: &Key, place: Place, digest: &Digest, payload: &[u8]) {
        assert!(payload.len() <= INLINE_BYTES_MAX, "the engine makes larger blobs solo files");
        let start = out.len();
        out.extend_from_slice(&MAGIC.to_le_bytes());
        out.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes());
        out.push(digest.algorithm().number());
        out.extend_from_slice(digest.bytes());
        out.resize(start + CRC_OFFSET, 0);
        for (index, block) in payload.chunks(BLOCK_BYTES).enumerate() {
            out.extend_from_slice(&key.block_crc(block_place(place, index), block).to_le_bytes());
        }
        out.resize(start + SEAL_OFFSET, 0);
        let seal = key.seal(Kind::Payload, place, &[&out[start..]]);
        out.extend_from_slice(&seal);
        out.extend_from_slice(payload);
    }

    /// Takes up and validates a header that was read from `place`.
    pub fn decode(bytes: &[u8], key: &Key, place: Place) -> Option<PayloadHeader> {
        let (sealed, seal) = bytes.get(..PAYLOAD_HEADER_BYTES)?.split_at_checked(SEAL_OFFSET)?;
        if key.seal(Kind::Payload, place, &[sealed]) != seal {
            return None;
        }
        let mut fields = Fields::new(sealed);
        if fields.u32()? != MAGIC {
            return None;
        }
        let len_bytes = usize::try_from(fields.u32()?).ok()?;
        let algorithm = Algorithm::from_number(fields.u8()?)?;
        let digest = Digest::from_parts(algorithm, fields.bytes(algorithm.digest_bytes())?)?;
        if len_bytes > INLINE_BYTES_MAX {
            return None;
        }
        let mut fields = Fields::new(&sealed[CRC_OFFSET..]);
        let mut crcs = [0; INLINE_BLOCKS_MAX];
        for crc in &mut crcs {
            *crc = fields.u32()?;
        }
        Some(PayloadHeader { digest, len_bytes, crcs })
    }

    /// Whether `block`, the `index`-th of the payload whose header lies at `place`, is what was written.
    pub fn block_is_intact(&self, key: &Key, place: Place, index: usize, block: &[u8]) -> bool {
        self.crcs.get(index).is_some_and(|crc| key.block_crc(block_place(place, index), block) == *crc)
    }
}

fn block_place(header: Place, index: usize) -> Place {
    let skipped = PAYLOAD_HEADER_BYTES + index * BLOCK_BYTES;
    Place { offset_bytes: header.offset_bytes + skipped as u64, ..header }
}

#[cfg(test)]
mod tests {
    use super::super::SegmentId;
    use super::*;

    #[test]
    fn a_payload_verifies_block_by_block_and_only_at_its_place() {
        let key = Key::new([1; 32], [2; 16]);
        let place = Place { segment: SegmentId(1), epoch: 1, offset_bytes: 4224 };
        let payload: Vec<u8> = (0..=250_u8).cycle().take(BLOCK_BYTES + 77).collect();
        let digest = Digest::of(Algorithm::Sha512, &payload);
        let mut out = vec![0xee; 3];
        PayloadHeader::encode(&mut out, &key, place, &digest, &payload);
        let out = &out[3..];
        let header = PayloadHeader::decode(out, &key, place).unwrap();
        assert_eq!((header.digest, header.len_bytes), (digest, payload.len()));
        let stored = &out[PAYLOAD_HEADER_BYTES..];
        assert!(header.block_is_intact(&key, place, 0, &stored[..BLOCK_BYTES]));
        assert!(header.block_is_intact(&key, place, 1, &stored[BLOCK_BYTES..]));
        assert!(!header.block_is_intact(&key, place, 1, &stored[..BLOCK_BYTES]));
        assert!(!header.block_is_intact(&key, place, 99, &stored[..BLOCK_BYTES]));
        let elsewhere = Place { offset_bytes: 8192, ..place };
        assert!(PayloadHeader::decode(out, &key, elsewhere).is_none());
        for bit in (0..PAYLOAD_HEADER_BYTES * 8).step_by(7) {
            let mut damaged = out.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(PayloadHeader::decode(&damaged, &key, place).is_none(), "bit {bit}");
        }
    }
}
