//! Whether the store takes writes, and if not, why.

use std::io;

use crate::digest::Digest;
use crate::error::Refusal;
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
    /// A write or flush failed: no further write is acknowledged; the process should end, so that the store is opened anew.
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

    /// Poisons the store. The first reason stands.
    pub(crate) fn poison(&self, name: &str, error: &io::Error) -> Refusal {
        let mut state = write(&self.0);
        if !matches!(*state, StoreState::Poisoned { .. }) {
            *state = StoreState::Poisoned { reason: format!("{name}: {error}") };
        }
        Refusal::Poisoned
    }
}
