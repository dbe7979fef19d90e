//! Errors of the disk: every call of a history fails once, or from then on, with EIO, ENOSPC or EROFS.
//!
//! What is promised: whatever was acknowledged is there when the store is opened again; what was refused happened in full
//! or not at all; after a failed flush nothing more is acknowledged, while reads go on; a full or read-only disk refuses,
//! and heals; deletions work on a full disk; a read that fails harms that read alone.

use std::collections::BTreeSet;
use std::sync::Arc;

use taffrail_blobstore::disk::sim::{Call, Fault, FaultError, SimDisk};
use taffrail_blobstore::{
    LinkError, PutError, ReadError, Refusal, SessionId, Store, StoreState, UnlinkError, UploadError,
};

use crate::budget::{say, seed};
use crate::catalog::{ALL, content, number, repository, repository_number};
use crate::crash::{disk_of, mix};
use crate::operation::Op::{self, *};
use crate::reference::{GRACE_MS, LEASE_MS, Link};
use crate::world::{Outcome, ensure, options, wait};

/// Calls of one kind that fail in turn, about; where there are more, some are passed over.
const CALLS_OF_A_KIND: u64 = 80;

/// A store that is used although its disk fails.
struct Trial {
    disk: SimDisk,
    store: Option<Arc<Store>>,
    now_ms: u64,
    /// Links that were acknowledged.
    links: BTreeSet<Link>,
    /// What the links may be as well when the store is opened again: with the effect of one call that was refused after
    /// the last one that was acknowledged.
    otherwise: Vec<BTreeSet<Link>>,
    sessions: u64,
    refused: BTreeSet<&'static str>,
}

/// Why an operation was refused, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refused {
    /// It was right to refuse: what it needs is not there.
    Unknown,
    NoSpace,
    Poisoned,
    ReadOnly,
    /// A write that nothing relies on failed.
    WriteFailed,
    Io,
}

impl Refused {
    fn by(refusal: Refusal) -> Outcome<Refused> {
        match refusal {
            Refusal::NoSpace => Ok(Refused::NoSpace),
            Refusal::Poisoned => Ok(Refused::Poisoned),
            Refusal::ReadOnly => Ok(Refused::ReadOnly),
            Refusal::WriteFailed => Ok(Refused::WriteFailed),
            other => Err(format!("refused as {other:?}")),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Refused::Unknown => "unknown",
            Refused::NoSpace => "no space",
            Refused::Poisoned => "poisoned",
            Refused::ReadOnly => "read-only",
            Refused::WriteFailed => "write failed",
            Refused::Io => "i/o error",
        }
    }
}

/// One commit of each kind, a session over several requests, deletions, and everything that gives space back.
fn history() -> Vec<Op> {
    vec![
        Push { repository: 0, blob: 2 },
        Push { repository: 0, blob: 6 },
        Put { repository: 0, blob: 4, needs: vec![2, 6], pins: 0 },
        Mount { from: 0, to: 1, blob: 6 },
        Push { repository: 0, blob: 12 },
        Unlink { repository: 1, blob: 6 },
        Push { repository: 1, blob: 9 },
        Push { repository: 1, blob: 10 },
        Unlink { repository: 1, blob: 9 },
        Unlink { repository: 1, blob: 10 },
        Unlink { repository: 0, blob: 12 },
        Checkpoint,
        Tick { ms: 4_000 },
        Collect { budget: 100 },
        Push { repository: 2, blob: 11 },
        Mount { from: 2, to: 0, blob: 11 },
        Push { repository: 0, blob: 1 },
    ]
}

impl Trial {
    fn on(disk: SimDisk, now_ms: u64, links: BTreeSet<Link>) -> Trial {
        Trial {
            disk,
            store: None,
            now_ms,
            links,
            otherwise: Vec::new(),
            sessions: 0,
            refused: BTreeSet::new(),
        }
    }

    fn store(&self) -> &Arc<Store> {
        self.store.as_ref().unwrap()
    }

    fn open(&mut self) -> Outcome {
        let store = Store::open(Arc::new(self.disk.clone()), options(), self.now_ms)
            .map_err(|error| format!("the store does not open: {error}"))?;
        self.store = Some(Arc::new(store));
        Ok(())
    }

    /// Runs an operation; what it answers must be possible, and what is seen must not change when it is refused.
    fn attempt(&mut self, op: &Op) -> Outcome<Option<Refused>> {
        let was = self.store().state();
        let mut after = self.links.clone();
        let refused = self.perform(op, &mut after)?;
        let poisoned = |state: &StoreState| matches!(state, StoreState::Poisoned { .. });
        let is = self.store().state();
        ensure!(!poisoned(&was) || poisoned(&is), "the store was poisoned, and is not any more");
        match refused {
            None => {
                ensure!(
                    !poisoned(&was) || after == self.links,
                    "{op:?} was acknowledged by a poisoned store"
                );
                if after != self.links {
                    self.otherwise.clear();
                }
                self.links = after;
            }
            Some(refused) => {
                self.refused.insert(refused.name());
                ensure!(
                    refused != Refused::Poisoned || poisoned(&is),
                    "refused as poisoned, and the state is {is:?}"
                );
                ensure!(
                    refused != Refused::WriteFailed
                        || (is == was && matches!(op, Checkpoint | Collect { .. })),
                    "{op:?} failed for a write that nothing relies on, and the state is {is:?}"
                );
                self.otherwise.push(after);
            }
        }
        // A list that cannot be had is no empty one.
        let Some(seen) = self.seen() else { return Ok(refused) };
        ensure!(
            seen == self.links,
            "after {op:?} was answered {refused:?}, links are {seen:?}, should be {:?}",
            self.links
        );
        Ok(refused)
    }

    /// All links; `None` when the disk does not give the index.
    fn seen(&self) -> Option<BTreeSet<Link>> {
        let mut seen = BTreeSet::new();
        for page in 0..Store::LINK_PAGES {
            let links = self.store().links_page(page).ok()?;
            seen.extend(
                links.into_iter().map(|entry| {
                    (repository_number(entry.repository).unwrap(), number(&entry.digest).unwrap())
                }),
            );
        }
        Some(seen)
    }

    /// Does `op`, and its effect to `links`.
    fn perform(&mut self, op: &Op, links: &mut BTreeSet<Link>) -> Outcome<Option<Refused>> {
        let now_ms = self.now_ms;
        let store = Arc::clone(self.store());
        let refused = match op {
            Push { repository: holder, blob } => {
                let pushed = self.push(*holder, *blob);
                links.insert((*holder, *blob));
                match pushed {
                    Ok(()) => None,
                    Err(UploadError::Refused(refusal)) => Some(Refused::by(refusal)?),
                    Err(UploadError::Io(_)) => Some(Refused::Io),
                    Err(error) => return Err(format!("{op:?}: {error}")),
                }
            }
            Put { repository: holder, blob, needs, .. } => {
                let wanted = content(*blob);
                let needed: Vec<_> = needs
                    .iter()
                    .map(|need| (content(*need).digest, content(*need).bytes.len() as u64))
                    .collect();
                let missing = needs.iter().any(|need| !links.contains(&(*holder, *need)));
                links.insert((*holder, *blob));
                match wait(store.put(
                    repository(*holder),
                    &wanted.digest,
                    wanted.bytes.clone(),
                    &needed,
                    now_ms,
                )) {
                    Ok(_) => None,
                    Err(PutError::Refused(refusal)) => Some(Refused::by(refusal)?),
                    Err(PutError::Missing(_)) if missing => {
                        links.remove(&(*holder, *blob));
                        Some(Refused::Unknown)
                    }
                    Err(error) => return Err(format!("{op:?}: {error}")),
                }
            }
            Mount { from, to, blob } => {
                let held = links.contains(&(*from, *blob));
                match wait(store.mount(repository(*from), repository(*to), &content(*blob).digest, now_ms)) {
                    Err(LinkError::Unknown) if !held => Some(Refused::Unknown),
                    answer => {
                        links.insert((*to, *blob));
                        match answer {
                            Ok(_) => None,
                            Err(LinkError::Refused(refusal)) => Some(Refused::by(refusal)?),
                            Err(error) => return Err(format!("{op:?}: {error}")),
                        }
                    }
                }
            }
            Unlink { repository: holder, blob } => {
                let held = links.remove(&(*holder, *blob));
                match wait(store.unlink(
                    repository(*holder),
                    &content(*blob).digest,
                    store.link_generation(repository(*holder), &content(*blob).digest).unwrap_or(0),
                    now_ms,
                )) {
                    Ok(()) => None,
                    Err(UnlinkError::Unknown) if !held => Some(Refused::Unknown),
                    Err(UnlinkError::Refused(refusal)) => Some(Refused::by(refusal)?),
                    Err(error) => return Err(format!("{op:?}: {error}")),
                }
            }
            Tick { ms } => {
                self.now_ms += u64::from(*ms);
                None
            }
            Collect { budget } => {
                wait(store.collect(now_ms, usize::from(*budget))).err().map(Refused::by).transpose()?
            }
            Checkpoint => wait(store.checkpoint()).err().map(Refused::by).transpose()?,
            other => return Err(format!("{other:?} is not tried here")),
        };
        Ok(refused)
    }

    fn push(&mut self, holder: u8, blob: u8) -> Result<(), UploadError> {
        let mut id = [0xab; 16];
        id[..8].copy_from_slice(&self.sessions.to_be_bytes());
        self.sessions += 1;
        let (id, key, wanted, now_ms) = (SessionId::new(id), repository(holder), content(blob), self.now_ms);
        let store = Arc::clone(self.store());
        store.begin_upload(key, wanted.digest.algorithm(), id, now_ms)?;
        let bytes = &wanted.bytes;
        let half = bytes.len() / 2;
        let mut upload = wait(store.open_upload(key, id, now_ms))?;
        wait(upload.write(bytes.slice(..half), now_ms))?;
        // In two requests, as a client that sends chunks.
        wait(upload.acknowledge(now_ms))?;
        let mut upload = wait(store.open_upload(key, id, now_ms))?;
        wait(upload.write(bytes.slice(half..), now_ms))?;
        wait(upload.commit(&wanted.digest, now_ms)).map(drop)
    }

    /// Renews a link, which takes a page of the log; false when there is none left.
    fn mount_again(&mut self, holder: u8, blob: u8) -> bool {
        let op = Mount { from: holder, to: holder, blob };
        let refused = self.attempt(&op).unwrap_or_else(|error| panic!("{op:?}: {error}"));
        assert!(matches!(refused, None | Some(Refused::NoSpace)), "{op:?} is refused as {refused:?}");
        refused.is_none()
    }

    /// Reads everything that is linked; only an error of the disk excuses a blob.
    fn read_everything(&self, errors_are_excused: bool) -> Outcome {
        for (holder, blob) in &self.links {
            match self.read(*holder, *blob) {
                Ok(bytes) => ensure!(bytes == content(*blob).bytes, "blob {blob} has wrong bytes"),
                Err(ReadError::Io { .. }) if errors_are_excused => {}
                Err(error) => return Err(format!("blob {blob} in {holder}: {error}")),
            }
        }
        Ok(())
    }

    fn read(&self, holder: u8, blob: u8) -> Result<Vec<u8>, ReadError> {
        let mut reader = self.store().open_blob(repository(holder), &content(blob).digest)?;
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < reader.len_bytes() {
            bytes.extend_from_slice(&wait(reader.read(bytes.len() as u64, reader.len_bytes()))?);
        }
        Ok(bytes)
    }

    /// The process ends in some way, the device is well again, and the store is opened on what is there.
    fn reopen_after(&self, ended: SimDisk) -> Outcome {
        let mut trial = Trial::on(ended, self.now_ms, BTreeSet::new());
        trial.open()?;
        ensure!(trial.store().state() == StoreState::Writable, "it opens as {:?}", trial.store().state());
        trial.links = trial.seen().ok_or("the index cannot be read")?;
        ensure!(
            trial.links == self.links || self.otherwise.contains(&trial.links),
            "links are {:?}, should be {:?} or one of {:?}",
            trial.links,
            self.links,
            self.otherwise
        );
        trial.read_everything(false)?;
        trial.sessions = 1_000;
        for op in [
            Push { repository: 0, blob: 3 },
            Push { repository: 0, blob: 13 },
            Unlink { repository: 0, blob: 3 },
        ] {
            let refused = trial.attempt(&op)?;
            ensure!(refused.is_none(), "{op:?} is refused as {refused:?} by a store that is well again");
        }
        trial.read_everything(false)
    }
}

/// How calls fail.
#[derive(Clone, Copy, Debug)]
struct Failing {
    call: Call,
    error: FaultError,
    times: u64,
}

/// Runs the history on a disk of that kind with the call number `n` of a kind failing; gives what operations were refused for.
fn run_with(kind: u64, failing: Failing, n: u64, seed: u64) -> Outcome<BTreeSet<&'static str>> {
    let disk = disk_of(kind);
    disk.inject(Fault::on(&[failing.call], failing.error).after(n).times(failing.times));
    let mut trial = Trial::on(disk, 1_000_000, BTreeSet::new());
    if let Err(error) = trial.open() {
        // A store that cannot be opened is opened when the disk is well again.
        trial.disk.heal();
        trial.open().map_err(|again| format!("{error}; then, on a healthy disk: {again}"))?;
    }
    for op in history() {
        trial.attempt(&op)?;
    }
    trial.read_everything(true)?;
    trial.disk.heal();
    let heals = failing.error != FaultError::Io;
    if heals {
        ensure!(
            trial.store().state() == StoreState::Writable,
            "the disk is well again, and the store is {:?}",
            trial.store().state()
        );
        let refused = trial.attempt(&Push { repository: 1, blob: 5 })?;
        ensure!(refused.is_none(), "the disk is well again, and a push is refused as {refused:?}");
    }
    trial.read_everything(false)?;
    trial.store = None;
    trial.reopen_after(trial.disk.kill(seed)).map_err(|error| format!("killed: {error}"))?;
    for draw in 0..3 {
        let ended = trial.disk.crash(mix(seed, draw));
        trial
            .reopen_after(ended)
            .map_err(|error| format!("power lost, survival {}: {error}", mix(seed, draw)))?;
    }
    Ok(trial.refused)
}

/// Fails every call of a kind in turn, once and for ever, on a disk of that kind ([`disk_of`]).
fn sweep(calls: &[Call], error: FaultError, kind: u64) -> BTreeSet<&'static str> {
    let seed = seed();
    let mut refused = BTreeSet::new();
    let mut runs = 0;
    for call in calls {
        let disk = disk_of(kind);
        let mut trial = Trial::on(disk.clone(), 1_000_000, BTreeSet::new());
        trial.open().unwrap();
        for op in history() {
            let refused = trial.attempt(&op).unwrap_or_else(|error| panic!("{op:?}: {error}"));
            assert_eq!(refused, None, "{op:?}");
        }
        let count = disk.count(*call);
        // Many reads are alike; each run takes its share of them, from where its seed says.
        let step = (count / CALLS_OF_A_KIND).max(1);
        for n in (seed % step..count).step_by(usize::try_from(step).unwrap()) {
            for times in [1, u64::MAX] {
                let failing = Failing { call: *call, error, times };
                refused.extend(run_with(kind, failing, n, mix(seed, n)).unwrap_or_else(|broken| {
                    panic!(
                        "{error:?} from {call:?} number {n}, {times} times, disk {kind}: {broken}\nTAFFRAIL_SEED={seed}"
                    )
                }));
                runs += 1;
            }
        }
    }
    say(&format!("{error:?}, disk {kind}: {runs} faults, refused as {refused:?}"));
    refused
}

#[test]
fn nothing_is_lost_when_any_write_or_flush_fails() {
    for kind in [0, 1] {
        let refused = sweep(&[Call::Write, Call::Sync, Call::SyncDir], FaultError::Io, kind);
        assert!(refused.contains("poisoned") && refused.contains("i/o error"), "disk {kind}: {refused:?}");
    }
}

#[test]
fn nothing_is_lost_when_any_other_change_fails() {
    for kind in [0, 1] {
        sweep(
            &[Call::Create, Call::Allocate, Call::Truncate, Call::Remove, Call::CreateDir],
            FaultError::Io,
            kind,
        );
    }
}

#[test]
fn nothing_is_lost_when_anything_that_looks_fails() {
    for kind in [0, 1] {
        sweep(&[Call::Open, Call::Read, Call::List], FaultError::Io, kind);
    }
}

/// A store with log segments that may go, so that the next collection writes superblocks.
fn with_segments_to_drop() -> Trial {
    let mut trial = Trial::on(SimDisk::new(), 1_000_000, BTreeSet::new());
    trial.open().unwrap();
    let mut ops = history();
    ops.extend(ops.clone());
    for op in ops {
        trial.attempt(&op).unwrap_or_else(|error| panic!("{op:?}: {error}"));
    }
    let unlinks = trial.links.clone().into_iter().map(|(repository, blob)| Unlink { repository, blob });
    let then = [Tick { ms: 60_000 }, Collect { budget: 1 }, Checkpoint];
    for op in unlinks.chain(then).collect::<Vec<_>>() {
        assert_eq!(trial.attempt(&op), Ok(None), "{op:?}");
    }
    trial
}

/// A collection poisoned the store when a superblock could not be written, although the one in force was as it had been.
#[test]
fn a_superblock_or_checkpoint_that_cannot_be_written_refuses_and_harms_nothing() {
    for (op, within) in [(Checkpoint, "SUPER"), (Checkpoint, "index/"), (Collect { budget: 100 }, "SUPER")] {
        for (error, expected) in
            [(FaultError::Io, Refused::WriteFailed), (FaultError::NoSpace, Refused::NoSpace)]
        {
            let mut trial = with_segments_to_drop();
            trial.disk.inject(Fault::on(&[Call::Write], error).within(within));
            assert_eq!(trial.attempt(&op), Ok(Some(expected)), "{op:?}, {error:?} in {within}");
            assert_eq!(trial.store().state(), StoreState::Writable);
            assert_eq!(trial.attempt(&Push { repository: 0, blob: 3 }), Ok(None), "pushes go on");
            trial.disk.heal();
            let segments = trial.store().stats().log_segments;
            assert_eq!(trial.attempt(&op), Ok(None), "{op:?}, when the disk is well again");
            assert!(op == Checkpoint || trial.store().stats().log_segments < segments);
            trial.store = None;
            for seed in 0..4 {
                trial.reopen_after(trial.disk.crash(seed)).unwrap();
            }
        }
    }
}

/// A flush that failed for want of space was taken for a write that did, and the next one for a success.
#[test]
fn a_flush_that_fails_poisons_whatever_it_says_and_wherever_it_is() {
    let checkpoint = [(Call::Sync, "SUPER"), (Call::Sync, "index/"), (Call::SyncDir, "index")];
    let collect = [(Call::Sync, "SUPER"), (Call::SyncDir, "log")];
    let faults = checkpoint.map(|(call, within)| (Checkpoint, call, within)).into_iter();
    let faults = faults.chain(collect.map(|(call, within)| (Collect { budget: 100 }, call, within)));
    for (op, call, within) in faults {
        for error in [FaultError::Io, FaultError::NoSpace, FaultError::ReadOnly] {
            let mut trial = with_segments_to_drop();
            trial.disk.inject(Fault::on(&[call], error).within(within).times(1));
            let refused = trial.attempt(&op);
            assert_eq!(refused, Ok(Some(Refused::Poisoned)), "{op:?}, {error:?} from {call:?} of {within}");
            let push = trial.attempt(&Push { repository: 0, blob: 3 });
            assert_eq!(push, Ok(Some(Refused::Poisoned)), "nothing is acknowledged any more");
            trial.store = None;
            for seed in 0..4 {
                trial.reopen_after(trial.disk.crash(seed)).unwrap();
            }
        }
    }
}

/// The making of a folder flushes the one above, and a second try would say that the names in it are durable.
#[test]
fn a_folder_that_cannot_be_made_poisons_unless_the_disk_is_full() {
    for (error, expected) in [(FaultError::Io, Refused::Poisoned), (FaultError::NoSpace, Refused::NoSpace)] {
        let mut trial = Trial::on(SimDisk::new(), 1_000_000, BTreeSet::new());
        trial.open().unwrap();
        trial.disk.inject(Fault::on(&[Call::CreateDir], error).within("solo/").times(1));
        assert_eq!(trial.attempt(&Push { repository: 0, blob: 12 }), Ok(Some(expected)));
        let again = trial.attempt(&Push { repository: 0, blob: 12 }).unwrap();
        assert_eq!(again, (expected == Refused::Poisoned).then_some(expected));
    }
}

#[test]
fn a_full_disk_refuses_and_heals_without_a_restart() {
    let refused = sweep(&[Call::Write, Call::Allocate, Call::Create], FaultError::NoSpace, 1);
    assert!(refused.contains("no space") && !refused.contains("poisoned"), "{refused:?}");
    // Writes over zeros lack no space; whatever one of them fails with may come from its flush.
    let refused = sweep(&[Call::Allocate, Call::Create], FaultError::NoSpace, 0);
    assert!(refused.contains("no space") && !refused.contains("poisoned"), "{refused:?}");
    sweep(&[Call::Create], FaultError::Quota, 0);
}

#[test]
fn a_disk_that_turns_read_only_refuses_and_heals() {
    let mut trial = Trial::on(SimDisk::new(), 1_000_000, BTreeSet::new());
    trial.open().unwrap();
    for op in history() {
        trial.attempt(&op).unwrap();
    }
    trial.disk.set_read_only(true);
    for op in
        [Push { repository: 0, blob: 3 }, Push { repository: 0, blob: 13 }, Unlink { repository: 0, blob: 2 }]
    {
        let refused = trial.attempt(&op).unwrap_or_else(|error| panic!("{op:?}: {error}"));
        assert!(refused.is_some(), "{op:?} was acknowledged on a read-only disk");
    }
    trial.read_everything(false).unwrap();
    trial.disk.heal();
    for op in [Push { repository: 0, blob: 3 }, Unlink { repository: 0, blob: 2 }] {
        let refused = trial.attempt(&op).unwrap_or_else(|error| panic!("{op:?}: {error}"));
        assert_eq!(refused, None, "{op:?}, when the disk can be written again");
    }
    trial.store = None;
    trial.reopen_after(trial.disk.crash(1)).unwrap();
}

#[test]
fn a_store_on_a_read_only_disk_is_read() {
    let mut trial = Trial::on(SimDisk::new(), 1_000_000, BTreeSet::new());
    trial.open().unwrap();
    for op in history() {
        trial.attempt(&op).unwrap();
    }
    trial.store = None;
    trial.disk = trial.disk.fork();
    trial.disk.set_read_only(true);
    trial.open().unwrap();
    assert!(matches!(trial.store().state(), StoreState::ReadOnly { .. }), "{:?}", trial.store().state());
    assert_eq!(trial.seen(), Some(trial.links.clone()));
    trial.read_everything(false).unwrap();
    let refused = trial.attempt(&Push { repository: 0, blob: 3 }).unwrap();
    assert_eq!(refused, Some(Refused::ReadOnly));
}

/// Fills a small disk to the last byte, deletes, and fills it again.
#[test]
fn deletions_work_on_a_full_disk_and_what_they_free_is_used_again() {
    for capacity in (6 * 1024 * 1024..12 * 1024 * 1024).step_by(1024 * 1024 + 4096) {
        let disk = SimDisk::new();
        disk.set_capacity(capacity);
        let mut trial = Trial::on(disk, 1_000_000, BTreeSet::new());
        trial.open().unwrap_or_else(|error| panic!("{capacity}: {error}"));
        for round in 0..4 {
            let mut stored = 0;
            let mut refused = None;
            // Small ones last, so that the disk is really full.
            for blob in (0..ALL).rev() {
                for holder in 0..3 {
                    let op = Push { repository: holder, blob };
                    match trial
                        .attempt(&op)
                        .unwrap_or_else(|error| panic!("{capacity}, round {round}, {op:?}: {error}"))
                    {
                        None => stored += 1,
                        Some(other) => refused = Some(other),
                    }
                }
            }
            assert!(stored > 0, "{capacity}, round {round}: nothing fits any more");
            // The log as well: a deletion that finds room in the current segment would not need the reserve.
            let (holder, blob) = *trial.links.first().unwrap();
            while trial.mount_again(holder, blob) {}
            assert!(matches!(refused, None | Some(Refused::NoSpace)), "{capacity}: refused as {refused:?}");
            trial.read_everything(false).unwrap();
            for (holder, blob) in trial.links.clone() {
                let op = Unlink { repository: holder, blob };
                let refused =
                    trial.attempt(&op).unwrap_or_else(|error| panic!("{capacity}, {op:?}: {error}"));
                assert_eq!(refused, None, "{capacity}, round {round}: {op:?} on a full disk");
            }
            trial.now_ms += 10 * (LEASE_MS + GRACE_MS);
            for op in [Collect { budget: 200 }, Checkpoint, Collect { budget: 200 }] {
                let refused =
                    trial.attempt(&op).unwrap_or_else(|error| panic!("{capacity}, {op:?}: {error}"));
                assert_eq!(refused, None, "{capacity}, round {round}: {op:?} on a full disk");
            }
            assert_eq!(trial.store().stats().blobs, 0);
        }
        assert_eq!(trial.store().state(), StoreState::Writable);
        trial.store = None;
        let larger = trial.disk.fork();
        larger.set_capacity(1 << 40);
        trial.reopen_after(larger).unwrap_or_else(|error| panic!("{capacity}: {error}"));
    }
}

#[test]
fn a_file_that_cannot_be_read_harms_its_blob_alone() {
    let mut trial = Trial::on(SimDisk::new(), 1_000_000, BTreeSet::new());
    trial.open().unwrap();
    for op in
        [Push { repository: 0, blob: 12 }, Push { repository: 0, blob: 13 }, Push { repository: 0, blob: 2 }]
    {
        trial.attempt(&op).unwrap();
    }
    trial.disk.inject(Fault::on(&[Call::Read], FaultError::Io).within("solo/01/"));
    let answers: Vec<bool> = [12, 13, 2].map(|blob| trial.read(0, blob).is_ok()).to_vec();
    assert_eq!(answers, [false, true, true]);
    assert!(matches!(trial.read(0, 12), Err(ReadError::Io { .. })), "an error of the disk is no damage");
    assert_eq!(trial.store().state(), StoreState::Writable);
    trial.disk.heal();
    trial.read_everything(false).unwrap();
}
