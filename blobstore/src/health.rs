//! Whether the store takes writes, and if not, why.

use std::io;

use crate::digest::Digest;
use crate::error::{Refusal, is_without_files, refusal_of};
use crate::format::SegmentId;
use crate::sync::{RwLock, read, write};

/// Whether the store takes writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreState {
    /// It does.
    Writable,
    /// The log is damaged: what is not named is served, nothing is written until `taffrail-fsck repair`.
    ReadOnly {
        /// What is lost.
        damage: Vec<Damage>,
    },
    /// A flush, or a write of the log, failed, or the index is damaged: no further write is acknowledged; the process should end, so that the store is
    /// opened anew.
    Poisoned {
        /// Which file, and what the disk said.
        reason: String,
    },
}

/// Something that was durable and is not there any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Damage {
    /// A range of a log segment that holds no valid batch although there are some behind it.
    Log {
        /// Which segment.
        segment: SegmentId,
        /// Offset of the first byte.
        from_bytes: u64,
        /// Offset behind the last byte; equal to the first when only the chain of seals is broken.
        to_bytes: u64,
    },
    /// The header of a log segment.
    Header {
        /// Which segment.
        segment: SegmentId,
    },
    /// A log segment that is missing.
    Missing {
        /// Which segment.
        segment: SegmentId,
    },
    /// A blob that links name and whose record is lost.
    Blob {
        /// Which blob.
        digest: Digest,
    },
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Damage::Log { segment, from_bytes, to_bytes } => {
                write!(f, "log segment {segment}: bytes {from_bytes} to {to_bytes} are damaged")
            }
            Damage::Header { segment } => write!(f, "log segment {segment}: the header is damaged"),
            Damage::Missing { segment } => write!(f, "log segment {segment} is missing"),
            Damage::Blob { digest } => write!(f, "blob {digest}: the record is lost"),
        }
    }
}

/// A disk call that failed, and what it was for.
#[derive(Debug)]
pub(crate) struct Failed {
    step: Step,
    pub(crate) error: io::Error,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Write,
    LogWrite,
    Flush,
    Index,
}

impl Failed {
    /// A write of what nothing relies on yet: a checkpoint, the superblock that is not in force. It is written over or left.
    pub(crate) fn write(error: io::Error) -> Failed {
        Failed { step: Step::Write, error }
    }

    /// A write of what commits go on from: a batch, a segment, a folder.
    pub(crate) fn log_write(error: io::Error) -> Failed {
        Failed { step: Step::LogWrite, error }
    }

    /// A read of the index for what has to be changed.
    pub(crate) fn index(error: io::Error) -> Failed {
        Failed { step: Step::Index, error }
    }

    /// A flush, of a file or a folder.
    pub(crate) fn flush(error: io::Error) -> Failed {
        Failed { step: Step::Flush, error }
    }

    /// A flush of what nothing relies on before it is done, so that it can be begun anew where it was not begun: where the folder
    /// could not be opened for it (L-19).
    pub(crate) fn flush_ahead(error: io::Error) -> Failed {
        let step = if is_without_files(&error) { Step::LogWrite } else { Step::Flush };
        Failed { step, error }
    }
}

#[derive(Debug)]
pub(crate) struct Health(RwLock<StoreState>);

impl Health {
    pub(crate) fn new(state: StoreState) -> Health {
        Health(RwLock::new(state))
    }

    pub(crate) fn state(&self) -> StoreState {
        read(&self.0).clone()
    }

    /// Why nothing is written, if so.
    pub(crate) fn refusal(&self) -> Option<Refusal> {
        match &*read(&self.0) {
            StoreState::Writable => None,
            StoreState::ReadOnly { .. } => Some(Refusal::ReadOnly),
            StoreState::Poisoned { .. } => Some(Refusal::Poisoned),
        }
    }

    /// What a failed call means for the store; every part of the engine asks here.
    ///
    /// - A failed flush poisons, whatever it says: the kernel calls the pages clean after it, and a second flush would lie.
    /// - An index that cannot be read poisons: what is known of blobs and links would part from the log. The log says everything;
    ///   the next opening makes the index anew.
    /// - A full disk, a quota, a read-only file system and a lack of descriptors refuse, and heal: nothing was written, or nothing
    ///   counts on it. Not so from a write that is durable when it returns: whatever it says may come from its flush.
    /// - Any other failed write of the log poisons: whether the device still does what it is told is not known.
    /// - Any other failed write refuses what it was for, and harms nothing.
    pub(crate) fn failed(&self, name: &str, failed: &Failed) -> Refusal {
        match (failed.step, refusal_of(&failed.error)) {
            (Step::Flush | Step::Index, _) | (Step::LogWrite, None) => self.poison(name, &failed.error),
            (Step::Write | Step::LogWrite, Some(refusal)) => refusal,
            (Step::Write, None) => Refusal::WriteFailed,
        }
    }

    /// Poisons the store. The first reason stands.
    fn poison(&self, name: &str, error: &io::Error) -> Refusal {
        let mut state = write(&self.0);
        if !matches!(*state, StoreState::Poisoned { .. }) {
            *state = StoreState::Poisoned { reason: format!("{name}: {error}") };
        }
        Refusal::Poisoned
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of a writable store after a call that failed in this way.
    fn after(failed: &Failed) -> (Refusal, bool) {
        let health = Health::new(StoreState::Writable);
        let refusal = health.failed("log/x", failed);
        (refusal, matches!(health.state(), StoreState::Poisoned { .. }))
    }

    #[test]
    fn a_failed_flush_poisons_whatever_it_says_and_a_failed_write_where_the_log_is() {
        let kinds = [
            (io::ErrorKind::StorageFull, Some(Refusal::NoSpace)),
            (io::ErrorKind::QuotaExceeded, Some(Refusal::NoSpace)),
            (io::ErrorKind::ReadOnlyFilesystem, Some(Refusal::ReadOnly)),
            (io::ErrorKind::Other, None),
        ];
        for (kind, heals_as) in kinds {
            assert_eq!(after(&Failed::flush(kind.into())), (Refusal::Poisoned, true), "{kind}");
            let log = heals_as.map_or((Refusal::Poisoned, true), |refusal| (refusal, false));
            assert_eq!(after(&Failed::log_write(kind.into())), log, "{kind}");
            let aside = (heals_as.unwrap_or(Refusal::WriteFailed), false);
            assert_eq!(after(&Failed::write(kind.into())), aside, "{kind}");
            assert_eq!(after(&Failed::flush_ahead(kind.into())), (Refusal::Poisoned, true), "{kind}");
        }
    }

    /// A hundred uploads at once, in a process that may open few files, poisoned the store: the folder of a solo file could not be
    /// opened to flush it, which passed for a flush that had failed.
    #[test]
    fn l_19_a_lack_of_descriptors_refuses_and_poisons_only_where_something_relies_on_the_flush() {
        for errno in [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE] {
            let error = || std::io::Error::from(errno);
            for failed in [Failed::flush_ahead(error()), Failed::log_write(error()), Failed::write(error())] {
                assert_eq!(after(&failed), (Refusal::NoFiles, false), "{errno}");
            }
            assert_eq!(after(&Failed::flush(error())), (Refusal::Poisoned, true), "{errno}");
        }
    }
}
