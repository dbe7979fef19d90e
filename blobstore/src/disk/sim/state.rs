//! What is on a simulated disk: per file and per folder what is durable, and what is not yet.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::image::Image;

/// Unit, in bytes, in which files take space.
const BLOCK_BYTES: u64 = 4096;

pub(super) type Inode = u64;

#[derive(Clone, Debug, Default)]
pub(super) struct State {
    pub(super) files: BTreeMap<Inode, FileState>,
    pub(super) folders: BTreeMap<Arc<str>, Folder>,
    pub(super) capacity_bytes: u64,
    pub(super) gains_from_zeros: bool,
    /// The change that was under way when this copy was taken.
    pub(super) in_flight: Option<Op>,
    pub(super) next_inode: Inode,
    /// Orders all changes that are pending, over files and folders.
    pub(super) next_sequence: u64,
}

#[derive(Clone, Debug, Default)]
pub(super) struct FileState {
    pub(super) durable: Image,
    /// What reads see.
    pub(super) current: Image,
    /// What was done since the last flush, oldest first.
    pub(super) pending: Vec<Pending<Change>>,
    /// Open handles, which keep a removed file's space.
    pub(super) handles: u32,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Folder {
    pub(super) durable: BTreeMap<Arc<str>, Inode>,
    pub(super) current: BTreeMap<Arc<str>, Inode>,
    pub(super) pending: Vec<Pending<NameChange>>,
}

#[derive(Clone, Debug)]
pub(super) struct Pending<T> {
    pub(super) sequence: u64,
    /// A flush failed after this: the kernel calls it clean, and no later flush will write it.
    pub(super) abandoned: bool,
    pub(super) change: T,
}

#[derive(Clone, Debug)]
pub(super) enum Change {
    Write { offset_bytes: u64, bytes: Arc<[u8]> },
    Allocate { len_bytes: u64 },
    Truncate { len_bytes: u64 },
}

#[derive(Clone, Debug)]
pub(super) enum NameChange {
    Create { name: Arc<str>, inode: Inode },
    Remove { name: Arc<str> },
}

/// One call that changes the disk.
#[derive(Clone, Debug)]
pub(super) enum Op {
    File { inode: Inode, change: Change },
    WriteDurably { inode: Inode, offset_bytes: u64, bytes: Arc<[u8]> },
    Sync { inode: Inode },
    Create { folder: Arc<str>, name: Arc<str>, len_bytes: u64 },
    Remove { folder: Arc<str>, name: Arc<str> },
    CreateDir { folder: Arc<str> },
    SyncDir { folder: Arc<str> },
}

impl Op {
    /// The same; a durable write is only a write.
    pub(super) fn not_durable(self) -> Op {
        if let Op::WriteDurably { inode, offset_bytes, bytes } = self {
            return Op::File { inode, change: Change::Write { offset_bytes, bytes } };
        }
        self
    }
}

impl Change {
    pub(super) fn apply(&self, image: &mut Image) {
        match self {
            Change::Write { offset_bytes, bytes } => image.write(bytes, *offset_bytes),
            Change::Allocate { len_bytes } => image.extend_to(*len_bytes),
            Change::Truncate { len_bytes } => image.set_len(*len_bytes),
        }
    }
}

impl NameChange {
    pub(super) fn apply(&self, names: &mut BTreeMap<Arc<str>, Inode>) {
        match self {
            NameChange::Create { name, inode } => names.insert(Arc::clone(name), *inode),
            NameChange::Remove { name } => names.remove(name),
        };
    }
}

impl State {
    pub(super) fn new(capacity_bytes: u64) -> State {
        let folders = BTreeMap::from([(Arc::from(""), Folder::default())]);
        State { folders, capacity_bytes, ..State::default() }
    }

    /// The file that `folder` calls `name` now.
    pub(super) fn inode(&self, folder: &str, name: &str) -> Option<Inode> {
        self.folders.get(folder)?.current.get(name).copied()
    }

    pub(super) fn free_bytes(&self) -> u64 {
        let named: BTreeSet<Inode> =
            self.folders.values().flat_map(|folder| folder.current.values()).copied().collect();
        let used: u64 = self
            .files
            .iter()
            .filter(|(inode, file)| file.handles > 0 || named.contains(inode))
            .map(|(_, file)| blocks(file.current.len_bytes()))
            .sum();
        self.capacity_bytes.saturating_sub(used)
    }

    /// Whether there is space for `inode` (none: a new file) to become `len_bytes` long.
    pub(super) fn fits(&self, inode: Option<Inode>, len_bytes: u64) -> bool {
        let has =
            inode.and_then(|inode| self.files.get(&inode)).map_or(0, |file| blocks(file.current.len_bytes()));
        blocks(len_bytes).saturating_sub(has) <= self.free_bytes()
    }

    /// Does `op`; what it changes is pending until it is flushed. The inode of a file made is returned.
    pub(super) fn apply(&mut self, op: &Op) -> Option<Inode> {
        match op {
            Op::File { inode, change } => {
                let sequence = self.sequence();
                let file = self.files.get_mut(inode)?;
                change.apply(&mut file.current);
                file.pending.push(Pending { sequence, abandoned: false, change: change.clone() });
                None
            }
            Op::WriteDurably { inode, offset_bytes, bytes } => {
                self.files.get_mut(inode)?.write_durably(*offset_bytes, bytes);
                None
            }
            Op::Sync { inode } => {
                self.files.get_mut(inode)?.sync();
                None
            }
            Op::Create { folder, name, len_bytes } => {
                let inode = self.next_inode;
                self.next_inode += 1;
                let change = NameChange::Create { name: Arc::clone(name), inode };
                self.rename(folder, change)?;
                self.files.insert(inode, FileState::default());
                if *len_bytes > 0 {
                    self.apply(&Op::File { inode, change: Change::Allocate { len_bytes: *len_bytes } });
                }
                Some(inode)
            }
            Op::Remove { folder, name } => {
                let inode = self.inode(folder, name)?;
                self.rename(folder, NameChange::Remove { name: Arc::clone(name) })?;
                self.forget_when_unreachable(inode);
                None
            }
            Op::CreateDir { folder } => {
                for parent in parents(folder) {
                    self.folders.entry(Arc::from(parent)).or_default();
                }
                None
            }
            Op::SyncDir { folder } => {
                let folder = self.folders.get_mut(folder)?;
                let mut gone: Vec<Inode> = folder.durable.values().copied().collect();
                gone.extend(folder.pending.iter().filter_map(|pending| match pending.change {
                    NameChange::Create { inode, .. } => Some(inode),
                    NameChange::Remove { .. } => None,
                }));
                // As with files: a name whose flush failed stays where the cache has it, and is not made durable.
                for pending in folder.pending.drain(..).filter(|pending| !pending.abandoned) {
                    pending.change.apply(&mut folder.durable);
                }
                for inode in gone {
                    self.forget_when_unreachable(inode);
                }
                None
            }
        }
    }

    /// Makes what `op` would have flushed forgotten by later flushes.
    pub(super) fn abandon(&mut self, op: &Op) {
        match op {
            Op::Sync { inode } => {
                for pending in self.files.get_mut(inode).into_iter().flat_map(|file| &mut file.pending) {
                    pending.abandoned = true;
                }
            }
            Op::SyncDir { folder } => {
                for pending in self.folders.get_mut(folder).into_iter().flat_map(|folder| &mut folder.pending)
                {
                    pending.abandoned = true;
                }
            }
            Op::File { .. }
            | Op::WriteDurably { .. }
            | Op::Create { .. }
            | Op::Remove { .. }
            | Op::CreateDir { .. } => {}
        }
    }

    fn rename(&mut self, folder: &str, change: NameChange) -> Option<()> {
        let sequence = self.sequence();
        let folder = self.folders.get_mut(folder)?;
        change.apply(&mut folder.current);
        folder.pending.push(Pending { sequence, abandoned: false, change });
        Some(())
    }

    fn sequence(&mut self) -> u64 {
        self.next_sequence += 1;
        self.next_sequence
    }

    pub(super) fn open_handle(&mut self, inode: Inode) {
        if let Some(file) = self.files.get_mut(&inode) {
            file.handles += 1;
        }
    }

    pub(super) fn close_handle(&mut self, inode: Inode) {
        if let Some(file) = self.files.get_mut(&inode) {
            file.handles -= 1;
        }
        self.forget_when_unreachable(inode);
    }

    /// Handles do not outlive their process.
    pub(super) fn close_all_handles(&mut self) {
        for file in self.files.values_mut() {
            file.handles = 0;
        }
        for inode in self.files.keys().copied().collect::<Vec<_>>() {
            self.forget_when_unreachable(inode);
        }
    }

    /// Drops a file that no handle, name or crash can reach any more.
    fn forget_when_unreachable(&mut self, inode: Inode) {
        let open = self.files.get(&inode).is_some_and(|file| file.handles > 0);
        let named = || {
            self.folders.values().any(|folder| {
                folder.current.values().chain(folder.durable.values()).any(|other| *other == inode)
                    || folder.pending.iter().any(
                        |pending| matches!(pending.change, NameChange::Create { inode: made, .. } if made == inode),
                    )
            })
        };
        if !open && !named() {
            self.files.remove(&inode);
        }
    }
}

impl FileState {
    /// Writes so that this is durable, and nothing else but what it covers.
    fn write_durably(&mut self, offset_bytes: u64, bytes: &[u8]) {
        let end_bytes = offset_bytes + bytes.len() as u64;
        let is_covered = |change: &Change| match change {
            Change::Write { offset_bytes: at, bytes } => {
                *at < end_bytes && offset_bytes < at + bytes.len() as u64
            }
            Change::Allocate { .. } | Change::Truncate { .. } => false,
        };
        // What the page cache had there was written out first, and does not come over it later.
        let durable = &mut self.durable;
        self.pending.retain(|pending| {
            let is_covered = is_covered(&pending.change);
            if is_covered && !pending.abandoned {
                pending.change.apply(durable);
            }
            !is_covered
        });
        self.durable.write(bytes, offset_bytes);
        self.current.write(bytes, offset_bytes);
    }

    fn sync(&mut self) {
        if self.pending.iter().any(|pending| pending.abandoned) {
            for pending in self.pending.drain(..).filter(|pending| !pending.abandoned) {
                pending.change.apply(&mut self.durable);
            }
        } else {
            self.pending.clear();
            self.durable = self.current.clone();
        }
    }
}

/// `a/b/c` gives `a`, `a/b` and `a/b/c`.
pub(super) fn parents(folder: &str) -> impl Iterator<Item = &str> {
    folder
        .match_indices('/')
        .map(|(at, _)| at)
        .chain(std::iter::once(folder.len()))
        .map(|at| &folder[..at])
        .filter(|parent| !parent.is_empty())
}

fn blocks(len_bytes: u64) -> u64 {
    len_bytes.next_multiple_of(BLOCK_BYTES)
}
