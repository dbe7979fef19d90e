//! `Range` and `Content-Range`: what is served is inside of the blob, not empty, and served once. The first eight bytes are the
//! blob's length.
#![no_main]

use libfuzzer_sys::fuzz_target;
use taffrail_distribution::range::{RANGES_MAX, Wanted, of_upload, wanted};

fuzz_target!(|bytes: &[u8]| {
    let Some((len, header)) = bytes.split_at_checked(8) else { return };
    let Ok(header) = std::str::from_utf8(header) else { return };
    let len_bytes = u64::from_le_bytes(len.try_into().unwrap_or_default());
    for header in [header.to_owned(), format!("bytes={header}")] {
        if let Wanted::Ranges(ranges) = wanted(&header, len_bytes) {
            assert!(!ranges.is_empty() && ranges.len() <= RANGES_MAX);
            assert!(ranges.iter().all(|range| !range.is_empty() && range.end_bytes <= len_bytes));
            let mut sorted = ranges;
            sorted.sort_by_key(|range| range.start_bytes);
            assert!(sorted.windows(2).all(|pair| pair[0].end_bytes <= pair[1].start_bytes), "no byte twice");
        }
        if let Some(range) = of_upload(&header) {
            assert!(!range.is_empty() && range.end_bytes <= 1 << 63);
        }
    }
});
