//! Every decoder of the format on bytes that nobody wrote: no panic, and nothing that is not sealed passes. `fuzz/` does the same
//! for longer, where there is a nightly compiler.

use proptest::prelude::*;
use taffrail_blobstore::format::batch::{BATCH_HEADER_BYTES, RawBatchHeader};
use taffrail_blobstore::format::checkpoint::{CheckpointHeader, Entry, RawFrameHeader};
use taffrail_blobstore::format::partition::{PAGE_BYTES, Page, PartitionHeader, PartitionName};
use taffrail_blobstore::format::payload::PayloadHeader;
use taffrail_blobstore::format::record::Record;
use taffrail_blobstore::format::seal::{Key, Kind, Place};
use taffrail_blobstore::format::segment::SegmentHeader;
use taffrail_blobstore::format::solo::{Layout, Trailer};
use taffrail_blobstore::format::superblock::Superblock;
use taffrail_blobstore::format::{SegmentId, aligned};

fn key() -> Key {
    Key::new([1; 32], [2; 16])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn bytes_that_nobody_sealed_pass_for_nothing(bytes in proptest::collection::vec(any::<u8>(), 0..9_000), len in any::<u64>()) {
        let (id, key) = (SegmentId(7), key());
        let place = Place { segment: id, epoch: 1, offset_bytes: 4096 };
        prop_assert!(Superblock::decode(&bytes).is_err());
        prop_assert!(Superblock::decode(bytes.get(..4096).unwrap_or_default()).is_err());
        prop_assert!(SegmentHeader::decode(&bytes, id, &key).is_none());
        prop_assert!(CheckpointHeader::decode(&bytes, 7, &key).is_none());
        let name = PartitionName { number: 7, shard: 3 };
        prop_assert!(PartitionHeader::decode(&bytes, name, &key).is_none());
        prop_assert!(PayloadHeader::decode(&bytes, &key, place).is_none());
        if let Some(layout) = Layout::new(len % 600_000) {
            prop_assert!(Trailer::decode(&bytes, &key, id, 1, &layout).is_none());
        }
        prop_assert!(RawFrameHeader::decode(&bytes).is_none() && RawBatchHeader::decode(&bytes).is_none());
    }

    #[test]
    fn a_record_of_any_type_decodes_to_what_encodes_alike(kind in 0_u8..13, body in proptest::collection::vec(any::<u8>(), 0..700)) {
        let len = (16 + body.len()).next_multiple_of(8);
        let mut bytes = vec![kind, 1, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0];
        bytes[2..4].copy_from_slice(&u16::try_from(len).unwrap().to_le_bytes());
        bytes.extend_from_slice(&body);
        bytes.resize(len, 0);
        if let Some((record, _)) = Record::decode(&bytes) {
            let mut again = Vec::new();
            record.encode(&mut again);
            prop_assert_eq!(Record::decode(&again), Some((record, again.len())));
        }
        bytes[0] = kind % 10;
        if let Some((entry, _)) = Entry::decode(&bytes) {
            let mut again = Vec::new();
            entry.encode(&mut again);
            prop_assert_eq!(Entry::decode(&again), Some((entry, again.len())));
        }
    }

    #[test]
    fn a_page_of_any_entries_whose_checksum_holds_is_read_to_its_end(content in proptest::collection::vec(any::<u8>(), 0..1_016), kind in 0_u16..4, used in 0_u16..1_100) {
        let name = PartitionName { number: 7, shard: 3 };
        let header = PartitionHeader {
            name,
            epoch: 1,
            blobs: 1,
            entry_pages: 1,
            link_pages: 0,
            garbage: 0,
            directory_seal: [0; 32],
            garbage_seal: [0; 32],
        };
        let mut page = vec![0; 4];
        page.extend_from_slice(&kind.to_le_bytes());
        page.extend_from_slice(&used.to_le_bytes());
        page.extend_from_slice(&content);
        page.resize(PAGE_BYTES, 0);
        let place = Place { segment: SegmentId(7 | 1 << 63), epoch: 1, offset_bytes: 4096 | 3 << 48 };
        let crc = key().block_crc(place, &page[4..]);
        page[..4].copy_from_slice(&crc.to_le_bytes());
        let key = key();
        let decoded = Page::decode(&page, &key, &header, 0);
        prop_assert_eq!(decoded.is_some(), (8..=1_024).contains(&used));
        if let Some(page) = decoded {
            prop_assert!(page.blobs().count() <= PAGE_BYTES && (page.links().is_none() || kind == 2));
        }
    }

    #[test]
    fn a_sealed_batch_of_any_records_is_valid_only_when_they_add_up(records in proptest::collection::vec(any::<u8>(), 0..300), count in 0_u32..4) {
        let place = Place { segment: SegmentId(7), epoch: 1, offset_bytes: 4096 };
        let mut header = Vec::new();
        header.extend_from_slice(b"TFBT");
        let batch_len = aligned(BATCH_HEADER_BYTES + records.len());
        for field in [u32::try_from(records.len()).unwrap(), u32::try_from(batch_len).unwrap(), count] {
            header.extend_from_slice(&field.to_le_bytes());
        }
        header.extend_from_slice(&5_u64.to_le_bytes());
        for field in [1_u32, 0] {
            header.extend_from_slice(&field.to_le_bytes());
        }
        for field in [9_u64, 7, 0, 0] {
            header.extend_from_slice(&field.to_le_bytes());
        }
        let seal = key().seal(Kind::Batch, place, &[&header, &records]);
        header.extend_from_slice(&seal);
        header.resize(BATCH_HEADER_BYTES, 0);
        let raw = RawBatchHeader::decode(&header).unwrap();
        let valid = raw.validate(&header, &records, &key(), place);
        // Noise is no record: only a batch of none of them adds up.
        prop_assert_eq!(valid.is_some(), records.is_empty() && count == 0);
    }
}
