//! What an opening knows from a checkpoint, against what it knows from the log alone.

use std::collections::BTreeMap;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use crate::digest::{Algorithm, Digest};
use crate::disk::Disk as _;
use crate::disk::sim::SimDisk;
use crate::engine::Engine;
use crate::format::SegmentId;
use crate::locator::{SHARDS, Tally};
use crate::options::{Options, Threading};
use crate::recovery;
use crate::repository::{RepositoryKey, SessionId};
use crate::segment::table::Live;
use crate::store::Store;
use crate::sync::Arc;

const NOW_MS: u64 = 1_000_000;

fn options(index_delta_max: Option<usize>) -> Options {
    let threading = Threading::Inline;
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

fn put(store: &Store, number: u64, len: usize) -> Digest {
    let mut bytes = vec![3; len];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    let digest = Digest::of(Algorithm::ALL[usize::try_from(number % 3).unwrap()], &bytes);
    drop(wait(store.put(repository(1 + number % 4), &digest, Bytes::from(bytes), &[], NOW_MS)).unwrap());
    digest
}

/// Blobs in several segments, links of others, blobs without link, blobs that are gone, and a session with a file; checkpoints on
/// the way, and a log behind the last one.
fn history(disk: &SimDisk, index_delta_max: Option<usize>) {
    let store = Store::open(Arc::new(disk.clone()), options(index_delta_max), NOW_MS).unwrap();
    let digests: Vec<Digest> = (0..120).map(|number| put(&store, number, 30_000)).collect();
    wait(store.checkpoint()).unwrap();
    for (number, digest) in (0_u64..).zip(&digests) {
        let holder = repository(1 + number % 4);
        if number % 3 == 0 {
            wait(store.mount(holder, repository(9), digest, NOW_MS)).unwrap();
        }
        if number % 2 == 0 {
            let generation = store.link_generation(holder, digest).unwrap();
            wait(store.unlink(holder, digest, generation, NOW_MS)).unwrap();
        }
        if number == 60 {
            wait(store.checkpoint()).unwrap();
        }
    }
    let id = SessionId::new([5; 16]);
    store.begin_upload(repository(2), Algorithm::Sha256, id, NOW_MS).unwrap();
    let mut upload = wait(store.open_upload(repository(2), id, NOW_MS)).unwrap();
    wait(upload.write(Bytes::from(vec![8; 3 << 20]), NOW_MS)).unwrap();
    wait(upload.acknowledge(NOW_MS)).unwrap();
    let later_ms = NOW_MS + 10 * 3_600_000;
    assert_eq!(wait(store.collect(later_ms, 10)).unwrap().blobs, 10);
    wait(store.checkpoint()).unwrap();
    for (number, digest) in (0_u64..40).zip(&digests).filter(|(number, _)| number % 4 == 1) {
        wait(store.mount(repository(1 + number % 4), repository(8), digest, NOW_MS)).unwrap();
    }
    put(&store, 500, 100);
}

/// What counts in each segment and shard after an opening.
fn opened(disk: &SimDisk, index_delta_max: Option<usize>) -> (BTreeMap<SegmentId, Live>, Vec<Tally>) {
    let fork = disk.fork();
    let lock = fork.lock("a test").unwrap();
    let engine: Engine =
        recovery::open(Arc::new(fork), lock, options(index_delta_max), NOW_MS + 20 * 3_600_000).unwrap();
    let live = engine.segments.snapshot().into_iter().map(|(id, segment)| (id, segment.live)).collect();
    (live, (0..SHARDS).map(|index| engine.locator.shard(index).tally.clone()).collect())
}

#[test]
fn a_checkpoint_knows_what_counts_in_each_segment_as_the_log_does() {
    for index_delta_max in [None, Some(0), Some(1)] {
        let disk = SimDisk::new();
        history(&disk, index_delta_max);
        let (live, tallies) = opened(&disk, index_delta_max);
        assert!(live.len() > 3 && live.values().any(|live| live.records > 0));
        let mut sums: BTreeMap<SegmentId, Live> = live.keys().map(|id| (*id, Live::default())).collect();
        for tally in &tallies {
            tally.live.iter().for_each(|(id, live)| sums.entry(*id).or_default().add(*live));
        }
        // The session counts in the segment alone.
        let different = live.iter().filter(|(id, live)| sums.get(id) != Some(live)).count();
        assert_eq!(different, 1, "{live:?}, by shards {sums:?}");
        for (name, _) in disk.files() {
            assert!(!name.starts_with("index/") || disk.uproot(&name));
        }
        assert_eq!(opened(&disk, index_delta_max), (live, tallies), "{index_delta_max:?}");
    }
}
