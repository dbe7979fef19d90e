//! `gc`: the engine's collection and compaction, offline, at once.
//!
//! What must stay true: it holds the store's lock; only what nothing links goes; what is linked stays, and so do open upload
//! sessions; a store that is damaged is left alone; a dry run writes nothing, not even the lock file.

mod plan;

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use serde_json::{Value, json};
use taffrail_blobstore::disk::threads::{ThreadsDisk, require_own};
use taffrail_blobstore::disk::{Disk, LockError};
use taffrail_blobstore::format::RESERVE_FOLDER;
use taffrail_blobstore::{
    Collected, Compacted, OpenError, Options, Refusal, RepositoryKey, Store, StoreState, Threading,
};

use self::plan::Plan;
use crate::check::{CheckError, Records, report_use};
use crate::columns::Columns;
use crate::finding::{Finding, Findings, Kind, Verdict};
use crate::progress::Progress;
use crate::references::Names;
use crate::repair::Mode;
use crate::space::Count;
use crate::stats::size;
use crate::superblocks::Superblocks;
use crate::usage::{Usage, Used};

/// Blobs deleted between two steps of the progress bar: their DELETE records, at most some hundred bytes each, fit into one batch.
const ROUND_BLOBS: usize = 4096;

/// Bytes of log that are gone through between two checkpoints, behind which their segments can go: what is copied and not gone yet is
/// there twice.
const COMPACTED_BYTES: u64 = 256 << 20;

/// Why nothing was collected, or not all of it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GcError {
    #[error(transparent)]
    Check(#[from] CheckError),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error("the store is damaged, and nothing was changed; repair it first: {what}")]
    Damaged { what: String, verdict: Verdict },
    #[error("{0} cannot be read, so nothing was changed")]
    Unreadable(String),
    #[error("the file system is mounted read-only")]
    ReadOnly,
    #[error("the store does not open: {0}")]
    Open(#[from] OpenError),
    #[error("the collection ended early; what it deleted before is gone, and nothing else: {0}")]
    Refused(#[from] Refusal),
}

impl GcError {
    /// See [`Verdict::exit_code`].
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            GcError::Check(error) => error.exit_code(),
            GcError::Damaged { verdict, .. } => verdict.exit_code(),
            GcError::Lock(_)
            | GcError::Unreadable(_)
            | GcError::ReadOnly
            | GcError::Open(_)
            | GcError::Refused(_) => Verdict::Unchecked.exit_code(),
        }
    }
}

impl From<io::Error> for GcError {
    fn from(error: io::Error) -> GcError {
        GcError::Check(CheckError::Io(error))
    }
}

/// What was collected, or would be.
pub(crate) struct Collection {
    plan: Plan,
    /// What is found afterwards; in a dry run, what was found.
    findings: Findings,
    /// By who let go of the blobs last.
    by_repository: BTreeMap<Option<RepositoryKey>, Count>,
    before: Used,
    done: Option<Done>,
}

/// What a collection did.
struct Done {
    collected: Collected,
    compacted: Compacted,
    after: Used,
}

/// Collects in the store in `root`, or says what would be.
pub(crate) fn gc(root: &Path, mode: Mode, now_ms: u64, progress: &Progress) -> Result<Collection, GcError> {
    let (disk, lock) = match mode {
        Mode::DryRun => (ThreadsDisk::open_read_only(root)?, None),
        Mode::Write => {
            require_own(root)?;
            let disk = ThreadsDisk::open(root)?;
            // First of all, so that no lock file is made where there is no store.
            Superblocks::read(&disk)
                .and_then(|superblocks| superblocks.current().map(drop))
                .map_err(CheckError::from)?;
            let lock = disk.lock("taffrail-fsck gc")?;
            (disk, Some(lock))
        }
    };
    let disk = Arc::new(disk);
    let mut records = Records::read(&*disk, progress)?;
    records.report();
    let usage = Usage::take(root)?;
    let plan = Plan::of(&records.survey, &usage);
    refuse_damaged(&records)?;
    let mut collection = Collection {
        by_repository: plan.by_repository(|_| false),
        findings: records.findings,
        before: usage.total(),
        plan,
        done: None,
    };
    if mode == Mode::DryRun {
        report_use(root, &mut collection.findings);
        progress.end();
        return Ok(collection);
    }
    drop(lock);
    let (collected, compacted) = if collection.plan.is_empty() {
        (Collected::default(), Compacted::default())
    } else {
        let store = open(&disk, usage.below(RESERVE_FOLDER).len_bytes, now_ms)?;
        let collected = collect(&store, collection.plan.blobs().count, now_ms, progress)?;
        let compacted = compact(&store, collection.plan.rewritten.count, now_ms, progress)?;
        store.close()?;
        (collected, compacted)
    };
    let mut records = Records::read(&*disk, progress)?;
    records.report();
    progress.end();
    let blobs = &records.survey.served.blobs;
    collection.by_repository = collection.plan.by_repository(|digest| blobs.contains_key(digest));
    collection.findings = records.findings;
    collection.done = Some(Done { collected, compacted, after: Usage::take(root)?.total() });
    Ok(collection)
}

/// The engine would open such a store without taking writes, or not read all of it.
fn refuse_damaged(records: &Records) -> Result<(), GcError> {
    let survey = &records.survey;
    let findings = &records.findings;
    if findings.verdict() == Verdict::Unchecked {
        let unread = findings.list.iter().find(|finding| finding.kind == Kind::Unreadable);
        return Err(GcError::Unreadable(unread.map(|finding| finding.file.clone()).unwrap_or_default()));
    }
    let headers_are_whole = survey.segments.values().all(|segment| segment.header.is_some());
    let is_whole = survey.ranges.is_empty() && survey.breaks.is_empty() && survey.missing.is_empty();
    if is_whole && headers_are_whole && survey.served.half_known().is_empty() {
        return Ok(());
    }
    let worst = findings.list.iter().max_by_key(|finding| finding.severity);
    let what = worst.map(Finding::text).unwrap_or_default();
    Err(GcError::Damaged { what, verdict: findings.verdict() })
}

/// Opens the store for a collection at once.
fn open(disk: &Arc<ThreadsDisk>, reserve_bytes: u64, now_ms: u64) -> Result<Store, GcError> {
    // Nobody is told of anything here, so that no lease and no grace time has to be waited for. The reserve stays as it is: how
    // long it should be is the server's affair. The entropy is for stores that are made; this one exists.
    let options = Options {
        lease_ms: 0,
        grace_ms: 0,
        reserve_bytes,
        threading: Threading::Inline,
        ..Options::new([0; 48])
    };
    let store = Store::open(Arc::<ThreadsDisk>::clone(disk), options, now_ms)?;
    match store.state() {
        StoreState::Writable => Ok(store),
        StoreState::ReadOnly { damage } if damage.is_empty() => Err(GcError::ReadOnly),
        StoreState::ReadOnly { damage } => {
            let damage: Vec<String> = damage.iter().map(ToString::to_string).collect();
            Err(GcError::Damaged { what: damage.join("; "), verdict: Verdict::Damaged })
        }
        StoreState::Poisoned { reason } => Err(GcError::Damaged { what: reason, verdict: Verdict::Damaged }),
    }
}

/// Lets the engine collect until nothing is left to collect.
fn collect(store: &Store, blobs: u64, now_ms: u64, progress: &Progress) -> Result<Collected, GcError> {
    progress.begin_count("deleting blobs", blobs);
    let mut all = Collected::default();
    let mut settled = false;
    loop {
        let round = wait(store.collect(now_ms, ROUND_BLOBS))?;
        progress.advance(round.blobs);
        all.blobs += round.blobs;
        all.bytes += round.bytes;
        all.segments += round.segments;
        all.orphans += round.orphans;
        if round != Collected::default() {
            settled = false;
        } else if settled {
            break;
        } else {
            // Segments go only when no opening would replay them.
            wait(store.checkpoint())?;
            settled = true;
        }
    }
    Ok(all)
}

/// Lets the engine rewrite the log segments that are worth it, so that what is dead in them comes back.
fn compact(store: &Store, segments: u64, now_ms: u64, progress: &Progress) -> Result<Compacted, GcError> {
    progress.begin_count("rewriting log segments", segments);
    let mut all = Compacted::default();
    loop {
        // What is behind the checkpoint is left alone.
        let round = match wait(store.checkpoint()).and_then(|()| wait(store.compact(now_ms, COMPACTED_BYTES)))
        {
            Ok(round) => round,
            // The deletions came through, and are the greater part; checkpoints and copies need room first.
            Err(Refusal::NoSpace) => return Ok(all),
            Err(refusal) => return Err(refusal.into()),
        };
        progress.advance(round.segments);
        all.segments += round.segments;
        all.freed_bytes += round.freed_bytes;
        all.copied_bytes += round.copied_bytes;
        if round.read_bytes == 0 && round.segments == 0 {
            return Ok(all);
        }
    }
}

/// Polls to the end. Without threads every poll does all there is to do.
fn wait<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return output;
        }
    }
}

impl Collection {
    pub(crate) fn verdict(&self) -> Verdict {
        self.findings.verdict()
    }

    fn state(&self) -> &'static str {
        match &self.done {
            None => "dry-run",
            Some(_) if self.plan.is_empty() => "nothing-to-collect",
            Some(_) => "collected",
        }
    }

    pub(crate) fn json(&self, root: &Path, names: &Names) -> Value {
        let plan = &self.plan;
        let blobs = plan.blobs();
        let by_repository: Vec<Value> = self
            .by_repository
            .iter()
            .map(|(key, count)| {
                let said = json!({
                    // As in `stats`: keys have 63 bits.
                    "repository": key.map(|key| key.number().to_string()),
                    "blobs": count.count,
                    "bytes": count.bytes,
                });
                match key {
                    Some(key) => names.add(*key, said),
                    None => said,
                }
            })
            .collect();
        json!({
            "store": root.display().to_string(),
            "verdict": self.verdict().name(),
            "exit_code": self.verdict().exit_code(),
            "state": self.state(),
            "plan": {
                "blobs": blobs.count,
                "bytes": blobs.bytes,
                "solo": plan.solo.json(),
                "unclaimed": plan.orphans.json(),
                "segments": plan.segments.json(),
                "leftover": plan.leftover.json(),
                "freed": plan.freed().json(),
                "left_in_log_bytes": plan.left_bytes,
                "rewritten": {"segments": plan.rewritten.count, "bytes": plan.rewritten.bytes},
            },
            "by_repository": by_repository,
            "collected": self.done.as_ref().map(|done| json!({
                "blobs": done.collected.blobs,
                "bytes": done.collected.bytes,
                "segments": done.collected.segments,
                "unclaimed": done.collected.orphans,
            })),
            "compacted": self.done.as_ref().map(|done| json!({
                "segments": done.compacted.segments,
                "copied_bytes": done.compacted.copied_bytes,
                "freed_bytes": done.compacted.freed_bytes,
            })),
            "disk": {
                "before": self.before.json(),
                "after": self.done.as_ref().map(|done| done.after.json()),
            },
            "findings": self.findings.list.iter().map(Finding::json).collect::<Vec<_>>(),
        })
    }

    /// The lines for people.
    pub(crate) fn text(&self, root: &Path, names: &Names) -> Vec<String> {
        let plan = &self.plan;
        let mut lines: Vec<String> = self.findings.list.iter().map(Finding::text).collect();
        if plan.is_empty() {
            lines.push(format!("{}: nothing to collect", root.display()));
            return lines;
        }
        let mut columns = Columns::default();
        columns.line(["last held by repository", "blobs", "bytes"].map(str::to_owned));
        for (key, count) in &self.by_repository {
            let name = key.map_or("not known any more".to_owned(), |key| names.shown(key));
            columns.line([name, count.count.to_string(), size(count.bytes)]);
        }
        if !self.by_repository.is_empty() {
            lines.extend(columns.text(""));
        }
        let mut columns = Columns::default();
        for (what, used) in [
            ("files of deleted blobs", plan.solo),
            ("files that no record names", plan.orphans),
            ("log segments in which nothing counts", plan.segments + plan.leftover),
        ] {
            columns.line([what.to_owned(), used.files.to_string(), size(used.allocated_bytes)]);
        }
        lines.extend(columns.text(""));
        if plan.rewritten.count > 0 {
            let would = if self.done.is_none() { "would be" } else { "were" };
            lines.push(format!(
                "log segments of which enough is dead {would} rewritten: {}, with {} of dead bytes",
                plan.rewritten.count,
                size(plan.rewritten.bytes)
            ));
        }
        let left_bytes = plan.left_bytes - plan.rewritten.bytes;
        if left_bytes > 0 {
            lines.push(format!(
                "{} of dead bytes stay in log segments in which something else counts",
                size(left_bytes)
            ));
        }
        let root = root.display();
        lines.push(match &self.done {
            None => format!(
                "{root}: would delete {} of {} and free {} on disk",
                blobs(plan.blobs().count),
                size(plan.blobs().bytes),
                size(plan.freed().allocated_bytes + plan.rewritten.bytes)
            ),
            Some(Done { collected, after, .. }) => {
                let (before, after) = (self.before.allocated_bytes, after.allocated_bytes);
                let change = match before.checked_sub(after) {
                    Some(freed) => format!("freed {}", size(freed)),
                    // Deletions are records too, and those of small blobs may free nothing yet.
                    None => format!("took {} more", size(after - before)),
                };
                format!(
                    "{root}: deleted {} of {} and {change} on disk ({} before, {} after)",
                    blobs(collected.blobs),
                    size(collected.bytes),
                    size(before),
                    size(after)
                )
            }
        });
        lines
    }
}

fn blobs(count: u64) -> String {
    if count == 1 { "1 blob".to_owned() } else { format!("{count} blobs") }
}
