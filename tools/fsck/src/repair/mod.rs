//! `repair`: makes a damaged store one that opens and takes writes, and says what is lost.
//!
//! What must stay true: it holds the store's lock; every file that it replaces is kept; it may be interrupted anywhere and run again;
//! what can be read before it can be read after it.

mod closing;
mod files;
mod log;

use std::io;
use std::path::Path;
use std::sync::Arc;

use taffrail_blobstore::disk::threads::{ThreadsDisk, require_own};
use taffrail_blobstore::disk::{Disk, Lock, LockError};
use taffrail_blobstore::format::SUPERBLOCK_NAMES;
use taffrail_blobstore::format::checkpoint::file_name;
use taffrail_blobstore::format::superblock::Superblock;
use taffrail_blobstore::{Options, Store, StoreState, Threading};

pub(crate) use self::files::KEPT_FOLDER;
use self::files::{Files, NewFile};
use crate::blobs::Depth;
use crate::check::{CheckError, Checked, check};
use crate::finding::Kind;
use crate::progress::Progress;

/// Mending one segment can uncover a break behind it, at most once per segment; more rounds than this mean that it does not end.
const ROUNDS_MAX: usize = 8;

/// Whether anything is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    DryRun,
    Write,
}

/// Why nothing was repaired, or not all of it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RepairError {
    #[error(transparent)]
    Check(#[from] CheckError),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error("{0} cannot be read, so nothing was changed; copy the store to a sound disk and repair the copy")]
    Unreadable(String),
    #[error("{name}: {error}")]
    Write { name: String, error: io::Error },
    #[error("the store still does not open: {0}")]
    Open(String),
    #[error("the log is still not whole after {ROUNDS_MAX} rounds; what was replaced is kept under damaged/")]
    Endless,
}

impl RepairError {
    /// See [`crate::finding::Verdict::exit_code`].
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            RepairError::Check(error) => error.exit_code(),
            RepairError::Lock(_) | RepairError::Unreadable(_) => 3,
            RepairError::Write { .. } | RepairError::Open(_) | RepairError::Endless => 2,
        }
    }
}

/// What was done, or would be.
pub(crate) struct Repaired {
    /// What was found before.
    pub(crate) before: Checked,
    /// One sentence per change.
    pub(crate) actions: Vec<String>,
    /// What is found now; `None` when nothing was written.
    pub(crate) after: Option<Checked>,
    /// Where what was replaced is kept, relative to the store.
    pub(crate) kept: Option<String>,
}

/// Repairs the store in `root`.
pub(crate) fn repair(
    root: &Path,
    mode: Mode,
    now_ms: u64,
    progress: &Progress,
) -> Result<Repaired, RepairError> {
    let disk = match mode {
        Mode::DryRun => ThreadsDisk::open_read_only(root),
        Mode::Write => require_own(root).and_then(|()| ThreadsDisk::open(root)),
    };
    let disk = Arc::new(disk.map_err(CheckError::from)?);
    let lock = match mode {
        Mode::DryRun => None,
        Mode::Write => Some(disk.lock("taffrail-fsck repair")?),
    };
    let before = check(&*disk, Depth::Checksums, progress)?;
    let unreadable = before.findings.list.iter().find(|finding| finding.kind == Kind::Unreadable);
    if let Some(finding) = unreadable {
        return Err(RepairError::Unreadable(finding.file.clone()));
    }
    let mut run =
        Run { disk, files: Files::new(root, &format!("{now_ms}")), mode, now_ms, actions: Vec::new() };
    run.mend_log(&before, progress)?;
    let after = run.rest(&before, progress, lock)?;
    let kept = run.files.kept();
    let kept = kept.is_dir().then(|| kept.strip_prefix(root).unwrap_or(kept).display().to_string());
    Ok(Repaired { before, actions: run.actions, after, kept })
}

struct Run {
    disk: Arc<ThreadsDisk>,
    files: Files,
    mode: Mode,
    now_ms: u64,
    actions: Vec<String>,
}

impl Run {
    fn put(&mut self, file: &NewFile, why: &str) -> Result<(), RepairError> {
        self.actions.push(format!("{}: {why}", file.name));
        match self.mode {
            Mode::DryRun => Ok(()),
            Mode::Write => {
                self.files.put(file).map_err(|error| RepairError::Write { name: file.name.clone(), error })
            }
        }
    }

    /// Makes the log readable from end to end.
    fn mend_log(&mut self, before: &Checked, progress: &Progress) -> Result<(), RepairError> {
        let plan =
            |checked: &Checked| log::plan(&*self.disk, &checked.key, &checked.current, &checked.survey);
        let mut planned = plan(before).map_err(CheckError::from)?;
        for _ in 0..ROUNDS_MAX {
            if planned.is_empty() {
                return Ok(());
            }
            for segment in &planned {
                self.put(&segment.file, &segment.why.join(", "))?;
            }
            if self.mode == Mode::DryRun {
                return Ok(());
            }
            let now = check(&*self.disk, Depth::Checksums, progress)?;
            planned =
                log::plan(&*self.disk, &now.key, &now.current, &now.survey).map_err(CheckError::from)?;
        }
        Err(RepairError::Endless)
    }

    /// Says in records what is lost, rewrites what is derived, and opens the store.
    fn rest(
        &mut self,
        before: &Checked,
        progress: &Progress,
        lock: Option<Box<dyn Lock>>,
    ) -> Result<Option<Checked>, RepairError> {
        let fresh = match self.mode {
            Mode::Write if !self.actions.is_empty() => Some(check(&*self.disk, Depth::Checksums, progress)?),
            Mode::Write | Mode::DryRun => None,
        };
        let now = fresh.as_ref().unwrap_or(before);
        if let Some(file) = closing::segment(&*self.disk, now, self.now_ms).map_err(CheckError::from)? {
            let why = format!(
                "append what follows: {} blobs found again, {} given up, {} set aside",
                now.half_known.salvage.len(),
                now.half_known.gone.len(),
                now.to_quarantine.len()
            );
            self.put(&file, &why)?;
        }
        for file in superblocks(now, self.now_ms) {
            self.put(&file, "rewrite this copy of the superblock from the other one")?;
        }
        for number in &now.bad_checkpoints {
            let name = file_name(*number);
            self.actions.push(format!("{name}: set the damaged checkpoint aside"));
            if self.mode == Mode::Write {
                self.files.set_aside(&name).map_err(|error| RepairError::Write { name, error })?;
            }
        }
        if self.mode == Mode::DryRun || self.actions.is_empty() {
            return Ok(None);
        }
        drop(lock);
        self.open_and_close()?;
        Ok(Some(check(&*self.disk, Depth::Checksums, progress)?))
    }

    /// Opens the store as a server would, and closes it, which writes a checkpoint.
    fn open_and_close(&self) -> Result<(), RepairError> {
        // The entropy is for stores that are made; this one exists.
        let options = Options { threading: Threading::Inline, ..Options::new([0; 48]) };
        let disk: Arc<dyn Disk> = Arc::<ThreadsDisk>::clone(&self.disk);
        let store =
            Store::open(disk, options, self.now_ms).map_err(|error| RepairError::Open(error.to_string()))?;
        match store.state() {
            StoreState::Writable => {}
            StoreState::ReadOnly { damage } => {
                let damage: Vec<String> = damage.iter().map(ToString::to_string).collect();
                return Err(RepairError::Open(damage.join("; ")));
            }
            StoreState::Poisoned { reason } => return Err(RepairError::Open(reason)),
        }
        store.close().map_err(|refusal| RepairError::Open(refusal.to_string()))
    }
}

/// The copies of the superblock that are to be rewritten, each with a sequence that belongs to its name.
fn superblocks(checked: &Checked, now_ms: u64) -> Vec<NewFile> {
    let bad = checked.superblocks.bad_names();
    let sequence = checked.current.sequence;
    [sequence + 1, sequence + 2]
        .into_iter()
        .map(|sequence| (SUPERBLOCK_NAMES[usize::from(sequence % 2 == 1)], sequence))
        .filter(|(name, _)| bad.contains(name))
        .map(|(name, sequence)| {
            let bytes = Superblock { sequence, written_ms: now_ms, ..checked.current.clone() }.encode();
            NewFile { name: name.to_owned(), len_bytes: bytes.len() as u64, overlays: vec![(0, bytes)] }
        })
        .collect()
}
