//! Seals: keyed BLAKE3 over a structure and the place it lies at.
//!
//! What must stay true: a seal made for one place never validates at another, so a stale, misdirected or duplicated block
//! is found; and it needs the store's random key, so that bytes a client uploads can never pass for structure.

use super::SegmentId;

/// Length of a seal in bytes.
pub const SEAL_BYTES: usize = 32;

/// A seal.
pub type Seal = [u8; SEAL_BYTES];

/// What is sealed; part of the seal, so that one kind never passes for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The header of a segment.
    SegmentHeader,
    /// A batch of the main log: header and records.
    Batch,
    /// The header of an inline payload.
    Payload,
    /// The trailer of a solo file with its checksums.
    SoloTrailer,
    /// The header of a checkpoint.
    CheckpointHeader,
    /// A frame of a checkpoint.
    CheckpointFrame,
    /// The header of a partition.
    PartitionHeader,
    /// The directory of a partition.
    PartitionDirectory,
    /// The table of garbage of a partition.
    PartitionGarbage,
}

impl Kind {
    const fn number(self) -> u8 {
        match self {
            Kind::SegmentHeader => 1,
            Kind::Batch => 2,
            Kind::Payload => 3,
            Kind::SoloTrailer => 4,
            Kind::CheckpointHeader => 5,
            Kind::CheckpointFrame => 6,
            Kind::PartitionHeader => 7,
            Kind::PartitionDirectory => 8,
            Kind::PartitionGarbage => 9,
        }
    }
}

/// Where a sealed structure lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file: a segment id, or the number of a checkpoint or partition.
    pub segment: SegmentId,
    /// The epoch in which the file was made; ids are never reused, and this holds even if they were.
    pub epoch: u32,
    /// Offset in the file, in bytes.
    pub offset_bytes: u64,
}

/// The store's key and identity.
#[derive(Clone)]
pub struct Key {
    key: [u8; 32],
    uuid: [u8; 16],
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key")
    }
}

impl Key {
    /// The key and uuid of a superblock.
    pub const fn new(key: [u8; 32], uuid: [u8; 16]) -> Key {
        Key { key, uuid }
    }

    /// The store's uuid.
    pub const fn uuid(&self) -> &[u8; 16] {
        &self.uuid
    }

    /// Seals the concatenation of `parts`.
    pub fn seal(&self, kind: Kind, place: Place, parts: &[&[u8]]) -> Seal {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(&[kind.number()]);
        hasher.update(&self.uuid);
        hasher.update(&place.segment.0.to_le_bytes());
        hasher.update(&place.epoch.to_le_bytes());
        hasher.update(&place.offset_bytes.to_le_bytes());
        for part in parts {
            hasher.update(part);
        }
        *hasher.finalize().as_bytes()
    }

    /// The CRC-32 of a payload block that lies at `place`: seeded with store, file and offset, so that a block of another
    /// place does not pass.
    pub fn block_crc(&self, place: Place, block: &[u8]) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        let mut context = [0_u8; 36];
        context[..16].copy_from_slice(&self.uuid);
        context[16..24].copy_from_slice(&place.segment.0.to_le_bytes());
        context[24..28].copy_from_slice(&place.epoch.to_le_bytes());
        context[28..].copy_from_slice(&place.offset_bytes.to_le_bytes());
        hasher.update(&context);
        hasher.update(block);
        hasher.finalize()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seal_holds_only_at_its_place_for_its_kind_and_store() {
        let key = Key::new([7; 32], [9; 16]);
        let place = Place { segment: SegmentId(3), epoch: 1, offset_bytes: 4096 };
        let seal = key.seal(Kind::Batch, place, &[b"ab", b"c"]);
        assert_eq!(seal, key.seal(Kind::Batch, place, &[b"abc"]));
        let others = [
            key.seal(Kind::Payload, place, &[b"abc"]),
            key.seal(Kind::Batch, Place { offset_bytes: 8192, ..place }, &[b"abc"]),
            key.seal(Kind::Batch, Place { epoch: 2, ..place }, &[b"abc"]),
            key.seal(Kind::Batch, Place { segment: SegmentId(4), ..place }, &[b"abc"]),
            Key::new([8; 32], [9; 16]).seal(Kind::Batch, place, &[b"abc"]),
            Key::new([7; 32], [8; 16]).seal(Kind::Batch, place, &[b"abc"]),
        ];
        assert!(others.iter().all(|other| *other != seal));
    }

    #[test]
    fn a_block_crc_depends_on_the_place() {
        let key = Key::new([7; 32], [9; 16]);
        let place = Place { segment: SegmentId(3), epoch: 1, offset_bytes: 4096 };
        let crc = key.block_crc(place, b"block");
        assert_ne!(crc, key.block_crc(Place { offset_bytes: 8192, ..place }, b"block"));
        assert_ne!(crc, key.block_crc(place, b"blocl"));
    }
}
