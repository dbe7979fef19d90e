//! Compaction: what counts stays, what is dead stays dead, also when the log alone is left, and the disk shrinks.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use taffrail_blobstore::disk::sim::SimDisk;
use taffrail_blobstore::{Algorithm, Compacted, Digest, Options, ReadError, SessionId, Store, Threading};

use crate::catalog::{content, noise, repository};
use crate::world::{options, wait};

const NOW_MS: u64 = 1_000_000;

/// Seed of a small blob that is pushed into every segment.
const FIRST: u64 = 999_999;

/// Without leases and grace times.
fn open(disk: &SimDisk) -> Store {
    let options = Options { lease_ms: 0, grace_ms: 0, ..options() };
    Store::open(Arc::new(disk.clone()), options, NOW_MS).unwrap()
}

/// Every opening begins a segment, with the first commit.
fn next_segment(store: Store, disk: &SimDisk) -> Store {
    drop(store);
    let store = open(disk);
    put(&store, FIRST, 10);
    store
}

fn blob(seed: u64, len: usize) -> (Bytes, Digest) {
    let bytes = Bytes::from(noise(seed, len));
    let digest = Digest::of(Algorithm::Sha256, &bytes);
    (bytes, digest)
}

fn put(store: &Store, seed: u64, len: usize) -> Digest {
    let (bytes, digest) = blob(seed, len);
    drop(wait(store.put(repository(0), &digest, bytes, &[], NOW_MS)).unwrap());
    digest
}

fn unlink(store: &Store, number: u8, digest: &Digest) {
    let generation = store.link_generation(repository(number), digest).unwrap();
    wait(store.unlink(repository(number), digest, generation, NOW_MS)).unwrap();
}

fn read(store: &Store, digest: &Digest) -> Result<Bytes, ReadError> {
    let mut reader = store.open_blob(repository(0), digest)?;
    let len_bytes = reader.len_bytes();
    wait(reader.read(0, len_bytes))
}

/// Digest and repository of every link, with its generation.
fn links(store: &Store) -> BTreeMap<(Digest, u64), u64> {
    (0..Store::LINK_PAGES)
        .flat_map(|page| store.links_page(page).unwrap())
        .map(|link| ((link.digest, link.repository.number()), link.generation))
        .collect()
}

/// What an opening makes of the log alone.
fn from_the_log_alone(disk: &SimDisk) -> Store {
    let disk = disk.fork();
    for (name, _) in disk.files().iter().filter(|(name, _)| name.starts_with("index/")) {
        disk.uproot(name);
    }
    open(&disk)
}

/// Compacts a portion at a time, and opens what the disk holds after each of them, as it is and without checkpoints.
fn compact_and_look(store: &Store, disk: &SimDisk) -> Compacted {
    wait(store.checkpoint()).unwrap();
    let (links_before, blobs_before) = (links(store), store.stats().blobs);
    let mut all = Compacted::default();
    loop {
        let portion = wait(store.compact(NOW_MS, 1)).unwrap();
        for (what, reopened) in
            [("reopened", open(&disk.fork())), ("from the log alone", from_the_log_alone(disk))]
        {
            assert_eq!(links(&reopened), links_before, "{what}");
            assert_eq!(reopened.stats().blobs, blobs_before, "{what}");
        }
        assert_eq!(links(store), links_before);
        all.copied_bytes += portion.copied_bytes;
        all.segments += portion.segments;
        all.freed_bytes += portion.freed_bytes;
        if !portion.more {
            return all;
        }
    }
}

fn is_pending<F: Future>(future: std::pin::Pin<&mut F>) -> bool {
    matches!(future.poll(&mut Context::from_waker(Waker::noop())), Poll::Pending)
}

/// One live manifest kept its whole segment, and one live segment kept every later one that held a deletion.
#[test]
fn a_log_of_mostly_dead_segments_shrinks_to_what_counts() {
    let disk = SimDisk::new();
    let mut store = open(&disk);
    let mut kept = Vec::new();
    for round in 0..12_u64 {
        kept.push(put(&store, round * 100, 700));
        let dead: Vec<Digest> = (1..=9).map(|seed| put(&store, round * 100 + seed, 100_000)).collect();
        store = next_segment(store, &disk);
        dead.iter().for_each(|digest| unlink(&store, 0, digest));
        assert_eq!(wait(store.collect(NOW_MS, 100)).unwrap().blobs, 9);
    }
    let before = store.stats().log;
    assert!(before.bytes > 10_000_000 && before.dead_bytes > before.bytes * 8 / 10, "{before:?}");
    let compacted = compact_and_look(&store, &disk);
    let after = store.stats().log;
    assert!(after.bytes < 200_000, "{after:?}");
    assert_eq!(after.backlog_bytes, 0);
    assert!(compacted.copied_bytes < compacted.freed_bytes / 20, "{compacted:?}");
    let files = disk.files();
    let log: u64 = files.iter().filter(|(name, _)| name.starts_with("log/")).map(|(_, len)| *len).sum();
    // The segment that is written to is reserved in full.
    assert!(log < 1024 * 1024 + 200_000, "{files:?}");
    for (round, digest) in kept.iter().enumerate() {
        assert_eq!(read(&store, digest).unwrap(), noise(round as u64 * 100, 700));
    }
}

#[test]
fn a_link_that_was_removed_stays_removed_wherever_its_records_went() {
    let disk = SimDisk::new();
    let store = open(&disk);
    let digest = put(&store, 1, 60_000);
    // What keeps the first segment alive.
    let _live = put(&store, 2, 600_000);
    wait(store.mount(repository(0), repository(1), &digest, NOW_MS)).unwrap();
    let store = next_segment(store, &disk);
    wait(store.mount(repository(0), repository(1), &digest, NOW_MS)).unwrap();
    let store = next_segment(store, &disk);
    unlink(&store, 1, &digest);
    let store = next_segment(store, &disk);
    assert!(compact_and_look(&store, &disk).segments >= 2, "the renewal and the removal moved");
    assert_eq!(store.link_generation(repository(1), &digest), None);
    // Once more: now the copies move.
    let store = next_segment(store, &disk);
    compact_and_look(&store, &disk);
    assert_eq!(from_the_log_alone(&disk).link_generation(repository(1), &digest), None);
}

#[test]
fn a_blob_that_was_deleted_and_pushed_again_stays_however_late_the_deletion_is_copied() {
    let disk = SimDisk::new();
    let store = open(&disk);
    let digest = put(&store, 1, 60_000);
    let _live = put(&store, 2, 600_000);
    let store = next_segment(store, &disk);
    unlink(&store, 0, &digest);
    assert_eq!(wait(store.collect(NOW_MS, 10)).unwrap().blobs, 1);
    let store = next_segment(store, &disk);
    assert_eq!(put(&store, 1, 60_000), digest);
    let store = next_segment(store, &disk);
    assert!(compact_and_look(&store, &disk).segments > 0);
    for store in [&store, &from_the_log_alone(&disk)] {
        assert_eq!(read(store, &digest).unwrap(), noise(1, 60_000));
    }
}

/// The outbox keeps the generation of a link, and removes the link by it.
#[test]
fn a_link_that_was_copied_is_removed_by_the_generation_it_had_before() {
    let disk = SimDisk::new();
    let store = open(&disk);
    let digest = put(&store, 1, 100);
    let generation = store.link_generation(repository(0), &digest).unwrap();
    let store = next_segment(store, &disk);
    assert!(compact_and_look(&store, &disk).copied_bytes > 0);
    assert_eq!(store.link_generation(repository(0), &digest), Some(generation));
    let removed = wait(store.unlink_if(repository(0), &digest, generation, NOW_MS)).unwrap();
    assert!(removed);
    assert_eq!(from_the_log_alone(&disk).link_generation(repository(0), &digest), None);
}

/// The copy of a link behind its removal would be the newest word on it when the original is gone.
#[test]
fn a_link_whose_removal_is_on_its_way_is_not_copied_behind_it() {
    let disk = SimDisk::new();
    let store = open(&disk);
    let (removed, kept) = (put(&store, 1, 100), put(&store, 2, 100));
    let store = next_segment(store, &disk);
    wait(store.checkpoint()).unwrap();
    {
        let hold = store.hold_commits();
        let generation = store.link_generation(repository(0), &removed).unwrap();
        let mut unlinked = pin!(store.unlink(repository(0), &removed, generation, NOW_MS));
        assert!(is_pending(unlinked.as_mut()));
        let mut compacted = pin!(store.compact(NOW_MS, u64::MAX));
        assert!(is_pending(compacted.as_mut()), "copies are on their way");
        drop(hold);
        wait(unlinked.as_mut()).unwrap();
        assert!(wait(compacted.as_mut()).unwrap().segments > 0, "it took another round");
    }
    for store in [&store, &open(&disk.fork()), &from_the_log_alone(&disk)] {
        assert!(store.link_generation(repository(0), &kept).is_some());
        assert_eq!(store.link_generation(repository(0), &removed), None);
    }
}

#[test]
fn a_renewal_that_is_on_its_way_counts_and_not_the_copy_behind_it() {
    let disk = SimDisk::new();
    let store = open(&disk);
    let digest = put(&store, 1, 100);
    wait(store.mount(repository(0), repository(1), &digest, NOW_MS)).unwrap();
    let before = store.link_generation(repository(1), &digest).unwrap();
    let store = next_segment(store, &disk);
    wait(store.checkpoint()).unwrap();
    {
        let hold = store.hold_commits();
        let mut renewed = pin!(store.mount(repository(0), repository(1), &digest, NOW_MS));
        assert!(is_pending(renewed.as_mut()));
        let mut compacted = pin!(store.compact(NOW_MS, u64::MAX));
        assert!(is_pending(compacted.as_mut()));
        drop(hold);
        wait(renewed.as_mut()).unwrap();
        wait(compacted.as_mut()).unwrap();
    }
    let after = store.link_generation(repository(1), &digest).unwrap();
    assert!(after > before);
    assert_eq!(links(&from_the_log_alone(&disk)), links(&store));
}

#[test]
fn who_reads_a_blob_goes_on_when_its_segment_is_gone() {
    let disk = SimDisk::new();
    let store = open(&disk);
    let (digest, gone) = (put(&store, 1, 300_000), put(&store, 2, 700_000));
    let store = next_segment(store, &disk);
    unlink(&store, 0, &gone);
    wait(store.collect(NOW_MS, 10)).unwrap();
    let mut reader = store.open_blob(repository(0), &digest).unwrap();
    let first = wait(reader.read(0, 300_000)).unwrap();
    assert!(compact_and_look(&store, &disk).segments > 0);
    let rest = wait(reader.read(first.len() as u64, 300_000)).unwrap();
    assert_eq!([first, rest].concat(), noise(1, 300_000));
    assert_eq!(reader.len_bytes(), 300_000);
}

/// A payload that does not match its checksum is not given a new one.
#[test]
fn damaged_bytes_are_set_aside_and_stay_until_they_are_pushed_again() {
    let disk = SimDisk::new();
    let store = open(&disk);
    let (bad, good) = (put(&store, 1, 30_000), put(&store, 2, 30_000));
    let gone = put(&store, 3, 900_000);
    let store = next_segment(store, &disk);
    unlink(&store, 0, &gone);
    wait(store.collect(NOW_MS, 10)).unwrap();
    let log = disk.contents("log/0000000000000001.seg").unwrap();
    let at = log.windows(32).position(|window| window == &noise(1, 32)[..]).unwrap();
    assert!(disk.flip_bit("log/0000000000000001.seg", at as u64 + 20_000, 3));
    compact_and_look(&store, &disk);
    assert_eq!(store.stats().log.unmovable_segments, 1);
    assert_eq!(store.quarantined().unwrap().len(), 1);
    assert!(matches!(read(&store, &bad), Err(ReadError::Unknown)));
    assert_eq!(read(&store, &good).unwrap(), noise(2, 30_000));
    assert!(disk.contents("log/0000000000000001.seg").is_some());
    assert_eq!(put(&store, 1, 30_000), bad);
    compact_and_look(&store, &disk);
    assert_eq!(store.stats().log.unmovable_segments, 0);
    assert!(disk.contents("log/0000000000000001.seg").is_none());
    assert_eq!(read(&store, &bad).unwrap(), noise(1, 30_000));
}

#[test]
fn a_damaged_solo_blob_stays_set_aside_when_its_records_move() {
    let disk = SimDisk::new();
    let store = open(&disk);
    let wanted = content(12);
    let id = SessionId::new([1; 16]);
    store.begin_upload(repository(0), wanted.digest.algorithm(), id, NOW_MS).unwrap();
    let mut upload = wait(store.open_upload(repository(0), id, NOW_MS)).unwrap();
    wait(upload.write(wanted.bytes.clone(), NOW_MS)).unwrap();
    wait(upload.commit(&wanted.digest, NOW_MS)).unwrap();
    let solo = disk.files().into_iter().find(|(name, _)| name.starts_with("solo/")).unwrap().0;
    assert!(disk.flip_bit(&solo, 5_000, 1));
    let store = next_segment(store, &disk);
    assert!(matches!(read(&store, &wanted.digest), Err(ReadError::Corrupt { .. })));
    // The record of the damage goes with the next commit.
    put(&store, 1, 10);
    let store = next_segment(store, &disk);
    // The segment with the blob goes first, then the one with the damage.
    for _ in 0..2 {
        assert!(compact_and_look(&store, &disk).segments > 0 || store.stats().log_segments == 1);
        assert_eq!(from_the_log_alone(&disk).quarantined().unwrap().len(), 1);
        assert_eq!(open(&disk.fork()).quarantined().unwrap().len(), 1);
    }
}

#[test]
fn an_upload_goes_on_where_it_stood_when_its_records_moved() {
    let disk = SimDisk::new();
    let store = open(&disk);
    let wanted = content(13);
    let id = SessionId::new([1; 16]);
    store.begin_upload(repository(0), wanted.digest.algorithm(), id, NOW_MS).unwrap();
    for to in [1_100_000, 1_500_000] {
        let mut upload = wait(store.open_upload(repository(0), id, NOW_MS)).unwrap();
        let from = usize::try_from(upload.offset_bytes()).unwrap();
        wait(upload.write(wanted.bytes.slice(from..to), NOW_MS)).unwrap();
        wait(upload.acknowledge(NOW_MS)).unwrap();
    }
    let store = next_segment(store, &disk);
    assert!(compact_and_look(&store, &disk).copied_bytes > 0);
    drop(store);
    let reopened = |store: &Store| {
        let upload = wait(store.open_upload(repository(0), id, NOW_MS)).unwrap();
        assert_eq!(upload.offset_bytes(), 1_500_000);
        upload
    };
    drop(reopened(&from_the_log_alone(&disk)));
    let store = open(&disk);
    let mut upload = reopened(&store);
    wait(upload.write(wanted.bytes.slice(1_500_000..), NOW_MS)).unwrap();
    wait(upload.commit(&wanted.digest, NOW_MS)).unwrap();
    // Ended, and stays so when the record of the end moves as well.
    let store = next_segment(store, &disk);
    assert!(compact_and_look(&store, &disk).copied_bytes > 0);
    assert_eq!(store.stats().sessions, 0);
    let store = from_the_log_alone(&disk);
    assert_eq!(store.stats().sessions, 0);
    let mut reader = store.open_blob(repository(0), &wanted.digest).unwrap();
    assert_eq!(wait(reader.read(0, 1_000)).unwrap(), wanted.bytes[..1_000]);
}

/// Deletions must be kept while what they cancel may be there; a live segment at the start of the log kept them for ever.
#[test]
fn deletions_do_not_pile_up_behind_an_old_live_segment() {
    let disk = SimDisk::new();
    let store = open(&disk);
    let live: Vec<Digest> = (0..9).map(|seed| put(&store, seed, 110_000)).collect();
    let mut store = next_segment(store, &disk);
    let mut most_bytes = 0;
    for round in 0..80_u64 {
        let hold = store.hold_commits();
        let blobs: Vec<(Bytes, Digest)> = (0..100).map(|seed| blob(1_000 + round * 100 + seed, 20)).collect();
        let mut puts: Vec<_> = blobs
            .iter()
            .map(|(bytes, digest)| Box::pin(store.put(repository(0), digest, bytes.clone(), &[], NOW_MS)))
            .collect();
        assert!(puts.iter_mut().all(|put| is_pending(put.as_mut())));
        drop(hold);
        puts.into_iter().for_each(|put| drop(wait(put).unwrap()));
        blobs.iter().for_each(|(_, digest)| unlink(&store, 0, digest));
        assert_eq!(wait(store.collect(NOW_MS, 1_000)).unwrap().blobs, 100);
        store = next_segment(store, &disk);
        wait(store.checkpoint()).unwrap();
        while wait(store.compact(NOW_MS, u64::MAX)).unwrap().more {}
        most_bytes = most_bytes.max(store.stats().log.bytes);
    }
    // The live blobs, two rounds of half a megabyte, and a twentieth in deletions. All deletions have 1.4 MB.
    assert!(most_bytes < 9 * 110_000 + 1_250_000, "{most_bytes}");
    for (seed, digest) in live.iter().enumerate() {
        assert_eq!(read(&store, digest).unwrap(), noise(seed as u64, 110_000));
    }
    assert_eq!(from_the_log_alone(&disk).stats().blobs, 9 + 1);
}

#[test]
fn nothing_is_lost_or_raised_while_compaction_runs_beside_pushes_and_deletions() {
    let disk = SimDisk::new();
    let threading = Threading::Pool { storage_threads: 2 };
    let options = Options { lease_ms: 0, grace_ms: 0, threading, ..options() };
    let store = Store::open(Arc::new(disk.clone()), options, NOW_MS).unwrap();
    let is_over = AtomicBool::new(false);
    let mut kept = BTreeMap::new();
    let copied_bytes = std::thread::scope(|scope| {
        let compaction = scope.spawn(|| {
            let mut copied_bytes = 0;
            while !is_over.load(Ordering::Relaxed) {
                wait(store.checkpoint()).unwrap();
                wait(store.collect(NOW_MS, 50)).unwrap();
                copied_bytes += wait(store.compact(NOW_MS, 300_000)).unwrap().copied_bytes;
            }
            copied_bytes
        });
        let writers: Vec<_> = (0..3_u64)
            .map(|writer| {
                let store = &store;
                scope.spawn(move || {
                    let mut kept = Vec::new();
                    for number in 0..150 {
                        let seed = 10_000 * (writer + 1) + number;
                        let digest = put(store, seed, 20_000);
                        wait(store.mount(repository(0), repository(1), &digest, NOW_MS)).unwrap();
                        unlink(store, 1, &digest);
                        if number % 4 == 0 {
                            kept.push((digest, seed));
                        } else {
                            unlink(store, 0, &digest);
                        }
                    }
                    kept
                })
            })
            .collect();
        for writer in writers {
            kept.extend(writer.join().unwrap());
        }
        is_over.store(true, Ordering::Relaxed);
        compaction.join().unwrap()
    });
    assert!(copied_bytes > 0);
    let check = |store: &Store| {
        let linked: Vec<Digest> = links(store).into_keys().map(|(digest, _)| digest).collect();
        assert_eq!(linked, kept.keys().copied().collect::<Vec<_>>());
        for (digest, seed) in &kept {
            assert_eq!(read(store, digest).unwrap(), noise(*seed, 20_000));
        }
    };
    check(&store);
    drop(store);
    check(&from_the_log_alone(&disk));
    check(&open(&disk));
}
