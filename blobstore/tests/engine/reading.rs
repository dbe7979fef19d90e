//! Reading ahead: what comes is what was pushed, damage is found before it is handed out, and who hangs up costs little.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use taffrail_blobstore::disk::Disk as _;
use taffrail_blobstore::disk::sim::SimDisk;
use taffrail_blobstore::format::BLOCK_BYTES;
use taffrail_blobstore::{Algorithm, BlobReader, Digest, Options, ReadError, SessionId, Store, Threading};

use crate::catalog::{noise, repository};
use crate::world::{options, wait};

const NOW_MS: u64 = 1_000_000;
const BLOCK: u64 = BLOCK_BYTES as u64;

/// Blocks of the blob, the last of which is not full.
const BLOCKS: u64 = 30;

struct Scene {
    disk: SimDisk,
    store: Store,
    bytes: Bytes,
    digest: Digest,
}

fn scene(read_ahead_bytes_max: u64) -> Scene {
    let disk = SimDisk::new();
    let threading = Threading::Pool { storage_threads: 3 };
    let options = Options { threading, read_ahead_bytes_max, ..options() };
    let store = Store::open(Arc::new(disk.clone()), options, NOW_MS).unwrap();
    let bytes = Bytes::from(noise(3, usize::try_from(BLOCKS).unwrap() * BLOCK_BYTES - 1_000));
    let digest = Digest::of(Algorithm::Sha256, &bytes);
    let id = SessionId::new([1; 16]);
    store.begin_upload(repository(0), Algorithm::Sha256, id, NOW_MS).unwrap();
    let mut upload = wait(store.open_upload(repository(0), id, NOW_MS)).unwrap();
    wait(upload.write(bytes.clone(), NOW_MS)).unwrap();
    wait(upload.commit(&digest, NOW_MS)).unwrap();
    Scene { disk, store, bytes, digest }
}

impl Scene {
    fn reader(&self) -> BlobReader {
        self.store.open_blob(repository(0), &self.digest).unwrap()
    }

    /// Reads on and compares, until `end` or an error.
    fn read(&self, reader: &mut BlobReader, from: u64, end: u64) -> Result<(), ReadError> {
        let mut at = from;
        while at < end {
            let bytes = wait(reader.read(at, end))?;
            let start = usize::try_from(at).unwrap();
            assert!(bytes == self.bytes[start..start + bytes.len()], "wrong bytes at {at}");
            at += bytes.len() as u64;
        }
        assert_eq!(at, end, "more came than was asked for");
        Ok(())
    }

    fn solo_name(&self) -> String {
        self.disk.files().into_iter().find(|(name, _)| name.starts_with("solo/")).unwrap().0
    }
}

#[test]
fn a_blob_comes_as_it_was_pushed_whoever_reads_it_from_wherever() {
    // Memory for everybody, for two blocks, and for none.
    for memory_bytes in [u64::MAX, 2 * BLOCK, 0] {
        let scene = scene(memory_bytes);
        let end = scene.bytes.len() as u64;
        let (mut first, mut second) = (scene.reader(), scene.reader());
        scene.read(&mut first, 0, 10 * BLOCK).unwrap();
        // From here on there are two, and the first one goes on.
        scene.read(&mut second, 5, 20 * BLOCK + 7).unwrap();
        scene.read(&mut first, 10 * BLOCK, end).unwrap();
        scene.read(&mut second, 20 * BLOCK + 7, end).unwrap();
        for (from, to) in [(0, 1), (3 * BLOCK - 1, 3 * BLOCK + 1), (2, BLOCK), (end - 1, end), (0, end)] {
            scene.read(&mut first, from, to).unwrap();
        }
    }
}

/// Parallel clients ask for open-ended ranges and hang up when they have enough.
#[test]
fn a_client_that_hangs_up_costs_at_most_twice_what_it_was_given() {
    for blocks in 1..BLOCKS {
        for reader_number in [1, 2] {
            let scene = scene(u64::MAX);
            if reader_number == 2 {
                scene.read(&mut scene.reader(), 0, 3 * BLOCK).unwrap();
            }
            let (disk, given) = (scene.disk.clone(), blocks * BLOCK);
            let mut reader = scene.reader();
            // Opening the file reads its trailer once.
            wait(reader.read(0, 1)).unwrap();
            let before = disk.counters().read_bytes;
            let mut at = 0;
            while at < given {
                at += wait(reader.read(at, scene.bytes.len() as u64)).unwrap().len() as u64;
            }
            drop(reader);
            // Waits for the storage threads.
            drop(scene);
            let read = disk.counters().read_bytes - before;
            assert!(read <= 2 * given, "{read} bytes were read for {given}");
        }
    }
}

/// A reader of HTTP/2 stays with a few bytes a second. Some of them had all the memory for reading ahead, for as long as they liked.
#[test]
fn slow_readers_leave_something_to_be_read_ahead_for_others() {
    // As much as four readers take while there is enough.
    let scene = scene(48 * BLOCK);
    let end = scene.bytes.len() as u64;
    let slow: Vec<BlobReader> = (0..6)
        .map(|_| {
            let mut reader = scene.reader();
            for number in 0..12 {
                wait(reader.read(number * BLOCK, end)).unwrap();
            }
            reader
        })
        .collect();
    let mut other = scene.reader();
    let settled = || {
        let mut before = u64::MAX;
        while std::mem::replace(&mut before, scene.disk.counters().read_bytes) != before {
            std::thread::sleep(Duration::from_millis(100));
        }
        before
    };
    let before = settled();
    wait(other.read(0, end)).unwrap();
    assert_eq!(settled() - before, 2 * BLOCK, "the block behind the one in hand was read as well");
    drop(slow);
}

#[test]
fn nothing_is_read_behind_the_last_block_of_a_range() {
    let scene = scene(u64::MAX);
    let disk = scene.disk.clone();
    let mut reader = scene.reader();
    wait(reader.read(0, 1)).unwrap();
    let before = disk.counters().read_bytes;
    scene.read(&mut reader, 0, 9 * BLOCK + 1).unwrap();
    drop(reader);
    drop(scene);
    assert_eq!(disk.counters().read_bytes - before, 9 * BLOCK, "the first block was there already");
}

#[test]
fn a_damaged_block_ends_the_answer_before_it_wherever_it_lies_in_a_run() {
    for (damaged, readers) in (0..BLOCKS).flat_map(|block| [(block, 1), (block, 2)]) {
        let scene = scene(u64::MAX);
        if readers == 2 {
            scene.read(&mut scene.reader(), 0, scene.bytes.len() as u64).unwrap();
        }
        let offset_bytes = 4096 + damaged * BLOCK + 4_711;
        assert!(scene.disk.flip_bit(&scene.solo_name(), offset_bytes, 3));
        let mut reader = scene.reader();
        scene.read(&mut reader, 0, damaged * BLOCK).unwrap();
        let error = scene.read(&mut reader, damaged * BLOCK, scene.bytes.len() as u64).unwrap_err();
        assert!(matches!(error, ReadError::Corrupt { .. }), "block {damaged}: {error}");
        let stat = scene.store.stat(repository(0), &scene.digest, NOW_MS);
        assert!(matches!(stat, Err(ReadError::Unknown)), "{stat:?}");
    }
}
