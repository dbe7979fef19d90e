//! The engine's errors: one small enum per operation, and the faults they share.

use std::io;

use crate::digest::Digest;
use crate::disk::LockError;
use crate::format::SegmentId;
use crate::format::superblock::SuperblockError;

/// Why the store takes no write at this moment; part of every writing operation's error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The disk is full, or a quota is. Deletions still work; everything does again when space returns.
    #[error("no space left on the disk")]
    NoSpace,
    /// A flush, or a write of the log, failed before, and what is on disk is unknown until the store is opened again; or the index
    /// is damaged, which that heals.
    #[error(
        "the store was poisoned by a failed flush or write of its log, or by damage of its index; it must be opened again"
    )]
    Poisoned,
    /// The log is damaged, or the file system is mounted read-only.
    #[error("the store is read-only")]
    ReadOnly,
    /// The disk failed a write that nothing relies on, of a checkpoint or superblock. It may be tried again.
    #[error("the disk failed a write; what was stored is not harmed")]
    WriteFailed,
    /// The process may open no more files at this moment. Nothing was written; it may be tried again.
    #[error("the process may open no more files")]
    NoFiles,
    /// More waits for the disk than the queue takes.
    #[error("too much is waiting for the disk")]
    Overloaded,
    /// The store is being closed.
    #[error("the store is closing")]
    Closing,
}

/// Whether a failed disk call means "refuse and go on" rather than "something is broken".
pub(crate) fn refusal_of(error: &io::Error) -> Option<Refusal> {
    if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
        Some(Refusal::NoSpace)
    } else if error.kind() == io::ErrorKind::ReadOnlyFilesystem {
        Some(Refusal::ReadOnly)
    } else if is_without_files(error) {
        Some(Refusal::NoFiles)
    } else {
        None
    }
}

/// Whether a call failed because this process, or the machine, has too many files open. Only opening says so, so nothing reached the
/// disk.
pub(crate) fn is_without_files(error: &io::Error) -> bool {
    let errors = [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE];
    errors.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Why a store did not open.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another process has it, or the lock file is out of reach.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// Both superblocks are unreadable although there is data.
    #[error(
        "neither superblock can be used ({0}); keep the folder as it is and restore SUPER.0 and SUPER.1 from a backup"
    )]
    Superblock(SuperblockError),
    /// The options are out of bounds.
    #[error("segments have 1 MiB to 256 MiB, a power of two; not {0} bytes")]
    SegmentBytes(u64),
    /// The disk failed.
    #[error("{name}: {error}")]
    Io {
        /// Which file or folder.
        name: String,
        /// What it said.
        error: io::Error,
    },
}

impl OpenError {
    pub(crate) fn io(name: &str) -> impl Fn(io::Error) -> OpenError + '_ {
        move |error| OpenError::Io { name: name.to_owned(), error }
    }
}

/// Why a blob is not read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The repository does not hold it, or it is quarantined.
    #[error("blob unknown")]
    Unknown,
    /// A block is not what was written; also when read past the page cache. The blob is quarantined.
    #[error("{digest}: checksum mismatch in segment {segment} at byte {offset_bytes}")]
    Corrupt {
        /// Which blob.
        digest: Digest,
        /// In which file.
        segment: SegmentId,
        /// Where in the file.
        offset_bytes: u64,
    },
    /// The range is empty or reaches past the blob.
    #[error("bytes {from_bytes} to {to_bytes} are not within the {len_bytes} bytes of the blob")]
    Range {
        /// First byte asked for.
        from_bytes: u64,
        /// Behind the last one.
        to_bytes: u64,
        /// What there is.
        len_bytes: u64,
    },
    /// The disk failed; other blobs are unharmed.
    #[error("{digest}: {error}")]
    Io {
        /// Which blob.
        digest: Digest,
        /// What the disk said.
        error: io::Error,
    },
}

/// Why a blob was not linked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// The source does not hold it.
    #[error("blob unknown")]
    Unknown,
    /// No writes now.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// Why a link was not removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnlinkError {
    /// There is no such link.
    #[error("blob unknown")]
    Unknown,
    /// A manifest on its way into the catalog needs it.
    #[error("a manifest that is being pushed needs the blob")]
    Pinned,
    /// A backup is copying the catalog, which may name it.
    #[error("a backup holds links")]
    Held,
    /// No writes now.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// Why a manifest was not stored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PutError {
    /// The repository does not hold these.
    #[error("{} blobs are unknown to the repository", .0.len())]
    Missing(Vec<Digest>),
    /// A blob has another length than stated.
    #[error("{digest} has {actual_bytes} bytes, not {stated_bytes}")]
    Length {
        /// Which.
        digest: Digest,
        /// As stored.
        actual_bytes: u64,
        /// As stated.
        stated_bytes: u64,
    },
    /// More than [`crate::format::INLINE_BYTES_MAX`] bytes.
    #[error("{0} bytes are too many for an inline blob")]
    TooLarge(usize),
    /// The bytes do not hash to the digest.
    #[error("the bytes have the digest {0}")]
    Mismatch(Digest),
    /// No writes now.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// Why an upload does not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UploadError {
    /// No such session in this repository.
    #[error("upload session unknown")]
    Unknown,
    /// It is open elsewhere.
    #[error("the upload session is in use")]
    Busy,
    /// Too many sessions, of the repository or in total.
    #[error("too many upload sessions")]
    TooMany,
    /// The bytes do not hash to the digest; the session stands where it stood when it was opened.
    #[error("the uploaded bytes have the digest {actual}")]
    Mismatch {
        /// What they hash to.
        actual: Digest,
    },
    /// Longer than the limit.
    #[error("a blob has at most {limit_bytes} bytes")]
    TooLarge {
        /// The limit.
        limit_bytes: u64,
    },
    /// What was received so far cannot be read back now; the session stands, and may be opened again later.
    #[error("the upload's file cannot be read now: {0}")]
    Unreadable(io::Error),
    /// The disk failed under the session's file, or the file lacks what was written to it; the session is gone.
    #[error("the upload's file failed: {0}")]
    Io(io::Error),
    /// No writes now. After `NoSpace` the session is gone, too.
    #[error(transparent)]
    Refused(#[from] Refusal),
}
