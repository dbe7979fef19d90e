//! Rounds after rounds: pauses, rests, and the end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use taffrail_blobstore::disk::sim::{Call, Fault, FaultError, SimDisk};
use taffrail_blobstore::{Algorithm, Digest, Refusal, RepositoryKey, Store, StoreState};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::world::{HOUR_US, World, options};
use crate::counters::Counters;
use crate::job::{Job, JobError, Round};
use crate::runner::{Pace, run};
use crate::{JobsOptions, ScrubOptions, start};

/// Answers what its script says, and then that it is idle.
struct Scripted {
    script: std::vec::IntoIter<Result<Round, JobError>>,
    rounds: tokio::sync::mpsc::UnboundedSender<Instant>,
}

#[async_trait]
impl Job for Scripted {
    fn name(&self) -> &'static str {
        "scripted"
    }

    async fn round(&mut self) -> Result<Round, JobError> {
        self.rounds.send(Instant::now()).unwrap();
        self.script.next().unwrap_or(Ok(Round::Idle))
    }
}

const PACE: Pace = Pace { pause: Duration::from_secs(10), first: Duration::from_secs(1) };

fn store(disk: &SimDisk) -> Arc<Store> {
    Arc::new(Store::open(Arc::new(disk.clone()), options(1), 0).unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_job_goes_on_at_once_while_there_is_more_and_pauses_longer_after_each_failure() {
    let refused = || Err(JobError::Store(Refusal::NoSpace));
    let script = vec![Ok(Round::More), Ok(Round::Idle), refused(), refused(), Ok(Round::Idle)];
    let (rounds, mut seen) = tokio::sync::mpsc::unbounded_channel();
    let counters = Arc::new(Counters::default());
    let stop = CancellationToken::new();
    let job = Scripted { script: script.into_iter(), rounds };
    let began = Instant::now();
    let running = tokio::spawn(run(job, PACE, store(&SimDisk::new()), Arc::clone(&counters), stop.clone()));
    let mut at_secs = Vec::new();
    while at_secs.len() < 6 {
        at_secs.push((seen.recv().await.unwrap() - began).as_secs());
    }
    stop.cancel();
    running.await.unwrap();
    assert_eq!(at_secs, [1, 1, 11, 31, 71, 81]);
    assert_eq!(counters.failures(), 2);
}

#[tokio::test(start_paused = true)]
async fn jobs_rest_while_the_store_is_poisoned() {
    let disk = SimDisk::new();
    let store = store(&disk);
    disk.inject(Fault::on(&[Call::Sync], FaultError::Io));
    let digest = Digest::of(Algorithm::Sha256, b"x");
    let repository = RepositoryKey::new(1).unwrap();
    assert!(store.put(repository, &digest, "x".into(), &[], 0).await.is_err());
    assert!(matches!(store.state(), StoreState::Poisoned { .. }));
    let (rounds, mut seen) = tokio::sync::mpsc::unbounded_channel();
    let stop = CancellationToken::new();
    let job = Scripted { script: Vec::new().into_iter(), rounds };
    let running = tokio::spawn(run(job, PACE, store, Arc::default(), stop.clone()));
    assert!(timeout(Duration::from_secs(1_000), seen.recv()).await.is_err());
    stop.cancel();
    running.await.unwrap();
}

/// Never ends a round.
struct Endless(Arc<AtomicU64>);

#[async_trait]
impl Job for Endless {
    fn name(&self) -> &'static str {
        "endless"
    }

    async fn round(&mut self) -> Result<Round, JobError> {
        self.0.fetch_add(1, Ordering::SeqCst);
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_does_not_wait_for_a_round() {
    let stop = CancellationToken::new();
    let rounds = Arc::new(AtomicU64::new(0));
    let job = Endless(Arc::clone(&rounds));
    let running = tokio::spawn(run(job, PACE, store(&SimDisk::new()), Arc::default(), stop.clone()));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(rounds.load(Ordering::SeqCst), 1);
    stop.cancel();
    timeout(Duration::from_secs(1), running).await.unwrap().unwrap();
}

#[tokio::test]
async fn started_jobs_do_their_work_and_let_go_of_the_store_when_stopped() {
    let world = World::new().await;
    let pause = Duration::from_millis(1);
    let options = JobsOptions {
        outbox_pause: pause,
        expiry_pause: pause,
        collection_pause: pause,
        compaction_pause: pause,
        compaction_bytes_per_sec: 1 << 30,
        checkpoint_pause: pause,
        reconcile_pause: pause,
        scrub: Some(ScrubOptions { period: pause, digest_period: pause, bytes_per_s: u64::MAX }),
        trust_store: false,
    };
    let jobs =
        start(options, Arc::clone(&world.store), world.sources.clone(), world.context.clone()).await.unwrap();
    world.push("m", &["layer"]).await;
    world.begin();
    world.delete("m").await;
    let counters = jobs.counters();
    let work = async {
        while counters.collected_blobs() < 2 || counters.expired() < 1 || counters.passes() < 2 {
            // Everybody waits for the clock; it goes on by an hour with each look.
            world.clock.advance(HOUR_US);
            tokio::time::sleep(pause).await;
        }
    };
    timeout(Duration::from_secs(60), work).await.unwrap();
    jobs.stop().await;
    assert_eq!(world.store.stats().links, 0);
    assert_eq!(Arc::strong_count(&world.store), 1);
    assert_eq!(counters.failures(), 0);
}
