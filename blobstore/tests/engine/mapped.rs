//! Blobs that are handed out over the mapping of their file, on a real disk: the same bytes, the same damage found, the same readers
//! served.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use taffrail_blobstore::disk::threads::ThreadsDisk;
use taffrail_blobstore::disk::{Access, Disk, mapping};
use taffrail_blobstore::format::BLOCK_BYTES;
use taffrail_blobstore::{Algorithm, BlobReader, Digest, Options, ReadError, SessionId, Store, Threading};

use crate::catalog::{noise, repository};
use crate::world::{options, wait};

const NOW_MS: u64 = 1_000_000;
const BLOCK: u64 = BLOCK_BYTES as u64;

/// Blocks of the blob, the last of which is not full.
const BLOCKS: u64 = 30;

/// Where a block's first byte lies in its file.
const PAYLOAD_OFFSET_BYTES: u64 = 4096;

struct Scene {
    dir: tempfile::TempDir,
    disk: Arc<ThreadsDisk>,
    path: PathBuf,
    store: Store,
    bytes: Bytes,
    digest: Digest,
}

/// A store with one large blob, which went past the page cache.
fn scene() -> Scene {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let disk = Arc::new(ThreadsDisk::open(dir.path()).unwrap());
    let threading = Threading::Pool { storage_threads: 3 };
    let options = Options { threading, lease_ms: 0, grace_ms: 0, ..options() };
    let store = Store::open(Arc::clone(&disk) as Arc<dyn Disk>, options, NOW_MS).unwrap();
    let bytes = Bytes::from(noise(3, usize::try_from(BLOCKS).unwrap() * BLOCK_BYTES - 1_000));
    let digest = Digest::of(Algorithm::Sha256, &bytes);
    let id = SessionId::new([1; 16]);
    store.begin_upload(repository(0), Algorithm::Sha256, id, NOW_MS).unwrap();
    let mut upload = wait(store.open_upload(repository(0), id, NOW_MS)).unwrap();
    wait(upload.write(bytes.clone(), NOW_MS)).unwrap();
    wait(upload.commit(&digest, NOW_MS)).unwrap();
    let solo = |folder: String| Some(format!("{folder}/{}", disk.list(&folder).unwrap().pop()?));
    let path = (0..=0xff).find_map(|folder| solo(format!("solo/{folder:02x}"))).unwrap();
    let path = dir.path().join(path);
    Scene { dir, disk, path, store, bytes, digest }
}

impl Scene {
    fn reader(&self) -> BlobReader {
        let mut reader = self.store.open_blob(repository(0), &self.digest).unwrap();
        reader.only_send();
        reader
    }

    /// Reads on and compares, until `end` or an error; says how many of the blocks were in place.
    fn read(&self, reader: &mut BlobReader, from: u64, end: u64) -> Result<usize, ReadError> {
        let (mut at, mut in_place) = (from, 0);
        while at < end {
            let bytes = wait(reader.read(at, end))?;
            let start = usize::try_from(at).unwrap();
            assert!(bytes == self.bytes[start..start + bytes.len()], "wrong bytes at {at}");
            in_place += usize::from(mapping::find(&bytes).is_some());
            at += bytes.len() as u64;
        }
        assert_eq!(at, end, "more came than was asked for");
        Ok(in_place)
    }

    fn read_all(&self) -> usize {
        self.read(&mut self.reader(), 0, self.bytes.len() as u64).unwrap()
    }

    /// Has the whole file in memory, as after many pulls.
    fn warm(&self) {
        std::fs::read(&self.path).unwrap();
    }

    /// Whether what lies in the middle of the file is in memory.
    fn is_in_memory(&self) -> bool {
        let name = self.path.strip_prefix(self.dir.path()).unwrap().to_str().unwrap();
        let mapping = self.disk.open(name, Access::Cached).unwrap().map().unwrap();
        mapping.is_resident(3 * BLOCK_BYTES..25 * BLOCK_BYTES)
    }

    /// Has nothing of the file in memory that is not mapped.
    fn cool(&self) {
        let file = File::open(&self.path).unwrap();
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    }

    fn flip(&self, offset_bytes: u64) {
        let file = OpenOptions::new().read(true).write(true).open(&self.path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset_bytes).unwrap();
        file.write_all_at(&[byte[0] ^ 4], offset_bytes).unwrap();
        file.sync_all().unwrap();
    }

    fn assert_quarantined(&self) {
        let stat = self.store.stat(repository(0), &self.digest, NOW_MS);
        assert!(matches!(stat, Err(ReadError::Unknown)), "{stat:?}");
    }
}

#[test]
fn what_is_in_memory_comes_in_place_and_nothing_is_read_from_the_disk() {
    let scene = scene();
    // Opens the file.
    scene.read(&mut scene.reader(), 0, 1).unwrap();
    scene.warm();
    let before = scene.disk.counters().read_bytes;
    assert_eq!(scene.read_all(), usize::try_from(BLOCKS).unwrap());
    let end = scene.bytes.len() as u64;
    let mut reader = scene.reader();
    for (from, to) in [(0, 1), (3 * BLOCK - 1, 3 * BLOCK + 1), (2, BLOCK), (end - 1, end), (5, end)] {
        assert!(scene.read(&mut reader, from, to).unwrap() > 0);
    }
    assert_eq!(scene.disk.counters().read_bytes, before);
    let mut other = scene.store.open_blob(repository(0), &scene.digest).unwrap();
    assert_eq!(scene.read(&mut other, 0, end).unwrap(), 0, "it did not say that it only sends");
}

#[test]
fn a_blob_that_is_in_memory_in_parts_comes_as_it_was_pushed() {
    for (from, blocks) in [(0, 1), (0, 9), (7, 5), (29, 1), (3, 26)] {
        let scene = scene();
        scene.read(&mut scene.reader(), 0, 1).unwrap();
        scene.cool();
        let file = File::open(&scene.path).unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random).unwrap();
        let mut part = vec![0; usize::try_from(blocks * BLOCK).unwrap()];
        assert!(file.read_at(&mut part, PAYLOAD_OFFSET_BYTES + from * BLOCK).unwrap() > 0);
        scene.read_all();
        let mut reader = scene.reader();
        scene.read(&mut reader, 0, 10 * BLOCK).unwrap();
        scene.cool();
        scene.read(&mut reader, 10 * BLOCK, scene.bytes.len() as u64).unwrap();
    }
}

/// Each pull of a blob that was pulled before filled the page cache, however often it had been emptied meanwhile, and was slower for it.
#[test]
fn a_cache_that_does_not_keep_a_blob_is_filled_less_and_less() {
    let scene = scene();
    let fills = |misses: u32| -> Vec<u32> {
        let fills = |_: &u32| {
            scene.cool();
            scene.read_all();
            scene.is_in_memory()
        };
        (1..=misses).filter(fills).collect()
    };
    let first = fills(9);
    if first.contains(&1) {
        // On a file system that knows no way past the cache, such as one in memory.
        return;
    }
    assert_eq!(first, [2, 4, 8]);
    assert_eq!(fills(7), [7], "the sixteenth");
}

#[test]
fn a_reader_that_is_not_alone_fills_the_cache() {
    let scene = scene();
    scene.cool();
    let mut first = scene.reader();
    scene.read(&mut first, 0, 4 * BLOCK).unwrap();
    scene.read_all();
    assert!(scene.is_in_memory());
    drop(first);
}

#[test]
fn a_damaged_block_ends_the_answer_before_it_and_is_quarantined() {
    for damaged in [0, 1, 13, BLOCKS - 1] {
        let scene = scene();
        scene.read_all();
        scene.warm();
        scene.read_all();
        let mut reader = scene.reader();
        scene.flip(PAYLOAD_OFFSET_BYTES + damaged * BLOCK + 4_711);
        scene.warm();
        scene.read(&mut reader, 0, damaged * BLOCK).unwrap();
        let error = scene.read(&mut reader, damaged * BLOCK, scene.bytes.len() as u64).unwrap_err();
        assert!(matches!(error, ReadError::Corrupt { .. }), "block {damaged}: {error}");
        scene.assert_quarantined();
    }
}

/// A page that is gone while it is checked is a signal that ends a process.
#[test]
fn a_file_that_was_cut_short_ends_the_answer_and_not_the_process() {
    let scene = scene();
    scene.read_all();
    scene.warm();
    let mut reader = scene.reader();
    scene.read(&mut reader, 0, 10 * BLOCK).unwrap();
    OpenOptions::new()
        .write(true)
        .open(&scene.path)
        .unwrap()
        .set_len(PAYLOAD_OFFSET_BYTES + 12 * BLOCK + 5)
        .unwrap();
    scene.read(&mut reader, 10 * BLOCK, 12 * BLOCK).unwrap();
    let error = scene.read(&mut reader, 12 * BLOCK, scene.bytes.len() as u64).unwrap_err();
    assert!(matches!(error, ReadError::Corrupt { .. }), "{error}");
    scene.assert_quarantined();
}

#[test]
fn readers_of_a_blob_that_was_deleted_go_on_and_its_mapping_goes_with_them() {
    let scene = scene();
    scene.read_all();
    scene.warm();
    let mut reader = scene.reader();
    scene.read(&mut reader, 0, 2 * BLOCK).unwrap();
    let kept = wait(reader.read(2 * BLOCK, 3 * BLOCK)).unwrap();
    let generation = scene.store.link_generation(repository(0), &scene.digest).unwrap();
    wait(scene.store.unlink(repository(0), &scene.digest, generation, NOW_MS)).unwrap();
    assert_eq!(wait(scene.store.collect(NOW_MS, 10)).unwrap().blobs, 1);
    assert!(!scene.path.exists());
    let in_place = scene.read(&mut reader, 3 * BLOCK, scene.bytes.len() as u64).unwrap();
    // All of them, where the page cache keeps the file; it need not.
    assert!(in_place > 0);
    drop(reader);
    let area = std::fs::read_to_string("/proc/self/maps").unwrap();
    let name = scene.path.file_name().unwrap().to_str().unwrap();
    // The slice in hand keeps the one that is sent from; the other one is gone.
    assert_eq!(area.lines().filter(|line| line.contains(name)).count(), 1);
    assert_eq!(kept, scene.bytes[2 * BLOCK_BYTES..3 * BLOCK_BYTES]);
    drop(kept);
    let area = std::fs::read_to_string("/proc/self/maps").unwrap();
    assert!(!area.contains(name), "a mapping of a deleted file holds its space");
}
