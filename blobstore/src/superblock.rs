//! Reading the superblocks, and writing them in turn.

use std::io;

use crate::disk::{Access, Disk};
use crate::error::OpenError;
use crate::format::superblock::{FORMAT_VERSION, SUPERBLOCK_BYTES, Superblock, SuperblockError};
use crate::format::{LOG_FOLDER, SUPERBLOCK_NAMES};
use crate::health::Failed;
use crate::options::Options;
use crate::sync::{Mutex, lock};

/// The superblock in force.
#[derive(Debug)]
pub(crate) struct Superblocks(Mutex<Superblock>);

/// What the two files hold.
enum Stored {
    Valid(Superblock),
    /// Neither exists.
    Absent,
    Invalid(SuperblockError),
}

impl Superblocks {
    pub(crate) fn new(superblock: Superblock) -> Superblocks {
        Superblocks(Mutex::new(superblock))
    }

    pub(crate) fn current(&self) -> Superblock {
        lock(&self.0).clone()
    }

    /// Changes the superblock durably. The copy in force is not touched: the next one goes to the other file, and does so again
    /// when it could not be written.
    pub(crate) fn update(&self, disk: &dyn Disk, change: impl FnOnce(&mut Superblock)) -> Result<(), Failed> {
        let mut current = lock(&self.0);
        let mut next = current.clone();
        change(&mut next);
        next.sequence += 1;
        write(disk, &next)?;
        *current = next;
        Ok(())
    }
}

/// Writes a superblock to the file of its turn, and flushes it.
pub(crate) fn write(disk: &dyn Disk, superblock: &Superblock) -> Result<(), Failed> {
    let name = SUPERBLOCK_NAMES[usize::from(superblock.sequence % 2 == 1)];
    let (file, made) = match disk.open(name, Access::Cached) {
        Ok(file) => (file, false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let made = disk.create(name, SUPERBLOCK_BYTES as u64, Access::Cached);
            (made.map_err(Failed::write)?, true)
        }
        Err(error) => return Err(Failed::write(error)),
    };
    file.write_at(&superblock.encode(), 0).map_err(Failed::write)?;
    file.sync().map_err(Failed::flush)?;
    if made { disk.sync_dir("").map_err(Failed::flush) } else { Ok(()) }
}

/// Reads the superblock in force, or makes that of a new store in an empty folder.
pub(crate) fn read_or_make(disk: &dyn Disk, options: &Options, now_ms: u64) -> Result<Superblock, OpenError> {
    match read(disk)? {
        Stored::Valid(superblock) => Ok(superblock),
        Stored::Absent if is_unused(disk)? => Ok(first(options, now_ms)),
        Stored::Absent => Err(OpenError::Superblock(SuperblockError::Damaged)),
        // The making of the store itself was interrupted: there is nothing yet that the superblock could tell of.
        Stored::Invalid(SuperblockError::Damaged) if is_unused(disk)? => Ok(first(options, now_ms)),
        Stored::Invalid(error) => Err(OpenError::Superblock(error)),
    }
}

fn first(options: &Options, now_ms: u64) -> Superblock {
    let (mut key, mut uuid) = ([0; 32], [0; 16]);
    key.copy_from_slice(&options.entropy[..32]);
    uuid.copy_from_slice(&options.entropy[32..]);
    Superblock {
        format: FORMAT_VERSION,
        epoch: 0,
        sequence: 0,
        uuid,
        key,
        segment_bytes: options.segment_bytes,
        oldest_segment: 1,
        checkpoint: 0,
        written_ms: now_ms,
    }
}

fn is_unused(disk: &dyn Disk) -> Result<bool, OpenError> {
    let names = disk.list(LOG_FOLDER).map_err(OpenError::io(LOG_FOLDER))?;
    Ok(names.is_empty())
}

fn read(disk: &dyn Disk) -> Result<Stored, OpenError> {
    let mut newest: Option<Superblock> = None;
    let mut problem = None;
    for name in SUPERBLOCK_NAMES {
        match read_one(disk, name) {
            Ok(Some(Ok(superblock))) => {
                if newest.as_ref().is_none_or(|newest| superblock.sequence > newest.sequence) {
                    newest = Some(superblock);
                }
            }
            Ok(Some(Err(error))) => problem = Some(error),
            Ok(None) => {}
            Err(error) => return Err(OpenError::Io { name: name.to_owned(), error }),
        }
    }
    Ok(match (newest, problem) {
        // Never go back behind a newer program's superblock.
        (_, Some(error @ SuperblockError::Newer(_))) => Stored::Invalid(error),
        (Some(superblock), _) => Stored::Valid(superblock),
        (None, Some(error)) => Stored::Invalid(error),
        (None, None) => Stored::Absent,
    })
}

/// One superblock; `None` when the file does not exist.
pub(crate) fn read_one(
    disk: &dyn Disk,
    name: &str,
) -> io::Result<Option<Result<Superblock, SuperblockError>>> {
    let file = match disk.open(name, Access::Cached) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = vec![0; SUPERBLOCK_BYTES];
    match file.read_at(&mut bytes, 0) {
        Ok(()) => Ok(Some(Superblock::decode(&bytes))),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(Some(Err(SuperblockError::Damaged))),
        Err(error) => Err(error),
    }
}
