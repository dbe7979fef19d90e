//! Batches: any header before any records, sealed as if the store had written them, so that the seal hides nothing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use taffrail_blobstore::format::SegmentId;
use taffrail_blobstore::format::batch::{BATCH_HEADER_BYTES, RawBatchHeader, reseal};
use taffrail_blobstore::format::seal::{Key, Kind, Place};

/// Where the seal lies in a batch header (docs/format.md).
const SEAL_OFFSET: usize = 64;

fuzz_target!(|bytes: &[u8]| {
    let key = Key::new([1; 32], [2; 16]);
    // As it comes.
    if let Some(raw) = RawBatchHeader::decode(bytes) {
        assert!(raw.records_len + BATCH_HEADER_BYTES <= raw.batch_len);
    }
    let Some((header, records)) = bytes.split_at_checked(SEAL_OFFSET) else { return };
    let mut header = header.to_vec();
    header[..4].copy_from_slice(b"TFBT");
    header[4..8].copy_from_slice(&u32::try_from(records.len()).unwrap_or(u32::MAX).to_le_bytes());
    let epoch = u32::from_le_bytes([header[24], header[25], header[26], header[27]]);
    header[40..48].copy_from_slice(&7_u64.to_le_bytes());
    let place = Place { segment: SegmentId(7), epoch, offset_bytes: 4096 };
    let seal = key.seal(Kind::Batch, place, &[&header, records]);
    header.extend_from_slice(&seal);
    header.resize(BATCH_HEADER_BYTES, 0);
    let Some(raw) = RawBatchHeader::decode(&header) else { return };
    assert!(raw.records_len + BATCH_HEADER_BYTES <= raw.batch_len);
    let Some(valid) = raw.validate(&header, records, &key, place) else { return };
    assert!(valid.records.iter().zip(valid.first_lsn..).all(|(record, lsn)| record.lsn == lsn));
    let mut whole = [header.as_slice(), records].concat();
    assert!(reseal(&mut whole, &key, place, &[3; 32]).is_some());
    let raw = RawBatchHeader::decode(&whole).expect("resealed, it is a batch still");
    let (header, records) = whole.split_at(BATCH_HEADER_BYTES);
    let again = raw.validate(header, records, &key, place).expect("resealed, it is valid still");
    assert_eq!(again.records, valid.records);
});
