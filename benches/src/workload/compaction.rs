//! The engine's log under deletions: what compaction copies for what it gives back, what a store takes beside its blobs, and what
//! small commits notice of it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use taffrail_blobstore::disk::threads::ThreadsDisk;
use taffrail_blobstore::{Algorithm, Compacted, Digest, Options, RepositoryKey, SessionId, Store};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use super::push::SMALL_BYTES;
use super::{Case, Flushes, Prepare, Rounds, Row};
use crate::content::Blob;
use crate::goal::{Bound, Figure, Goal};
use crate::plan::Plan;
use crate::sample::Work;
use crate::target::{Kind, Subject};

/// The time that the engine is told: it has no clock.
const NOW_MS: u64 = 1_800_000_000_000;

/// Images at most: with blobs of 37 MiB each, 5 GiB.
const IMAGES_MAX: usize = 140;

/// Blobs of an image in files of their own, and in the log: layers, configuration, manifest. About a fortieth of an image's bytes is
/// in the log, as in registries that were measured.
const LAYERS: [u64; 5] = [16 << 20, 9 << 20, 6 << 20, 4 << 20, 2 << 20];
const SMALL: [u64; 4] = [700 << 10, 180 << 10, 6 << 10, 2 << 10];

/// Blobs of a store that keeps everything in its log: half of them are deleted, in no order.
const INLINE_BYTES: u64 = 48 << 10;

/// Segments that the log of such a store has.
const SEGMENTS: u64 = 12;

/// Pushes at once.
const PUSHES: usize = 16;

/// As the server does by default.
const BYTES_PER_SEC: u64 = 32 << 20;

pub(super) fn rows() -> Vec<Row> {
    let space = |name, about, prepare: Prepare, most| Case {
        name,
        about,
        subjects: vec![Kind::Engine],
        goals: vec![Goal::absolute(Figure::Extra, Kind::Engine, Bound::AtMost(most))],
        flushes: Flushes::Uncounted,
        prepare,
    };
    vec![
        Row::new(
            "GC of inline blobs",
            vec![
                space(
                    "gc-inline-images",
                    "bytes copied per byte given back, blobs die with their image",
                    together,
                    1.0,
                ),
                space(
                    "gc-inline-random",
                    "bytes copied per byte given back, every other blob dies",
                    scattered,
                    1.0,
                ),
            ],
        ),
        Row::new(
            "space amplification",
            vec![
                space("space-churn", "bytes taken per byte of blobs while images come and go", churn, 1.05),
                space("space-idle", "the same when nobody comes any more", idle, 1.02),
            ],
        ),
        Row::new(
            "small commits beside compaction",
            vec![Case {
                name: "commit-compaction",
                about: "commits of 4 KiB, 16 writers, with compaction at its default pace and without",
                subjects: vec![Kind::EngineCompacting, Kind::Engine],
                goals: vec![Goal::ratio(
                    Figure::P99,
                    Kind::EngineCompacting,
                    Kind::Engine,
                    Bound::AtMost(1.1),
                )],
                flushes: Flushes::Uncounted,
                prepare: beside_commits,
            }],
        ),
    ]
}

fn repository() -> Result<RepositoryKey> {
    RepositoryKey::new(1).context("a repository's key")
}

/// A store without leases and grace times: what was deleted is garbage at once.
fn open(dir: &Path, segment_bytes: u64) -> Result<Arc<Store>> {
    let mut entropy = [0; 48];
    rand::fill(&mut entropy[..]);
    let disk = ThreadsDisk::open_or_create(&dir.join("store"))?;
    let options = Options { segment_bytes, lease_ms: 0, grace_ms: 0, ..Options::new(entropy) };
    Ok(Arc::new(Store::open(Arc::new(disk), options, NOW_MS)?))
}

async fn push(store: &Store, bytes: u64) -> Result<Digest> {
    let blob = Blob::fresh(bytes);
    let digest = Digest::parse(&blob.digest)?;
    let id = SessionId::new(rand::random());
    store.begin_upload(repository()?, Algorithm::Sha256, id, NOW_MS)?;
    let mut upload = store.open_upload(repository()?, id, NOW_MS).await?;
    upload.write(Bytes::from(blob.content()), NOW_MS).await?;
    upload.commit(&digest, NOW_MS).await?;
    Ok(digest)
}

async fn push_all(store: &Arc<Store>, lengths: Vec<u64>) -> Result<Vec<Digest>> {
    let mut digests = Vec::with_capacity(lengths.len());
    let mut pushes = JoinSet::new();
    for bytes in lengths {
        if pushes.len() >= PUSHES {
            digests.extend(pushes.join_next().await.transpose()?.transpose()?);
        }
        let store = Arc::clone(store);
        pushes.spawn(async move { push(&store, bytes).await });
    }
    while let Some(pushed) = pushes.join_next().await {
        digests.push(pushed??);
    }
    Ok(digests)
}

async fn delete(store: &Arc<Store>, digests: &[Digest]) -> Result<()> {
    let mut unlinks = JoinSet::new();
    for &digest in digests {
        let store = Arc::clone(store);
        unlinks.spawn(async move {
            let generation = store.link_generation(repository()?, &digest);
            let generation = generation.context("the link of what was pushed")?;
            anyhow::Ok(store.unlink(repository()?, &digest, generation, NOW_MS).await?)
        });
    }
    while let Some(unlinked) = unlinks.join_next().await {
        unlinked??;
    }
    while store.collect(NOW_MS, 1_000).await?.blobs > 0 {}
    Ok(())
}

/// Compacts until nothing is left that is worth it.
async fn settle(store: &Store) -> Result<Compacted> {
    store.checkpoint().await?;
    let mut all = Compacted::default();
    loop {
        let compacted = store.compact(NOW_MS, u64::MAX).await?;
        all.copied_bytes += compacted.copied_bytes;
        all.freed_bytes += compacted.freed_bytes;
        all.segments += compacted.segments;
        if !compacted.more {
            return Ok(all);
        }
    }
}

/// Bytes that the store takes: its log up to where the segments end, and what the file system gave to files of large blobs.
fn taken_bytes(store: &Store, dir: &Path) -> Result<u64> {
    let mut taken = store.stats().log.bytes;
    for folder in std::fs::read_dir(dir.join("store/solo"))? {
        for file in std::fs::read_dir(folder?.path())? {
            // Removed meanwhile by a storage thread.
            let Ok(metadata) = file?.metadata() else { continue };
            taken += std::os::unix::fs::MetadataExt::blocks(&metadata) * 512;
        }
    }
    Ok(taken)
}

#[expect(clippy::cast_precision_loss, reason = "a ratio is shown with a few digits")]
fn ratio(one: u64, other: u64) -> f64 {
    one as f64 / other as f64
}

fn together<'a>(plan: &'a Plan, subject: &'a Subject) -> Result<Rounds<'a>> {
    inline(plan, subject, 8)
}

fn scattered<'a>(plan: &'a Plan, subject: &'a Subject) -> Result<Rounds<'a>> {
    inline(plan, subject, 1)
}

/// Pushes small blobs, deletes every other run of `run` blobs in `SEGMENTS` segments, and compacts. Extra is what was copied for each
/// byte of segments that went and was not copied.
fn inline<'a>(plan: &'a Plan, subject: &'a Subject, run: usize) -> Result<Rounds<'a>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let count = (plan.items * 4).clamp(64, 20_000);
    let segment_bytes =
        (count as u64 * INLINE_BYTES / SEGMENTS).next_power_of_two().clamp(1 << 20, 256 << 20);
    let store = open(&subject.dir, segment_bytes)?;
    Ok(Box::new(move |_| {
        let dead = runtime.block_on(async {
            let pushed = push_all(&store, vec![INLINE_BYTES; count]).await?;
            let dead = pushed.chunks(run).step_by(2).flatten().copied().collect::<Vec<Digest>>();
            delete(&store, &dead).await?;
            anyhow::Ok(dead.len() as u64)
        })?;
        let mut compacted = Compacted::default();
        let mut sample = subject.measure(|| {
            compacted = runtime.block_on(settle(&store))?;
            Ok(Work { operations: dead, bytes: dead * INLINE_BYTES, latencies_us: Vec::new() })
        })?;
        ensure!(compacted.freed_bytes > compacted.copied_bytes, "nothing was given back: {compacted:?}");
        sample.extra = Some(ratio(compacted.copied_bytes, compacted.freed_bytes - compacted.copied_bytes));
        Ok(sample)
    }))
}

fn image() -> Vec<u64> {
    LAYERS.into_iter().chain(SMALL).collect()
}

/// A store full of images.
fn images(plan: &Plan, subject: &Subject, runtime: &Runtime) -> Result<(Arc<Store>, Vec<Vec<Digest>>)> {
    let count = (plan.items / 8).clamp(2, IMAGES_MAX);
    let small_bytes: u64 = SMALL.iter().sum();
    let segment_bytes = (count as u64 * small_bytes / SEGMENTS).next_power_of_two().clamp(1 << 20, 256 << 20);
    let store = open(&subject.dir, segment_bytes)?;
    let mut held = Vec::with_capacity(count);
    for _ in 0..count {
        held.push(runtime.block_on(push_all(&store, image()))?);
    }
    Ok((store, held))
}

/// Images are replaced by others, in no order, while the jobs do what they do. Extra is the most that the store took.
fn churn<'a>(plan: &'a Plan, subject: &'a Subject) -> Result<Rounds<'a>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let (store, mut held) = images(plan, subject, &runtime)?;
    Ok(Box::new(move |_| {
        let replaced = held.len() / 4 + 1;
        let mut most: f64 = 0.0;
        let mut sample = subject.measure(|| {
            let mut work = Work::default();
            for _ in 0..replaced {
                let index = usize::try_from(rand::random::<u32>())? % held.len();
                let gone = std::mem::replace(&mut held[index], runtime.block_on(push_all(&store, image()))?);
                runtime.block_on(delete(&store, &gone))?;
                runtime.block_on(settle(&store))?;
                most = most.max(ratio(taken_bytes(&store, &subject.dir)?, store.stats().blob_bytes));
                work.operations += 1;
                work.bytes += image().iter().sum::<u64>();
            }
            Ok(work)
        })?;
        sample.extra = Some(most);
        Ok(sample)
    }))
}

/// A quarter of the images was deleted, and everything that can be given back was.
fn idle<'a>(plan: &'a Plan, subject: &'a Subject) -> Result<Rounds<'a>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let (store, mut held) = images(plan, subject, &runtime)?;
    let gone: Vec<Digest> = held.drain(..held.len() / 4).flatten().collect();
    runtime.block_on(delete(&store, &gone))?;
    Ok(Box::new(move |_| {
        let mut sample = subject.measure(|| {
            let compacted = runtime.block_on(settle(&store))?;
            Ok(Work { operations: 1, bytes: compacted.freed_bytes.max(1), latencies_us: Vec::new() })
        })?;
        sample.extra = Some(ratio(taken_bytes(&store, &subject.dir)?, store.stats().blob_bytes));
        Ok(sample)
    }))
}

/// Small commits in a store whose log is half garbage, which is compacted meanwhile, or not.
fn beside_commits<'a>(plan: &'a Plan, subject: &'a Subject) -> Result<Rounds<'a>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    // As much as is read in a round, and half of it again.
    let garbage_bytes = BYTES_PER_SEC * plan.round_time.as_secs().max(1);
    let count = usize::try_from(garbage_bytes / INLINE_BYTES)?.min(plan.items * 40).max(64);
    let segment_bytes = (count as u64 * INLINE_BYTES / 2).next_power_of_two().clamp(1 << 20, 64 << 20);
    let store = open(&subject.dir, segment_bytes)?;
    Ok(Box::new(move |_| {
        runtime.block_on(async {
            let pushed = push_all(&store, vec![INLINE_BYTES; count]).await?;
            let dead: Vec<Digest> = pushed.into_iter().step_by(2).collect();
            delete(&store, &dead).await?;
            anyhow::Ok(store.checkpoint().await?)
        })?;
        let blobs = Blob::several(plan.items.saturating_mul(20 * PUSHES).min(100_000), SMALL_BYTES);
        let blobs = blobs.into_iter().map(|blob| Ok((Digest::parse(&blob.digest)?, blob)));
        let blobs = Arc::new(blobs.collect::<Result<Vec<_>>>()?);
        let next = Arc::new(AtomicUsize::new(0));
        subject.measure(|| {
            let until = Instant::now() + plan.round_time;
            let paced = (subject.kind == Kind::EngineCompacting)
                .then(|| runtime.spawn(compact_at_pace(Arc::clone(&store), until)));
            let writers: Vec<_> = (0..PUSHES)
                .map(|_| {
                    let (store, blobs, next) = (Arc::clone(&store), Arc::clone(&blobs), Arc::clone(&next));
                    runtime.spawn(async move {
                        let mut work = Work::default();
                        while Instant::now() < until {
                            let index = next.fetch_add(1, Ordering::Relaxed);
                            let Some((digest, blob)) = blobs.get(index) else { break };
                            let started = Instant::now();
                            store
                                .put(repository()?, digest, Bytes::from(blob.content()), &[], NOW_MS)
                                .await?;
                            work.count(started, SMALL_BYTES);
                        }
                        anyhow::Ok(work)
                    })
                })
                .collect();
            let mut all = Work::default();
            for writer in writers {
                all.add(runtime.block_on(writer)??);
            }
            if let Some(paced) = paced {
                runtime.block_on(paced)??;
            }
            Ok(all)
        })
    }))
}

/// As the job of the server does.
async fn compact_at_pace(store: Arc<Store>, until: Instant) -> Result<()> {
    while Instant::now() < until {
        let compacted = store.compact(NOW_MS, BYTES_PER_SEC / 20).await?;
        let done_bytes = compacted.copied_bytes + compacted.read_bytes;
        let pause_ms = (done_bytes * 1_000 / BYTES_PER_SEC).max(1);
        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
    }
    Ok(())
}
