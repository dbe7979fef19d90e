//! A disk that watches in which order it is used by several threads.
//!
//! On a simulated disk a write takes no time, so that an engine which flushes a file while a write to it is still under way
//! would hardly ever be caught. This one lets other threads run in the middle of every write, and notes such a flush.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use taffrail_blobstore::disk::sim::SimDisk;
use taffrail_blobstore::disk::{Access, Counters, Disk, File, Lock, LockError, NotDurable};

/// Turns given away in the middle of a write.
const YIELDS: u32 = 20;

#[derive(Debug)]
pub(crate) struct Watched {
    disk: SimDisk,
    /// Flushes of a file while a write to it was under way.
    pub(crate) hasty_flushes: Arc<AtomicU64>,
}

#[derive(Debug)]
struct WatchedFile {
    file: Arc<dyn File>,
    writes: AtomicU64,
    hasty_flushes: Arc<AtomicU64>,
}

impl Watched {
    pub(crate) fn new(disk: SimDisk) -> Watched {
        Watched { disk, hasty_flushes: Arc::default() }
    }

    fn watch(&self, file: Arc<dyn File>) -> Arc<dyn File> {
        Arc::new(WatchedFile {
            file,
            writes: AtomicU64::new(0),
            hasty_flushes: Arc::clone(&self.hasty_flushes),
        })
    }
}

impl Disk for Watched {
    fn create(&self, name: &str, len_bytes: u64, access: Access) -> io::Result<Arc<dyn File>> {
        self.disk.create(name, len_bytes, access).map(|file| self.watch(file))
    }

    fn open(&self, name: &str, access: Access) -> io::Result<Arc<dyn File>> {
        self.disk.open(name, access).map(|file| self.watch(file))
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

impl File for WatchedFile {
    fn read_at(&self, buffer: &mut [u8], offset_bytes: u64) -> io::Result<()> {
        self.file.read_at(buffer, offset_bytes)
    }

    fn write_at(&self, bytes: &[u8], offset_bytes: u64) -> io::Result<()> {
        self.writes.fetch_add(1, Ordering::SeqCst);
        (0..YIELDS).for_each(|_| std::thread::yield_now());
        let written = self.file.write_at(bytes, offset_bytes);
        self.writes.fetch_sub(1, Ordering::SeqCst);
        written
    }

    fn write_durably_at(&self, bytes: &[u8], offset_bytes: u64) -> Result<(), NotDurable> {
        self.file.write_durably_at(bytes, offset_bytes)
    }

    fn sync(&self) -> io::Result<()> {
        if self.writes.load(Ordering::SeqCst) > 0 {
            self.hasty_flushes.fetch_add(1, Ordering::SeqCst);
        }
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

    fn gains_from_zeros(&self) -> bool {
        self.file.gains_from_zeros()
    }
}
