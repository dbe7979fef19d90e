//! The two superblocks, read without opening the store.

use std::io;

use taffrail_blobstore::disk::{Access, Disk};
use taffrail_blobstore::format::superblock::{SUPERBLOCK_BYTES, Superblock, SuperblockError};
use taffrail_blobstore::format::{LOG_FOLDER, SUPERBLOCK_NAMES};

use crate::finding::{Finding, Findings, Kind, Severity};

/// What one of the two files holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Copy {
    Absent,
    Valid(Superblock),
    Invalid(SuperblockError),
}

/// Both copies, in the order of [`SUPERBLOCK_NAMES`].
#[derive(Clone, Debug)]
pub(crate) struct Superblocks {
    pub(crate) copies: [Copy; 2],
}

/// Why there is no superblock to go by.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SuperblocksError {
    #[error("there is no store here: neither SUPER.0 nor SUPER.1 exists")]
    NoStore,
    #[error(
        "both superblocks are damaged, and with them the key of every seal is lost; restore one of them from a backup"
    )]
    BothDamaged,
    #[error("the making of this store was interrupted; nothing is in it, and the next opening makes it anew")]
    Unfinished,
    #[error("{0}")]
    Newer(SuperblockError),
    #[error("{name} cannot be read: {error}")]
    Io { name: &'static str, error: io::Error },
}

impl Superblocks {
    pub(crate) fn read(disk: &dyn Disk) -> Result<Superblocks, SuperblocksError> {
        let read =
            |name: &'static str| read_one(disk, name).map_err(|error| SuperblocksError::Io { name, error });
        let [first, second] = SUPERBLOCK_NAMES;
        let superblocks = Superblocks { copies: [read(first)?, read(second)?] };
        let damaged = matches!(superblocks.current(), Err(SuperblocksError::BothDamaged));
        // A log is begun only when a superblock is durable.
        if damaged && disk.list(LOG_FOLDER).is_ok_and(|names| names.is_empty()) {
            return Err(SuperblocksError::Unfinished);
        }
        Ok(superblocks)
    }

    /// The one in force: the newer valid one.
    pub(crate) fn current(&self) -> Result<&Superblock, SuperblocksError> {
        let newer = self.copies.iter().find_map(|copy| match copy {
            Copy::Invalid(error @ SuperblockError::Newer(_)) => Some(*error),
            Copy::Invalid(_) | Copy::Valid(_) | Copy::Absent => None,
        });
        if let Some(error) = newer {
            return Err(SuperblocksError::Newer(error));
        }
        let absent = self.copies.iter().all(|copy| *copy == Copy::Absent);
        let error = if absent { SuperblocksError::NoStore } else { SuperblocksError::BothDamaged };
        self.valid().max_by_key(|superblock| superblock.sequence).ok_or(error)
    }

    pub(crate) fn valid(&self) -> impl Iterator<Item = &Superblock> {
        self.copies.iter().filter_map(|copy| match copy {
            Copy::Valid(superblock) => Some(superblock),
            Copy::Absent | Copy::Invalid(_) => None,
        })
    }

    /// The copies that should be rewritten from the other one.
    pub(crate) fn bad_names(&self) -> Vec<&'static str> {
        let current = self.current().ok();
        let is_bad = |(index, copy): (usize, &Copy)| match copy {
            // The first opening of a store writes one of them, the second the other.
            Copy::Absent => current.is_some_and(|current| current.sequence > 1),
            Copy::Invalid(_) => true,
            Copy::Valid(superblock) => {
                let misplaced = usize::from(superblock.sequence % 2 == 1) != index;
                misplaced
                    || current.is_some_and(|current| {
                        current.uuid != superblock.uuid || current.key != superblock.key
                    })
            }
        };
        SUPERBLOCK_NAMES
            .into_iter()
            .zip(self.copies.iter().enumerate())
            .filter(|(_, copy)| is_bad(*copy))
            .map(|(name, _)| name)
            .collect()
    }

    pub(crate) fn report(&self, findings: &mut Findings) {
        for name in self.bad_names() {
            let index = usize::from(name == SUPERBLOCK_NAMES[1]);
            let what = match &self.copies[index] {
                Copy::Absent => "this copy of the superblock is missing; the other one is in force",
                Copy::Invalid(_) => "this copy of the superblock is damaged; the other one is in force",
                Copy::Valid(_) => {
                    "this copy of the superblock is not of this place or store; the other one is in force"
                }
            };
            let finding = Finding::new(Severity::Repairable, Kind::Superblock, name, what);
            findings.add(finding.at(0, SUPERBLOCK_BYTES as u64));
        }
    }
}

fn read_one(disk: &dyn Disk, name: &str) -> io::Result<Copy> {
    let file = match disk.open(name, Access::Cached) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Copy::Absent),
        Err(error) => return Err(error),
    };
    let mut bytes = vec![0; SUPERBLOCK_BYTES];
    match file.read_at(&mut bytes, 0) {
        Ok(()) => Ok(Superblock::decode(&bytes).map_or_else(Copy::Invalid, Copy::Valid)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Ok(Copy::Invalid(SuperblockError::Damaged))
        }
        Err(error) => Err(error),
    }
}
