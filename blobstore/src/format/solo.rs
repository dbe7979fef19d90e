//! Solo files: one large blob each.
//!
//! ```text
//!      0  segment header (4096)
//!   4096  the blob's bytes, then zeros to a multiple of 4096
//!      …  u32 CRC of each 256 KiB block, then zeros to a multiple of 4096
//!      …  trailer (4096):  0 magic "TAFFSOL1"   8 u64 length   16 u8 algorithm, digest padded to 64   88 u32 number of blocks
//!         4064 seal[32] of trailer and checksums, at the trailer's place
//! ```
//!
//! The payload starts aligned, so that it can be written past the page cache and sent from the file as it is.

use super::seal::{Key, Kind, Place, SEAL_BYTES, Seal};
use super::segment::HEADER_BYTES;
use super::wire::Fields;
use super::{ALIGN_BYTES, BLOCK_BYTES, SegmentId};
use crate::digest::{Algorithm, Digest};

/// Where the payload starts, in bytes.
pub const PAYLOAD_OFFSET_BYTES: u64 = HEADER_BYTES as u64;

/// Length of the trailer in bytes.
pub const TRAILER_BYTES: usize = ALIGN_BYTES;

const MAGIC: [u8; 8] = *b"TAFFSOL1";
const SEAL_OFFSET: usize = TRAILER_BYTES - SEAL_BYTES;

/// Where the parts of a solo file lie, by the length of its blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Length of the blob in bytes.
    pub len_bytes: u64,
    /// Number of blocks.
    pub blocks: u64,
    /// Offset of the checksums.
    pub crcs_offset_bytes: u64,
    /// Offset of the trailer.
    pub trailer_offset_bytes: u64,
    /// Length of the file.
    pub file_bytes: u64,
}

impl Layout {
    /// The layout for a blob of `len_bytes`; `None` when no file can be that long.
    pub fn new(len_bytes: u64) -> Option<Layout> {
        const ALIGN: u64 = ALIGN_BYTES as u64;
        let blocks = len_bytes.div_ceil(BLOCK_BYTES as u64);
        let crcs_offset_bytes =
            PAYLOAD_OFFSET_BYTES.checked_add(len_bytes.checked_next_multiple_of(ALIGN)?)?;
        let crcs_bytes = blocks.checked_mul(4)?.checked_next_multiple_of(ALIGN)?;
        let trailer_offset_bytes = crcs_offset_bytes.checked_add(crcs_bytes)?;
        let file_bytes = trailer_offset_bytes.checked_add(TRAILER_BYTES as u64)?;
        u32::try_from(blocks).ok()?;
        Some(Layout { len_bytes, blocks, crcs_offset_bytes, trailer_offset_bytes, file_bytes })
    }
}

/// The place of a block of a solo file, for its CRC.
pub fn block_place(segment: SegmentId, epoch: u32, block: u64) -> Place {
    Place { segment, epoch, offset_bytes: PAYLOAD_OFFSET_BYTES + block * BLOCK_BYTES as u64 }
}

/// Makes checksums and trailer, to be written at `layout.crcs_offset_bytes`, and the trailer's seal.
pub fn encode_tail(
    key: &Key,
    segment: SegmentId,
    epoch: u32,
    layout: &Layout,
    digest: &Digest,
    crcs: &[u32],
) -> (Vec<u8>, Seal) {
    assert!(crcs.len() as u64 == layout.blocks, "one checksum per block");
    let mut out: Vec<u8> = crcs.iter().flat_map(|crc| crc.to_le_bytes()).collect();
    let table_len = out.len();
    out.resize(out.len().next_multiple_of(ALIGN_BYTES), 0);
    let start = out.len();
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&layout.len_bytes.to_le_bytes());
    out.push(digest.algorithm().number());
    out.extend_from_slice(digest.bytes());
    out.resize(start + 88, 0);
    out.extend_from_slice(&u32::try_from(layout.blocks).unwrap_or(u32::MAX).to_le_bytes());
    out.resize(start + SEAL_OFFSET, 0);
    let place = Place { segment, epoch, offset_bytes: layout.trailer_offset_bytes };
    let seal = key.seal(Kind::SoloTrailer, place, &[&out[start..], &out[..table_len]]);
    out.extend_from_slice(&seal);
    (out, seal)
}

/// A validated trailer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trailer {
    /// The blob's digest.
    pub digest: Digest,
    /// The checksum of each block.
    pub crcs: Vec<u32>,
    /// The trailer's seal.
    pub seal: Seal,
}

impl Trailer {
    /// Takes up and validates `tail`: the file from `layout.crcs_offset_bytes` to its end.
    pub fn decode(
        tail: &[u8],
        key: &Key,
        segment: SegmentId,
        epoch: u32,
        layout: &Layout,
    ) -> Option<Trailer> {
        let table_len = usize::try_from(layout.blocks).ok()?.checked_mul(4)?;
        let (padded_table, trailer) = tail.split_at_checked(table_len.next_multiple_of(ALIGN_BYTES))?;
        let table = padded_table.get(..table_len)?;
        let (sealed, seal) = trailer.get(..TRAILER_BYTES)?.split_at_checked(SEAL_OFFSET)?;
        let place = Place { segment, epoch, offset_bytes: layout.trailer_offset_bytes };
        if key.seal(Kind::SoloTrailer, place, &[sealed, table]) != seal {
            return None;
        }
        let mut fields = Fields::new(sealed);
        if fields.array::<8>()? != MAGIC || fields.u64()? != layout.len_bytes {
            return None;
        }
        let algorithm = Algorithm::from_number(fields.u8()?)?;
        let digest = Digest::from_parts(algorithm, fields.bytes(algorithm.digest_bytes())?)?;
        let crcs =
            table.chunks_exact(4).map(|crc| u32::from_le_bytes([crc[0], crc[1], crc[2], crc[3]])).collect();
        Some(Trailer { digest, crcs, seal: seal.try_into().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_decodes_to_what_was_encoded_and_finds_damage() {
        let key = Key::new([1; 32], [2; 16]);
        let layout = Layout::new(BLOCK_BYTES as u64 * 2000 + 5).unwrap();
        assert_eq!(layout.blocks, 2001);
        let crcs: Vec<u32> = (0..2001).collect();
        let digest = Digest::of(Algorithm::Blake3, b"x");
        let (tail, seal) = encode_tail(&key, SegmentId(5), 1, &layout, &digest, &crcs);
        assert_eq!(layout.crcs_offset_bytes + tail.len() as u64, layout.file_bytes);
        let expected = Trailer { digest, crcs, seal };
        assert_eq!(Trailer::decode(&tail, &key, SegmentId(5), 1, &layout), Some(expected));
        assert_eq!(Trailer::decode(&tail, &key, SegmentId(6), 1, &layout), None);
        for byte in [0, 8003, tail.len() - 4096, tail.len() - 4080, tail.len() - 1] {
            let mut damaged = tail.clone();
            damaged[byte] ^= 1;
            assert_eq!(Trailer::decode(&damaged, &key, SegmentId(5), 1, &layout), None, "byte {byte}");
        }
        assert_eq!(Trailer::decode(&tail[..100], &key, SegmentId(5), 1, &layout), None);
    }

    #[test]
    fn impossible_lengths_have_no_layout() {
        assert!(Layout::new(u64::MAX).is_none());
        assert!(Layout::new(1 << 62).is_none());
        assert_eq!(Layout::new(0).map(|layout| layout.file_bytes), Some(8192));
    }
}
