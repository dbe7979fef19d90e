//! What outlives what: the lock everything that may write, a file its blob only while somebody reads it.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use taffrail_blobstore::disk::LockError;
use taffrail_blobstore::disk::sim::SimDisk;
use taffrail_blobstore::{Algorithm, OpenError, Options, SessionId, Store, Threading};

use crate::catalog::{content, repository};
use crate::meddled::{Meddled, Meddler};
use crate::world::{options, wait};

const NOW_MS: u64 = 1_000_000;

/// A blob with a file of its own.
const LARGE: u8 = 12;

/// Something else happens right after a solo file was opened.
#[derive(Default)]
struct Interruption(Mutex<Option<Box<dyn FnOnce() + Send>>>);

impl std::fmt::Debug for Interruption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Interruption")
    }
}

impl Meddler for Interruption {
    fn opened_solo(&self) {
        let interruption = self.0.lock().unwrap().take();
        if let Some(interruption) = interruption {
            interruption();
        }
    }
}

fn push(store: &Store, blob: u8) {
    let wanted = content(blob);
    let id = SessionId::new([blob; 16]);
    store.begin_upload(repository(0), wanted.digest.algorithm(), id, NOW_MS).unwrap();
    let mut upload = wait(store.open_upload(repository(0), id, NOW_MS)).unwrap();
    wait(upload.write(wanted.bytes.clone(), NOW_MS)).unwrap();
    wait(upload.commit(&wanted.digest, NOW_MS)).unwrap();
}

/// A reader that had opened the file of a blob kept it open for all later ones, although the blob was deleted meanwhile: the
/// space of a deleted blob stayed taken.
#[test]
fn a_file_that_is_deleted_while_it_is_opened_is_not_kept_open() {
    let disk = SimDisk::new();
    let interruption = Arc::new(Interruption::default());
    let options = Options { lease_ms: 0, grace_ms: 0, ..options() };
    let store = Arc::new(Store::open(Meddled::on(&disk, &interruption), options, NOW_MS).unwrap());
    push(&store, LARGE);
    let wanted = content(LARGE);
    let mut reader = store.open_blob(repository(0), &wanted.digest).unwrap();
    let deleting = Arc::clone(&store);
    *interruption.0.lock().unwrap() = Some(Box::new(move || {
        let generation = deleting.link_generation(repository(0), &wanted.digest).unwrap();
        wait(deleting.unlink(repository(0), &wanted.digest, generation, NOW_MS)).unwrap();
        assert_eq!(wait(deleting.collect(NOW_MS, 10)).unwrap().blobs, 1);
    }));
    let read = wait(reader.read(0, 1_000)).unwrap();
    assert_eq!(read, wanted.bytes[..1_000], "who reads already goes on");
    assert!(interruption.0.lock().unwrap().is_none(), "the blob was deleted in the middle");
    drop(reader);
    let named: u64 = disk.files().iter().map(|(_, len)| len.next_multiple_of(4096)).sum();
    assert_eq!(disk.used_bytes(), named, "nothing takes space that has no name");
}

/// The lock went with the store while an upload could still write to its file: another process could have opened the store and
/// given the same blocks to another file.
#[test]
fn the_lock_is_held_until_the_last_upload_is_gone() {
    for threading in [Threading::Inline, Threading::Pool { storage_threads: 1 }] {
        let disk = SimDisk::new();
        let options = Options { threading, ..options() };
        let store = Store::open(Arc::new(disk.clone()), options.clone(), NOW_MS).unwrap();
        let id = SessionId::new([1; 16]);
        store.begin_upload(repository(0), Algorithm::Sha256, id, NOW_MS).unwrap();
        let mut upload = wait(store.open_upload(repository(0), id, NOW_MS)).unwrap();
        wait(upload.write(Bytes::from(vec![1; 1_200_000]), NOW_MS)).unwrap();
        drop(store);
        let open = || Store::open(Arc::new(disk.clone()), options.clone(), NOW_MS);
        let refused = open();
        let Err(OpenError::Lock(LockError::Held { holder })) = refused else {
            panic!("opened twice: {refused:?}");
        };
        assert_eq!(holder, format!("process {} (taffrail)", std::process::id()), "who it is, said once");
        drop(upload);
        wait_for(|| open().is_ok());
    }
}

/// A storage thread may be the last to let go of the engine, a moment after the upload did.
fn wait_for(mut good: impl FnMut() -> bool) {
    let started = std::time::Instant::now();
    while !good() {
        assert!(started.elapsed() < std::time::Duration::from_secs(60), "the lock is never released");
        std::thread::yield_now();
    }
}
