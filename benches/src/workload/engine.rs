//! The engine alone, in this process, against the bare group commit: small commits, mounts, collection.
//!
//! Both sides are driven by the same tasks on the same runtime, and both make the bytes of a commit from the same
//! buffer. The engine hashes them too; the bare commit does not.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use taffrail_blobstore::disk::threads::ThreadsDisk;
use taffrail_blobstore::{Algorithm, Digest, Options, RepositoryKey, SessionId, Store};
use tokio::runtime::Runtime;

use super::push::SMALL_BYTES;
use super::{Case, Flushes, Prepare, Rounds, Row};
use crate::content::Blob;
use crate::goal::{Bound, Figure, Goal};
use crate::limits::GroupCommit;
use crate::plan::Plan;
use crate::sample::Work;
use crate::target::{Kind, Subject};

/// Commits that are prepared for one round.
const COMMITS_MAX: usize = 400_000;

/// The time that the engine is told: it has no clock.
const NOW_MS: u64 = 1_800_000_000_000;

/// Past every lease and grace time of the defaults.
const LATER_MS: u64 = 3 * 3_600_000;

/// Blobs in one round of collection, and their length: the least that has a file of its own.
const COLLECTED_MAX: usize = 1_000;
const COLLECTED_BYTES: u64 = (1 << 20) + (4 << 10);

pub(super) fn rows() -> Vec<Row> {
    let commits = |name, about, prepare: Prepare, least| Case {
        name,
        about,
        subjects: vec![Kind::Engine, Kind::GroupCommit],
        goals: vec![Goal::ratio(Figure::OpsPerSec, Kind::Engine, Kind::GroupCommit, Bound::AtLeast(least))],
        flushes: Flushes::Uncounted,
        prepare,
    };
    vec![
        Row::new(
            "a mount is one small commit",
            vec![Case {
                name: "engine-mount",
                about: "mounts in the engine against commits of 4 KiB, 16 writers",
                subjects: vec![Kind::EngineMount, Kind::Engine],
                goals: vec![Goal::ratio(
                    Figure::OpsPerSec,
                    Kind::EngineMount,
                    Kind::Engine,
                    Bound::AtLeast(0.95),
                )],
                flushes: Flushes::Uncounted,
                prepare: commits_16,
            }],
        ),
        Row::new(
            "small commits in the engine",
            vec![
                commits("engine-commit-1", "commits of 4 KiB, 1 writer", commits_1, 0.8),
                commits("engine-commit-16", "commits of 4 KiB, 16 writers", commits_16, 0.7),
                commits("engine-commit-64", "commits of 4 KiB, 64 writers", commits_64, 0.6),
            ],
        ),
    ]
}

pub(super) fn collection() -> Row {
    Row::new(
        "GC of large blobs",
        vec![Case {
            name: "gc-large",
            about: "blobs in files of their own that lost their last link",
            subjects: vec![Kind::Engine],
            goals: vec![
                Goal::absolute(Figure::OpsPerSec, Kind::Engine, Bound::AtLeast(1_000.0)),
                // Extra is bytes written per byte freed; what is written are the records of the deletion.
                Goal::absolute(Figure::Extra, Kind::Engine, Bound::AtMost(0.001)),
            ],
            flushes: Flushes::Uncounted,
            prepare: collect,
        }],
    )
}

enum Committer {
    Put(Store),
    Mount(Store, Digest),
    Bare(GroupCommit),
}

fn repository(number: u64) -> Result<RepositoryKey> {
    RepositoryKey::new(number).context("a repository's key")
}

fn store(subject: &Subject) -> Result<Store> {
    let mut entropy = [0; 48];
    rand::fill(&mut entropy[..]);
    let disk = ThreadsDisk::open_or_create(&subject.dir.join("store"))?;
    Ok(Store::open(Arc::new(disk), Options::new(entropy), NOW_MS)?)
}

impl Committer {
    async fn commit(&self, digest: &Digest, blob: &Blob) -> Result<()> {
        match self {
            Self::Put(store) => {
                store.put(repository(1)?, digest, Bytes::from(blob.content()), &[], NOW_MS).await?;
            }
            Self::Mount(store, mounted) => {
                store.mount(repository(1)?, repository(2)?, mounted, NOW_MS).await?;
            }
            Self::Bare(log) => log.commit(&blob.content()).await?,
        }
        Ok(())
    }
}

fn commits_1<'a>(plan: &'a Plan, subject: &'a Subject) -> Result<Rounds<'a>> {
    commits(plan, subject, 1)
}

fn commits_16<'a>(plan: &'a Plan, subject: &'a Subject) -> Result<Rounds<'a>> {
    commits(plan, subject, 16)
}

fn commits_64<'a>(plan: &'a Plan, subject: &'a Subject) -> Result<Rounds<'a>> {
    commits(plan, subject, 64)
}

fn commits<'a>(plan: &'a Plan, subject: &'a Subject, writers: usize) -> Result<Rounds<'a>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().build()?;
    let committer = if subject.kind == Kind::GroupCommit {
        Committer::Bare(GroupCommit::open(&subject.dir)?)
    } else if subject.kind == Kind::EngineMount {
        let (store, blob) = (store(subject)?, Blob::fresh(SMALL_BYTES));
        let digest = Digest::parse(&blob.digest)?;
        runtime.block_on(store.put(repository(1)?, &digest, Bytes::from(blob.content()), &[], NOW_MS))?;
        Committer::Mount(store, digest)
    } else {
        Committer::Put(store(subject)?)
    };
    let committer = Arc::new(committer);
    // A slow writer's share: one writer makes a few thousand commits a second.
    let count = COMMITS_MAX.min(plan.items.saturating_mul(20 * writers));
    Ok(Box::new(move |_| {
        let blobs = Blob::several(count, SMALL_BYTES).into_iter();
        let blobs = blobs.map(|blob| Ok((Digest::parse(&blob.digest)?, blob))).collect::<Result<Vec<_>>>()?;
        let (blobs, next) = (Arc::new(blobs), Arc::new(AtomicUsize::new(0)));
        subject.measure(|| {
            let until = Instant::now() + plan.round_time;
            let tasks: Vec<_> = (0..writers)
                .map(|_| {
                    let (committer, blobs, next) =
                        (Arc::clone(&committer), Arc::clone(&blobs), Arc::clone(&next));
                    runtime.spawn(async move {
                        let mut work = Work::default();
                        while Instant::now() < until {
                            let index = next.fetch_add(1, Ordering::Relaxed);
                            let Some((digest, blob)) = blobs.get(index) else { break };
                            let started = Instant::now();
                            committer.commit(digest, blob).await?;
                            work.count(started, SMALL_BYTES);
                        }
                        anyhow::Ok(work)
                    })
                })
                .collect();
            let mut all = Work::default();
            for task in tasks {
                all.add(runtime.block_on(task)??);
            }
            Ok(all)
        })
    }))
}

fn collect<'a>(plan: &'a Plan, subject: &'a Subject) -> Result<Rounds<'a>> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let store = store(subject)?;
    let count = COLLECTED_MAX.min(plan.items);
    let mut now_ms = NOW_MS;
    Ok(Box::new(move |_| {
        runtime.block_on(leave_garbage(&store, count, now_ms))?;
        now_ms += LATER_MS;
        let written_before = store.stats().disk.written_bytes;
        let mut sample = subject.measure(|| collect_all(&runtime, &store, count, now_ms))?;
        let written = store.stats().disk.written_bytes - written_before;
        sample.extra = Some(written as f64 / sample.bytes as f64);
        Ok(sample)
    }))
}

async fn leave_garbage(store: &Store, count: usize, now_ms: u64) -> Result<()> {
    let key = repository(1)?;
    for _ in 0..count {
        let blob = Blob::fresh(COLLECTED_BYTES);
        let digest = Digest::parse(&blob.digest)?;
        let id = SessionId::new(rand::random());
        store.begin_upload(key, Algorithm::Sha256, id, now_ms)?;
        let mut upload = store.open_upload(key, id, now_ms).await?;
        upload.write(Bytes::from(blob.content()), now_ms).await?;
        upload.commit(&digest, now_ms).await?;
        let generation = store.link_generation(key, &digest).context("the link of what was pushed")?;
        store.unlink(key, &digest, generation, now_ms).await?;
    }
    Ok(())
}

fn collect_all(runtime: &Runtime, store: &Store, count: usize, now_ms: u64) -> Result<Work> {
    let mut work = Work::default();
    while work.operations < count as u64 {
        let started = Instant::now();
        let collected = runtime.block_on(store.collect(now_ms, count))?;
        ensure!(collected.blobs > 0, "{} of {count} blobs collected, and no more", work.operations);
        work.operations += collected.blobs;
        work.bytes += collected.bytes;
        work.latencies_us.push(started.elapsed().as_secs_f64() * 1e6);
    }
    Ok(work)
}
