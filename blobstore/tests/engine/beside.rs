//! Uploads whose hash and durable points are under way beside their reception: on threads, and given up in the middle.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};
use std::thread::Thread;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use taffrail_blobstore::disk::sim::SimDisk;
use taffrail_blobstore::{
    Algorithm, Digest, Options, RepositoryKey, SessionId, Store, Threading, UploadError,
};

use crate::world::wait;

const NOW_MS: u64 = 1_000_000;
const ID: SessionId = SessionId::new([1; 16]);
/// After so many bytes a session is made durable on the way.
const DURABLE_EVERY_BYTES: usize = 64 << 20;

fn open(disk: &SimDisk, hash_threads: usize) -> Store {
    let mut options = Options::new([7; 48]);
    options.threading = Threading::Pool { storage_threads: 2 };
    options.hash_threads = hash_threads;
    (options.lease_ms, options.grace_ms, options.reserve_bytes) = (0, 0, 0);
    Store::open(Arc::new(disk.clone()), options, NOW_MS).unwrap()
}

fn repository() -> RepositoryKey {
    RepositoryKey::new(5).unwrap()
}

/// No two blocks are alike.
fn content(len: usize) -> Bytes {
    let words = u32::try_from(len / 4).unwrap();
    (0..words).flat_map(|at| at.wrapping_mul(2_654_435_761).to_le_bytes()).collect::<Vec<u8>>().into()
}

fn commit_and_read(store: &Store, bytes: &Bytes, algorithm: Algorithm) {
    let digest = Digest::of(algorithm, bytes);
    let upload = wait(store.open_upload(repository(), ID, NOW_MS)).unwrap();
    wait(upload.commit(&digest, NOW_MS)).unwrap();
    let mut reader = store.open_blob(repository(), &digest).unwrap();
    let mut read = Vec::new();
    while read.len() < bytes.len() {
        read.extend_from_slice(&wait(reader.read(read.len() as u64, bytes.len() as u64)).unwrap());
    }
    assert!(read == *bytes);
}

/// Waits for a future, but gives it up where it waits for the last of so many times.
fn give_up_after(waits: usize, future: impl Future) {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    for _ in 0..waits {
        if future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
            return;
        }
        std::thread::park();
    }
}

/// A request that is given up at any await leaves the session at an offset that its bytes bear out, whatever is on its way then.
#[test]
fn an_upload_that_is_given_up_again_and_again_goes_on_where_it_stood() {
    for (seed, hash_threads) in [(1, 0), (2, 1), (3, 2)] {
        let mut random = StdRng::seed_from_u64(seed);
        let store = open(&SimDisk::new(), hash_threads);
        let bytes = content(24 << 20);
        store.begin_upload(repository(), Algorithm::Sha256, ID, NOW_MS).unwrap();
        loop {
            let mut upload = wait(store.open_upload(repository(), ID, NOW_MS)).unwrap();
            let from = usize::try_from(upload.offset_bytes()).unwrap();
            if from == bytes.len() {
                break;
            }
            let to = bytes.len().min(from + random.random_range(1..6 << 20));
            give_up_after(random.random_range(1..12), upload.write(bytes.slice(from..to), NOW_MS));
            match random.random_range(0..4) {
                0 => upload.rewind(),
                1 => drop(wait(upload.acknowledge(NOW_MS)).unwrap()),
                2 => {
                    let wrong = Digest::of(Algorithm::Sha256, b"something else");
                    let before = wait(upload.commit(&wrong, NOW_MS));
                    assert!(matches!(before, Err(UploadError::Mismatch { .. })), "{before:?}");
                }
                _ => drop(upload),
            }
        }
        commit_and_read(&store, &bytes, Algorithm::Sha256);
    }
}

#[test]
fn an_upload_may_end_with_a_digest_of_another_algorithm() {
    let store = open(&SimDisk::new(), 1);
    let bytes = content(3_000_000);
    store.begin_upload(repository(), Algorithm::Sha256, ID, NOW_MS).unwrap();
    let mut upload = wait(store.open_upload(repository(), ID, NOW_MS)).unwrap();
    wait(upload.write(bytes.clone(), NOW_MS)).unwrap();
    drop(upload);
    commit_and_read(&store, &bytes, Algorithm::Blake3);
}

/// The durable points are made beside the reception; what is acknowledged waits for the one that is under way.
#[test]
fn a_power_cut_costs_an_acknowledged_upload_at_most_the_bytes_behind_its_last_durable_point() {
    let disk = SimDisk::new();
    let store = open(&disk, 1);
    let bytes = content(2 * DURABLE_EVERY_BYTES + (1 << 20));
    store.begin_upload(repository(), Algorithm::Sha256, ID, NOW_MS).unwrap();
    let mut upload = wait(store.open_upload(repository(), ID, NOW_MS)).unwrap();
    wait(upload.write(bytes.clone(), NOW_MS)).unwrap();
    assert_eq!(wait(upload.acknowledge(NOW_MS)).unwrap().offset_bytes, bytes.len() as u64);
    let killed = open(&disk.kill(0), 1);
    commit_and_read(&killed, &bytes, Algorithm::Sha256);
    for seed in 0..4 {
        let store = open(&disk.crash(seed), 1);
        let mut upload = wait(store.open_upload(repository(), ID, NOW_MS)).unwrap();
        let from = usize::try_from(upload.offset_bytes()).unwrap();
        assert!(from >= 2 * DURABLE_EVERY_BYTES, "it came back at {from}");
        wait(upload.write(bytes.slice(from..), NOW_MS)).unwrap();
        drop(upload);
        commit_and_read(&store, &bytes, Algorithm::Sha256);
    }
}
