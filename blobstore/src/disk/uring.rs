//! Large writes through `io_uring`, by tokio-uring on a thread of its own; everything else as [`threads`](super::threads) does it.
//!
//! Which operation goes where is decided by measurement (`docs/decisions/0011-what-goes-through-io-uring.md`). What must stay true:
//!
//! - What a ring says is never the last word: without one, without a buffer of its own, or after an error that may be the ring's,
//!   a write is made by [`File::write_at`] as if there were no ring. Only a write that ended in full is said to be done.
//! - Nothing is flushed here, and no flush is ever linked to a write: a link is not broken by a write that came short.
//! - The buffers bound what is under way. Who finds none takes memory of his own, and a storage thread.
//! - Memory that was handed to the ring is touched by nobody until the kernel is through with it, and outlives the ring.
//! - Nothing here blocks the ring's thread, and nothing is computed on it.

#![expect(
    unsafe_code,
    reason = "registered memory is shared with the kernel by address; each place says what holds"
)]

use std::alloc::Layout;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::task::{Poll, Waker};
use std::time::Duration;

use rustix::io::Errno;
use tokio_uring::buf::fixed::FixedBufRegistry;
use tokio_uring::buf::{BoundedBuf as _, IoBuf, IoBufMut};

use super::threads::{ThreadsDisk, ThreadsFile};
use super::write::{Buffer, Source, Then, Write, Written};
use super::{Access, Counters, DIRECT_ALIGN_BYTES, Disk, File, Lock, LockError, NotDurable};
use crate::solo::WRITE_BYTES;
use crate::sync::{AbortOnPanic, Arc, Mutex, lock, thread};

/// Bytes of one registered buffer: what an upload writes at once.
const SLOT_BYTES: usize = WRITE_BYTES;

/// Registered buffers, and so writes under way: eight uploads at full depth. 16 MiB.
const SLOTS_MAX: usize = 32;

/// With fewer than one upload at full depth needs, a ring gains nothing.
const SLOTS_MIN: usize = 4;

/// Entries of the ring: above [`SLOTS_MAX`], so that it is never full.
const ENTRIES: u32 = 64;

/// How long the probe waits for a ring's first answer. It comes within microseconds, or never: tokio-uring drops the error of a
/// submission that the kernel refuses.
const PROBE_WAIT: Duration = Duration::from_secs(2);

const _: () = assert!(SLOTS_MAX < ENTRIES as usize);
const _: () = assert!(SLOT_BYTES.is_multiple_of(DIRECT_ALIGN_BYTES));

/// Why there is no ring. The words are for whoever runs the process.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RingError {
    /// The kernel makes none: it has no `io_uring`, or a sandbox forbids it, as container runtimes do.
    #[error("io_uring cannot be set up: {0}")]
    Setup(io::Error),
    /// The limit of locked memory is too low, on kernels and for users to whom it applies.
    #[error("io_uring cannot have {bytes} bytes of locked memory (RLIMIT_MEMLOCK): {error}")]
    Memory {
        /// What was asked for at least.
        bytes: usize,
        /// What the kernel said.
        error: io::Error,
    },
    /// It was set up, and answers nothing: a sandbox forbids its use.
    #[error("io_uring was set up and does not answer")]
    Silent,
}

/// A ring, its thread and its buffers. They end with the last file of the disk.
pub struct Ring {
    orders: Arc<Orders>,
    arena: Arc<Arena>,
    thread: Option<thread::JoinHandle<()>>,
}

/// A folder of the operating system that holds one store, whose large writes go through a ring.
#[derive(Debug)]
pub struct UringDisk {
    files: ThreadsDisk,
    ring: Arc<Ring>,
}

#[derive(Debug)]
struct UringFile {
    file: Arc<ThreadsFile>,
    ring: Arc<Ring>,
}

/// What the ring's thread is to do.
struct Order {
    fd: OwnedFd,
    /// Which counts what was written.
    file: Arc<ThreadsFile>,
    source: Source,
    offset_bytes: u64,
    then: Then,
}

/// The way to the ring's thread, bounded by the buffers.
#[derive(Default)]
struct Orders {
    state: Mutex<OrderState>,
}

#[derive(Default)]
struct OrderState {
    waiting: VecDeque<Order>,
    waker: Option<Waker>,
    closed: bool,
}

/// The memory of all buffers.
struct Arena {
    start: NonNull<u8>,
    layout: Layout,
    free: Mutex<Vec<usize>>,
}

/// A registered buffer on loan: whoever has it is the only one to touch its memory.
pub(super) struct Slot {
    arena: Arc<Arena>,
    index: usize,
    len: usize,
}

/// The same buffer, as the ring knows it: an address and a length, read by the kernel alone.
struct Registered {
    arena: Arc<Arena>,
    index: usize,
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring").field("buffers", &self.buffers()).finish_non_exhaustive()
    }
}

impl Ring {
    /// Sets a ring up and sees that it answers; its buffers are registered, as many as the system allows.
    ///
    /// # Errors
    /// See [`RingError`].
    pub fn start() -> Result<Ring, RingError> {
        let orders = Arc::<Orders>::default();
        let theirs = Arc::clone(&orders);
        let (ready, answer) = sync_channel(1);
        let thread = thread::Builder::new()
            .name("taffrail-ring".to_owned())
            .spawn(move || work(&theirs, &ready))
            .map_err(RingError::Setup)?;
        match answer.recv_timeout(PROBE_WAIT) {
            Ok(Ok(arena)) => Ok(Ring { orders, arena, thread: Some(thread) }),
            Ok(Err(error)) => {
                drop(thread.join());
                Err(error)
            }
            // The thread stays, asleep: a ring that does not answer cannot be ended in order either.
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Err(RingError::Silent),
        }
    }

    /// Buffers that were registered, each for one write.
    pub fn buffers(&self) -> usize {
        self.arena.layout.size() / SLOT_BYTES
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.orders.close();
        // The last user of the ring may be a write that has just ended; a thread cannot join itself.
        if let Some(thread) = self.thread.take().filter(|ring| ring.thread().id() != thread::current().id()) {
            drop(thread.join());
        }
    }
}

// The ring's thread.

fn work(orders: &Arc<Orders>, ready: &SyncSender<Result<Arc<Arena>, RingError>>) {
    let _guard = AbortOnPanic;
    let mut builder = tokio_uring::builder();
    let runtime = match tokio_uring::Runtime::new(builder.entries(ENTRIES)) {
        Ok(runtime) => runtime,
        Err(error) => return drop(ready.send(Err(RingError::Setup(error)))),
    };
    runtime.block_on(async {
        let started = match tokio_uring::no_op().await {
            Ok(()) => register(SLOTS_MAX),
            Err(error) => Err(RingError::Setup(error)),
        };
        match started {
            Ok((arena, registry)) => {
                if ready.send(Ok(arena)).is_ok() {
                    serve(orders, &Rc::new(registry)).await;
                }
            }
            Err(error) => drop(ready.send(Err(error))),
        }
    });
}

/// Registers as many buffers as can be had, `most` at most.
fn register(most: usize) -> Result<(Arc<Arena>, FixedBufRegistry<Registered>), RingError> {
    let mut count = most;
    loop {
        let arena = Arc::new(Arena::new(count));
        let registered = (0..count).map(|index| Registered { arena: Arc::clone(&arena), index });
        let registry = FixedBufRegistry::new(registered);
        match registry.register() {
            Ok(()) => return Ok((arena, registry)),
            Err(_) if count > SLOTS_MIN => count /= 2,
            Err(error) => return Err(RingError::Memory { bytes: count * SLOT_BYTES, error }),
        }
    }
}

async fn serve(orders: &Orders, registry: &Rc<FixedBufRegistry<Registered>>) {
    let mut under_way = Vec::new();
    while let Some(order) = orders.next().await {
        let registry = Rc::clone(registry);
        let task = tokio_uring::spawn(async move {
            // The runtime would keep a task's panic to itself.
            let _guard = AbortOnPanic;
            let written = write(&registry, &order.source, order.fd, order.offset_bytes, &order.file).await;
            (order.then)(written, order.source);
        });
        under_way.push(task);
        under_way.retain(|task| !task.is_finished());
    }
    // The runtime drops what it has not finished.
    for task in under_way {
        drop(task.await);
    }
}

/// Writes all of a slot.
async fn write(
    registry: &FixedBufRegistry<Registered>,
    source: &Source,
    fd: OwnedFd,
    offset_bytes: u64,
    counted: &ThreadsFile,
) -> Written {
    let file = tokio_uring::fs::File::from_std(fd.into());
    let Some(slot) = source.slot() else { return Written::NotHere };
    let Some(mut buffer) = registry.check_out(slot.index) else { return Written::NotHere };
    let mut done = 0;
    while done < slot.len {
        let part = buffer.slice(done..slot.len);
        let (result, part) = file.write_fixed_at(part, offset_bytes + done as u64).await;
        buffer = part.into_inner();
        match result {
            Ok(0) => return Written::Done(Err(io::ErrorKind::WriteZero.into())),
            Ok(written) => {
                done += written;
                counted.count_ring_written(written as u64);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if may_be_the_ring(&error) => return Written::NotHere,
            Err(error) => return Written::Done(Err(error)),
        }
    }
    Written::Done(Ok(()))
}

/// Whether an error may say something of the way rather than of the disk. `EINVAL` is also how a file system refuses `O_DIRECT`, and
/// [`ThreadsFile`] knows what to do about that.
fn may_be_the_ring(error: &io::Error) -> bool {
    let ring = [Errno::INVAL, Errno::AGAIN, Errno::OPNOTSUPP, Errno::NOMEM, Errno::CANCELED, Errno::PERM];
    ring.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

impl Orders {
    fn push(&self, order: Order) {
        let waker = {
            let mut state = lock(&self.state);
            state.waiting.push_back(order);
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn close(&self) {
        let waker = {
            let mut state = lock(&self.state);
            state.closed = true;
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The next order; none when there will be none.
    async fn next(&self) -> Option<Order> {
        std::future::poll_fn(|context| {
            let mut state = lock(&self.state);
            match state.waiting.pop_front() {
                Some(order) => Poll::Ready(Some(order)),
                None if state.closed => Poll::Ready(None),
                None => {
                    state.waker = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }
}

// Memory.

// SAFETY: an arena is a range of addresses that it owns; who may touch which part of it is settled by slots, of which there is one for
// each part.
unsafe impl Send for Arena {}
// SAFETY: as above; the free list has its lock.
unsafe impl Sync for Arena {}

impl Arena {
    fn new(slots: usize) -> Arena {
        let layout = Layout::from_size_align(slots * SLOT_BYTES, DIRECT_ALIGN_BYTES);
        let layout = layout.unwrap_or_else(|_| unreachable!("a few MiB fit the address space"));
        // SAFETY: the layout is not empty: there are at least `SLOTS_MIN` slots.
        let start = unsafe { std::alloc::alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { std::alloc::handle_alloc_error(layout) };
        Arena { start, layout, free: Mutex::new((0..slots).rev().collect()) }
    }

    fn slot(&self, index: usize) -> NonNull<u8> {
        debug_assert!((index + 1) * SLOT_BYTES <= self.layout.size(), "a slot lies in its arena");
        // SAFETY: the arena is `slots * SLOT_BYTES` long, and every index is below `slots`.
        unsafe { self.start.add(index * SLOT_BYTES) }
    }

    /// A buffer of `len` bytes, if one is free. The one used last comes first: it may still be in the processor's cache.
    fn lend(self: &Arc<Self>, len: usize) -> Option<Slot> {
        if len > SLOT_BYTES {
            return None;
        }
        let index = lock(&self.free).pop()?;
        Some(Slot { arena: Arc::clone(self), index, len })
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout. Slots and the ring's registry hold the arena, so neither is left; tokio-uring drops
        // the registry after it has waited for the last operation.
        unsafe { std::alloc::dealloc(self.start.as_ptr(), self.layout) }
    }
}

impl Slot {
    pub(super) fn as_slice(&self) -> &[u8] {
        // SAFETY: the memory is initialized and lies in the arena, which the slot holds. There is one slot for each index, because the
        // free list gives each out once, and while the kernel reads the memory the ring's thread keeps the slot, alone or with others that
        // read as well: nobody has it to change.
        unsafe { std::slice::from_raw_parts(self.arena.slot(self.index).as_ptr(), self.len) }
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.arena.slot(self.index).as_ptr(), self.len) }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        lock(&self.arena.free).push(self.index);
    }
}

// SAFETY: the address stays what it is for as long as the arena is held; its memory was zeroed, so all of it is initialized.
unsafe impl IoBuf for Registered {
    fn stable_ptr(&self) -> *const u8 {
        self.arena.slot(self.index).as_ptr()
    }

    fn bytes_init(&self) -> usize {
        SLOT_BYTES
    }

    fn bytes_total(&self) -> usize {
        SLOT_BYTES
    }
}

// SAFETY: as above. Nobody writes through it: the ring only writes to files, and the registry's own slices are never made.
unsafe impl IoBufMut for Registered {
    fn stable_mut_ptr(&mut self) -> *mut u8 {
        self.arena.slot(self.index).as_ptr()
    }

    unsafe fn set_init(&mut self, _len: usize) {
        // All of it is, always.
    }
}

// The disk.

impl UringDisk {
    /// The disk `files`, whose large writes go through `ring`.
    pub fn new(files: ThreadsDisk, ring: Ring) -> UringDisk {
        UringDisk { files, ring: Arc::new(ring) }
    }

    fn file(&self, file: Arc<ThreadsFile>, access: Access) -> Arc<dyn File> {
        match access {
            Access::Cached => file,
            Access::Direct => Arc::new(UringFile { file, ring: Arc::clone(&self.ring) }),
        }
    }
}

impl Disk for UringDisk {
    fn create(&self, name: &str, len_bytes: u64, access: Access) -> io::Result<Arc<dyn File>> {
        Ok(self.file(self.files.create_file(name, len_bytes, access)?, access))
    }

    fn open(&self, name: &str, access: Access) -> io::Result<Arc<dyn File>> {
        Ok(self.file(self.files.open_file(name, access)?, access))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.files.remove(name)
    }

    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        self.files.list(folder)
    }

    fn create_dir(&self, folder: &str) -> io::Result<()> {
        self.files.create_dir(folder)
    }

    fn sync_dir(&self, folder: &str) -> io::Result<()> {
        self.files.sync_dir(folder)
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.files.free_bytes()
    }

    fn lock(&self, owner: &str) -> Result<Box<dyn Lock>, LockError> {
        self.files.lock(owner)
    }

    fn lend(&self, len: usize) -> Buffer {
        self.ring.arena.lend(len).map_or_else(|| Buffer::own(len), Buffer::of_ring)
    }

    fn counters(&self) -> Counters {
        self.files.counters()
    }
}

impl File for UringFile {
    fn read_at(&self, buffer: &mut [u8], offset_bytes: u64) -> io::Result<()> {
        self.file.read_at(buffer, offset_bytes)
    }

    fn read_vectored_at(&self, buffers: &mut [io::IoSliceMut<'_>], offset_bytes: u64) -> io::Result<()> {
        self.file.read_vectored_at(buffers, offset_bytes)
    }

    fn will_read(&self, offset_bytes: u64, len_bytes: u64) {
        self.file.will_read(offset_bytes, len_bytes);
    }

    fn write_at(&self, bytes: &[u8], offset_bytes: u64) -> io::Result<()> {
        self.file.write_at(bytes, offset_bytes)
    }

    fn write_durably_at(&self, bytes: &[u8], offset_bytes: u64) -> Result<(), NotDurable> {
        self.file.write_durably_at(bytes, offset_bytes)
    }

    fn begin_write(&self, write: Write) -> Result<(), Write> {
        // A descriptor of its own for each write: a microsecond, and none to keep in mind or to close in time.
        let Ok(fd) = self.file.duplicate() else { return Err(write) };
        let (source, offset_bytes, then) = write.into_parts();
        if source.slot().is_none() {
            return Err(Write::new(source, offset_bytes, then));
        }
        let file = Arc::clone(&self.file);
        self.ring.orders.push(Order { fd, file, source, offset_bytes, then });
        Ok(())
    }

    fn share_from(&self, source: &std::fs::File, len_bytes: u64, offset_bytes: u64) -> io::Result<()> {
        self.file.share_from(source, len_bytes, offset_bytes)
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

    fn gains_from_zeros(&self) -> bool {
        self.file.gains_from_zeros()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::{Command, Stdio};
    use std::sync::mpsc::channel;

    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

    use super::*;
    use crate::units::Units;

    const SYS_IO_URING_SETUP: i64 = 425;
    const SYS_IO_URING_ENTER: i64 = 426;
    const SYS_IO_URING_REGISTER: i64 = 427;

    /// Tells the process that a test starts to do what ends it.
    const PANICS: &str = "TAFFRAIL_RING_PANICS";
    const SIGABRT: i32 = 6;

    /// A disk with a ring. None where there is none; `tests/engine/backends.rs` says so.
    fn disk() -> Option<(tempfile::TempDir, UringDisk)> {
        let ring = Ring::start().ok()?;
        let dir = tempfile::tempdir().unwrap();
        let disk = UringDisk::new(ThreadsDisk::open(dir.path()).unwrap(), ring);
        Some((dir, disk))
    }

    /// What a ring says on a thread to which these system calls are forbidden.
    fn started_without(calls: &'static [i64], errno: Errno) -> Result<Ring, RingError> {
        let forbidden = move || {
            let errno = SeccompAction::Errno(errno.raw_os_error().unsigned_abs());
            let rules = calls.iter().map(|call| (*call, Vec::new())).collect();
            let arch = std::env::consts::ARCH.try_into().unwrap();
            let filter = SeccompFilter::new(rules, SeccompAction::Allow, errno, arch).unwrap();
            seccompiler::apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
            Ring::start()
        };
        thread::spawn(forbidden).join().unwrap()
    }

    fn filled(disk: &UringDisk, len: usize, byte: u8) -> Buffer {
        let mut buffer = disk.lend(len);
        buffer.as_mut_slice().fill(byte);
        buffer
    }

    #[test]
    fn writes_that_were_begun_together_are_all_on_the_file_and_are_counted() {
        let Some((_dir, disk)) = disk() else { return };
        let file = disk.create("a", 0, Access::Direct).unwrap();
        let (done, all) = channel();
        for number in 0..SLOTS_MIN {
            let done = done.clone();
            let buffer = filled(&disk, SLOT_BYTES, u8::try_from(number).unwrap());
            let then = Box::new(move |written, buffer| done.send((written, buffer)).unwrap());
            file.begin_write(Write::new(Source::Buffer(buffer), (number * SLOT_BYTES) as u64, then)).unwrap();
        }
        for _ in 0..SLOTS_MIN {
            let (written, _) = all.recv().unwrap();
            assert!(matches!(written, Written::Done(Ok(()))), "{written:?}");
        }
        let read = std::fs::read(_dir.path().join("a")).unwrap();
        assert_eq!(read.len(), SLOTS_MIN * SLOT_BYTES);
        assert!(read.iter().enumerate().all(|(at, byte)| usize::from(*byte) == at / SLOT_BYTES));
        let counted = disk.counters();
        assert_eq!(
            (counted.written_bytes, counted.ring_written_bytes),
            (read.len() as u64, read.len() as u64)
        );
    }

    #[test]
    fn a_unit_is_written_from_where_it_lies_while_others_read_it() {
        let Some((dir, disk)) = disk() else { return };
        let file = disk.create("a", 0, Access::Direct).unwrap();
        let free = || lock(&disk.ring.arena.free).len();
        let (units, before) = (Arc::new(Units::default()), free());
        let mut unit = units.lend(&disk);
        unit.push(&[7; WRITE_BYTES]);
        let unit = Arc::new(unit);
        let (done, outcome) = channel();
        let then = Box::new(move |written, source| done.send((written, source)).unwrap());
        file.begin_write(Write::new(Source::Unit(Arc::clone(&unit)), 0, then)).unwrap();
        assert!(unit.as_slice().iter().all(|byte| *byte == 7));
        let (written, source) = outcome.recv().unwrap();
        assert!(matches!(written, Written::Done(Ok(()))), "{written:?}");
        assert_eq!(std::fs::read(dir.path().join("a")).unwrap(), [7; WRITE_BYTES]);
        assert_eq!(free(), before - 1, "it is lent as long as anybody has it");
        drop((source, unit));
        assert_eq!(free(), before);
    }

    #[test]
    fn who_finds_no_buffer_has_memory_of_his_own_and_no_ring() {
        let Some((_dir, disk)) = disk() else { return };
        let file = disk.create("a", 0, Access::Direct).unwrap();
        let mut lent: Vec<Buffer> = (0..disk.ring.buffers()).map(|_| disk.lend(4096)).collect();
        let refused =
            |buffer| file.begin_write(Write::new(Source::Buffer(buffer), 0, Box::new(|_, _| ()))).is_err();
        assert!(refused(disk.lend(4096)));
        drop(lent.pop());
        assert!(!refused(disk.lend(4096)), "one was given back");
        drop(lent);
        assert!(refused(disk.lend(SLOT_BYTES + 4096)), "longer than any");
    }

    #[test]
    fn what_only_the_threads_can_do_is_left_to_them() {
        let Some((dir, disk)) = disk() else { return };
        let file = disk.create("a", 0, Access::Direct).unwrap();
        let (done, outcome) = channel();
        // Direct access takes whole pages alone.
        let then = Box::new(move |written, buffer| done.send((written, buffer)).unwrap());
        file.begin_write(Write::new(Source::Buffer(filled(&disk, 4096, 1)), 1, then)).unwrap();
        let (written, buffer) = outcome.recv().unwrap();
        if matches!(written, Written::NotHere) {
            file.write_at(buffer.as_slice(), 1).unwrap();
        }
        assert_eq!(std::fs::read(dir.path().join("a")).unwrap()[1..], [1; 4096]);
    }

    #[test]
    fn files_through_the_cache_and_files_for_reading_have_no_ring() {
        let Some((dir, disk)) = disk() else { return };
        let refused = |disk: &UringDisk, file: &dyn File| {
            file.begin_write(Write::new(Source::Buffer(disk.lend(4096)), 0, Box::new(|_, _| ()))).is_err()
        };
        assert!(refused(&disk, &*disk.create("a", 0, Access::Cached).unwrap()));
        let files = ThreadsDisk::open_read_only(dir.path()).unwrap();
        let reader = UringDisk::new(files, Ring::start().unwrap());
        assert!(refused(&reader, &*reader.open("a", Access::Direct).unwrap()));
    }

    #[test]
    fn a_ring_that_is_forbidden_is_an_error_that_says_so() {
        for errno in [Errno::PERM, Errno::NOSYS] {
            let error = started_without(&[SYS_IO_URING_SETUP], errno).unwrap_err();
            let RingError::Setup(inner) = &error else { panic!("{error}") };
            // The sandbox of this run may have forbidden it first.
            assert!(matches!(Errno::from_io_error(inner), Some(Errno::PERM | Errno::NOSYS)), "{error}");
            assert!(error.to_string().starts_with("io_uring cannot be set up: "), "{error}");
        }
    }

    /// tokio-uring drops the error of a submission, and the ring would never answer.
    #[test]
    fn a_ring_that_may_be_made_and_not_used_is_no_ring() {
        let Err(enter) = started_without(&[SYS_IO_URING_ENTER], Errno::PERM) else { panic!("it started") };
        let Err(register) = started_without(&[SYS_IO_URING_REGISTER], Errno::PERM) else {
            panic!("it started")
        };
        if disk().is_some() {
            assert!(matches!(enter, RingError::Silent), "{enter}");
            assert!(matches!(register, RingError::Memory { .. }), "{register}");
        }
    }

    /// The runtime of the ring's thread catches panics of its tasks, and whoever waits for the write would wait for ever.
    #[test]
    fn a_write_whose_end_panics_ends_the_process() {
        let name = "disk::uring::tests::a_write_whose_end_panics_ends_the_process";
        if std::env::vars_os().any(|(key, _)| key == PANICS) {
            let Some((_dir, disk)) = disk() else { std::process::abort() };
            let file = disk.create("a", 0, Access::Direct).unwrap();
            let then = Box::new(|_, _| panic!("as the end of a write never should"));
            file.begin_write(Write::new(Source::Buffer(disk.lend(4096)), 0, then)).unwrap();
            // Waits for the ring's thread, which does not come.
            drop((file, disk));
            return;
        }
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args([name, "--exact"]).env(PANICS, "1").stdout(Stdio::null()).stderr(Stdio::null());
        let status = child.status().unwrap();
        assert_eq!(status.signal(), Some(SIGABRT), "{status}");
    }
}
