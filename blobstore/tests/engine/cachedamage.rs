//! Damage in the page cache alone: the block comes from the disk, and the handle that went past the cache serves nothing else. Such
//! a handle takes aligned reads only.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use taffrail_blobstore::disk::sim::SimDisk;
use taffrail_blobstore::disk::{Access, DIRECT_ALIGN_BYTES};
use taffrail_blobstore::format::BLOCK_BYTES;
use taffrail_blobstore::{BlobReader, Options, SessionId, Store, Threading};

use crate::catalog::{content, repository};
use crate::meddled::{Meddled, Meddler};
use crate::world::{options, wait};

const NOW_MS: u64 = 1_000_000;
const BLOCK: u64 = BLOCK_BYTES as u64;

/// A blob of five blocks with a file of its own, the last of which is not full. It may also lie in the log.
const LARGE: u8 = 12;

/// A page cache that goes bad.
#[derive(Debug, Default)]
struct Rot {
    /// Whether the next read through the cache finds damage.
    is_due: AtomicBool,
    /// Reads past the cache that a disk refuses.
    refused: AtomicU64,
}

impl Meddler for Rot {
    fn read(&self, access: Access, buffer: &mut [u8], offset_bytes: u64) {
        let is_aligned = buffer.len().is_multiple_of(DIRECT_ALIGN_BYTES)
            && offset_bytes.is_multiple_of(DIRECT_ALIGN_BYTES as u64);
        if access == Access::Direct {
            self.refused.fetch_add(u64::from(!is_aligned), Ordering::SeqCst);
        } else if self.is_due.swap(false, Ordering::SeqCst) {
            buffer[7] ^= 1;
        }
    }
}

struct Scene {
    rot: Arc<Rot>,
    store: Store,
}

impl Scene {
    /// A store with the blob.
    fn set(threading: Threading) -> Scene {
        let rot = Arc::new(Rot::default());
        let options = Options { threading, lease_ms: 0, grace_ms: 0, ..options() };
        let store = Store::open(Meddled::on(&SimDisk::new(), &rot), options, NOW_MS).unwrap();
        let (wanted, id) = (content(LARGE), SessionId::new([1; 16]));
        store.begin_upload(repository(0), wanted.digest.algorithm(), id, NOW_MS).unwrap();
        let mut upload = wait(store.open_upload(repository(0), id, NOW_MS)).unwrap();
        wait(upload.write(wanted.bytes.clone(), NOW_MS)).unwrap();
        wait(upload.commit(&wanted.digest, NOW_MS)).unwrap();
        Scene { rot, store }
    }

    fn reader(&self) -> BlobReader {
        self.store.open_blob(repository(0), &content(LARGE).digest).unwrap()
    }

    /// Reads one block as one who wants all behind it, and compares it.
    fn read(&self, reader: &mut BlobReader, number: u64) {
        let (from, end) = (number * BLOCK, reader.len_bytes());
        let bytes = wait(reader.read(from, end)).unwrap_or_else(|error| panic!("block {number}: {error}"));
        let len = BLOCK.min(end - from);
        let range = usize::try_from(from).unwrap()..usize::try_from(from + len).unwrap();
        assert!(bytes == content(LARGE).bytes[range], "wrong bytes in block {number}");
    }

    fn assert_good(&self) {
        assert!(!self.rot.is_due.load(Ordering::SeqCst), "the damage was met");
        assert_eq!(self.rot.refused.load(Ordering::SeqCst), 0, "reads that a disk refuses");
        assert!(self.store.stat(repository(0), &content(LARGE).digest, NOW_MS).is_ok(), "it is whole");
    }
}

/// The reader went on with the handle that had gone past the cache, and the last block, which is not full, could not be read.
#[test]
fn a_reader_that_met_damage_in_the_cache_alone_reads_on_to_the_end() {
    for threading in [Threading::Inline, Threading::Pool { storage_threads: 2 }] {
        // At the first block the trailer is read before it.
        for damaged in 0..5 {
            let scene = Scene::set(threading);
            let mut reader = scene.reader();
            (0..damaged).for_each(|number| scene.read(&mut reader, number));
            scene.rot.is_due.store(true, Ordering::SeqCst);
            (damaged..5).for_each(|number| scene.read(&mut reader, number));
            // What was read ahead may have left nothing to read through the cache.
            if scene.rot.is_due.load(Ordering::SeqCst) {
                scene.read(&mut scene.reader(), 3);
                scene.read(&mut scene.reader(), 4);
            }
            scene.assert_good();
        }
    }
}

/// A blob that was deleted and came again as one in the log was read ahead past the cache as before, where nothing is aligned.
#[test]
fn a_reader_whose_blob_moved_into_the_log_goes_through_the_cache() {
    let scene = Scene::set(Threading::Pool { storage_threads: 2 });
    let wanted = content(LARGE);
    let mut reader = scene.reader();
    scene.read(&mut reader, 0);
    scene.read(&mut reader, 1);
    let generation = scene.store.link_generation(repository(0), &wanted.digest).unwrap();
    wait(scene.store.unlink(repository(0), &wanted.digest, generation, NOW_MS)).unwrap();
    assert_eq!(wait(scene.store.collect(NOW_MS, 10)).unwrap().blobs, 1);
    wait(scene.store.put(repository(0), &wanted.digest, wanted.bytes.clone(), &[], NOW_MS)).unwrap();
    // Out of order, so that nothing is at hand, and bad: it is looked for anew.
    scene.rot.is_due.store(true, Ordering::SeqCst);
    scene.read(&mut reader, 3);
    scene.read(&mut reader, 4);
    drop(reader);
    scene.assert_good();
}
