//! Files mapped into memory, read-only, and the guard that makes a media error under a mapping harm one read alone.
//!
//! A page of a mapping that the device cannot give, or that lies behind the end of a file that was cut short, is answered with
//! SIGBUS, which ends a process that does not expect it. Here a signal handler knows all mappings: a fault inside of one has a page
//! of zeros put in place of the page that is missing, and the mapping is marked as damaged. Checksums then fail for whoever reads
//! there, as they do for any other damage. A SIGBUS elsewhere ends the process as it always did.
//!
//! What must stay true:
//!
//! - Only files that nobody writes to any more are mapped. A slice of memory that changes is none, and pages of the page cache
//!   go stale under writes past it.
//! - Nothing of a mapping is believed before a checksum over it held. Once [`Mapping::is_damaged`], zeros stay for as long as the
//!   mapping does: it is to be thrown away, and the place read in another way.
//! - Slices that are to be sent are never read by us, only by the kernel, for which a page that is missing is an error of that call. They
//!   come from a mapping of their own: zeros put under one that is checked must not go out behind another reader's check.
//! - The handler takes no lock, allocates nothing and calls nothing but `mmap`, `signal` and `raise`.

#![expect(unsafe_code, reason = "mmap and signal handlers have no safe form; docs say what holds")]

use std::collections::BTreeMap;
use std::ffi::{c_int, c_void};
use std::fmt;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, Weak};

use bytes::Bytes;

/// Mappings of the process, at most: a sixteenth of the areas that Linux gives a process (`vm.max_map_count`, 65,530 by default),
/// because each damaged page may split one in three, and allocators need areas too.
pub const MAPPINGS_MAX: usize = 4096;

/// Pages that are asked about in one call.
const PROBE_PAGES: usize = 256;

/// A file mapped whole, read-only. Clones and slices share the mapping; it ends with the last of them.
///
/// A read may have to wait for the disk like a read of the file.
#[derive(Clone)]
pub struct Mapping {
    all: Bytes,
    area: Arc<Area>,
}

/// Memory that was found to be part of a mapping, which it keeps.
pub struct Found {
    area: Arc<Area>,
    range: Range<usize>,
}

/// A mapped range of addresses, in its place of the registry.
struct Area {
    start: *const u8,
    len: usize,
    file: Arc<OwnedFd>,
    /// Whether the system says which pages are in memory: it says so of files that the process may write, and of others that all are.
    is_told: bool,
    slot: &'static Slot,
}

// SAFETY: the memory is read-only, stays mapped for as long as the area lives, and belongs to no thread.
unsafe impl Send for Area {}
// SAFETY: as above.
unsafe impl Sync for Area {}

/// What keeps the area while slices of it are about.
struct Owner(Arc<Area>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        self.0.as_slice()
    }
}

/// A place of the registry, which the signal handler reads at any moment.
struct Slot {
    is_taken: AtomicBool,
    /// First address; 0 while there is nothing to be found.
    start: AtomicUsize,
    /// Address behind the last.
    end: AtomicUsize,
    is_damaged: AtomicBool,
}

/// All mappings. The lowest free slot is taken, so that few pages of it are ever touched.
static SLOTS: [Slot; MAPPINGS_MAX] = [const { Slot::new() }; MAPPINGS_MAX];

/// The same by first address, for whoever may wait for a lock.
static AREAS: RwLock<BTreeMap<usize, Weak<Area>>> = RwLock::new(BTreeMap::new());

/// Bytes of a page; 0 before the handler stands.
static PAGE_BYTES: AtomicUsize = AtomicUsize::new(0);

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapping").field("len_bytes", &self.all.len()).finish_non_exhaustive()
    }
}

impl Mapping {
    /// Maps the first `len_bytes` of a file that nobody writes to any more.
    ///
    /// # Errors
    /// `OutOfMemory` when there are [`MAPPINGS_MAX`] already; `InvalidInput` for no bytes or more than there are addresses; whatever
    /// the operating system says.
    pub(super) fn new(file: &Arc<OwnedFd>, len_bytes: u64) -> io::Result<Mapping> {
        guard()?;
        let len = usize::try_from(len_bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
        let area = Arc::new(Area::new(file, len)?);
        let mut areas = AREAS.write().unwrap_or_else(PoisonError::into_inner);
        areas.insert(area.start.addr(), Arc::downgrade(&area));
        drop(areas);
        Ok(Mapping { all: Bytes::from_owner(Owner(Arc::clone(&area))), area })
    }

    /// All of it. What it holds is to be checked before it is used, each time.
    pub fn bytes(&self) -> &Bytes {
        &self.all
    }

    /// Whether a page of it could not be had since it was made. Zeros stand there; the mapping is good for nothing new.
    pub fn is_damaged(&self) -> bool {
        self.area.slot.is_damaged.load(Ordering::Acquire)
    }

    /// Whether all pages of `range` are in memory and whole, so that reading them waits for nothing. It may change at any moment; no
    /// when it cannot be known.
    pub fn is_resident(&self, range: Range<usize>) -> bool {
        self.area.is_resident(range)
    }
}

/// The mapping that `bytes` are a part of, if they are.
pub fn find(bytes: &[u8]) -> Option<Found> {
    let start = bytes.as_ptr().addr();
    let areas = AREAS.read().unwrap_or_else(PoisonError::into_inner);
    let area = areas.range(..=start).next_back()?.1.upgrade()?;
    drop(areas);
    let from = start - area.start.addr();
    let range = from..from + bytes.len();
    (range.end <= area.len).then_some(Found { area, range })
}

impl fmt::Debug for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Found").field("range", &self.range).finish_non_exhaustive()
    }
}

impl AsFd for Found {
    /// The mapped file.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.area.file.as_fd()
    }
}

impl Found {
    /// Where the memory begins in the file.
    pub fn offset_bytes(&self) -> u64 {
        self.range.start as u64
    }

    /// As [`Mapping::is_resident`], of the first `len` bytes of it.
    pub fn is_resident(&self, len: usize) -> bool {
        self.area.is_resident(self.first(len))
    }

    /// Has the first `len` bytes of it read from the disk, and waits for that. What comes of it shows when they are sent.
    pub fn bring(&self, len: usize) {
        let range = self.area.pages(self.first(len));
        // SAFETY: the range lies in the area. It changes no byte, and a page that cannot be had is an error, not a signal.
        unsafe {
            let start = self.area.start.add(range.start).cast_mut().cast();
            libc::madvise(start, range.len(), libc::MADV_POPULATE_READ);
        }
    }

    fn first(&self, len: usize) -> Range<usize> {
        self.range.start..self.range.end.min(self.range.start.saturating_add(len))
    }
}

impl Area {
    fn new(file: &Arc<OwnedFd>, len: usize) -> io::Result<Area> {
        let slot = Slot::take().ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists; the descriptor is open.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ,
                libc::MAP_SHARED | libc::MAP_NORESERVE,
                file.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            let error = io::Error::last_os_error();
            slot.free();
            return Err(error);
        }
        slot.show(start.addr(), len);
        // SAFETY: asks for the flags of a descriptor that is open.
        let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
        let is_told = flags & libc::O_ACCMODE == libc::O_RDWR;
        Ok(Area { start: start.cast_const().cast(), len, file: Arc::clone(file), is_told, slot })
    }

    /// The range, from the beginning of its first page on.
    fn pages(&self, range: Range<usize>) -> Range<usize> {
        let page_bytes = PAGE_BYTES.load(Ordering::Relaxed);
        range.start / page_bytes * page_bytes..range.end.min(self.len)
    }

    fn is_resident(&self, range: Range<usize>) -> bool {
        let (range, page_bytes) = (self.pages(range), PAGE_BYTES.load(Ordering::Relaxed));
        self.is_told
            && range.clone().step_by(PROBE_PAGES * page_bytes).all(|from| {
                let len = (range.end - from).min(PROBE_PAGES * page_bytes);
                let mut pages = [0_u8; PROBE_PAGES];
                let pages = &mut pages[..len.div_ceil(page_bytes)];
                // mincore and not cachestat: it counts a page only when the disk has filled it.
                // SAFETY: the range lies in the area, and there is a byte for each of its pages.
                let asked =
                    unsafe { libc::mincore(self.start.add(from).cast_mut().cast(), len, pages.as_mut_ptr()) };
                asked == 0 && pages.iter().all(|page| page & 1 == 1)
            })
    }

    fn as_slice(&self) -> &[u8] {
        // SAFETY: `start` and `len` are what mmap gave, readable until the area is dropped. Nobody writes to the file; what may change
        // is that a page that could not be read turns to zeros, which no earlier read can have seen otherwise than by a fault.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        AREAS.write().unwrap_or_else(PoisonError::into_inner).remove(&self.start.addr());
        self.slot.hide();
        // SAFETY: the range is this area's own, and nothing refers to it any more. It cannot fail for a range that is mapped, unless
        // the areas of the process are used up; then the range stays, and so does its slot's end: nowhere.
        unsafe { libc::munmap(self.start.cast_mut().cast(), self.len) };
        self.slot.free();
    }
}

impl Slot {
    const fn new() -> Slot {
        Slot {
            is_taken: AtomicBool::new(false),
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            is_damaged: AtomicBool::new(false),
        }
    }

    fn take() -> Option<&'static Slot> {
        let is_free = |slot: &&Slot| {
            !slot.is_taken.load(Ordering::Relaxed) && !slot.is_taken.swap(true, Ordering::Acquire)
        };
        SLOTS.iter().find(is_free)
    }

    fn show(&self, start: usize, len: usize) {
        self.is_damaged.store(false, Ordering::Relaxed);
        self.end.store(start + len, Ordering::SeqCst);
        self.start.store(start, Ordering::SeqCst);
    }

    fn hide(&self) {
        self.start.store(0, Ordering::SeqCst);
    }

    fn free(&self) {
        self.is_taken.store(false, Ordering::Release);
    }

    /// The range of addresses. None while it is being changed: then nobody can fault in it.
    fn range(&self) -> Option<Range<usize>> {
        let start = self.start.load(Ordering::SeqCst);
        let end = self.end.load(Ordering::SeqCst);
        (start != 0 && self.start.load(Ordering::SeqCst) == start).then_some(start..end)
    }
}

/// Puts the handler in place, once in a process.
fn guard() -> io::Result<()> {
    static PLACED: OnceLock<bool> = OnceLock::new();
    let place = || {
        // SAFETY: asks for a number.
        let page_bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        let Ok(page_bytes) = usize::try_from(page_bytes) else { return false };
        PAGE_BYTES.store(page_bytes, Ordering::SeqCst);
        // SAFETY: all zeros is a valid sigaction: no flags, an empty mask.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_bus_error;
        action.sa_sigaction = handler as *const () as usize;
        // On the stack for signals where the thread has one: the standard library gives each thread such a stack.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: the handler has the signature that SA_SIGINFO asks for, and does only what a handler may.
        unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) == 0 }
    };
    if *PLACED.get_or_init(place) {
        Ok(())
    } else {
        Err(io::Error::other("no handler for SIGBUS can be had"))
    }
}

/// The handler. It may interrupt any code of the process at any instruction that touches memory.
extern "C" fn on_bus_error(_signal: c_int, info: *mut libc::siginfo_t, _context: *mut c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes a valid siginfo; for a fault `si_addr` is the address that was touched.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr().addr()) };
    let is_fault = code == libc::BUS_ADRERR || code == libc::BUS_MCEERR_AR;
    if is_fault && put_zeros(address) {
        return;
    }
    // SAFETY: both are allowed in a handler. A fault happens again at the same instruction, now by default; a signal that was sent
    // does not, and is sent again.
    unsafe {
        libc::signal(libc::SIGBUS, libc::SIG_DFL);
        if !is_fault {
            libc::raise(libc::SIGBUS);
        }
    }
}

/// Puts a page of zeros at the address, if it lies in a mapping. Called by the handler.
fn put_zeros(address: usize) -> bool {
    let is_hit = |slot: &&Slot| slot.range().is_some_and(|range| range.contains(&address));
    let Some(slot) = SLOTS.iter().find(is_hit) else { return false };
    // First, so that nobody sees zeros of a mapping that says it is whole.
    slot.is_damaged.store(true, Ordering::SeqCst);
    let page_bytes = PAGE_BYTES.load(Ordering::SeqCst);
    let page = address / page_bytes * page_bytes;
    // SAFETY: `errno` belongs to this thread, and what the handler interrupted may be about to read it.
    let errno = unsafe { *libc::__errno_location() };
    // SAFETY: the page lies in a mapping of this module, whose faulting reader keeps it from being unmapped, and which is only ever
    // read. mmap is a bare system call.
    let mapped = unsafe {
        libc::mmap(
            std::ptr::without_provenance_mut(page),
            page_bytes,
            libc::PROT_READ,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
            -1,
            0,
        )
    };
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
    mapped != libc::MAP_FAILED
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::{Command, Stdio};

    use super::*;

    /// Tells the process that this test starts how to die.
    const DIES: &str = "TAFFRAIL_MAPPING_DIES";
    /// A multiple of whatever a page is.
    const PAGE: usize = 64 * 1024;
    const PAGES: usize = 8;

    fn file() -> std::fs::File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; PAGES * PAGE]).unwrap();
        file
    }

    fn mapping(file: &std::fs::File) -> Mapping {
        Mapping::new(&Arc::new(file.try_clone().unwrap().into()), (PAGES * PAGE) as u64).unwrap()
    }

    #[test]
    fn slices_keep_the_mapping_of_a_file_that_is_gone() {
        let mapping = mapping(&file());
        let slice = mapping.bytes().slice(PAGE..2 * PAGE);
        let area = Arc::downgrade(&mapping.area);
        drop(mapping);
        assert_eq!(slice, vec![7; PAGE]);
        drop(slice);
        assert!(area.upgrade().is_none(), "it ends with its last slice");
    }

    #[test]
    fn what_a_file_lost_reads_as_zeros_and_marks_that_mapping_alone() {
        let (cut, whole) = (file(), file());
        let (of_cut, of_whole) = (mapping(&cut), mapping(&whole));
        cut.set_len((2 * PAGE) as u64).unwrap();
        assert!(!of_cut.is_damaged(), "nobody looked yet");
        // By several threads at once, which fault in the same and in other pages.
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| assert_eq!(of_cut.bytes()[2 * PAGE..], [0; (PAGES - 2) * PAGE]));
            }
        });
        assert_eq!(of_cut.bytes()[..2 * PAGE], [7; 2 * PAGE], "the rest is as it was");
        assert!(of_cut.is_damaged());
        assert_eq!(of_whole.bytes()[..], [7; PAGES * PAGE]);
        assert!(!of_whole.is_damaged());
        drop(of_cut);
        let again = mapping(&whole);
        assert!(!again.is_damaged(), "a new mapping starts whole");
    }

    #[test]
    fn nothing_and_too_much_are_refused_and_give_their_slot_back() {
        let file = Arc::new(file().into());
        for len_bytes in [0, u64::MAX, 1 << 60] {
            for _ in 0..=MAPPINGS_MAX {
                assert!(Mapping::new(&file, len_bytes).is_err());
            }
        }
        Mapping::new(&file, 1).unwrap();
    }

    #[test]
    fn a_slice_is_found_with_its_file_and_offset_and_other_memory_is_not() {
        let file = file();
        let (mapping, other) = (mapping(&file), mapping(&file));
        let slice = mapping.bytes().slice(PAGE + 5..3 * PAGE);
        drop(mapping);
        let found = find(&slice).unwrap();
        assert_eq!(found.offset_bytes(), (PAGE + 5) as u64);
        assert!(!Arc::ptr_eq(&found.area, &other.area));
        assert!(find(&[0; 64]).is_none());
        assert!(find(&other.bytes()[PAGES * PAGE..]).is_some(), "nothing behind the last byte is still its");
    }

    #[test]
    fn pages_that_left_memory_are_not_resident_until_they_are_brought() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, [7; PAGES * PAGE]).unwrap();
        let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        file.sync_all().unwrap();
        let whole = 0..PAGES * PAGE;
        let of = |file: &std::fs::File| {
            Mapping::new(&Arc::new(file.try_clone().unwrap().into()), (PAGES * PAGE) as u64).unwrap()
        };
        let mapping = of(&file);
        let found = find(mapping.bytes()).unwrap();
        found.bring(usize::MAX);
        assert!(mapping.is_resident(whole.clone()));
        drop((mapping, found));
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        let mapping = of(&file);
        assert!(!mapping.is_resident(whole.clone()));
        let found = find(&mapping.bytes()[PAGE + 1..]).unwrap();
        found.bring(1);
        assert!(found.is_resident(1) && mapping.is_resident(PAGE..PAGE + 9));
        let read_only = of(&std::fs::File::open(&path).unwrap());
        assert!(!read_only.is_resident(PAGE..PAGE + 9), "the system would say so of any page");
    }

    /// Runs a test of this file again, in a process of its own that is told to die.
    fn dies_of(name: &str) -> Option<i32> {
        let program = std::env::current_exe().unwrap();
        let mut child = Command::new(program);
        child.args([&format!("disk::mapping::tests::{name}"), "--exact"]).env(DIES, "1");
        child.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().signal()
    }

    fn is_to_die() -> bool {
        std::env::vars_os().any(|(key, _)| key == DIES)
    }

    #[test]
    fn a_fault_outside_of_every_mapping_still_ends_the_process() {
        if !is_to_die() {
            let signal = dies_of("a_fault_outside_of_every_mapping_still_ends_the_process");
            return assert_eq!(signal, Some(libc::SIGBUS));
        }
        let file = file();
        let mapping = mapping(&file);
        // As if it were somebody else's.
        mapping.area.slot.hide();
        file.set_len(0).unwrap();
        assert_eq!(mapping.bytes()[PAGE], 0, "and yet it goes on");
    }

    #[test]
    fn a_sigbus_that_somebody_sends_still_ends_the_process() {
        if !is_to_die() {
            let signal = dies_of("a_sigbus_that_somebody_sends_still_ends_the_process");
            return assert_eq!(signal, Some(libc::SIGBUS));
        }
        let _mapping = mapping(&file());
        // SAFETY: sends this process a signal.
        unsafe { libc::raise(libc::SIGBUS) };
    }
}
