//! Superblocks: any archive behind a frame that is right, so that the hash hides nothing from rkyv and bytecheck.
#![no_main]

use libfuzzer_sys::fuzz_target;
use taffrail_blobstore::format::seal::Key;
use taffrail_blobstore::format::segment::SegmentHeader;
use taffrail_blobstore::format::superblock::{SUPERBLOCK_BYTES, Superblock};
use taffrail_blobstore::format::{SegmentId, checkpoint::CheckpointHeader};

/// Where the archive begins, and what its hash is made for (docs/format.md).
const ARCHIVE_OFFSET: usize = 48;
const HASH_CONTEXT: &str = "taffrail 2026-11 superblock";

fuzz_target!(|bytes: &[u8]| {
    // As it comes, and the other headers with it.
    let _ = Superblock::decode(bytes);
    let key = Key::new([1; 32], [2; 16]);
    let _ = SegmentHeader::decode(bytes, SegmentId(7), &key);
    let _ = CheckpointHeader::decode(bytes, 7, &key);

    let archive = &bytes[..bytes.len().min(SUPERBLOCK_BYTES - ARCHIVE_OFFSET)];
    let mut framed = vec![0_u8; SUPERBLOCK_BYTES];
    framed[..8].copy_from_slice(b"TAFFSUP1");
    framed[8..12].copy_from_slice(&u32::try_from(archive.len()).unwrap_or(u32::MAX).to_le_bytes());
    framed[ARCHIVE_OFFSET..ARCHIVE_OFFSET + archive.len()].copy_from_slice(archive);
    let mut hasher = blake3::Hasher::new_derive_key(HASH_CONTEXT);
    hasher.update(&framed[..16]);
    hasher.update(archive);
    framed[16..ARCHIVE_OFFSET].copy_from_slice(hasher.finalize().as_bytes());
    if let Ok(superblock) = Superblock::decode(&framed) {
        assert_eq!(Superblock::decode(&superblock.encode()), Ok(superblock));
    }
});
