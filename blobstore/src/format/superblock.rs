//! The superblock: which store this is, its epoch, and where the checkpoint lies.
//!
//! Two copies are written in turn ([`super::SUPERBLOCK_NAMES`]), each whole and synced, so that a torn one leaves the
//! other. The newer valid one counts. The fields are archived by rkyv (checked by bytecheck) behind a fixed frame.
//!
//! ```text
//!   0  magic "TAFFSUP1"
//!   8  u32   length of the archive
//!  12  u32   zero
//!  16  32 B  BLAKE3 of magic, length and archive
//!  48  archive, then zeros to 4096
//! ```

use rkyv::util::AlignedVec;

/// Length of a superblock in bytes: one unit of direct I/O.
pub const SUPERBLOCK_BYTES: usize = 4096;

/// The format that this code writes. `docs/format.md` has the history.
pub const FORMAT_VERSION: u32 = 2;

/// Smallest and largest log segment, in bytes.
pub const SEGMENT_BYTES_MIN: u64 = 1024 * 1024;
/// See [`SEGMENT_BYTES_MIN`].
pub const SEGMENT_BYTES_MAX: u64 = 256 * 1024 * 1024;

const MAGIC: [u8; 8] = *b"TAFFSUP1";
const ARCHIVE_OFFSET: usize = 48;
const HASH_CONTEXT: &str = "taffrail 2026-11 superblock";

/// What a store says of itself. Every field is validated by [`Superblock::decode`].
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Superblock {
    /// See [`FORMAT_VERSION`].
    pub format: u32,
    /// Raised by every opening; the newer superblock is the one with the higher `sequence`.
    pub epoch: u32,
    /// Raised by every write of a superblock.
    pub sequence: u64,
    /// Identity of the store.
    pub uuid: [u8; 16],
    /// Key of every seal.
    pub key: [u8; 32],
    /// Length of new log segments.
    pub segment_bytes: u64,
    /// The oldest log segment that still exists; those before were dropped.
    pub oldest_segment: u64,
    /// Number of the checkpoint file to start from; 0 for none.
    pub checkpoint: u64,
    /// When this was written, in milliseconds since 1970.
    pub written_ms: u64,
}

/// Why bytes are no superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SuperblockError {
    /// Damaged, or never written.
    #[error("the superblock is damaged")]
    Damaged,
    /// A newer program wrote it.
    #[error("the store has format {0}, newer than this program's {FORMAT_VERSION}; use a newer taffrail")]
    Newer(u32),
}

impl Superblock {
    /// The bytes to write.
    pub fn encode(&self) -> Vec<u8> {
        let archive = rkyv::to_bytes::<rkyv::rancor::Error>(self).unwrap_or_default();
        let mut bytes = vec![0_u8; SUPERBLOCK_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        // The archive of this struct has a fixed size of about 100 bytes; a length that did not fit would not validate.
        bytes[8..12].copy_from_slice(&u32::try_from(archive.len()).unwrap_or(0).to_le_bytes());
        bytes[ARCHIVE_OFFSET..ARCHIVE_OFFSET + archive.len()].copy_from_slice(&archive);
        let hash = hash(&bytes[..16], &archive);
        bytes[16..ARCHIVE_OFFSET].copy_from_slice(&hash);
        bytes
    }

    /// Takes up and validates what was read.
    ///
    /// # Errors
    /// See [`SuperblockError`].
    pub fn decode(bytes: &[u8]) -> Result<Superblock, SuperblockError> {
        let damaged = SuperblockError::Damaged;
        if bytes.len() != SUPERBLOCK_BYTES || bytes[..8] != MAGIC {
            return Err(damaged);
        }
        let len = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
        let len = usize::try_from(len).map_err(|_| damaged)?;
        let archive = bytes[ARCHIVE_OFFSET..].get(..len).ok_or(damaged)?;
        if bytes[16..ARCHIVE_OFFSET] != hash(&bytes[..16], archive) {
            return Err(damaged);
        }
        let mut aligned = AlignedVec::<16>::new();
        aligned.extend_from_slice(archive);
        let superblock =
            rkyv::from_bytes::<Superblock, rkyv::rancor::Error>(&aligned).map_err(|_| damaged)?;
        if superblock.format > FORMAT_VERSION {
            return Err(SuperblockError::Newer(superblock.format));
        }
        let valid = superblock.format != 0
            && superblock.segment_bytes.is_power_of_two()
            && (SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&superblock.segment_bytes);
        if valid { Ok(superblock) } else { Err(damaged) }
    }
}

fn hash(frame: &[u8], archive: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key(HASH_CONTEXT);
    hasher.update(frame);
    hasher.update(archive);
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Superblock {
        Superblock {
            format: FORMAT_VERSION,
            epoch: 3,
            sequence: 9,
            uuid: [1; 16],
            key: [2; 32],
            segment_bytes: 64 << 20,
            oldest_segment: 5,
            checkpoint: 4,
            written_ms: 1_795_000_000_000,
        }
    }

    #[test]
    fn a_superblock_decodes_to_what_was_encoded() {
        let bytes = sample().encode();
        assert_eq!(bytes.len(), SUPERBLOCK_BYTES);
        assert_eq!(Superblock::decode(&bytes), Ok(sample()));
    }

    #[test]
    fn every_flipped_bit_of_the_used_part_is_found() {
        let bytes = sample().encode();
        let used = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        for bit in 0..used * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Superblock::decode(&damaged).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_newer_format_is_named() {
        let newer = Superblock { format: FORMAT_VERSION + 1, ..sample() };
        assert_eq!(Superblock::decode(&newer.encode()), Err(SuperblockError::Newer(FORMAT_VERSION + 1)));
    }
}
