//! The interpreter: runs a history on a store and on the reference model, and compares after every operation.

mod backup;
mod compare;
mod sessions;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

use bytes::Bytes;
use taffrail_blobstore::disk::sim::SimDisk;
use taffrail_blobstore::disk::{Disk, LockError};
use taffrail_blobstore::{
    Digest, LinkError, OpenError, Options, Pins, PutError, ReadError, SessionId, Store, StoreState,
    Threading, UnlinkError, UploadError,
};

use crate::catalog::{self, REPOSITORIES, content, repository};
use crate::operation::Op;
use crate::reference::{GRACE_MS, Held, LEASE_MS, Link, Links, Model, SESSION_IDLE_MS, Session};

/// What went wrong, in words. Tests panic with it; sweeps shrink it first.
pub(crate) type Outcome<T = ()> = Result<T, String>;

/// Fails with a message unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err(format!($($message)+));
        }
    };
}
pub(crate) use ensure;

/// How often the lock is tried: it takes another process some milliseconds to become another program.
const LOCK_TRIES: u32 = 1_000_000;

/// Histories begin at this time. Not at zero: the engine must not take small numbers for special ones.
const START_MS: u64 = 1_000_000;

/// Uploads are written in pieces of this many bytes, as a server does.
const PIECE_BYTES: usize = 300_000;

/// A budget of so many is enough to look at everything.
const COLLECT_ALL: usize = 100;

/// Space kept for deletions; a few pages are enough for a segment of deletions.
const RESERVE_BYTES: u64 = 2 * 1024 * 1024;

/// Options of every store under test.
pub(crate) fn options() -> Options {
    Options {
        segment_bytes: 1024 * 1024,
        reserve_bytes: RESERVE_BYTES,
        lease_ms: LEASE_MS,
        grace_ms: GRACE_MS,
        session_idle_ms: SESSION_IDLE_MS,
        session_memory_bytes_max: 2_500_000,
        // Each checkpoint makes new partitions of whatever changed, and so does each replay.
        index_delta_max: Some(0),
        threading: Threading::Inline,
        ..Options::new([7; 48])
    }
}

/// A store, the disk it lies on, and what should be in it.
pub(crate) struct World {
    disk: Arc<dyn Disk>,
    sim: Option<SimDisk>,
    options: Options,
    store: Option<Arc<Store>>,
    pub(crate) model: Model,
    pins: BTreeMap<u8, Pins>,
    backup: Option<backup::Backup>,
    next_session: u64,
    /// Copies of the disk at every change so far, when they are wanted.
    moments: Option<Vec<SimDisk>>,
    /// How often something happened that histories are meant to reach.
    pub(crate) seen: BTreeMap<&'static str, u64>,
}

impl World {
    /// A new store on a simulated disk.
    pub(crate) fn on_sim(disk: &SimDisk) -> Outcome<World> {
        World::new(Arc::new(disk.clone()), Some(disk.clone()), options())
    }

    /// A new store on any disk.
    pub(crate) fn new(disk: Arc<dyn Disk>, sim: Option<SimDisk>, options: Options) -> Outcome<World> {
        let mut world = World {
            disk,
            sim,
            options,
            store: None,
            model: Model::new(START_MS),
            pins: BTreeMap::new(),
            backup: None,
            next_session: 1,
            moments: None,
            seen: BTreeMap::new(),
        };
        world.open()?;
        Ok(world)
    }

    /// Opens the store that `disk` has, which should hold what `model` says.
    pub(crate) fn reopen_on(disk: &SimDisk, model: Model) -> Outcome<World> {
        let mut world = World {
            disk: Arc::new(disk.clone()),
            sim: Some(disk.clone()),
            options: options(),
            store: None,
            // Session ids are never used again.
            next_session: 1_000_000,
            model,
            pins: BTreeMap::new(),
            backup: None,
            moments: None,
            seen: BTreeMap::new(),
        };
        world.open()?;
        Ok(world)
    }

    /// From now on keeps a copy of the disk at every change.
    pub(crate) fn record(&mut self) {
        self.moments = Some(Vec::new());
        self.sim().start_tape();
    }

    /// The copies since the last call, in order.
    pub(crate) fn take_moments(&mut self) -> Vec<SimDisk> {
        let mut moments = self.moments.replace(Vec::new()).unwrap_or_default();
        moments.extend(self.sim().take_tape());
        self.sim().start_tape();
        moments
    }

    fn saw(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    pub(crate) fn store(&self) -> &Arc<Store> {
        self.store.as_ref().unwrap()
    }

    /// The simulated disk, when it is one; crashes replace it.
    pub(crate) fn sim(&self) -> &SimDisk {
        self.sim.as_ref().unwrap()
    }

    /// Ends the process: nothing more is written.
    pub(crate) fn drop_store(&mut self) {
        self.pins.clear();
        self.backup = None;
        self.store = None;
    }

    /// Closes the store in good order.
    pub(crate) fn close(&mut self) -> Outcome {
        self.pins.clear();
        self.backup = None;
        let store = Arc::into_inner(self.store.take().unwrap()).unwrap();
        store.close().map_err(|error| format!("close: {error}"))
    }

    /// Opens the store that was dropped or closed.
    pub(crate) fn open(&mut self) -> Outcome {
        let mut tries = 0;
        let store = loop {
            tries += 1;
            match Store::open(Arc::clone(&self.disk), self.options.clone(), self.model.now_ms) {
                Ok(store) => break store,
                // Another test starts a process, which has all descriptors, and the lock with them, until it is the other program.
                Err(OpenError::Lock(LockError::Held { .. })) if tries < LOCK_TRIES => {
                    std::thread::yield_now()
                }
                Err(error) => return Err(format!("the store does not open: {error}")),
            }
        };
        ensure!(store.state() == StoreState::Writable, "the store opens as {:?}", store.state());
        self.store = Some(Arc::new(store));
        self.model.reopened();
        Ok(())
    }

    /// Runs a whole history.
    pub(crate) fn run(&mut self, history: &[Op]) -> Outcome {
        for (number, op) in history.iter().enumerate() {
            self.step(op).map_err(|error| format!("at operation {number}, {op:?}: {error}"))?;
        }
        Ok(())
    }

    /// Runs one operation and compares what can be seen.
    pub(crate) fn step(&mut self, op: &Op) -> Outcome {
        let renewed = self.perform(op)?;
        self.compare_links(&renewed)?;
        self.compare_counts()
    }

    /// Does `op` on both sides; gives the links that must have a new generation.
    fn perform(&mut self, op: &Op) -> Outcome<BTreeSet<Link>> {
        let nothing = BTreeSet::new();
        match op {
            Op::Unlink { .. } if self.model.held == Held::FilesAndLinks => {
                self.unlink_held(op).map(|()| nothing)
            }
            Op::Push { .. } | Op::Put { .. } | Op::Mount { .. } | Op::Unlink { .. } => {
                self.commit_together(std::slice::from_ref(op))
            }
            Op::Together { ops } => {
                let held = self.model.held == Held::FilesAndLinks;
                let is_held = |op: &Op| held && matches!(op, Op::Unlink { .. });
                let ops: Vec<Op> = ops.iter().filter(|op| !is_held(op)).cloned().collect();
                self.commit_together(&ops)
            }
            Op::Hold => self.hold().map(|()| nothing),
            Op::Snapshot => self.snapshot().map(|()| nothing),
            Op::Release => self.release().map(|()| nothing),
            Op::Begin { slot, repository, blob } => self.begin(*slot, *repository, *blob).map(|()| nothing),
            Op::Write { slot, bytes } => self.write(*slot, *bytes).map(|()| nothing),
            Op::Leave { slot, bytes } => self.leave(*slot, *bytes).map(|()| nothing),
            Op::Rewind { slot, bytes } => self.rewind(*slot, *bytes).map(|()| nothing),
            Op::Restart { slot, blob, bytes } => self.restart(*slot, *blob, *bytes).map(|()| nothing),
            Op::Commit { slot } => self.commit(*slot),
            Op::CommitWrong { slot, bytes } => self.commit_wrong(*slot, *bytes).map(|()| nothing),
            Op::Abort { slot } => self.abort(*slot).map(|()| nothing),
            Op::Unpin { pins } => {
                self.pins.remove(pins);
                self.model.pins.remove(pins);
                Ok(nothing)
            }
            Op::UnlinkIf { repository, blob, stale } => {
                self.unlink_if(*repository, *blob, *stale).map(|()| nothing)
            }
            Op::Stat { repository, blob } => self.stat(*repository, *blob).map(|()| nothing),
            Op::Read { repository, blob, from, to } => {
                self.read_part(*repository, *blob, *from, *to).map(|()| nothing)
            }
            Op::Tick { ms } => {
                self.model.now_ms += u64::from(*ms);
                Ok(nothing)
            }
            Op::Expire => self.expire().map(|()| nothing),
            Op::Collect { budget } => self.collect(usize::from(*budget)).map(|()| nothing),
            Op::Compact { kib } => self.compact(u64::from(*kib) * 1024).map(|()| nothing),
            Op::Checkpoint => {
                wait(self.store().checkpoint()).map_err(|error| format!("checkpoint: {error}"))?;
                Ok(nothing)
            }
            Op::Reopen => {
                self.close()?;
                self.open()?;
                self.adopt_sessions(After::Kill)?;
                Ok(nothing)
            }
            Op::Kill { seed } => self.crash(After::Kill, *seed).map(|()| nothing),
            Op::PowerLoss { seed } => self.crash(After::PowerLoss, *seed).map(|()| nothing),
        }
    }

    // Commits.

    /// Commits that arrive together: each decides on what was durable before all of them.
    fn commit_together(&mut self, ops: &[Op]) -> Outcome<BTreeSet<Link>> {
        let before = self.model.clone();
        let now_ms = self.model.now_ms;
        let mut commits: Vec<Pin<Box<dyn Future<Output = Answer>>>> = Vec::new();
        for op in ops {
            commits.push(self.start_commit(op, now_ms)?);
        }
        let mut answers: Vec<Option<Answer>> = ops.iter().map(|_| None).collect();
        let store = Arc::clone(self.store());
        let hold = (ops.len() > 1).then(|| store.hold_commits());
        for (commit, answer) in commits.iter_mut().zip(&mut answers) {
            if hold.is_some() {
                if let Poll::Ready(early) = poll_once(commit.as_mut()) {
                    *answer = Some(early);
                }
            } else {
                *answer = Some(wait(commit.as_mut()));
            }
        }
        drop(hold);
        let mut renewed = BTreeSet::new();
        let mut pinned_before = before.clone();
        for ((op, answer), mut commit) in ops.iter().zip(answers).zip(commits) {
            let answer = answer.unwrap_or_else(|| wait(commit.as_mut()));
            drop(commit);
            self.judge_commit(op, answer, &mut pinned_before, &mut renewed)
                .map_err(|error| format!("{op:?}: {error}"))?;
        }
        Ok(renewed)
    }

    fn start_commit(&mut self, op: &Op, now_ms: u64) -> Outcome<Pin<Box<dyn Future<Output = Answer>>>> {
        let store = Arc::clone(self.store());
        Ok(match op.clone() {
            Op::Push { repository: number, blob } => {
                let id = self.new_session_id();
                let wanted = content(blob);
                self.store()
                    .begin_upload(repository(number), wanted.digest.algorithm(), id, now_ms)
                    .map_err(|error| format!("begin: {error}"))?;
                let mut upload = wait(self.store().open_upload(repository(number), id, now_ms))
                    .map_err(|error| format!("open: {error}"))?;
                for piece in pieces(&wanted.bytes) {
                    wait(upload.write(piece, now_ms)).map_err(|error| format!("write: {error}"))?;
                }
                Box::pin(async move { Answer::Push(upload.commit(&wanted.digest, now_ms).await.map(drop)) })
            }
            Op::Put { repository: number, blob, needs, .. } => {
                let needs: Vec<(Digest, u64)> = needs
                    .iter()
                    .map(|need| (content(*need).digest, content(*need).bytes.len() as u64))
                    .collect();
                let wanted = content(blob);
                let bytes = wanted.bytes.clone();
                Box::pin(async move {
                    Answer::Put(store.put(repository(number), &wanted.digest, bytes, &needs, now_ms).await)
                })
            }
            Op::Mount { from, to, blob } => Box::pin(async move {
                let digest = &content(blob).digest;
                Answer::Mount(store.mount(repository(from), repository(to), digest, now_ms).await.map(drop))
            }),
            Op::Unlink { repository: number, blob } => Box::pin(async move {
                Answer::Unlink(
                    store
                        .unlink(
                            repository(number),
                            &content(blob).digest,
                            store.link_generation(repository(number), &content(blob).digest).unwrap_or(0),
                            now_ms,
                        )
                        .await,
                )
            }),
            other => return Err(format!("{other:?} is no commit")),
        })
    }

    /// Holds an answer against what was known before the commits that arrived together, and takes its effect.
    fn judge_commit(
        &mut self,
        op: &Op,
        answer: Answer,
        before: &mut Model,
        renewed: &mut BTreeSet<Link>,
    ) -> Outcome {
        match (op, answer) {
            (Op::Push { repository, blob }, Answer::Push(answer)) => {
                answer.map_err(|error| format!("{error}"))?;
                if before.garbage.contains_key(blob) {
                    self.saw("garbage pushed again");
                }
                if before.links.keys().any(|(_, linked)| linked == blob) {
                    self.saw("blob pushed twice");
                }
                self.model.link(*repository, *blob);
                renewed.insert((*repository, *blob));
            }
            (Op::Put { repository, blob, needs, pins }, Answer::Put(answer)) => {
                let missing: BTreeSet<u8> =
                    needs.iter().copied().filter(|need| !before.holds(*repository, *need)).collect();
                match answer {
                    Ok(guard) => {
                        ensure!(missing.is_empty(), "stored although {missing:?} are missing");
                        self.saw("manifest put");
                        let mut links: Vec<Link> = needs.iter().map(|need| (*repository, *need)).collect();
                        links.push((*repository, *blob));
                        self.pins.insert(*pins, guard);
                        self.model.pins.insert(*pins, links.clone());
                        // The old pins under that name stood while all of this was decided.
                        before.pins.entry(*pins).or_default().extend(links.clone());
                        for (repository, blob) in links {
                            self.model.link(repository, blob);
                            renewed.insert((repository, blob));
                        }
                    }
                    Err(PutError::Missing(digests)) => {
                        self.saw("manifest refused");
                        let said: BTreeSet<u8> = digests.iter().filter_map(catalog::number).collect();
                        ensure!(
                            !missing.is_empty() && said == missing,
                            "missing {said:?}, should be {missing:?}"
                        );
                    }
                    Err(error) => return Err(error.to_string()),
                }
            }
            (Op::Mount { from, to, blob }, Answer::Mount(answer)) => match answer {
                Ok(()) => {
                    self.saw("mounted");
                    ensure!(before.holds(*from, *blob), "mounted what the source does not hold");
                    self.model.link(*to, *blob);
                    renewed.insert((*to, *blob));
                }
                Err(LinkError::Unknown) => ensure!(!before.holds(*from, *blob), "unknown in {from}"),
                Err(error) => return Err(error.to_string()),
            },
            (Op::Unlink { repository, blob }, Answer::Unlink(answer)) => {
                let (held, pinned) = (before.holds(*repository, *blob), before.pinned(*repository, *blob));
                match answer {
                    Ok(()) => {
                        ensure!(held && !pinned, "unlinked although held: {held}, pinned: {pinned}");
                        self.model.unlink(*repository, *blob);
                        // Nobody who comes behind it is told of the link, durable or not.
                        before.unlink(*repository, *blob);
                        renewed.remove(&(*repository, *blob));
                    }
                    Err(UnlinkError::Unknown) => ensure!(!held, "unknown in {repository}"),
                    Err(UnlinkError::Pinned) => {
                        self.saw("unlink refused by a pin");
                        ensure!(pinned, "said to be pinned");
                    }
                    Err(error) => return Err(error.to_string()),
                }
            }
            (op, answer) => return Err(format!("{op:?} answered {answer:?}")),
        }
        Ok(())
    }

    fn unlink_if(&mut self, number: u8, blob: u8, stale: bool) -> Outcome {
        let (key, digest) = (repository(number), content(blob).digest);
        let Some(generation) = self.model.links.get(&(number, blob)).copied() else {
            ensure!(self.store().link_generation(key, &digest).is_none(), "a link that should not be");
            return Ok(());
        };
        let looked_at = if stale { generation - 1 } else { generation };
        let removed = wait(self.store().unlink_if(key, &digest, looked_at, self.model.now_ms))
            .map_err(|error| format!("unlink_if: {error}"))?;
        if stale {
            ensure!(!removed, "removed a link that is newer than was looked at");
        } else {
            let may = self.model.unlinks_if(number, blob);
            ensure!(may.allows(removed), "unlink_if gave {removed}, should be {may:?}");
        }
        if removed {
            self.saw("unlinked if");
            self.model.unlink(number, blob);
        }
        Ok(())
    }

    // Looking.

    fn stat(&mut self, number: u8, blob: u8) -> Outcome {
        let wanted = content(blob);
        match self.store().stat(repository(number), &wanted.digest, self.model.now_ms) {
            Ok(stat) => {
                ensure!(self.model.holds(number, blob), "a blob that should not be");
                ensure!(stat.len_bytes == wanted.bytes.len() as u64, "it has {} bytes", stat.len_bytes);
                self.model.lease(number, blob);
            }
            Err(ReadError::Unknown) => {
                ensure!(!self.model.holds(number, blob), "blob {blob} is unknown in {number}")
            }
            Err(error) => return Err(error.to_string()),
        }
        Ok(())
    }

    fn read_part(&mut self, number: u8, blob: u8, from: u16, to: u16) -> Outcome {
        let wanted = &content(blob).bytes;
        let at = |thousandth: u16| wanted.len() * usize::from(thousandth) / 1_000;
        let (from, to) = (at(from.min(to)), at(from.max(to)));
        match self.read(number, blob, from..to) {
            Ok(read) => {
                ensure!(self.model.holds(number, blob), "a blob that should not be");
                ensure!(read == wanted[from..to], "bytes {from} to {to} are wrong");
                Ok(())
            }
            Err(ReadError::Unknown) => {
                ensure!(!self.model.holds(number, blob), "blob {blob} is unknown in {number}");
                Ok(())
            }
            Err(error) => Err(error.to_string()),
        }
    }

    /// Reads a range, in whatever pieces the engine gives.
    pub(crate) fn read(
        &self,
        number: u8,
        blob: u8,
        range: std::ops::Range<usize>,
    ) -> Result<Vec<u8>, ReadError> {
        let digest = content(blob).digest;
        let mut reader = self.store().open_blob(repository(number), &digest)?;
        let mut bytes = Vec::with_capacity(range.len());
        while bytes.len() < range.len() {
            let from = (range.start + bytes.len()) as u64;
            bytes.extend_from_slice(&wait(reader.read(from, range.end as u64))?);
        }
        Ok(bytes)
    }

    fn collect(&mut self, budget: usize) -> Outcome {
        let stored = self.store().stats().blobs;
        let collected = wait(self.store().collect(self.model.now_ms, budget))
            .map_err(|error| format!("collect: {error}"))?;
        if self.model.held != Held::Nothing {
            self.saw("collection beside a backup");
            ensure!(
                (collected.blobs, collected.segments, collected.orphans) == (0, 0, 0),
                "{collected:?} although removals are held"
            );
        }
        if collected.blobs > 0 {
            self.saw("blobs collected");
        }
        if collected.segments > 0 {
            self.saw("log segments dropped");
        }
        if collected.orphans > 0 {
            self.saw("orphans swept");
        }
        if self.store().stats().log_segments > 3 {
            self.saw("more than three log segments");
        }
        let may: Vec<u8> = self.collectable(|may| may != crate::reference::May::No);
        let must: Vec<u8> = self.collectable(|may| may == crate::reference::May::Yes);
        let blobs = usize::try_from(collected.blobs).unwrap();
        ensure!(
            self.store().stats().blobs + collected.blobs == stored,
            "{stored} blobs less {blobs} are {}",
            self.store().stats().blobs
        );
        ensure!(blobs <= may.len().min(budget), "{blobs} blobs were collected, only {may:?} may be");
        // A smaller budget may be spent on looking at blobs that were linked again.
        if self.model.garbage_is_exact && may == must && budget >= COLLECT_ALL {
            ensure!(blobs == must.len(), "{blobs} blobs were collected of {must:?}");
        }
        if blobs == may.len() {
            self.model.garbage.retain(|blob, _| !may.contains(blob));
        } else if blobs > 0 {
            self.model.garbage_is_exact = false;
        }
        Ok(())
    }

    fn compact(&mut self, budget_bytes: u64) -> Outcome {
        let before = self.store().stats();
        let compacted = wait(self.store().compact(self.model.now_ms, budget_bytes))
            .map_err(|error| format!("compact: {error}"))?;
        let after = self.store().stats();
        ensure!(
            (before.blobs, before.blob_bytes, before.links) == (after.blobs, after.blob_bytes, after.links),
            "{before:?} became {after:?}"
        );
        ensure!(
            after.log.unmovable_segments == 0,
            "{} segments cannot be compacted, and nothing is damaged",
            after.log.unmovable_segments
        );
        if self.model.held != Held::Nothing {
            ensure!(
                (compacted.copied_bytes, compacted.segments) == (0, 0),
                "{compacted:?} although removals are held"
            );
            return Ok(());
        }
        if compacted.copied_bytes > 0 {
            self.saw("records copied");
        }
        if compacted.segments > 0 {
            self.saw("log segments compacted");
        }
        if compacted.more {
            self.saw("compaction cut short");
        } else {
            ensure!(after.log.backlog_bytes == 0, "done, but {} bytes are left", after.log.backlog_bytes);
        }
        Ok(())
    }

    fn collectable(&self, wanted: impl Fn(crate::reference::May) -> bool) -> Vec<u8> {
        let model = &self.model;
        model
            .garbage
            .iter()
            .filter(|(blob, since_ms)| wanted(model.collects(**blob, **since_ms)))
            .map(|(blob, _)| *blob)
            .collect()
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
    Kill,
    PowerLoss,
}

/// What a commit answered.
#[derive(Debug)]
enum Answer {
    Push(Result<(), UploadError>),
    Put(Result<Pins, PutError>),
    Mount(Result<(), LinkError>),
    Unlink(Result<(), UnlinkError>),
}

fn pieces(bytes: &Bytes) -> impl Iterator<Item = Bytes> {
    (0..bytes.len()).step_by(PIECE_BYTES).map(|at| bytes.slice(at..bytes.len().min(at + PIECE_BYTES)))
}

/// Waits for a future. Without threads in the engine the first poll finishes it.
pub(crate) fn wait<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

fn poll_once<F: Future + ?Sized>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}
