//! Clients that hang up: a future is dropped where it waits, and nothing that was acknowledged before or after suffers.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use taffrail_blobstore::disk::sim::SimDisk;
use taffrail_blobstore::{
    Algorithm, Digest, Options, RepositoryKey, SessionId, Store, Threading, UploadError,
};

use crate::world::wait;

const NOW_MS: u64 = 1_000_000;
const DAYS_MS: u64 = 10 * 24 * 3_600_000;

fn options() -> Options {
    let mut options = Options::new([7; 48]);
    options.segment_bytes = 1024 * 1024;
    options.threading = Threading::Inline;
    (options.lease_ms, options.grace_ms, options.reserve_bytes) = (0, 0, 0);
    options
}

fn open(disk: &SimDisk) -> Store {
    Store::open(Arc::new(disk.clone()), options(), NOW_MS).unwrap()
}

fn repository() -> RepositoryKey {
    RepositoryKey::new(5).unwrap()
}

fn content() -> (Bytes, Digest) {
    let bytes: Vec<u8> =
        (0..1_500_000_u32).map(|at| at.wrapping_mul(2_654_435_761).to_le_bytes()[2]).collect();
    let digest = Digest::of(Algorithm::Sha256, &bytes);
    (bytes.into(), digest)
}

fn is_pending<F: Future>(future: std::pin::Pin<&mut F>) -> bool {
    matches!(future.poll(&mut Context::from_waker(Waker::noop())), Poll::Pending)
}

fn read(store: &Store, digest: &Digest) -> Vec<u8> {
    let mut reader = store.open_blob(repository(), digest).unwrap();
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < reader.len_bytes() {
        let len_bytes = reader.len_bytes();
        bytes.extend_from_slice(&wait(reader.read(bytes.len() as u64, len_bytes)).unwrap());
    }
    bytes
}

/// The SESSION record of an acknowledgement that nobody waited for was still in the queue when the commit was enqueued. The
/// commit did not know of it and did not end the session, which came back with the next opening, over the blob's own file.
#[test]
fn a_session_whose_acknowledgement_was_given_up_does_not_come_back_over_its_blob() {
    let disk = SimDisk::new();
    let store = open(&disk);
    let (bytes, digest) = content();
    let id = SessionId::new([1; 16]);
    store.begin_upload(repository(), Algorithm::Sha256, id, NOW_MS).unwrap();
    let mut upload = wait(store.open_upload(repository(), id, NOW_MS)).unwrap();
    wait(upload.write(bytes.clone(), NOW_MS)).unwrap();
    {
        let hold = store.hold_commits();
        {
            let mut acknowledged = pin!(upload.acknowledge(NOW_MS));
            assert!(is_pending(acknowledged.as_mut()), "the record waits in the queue");
        }
        let upload = wait(store.open_upload(repository(), id, NOW_MS)).unwrap();
        let mut committed = pin!(upload.commit(&digest, NOW_MS));
        assert!(is_pending(committed.as_mut()), "the blob waits behind it");
        drop(hold);
        wait(committed.as_mut()).unwrap();
    }
    store.close().unwrap();
    let store = open(&disk);
    assert!(matches!(store.upload_status(repository(), id, NOW_MS), Err(UploadError::Unknown)));
    assert_eq!(wait(store.expire_sessions(NOW_MS + DAYS_MS)), 0);
    wait(store.collect(NOW_MS + DAYS_MS, 100)).unwrap();
    assert_eq!(read(&store, &digest), bytes);
}

/// The file of an upload that its client gives up for good is gone with the session, not at the next opening.
#[test]
fn an_upload_that_is_aborted_by_one_who_hangs_up_leaves_no_file() {
    let disk = SimDisk::new();
    let store = open(&disk);
    let (bytes, _) = content();
    let free = store.stats().free_bytes;
    let id = SessionId::new([1; 16]);
    store.begin_upload(repository(), Algorithm::Sha256, id, NOW_MS).unwrap();
    let mut upload = wait(store.open_upload(repository(), id, NOW_MS)).unwrap();
    wait(upload.write(bytes, NOW_MS)).unwrap();
    wait(upload.acknowledge(NOW_MS)).unwrap();
    assert!(store.stats().free_bytes <= free);
    {
        let _hold = store.hold_commits();
        let mut aborted = pin!(store.abort_upload(repository(), id, NOW_MS));
        assert!(is_pending(aborted.as_mut()), "the end of the session waits in the queue");
    }
    let files: usize = (0..=0xff_u64).map(|number| solo_files(&disk, number)).sum();
    assert_eq!(files, 0);
    assert!(matches!(store.upload_status(repository(), id, NOW_MS), Err(UploadError::Unknown)));
}

fn solo_files(disk: &SimDisk, folder: u64) -> usize {
    use taffrail_blobstore::disk::Disk as _;
    disk.list(&format!("solo/{folder:02x}")).unwrap().len()
}
