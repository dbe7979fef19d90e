//! Snapshots for backups: which files, as they are at one moment of the log, are the store.
//!
//! A backup copies the catalog first and the store after it, and what the copied catalog names must be in the copied store. So a
//! backup holds removals first ([`Store::hold_removals`]): from then on no link goes. Then the catalog is copied, then
//! [`RemovalHold::snapshot`] ends the current log segment and lists the files; links may go again from there on, in later segments,
//! which are not in the list. Files are removed again when the hold is dropped.
//!
//! What must stay true, so that a hard link is a copy: a file of the list is never written to again, cut or used anew, only unlinked.
//! Log segments are sealed, and cut to their end before they are listed; solo files are those of committed blobs.

use crate::completion::{Completer, completion};
use crate::engine::Engine;
use crate::error::Refusal;
use crate::format::checkpoint::{Location, file_name};
use crate::format::solo::Layout;
use crate::format::{Lsn, SUPERBLOCK_NAMES, SegmentId};
use crate::locator::SHARDS;
use crate::partition::PageError;
use crate::store::Store;
use crate::sync::{Arc, Mutex, Ordering, lock};

/// Why removals are not held.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HoldError {
    /// Somebody holds them.
    #[error("another backup is under way")]
    Busy,
    /// No writes now, and the log's current segment could not be ended.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// A file of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotFile {
    /// Relative to the store.
    pub name: String,
    /// Its length in bytes; `None` of what may also be gone when it is fetched, or be of another length, and is not missed: a
    /// checkpoint, and the file of a blob that is set aside.
    pub len_bytes: Option<u64>,
}

/// What a store is at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The store's identity.
    pub uuid: [u8; 16],
    /// The LSN behind the last record in it.
    pub next_lsn: Lsn,
    /// Name and content of the superblock. The file itself is written to, and must not be linked.
    pub superblock: (&'static str, Vec<u8>),
    /// All other files, the checkpoint first.
    pub files: Vec<SnapshotFile>,
}

/// Holds removals until it is dropped.
#[derive(Debug)]
pub struct RemovalHold {
    engine: Arc<Engine>,
}

/// What is held.
#[derive(Default)]
pub(crate) struct Removals(Mutex<Held>);

#[derive(Default)]
struct Held {
    /// No file goes: no collection or compaction begins, and what else would remove a file leaves it to us.
    files: bool,
    /// No link goes.
    links: bool,
    /// Who waits for links to go again, or for a collection to end.
    waiting: Vec<Completer<()>>,
    /// Files of blobs that are to be removed afterwards.
    discarded: Vec<SegmentId>,
}

impl Removals {
    /// Whether no file may be removed.
    pub(crate) fn are_held(&self) -> bool {
        lock(&self.0).files
    }

    /// Whether no link may be removed.
    pub(crate) fn hold_links(&self) -> bool {
        lock(&self.0).links
    }

    /// Takes the removal of a blob's file over, when files are held.
    pub(crate) fn keep(&self, file: SegmentId) -> bool {
        let mut held = lock(&self.0);
        if held.files {
            held.discarded.push(file);
        }
        held.files
    }

    /// Waits as long as links are held.
    pub(crate) async fn links_may_go(&self) {
        loop {
            let (completer, completion) = completion();
            {
                let mut held = lock(&self.0);
                if !held.links {
                    return;
                }
                held.waiting.push(completer);
            }
            completion.await;
        }
    }

    /// Wakes whoever waits, to look again.
    pub(crate) fn wake(&self) {
        let waiting = std::mem::take(&mut lock(&self.0).waiting);
        for waiting in waiting {
            waiting.complete(());
        }
    }
}

impl Store {
    /// Holds removals of links and files; waits for a collection that is under way.
    ///
    /// From here to the snapshot [`Store::unlink_if`] says `false` and [`Store::unlink`] refuses; from here to the end of the hold
    /// [`Store::collect`] finds nothing to do.
    ///
    /// # Errors
    /// `Busy`, and `Refused` when the store takes no writes.
    pub async fn hold_removals(&self) -> Result<RemovalHold, HoldError> {
        let engine = self.engine();
        if let Some(refusal) = engine.health.refusal() {
            return Err(refusal.into());
        }
        {
            let mut held = lock(&engine.removals.0);
            if held.files {
                return Err(HoldError::Busy);
            }
            (held.files, held.links) = (true, true);
        }
        let hold = RemovalHold { engine: Arc::clone(engine) };
        loop {
            let (completer, completion) = completion();
            lock(&engine.removals.0).waiting.push(completer);
            // Whoever takes the turn from here on sees that files are held, and gives it back.
            let turns = [&engine.collecting, &engine.compacting, &engine.dropping];
            if !turns.iter().any(|taken| taken.load(Ordering::Acquire)) {
                return Ok(hold);
            }
            completion.await;
        }
    }
}

impl RemovalHold {
    /// The LSN that the next record gets.
    pub fn next_lsn(&self) -> Lsn {
        lock(&self.engine.log.writer).next_lsn
    }

    /// Ends the log's current segment and lists what the store is. Links may go again.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn snapshot(&self) -> Result<Snapshot, Refusal> {
        let engine = Arc::clone(&self.engine);
        let taken = self.engine.pool.run(move || engine.take_snapshot()).await;
        let snapshot = taken.unwrap_or(Err(Refusal::Closing));
        lock(&self.engine.removals.0).links = false;
        self.engine.removals.wake();
        snapshot
    }
}

impl Drop for RemovalHold {
    fn drop(&mut self) {
        let discarded = {
            let mut held = lock(&self.engine.removals.0);
            (held.files, held.links) = (false, false);
            std::mem::take(&mut held.discarded)
        };
        self.engine.removals.wake();
        for file in discarded {
            self.engine.remove_solo(file);
        }
    }
}

impl Engine {
    /// Blocks on the disk.
    fn take_snapshot(&self) -> Result<Snapshot, Refusal> {
        if let Some(refusal) = self.health.refusal() {
            return Err(refusal);
        }
        // The superblock must name the checkpoint that is listed.
        let _turn = lock(&self.checkpointing);
        let (last, next_lsn) = {
            let mut writer = lock(&self.log.writer);
            self.seal_current(&mut writer)?;
            // Now, and not when the next segment is made: what is linked must not be cut any more.
            self.give_back_tail(writer.previous());
            (writer.previous().map(|previous| previous.id), writer.next_lsn)
        };
        let superblock = self.superblocks.current();
        let mut files = Vec::new();
        if superblock.checkpoint > 0 {
            files.push(SnapshotFile { name: file_name(superblock.checkpoint), len_bytes: None });
            let partitions = lock(&self.partitions_before).clone();
            files.extend(partitions.iter().map(|it| SnapshotFile { name: it.file_name(), len_bytes: None }));
        }
        for (id, segment) in self.segments.snapshot() {
            if last.is_some_and(|last| id <= last) {
                let len_bytes = segment.file.len_bytes();
                let len_bytes = len_bytes.map_err(|error| {
                    self.health.failed(&id.log_name(), &crate::health::Failed::write(error))
                })?;
                files.push(SnapshotFile { name: id.log_name(), len_bytes: Some(len_bytes) });
            }
        }
        files.extend(self.sealed_solo_files().map_err(|failed| self.index_failed(failed))?);
        let name = SUPERBLOCK_NAMES[usize::from(superblock.sequence % 2 == 1)];
        let superblock = (name, superblock.encode().to_vec());
        Ok(Snapshot { uuid: *self.key.uuid(), next_lsn, superblock, files })
    }

    /// The files of all blobs, and of those whose removal is held: the log up to the snapshot may name them. Some may be of blobs that
    /// came since; nothing names them in the snapshot, and they are collected.
    ///
    /// A partition is gone through without the shard's lock: what goes meanwhile is among those whose removal is held.
    fn sealed_solo_files(&self) -> Result<Vec<SnapshotFile>, PageError> {
        let mut files: Vec<SnapshotFile> = Vec::new();
        for index in 0..SHARDS {
            // What changed since the partition was written takes the place of what that says: a file that it names may be gone.
            let shard = self.locator.shard(index).snapshot();
            for blob in shard.blobs() {
                let blob = blob?;
                files.extend(solo_file(blob.location, blob.len_bytes, blob.quarantined));
            }
        }
        let discarded = lock(&self.removals.0).discarded.clone();
        files.extend(discarded.into_iter().filter_map(|segment| {
            let file = self.disk.open(&segment.solo_name(), crate::disk::Access::Cached).ok()?;
            Some(SnapshotFile { name: segment.solo_name(), len_bytes: Some(file.len_bytes().ok()?) })
        }));
        files.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        files.dedup_by(|one, other| one.name == other.name);
        Ok(files)
    }
}

/// The file of a blob, if it has one. One that is set aside may be cut short or gone: that is what was found of it.
fn solo_file(location: Location, len_bytes: u64, is_set_aside: bool) -> Option<SnapshotFile> {
    let Location::Solo { segment, .. } = location else { return None };
    let file_bytes = Layout::new(len_bytes)?.file_bytes;
    Some(SnapshotFile { name: segment.solo_name(), len_bytes: (!is_set_aside).then_some(file_bytes) })
}
