//! What the reconciliation of the catalog with the engine's links needs to know and to remember.
//!
//! A link that nothing names may be the beginning of a push: it is remembered with the time it was first seen, and is given up
//! when it is old. Something named without a link is damage: the engine lost it, or the catalog was restored alone. Which of
//! the two sides was restored is seen by the store's identity, which the catalog remembers.

use taffrail_blobstore::{Digest, RepositoryKey};

pub mod store;

pub use store::ReconciliationStore;

/// Something that the catalog names in a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Named {
    /// In which repository.
    pub repository: RepositoryKey,
    /// What.
    pub digest: Digest,
}

/// Where a walk over everything named goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NamedPosition(i64);

/// A link that nothing names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Unclaimed {
    /// In which repository.
    pub repository: RepositoryKey,
    /// Of which blob.
    pub digest: Digest,
    /// Of which generation. A push that comes later makes another one, and its time starts anew.
    pub generation: u64,
}

/// Which store this is, and how far it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreIdentity {
    /// Its uuid.
    pub uuid: [u8; 16],
    /// The LSN of its next record; grows with every write.
    pub next_lsn: u64,
    /// Links in it.
    pub links: u64,
}

/// How a store compares with what the catalog remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acquaintance {
    /// The catalog knew none and the store holds nothing; now the catalog knows it.
    New,
    /// The catalog knew none, but the store holds links: it is the catalog that was lost or replaced.
    Stranger,
    /// It is the one, at least as far as remembered.
    Same,
    /// It is another store: one of the two was replaced.
    Other {
        /// The uuid that is remembered.
        remembered: [u8; 16],
    },
    /// It is the one, but from an earlier time: it was restored from a backup, and what came later is missing from it.
    Earlier {
        /// The LSN that is remembered.
        remembered_lsn: u64,
    },
}
