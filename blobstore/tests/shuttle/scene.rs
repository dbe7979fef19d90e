//! A store whose every lock and every call of the disk is a place where somebody else may go on.

use std::io;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use shuttle::future::block_on;
use shuttle::sync::atomic::{AtomicBool, Ordering};
use taffrail_blobstore::disk::sim::SimDisk;
use taffrail_blobstore::disk::{Access, Counters, Disk, File, Lock, LockError, NotDurable};
use taffrail_blobstore::{
    Algorithm, BlobReader, Digest, Options, ReadError, RepositoryKey, SessionId, Store, StoreState,
    Threading, Upload,
};

use crate::checks::once;

pub(crate) const NOW_MS: u64 = 1_000_000;

/// Long enough that none ends within a check.
pub(crate) const LEASE_MS: u64 = 1_000;

/// A disk at each call of which somebody else may go on.
#[derive(Debug)]
struct Switching(SimDisk, Switch);

#[derive(Debug)]
struct SwitchingFile(Arc<dyn File>, Switch);

/// A place to go over to somebody else. Not a yield: that would say that somebody else is to go on, and the second way of choosing
/// would always obey.
#[derive(Debug, Default)]
struct Switch(AtomicBool);

impl Switch {
    fn may(&self) {
        self.0.load(Ordering::SeqCst);
    }
}

impl Disk for Switching {
    fn create(&self, name: &str, len_bytes: u64, access: Access) -> io::Result<Arc<dyn File>> {
        self.1.may();
        Ok(Arc::new(SwitchingFile(self.0.create(name, len_bytes, access)?, Switch::default())))
    }

    fn open(&self, name: &str, access: Access) -> io::Result<Arc<dyn File>> {
        self.1.may();
        Ok(Arc::new(SwitchingFile(self.0.open(name, access)?, Switch::default())))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.1.may();
        self.0.remove(name)
    }

    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        self.0.list(folder)
    }

    fn create_dir(&self, folder: &str) -> io::Result<()> {
        self.1.may();
        self.0.create_dir(folder)
    }

    fn sync_dir(&self, folder: &str) -> io::Result<()> {
        self.1.may();
        self.0.sync_dir(folder)
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.0.free_bytes()
    }

    fn lock(&self, owner: &str) -> Result<Box<dyn Lock>, LockError> {
        self.0.lock(owner)
    }

    fn counters(&self) -> Counters {
        self.0.counters()
    }
}

impl File for SwitchingFile {
    fn read_at(&self, buffer: &mut [u8], offset_bytes: u64) -> io::Result<()> {
        self.1.may();
        self.0.read_at(buffer, offset_bytes)
    }

    fn write_at(&self, bytes: &[u8], offset_bytes: u64) -> io::Result<()> {
        self.1.may();
        self.0.write_at(bytes, offset_bytes)
    }

    fn write_durably_at(&self, bytes: &[u8], offset_bytes: u64) -> Result<(), NotDurable> {
        self.1.may();
        let written = self.0.write_durably_at(bytes, offset_bytes);
        self.1.may();
        written
    }

    fn sync(&self) -> io::Result<()> {
        self.1.may();
        let synced = self.0.sync();
        self.1.may();
        synced
    }

    fn allocate(&self, len_bytes: u64) -> io::Result<()> {
        self.0.allocate(len_bytes)
    }

    fn truncate(&self, len_bytes: u64) -> io::Result<()> {
        self.0.truncate(len_bytes)
    }

    fn len_bytes(&self) -> io::Result<u64> {
        self.0.len_bytes()
    }

    fn gains_from_zeros(&self) -> bool {
        self.0.gains_from_zeros()
    }
}

/// Options without grace time.
pub(crate) fn options(threading: Threading, lease_ms: u64) -> Options {
    Options {
        segment_bytes: 1 << 20,
        reserve_bytes: 0,
        lease_ms,
        grace_ms: 0,
        read_ahead_bytes_max: 4 << 20,
        recent_bytes_max: 0,
        threading,
        ..Options::new([7; 48])
    }
}

/// Opens a store with one appender and one storage thread. Leases of before the opening are over.
pub(crate) fn open(disk: &SimDisk, lease_ms: u64) -> Store {
    let threading = Threading::Pool { storage_threads: 1 };
    let opened_ms = NOW_MS - 2 * LEASE_MS;
    Store::open(Arc::new(Switching(disk.clone(), Switch::default())), options(threading, lease_ms), opened_ms)
        .unwrap()
}

/// Opens what a crash left of the disk now, as `seed` chooses.
pub(crate) fn after_power_loss(disk: &SimDisk, seed: u64) -> Store {
    let store = Store::open(Arc::new(disk.crash(seed)), options(Threading::Inline, 0), NOW_MS).unwrap();
    assert_eq!(store.state(), StoreState::Writable);
    store
}

pub(crate) fn repository(number: u64) -> RepositoryKey {
    RepositoryKey::new(100 + number).unwrap()
}

/// A blob of which the engine has no more than its length and its noise.
pub(crate) fn blob(number: u8, len: usize) -> (Digest, Bytes) {
    let mut state = u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = vec![0; len];
    for chunk in bytes.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
    }
    (Digest::of(Algorithm::Blake3, &bytes), bytes.into())
}

/// A small blob, in the log.
pub(crate) fn small() -> (Digest, Bytes) {
    static BLOB: OnceLock<(Digest, Bytes)> = OnceLock::new();
    BLOB.get_or_init(|| blob(1, 3_000)).clone()
}

/// A large blob, with a file of its own. The content is made once: hashing is most of what a schedule costs.
pub(crate) fn large() -> (Digest, Bytes) {
    static BLOB: OnceLock<(Digest, Bytes)> = OnceLock::new();
    BLOB.get_or_init(|| blob(2, (1 << 20) + 1)).clone()
}

/// Stores bytes as a manifest is stored, and lets its pins go.
pub(crate) fn put(store: &Store, repository: RepositoryKey, blob: &(Digest, Bytes)) -> bool {
    block_on(store.put(repository, &blob.0, blob.1.clone(), &[], NOW_MS)).is_ok()
}

/// An upload with all its bytes, to be committed.
pub(crate) fn uploaded(store: &Store, repository: RepositoryKey, id: u8, blob: &(Digest, Bytes)) -> Upload {
    let id = SessionId::new([id; 16]);
    store.begin_upload(repository, blob.0.algorithm(), id, NOW_MS).unwrap();
    let mut upload = block_on(store.open_upload(repository, id, NOW_MS)).unwrap();
    block_on(upload.write(blob.1.clone(), NOW_MS)).unwrap();
    upload
}

/// Uploads a blob.
pub(crate) fn push(store: &Store, repository: RepositoryKey, id: u8, blob: &(Digest, Bytes)) {
    block_on(uploaded(store, repository, id, blob).commit(&blob.0, NOW_MS)).unwrap();
}

/// Removes a link as a client wishes.
pub(crate) fn unlink(store: &Store, repository: RepositoryKey, digest: &Digest) -> bool {
    let Some(generation) = store.link_generation(repository, digest) else { return false };
    block_on(store.unlink(repository, digest, generation, NOW_MS)).is_ok()
}

/// Reads a blob to its end, and compares it.
pub(crate) fn read(
    store: &Store,
    repository: RepositoryKey,
    blob: &(Digest, Bytes),
) -> Result<(), ReadError> {
    read_on(&mut store.open_blob(repository, &blob.0)?, blob)
}

/// Reads an open blob to its end, and compares it.
pub(crate) fn read_on(reader: &mut BlobReader, blob: &(Digest, Bytes)) -> Result<(), ReadError> {
    let mut at = 0;
    while at < reader.len_bytes() {
        let bytes = block_on(reader.read(at, reader.len_bytes()))?;
        let from = usize::try_from(at).unwrap();
        assert!(bytes == blob.1[from..from + bytes.len()], "wrong bytes");
        at += bytes.len() as u64;
    }
    Ok(())
}

/// A disk with a store that `fill` filled, closed. Made once for each check, under the checker, because its locks are.
pub(crate) fn prepared(fill: impl Fn(&Store) + Send + Sync + 'static) -> SimDisk {
    let disk = SimDisk::new();
    let filled = disk.clone();
    once(move || {
        let options = options(Threading::Inline, 0);
        let store = Store::open(Arc::new(filled.clone()), options, NOW_MS - 10 * LEASE_MS).unwrap();
        fill(&store);
        store.close().unwrap();
    });
    disk
}
