//! Every way to replay a log, against replaying it record by record.

use std::collections::{BTreeMap, BTreeSet};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::*;
use crate::digest::Algorithm;
use crate::disk::Disk as _;
use crate::disk::sim::{Call, Fault, FaultError, Landing, SimDisk};
use crate::format::partition::{StoredBlob, StoredLinks};
use crate::format::seal::Place;
use crate::format::{INDEX_FOLDER, SCRATCH_NAME, SegmentId};
use crate::locator::Tally;
use crate::options::Options;
use crate::recovery;
use crate::repository::{RepositoryKey, SessionId};
use crate::segment::table::Live;
use crate::store::Store;

const NOW_MS: u64 = 1_000_000;
const LATER_MS: u64 = NOW_MS + 20 * 3_600_000;

/// One record after the other, without a file or a thread; with threads; sorted; sorted by threads.
const WAYS: [(Option<usize>, Threading); 4] = [
    (None, Threading::Inline),
    (None, Threading::Pool { storage_threads: 3 }),
    (Some(1), Threading::Inline),
    (Some(0), Threading::Pool { storage_threads: 3 }),
];

fn options((index_delta_max, threading): (Option<usize>, Threading)) -> Options {
    Options { segment_bytes: 1 << 20, reserve_bytes: 0, index_delta_max, threading, ..Options::new([7; 48]) }
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return output;
        }
    }
}

fn repository(number: u64) -> RepositoryKey {
    RepositoryKey::new(number).unwrap()
}

/// Puts, mounts, removals of links, collections and large blobs in an order that the seed says; the index is lost in the end.
fn history(seed: u64) -> SimDisk {
    let disk = SimDisk::new();
    let mut random = StdRng::seed_from_u64(seed);
    let opened = Options { lease_ms: 0, grace_ms: 0, ..options(WAYS[0]) };
    let open = |now_ms| Store::open(Arc::new(disk.clone()), opened.clone(), now_ms).unwrap();
    let mut store = open(NOW_MS);
    let mut linked: BTreeSet<(u64, Digest)> = BTreeSet::new();
    let mut copied_bytes = 0;
    for step in 0..600_u64 {
        let now_ms = NOW_MS + step * 1_000;
        let holder = random.random_range(1..5_u64);
        let any = linked.iter().nth(random.random_range(0..=linked.len())).copied();
        match (random.random_range(0..10), any) {
            (0..4, _) | (_, None) => {
                // Few contents, so that what was deleted comes again.
                let bytes = vec![random.random_range(0..90_u8); 3_000];
                let digest = Digest::of(Algorithm::ALL[usize::from(bytes[0] % 3)], &bytes);
                drop(wait(store.put(repository(holder), &digest, Bytes::from(bytes), &[], now_ms)).unwrap());
                linked.insert((holder, digest));
            }
            (4..6, Some((from, digest))) => {
                wait(store.mount(repository(from), repository(holder), &digest, now_ms)).unwrap();
                linked.insert((holder, digest));
            }
            (6..9, Some((from, digest))) => {
                let generation = store.link_generation(repository(from), &digest).unwrap();
                wait(store.unlink(repository(from), &digest, generation, now_ms)).unwrap();
                linked.remove(&(from, digest));
            }
            _ => drop(wait(store.collect(now_ms, 100)).unwrap()),
        }
        if step % 200 == 199 {
            // What the segments that this ends still hold is copied, and they are dropped.
            store.close().unwrap();
            store = open(now_ms);
            loop {
                let compacted = wait(store.compact(now_ms, u64::MAX)).unwrap();
                copied_bytes += compacted.copied_bytes;
                if !compacted.more {
                    break;
                }
            }
        }
        if step % 150 == 20 {
            let id = SessionId::new([u8::try_from(step % 251).unwrap(); 16]);
            store.begin_upload(repository(holder), Algorithm::Sha256, id, now_ms).unwrap();
            let mut upload = wait(store.open_upload(repository(holder), id, now_ms)).unwrap();
            let bytes = Bytes::from(vec![u8::try_from(step % 7).unwrap(); 5 << 20]);
            wait(upload.write(bytes.clone(), now_ms)).unwrap();
            wait(upload.acknowledge(now_ms)).unwrap();
            if step > 200 {
                let upload = wait(store.open_upload(repository(holder), id, now_ms)).unwrap();
                wait(upload.commit(&Digest::of(Algorithm::Sha256, &bytes), now_ms)).unwrap();
            }
        }
    }
    assert!(copied_bytes > 0, "the log has copies");
    drop(store);
    for (name, _) in disk.files() {
        assert!(!name.starts_with("index/") || disk.uproot(&name));
    }
    disk
}

/// All that an opening knows.
#[derive(Debug)]
struct Known {
    blobs: Vec<StoredBlob>,
    tallies: Vec<Tally>,
    segments: BTreeMap<SegmentId, (Live, u64, u64)>,
    dropped: BTreeSet<SegmentId>,
    sessions: Vec<SegmentId>,
}

fn open(disk: &SimDisk, way: (Option<usize>, Threading)) -> Engine {
    let lock = disk.lock("a test").unwrap();
    recovery::open(Arc::new(disk.clone()), lock, options(way), LATER_MS).unwrap()
}

fn known(engine: &Engine) -> Known {
    assert_eq!(engine.health.refusal(), None);
    let mut blobs = Vec::new();
    for index in 0..SHARDS {
        let snapshot = engine.locator.shard(index).snapshot();
        // Since when it has no link says nothing of one that has.
        let settled = |blob: StoredBlob| StoredBlob {
            unlinked_since_ms: if blob.links == StoredLinks::Here(Vec::new()) {
                blob.unlinked_since_ms
            } else {
                0
            },
            ..blob
        };
        blobs.extend(snapshot.blobs().map(Result::unwrap).map(settled));
    }
    let segments = engine.segments.snapshot().into_iter();
    let mut sessions: Vec<SegmentId> =
        engine.sessions.logged().into_iter().map(|it| it.record.segment).collect();
    sessions.sort_unstable();
    Known {
        blobs,
        tallies: (0..SHARDS).map(|index| engine.locator.shard(index).tally.clone()).collect(),
        segments: segments.map(|(id, it)| (id, (it.live, it.tombstones, it.end_bytes))).collect(),
        dropped: engine.segments.dropped(),
        sessions,
    }
}

/// Says what differs, rather than all there is.
fn assert_same(found: &Known, expected: &Known, when: &str) {
    for (found, expected) in found.blobs.iter().zip(&expected.blobs) {
        assert_eq!(found, expected, "{when}");
    }
    let [found, expected] =
        [found, expected].map(|it| (it.blobs.len(), &it.tallies, &it.segments, &it.dropped, &it.sessions));
    assert_eq!(found, expected, "{when}");
}

fn has_scratch(disk: &SimDisk) -> bool {
    disk.files().iter().any(|(name, _)| name == SCRATCH_NAME)
}

fn partitions(disk: &SimDisk) -> usize {
    disk.files().iter().filter(|(name, _)| name.starts_with("index/") && name != SCRATCH_NAME).count()
}

#[test]
fn a_log_says_the_same_record_by_record_on_threads_and_sorted() {
    for seed in 0..8 {
        let disk = history(seed);
        let expected = known(&open(&disk.fork(), WAYS[0]));
        assert!(expected.blobs.len() > 20 && !expected.sessions.is_empty());
        for way in WAYS {
            let fork = disk.fork();
            let writes = fork.count(Call::Write);
            assert_same(&known(&open(&fork, way)), &expected, &format!("seed {seed}, {way:?}"));
            assert!(way.0.is_none() || fork.count(Call::Write) > writes + 64, "seed {seed}: it was sorted");
            assert!(!has_scratch(&fork));
        }
    }
}

#[test]
fn a_sorted_replay_that_is_killed_anywhere_leaves_nothing_and_comes_out_the_same() {
    let disk = history(77);
    let expected = known(&open(&disk.fork(), WAYS[0]));
    let replayed = disk.fork();
    replayed.start_tape();
    drop(open(&replayed, WAYS[2]));
    let tape = replayed.take_tape();
    for (point, image) in tape.iter().enumerate().step_by(tape.len().div_ceil(120)) {
        let killed = image.kill(point as u64);
        let lost_power = image.crash(point as u64);
        for disk in [killed, lost_power] {
            assert_same(
                &known(&open(&disk, WAYS[3])),
                &expected,
                &format!("killed at {point} of {}", tape.len()),
            );
            assert!(!has_scratch(&disk));
        }
    }
    // What a partition replaces is gone, also when openings are killed again and again.
    let needed = partitions(&replayed);
    assert!(needed > 10);
    let mut killed = disk.fork();
    for _ in 0..4 {
        killed.start_tape();
        drop(open(&killed, WAYS[2]));
        let tape = killed.take_tape();
        let worst = tape.iter().max_by_key(|image| partitions(image)).unwrap();
        let most = partitions(worst);
        assert!(most <= needed + 1, "{most} files for {needed}");
        killed = worst.kill(1);
    }
    // The one moment at which the file has a name.
    assert_eq!(tape.iter().filter(|image| has_scratch(image)).count(), 1);
    let named = tape.iter().find(|image| has_scratch(image)).expect("the file is made");
    let killed = named.kill(1);
    assert_same(&known(&open(&killed, WAYS[0])), &expected, "killed while it has a name");
    assert!(!has_scratch(&killed), "what is left is swept by an opening that sorts nothing");
}

#[test]
fn a_scratch_file_that_fails_costs_time_alone() {
    let disk = history(78);
    let expected = known(&open(&disk.fork(), WAYS[0]));
    let errors = [FaultError::Io, FaultError::NoSpace, FaultError::ReadOnly];
    for call in [Call::Create, Call::Remove, Call::Write, Call::Read] {
        for skip in [0, 1, 7] {
            for (error, way) in errors.into_iter().flat_map(|error| [(error, WAYS[2]), (error, WAYS[3])]) {
                let fork = disk.fork();
                fork.inject(Fault::on(&[call], error).within(SCRATCH_NAME).after(skip).times(1));
                assert_same(&known(&open(&fork, way)), &expected, &format!("{call:?}, {error:?}, {skip}"));
            }
        }
    }
}

#[test]
fn a_block_that_comes_back_otherwise_than_it_was_written_is_an_error() {
    let digest = Digest::of(Algorithm::Sha256, b"a");
    let record = |lsn| Record { lsn, body: Body::Link { repository: repository(1), digest } };
    let place = Place { segment: SegmentId(1), epoch: 1, offset_bytes: 4096 };
    for landing in [None, Some(Landing::Nowhere), Some(Landing::At { offset_bytes: 1 })] {
        let disk = SimDisk::new();
        disk.create_dir(INDEX_FOLDER).unwrap();
        let mut runs = Runs::new(Arc::new(Scratch::create(&disk).unwrap()), BLOCK_BYTES_SMALL);
        let is_harmed = landing.is_some();
        landing.into_iter().for_each(|landing| disk.misdirect(1, landing));
        (0..20).for_each(|lsn| runs.put(3, &record(lsn), place, NOW_MS).unwrap());
        let mut taken = Vec::new();
        let drained = runs.drain(3, |record, _, _| taken.push(record.lsn), |_| ());
        assert_eq!(drained.is_err(), is_harmed);
        assert!(is_harmed || taken == (0..20).collect::<Vec<_>>());
    }
}

#[test]
fn a_shard_does_not_hold_more_than_it_may_while_its_run_is_applied() {
    let disk = SimDisk::new();
    let store = Store::open(Arc::new(disk.clone()), options(WAYS[0]), NOW_MS).unwrap();
    let bytes = Bytes::from_static(b"of many repositories");
    let digest = Digest::of(Algorithm::Sha256, &bytes);
    drop(wait(store.put(repository(1), &digest, bytes, &[], NOW_MS)).unwrap());
    for holder in 2..1_000 {
        wait(store.mount(repository(1), repository(holder), &digest, NOW_MS)).unwrap();
    }
    drop(store);
    for (name, _) in disk.files() {
        assert!(!name.starts_with("index/") || disk.uproot(&name));
    }
    let replayed = disk.fork();
    replayed.start_tape();
    let engine = open(&replayed, (Some(2), Threading::Inline));
    // Links weigh, those that come as well as those of the partition, which come in with the blob.
    assert!(engine.next_partition.load(Ordering::Acquire) > 100);
    let most = replayed.take_tape().iter().map(partitions).max().unwrap();
    assert!(most <= 2, "{most} files of one shard at a time");
    assert_same(&known(&engine), &known(&open(&disk, WAYS[0])), "a blob of many links");
}
