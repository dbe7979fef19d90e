//! What the log says of an upload session and what its writer believes that it says, when a record fails on its way.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use taffrail_blobstore::disk::sim::{Call, Fault, FaultError, SimDisk};
use taffrail_blobstore::{
    Algorithm, Digest, Options, PutError, Refusal, RepositoryKey, SessionId, Store, Threading, UploadError,
};

use crate::world::wait;

const NOW_MS: u64 = 1_000_000;
const ID: SessionId = SessionId::new([1; 16]);
/// Bytes of the first request: enough for a file.
const FIRST_BYTES: usize = 1_500_000;
/// Crashes that are tried where the outcome is up to what the disk kept.
const CRASHES: u64 = 8;

fn open(disk: &SimDisk) -> Store {
    let mut options = Options::new([7; 48]);
    options.threading = Threading::Inline;
    (options.lease_ms, options.grace_ms, options.reserve_bytes) = (0, 0, 0);
    Store::open(Arc::new(disk.clone()), options, NOW_MS).unwrap()
}

fn repository() -> RepositoryKey {
    RepositoryKey::new(5).unwrap()
}

/// No two blocks are alike, so that a checksum in a wrong place is found out.
fn content(len: u32) -> Bytes {
    (0..len / 4).flat_map(|at| at.wrapping_mul(2_654_435_761).to_le_bytes()).collect::<Vec<u8>>().into()
}

fn is_pending<F: Future>(future: Pin<&mut F>) -> bool {
    matches!(future.poll(&mut Context::from_waker(Waker::noop())), Poll::Pending)
}

fn put(store: &Store, byte: u8) -> Result<(), PutError> {
    let digest = Digest::of(Algorithm::Sha256, &[byte; 100]);
    wait(store.put(repository(), &digest, Bytes::from(vec![byte; 100]), &[], NOW_MS)).map(drop)
}

fn refuse(store: &Store, byte: u8) {
    let refused = put(store, byte);
    assert!(matches!(refused, Err(PutError::Refused(Refusal::NoSpace))), "{refused:?}");
}

/// Fails the batch that takes in what waits in the log, and heals.
fn fail_one_batch(disk: &SimDisk, store: &Store) {
    disk.inject(Fault::on(&[Call::Write], FaultError::NoSpace).within("log/").times(1));
    refuse(store, 1);
    disk.heal();
}

/// A session with a file, of which the log knows nothing, because its client hung up and then the record failed.
fn a_session_whose_record_failed(disk: &SimDisk, bytes: &Bytes) -> Store {
    let store = open(disk);
    store.begin_upload(repository(), Algorithm::Sha256, ID, NOW_MS).unwrap();
    let mut upload = wait(store.open_upload(repository(), ID, NOW_MS)).unwrap();
    wait(upload.write(bytes.slice(..FIRST_BYTES), NOW_MS)).unwrap();
    {
        let _hold = store.hold_commits();
        let mut acknowledged = pin!(upload.acknowledge(NOW_MS));
        assert!(is_pending(acknowledged.as_mut()), "the record waits in the queue");
    }
    fail_one_batch(disk, &store);
    store
}

fn send_the_rest(store: &Store, bytes: &Bytes) -> u64 {
    let mut upload = wait(store.open_upload(repository(), ID, NOW_MS)).unwrap();
    let from = usize::try_from(upload.offset_bytes()).unwrap();
    for piece in bytes[from..].chunks(1 << 20) {
        wait(upload.write(Bytes::copy_from_slice(piece), NOW_MS)).unwrap();
    }
    wait(upload.acknowledge(NOW_MS)).unwrap().offset_bytes
}

fn commit_and_read(store: &Store, bytes: &Bytes) {
    assert_eq!(send_the_rest(store, bytes), bytes.len() as u64);
    let digest = Digest::of(Algorithm::Sha256, bytes);
    let upload = wait(store.open_upload(repository(), ID, NOW_MS)).unwrap();
    wait(upload.commit(&digest, NOW_MS)).unwrap();
    let mut reader = store.open_blob(repository(), &digest).unwrap();
    let mut read = Vec::new();
    while read.len() < bytes.len() {
        read.extend_from_slice(&wait(reader.read(read.len() as u64, bytes.len() as u64)).unwrap());
    }
    assert!(read == *bytes);
}

/// The checksums of blocks whose record had failed were taken for logged. After `kill -9` the acknowledged session was lost.
#[test]
fn what_is_acknowledged_after_a_record_failed_survives_a_kill() {
    let disk = SimDisk::new();
    let bytes = content(3_000_000);
    let store = a_session_whose_record_failed(&disk, &bytes);
    assert_eq!(send_the_rest(&store, &bytes), bytes.len() as u64);
    let store = open(&disk.kill(0));
    let status = store.upload_status(repository(), ID, NOW_MS).unwrap();
    assert_eq!(status.offset_bytes, bytes.len() as u64);
    commit_and_read(&store, &bytes);
}

/// The same with a power cut behind a durable offset: the session came back with the checksums of later blocks in the place of
/// the first, and what was committed then could not be read.
#[test]
fn what_is_durable_after_a_record_failed_survives_a_power_cut() {
    let bytes = content(68 << 20);
    let disk = SimDisk::new();
    let store = a_session_whose_record_failed(&disk, &bytes);
    assert_eq!(send_the_rest(&store, &bytes), bytes.len() as u64);
    for seed in 0..CRASHES {
        commit_and_read(&open(&disk.crash(seed)), &bytes);
    }
}

/// A client that goes back to where its request began, and whose record of that failed, writes over what the log holds for
/// durable: that has to be logged first, or what comes back after a crash has the hash of bytes that are gone.
#[test]
fn going_back_is_logged_before_a_byte_is_written_over_although_the_first_try_failed() {
    let disk = SimDisk::new();
    let store = open(&disk);
    let bytes = content(68 << 20);
    let wrong = Digest::of(Algorithm::Sha256, b"something else");
    store.begin_upload(repository(), Algorithm::Sha256, ID, NOW_MS).unwrap();
    send_the_rest(&store, &bytes.slice(..FIRST_BYTES));
    // Past 64 MiB the log knows of a durable offset. A wrong digest goes back.
    let mut upload = wait(store.open_upload(repository(), ID, NOW_MS)).unwrap();
    for piece in bytes[FIRST_BYTES..].chunks(1 << 20) {
        wait(upload.write(Bytes::copy_from_slice(piece), NOW_MS)).unwrap();
    }
    {
        let _hold = store.hold_commits();
        let mut committed = pin!(upload.commit(&wrong, NOW_MS));
        assert!(is_pending(committed.as_mut()), "the record of going back waits in the queue");
    }
    fail_one_batch(&disk, &store);
    let mut upload = wait(store.open_upload(repository(), ID, NOW_MS)).unwrap();
    assert_eq!(upload.offset_bytes(), FIRST_BYTES as u64);
    wait(upload.write(Bytes::from(vec![0; 8 << 20]), NOW_MS)).unwrap();
    for seed in 0..CRASHES {
        commit_and_read(&open(&disk.crash(seed)), &bytes);
    }
    commit_and_read(&open(&disk.kill(0)), &bytes);
}

/// A session that ended when the log could not take it in stayed in the log, out of reach, until the next start.
#[test]
fn an_end_that_the_log_did_not_take_in_is_told_again() {
    let disk = SimDisk::new();
    let store = open(&disk);
    let bytes = content(3_000_000);
    store.begin_upload(repository(), Algorithm::Sha256, ID, NOW_MS).unwrap();
    send_the_rest(&store, &bytes.slice(..FIRST_BYTES));
    {
        let _hold = store.hold_commits();
        let mut aborted = pin!(store.abort_upload(repository(), ID, NOW_MS));
        assert!(is_pending(aborted.as_mut()), "the end waits in the queue");
    }
    // Both the end and its repetition fail.
    disk.inject(Fault::on(&[Call::Write], FaultError::NoSpace).within("log/").times(4));
    refuse(&store, 1);
    refuse(&store, 2);
    disk.heal();
    let gone = store.upload_status(repository(), ID, NOW_MS);
    assert!(matches!(gone, Err(UploadError::Unknown)), "{gone:?}");
    assert_eq!(store.stats().sessions, 0);
    // A failed write may have landed; this one lies over it.
    put(&store, 3).unwrap();
    let back = open(&disk.kill(0));
    assert_eq!(back.stats().sessions, 1, "the log does not know of its end");
    drop(back);
    wait(store.expire_sessions(NOW_MS));
    let back = open(&disk.kill(0));
    assert_eq!(back.stats().sessions, 0, "and now it does");
}

/// A client that starts over, and hangs up before the log has forgotten what was there: the commit did not end the session, which
/// came back empty after the next start.
#[test]
fn a_session_that_started_over_ends_with_its_commit() {
    let disk = SimDisk::new();
    let store = open(&disk);
    let bytes = content(3_000_000);
    store.begin_upload(repository(), Algorithm::Sha256, ID, NOW_MS).unwrap();
    send_the_rest(&store, &bytes.slice(..FIRST_BYTES));
    {
        let _hold = store.hold_commits();
        let mut upload = wait(store.open_upload(repository(), ID, NOW_MS)).unwrap();
        let mut restarted = pin!(upload.restart(NOW_MS));
        assert!(is_pending(restarted.as_mut()), "the end of the old file waits in the queue");
    }
    fail_one_batch(&disk, &store);
    assert_eq!(store.upload_status(repository(), ID, NOW_MS).unwrap().offset_bytes, 0);
    let mut upload = wait(store.open_upload(repository(), ID, NOW_MS)).unwrap();
    wait(upload.write(Bytes::from_static(b"small"), NOW_MS)).unwrap();
    wait(upload.commit(&Digest::of(Algorithm::Sha256, b"small"), NOW_MS)).unwrap();
    let back = open(&disk.kill(0));
    assert_eq!(back.stats().sessions, 0);
}

/// One read that failed while a session was taken up, after a restart or from the unit left in its file, ended the session and
/// threw away what was acknowledged.
#[test]
fn a_session_whose_file_cannot_be_read_now_stands_until_it_can() {
    // Past 64 MiB a part is durable, and what hashes without a state to go on from has to read it; the rest is read by all.
    let (blake3, sha256) = (Algorithm::Blake3, Algorithm::Sha256);
    for (algorithm, restarts, call, sent_bytes) in [
        (blake3, true, Call::Open, FIRST_BYTES),
        (blake3, true, Call::Read, FIRST_BYTES),
        (blake3, true, Call::Read, 65 << 20),
        (blake3, false, Call::Read, FIRST_BYTES),
        (sha256, true, Call::Read, FIRST_BYTES),
        (sha256, true, Call::Read, 65 << 20),
    ] {
        let disk = SimDisk::new();
        let bytes = content(u32::try_from(sent_bytes).unwrap() + 2_000_000);
        let mut store = open(&disk);
        store.begin_upload(repository(), algorithm, ID, NOW_MS).unwrap();
        send_the_rest(&store, &bytes.slice(..sent_bytes));
        let disk = if restarts { disk.kill(0) } else { disk };
        if restarts {
            store = open(&disk);
        }
        disk.inject(Fault::on(&[call], FaultError::Io).within("solo/"));
        for _ in 0..2 {
            let opened = wait(store.open_upload(repository(), ID, NOW_MS)).map(drop);
            assert!(
                matches!(opened, Err(UploadError::Unreadable(_))),
                "{algorithm:?} {restarts} {call:?}: {opened:?}"
            );
            let status = store.upload_status(repository(), ID, NOW_MS).unwrap();
            assert_eq!(status.offset_bytes, sent_bytes as u64);
        }
        disk.heal();
        assert_eq!(send_the_rest(&store, &bytes), bytes.len() as u64);
        let digest = Digest::of(algorithm, &bytes);
        let upload = wait(store.open_upload(repository(), ID, NOW_MS)).unwrap();
        wait(upload.commit(&digest, NOW_MS)).unwrap();
    }
}

/// The digest of another algorithm is made from the file: one read that failed there threw the session away.
#[test]
fn a_session_whose_file_cannot_be_read_for_another_digest_stands_until_it_can() {
    let disk = SimDisk::new();
    let store = open(&disk);
    let bytes = content(3_000_000);
    store.begin_upload(repository(), Algorithm::Sha256, ID, NOW_MS).unwrap();
    send_the_rest(&store, &bytes);
    let digest = Digest::of(Algorithm::Blake3, &bytes);
    let upload = wait(store.open_upload(repository(), ID, NOW_MS)).unwrap();
    disk.inject(Fault::on(&[Call::Read], FaultError::Io).within("solo/"));
    let refused = wait(upload.commit(&digest, NOW_MS));
    assert!(matches!(refused, Err(UploadError::Unreadable(_))), "{refused:?}");
    disk.heal();
    let upload = wait(store.open_upload(repository(), ID, NOW_MS)).unwrap();
    wait(upload.commit(&digest, NOW_MS)).unwrap();
}

#[test]
fn a_session_whose_file_cannot_be_read_can_be_ended() {
    for restarts in [false, true] {
        for expires in [false, true] {
            let disk = SimDisk::new();
            let mut store = open(&disk);
            store.begin_upload(repository(), Algorithm::Sha256, ID, NOW_MS).unwrap();
            send_the_rest(&store, &content(u32::try_from(FIRST_BYTES).unwrap()));
            let disk = if restarts { disk.kill(0) } else { disk };
            if restarts {
                store = open(&disk);
            }
            disk.inject(Fault::on(&[Call::Read], FaultError::Io).within("solo/"));
            if expires {
                assert_eq!(wait(store.expire_sessions(NOW_MS + (30 << 30))), 1);
            } else {
                wait(store.abort_upload(repository(), ID, NOW_MS)).unwrap();
            }
            assert_eq!(store.stats().sessions, 0);
            assert!(!disk.files().iter().any(|(name, _)| name.starts_with("solo/")), "{:?}", disk.files());
            let back = open(&disk.kill(0));
            assert_eq!(back.stats().sessions, 0, "{restarts} {expires}");
        }
    }
}
