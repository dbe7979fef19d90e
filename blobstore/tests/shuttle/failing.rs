//! A flush that fails: nothing is acknowledged behind it, whoever it was that heard of it.

use std::sync::Arc;

use shuttle::future::block_on;
use shuttle::thread;
use taffrail_blobstore::StoreState;
use taffrail_blobstore::disk::sim::{Call, Fault, FaultError};

use crate::checks::check;
use crate::scene::{NOW_MS, after_power_loss, blob, open, prepared, put, read, repository, small};

/// Ways in which the power may go after each schedule: a name that is not durable may be there all the same.
const CRASHES: u64 = 4;

/// The kernel tells of a failure once. Whatever is answered with success must be there after the power went.
fn what_was_acknowledged_is_there(name: &'static str, fault: Fault) {
    let image = prepared(|store| {
        assert!(put(store, repository(9), &small()));
    });
    check(name, move || {
        let disk = image.fork();
        let store = Arc::new(open(&disk, 0));
        disk.inject(fault.clone());
        let putting: Vec<_> = (0..2_u8)
            .map(|number| {
                let store = Arc::clone(&store);
                let blobs = [blob(30 + number, 100), blob(40 + number, 100)];
                thread::spawn(move || blobs.map(|blob| (put(&store, repository(0), &blob), blob)))
            })
            .collect();
        // Drops log segments, and flushes their folder, beside them.
        let dropped = block_on(store.collect(NOW_MS, 10));
        let put: Vec<_> = putting.into_iter().flat_map(|putting| putting.join().unwrap()).collect();
        let is_poisoned = matches!(store.state(), StoreState::Poisoned { .. });
        assert!(is_poisoned || (dropped.is_ok() && put.iter().all(|(is_acknowledged, _)| *is_acknowledged)));
        drop(store);
        for seed in 0..CRASHES {
            let left = after_power_loss(&disk, seed);
            for (is_acknowledged, blob) in &put {
                let is_there = read(&left, repository(0), blob).is_ok();
                assert!(!is_acknowledged || is_there, "an acknowledged blob is lost");
            }
            read(&left, repository(9), &small()).unwrap();
        }
    });
}

#[test]
fn nothing_is_acknowledged_after_a_flush_of_the_log_failed() {
    let fault = Fault::on(&[Call::Sync], FaultError::Io).within("log/").after(1).times(1);
    what_was_acknowledged_is_there("failed flush of the log against commits", fault);
}

#[test]
fn nothing_is_acknowledged_after_a_flush_of_the_log_s_names_failed() {
    let fault = Fault::on(&[Call::SyncDir], FaultError::Io).within("log").times(1);
    what_was_acknowledged_is_there("failed flush of names against commits", fault);
}
