//! A simulated disk that a test meddles with: it sees solo files opened and read, and the flushes of the log and of folders, and may
//! change what comes of them.

use std::io;
use std::sync::Arc;

use taffrail_blobstore::disk::sim::SimDisk;
use taffrail_blobstore::disk::{Access, Counters, Disk, File, Lock, LockError};

/// What a test does to a disk.
pub(crate) trait Meddler: std::fmt::Debug + Send + Sync + 'static {
    /// A solo file was opened.
    fn opened_solo(&self) {}

    /// A read of a solo file, which was done unless it is not aligned.
    fn read(&self, _access: Access, _buffer: &mut [u8], _offset_bytes: u64) {}

    /// A flush of a log segment, which was done.
    fn sync_log(&self) {}

    /// A flush of a folder, which is then done.
    ///
    /// # Errors
    /// What the flush answers, undone.
    fn sync_dir(&self, _folder: &str) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
pub(crate) struct Meddled<M> {
    disk: SimDisk,
    meddler: Arc<M>,
}

#[derive(Debug)]
struct MeddledFile<M> {
    file: Arc<dyn File>,
    is_log: bool,
    access: Access,
    meddler: Arc<M>,
}

impl<M: Meddler> Meddled<M> {
    fn wrap(&self, name: &str, file: Arc<dyn File>, access: Access) -> Arc<dyn File> {
        let is_log = name.starts_with("log/");
        if !is_log && !name.starts_with("solo/") {
            return file;
        }
        Arc::new(MeddledFile { file, is_log, access, meddler: Arc::clone(&self.meddler) })
    }

    pub(crate) fn on(disk: &SimDisk, meddler: &Arc<M>) -> Arc<dyn Disk> {
        Arc::new(Meddled { disk: disk.clone(), meddler: Arc::clone(meddler) })
    }
}

impl<M: Meddler> Disk for Meddled<M> {
    fn create(&self, name: &str, len_bytes: u64, access: Access) -> io::Result<Arc<dyn File>> {
        let file = self.disk.create(name, len_bytes, access)?;
        // What is being written to a solo file is not read through it.
        Ok(if name.starts_with("log/") { self.wrap(name, file, access) } else { file })
    }

    fn open(&self, name: &str, access: Access) -> io::Result<Arc<dyn File>> {
        let file = self.disk.open(name, access)?;
        if name.starts_with("solo/") {
            self.meddler.opened_solo();
        }
        Ok(self.wrap(name, file, access))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.disk.remove(name)
    }

    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        self.disk.list(folder)
    }

    fn create_dir(&self, folder: &str) -> io::Result<()> {
        self.disk.create_dir(folder)
    }

    fn sync_dir(&self, folder: &str) -> io::Result<()> {
        self.meddler.sync_dir(folder)?;
        self.disk.sync_dir(folder)
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.disk.free_bytes()
    }

    fn lock(&self, owner: &str) -> Result<Box<dyn Lock>, LockError> {
        self.disk.lock(owner)
    }

    fn counters(&self) -> Counters {
        self.disk.counters()
    }
}

impl<M: Meddler> File for MeddledFile<M> {
    fn read_at(&self, buffer: &mut [u8], offset_bytes: u64) -> io::Result<()> {
        let read = self.file.read_at(buffer, offset_bytes);
        if !self.is_log {
            self.meddler.read(self.access, buffer, offset_bytes);
        }
        read
    }

    fn write_at(&self, bytes: &[u8], offset_bytes: u64) -> io::Result<()> {
        self.file.write_at(bytes, offset_bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()?;
        if self.is_log {
            self.meddler.sync_log();
        }
        Ok(())
    }

    fn allocate(&self, len_bytes: u64) -> io::Result<()> {
        self.file.allocate(len_bytes)
    }

    fn truncate(&self, len_bytes: u64) -> io::Result<()> {
        self.file.truncate(len_bytes)
    }

    fn len_bytes(&self) -> io::Result<u64> {
        self.file.len_bytes()
    }

    fn gains_from_zeros(&self) -> bool {
        self.file.gains_from_zeros()
    }
}
