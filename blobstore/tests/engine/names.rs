//! The folder of the log: an error of its flush is told once, to whoever asks first, and must reach everybody who relies on a name.

use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use taffrail_blobstore::disk::sim::SimDisk;
use taffrail_blobstore::{
    Algorithm, Collected, Digest, Options, PutError, Refusal, Store, StoreState, Threading,
};

use crate::catalog::{noise, repository};
use crate::meddled::{Meddled, Meddler};
use crate::world::{options, wait};

const NOW_MS: u64 = 1_000_000;
/// What has not happened by then does not happen.
const PATIENCE: Duration = Duration::from_secs(20);
/// For so long a push that must wait is given the chance not to.
const CHANCE: Duration = Duration::from_millis(300);

/// A flush of the log's folder that fails, and takes its time to say so. Flushes beside it hear that all is well, as on Linux. A
/// flush of the log itself can be made to wait as well.
#[derive(Debug)]
struct SlowFailure {
    is_due: AtomicBool,
    began: Sender<()>,
    end: Mutex<Receiver<()>>,
    log: Mutex<Option<SlowFlush>>,
}

/// Says that a flush of the log is done, and holds its caller until it may know.
#[derive(Debug)]
struct SlowFlush {
    done: Sender<()>,
    go_on: Receiver<()>,
}

impl Meddler for SlowFailure {
    fn sync_log(&self) {
        let slow = self.log.lock().unwrap().take();
        if let Some(SlowFlush { done, go_on }) = slow {
            done.send(()).unwrap();
            go_on.recv_timeout(PATIENCE).unwrap();
        }
    }

    fn sync_dir(&self, folder: &str) -> io::Result<()> {
        if folder != "log" || !self.is_due.swap(false, Ordering::SeqCst) {
            return Ok(());
        }
        self.began.send(()).unwrap();
        self.end.lock().unwrap().recv_timeout(PATIENCE).unwrap();
        Err(io::Error::other("the name is lost"))
    }
}

struct Scene {
    failure: Arc<SlowFailure>,
    store: Arc<Store>,
    began: Receiver<()>,
    end: Sender<()>,
}

fn blob(number: u8, len: usize) -> (Bytes, Digest) {
    let bytes = Bytes::from(noise(u64::from(number) + 1, len));
    let digest = Digest::of(Algorithm::Sha256, &bytes);
    (bytes, digest)
}

fn put(store: &Store, number: u8, len: usize) -> Result<(), PutError> {
    let (bytes, digest) = blob(number, len);
    wait(store.put(repository(0), &digest, bytes, &[], NOW_MS)).map(drop)
}

impl Scene {
    /// A store with log segments in which nothing counts, and a flush that is going to fail.
    fn set() -> Scene {
        let ((began_sender, began), (end, end_receiver)) = (channel(), channel());
        let is_due = AtomicBool::new(false);
        let (end_receiver, log) = (Mutex::new(end_receiver), Mutex::new(None));
        let failure = Arc::new(SlowFailure { is_due, began: began_sender, end: end_receiver, log });
        let threading = Threading::Pool { storage_threads: 2 };
        let options = Options { threading, lease_ms: 0, grace_ms: 0, ..options() };
        let store = Store::open(Meddled::on(&SimDisk::new(), &failure), options, NOW_MS).unwrap();
        for number in 0..6 {
            let (_, digest) = blob(number, 600_000);
            put(&store, number, 600_000).unwrap();
            let generation = store.link_generation(repository(0), &digest).unwrap();
            wait(store.unlink(repository(0), &digest, generation, NOW_MS)).unwrap();
        }
        assert_eq!(wait(store.collect(NOW_MS, 100)).unwrap().blobs, 6);
        wait(store.checkpoint()).unwrap();
        failure.is_due.store(true, Ordering::SeqCst);
        Scene { failure, store: Arc::new(store), began, end }
    }

    /// Begins a collection and goes with it until the flush that fails has begun; then `meanwhile` happens to it.
    fn collect_until_flushing<T>(
        &self,
        meanwhile: impl FnOnce(std::pin::Pin<&mut dyn Future<Output = Result<Collected, Refusal>>>) -> T,
    ) -> T {
        let mut collected = pin!(self.store.collect(NOW_MS, 100));
        let since = Instant::now();
        while self.began.try_recv().is_err() {
            let polled = collected.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            assert!(matches!(polled, Poll::Pending), "no segment was removed: {polled:?}");
            assert!(since.elapsed() < PATIENCE, "the flush never began");
            std::thread::yield_now();
        }
        meanwhile(collected)
    }

    fn is_poisoned(&self) -> bool {
        matches!(self.store.state(), StoreState::Poisoned { .. })
    }
}

/// Whoever collected was gone, and with it the error: the store went on.
#[test]
fn a_flush_that_fails_poisons_although_the_collection_was_given_up() {
    let scene = Scene::set();
    scene.collect_until_flushing(|_given_up| ());
    scene.end.send(()).unwrap();
    let since = Instant::now();
    while !scene.is_poisoned() {
        assert!(since.elapsed() < PATIENCE, "nobody was told");
        std::thread::yield_now();
    }
    assert!(matches!(put(&scene.store, 7, 100), Err(PutError::Refused(Refusal::Poisoned))));
}

/// The collection had taken the error that was about the name of a new segment: what lay in the segment was acknowledged.
#[test]
fn nothing_is_acknowledged_in_a_new_segment_while_a_flush_of_its_folder_is_failing() {
    let scene = Scene::set();
    let pushed = scene.collect_until_flushing(|collected| {
        let (told, outcome) = channel();
        let store = Arc::clone(&scene.store);
        // Longer than a segment, so that it begins one.
        let pusher = std::thread::spawn(move || told.send(put(&store, 7, 1_500_000)).unwrap());
        let early = outcome.recv_timeout(CHANCE);
        scene.end.send(()).unwrap();
        assert_eq!(wait(collected), Err(Refusal::Poisoned));
        let pushed = early.or_else(|_| outcome.recv_timeout(PATIENCE)).unwrap();
        pusher.join().unwrap();
        pushed
    });
    assert!(matches!(pushed, Err(PutError::Refused(Refusal::Poisoned))), "{pushed:?}");
    assert!(scene.is_poisoned());
}

/// A batch that was flushed while another flush failed: it may rely on what that one was about.
#[test]
fn nothing_is_acknowledged_that_was_flushed_while_another_flush_failed() {
    let scene = Scene::set();
    let pushed = scene.collect_until_flushing(|collected| {
        let ((done, flushed), (may, go_on)) = (channel(), channel());
        *scene.failure.log.lock().unwrap() = Some(SlowFlush { done, go_on });
        let store = Arc::clone(&scene.store);
        let pusher = std::thread::spawn(move || put(&store, 7, 100));
        flushed.recv_timeout(PATIENCE).unwrap();
        scene.end.send(()).unwrap();
        assert_eq!(wait(collected), Err(Refusal::Poisoned));
        may.send(()).unwrap();
        pusher.join().unwrap()
    });
    assert!(matches!(pushed, Err(PutError::Refused(Refusal::Poisoned))), "{pushed:?}");
}
