//! A simulated disk that a test meddles with: it sees the reads of solo files and the flushes of folders, and may change what comes
//! of them.

use std::io;
use std::sync::Arc;

use taffrail_blobstore::disk::sim::SimDisk;
use taffrail_blobstore::disk::{Access, Counters, Disk, File, Lock, LockError};

/// What a test does to a disk.
pub(crate) trait Meddler: std::fmt::Debug + Send + Sync + 'static {
    /// A read of a solo file, which was done unless it is not aligned.
    fn read(&self, _access: Access, _buffer: &mut [u8], _offset_bytes: u64) {}

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
    access: Access,
    meddler: Arc<M>,
}

impl<M: Meddler> Meddled<M> {
    pub(crate) fn on(disk: &SimDisk, meddler: &Arc<M>) -> Arc<dyn Disk> {
        Arc::new(Meddled { disk: disk.clone(), meddler: Arc::clone(meddler) })
    }
}

impl<M: Meddler> Disk for Meddled<M> {
    fn create(&self, name: &str, len_bytes: u64, access: Access) -> io::Result<Arc<dyn File>> {
        self.disk.create(name, len_bytes, access)
    }

    fn open(&self, name: &str, access: Access) -> io::Result<Arc<dyn File>> {
        let file = self.disk.open(name, access)?;
        if name.starts_with("solo/") {
            Ok(Arc::new(MeddledFile { file, access, meddler: Arc::clone(&self.meddler) }))
        } else {
            Ok(file)
        }
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
        self.meddler.read(self.access, buffer, offset_bytes);
        read
    }

    fn write_at(&self, bytes: &[u8], offset_bytes: u64) -> io::Result<()> {
        self.file.write_at(bytes, offset_bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()
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
}
