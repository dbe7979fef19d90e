//! Faults that a test plants in a simulated disk.

use std::io;

use rustix::io::Errno;

/// A kind of call of the disk or of one of its files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Call {
    /// [`Disk::open`](super::super::Disk::open).
    Open,
    /// [`Disk::create`](super::super::Disk::create).
    Create,
    /// [`Disk::remove`](super::super::Disk::remove).
    Remove,
    /// [`Disk::list`](super::super::Disk::list).
    List,
    /// [`Disk::create_dir`](super::super::Disk::create_dir).
    CreateDir,
    /// [`Disk::sync_dir`](super::super::Disk::sync_dir).
    SyncDir,
    /// [`File::read_at`](super::super::File::read_at).
    Read,
    /// [`File::write_at`](super::super::File::write_at).
    Write,
    /// [`File::sync`](super::super::File::sync).
    Sync,
    /// [`File::allocate`](super::super::File::allocate).
    Allocate,
    /// [`File::truncate`](super::super::File::truncate).
    Truncate,
}

impl Call {
    /// Every kind, for sweeps.
    pub const ALL: [Call; 11] = [
        Call::Open,
        Call::Create,
        Call::Remove,
        Call::List,
        Call::CreateDir,
        Call::SyncDir,
        Call::Read,
        Call::Write,
        Call::Sync,
        Call::Allocate,
        Call::Truncate,
    ];
}

/// What a call answers in place of being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultError {
    /// EIO. A write may have been done in part; of a flush, later flushes know nothing.
    Io,
    /// ENOSPC.
    NoSpace,
    /// EDQUOT.
    Quota,
    /// EROFS.
    ReadOnly,
}

impl FaultError {
    pub(super) fn to_error(self) -> io::Error {
        match self {
            FaultError::Io => Errno::IO,
            FaultError::NoSpace => Errno::NOSPC,
            FaultError::Quota => Errno::DQUOT,
            FaultError::ReadOnly => Errno::ROFS,
        }
        .into()
    }
}

/// Calls that fail.
#[derive(Clone, Debug)]
pub struct Fault {
    calls: Vec<Call>,
    name_prefix: String,
    skip: u64,
    times: u64,
    error: FaultError,
}

impl Fault {
    /// Every call of these kinds answers `error` from now on.
    pub fn on(calls: &[Call], error: FaultError) -> Fault {
        Fault { calls: calls.to_vec(), name_prefix: String::new(), skip: 0, times: u64::MAX, error }
    }

    /// Lets `skip` such calls pass first.
    #[must_use]
    pub fn after(self, skip: u64) -> Fault {
        Fault { skip, ..self }
    }

    /// Fails no more than `times` calls.
    #[must_use]
    pub fn times(self, times: u64) -> Fault {
        Fault { times, ..self }
    }

    /// Concerns only files and folders whose path begins with `name_prefix`.
    #[must_use]
    pub fn within(self, name_prefix: &str) -> Fault {
        Fault { name_prefix: name_prefix.to_owned(), ..self }
    }

    /// Takes note of a call and says how it fails, if it does.
    pub(super) fn strike(&mut self, call: Call, name: &str) -> Option<FaultError> {
        if !self.calls.contains(&call) || !name.starts_with(&self.name_prefix) || self.times == 0 {
            return None;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        self.times -= 1;
        Some(self.error)
    }
}

/// Where a write goes that the device acknowledges and does wrongly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Landing {
    /// It is lost.
    Nowhere,
    /// To another place in its file.
    At {
        /// Where to.
        offset_bytes: u64,
    },
    /// To another file.
    In {
        /// The file's path; lost when there is none.
        name: String,
        /// Where to.
        offset_bytes: u64,
    },
}
