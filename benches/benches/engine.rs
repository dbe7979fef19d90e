//! The engine's own operations, one by one: `cargo bench -p taffrail-benches`.
//!
//! They run on the file system that cargo builds into, with the engine's defaults, and every commit is durable. How they
//! compare with what the disk can do is measured by `taffrail-bench`, which runs both in turn.
#![expect(clippy::unwrap_used, reason = "a benchmark that fails has no figure")]

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use taffrail_blobstore::disk::Disk;
use taffrail_blobstore::disk::threads::ThreadsDisk;
use taffrail_blobstore::disk::uring::{Ring, UringDisk};
use taffrail_blobstore::{Algorithm, Digest, Options, RepositoryKey, SessionId, Store};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// The time that the engine is told: it has no clock.
const NOW_MS: u64 = 1_800_000_000_000;
/// Past every lease and grace time of the defaults.
const LATER_MS: u64 = 3 * 3_600_000;

const SMALL_BYTES: usize = 4 << 10;
/// More than the engine keeps in its log.
const LARGE_BYTES: usize = (1 << 20) + (4 << 10);
/// Blobs of the store that is looked into and opened.
const FILLED: u64 = 20_000;
/// Blobs that one collection frees.
const GARBAGE: u64 = 64;
/// Small blobs that are pushed before one compaction, and their length.
const COMPACTED: u64 = 128;
const COMPACTED_BYTES: usize = 32 << 10;

fn key(number: u64) -> RepositoryKey {
    RepositoryKey::new(number).unwrap()
}

fn scratch() -> TempDir {
    // Beside the build: /tmp may be memory.
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn open(dir: &Path) -> Store {
    Store::open(Arc::new(ThreadsDisk::open_or_create(dir).unwrap()), Options::new([7; 48]), NOW_MS).unwrap()
}

/// The back ends that this machine has.
fn back_ends(dir: &Path) -> Vec<(&'static str, Arc<dyn Disk>)> {
    let files = |name: &str| ThreadsDisk::open_or_create(&dir.join(name)).unwrap();
    let mut back_ends: Vec<(&str, Arc<dyn Disk>)> = vec![("threads", Arc::new(files("threads")))];
    if let Ok(ring) = Ring::start() {
        back_ends.push(("uring", Arc::new(UringDisk::new(files("uring"), ring))));
    }
    back_ends
}

/// Content that differs from that of every other number.
fn numbered(number: u64, bytes: usize) -> (Digest, Bytes) {
    let mut content = vec![0; bytes];
    content[..8].copy_from_slice(&number.to_le_bytes());
    (Digest::of(Algorithm::Sha256, &content), content.into())
}

async fn put(store: &Store, number: u64) -> Digest {
    let (digest, content) = numbered(number, SMALL_BYTES);
    store.put(key(1), &digest, content, &[], NOW_MS).await.unwrap();
    digest
}

async fn upload(store: &Store, number: u64, bytes: usize, now_ms: u64) -> Digest {
    let (digest, content) = numbered(number, bytes);
    let id = SessionId::new(u128::from(number).to_le_bytes());
    store.begin_upload(key(1), Algorithm::Sha256, id, now_ms).unwrap();
    let mut upload = store.open_upload(key(1), id, now_ms).await.unwrap();
    upload.write(content, now_ms).await.unwrap();
    upload.commit(&digest, now_ms).await.unwrap();
    digest
}

fn hash(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("hash");
    let content = vec![7; 1 << 20];
    group.throughput(Throughput::Bytes(content.len() as u64));
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        group.bench_function(BenchmarkId::from_parameter(format!("{algorithm:?}")), |bencher| {
            bencher.iter(|| Digest::of(algorithm, black_box(&content)));
        });
    }
}

fn append(criterion: &mut Criterion) {
    let (dir, runtime, next) = (scratch(), Runtime::new().unwrap(), AtomicU64::new(0));
    let mut group = criterion.benchmark_group("append");
    for (back_end, disk) in back_ends(dir.path()) {
        let store = Store::open(disk, Options::new([7; 48]), NOW_MS).unwrap();
        for bytes in [SMALL_BYTES, LARGE_BYTES] {
            group.throughput(Throughput::Bytes(bytes as u64));
            group.bench_function(BenchmarkId::new(back_end, bytes), |bencher| {
                bencher.iter(|| {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    runtime.block_on(upload(&store, number, bytes, NOW_MS))
                });
            });
        }
    }
}

/// Writers that share their flushes; the time is that of one commit in the stream of all.
fn group_commit(criterion: &mut Criterion) {
    let (dir, runtime, next) = (scratch(), Runtime::new().unwrap(), Arc::new(AtomicU64::new(0)));
    let store = Arc::new(open(dir.path()));
    let mut group = criterion.benchmark_group("group commit");
    group.throughput(Throughput::Elements(1));
    for writers in [1, 16, 64, 256] {
        group.bench_function(BenchmarkId::from_parameter(writers), |bencher| {
            bencher.iter_custom(|commits| {
                let until = next.load(Ordering::Relaxed) + commits;
                let started = Instant::now();
                let tasks: Vec<_> = (0..writers)
                    .map(|_| {
                        let (store, next) = (Arc::clone(&store), Arc::clone(&next));
                        runtime.spawn(async move {
                            loop {
                                let number = next.fetch_add(1, Ordering::Relaxed);
                                if number >= until {
                                    break;
                                }
                                put(&store, number).await;
                            }
                        })
                    })
                    .collect();
                tasks.into_iter().for_each(|task| runtime.block_on(task).unwrap());
                started.elapsed()
            });
        });
    }
}

fn filled(dir: &Path, runtime: &Runtime) -> (Store, Vec<Digest>) {
    let store = Arc::new(open(dir));
    let tasks: Vec<_> = (0..64)
        .map(|writer| {
            let store = Arc::clone(&store);
            runtime.spawn(async move {
                let mut digests = Vec::new();
                for number in (writer..FILLED).step_by(64) {
                    digests.push(put(&store, number).await);
                }
                digests
            })
        })
        .collect();
    let digests = tasks.into_iter().flat_map(|task| runtime.block_on(task).unwrap()).collect();
    (Arc::into_inner(store).unwrap(), digests)
}

fn lookup_and_link(criterion: &mut Criterion) {
    let (dir, runtime) = (scratch(), Runtime::new().unwrap());
    let (store, digests) = filled(dir.path(), &runtime);
    let mut all = digests.iter().cycle();
    criterion.bench_function("lookup", |bencher| {
        bencher.iter(|| store.stat(key(1), all.next().unwrap(), NOW_MS).unwrap());
    });
    criterion.bench_function("open for reading", |bencher| {
        bencher.iter(|| store.open_blob(key(1), all.next().unwrap()).unwrap());
    });
    criterion.bench_function("link", |bencher| {
        bencher.iter(|| {
            runtime.block_on(store.mount(key(1), key(2), all.next().unwrap(), NOW_MS)).unwrap();
        });
    });
}

fn opening(criterion: &mut Criterion) {
    let (dir, runtime) = (scratch(), Runtime::new().unwrap());
    let (store, _) = filled(dir.path(), &runtime);
    let mut group = criterion.benchmark_group("open 20,000 blobs");
    // Dropped and not closed: everything since the last checkpoint is replayed.
    drop(store);
    group.bench_function("after a crash", |bencher| bencher.iter(|| drop(open(dir.path()))));
    open(dir.path()).close().unwrap();
    group.bench_function("clean", |bencher| {
        bencher.iter_custom(|times| {
            (0..times)
                .map(|_| {
                    let started = Instant::now();
                    let store = open(dir.path());
                    let took = started.elapsed();
                    store.close().unwrap();
                    took
                })
                .sum::<Duration>()
        });
    });
}

fn collection(criterion: &mut Criterion) {
    let (dir, runtime) = (scratch(), Runtime::new().unwrap());
    let store = open(dir.path());
    let (mut now_ms, mut number) = (NOW_MS, 0);
    let mut group = criterion.benchmark_group("gc");
    group.throughput(Throughput::Elements(GARBAGE)).sample_size(10);
    group.bench_function("large blobs", |bencher| {
        bencher.iter_batched(
            || {
                runtime.block_on(async {
                    for _ in 0..GARBAGE {
                        let digest = upload(&store, number, LARGE_BYTES, now_ms).await;
                        number += 1;
                        let generation = store.link_generation(key(1), &digest).unwrap();
                        store.unlink(key(1), &digest, generation, now_ms).await.unwrap();
                    }
                });
                now_ms += LATER_MS;
                now_ms
            },
            |now_ms| {
                let mut left = GARBAGE;
                while left > 0 {
                    left -= runtime.block_on(store.collect(now_ms, usize::MAX)).unwrap().blobs;
                }
            },
            BatchSize::PerIteration,
        );
    });
}

/// Four segments of which half is dead: what is live in them is read, checked and written anew.
fn compaction(criterion: &mut Criterion) {
    let (dir, runtime) = (scratch(), Runtime::new().unwrap());
    let disk = ThreadsDisk::open_or_create(dir.path()).unwrap();
    let options = Options { segment_bytes: 1 << 20, lease_ms: 0, grace_ms: 0, ..Options::new([7; 48]) };
    let store = Store::open(Arc::new(disk), options, NOW_MS).unwrap();
    let mut number = 0;
    let mut group = criterion.benchmark_group("gc");
    group.throughput(Throughput::Bytes(COMPACTED * COMPACTED_BYTES as u64 / 2)).sample_size(10);
    group.bench_function("inline blobs, per live byte", |bencher| {
        bencher.iter_batched(
            || {
                runtime.block_on(async {
                    for _ in 0..COMPACTED {
                        let (digest, content) = numbered(number, COMPACTED_BYTES);
                        store.put(key(1), &digest, content, &[], NOW_MS).await.unwrap();
                        number += 1;
                        if number % 2 == 0 {
                            let generation = store.link_generation(key(1), &digest).unwrap();
                            store.unlink(key(1), &digest, generation, NOW_MS).await.unwrap();
                        }
                    }
                    while store.collect(NOW_MS, usize::MAX).await.unwrap().blobs > 0 {}
                    store.checkpoint().await.unwrap();
                });
            },
            |()| while runtime.block_on(store.compact(NOW_MS, u64::MAX)).unwrap().more {},
            BatchSize::PerIteration,
        );
    });
}

criterion_group!(benches, hash, append, group_commit, lookup_and_link, opening, collection, compaction);
criterion_main!(benches);
