//! The disk, as the engine sees it: named files in a handful of folders, positioned I/O, explicit durability.
//!
//! Three back ends: [`threads`] (the operating system's files), `uring` (the same, large writes through `io_uring`; only with the
//! feature of that name) and [`sim`] (a disk in memory that loses, tears and reorders what was not synced). What must stay true of all:
//!
//! - A write is durable only after [`File::sync`] of that file returned; the file's *name* only after [`Disk::sync_dir`] of
//!   its folder returned. The same holds for a removal.
//! - A file that was removed stays readable through handles that are open.
//! - Every call may be made from several threads at once.
//!
//! Names are relative to the store, with `/` between folder and file, and are made by the engine alone.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::sync::Arc;

use self::mapping::Mapping;

pub mod mapping;
pub mod sim;
pub mod threads;
#[cfg(feature = "uring")]
pub mod uring;
mod write;

pub(crate) use write::Source;
pub use write::{Buffer, Write, Written};

/// Alignment, in bytes, of offsets, lengths and buffers of [`Access::Direct`] I/O. 4096 satisfies every device that
/// Linux reports today.
pub const DIRECT_ALIGN_BYTES: usize = 4096;

/// How a file is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Through the page cache.
    Cached,
    /// Past the page cache where the file system can. Buffers, offsets and lengths are multiples of
    /// [`DIRECT_ALIGN_BYTES`].
    Direct,
}

/// An open file.
pub trait File: Send + Sync + fmt::Debug {
    /// Fills `buffer` from `offset_bytes` on.
    ///
    /// # Errors
    /// `UnexpectedEof` when the file ends before the buffer is full; whatever the device says.
    fn read_at(&self, buffer: &mut [u8], offset_bytes: u64) -> io::Result<()>;

    /// Fills the buffers one after the other from `offset_bytes` on, in as few calls as can be.
    ///
    /// # Errors
    /// As [`File::read_at`].
    fn read_vectored_at(&self, buffers: &mut [IoSliceMut<'_>], offset_bytes: u64) -> io::Result<()> {
        let mut at = offset_bytes;
        for buffer in buffers {
            self.read_at(buffer, at)?;
            at += buffer.len() as u64;
        }
        Ok(())
    }

    /// Tells the operating system that a range will be read soon, so that it fetches it meanwhile. Only a hint: what comes of it
    /// shows in the reads.
    fn will_read(&self, _offset_bytes: u64, _len_bytes: u64) {}

    /// Maps the whole file as it is now, to be read through the page cache. Only for a file that nobody writes to any more.
    ///
    /// None when it cannot be had: the caller reads instead.
    fn map(&self) -> Option<Mapping> {
        None
    }

    /// Writes all of `bytes` at `offset_bytes`, extending the file when needed.
    ///
    /// # Errors
    /// `StorageFull`/`QuotaExceeded` when there is no space; whatever the device says. After an error any part of the
    /// range may have been written.
    fn write_at(&self, bytes: &[u8], offset_bytes: u64) -> io::Result<()>;

    /// Writes all of `bytes` as [`File::write_at`] does and makes them durable: in one call of the system, where it has one.
    ///
    /// # Errors
    /// See [`NotDurable`]. Nothing is said of other writes to the file.
    fn write_durably_at(&self, bytes: &[u8], offset_bytes: u64) -> Result<(), NotDurable> {
        self.write_at(bytes, offset_bytes).map_err(NotDurable::Write)?;
        self.sync().map_err(NotDurable::Flush)
    }

    /// Begins a write without waiting for it, where the disk can. It ends as [`File::write_at`] does; until then it counts as not
    /// completed.
    ///
    /// # Errors
    /// The write itself, untouched: this file has no such way, or not for this buffer. The caller writes on a thread.
    fn begin_write(&self, write: Write) -> Result<(), Write> {
        Err(write)
    }

    /// Takes the first `len_bytes` of a file of the operating system in at `offset_bytes`, without their passing through this
    /// process: where the file system shares extents, nothing is copied.
    ///
    /// # Errors
    /// `Unsupported` when this disk or the file system cannot; `UnexpectedEof` when the source is shorter. After an error any part of
    /// the range may have been written.
    fn share_from(&self, _source: &std::fs::File, _len_bytes: u64, _offset_bytes: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Makes all completed writes, and the file's length, durable (`fdatasync`).
    ///
    /// # Errors
    /// Whatever the device says; then nothing is known of what is durable, and it must not be tried again.
    fn sync(&self) -> io::Result<()>;

    /// Reserves space up to `len_bytes` and makes the file that long; what was never written reads as zeros.
    ///
    /// # Errors
    /// `StorageFull`/`QuotaExceeded` when there is no space.
    fn allocate(&self, len_bytes: u64) -> io::Result<()>;

    /// Cuts the file to `len_bytes`, giving reserved space back.
    ///
    /// # Errors
    /// Whatever the device says.
    fn truncate(&self, len_bytes: u64) -> io::Result<()>;

    /// Length in bytes.
    ///
    /// # Errors
    /// Whatever the device says.
    fn len_bytes(&self) -> io::Result<u64>;

    /// Whether a small write that is made durable costs less where zeros were written before than where space was only reserved:
    /// on a file system that writes over them in place, and otherwise has to note in its journal that the space is in use. False
    /// when it is not known.
    fn gains_from_zeros(&self) -> bool;
}

/// Why a write is not known to be durable.
#[derive(Debug, thiserror::Error)]
pub enum NotDurable {
    /// The write failed, and nothing was flushed; see [`File::write_at`].
    #[error("{0}")]
    Write(io::Error),
    /// The flush failed, or what failed is not known; see [`File::sync`].
    #[error("{0}")]
    Flush(io::Error),
}

/// Keeps other processes out of the store until it is dropped.
pub trait Lock: Send + Sync + fmt::Debug {}

/// Why the store's lock was not had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// Another process holds it.
    #[error("the store is in use by {holder}")]
    Held {
        /// What the holder wrote of itself, such as `process 4711`.
        holder: String,
    },
    /// The lock file could not be opened or locked.
    #[error("cannot lock the store: {0}")]
    Io(#[from] io::Error),
}

/// What a disk did since it was made. Flushes are what pushes are judged by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Calls of [`File::sync`], [`File::write_durably_at`] and [`Disk::sync_dir`] that returned.
    pub flushes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Those of them that went through a ring.
    pub ring_written_bytes: u64,
    /// Bytes read.
    pub read_bytes: u64,
}

/// A disk with one store on it.
pub trait Disk: Send + Sync + fmt::Debug {
    /// Makes a new file with `len_bytes` of space reserved.
    ///
    /// # Errors
    /// `AlreadyExists`; `StorageFull`/`QuotaExceeded`, and then the file does not exist.
    fn create(&self, name: &str, len_bytes: u64, access: Access) -> io::Result<Arc<dyn File>>;

    /// Opens an existing file for reading and writing; on a read-only file system, for reading.
    ///
    /// # Errors
    /// `NotFound`; whatever the device says.
    fn open(&self, name: &str, access: Access) -> io::Result<Arc<dyn File>>;

    /// Removes a file's name. Its space is free when the last handle is gone.
    ///
    /// # Errors
    /// `NotFound`; whatever the device says.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Names of the files directly in `folder` (without the folder), in any order; none when there is no such folder. The
    /// store's own folder is `""`.
    ///
    /// # Errors
    /// Whatever the device says.
    fn list(&self, folder: &str) -> io::Result<Vec<String>>;

    /// Makes `folder` and its parents durably, where they do not exist.
    ///
    /// # Errors
    /// Whatever the device says; of a kind that heals (`StorageFull`, `QuotaExceeded`, `ReadOnlyFilesystem`) only when it was no
    /// flush that failed.
    fn create_dir(&self, folder: &str) -> io::Result<()>;

    /// Makes creations and removals directly in `folder` durable.
    ///
    /// # Errors
    /// Whatever the device says; see [`File::sync`].
    fn sync_dir(&self, folder: &str) -> io::Result<()>;

    /// Bytes that new files may still take.
    ///
    /// # Errors
    /// Whatever the device says.
    fn free_bytes(&self) -> io::Result<u64>;

    /// Takes the lock file `LOCK` for this process, whom `owner` describes.
    ///
    /// # Errors
    /// See [`LockError`].
    fn lock(&self, owner: &str) -> Result<Box<dyn Lock>, LockError>;

    /// Memory for a write of `len` bytes, a multiple of [`DIRECT_ALIGN_BYTES`], to a file of [`Access::Direct`]: where the disk
    /// has memory that is dearer to come by, as long as there is some.
    fn lend(&self, len: usize) -> Buffer {
        Buffer::own(len)
    }

    /// What was done so far.
    fn counters(&self) -> Counters;
}
