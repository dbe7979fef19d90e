//! A disk in memory that fails as real ones do, deterministically.
//!
//! # Fault model
//!
//! What a test may rely on, and what the engine must not:
//!
//! - **Writes** are seen by reads at once and are pending until [`File::sync`] of their file returns. At power loss each
//!   pending write survives whole, in part, or not at all, independently of all others and in any order: of two pending
//!   writes to one sector either may win. The unit that is never torn is the 512-byte sector, aligned in its file.
//! - **Durable writes** ([`File::write_durably_at`]) are durable when they return, and no other write is. One that is interrupted or fails
//!   was done in part, and whatever it fails with counts as a failed flush. Each is a call of [`Call::Write`] and one of [`Call::Sync`].
//! - **Lengths** (allocate, truncate, writes past the end) are pending in the same way; they keep their order among
//!   themselves and with the writes between them. The length that a lost write would have given may survive without it,
//!   and reads as zeros.
//! - **Names** are pending until [`Disk::sync_dir`] of their folder returns, each for itself. A file whose name was lost is
//!   gone with all it held; a file whose removal was lost is back. Syncing a file does not save its name.
//!   [`Disk::create_dir`] is durable when it returns; when it is interrupted, any number of levels were made.
//! - **A flush that is interrupted** may have been done all the same. **A flush that fails** leaves nothing to be done by
//!   the next: what was pending stays visible in the cache, later flushes succeed without it (as on Linux), and a crash
//!   loses it or not.
//! - **kill -9** ([`SimDisk::kill`]) keeps every completed call, still pending; the call under way is done in part.
//! - **Errors** ([`Fault`]): any call may answer EIO, ENOSPC, EDQUOT or EROFS; a write that fails may have been done in
//!   part. [`SimDisk::set_capacity`] makes the disk full. Preallocated space never lacks.
//! - **Rot**: flipped bits, overwritten ranges, files cut short ([`SimDisk::flip_bit`] and its neighbours); writes that are
//!   lost or land elsewhere while the device says they did not ([`SimDisk::misdirect`]); flushes that do nothing
//!   ([`SimDisk::lie_about_flushes`]), which no engine can survive and with which a test proves that it would notice.
//!
//! Not modelled: sectors torn within, garbage in place of what was lost, latency.
//!
//! All randomness comes from seeds. Copies ([`SimDisk::fork`], crashes, the tape) share their pages, so that one costs
//! microseconds.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Access, Counters, DIRECT_ALIGN_BYTES, Disk, File, Lock, LockError, NotDurable};

mod crash;
mod faults;
mod image;
mod state;

pub use faults::{Call, Fault, FaultError, Landing};

use crash::Draw;
use state::{Change, Inode, Op, State};

/// The unit, in bytes, that a simulated power loss never tears.
pub const SECTOR_BYTES: u64 = 512;

/// Capacity, in bytes, until [`SimDisk::set_capacity`] is called.
const DEFAULT_CAPACITY_BYTES: u64 = 1 << 40;

/// A simulated disk. Clones are handles of the same disk; [`SimDisk::fork`] makes another.
#[derive(Clone)]
pub struct SimDisk {
    shared: Arc<Shared>,
}

struct Shared {
    inner: Mutex<Inner>,
    holder: Mutex<Option<String>>,
}

struct Inner {
    state: State,
    counters: Counters,
    calls: [u64; Call::ALL.len()],
    faults: Vec<Fault>,
    misdirections: Vec<(u64, Landing)>,
    /// Calls that change the disk and may still pass before the power goes.
    power_left: Option<u64>,
    power_gone: bool,
    read_only: bool,
    lies: Vec<(Call, String)>,
    tape: Option<Vec<State>>,
    draw: Draw,
}

/// What every call answers once the power is gone.
#[derive(Debug, thiserror::Error)]
#[error("the power is gone")]
struct PowerGone;

struct SimFile {
    shared: Arc<Shared>,
    inode: Inode,
    name: String,
    access: Access,
}

struct SimLock {
    shared: Arc<Shared>,
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimDisk").field("files", &self.files()).finish_non_exhaustive()
    }
}

impl fmt::Debug for SimFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimFile").field("name", &self.name).finish_non_exhaustive()
    }
}

impl fmt::Debug for SimLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SimLock")
    }
}

impl Default for SimDisk {
    fn default() -> Self {
        SimDisk::new()
    }
}

impl SimDisk {
    /// An empty disk.
    pub fn new() -> SimDisk {
        SimDisk::of(State::new(DEFAULT_CAPACITY_BYTES))
    }

    fn of(state: State) -> SimDisk {
        let inner = Inner {
            state,
            counters: Counters::default(),
            calls: [0; Call::ALL.len()],
            faults: Vec::new(),
            misdirections: Vec::new(),
            power_left: None,
            power_gone: false,
            read_only: false,
            lies: Vec::new(),
            tape: None,
            draw: Draw::new(0),
        };
        SimDisk { shared: Arc::new(Shared { inner: Mutex::new(inner), holder: Mutex::new(None) }) }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.shared.inner()
    }

    // Crashes.

    /// The same disk, pending changes and all, without handles, faults, counts and lock.
    pub fn fork(&self) -> SimDisk {
        let mut state = self.inner().state.clone();
        state.close_all_handles();
        SimDisk::of(state)
    }

    /// The disk as it may be found after power was lost now; `seed` chooses among the possible outcomes.
    pub fn crash(&self, seed: u64) -> SimDisk {
        SimDisk::of(crash::lose_power(self.inner().state.clone(), seed))
    }

    /// The disk as the next process finds it when this one was killed now; `seed` chooses how far the call under way came.
    pub fn kill(&self, seed: u64) -> SimDisk {
        SimDisk::of(crash::kill(self.inner().state.clone(), seed))
    }

    /// Lets `changes` more calls that change the disk pass; the next one is cut short and all later calls fail, reads too.
    pub fn crash_after(&self, changes: u64) {
        self.inner().power_left = Some(changes);
    }

    /// Whether `error` says that the power went.
    pub fn is_power_gone(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|inner| inner.is::<PowerGone>())
    }

    /// From now on keeps a copy of the disk at every call that changes it, taken while that call is under way.
    pub fn start_tape(&self) {
        self.inner().tape = Some(Vec::new());
    }

    /// Copies on the tape so far.
    pub fn tape_len(&self) -> usize {
        self.inner().tape.as_ref().map_or(0, Vec::len)
    }

    /// Ends the tape and returns its copies, each good for [`SimDisk::crash`] and [`SimDisk::kill`].
    pub fn take_tape(&self) -> Vec<SimDisk> {
        self.inner().tape.take().unwrap_or_default().into_iter().map(SimDisk::of).collect()
    }

    // Faults.

    /// Plants a fault. The first that strikes wins.
    pub fn inject(&self, fault: Fault) {
        self.inner().faults.push(fault);
    }

    /// Takes all faults and misdirections away; the disk may be written again.
    pub fn heal(&self) {
        let mut inner = self.inner();
        inner.faults.clear();
        inner.misdirections.clear();
        inner.read_only = false;
    }

    /// Sends the write after the next `skip` ones elsewhere.
    pub fn misdirect(&self, skip: u64, landing: Landing) {
        let mut inner = self.inner();
        let write = inner.calls[Call::Write as usize] + skip;
        inner.misdirections.push((write, landing));
    }

    /// Makes flushes of this kind ([`Call::Sync`] or [`Call::SyncDir`]), of files or folders whose path begins with
    /// `name_prefix`, answer at once and do nothing.
    pub fn lie_about_flushes(&self, call: Call, name_prefix: &str) {
        self.inner().lies.push((call, name_prefix.to_owned()));
    }

    /// Makes every call that would change the disk answer EROFS.
    pub fn set_read_only(&self, read_only: bool) {
        self.inner().read_only = read_only;
    }

    /// Makes this disk, and its copies, one that gains from zeros ([`File::gains_from_zeros`]). A new one does not.
    pub fn set_gains_from_zeros(&self) {
        self.inner().state.gains_from_zeros = true;
    }

    /// Sets the bytes that all files together may take, in blocks of 4096.
    pub fn set_capacity(&self, capacity_bytes: u64) {
        self.inner().state.capacity_bytes = capacity_bytes;
    }

    /// Bytes that files take, in blocks of 4096; removed ones while they are open.
    pub fn used_bytes(&self) -> u64 {
        let state = &self.inner().state;
        state.capacity_bytes - state.free_bytes()
    }

    // What the device holds, beyond what the engine is told.

    /// Paths and lengths in bytes of all files, in order.
    pub fn files(&self) -> Vec<(String, u64)> {
        let inner = self.inner();
        let mut files = Vec::new();
        for (folder, names) in &inner.state.folders {
            for (name, inode) in &names.current {
                let path = if folder.is_empty() { name.to_string() } else { format!("{folder}/{name}") };
                files.push((path, inner.state.files.get(inode).map_or(0, |file| file.current.len_bytes())));
            }
        }
        files
    }

    /// A file's bytes; none when there is no such file.
    pub fn contents(&self, name: &str) -> Option<Vec<u8>> {
        let inner = self.inner();
        let (folder, base) = split(name);
        let image = &inner.state.files.get(&inner.state.inode(folder, base)?)?.current;
        let mut bytes = vec![0; usize::try_from(image.len_bytes()).ok()?];
        image.read(&mut bytes, 0);
        Some(bytes)
    }

    /// Flips one bit. False when there is no such file or byte.
    pub fn flip_bit(&self, name: &str, offset_bytes: u64, bit: u8) -> bool {
        let mut byte = [0];
        self.tamper(name, |image| {
            let there = offset_bytes < image.len_bytes();
            if there {
                image.read(&mut byte, offset_bytes);
                byte[0] ^= 1 << (bit % 8);
                image.write(&byte, offset_bytes);
            }
            there
        })
    }

    /// Overwrites a range, as rot does. False when there is no such file.
    pub fn overwrite(&self, name: &str, offset_bytes: u64, bytes: &[u8]) -> bool {
        self.tamper(name, |image| {
            image.write(bytes, offset_bytes);
            true
        })
    }

    /// Cuts a file short, or lengthens it. False when there is no such file.
    pub fn cut(&self, name: &str, len_bytes: u64) -> bool {
        self.tamper(name, |image| {
            image.set_len(len_bytes);
            true
        })
    }

    /// Puts a file where there was none, or another, durably; folders are made as needed.
    pub fn plant(&self, name: &str, bytes: &[u8]) {
        let (folder, base) = split(name);
        let (folder, base): (Arc<str>, Arc<str>) = (Arc::from(folder), Arc::from(base));
        let mut inner = self.inner();
        let state = &mut inner.state;
        state.apply(&Op::CreateDir { folder: Arc::clone(&folder) });
        state.apply(&Op::Remove { folder: Arc::clone(&folder), name: Arc::clone(&base) });
        let made = state.apply(&Op::Create { folder: Arc::clone(&folder), name: base, len_bytes: 0 });
        if let Some(inode) = made {
            let change = Change::Write { offset_bytes: 0, bytes: Arc::from(bytes) };
            state.apply(&Op::File { inode, change });
            state.apply(&Op::Sync { inode });
        }
        state.apply(&Op::SyncDir { folder });
    }

    /// Removes a file's name durably. False when there is no such file.
    pub fn uproot(&self, name: &str) -> bool {
        let (folder, base) = split(name);
        let mut inner = self.inner();
        let there = inner.state.inode(folder, base).is_some();
        inner.state.apply(&Op::Remove { folder: Arc::from(folder), name: Arc::from(base) });
        inner.state.apply(&Op::SyncDir { folder: Arc::from(folder) });
        there
    }

    fn tamper(&self, name: &str, mut change: impl FnMut(&mut image::Image) -> bool) -> bool {
        let mut inner = self.inner();
        let (folder, base) = split(name);
        let Some(inode) = inner.state.inode(folder, base) else { return false };
        let Some(file) = inner.state.files.get_mut(&inode) else { return false };
        let durable = change(&mut file.durable);
        change(&mut file.current) || durable
    }

    // Counts.

    /// Calls of this kind so far, failed ones too.
    pub fn count(&self, call: Call) -> u64 {
        self.inner().calls[call as usize]
    }
}

impl Shared {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Takes note of a call; what it fails with, if a fault was planted for it.
    fn call(&mut self, call: Call, name: &str) -> io::Result<Option<FaultError>> {
        if self.power_gone {
            return Err(io::Error::other(PowerGone));
        }
        self.calls[call as usize] += 1;
        Ok(self.faults.iter_mut().find_map(|fault| fault.strike(call, name)))
    }

    /// A call that changes nothing.
    fn look(&mut self, call: Call, name: &str) -> io::Result<()> {
        match self.call(call, name)? {
            Some(fault) => Err(fault.to_error()),
            None => Ok(()),
        }
    }

    /// A call that changes the disk.
    fn change(&mut self, call: Call, name: &str, mut op: Op) -> io::Result<Option<Inode>> {
        let mut fault = self.call(call, name)?;
        if matches!(op, Op::WriteDurably { .. }) && fault.is_none() {
            fault = self.call(Call::Sync, name)?;
        }
        if let Some(tape) = &mut self.tape {
            tape.push(State { in_flight: Some(op.clone()), ..self.state.clone() });
        }
        if self.power_left == Some(0) {
            self.power_gone = true;
            self.state.in_flight = Some(op);
            return Err(io::Error::other(PowerGone));
        }
        self.power_left = self.power_left.map(|left| left - 1);
        if self.read_only {
            return Err(FaultError::ReadOnly.to_error());
        }
        if let Some(error) = fault {
            crash::write_partly(&mut self.state, &op, &mut self.draw);
            self.state.abandon(&op);
            return Err(error.to_error());
        }
        if !self.fits(&op) {
            return Err(FaultError::NoSpace.to_error());
        }
        match &op {
            Op::Sync { .. } | Op::SyncDir { .. } => {
                self.counters.flushes += 1;
                if self.lies.iter().any(|(kind, prefix)| *kind == call && name.starts_with(prefix)) {
                    return Ok(None);
                }
            }
            Op::File { change: Change::Write { bytes, .. }, .. } | Op::WriteDurably { bytes, .. } => {
                self.counters.written_bytes += bytes.len() as u64;
                let is_durable = matches!(op, Op::WriteDurably { .. });
                self.counters.flushes += u64::from(is_durable);
                let number = self.calls[Call::Write as usize] - 1;
                if let Some((_, landing)) = self.misdirections.iter().find(|(write, _)| *write == number) {
                    match redirected(op, landing, &self.state) {
                        Some(elsewhere) => op = elsewhere,
                        None => return Ok(None),
                    }
                }
                if is_durable
                    && self.lies.iter().any(|(kind, prefix)| *kind == Call::Sync && name.starts_with(prefix))
                {
                    op = op.not_durable();
                }
            }
            Op::File { .. } | Op::Create { .. } | Op::Remove { .. } | Op::CreateDir { .. } => {}
        }
        Ok(self.state.apply(&op))
    }

    fn fits(&self, op: &Op) -> bool {
        match op {
            Op::Create { len_bytes, .. } => self.state.fits(None, *len_bytes),
            Op::File { inode, change: Change::Allocate { len_bytes } } => {
                self.state.fits(Some(*inode), *len_bytes)
            }
            Op::File { inode, change: Change::Write { offset_bytes, bytes } }
            | Op::WriteDurably { inode, offset_bytes, bytes } => {
                self.state.fits(Some(*inode), offset_bytes + bytes.len() as u64)
            }
            Op::File { change: Change::Truncate { .. }, .. }
            | Op::Sync { .. }
            | Op::Remove { .. }
            | Op::CreateDir { .. }
            | Op::SyncDir { .. } => true,
        }
    }

    fn len_bytes(&self, inode: Inode) -> u64 {
        self.state.files.get(&inode).map_or(0, |file| file.current.len_bytes())
    }
}

fn redirected(mut op: Op, landing: &Landing, state: &State) -> Option<Op> {
    if let Op::File { inode, change: Change::Write { offset_bytes, .. } }
    | Op::WriteDurably { inode, offset_bytes, .. } = &mut op
    {
        match landing {
            Landing::Nowhere => return None,
            Landing::At { offset_bytes: elsewhere } => *offset_bytes = *elsewhere,
            Landing::In { name, offset_bytes: elsewhere } => {
                let (folder, base) = split(name);
                (*inode, *offset_bytes) = (state.inode(folder, base)?, *elsewhere);
            }
        }
    }
    Some(op)
}

impl Disk for SimDisk {
    fn create(&self, name: &str, len_bytes: u64, access: Access) -> io::Result<Arc<dyn File>> {
        let (folder, base) = split(name);
        let mut inner = self.inner();
        if !inner.power_gone && !inner.state.folders.contains_key(folder) {
            return Err(io::ErrorKind::NotFound.into());
        }
        if !inner.power_gone && inner.state.inode(folder, base).is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let op = Op::Create { folder: Arc::from(folder), name: Arc::from(base), len_bytes };
        let made = inner.change(Call::Create, name, op)?;
        drop(inner);
        made.map(|inode| self.shared.handle(inode, name, access))
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn open(&self, name: &str, access: Access) -> io::Result<Arc<dyn File>> {
        let (folder, base) = split(name);
        let mut inner = self.inner();
        inner.look(Call::Open, name)?;
        let found = inner.state.inode(folder, base);
        drop(inner);
        found
            .map(|inode| self.shared.handle(inode, name, access))
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let (folder, base) = split(name);
        let mut inner = self.inner();
        if !inner.power_gone && inner.state.inode(folder, base).is_none() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let op = Op::Remove { folder: Arc::from(folder), name: Arc::from(base) };
        inner.change(Call::Remove, name, op).map(drop)
    }

    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        let mut inner = self.inner();
        inner.look(Call::List, folder)?;
        let names = inner.state.folders.get(folder);
        Ok(names.map_or_else(Vec::new, |names| names.current.keys().map(ToString::to_string).collect()))
    }

    fn create_dir(&self, folder: &str) -> io::Result<()> {
        let mut inner = self.inner();
        if !inner.power_gone && inner.state.folders.contains_key(folder) {
            return Ok(());
        }
        inner.change(Call::CreateDir, folder, Op::CreateDir { folder: Arc::from(folder) }).map(drop)
    }

    fn sync_dir(&self, folder: &str) -> io::Result<()> {
        let mut inner = self.inner();
        if !inner.power_gone && !inner.state.folders.contains_key(folder) {
            return Err(io::ErrorKind::NotFound.into());
        }
        inner.change(Call::SyncDir, folder, Op::SyncDir { folder: Arc::from(folder) }).map(drop)
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let inner = self.inner();
        if inner.power_gone { Err(io::Error::other(PowerGone)) } else { Ok(inner.state.free_bytes()) }
    }

    fn lock(&self, owner: &str) -> Result<Box<dyn Lock>, LockError> {
        let mut holder = self.shared.holder.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(holder) = &*holder {
            return Err(LockError::Held { holder: holder.clone() });
        }
        *holder = Some(format!("process {} ({owner})", std::process::id()));
        Ok(Box::new(SimLock { shared: Arc::clone(&self.shared) }))
    }

    fn counters(&self) -> Counters {
        self.inner().counters
    }
}

impl Drop for SimLock {
    fn drop(&mut self) {
        *self.shared.holder.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Lock for SimLock {}

impl Shared {
    fn handle(self: &Arc<Self>, inode: Inode, name: &str, access: Access) -> Arc<dyn File> {
        self.inner().state.open_handle(inode);
        Arc::new(SimFile { shared: Arc::clone(self), inode, name: name.to_owned(), access })
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        self.shared.inner().state.close_handle(self.inode);
    }
}

impl SimFile {
    fn change(&self, call: Call, change: Change) -> io::Result<()> {
        self.shared.inner().change(call, &self.name, Op::File { inode: self.inode, change }).map(drop)
    }

    fn check_write(&self, bytes: &[u8], offset_bytes: u64) -> io::Result<()> {
        self.check_alignment(bytes, offset_bytes)?;
        if offset_bytes.checked_add(bytes.len() as u64).is_none_or(|end| end > DEFAULT_CAPACITY_BYTES) {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(())
    }

    /// Direct I/O that is not aligned is refused, as real disks do.
    fn check_alignment(&self, bytes: &[u8], offset_bytes: u64) -> io::Result<()> {
        let aligned = bytes.len().is_multiple_of(DIRECT_ALIGN_BYTES)
            && offset_bytes.is_multiple_of(DIRECT_ALIGN_BYTES as u64)
            && (bytes.is_empty() || bytes.as_ptr().align_offset(DIRECT_ALIGN_BYTES) == 0);
        if self.access == Access::Direct && !aligned {
            return Err(rustix::io::Errno::INVAL.into());
        }
        Ok(())
    }
}

impl File for SimFile {
    fn read_at(&self, buffer: &mut [u8], offset_bytes: u64) -> io::Result<()> {
        self.check_alignment(buffer, offset_bytes)?;
        let mut inner = self.shared.inner();
        inner.look(Call::Read, &self.name)?;
        if offset_bytes.saturating_add(buffer.len() as u64) > inner.len_bytes(self.inode) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(file) = inner.state.files.get(&self.inode) {
            file.current.read(buffer, offset_bytes);
        }
        inner.counters.read_bytes += buffer.len() as u64;
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset_bytes: u64) -> io::Result<()> {
        self.check_write(bytes, offset_bytes)?;
        self.change(Call::Write, Change::Write { offset_bytes, bytes: Arc::from(bytes) })
    }

    fn write_durably_at(&self, bytes: &[u8], offset_bytes: u64) -> Result<(), NotDurable> {
        self.check_write(bytes, offset_bytes).map_err(NotDurable::Write)?;
        let op = Op::WriteDurably { inode: self.inode, offset_bytes, bytes: Arc::from(bytes) };
        let written = self.shared.inner().change(Call::Write, &self.name, op);
        written.map(drop).map_err(NotDurable::Flush)
    }

    fn sync(&self) -> io::Result<()> {
        self.shared.inner().change(Call::Sync, &self.name, Op::Sync { inode: self.inode }).map(drop)
    }

    fn allocate(&self, len_bytes: u64) -> io::Result<()> {
        self.change(Call::Allocate, Change::Allocate { len_bytes })
    }

    fn truncate(&self, len_bytes: u64) -> io::Result<()> {
        self.change(Call::Truncate, Change::Truncate { len_bytes })
    }

    fn len_bytes(&self) -> io::Result<u64> {
        let inner = self.shared.inner();
        if inner.power_gone { Err(io::Error::other(PowerGone)) } else { Ok(inner.len_bytes(self.inode)) }
    }

    fn gains_from_zeros(&self) -> bool {
        self.shared.inner().state.gains_from_zeros
    }
}

/// Folder and name within it.
fn split(name: &str) -> (&str, &str) {
    name.rsplit_once('/').unwrap_or(("", name))
}

#[cfg(test)]
mod tests;
