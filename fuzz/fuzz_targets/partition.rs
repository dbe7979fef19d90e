//! Pages of partitions: any bytes behind a checksum that is right, so that it hides nothing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use taffrail_blobstore::format::SegmentId;
use taffrail_blobstore::format::partition::{
    EncodedBlob, PAGE_BYTES, Page, PartitionHeader, PartitionName, StoredLinks,
};
use taffrail_blobstore::format::seal::{Key, Place};

const NAME: PartitionName = PartitionName { number: 7, shard: 3 };

fuzz_target!(|bytes: &[u8]| {
    let key = Key::new([1; 32], [2; 16]);
    // As it comes.
    let _ = PartitionHeader::decode(bytes, NAME, &key);
    let header = PartitionHeader {
        name: NAME,
        epoch: 1,
        blobs: 1,
        entry_pages: 1,
        link_pages: 1,
        garbage: 1,
        directory_seal: [0; 32],
        garbage_seal: [0; 32],
    };
    let _ = header.decode_garbage(&key, bytes);
    let _ = header.decode_directory(&key, bytes);
    let mut page = vec![0; 4];
    page.extend_from_slice(&bytes[..bytes.len().min(PAGE_BYTES - 4)]);
    page.resize(PAGE_BYTES, 0);
    // The place of the first page (docs/format.md).
    let place = Place { segment: SegmentId(7 | 1 << 63), epoch: 1, offset_bytes: 4096 | 3 << 48 };
    let crc = key.block_crc(place, &page[4..]);
    page[..4].copy_from_slice(&crc.to_le_bytes());
    let Some(page) = Page::decode(&page, &key, &header, 0) else { return };
    let _ = page.links();
    for blob in page.blobs().flatten() {
        if let Some(Some(found)) = page.find(&blob.digest) {
            assert_eq!(found.digest, blob.digest);
        }
        let entry = EncodedBlob::new(&blob);
        assert!(entry.is_some() || matches!(blob.links, StoredLinks::Here(_)));
    }
});
