//! What outlives what: the lock everything that may write, a file its blob only while somebody reads it.

use std::io;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use taffrail_blobstore::disk::sim::SimDisk;
use taffrail_blobstore::disk::{Access, Counters, Disk, File, Lock, LockError};
use taffrail_blobstore::{Algorithm, OpenError, Options, SessionId, Store, Threading};

use crate::catalog::{content, repository};
use crate::world::{options, wait};

const NOW_MS: u64 = 1_000_000;

/// A blob with a file of its own.
const LARGE: u8 = 12;

type Interruption = Box<dyn FnOnce() + Send>;

/// A disk on which something else happens right after a solo file was opened.
struct Interrupted {
    disk: SimDisk,
    interruption: Arc<Mutex<Option<Interruption>>>,
}

impl std::fmt::Debug for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.disk.fmt(f)
    }
}

impl Disk for Interrupted {
    fn create(&self, name: &str, len_bytes: u64, access: Access) -> io::Result<Arc<dyn File>> {
        self.disk.create(name, len_bytes, access)
    }

    fn open(&self, name: &str, access: Access) -> io::Result<Arc<dyn File>> {
        let file = self.disk.open(name, access);
        let interruption =
            if name.starts_with("solo/") { self.interruption.lock().unwrap().take() } else { None };
        if let Some(interruption) = interruption {
            interruption();
        }
        file
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.disk.remove(name)
    }

    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        self.disk.list(folder)
    }

    fn create_dir(&self, folder: &str) -> io::Result<()> {
        self.disk.create_dir(folder)
    }

    fn sync_dir(&self, folder: &str) -> io::Result<()> {
        self.disk.sync_dir(folder)
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.disk.free_bytes()
    }

    fn lock(&self, owner: &str) -> Result<Box<dyn Lock>, LockError> {
        self.disk.lock(owner)
    }

    fn counters(&self) -> Counters {
        self.disk.counters()
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
    let interruption = Arc::new(Mutex::new(None));
    let interrupted = Interrupted { disk: disk.clone(), interruption: Arc::clone(&interruption) };
    let options = Options { lease_ms: 0, grace_ms: 0, ..options() };
    let store = Arc::new(Store::open(Arc::new(interrupted), options, NOW_MS).unwrap());
    push(&store, LARGE);
    let wanted = content(LARGE);
    let mut reader = store.open_blob(repository(0), &wanted.digest).unwrap();
    let deleting = Arc::clone(&store);
    *interruption.lock().unwrap() = Some(Box::new(move || {
        let generation = deleting.link_generation(repository(0), &wanted.digest).unwrap();
        wait(deleting.unlink(repository(0), &wanted.digest, generation, NOW_MS)).unwrap();
        assert_eq!(wait(deleting.collect(NOW_MS, 10)).unwrap().blobs, 1);
    }));
    let read = wait(reader.read(0, 1_000)).unwrap();
    assert_eq!(read, wanted.bytes[..1_000], "who reads already goes on");
    assert!(interruption.lock().unwrap().is_none(), "the blob was deleted in the middle");
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
