//! What the machine can do: the same work with everything left out that a registry adds.
//!
//! `receive` is the bare push: receive, SHA-256, write past the page cache, flush once. One thread receives and hashes,
//! one writes. [`GroupCommit`] is the bare small commit: whoever waits when the last write returns shares the next one.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result, anyhow, ensure};
use rustix::fs::OFlags;
use sha2::{Digest as _, Sha256};
use tokio::sync::oneshot;

use crate::content::Blob;

/// Alignment of writes past the page cache.
const ALIGN_BYTES: usize = 4096;

/// Length of one write of `receive`, and how many are under way or being filled.
const WRITE_BYTES: usize = 1 << 20;
const BUFFERS: usize = 4;

/// Bytes hashed at once: what was just received is still in the cache.
const HASH_BYTES: usize = 256 << 10;

/// The file that small commits go to, over and over, like a segment of a log.
const COMMIT_FILE_BYTES: u64 = 256 << 20;

/// Most bytes of one shared write.
const BATCH_BYTES_MAX: usize = 8 << 20;

/// Memory at an address that writes past the page cache accept.
#[derive(Debug)]
struct Aligned {
    memory: Vec<u8>,
    start: usize,
    bytes: usize,
}

impl Aligned {
    fn new(bytes: usize) -> Self {
        let memory = vec![0; bytes + ALIGN_BYTES];
        let start = memory.as_ptr().align_offset(ALIGN_BYTES).min(ALIGN_BYTES);
        Self { memory, start, bytes }
    }

    fn slice(&self) -> &[u8] {
        self.memory.get(self.start..self.start + self.bytes).unwrap_or_default()
    }

    fn slice_mut(&mut self) -> &mut [u8] {
        self.memory.get_mut(self.start..self.start + self.bytes).unwrap_or_default()
    }
}

#[expect(clippy::cast_possible_wrap, reason = "flags of open(2) are small")]
fn direct(path: &Path, more: OFlags) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(false)
        .custom_flags((OFlags::DIRECT | more).bits() as i32)
        .open(path)
        .with_context(|| path.display().to_string())
}

/// Serves bare pushes until it is killed: a length of eight bytes, so many bytes; the answer is their SHA-256, once they
/// are durable. Says on standard output where it listens.
pub(crate) fn receive(dir: &Path) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    writeln!(std::io::stdout(), "{}", listener.local_addr()?)?;
    let next = Arc::new(AtomicU64::new(0));
    for socket in listener.incoming() {
        let (mut socket, dir, next) = (socket?, dir.to_path_buf(), Arc::clone(&next));
        std::thread::spawn(move || {
            let mut length = [0; 8];
            while socket.read_exact(&mut length).is_ok() {
                let path = dir.join(format!("{}", next.fetch_add(1, Ordering::Relaxed)));
                let answer = receive_one(&mut socket, &path, u64::from_le_bytes(length));
                // The client sees a closed connection.
                let Ok(digest) = answer else { return };
                if socket.write_all(&digest).is_err() {
                    return;
                }
            }
        });
    }
    Ok(())
}

fn receive_one(socket: &mut TcpStream, path: &Path, bytes: u64) -> Result<[u8; 32]> {
    let file = direct(path, OFlags::empty())?;
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes.max(1))?;
    let (full, to_write) = sync_channel::<(Aligned, usize)>(BUFFERS);
    let (free, to_fill) = sync_channel::<Aligned>(BUFFERS);
    for _ in 0..BUFFERS {
        free.send(Aligned::new(WRITE_BYTES))?;
    }
    let writer = std::thread::spawn(move || write_all(&file, &to_write, &free, bytes));
    let hash = hash_all(socket, bytes, &to_fill, &full);
    drop(full);
    writer.join().map_err(|_| anyhow!("the writer panicked"))??;
    hash
}

fn hash_all(
    socket: &mut TcpStream,
    bytes: u64,
    free: &Receiver<Aligned>,
    full: &SyncSender<(Aligned, usize)>,
) -> Result<[u8; 32]> {
    let (mut hash, mut left) = (Sha256::new(), bytes);
    while left > 0 {
        let mut buffer = free.recv()?;
        let unit = usize::try_from(left).unwrap_or(usize::MAX).min(WRITE_BYTES);
        let mut filled = 0;
        while filled < unit {
            let until = unit.min(filled + HASH_BYTES);
            let space = buffer.slice_mut().get_mut(filled..until).unwrap_or_default();
            let count = socket.read(space)?;
            ensure!(count > 0, "the client left");
            hash.update(space.get(..count).unwrap_or_default());
            filled += count;
        }
        left -= unit as u64;
        full.send((buffer, unit))?;
    }
    Ok(hash.finalize().into())
}

fn write_all(
    file: &File,
    full: &Receiver<(Aligned, usize)>,
    free: &SyncSender<Aligned>,
    bytes: u64,
) -> Result<()> {
    let mut offset = 0;
    for (buffer, unit) in full {
        let padded = unit.next_multiple_of(ALIGN_BYTES);
        file.write_all_at(buffer.slice().get(..padded).unwrap_or_default(), offset)?;
        offset += unit as u64;
        // Nobody fills buffers any more after the last one.
        let _ = free.try_send(buffer);
    }
    file.set_len(bytes)?;
    Ok(file.sync_data()?)
}

/// A client of [`receive`].
#[derive(Debug)]
pub(crate) struct BareConnection(TcpStream);

impl BareConnection {
    pub(crate) fn open(host: &str) -> Result<Self> {
        Ok(Self(TcpStream::connect(host)?))
    }

    /// Pushes a blob and waits until it is durable.
    pub(crate) fn push(&mut self, blob: &Blob) -> Result<()> {
        self.0.write_all(&blob.bytes.to_le_bytes())?;
        for part in blob.parts() {
            self.0.write_all(part)?;
        }
        let mut digest = [0; 32];
        self.0.read_exact(&mut digest).context("the answer of a bare push")?;
        ensure!(blob.digest.ends_with(&hex::encode(digest)), "the digest of a bare push");
        Ok(())
    }
}

#[derive(Debug, Default)]
struct Queue {
    bytes: Vec<u8>,
    waiters: Vec<oneshot::Sender<()>>,
    closed: bool,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
}

impl Shared {
    fn locked(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Small commits that share their flushes: one thread takes what waits, writes it through to the disk in one write, and
/// wakes everybody.
#[derive(Debug)]
pub(crate) struct GroupCommit {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<Result<()>>>,
}

impl GroupCommit {
    /// Over a file that is written with zeros first, so that no commit has to change the file system's own records.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        let path: PathBuf = dir.join("commits");
        let file = direct(&path, OFlags::empty())?;
        let zeros = Aligned::new(BATCH_BYTES_MAX);
        for offset in (0..COMMIT_FILE_BYTES).step_by(BATCH_BYTES_MAX) {
            file.write_all_at(zeros.slice(), offset)?;
        }
        file.sync_all()?;
        let file = direct(&path, OFlags::DSYNC)?;
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let writer = std::thread::spawn(move || commit_all(&theirs, &file));
        Ok(Self { shared, writer: Some(writer) })
    }

    /// Returns once the bytes are durable.
    pub(crate) async fn commit(&self, bytes: &[u8]) -> Result<()> {
        let (sender, done) = oneshot::channel();
        {
            let mut queue = self.shared.locked();
            queue.bytes.extend_from_slice(bytes);
            queue.waiters.push(sender);
        }
        self.shared.wake.notify_one();
        done.await.context("the writer ended")
    }
}

impl Drop for GroupCommit {
    fn drop(&mut self) {
        self.shared.locked().closed = true;
        self.shared.wake.notify_one();
        if let Some(writer) = self.writer.take() {
            // What it failed with, its callers were told.
            drop(writer.join());
        }
    }
}

fn commit_all(shared: &Shared, file: &File) -> Result<()> {
    let mut buffer = Aligned::new(BATCH_BYTES_MAX);
    let (mut taken, mut offset) = (Queue::default(), 0_u64);
    loop {
        {
            let mut queue = shared.locked();
            while queue.waiters.is_empty() {
                if queue.closed {
                    return Ok(());
                }
                queue = shared.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
            std::mem::swap(&mut *queue, &mut taken);
            queue.closed = taken.closed;
        }
        let padded = taken.bytes.len().next_multiple_of(ALIGN_BYTES);
        let space = buffer.slice_mut();
        ensure!(padded <= space.len(), "more writers than one write takes");
        space.get_mut(..taken.bytes.len()).unwrap_or_default().copy_from_slice(&taken.bytes);
        if offset + padded as u64 > COMMIT_FILE_BYTES {
            offset = 0;
        }
        file.write_all_at(space.get(..padded).unwrap_or_default(), offset)?;
        offset += padded as u64;
        taken.bytes.clear();
        for waiter in taken.waiters.drain(..) {
            // A writer may have given up.
            let _ = waiter.send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligned_memory_is_aligned() {
        let mut memory = Aligned::new(2 * ALIGN_BYTES);
        assert_eq!(memory.slice().as_ptr().align_offset(ALIGN_BYTES), 0);
        assert_eq!(memory.slice_mut().len(), 2 * ALIGN_BYTES);
    }
}
