//! Records of the log and entries of a checkpoint: what decodes encodes to something that decodes alike.
#![no_main]

use libfuzzer_sys::fuzz_target;
use taffrail_blobstore::format::checkpoint::Entry;
use taffrail_blobstore::format::record::Record;

fuzz_target!(|bytes: &[u8]| {
    if let Some((record, len)) = Record::decode(bytes) {
        assert!(len <= bytes.len());
        let mut again = Vec::new();
        record.encode(&mut again);
        assert_eq!(Record::decode(&again), Some((record, again.len())));
    }
    if let Some((entry, len)) = Entry::decode(bytes) {
        assert!(len <= bytes.len());
        let mut again = Vec::new();
        entry.encode(&mut again);
        assert_eq!(Entry::decode(&again), Some((entry, again.len())));
    }
});
