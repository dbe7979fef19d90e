//! Clocks that were wrong. One that ran ahead and was set right: what was dated in the future is held back for twice the usual
//! time at most, not until that date. One that was set back for a while: nothing ends early.

use std::sync::Arc;

use bytes::Bytes;
use taffrail_blobstore::disk::sim::SimDisk;
use taffrail_blobstore::{Algorithm, Options, SessionId, Store};

use crate::catalog::{content, repository};
use crate::reference::{GRACE_MS, LEASE_MS, SESSION_IDLE_MS};
use crate::world::{options, wait};

/// What the clock says when it is right.
const NOW_MS: u64 = 1_000_000;

/// And what it says when it is not.
const AHEAD_MS: u64 = NOW_MS + 365 * 24 * 3_600_000;

/// How often a job looks.
const LOOK_MS: u64 = 50;

/// Fence and leases may be waited for one after the other, each twice and the quarter that leases are counted in.
const HELD_MS_MAX: u64 = 5 * LEASE_MS;

fn open(disk: &SimDisk, now_ms: u64) -> Store {
    Store::open(Arc::new(disk.clone()), options(), now_ms).unwrap()
}

fn put(store: &Store, blob: u8, now_ms: u64) {
    let wanted = content(blob);
    wait(store.put(repository(0), &wanted.digest, wanted.bytes.clone(), &[], now_ms)).unwrap();
}

fn unlink(store: &Store, blob: u8, now_ms: u64) {
    let digest = &content(blob).digest;
    let generation = store.link_generation(repository(0), digest).unwrap();
    wait(store.unlink(repository(0), digest, generation, now_ms)).unwrap();
}

/// Collects from `from_ms` on as a job does until `blobs` are gone; says when that was.
fn collect(store: &Store, blobs: u64, from_ms: u64) -> Option<u64> {
    let mut collected = 0;
    (from_ms..from_ms + HELD_MS_MAX + 3 * GRACE_MS).step_by(usize::try_from(LOOK_MS).unwrap()).find(
        |now_ms| {
            collected += wait(store.collect(*now_ms, 100)).unwrap().blobs;
            collected == blobs
        },
    )
}

#[test]
fn garbage_of_a_log_that_is_dated_in_the_future_is_collected() {
    for closed in [true, false] {
        let disk = SimDisk::new();
        let store = open(&disk, AHEAD_MS);
        put(&store, 2, AHEAD_MS);
        unlink(&store, 2, AHEAD_MS);
        if closed {
            store.close().unwrap()
        } else {
            drop(store)
        }
        let store = open(&disk, NOW_MS);
        // The log never goes back in time: what is unlinked now is dated in the future as well.
        put(&store, 3, NOW_MS);
        unlink(&store, 3, NOW_MS);
        let collected_ms = collect(&store, 2, NOW_MS).expect("all of it, in time");
        assert!(collected_ms >= NOW_MS + LEASE_MS, "closed {closed}: {collected_ms}");
    }
}

#[test]
fn fence_leases_and_garbage_of_a_running_store_whose_clock_is_set_back_hold_little_longer_than_ever() {
    let disk = SimDisk::new();
    let store = open(&disk, NOW_MS);
    put(&store, 2, NOW_MS);
    store.close().unwrap();
    let store = open(&disk, AHEAD_MS);
    let digest = &content(2).digest;
    store.stat(repository(0), digest, AHEAD_MS).unwrap();
    let generation = store.link_generation(repository(0), digest).unwrap();
    let unlinked_ms = (NOW_MS..NOW_MS + HELD_MS_MAX)
        .step_by(usize::try_from(LOOK_MS).unwrap())
        .find(|now_ms| wait(store.unlink_if(repository(0), digest, generation, *now_ms)).unwrap())
        .expect("the link is not held for a year");
    assert!(unlinked_ms >= NOW_MS + LEASE_MS, "{unlinked_ms}");
    assert!(
        collect(&store, 1, unlinked_ms).is_some_and(|collected_ms| collected_ms >= unlinked_ms + GRACE_MS)
    );
}

#[test]
fn an_upload_session_that_is_dated_in_the_future_expires() {
    for restarted in [true, false] {
        let disk = SimDisk::new();
        let mut store = open(&disk, AHEAD_MS);
        let id = SessionId::new([3; 16]);
        store.begin_upload(repository(0), Algorithm::Sha256, id, AHEAD_MS).unwrap();
        let mut upload = wait(store.open_upload(repository(0), id, AHEAD_MS)).unwrap();
        wait(upload.write(Bytes::from(vec![5; 1_200_000]), AHEAD_MS)).unwrap();
        wait(upload.acknowledge(AHEAD_MS)).unwrap();
        if restarted {
            drop(store);
            store = open(&disk, NOW_MS);
        }
        for after_ms in [0, SESSION_IDLE_MS] {
            assert_eq!(wait(store.expire_sessions(NOW_MS + after_ms)), 0, "not before its time");
        }
        assert_eq!(wait(store.expire_sessions(NOW_MS + 2 * SESSION_IDLE_MS)), 1, "restarted {restarted}");
    }
}

#[test]
fn a_clock_that_is_set_back_for_a_while_ends_nothing_early() {
    let disk = SimDisk::new();
    drop(open(&disk, NOW_MS));
    let options = Options { lease_ms: 0, ..options() };
    let store = Store::open(Arc::new(disk.clone()), options, NOW_MS).unwrap();
    put(&store, 2, NOW_MS);
    unlink(&store, 2, NOW_MS);
    let id = SessionId::new([3; 16]);
    store.begin_upload(repository(0), Algorithm::Sha256, id, NOW_MS).unwrap();
    for now_ms in [NOW_MS - GRACE_MS, NOW_MS, NOW_MS + GRACE_MS - 1] {
        assert_eq!(wait(store.collect(now_ms, 100)).unwrap().blobs, 0, "{now_ms}");
    }
    assert_eq!(wait(store.collect(NOW_MS + GRACE_MS, 100)).unwrap().blobs, 1);
    for now_ms in [NOW_MS - SESSION_IDLE_MS, NOW_MS, NOW_MS + SESSION_IDLE_MS - 1] {
        assert_eq!(wait(store.expire_sessions(now_ms)), 0, "{now_ms}");
    }
    assert_eq!(wait(store.expire_sessions(NOW_MS + SESSION_IDLE_MS)), 1);
}
