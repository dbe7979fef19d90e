//! Which copy of a blob a quarantine means: the record of a bad one says nothing of a whole one.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use taffrail_blobstore::disk::sim::SimDisk;
use taffrail_blobstore::{Algorithm, Digest, ReadError, Store};

use crate::catalog::{noise, repository};
use crate::world::{options, wait};

const NOW_MS: u64 = 1_000_000;

fn open(disk: &SimDisk) -> Store {
    Store::open(Arc::new(disk.clone()), options(), NOW_MS).unwrap()
}

fn blob(seed: u64, len: usize) -> (Bytes, Digest) {
    let bytes = Bytes::from(noise(seed, len));
    let digest = Digest::of(Algorithm::Sha256, &bytes);
    (bytes, digest)
}

fn is_pending<F: Future>(future: std::pin::Pin<&mut F>) -> bool {
    matches!(future.poll(&mut Context::from_waker(Waker::noop())), Poll::Pending)
}

fn read(store: &Store, digest: &Digest) -> Result<Bytes, ReadError> {
    let mut reader = store.open_blob(repository(0), digest)?;
    let len_bytes = reader.len_bytes();
    wait(reader.read(0, len_bytes))
}

/// Flips a bit in every copy of `bytes` that the log holds now.
fn damage(disk: &SimDisk, bytes: &[u8]) {
    let mut copies = 0;
    for (name, _) in disk.files().into_iter().filter(|(name, _)| name.starts_with("log/")) {
        let log = disk.contents(&name).unwrap();
        let at = log.windows(32).position(|window| window == &bytes[..32]);
        copies += u32::from(at.is_some_and(|at| disk.flip_bit(&name, at as u64 + 5, 1)));
    }
    assert_eq!(copies, 1);
}

/// Two pushes of one blob were under way at once. The first copy went bad and was found out while the second one was still to be
/// written: the record of the damage came behind the second copy, and hid it.
#[test]
fn a_whole_copy_is_served_although_a_bad_one_was_recorded_behind_it() {
    let disk = SimDisk::new();
    let store = open(&disk);
    let (bytes, digest) = blob(1, 100_000);
    // So long that they do not fit into one batch with both copies.
    let (filler, filler_digest) = blob(2, 4 << 20);
    let (more, more_digest) = blob(3, 4 << 20);
    {
        let hold = store.hold_commits();
        let mut first = pin!(store.put(repository(0), &digest, bytes.clone(), &[], NOW_MS));
        assert!(is_pending(first.as_mut()));
        let mut between = pin!(store.put(repository(0), &filler_digest, filler, &[], NOW_MS));
        let mut also = pin!(store.put(repository(0), &more_digest, more, &[], NOW_MS));
        assert!(is_pending(between.as_mut()) && is_pending(also.as_mut()));
        let mut second = pin!(store.put(repository(0), &digest, bytes.clone(), &[], NOW_MS));
        assert!(is_pending(second.as_mut()));
        drop(hold);
        wait(first.as_mut()).unwrap();
        damage(&disk, &bytes);
        let found = read(&store, &digest);
        assert!(matches!(found, Err(ReadError::Corrupt { .. })), "{found:?}");
        assert!(matches!(read(&store, &digest), Err(ReadError::Unknown)), "set aside at once");
        wait(second.as_mut()).unwrap();
    }
    // With the next commit the record of the damage is durable.
    let (last, last_digest) = blob(4, 10);
    wait(store.put(repository(0), &last_digest, last, &[], NOW_MS)).unwrap();
    assert_eq!(read(&store, &digest).unwrap(), bytes);
    drop(store);
    let store = open(&disk);
    assert_eq!(read(&store, &digest).unwrap(), bytes, "replayed");
    assert!(store.quarantined().unwrap().is_empty());
    store.close().unwrap();
    let store = open(&disk);
    assert_eq!(read(&store, &digest).unwrap(), bytes, "from the checkpoint");
}

#[test]
fn a_bad_copy_stays_set_aside_over_a_restart_until_it_is_pushed_again() {
    let disk = SimDisk::new();
    let store = open(&disk);
    let (bytes, digest) = blob(1, 100_000);
    wait(store.put(repository(0), &digest, bytes.clone(), &[], NOW_MS)).unwrap();
    damage(&disk, &bytes);
    assert!(read(&store, &digest).is_err());
    let (last, last_digest) = blob(4, 10);
    wait(store.put(repository(0), &last_digest, last, &[], NOW_MS)).unwrap();
    drop(store);
    for closed in [false, true] {
        let store = open(&disk);
        assert!(matches!(read(&store, &digest), Err(ReadError::Unknown)), "closed {closed}");
        assert_eq!(store.quarantined().unwrap().len(), 1);
        store.close().unwrap();
    }
    let store = open(&disk);
    wait(store.put(repository(0), &digest, bytes.clone(), &[], NOW_MS)).unwrap();
    drop(store);
    assert_eq!(read(&open(&disk), &digest).unwrap(), bytes);
}
