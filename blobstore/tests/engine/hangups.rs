//! Clients that hang up: a future is dropped where it waits, and nothing that was acknowledged before or after suffers.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use taffrail_blobstore::disk::sim::{Call, Fault, FaultError, SimDisk};
use taffrail_blobstore::{
    Algorithm, Digest, Options, PutError, Refusal, RepositoryKey, SessionId, Store, Threading, UploadError,
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
    assert!(matches!(store.upload_status(repository(), id, NOW_MS), Err(UploadError::Unknown)));
    // The file goes with the record, which the next commit takes along.
    let digest = Digest::of(Algorithm::Sha256, b"x");
    wait(store.put(repository(), &digest, Bytes::from_static(b"x"), &[], NOW_MS)).unwrap();
    assert_eq!(all_solo_files(&disk), 0);
}

/// When the batch of a commit failed and nobody waited for it any more, its file lay there until the next start.
#[test]
fn a_commit_that_fails_after_its_client_hung_up_leaves_no_file_and_no_session() {
    let disk = SimDisk::new();
    let store = open(&disk);
    let (bytes, digest) = content();
    let id = SessionId::new([1; 16]);
    store.begin_upload(repository(), Algorithm::Sha256, id, NOW_MS).unwrap();
    let mut upload = wait(store.open_upload(repository(), id, NOW_MS)).unwrap();
    wait(upload.write(bytes, NOW_MS)).unwrap();
    wait(upload.acknowledge(NOW_MS)).unwrap();
    let upload = wait(store.open_upload(repository(), id, NOW_MS)).unwrap();
    {
        let _hold = store.hold_commits();
        let mut committed = pin!(upload.commit(&digest, NOW_MS));
        assert!(is_pending(committed.as_mut()), "the blob waits in the queue");
    }
    // The batch that fails, and one that lies in its place: only from then on it is sure that no record names the file.
    disk.inject(Fault::on(&[Call::Write], FaultError::NoSpace).within("log/").times(1));
    let other = |byte: u8| (Bytes::from(vec![byte; 100]), Digest::of(Algorithm::Sha256, &[byte; 100]));
    let (other_bytes, other_digest) = other(1);
    let refused = wait(store.put(repository(), &other_digest, other_bytes, &[], NOW_MS));
    assert!(matches!(refused, Err(PutError::Refused(Refusal::NoSpace))), "{refused:?}");
    let (other_bytes, other_digest) = other(2);
    wait(store.put(repository(), &other_digest, other_bytes, &[], NOW_MS)).unwrap();
    assert_eq!(all_solo_files(&disk), 0);
    drop(store);
    let store = open(&disk);
    assert!(store.stat(repository(), &digest, NOW_MS).is_err());
    assert_eq!(store.stats().sessions, 0, "the log knows that the session is over");
}

/// An upload of one request has a session that nobody was told of. It stayed until it expired when the request was given up.
#[test]
fn a_session_that_ends_with_its_writer_leaves_nothing_in_memory_on_disk_and_in_the_log() {
    let disk = SimDisk::new();
    let store = open(&disk);
    let (bytes, _) = content();
    for (number, len, is_logged) in [(1, 100, false), (2, bytes.len(), false), (3, bytes.len(), true)] {
        let id = SessionId::new([number; 16]);
        store.begin_upload(repository(), Algorithm::Sha256, id, NOW_MS).unwrap();
        let mut upload = wait(store.open_upload(repository(), id, NOW_MS)).unwrap();
        wait(upload.write(bytes.slice(..len), NOW_MS)).unwrap();
        if is_logged {
            wait(upload.acknowledge(NOW_MS)).unwrap();
            upload = wait(store.open_upload(repository(), id, NOW_MS)).unwrap();
        }
        upload.end_when_dropped();
        drop(upload);
        let gone = store.upload_status(repository(), id, NOW_MS);
        assert!(matches!(gone, Err(UploadError::Unknown)), "{number}: {gone:?}");
        let stats = store.stats();
        assert_eq!((stats.sessions, stats.session_memory_bytes), (0, 0), "{number}");
        // The next commit takes the end of the session along.
        let digest = Digest::of(Algorithm::Sha256, &[number]);
        wait(store.put(repository(), &digest, Bytes::from(vec![number]), &[], NOW_MS)).unwrap();
        assert_eq!(all_solo_files(&disk), 0, "{number}");
    }
    drop(store);
    assert_eq!(open(&disk).stats().sessions, 0);
}

fn all_solo_files(disk: &SimDisk) -> usize {
    disk.files().into_iter().filter(|(name, _)| name.starts_with("solo/")).count()
}
