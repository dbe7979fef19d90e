//! Small payloads that are kept in memory: they are read from disk once, and are no more to be had than those on disk.

use std::sync::Arc;

use bytes::Bytes;
use taffrail_blobstore::disk::Disk as _;
use taffrail_blobstore::disk::sim::SimDisk;
use taffrail_blobstore::{Algorithm, Digest, Options, ReadError, Store};

use crate::catalog::{noise, repository};
use crate::world::{options, wait};

const NOW_MS: u64 = 1_000_000;

/// Beyond every lease and grace time.
const LATER_MS: u64 = NOW_MS + 10 * 24 * 3_600_000;

fn scene(recent_bytes_max: u64) -> (SimDisk, Store, Bytes, Digest) {
    let disk = SimDisk::new();
    let options = Options { recent_bytes_max, ..options() };
    let store = Store::open(Arc::new(disk.clone()), options, NOW_MS).unwrap();
    let bytes = Bytes::from(noise(3, 4096));
    let digest = Digest::of(Algorithm::Sha256, &bytes);
    drop(wait(store.put(repository(0), &digest, bytes.clone(), &[], NOW_MS)).unwrap());
    (disk, store, bytes, digest)
}

fn read(store: &Store, number: u8, digest: &Digest) -> Result<Bytes, ReadError> {
    let mut reader = store.open_blob(repository(number), digest)?;
    let len_bytes = reader.len_bytes();
    wait(reader.read(0, len_bytes))
}

#[test]
fn a_small_blob_is_read_from_disk_once_unless_nothing_may_be_kept() {
    for (recent_bytes_max, is_kept) in [(1 << 20, true), (0, false)] {
        let (disk, store, bytes, digest) = scene(recent_bytes_max);
        assert_eq!(read(&store, 0, &digest).unwrap(), bytes);
        let before = disk.counters().read_bytes;
        let mut reader = store.open_blob(repository(0), &digest).unwrap();
        assert_eq!(wait(reader.read(0, 4096)).unwrap(), bytes);
        assert_eq!(wait(reader.read(17, 4000)).unwrap(), bytes.slice(17..4000));
        assert_eq!(disk.counters().read_bytes == before, is_kept);
    }
}

#[test]
fn a_blob_in_memory_is_gone_with_its_link_and_for_who_has_none() {
    let (_disk, store, bytes, digest) = scene(1 << 20);
    assert_eq!(read(&store, 0, &digest).unwrap(), bytes);
    assert!(matches!(read(&store, 1, &digest), Err(ReadError::Unknown)));
    let generation = store.link_generation(repository(0), &digest).unwrap();
    wait(store.unlink(repository(0), &digest, generation, LATER_MS)).unwrap();
    assert!(matches!(read(&store, 0, &digest), Err(ReadError::Unknown)));
    // Pushed again it is there again, from wherever it lies now.
    drop(wait(store.put(repository(1), &digest, bytes.clone(), &[], LATER_MS)).unwrap());
    assert_eq!(read(&store, 1, &digest).unwrap(), bytes);
    assert!(matches!(read(&store, 0, &digest), Err(ReadError::Unknown)));
}

#[test]
fn damage_on_disk_is_found_by_the_first_reader_after_an_opening() {
    let (disk, store, bytes, digest) = scene(1 << 20);
    assert_eq!(read(&store, 0, &digest).unwrap(), bytes);
    let damaged = disk.files().into_iter().any(|(name, _)| {
        let log = disk.contents(&name).unwrap();
        let at = log.windows(32).position(|window| window == &bytes[..32]);
        at.is_some_and(|at| disk.flip_bit(&name, at as u64 + 5, 1))
    });
    assert!(damaged);
    assert_eq!(read(&store, 0, &digest).unwrap(), bytes, "what is in memory is whole");
    drop(store);
    let store = Store::open(Arc::new(disk), options(), LATER_MS).unwrap();
    assert!(matches!(read(&store, 0, &digest), Err(ReadError::Corrupt { .. } | ReadError::Unknown)));
    assert!(matches!(read(&store, 0, &digest), Err(ReadError::Unknown)));
}
