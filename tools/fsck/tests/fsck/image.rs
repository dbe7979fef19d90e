//! Stores to be damaged: made by the engine on real files, with every kind of record in them.

use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use taffrail_blobstore::disk::threads::ThreadsDisk;
use taffrail_blobstore::format::SegmentId;
use taffrail_blobstore::format::batch::ValidBatch;
use taffrail_blobstore::format::seal::Key;
use taffrail_blobstore::format::segment::{HEADER_BYTES, SegmentHeader};
use taffrail_blobstore::format::superblock::Superblock;
use taffrail_blobstore::segment::scan::{Found, Scan};
use taffrail_blobstore::{
    Algorithm, Digest, OpenError, Options, ReadError, RepositoryKey, SessionId, Store, StoreState, Threading,
};
use tempfile::TempDir;

/// The clock of all histories starts here.
pub(crate) const START_MS: u64 = 1_700_000_000_000;
const STEP_MS: u64 = 10;

/// A lock is held for the moment between fork and exec; this is seconds.
const LOCK_TRIES: u32 = 1_000_000;

/// A folder with a store in it.
pub(crate) struct Image {
    pub(crate) folder: TempDir,
}

/// How the store is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// Sealed, with a checkpoint over everything.
    Closed,
    /// With a log behind its last checkpoint.
    Killed,
    /// Without any checkpoint.
    KilledEarly,
}

pub(crate) fn options() -> Options {
    Options {
        segment_bytes: 1024 * 1024,
        reserve_bytes: 0,
        lease_ms: 1_000,
        grace_ms: 1_000,
        threading: Threading::Inline,
        // Every checkpoint has partitions.
        index_delta_max: Some(0),
        ..Options::new([7; 48])
    }
}

/// Polls to the end. Without threads every poll does all there is to do.
pub(crate) fn wait<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
    }
}

pub(crate) fn repository(number: u64) -> RepositoryKey {
    RepositoryKey::new(100 + number).unwrap()
}

/// Bytes in which no page equals another.
pub(crate) fn noise(seed: u64, len: usize) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    Bytes::from(bytes)
}

/// The digest of [`noise`].
pub(crate) fn digest(seed: u64, len: usize) -> Digest {
    Digest::of(Algorithm::Sha256, &noise(seed, len))
}

/// An open store and its clock.
pub(crate) struct World {
    pub(crate) store: Store,
    pub(crate) now_ms: u64,
}

impl World {
    pub(crate) fn open(folder: &Path, now_ms: u64) -> World {
        let disk = Arc::new(ThreadsDisk::open(folder).unwrap());
        for _ in 0..LOCK_TRIES {
            match Store::open(disk.clone(), options(), now_ms) {
                Ok(store) => return World { store, now_ms },
                // Another test is starting a program: between its fork and its exec the child has all descriptors, and with
                // them the lock of a store that was closed meanwhile.
                Err(OpenError::Lock(_)) => std::thread::yield_now(),
                Err(error) => panic!("{error}"),
            }
        }
        panic!("the lock of {} is not let go", folder.display());
    }

    fn tick(&mut self) -> u64 {
        self.now_ms += STEP_MS;
        self.now_ms
    }

    /// Puts a small blob, as manifests are put.
    pub(crate) fn put(&mut self, number: u64, seed: u64, len: usize) -> Digest {
        let bytes = noise(seed, len);
        let digest = Digest::of(Algorithm::Sha256, &bytes);
        let now_ms = self.tick();
        drop(wait(self.store.put(repository(number), &digest, bytes, &[], now_ms)).unwrap());
        digest
    }

    /// Uploads a blob; past 1 MiB it gets a file.
    pub(crate) fn upload(&mut self, number: u64, seed: u64, len: usize) -> Digest {
        let (bytes, now_ms) = (noise(seed, len), self.tick());
        let digest = Digest::of(Algorithm::Sha256, &bytes);
        let id = SessionId::new([u8::try_from(seed % 251).unwrap(); 16]);
        self.store.begin_upload(repository(number), Algorithm::Sha256, id, now_ms).unwrap();
        let mut upload = wait(self.store.open_upload(repository(number), id, now_ms)).unwrap();
        wait(upload.write(bytes, now_ms)).unwrap();
        wait(upload.commit(&digest, now_ms)).unwrap();
        digest
    }

    /// Begins an upload and acknowledges a part of it.
    pub(crate) fn begin(&mut self, number: u64, seed: u64, len: usize) -> SessionId {
        let (bytes, now_ms) = (noise(seed, len), self.tick());
        let id = SessionId::new([u8::try_from(seed % 251).unwrap(); 16]);
        self.store.begin_upload(repository(number), Algorithm::Sha256, id, now_ms).unwrap();
        let mut upload = wait(self.store.open_upload(repository(number), id, now_ms)).unwrap();
        wait(upload.write(bytes, now_ms)).unwrap();
        wait(upload.acknowledge(now_ms)).unwrap();
        id
    }

    pub(crate) fn mount(&mut self, from: u64, to: u64, digest: &Digest) {
        let now_ms = self.tick();
        wait(self.store.mount(repository(from), repository(to), digest, now_ms)).unwrap();
    }

    pub(crate) fn unlink(&mut self, number: u64, digest: &Digest) {
        let now_ms = self.tick();
        let repository = repository(number);
        let generation = self.store.link_generation(repository, digest).unwrap();
        wait(self.store.unlink(repository, digest, generation, now_ms)).unwrap();
    }

    pub(crate) fn checkpoint(&self) {
        wait(self.store.checkpoint()).unwrap();
    }

    /// Reads a blob whole; the error when it is damaged or unknown.
    pub(crate) fn read(&self, number: u64, digest: &Digest) -> Result<Vec<u8>, ReadError> {
        let mut reader = self.store.open_blob(repository(number), digest)?;
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < reader.len_bytes() {
            let (from, to) = (bytes.len() as u64, reader.len_bytes());
            bytes.extend_from_slice(&wait(reader.read(from, to))?);
        }
        Ok(bytes)
    }

    pub(crate) fn is_writable(&self) -> bool {
        self.store.state() == StoreState::Writable
    }
}

/// Blobs of the usual history, by what they are there for.
pub(crate) struct Blobs {
    /// 300 bytes, in the first batch, linked by repositories 1 and 2.
    pub(crate) first: Digest,
    /// 700,000 bytes in the log.
    pub(crate) inline: Digest,
    /// 1.3 MB in a file.
    pub(crate) solo: Digest,
    /// 5,000 bytes, in the last batch.
    pub(crate) last: Digest,
}

impl Blobs {
    pub(crate) fn usual() -> Blobs {
        Blobs {
            first: digest(1, 300),
            inline: digest(3, 700_000),
            solo: digest(5, 1_300_000),
            last: digest(9, 5_000),
        }
    }
}

impl Image {
    /// Every kind of record, three log segments, two solo files, an open upload session.
    pub(crate) fn usual(left: Left) -> Image {
        let folder = tempfile::tempdir().unwrap();
        let mut world = World::open(folder.path(), START_MS);
        let first = world.put(1, 1, 300);
        world.put(1, 2, 40_000);
        world.upload(1, 3, 700_000);
        world.mount(1, 2, &first);
        if left != Left::KilledEarly {
            world.checkpoint();
        }
        world.put(2, 4, 900_000);
        world.upload(2, 5, 1_300_000);
        let unlinked = world.put(3, 6, 2_000);
        world.unlink(3, &unlinked);
        world.begin(3, 7, 1_500_000);
        world.upload(3, 8, 600_000);
        world.put(3, 9, 5_000);
        match left {
            Left::Closed => world.store.close().unwrap(),
            Left::Killed | Left::KilledEarly => drop(world),
        }
        Image { folder }
    }

    /// A copy of a store, to be opened or damaged in the place of the original.
    pub(crate) fn copy_of(original: &Path) -> Image {
        fn copy_folder(from: &Path, to: &Path) {
            for entry in fs::read_dir(from).unwrap() {
                let entry = entry.unwrap();
                let (source, target) = (entry.path(), to.join(entry.file_name()));
                if source.is_dir() {
                    fs::create_dir(&target).unwrap();
                    copy_folder(&source, &target);
                } else {
                    fs::copy(&source, &target).unwrap();
                }
            }
        }
        let image = Image { folder: tempfile::tempdir().unwrap() };
        copy_folder(original, image.path());
        image
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Opens the store, long after.
    pub(crate) fn open(&self) -> World {
        World::open(self.path(), START_MS + 1_000_000)
    }

    /// Changes a file's bytes.
    pub(crate) fn edit(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let path = self.file(name);
        let mut bytes = fs::read(&path).unwrap();
        change(&mut bytes);
        fs::write(&path, bytes).unwrap();
    }

    pub(crate) fn flip(&self, name: &str, offset: usize) {
        self.edit(name, |bytes| bytes[offset] ^= 0x10);
    }

    pub(crate) fn zero(&self, name: &str, offset: usize, len: usize) {
        self.edit(name, |bytes| bytes[offset..offset + len].fill(0));
    }

    pub(crate) fn remove(&self, name: &str) {
        fs::remove_file(self.file(name)).unwrap();
    }

    /// The log segments, oldest first.
    pub(crate) fn segments(&self) -> Vec<SegmentId> {
        let mut ids: Vec<SegmentId> =
            names(&self.file("log")).iter().filter_map(|name| SegmentId::from_file_name(name)).collect();
        ids.sort_unstable();
        ids
    }

    /// The solo files, oldest first.
    pub(crate) fn solos(&self) -> Vec<SegmentId> {
        let folders = names(&self.file("solo"));
        let mut ids: Vec<SegmentId> = folders
            .iter()
            .flat_map(|folder| names(&self.file("solo").join(folder)))
            .filter_map(|name| SegmentId::from_file_name(&name))
            .collect();
        ids.sort_unstable();
        ids
    }

    /// The newest checkpoint's name.
    pub(crate) fn checkpoint(&self) -> String {
        format!("index/{}", self.index_files(".ckp").last().unwrap())
    }

    /// The newest partition's name.
    pub(crate) fn partition(&self) -> String {
        format!("index/{}", self.index_files(".idx").last().unwrap())
    }

    fn index_files(&self, end: &str) -> Vec<String> {
        let mut found = names(&self.file("index"));
        found.retain(|name| name.ends_with(end));
        found.sort();
        found
    }

    pub(crate) fn key(&self) -> Key {
        let superblock = ["SUPER.0", "SUPER.1"]
            .iter()
            .find_map(|name| Superblock::decode(&fs::read(self.file(name)).ok()?).ok())
            .unwrap();
        Key::new(superblock.key, superblock.uuid)
    }

    /// The valid batches of a log segment.
    pub(crate) fn batches(&self, id: SegmentId) -> Vec<ValidBatch> {
        let disk = ThreadsDisk::open_read_only(self.path()).unwrap();
        let bytes = fs::read(self.file(&id.log_name())).unwrap();
        let header = SegmentHeader::decode(&bytes[..HEADER_BYTES], id, &self.key()).unwrap();
        let file = taffrail_blobstore::disk::Disk::open(
            &disk,
            &id.log_name(),
            taffrail_blobstore::disk::Access::Cached,
        )
        .unwrap();
        let key = self.key();
        let mut scan = Scan::new(&*file, &key, &header, None, None).unwrap();
        let mut batches = Vec::new();
        while let Found::Batch(batch) = scan.next_found().unwrap() {
            batches.push(batch);
        }
        batches
    }
}

pub(crate) fn names(folder: &Path) -> Vec<String> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}
