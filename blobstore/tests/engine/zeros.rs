//! Zeros ahead of the log's end: where they are written, what goes over them, and that nobody misses them where they are not.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use taffrail_blobstore::disk::sim::{Call, Fault, FaultError, SimDisk};
use taffrail_blobstore::disk::threads::ThreadsDisk;
use taffrail_blobstore::disk::{
    Access, Counters, DIRECT_ALIGN_BYTES, Disk, File, Lock, LockError, NotDurable,
};
use taffrail_blobstore::{Algorithm, Digest, Options, PutError, RepositoryKey, Store, StoreState, Threading};

use crate::catalog::noise;
use crate::world::wait;

const NOW_MS: u64 = 1_000_000;
/// Batches begin here in a segment.
const HEADER_BYTES: u64 = 4096;
/// As far ahead of the log's end as there are zeros, at most.
const AHEAD_BYTES_MAX: u64 = 8 << 20;
const SMALL_BYTES: usize = 3000;
/// More than one piece of zeros.
const LONG_BYTES: usize = 1 << 20;
/// Turns given away in the middle of a write of zeros.
const YIELDS: u32 = 50;

/// A write to a log segment.
#[derive(Clone, Debug)]
struct Written {
    access: Access,
    from_bytes: u64,
    to_bytes: u64,
    is_zeros: bool,
}

/// A disk that notes what is written to the log, and lets others run while zeros are being written.
#[derive(Debug)]
struct Noting {
    disk: Arc<dyn Disk>,
    notes: Arc<Notes>,
}

#[derive(Debug, Default)]
struct Notes {
    writes: Mutex<Vec<(String, Written)>>,
    zeroing: AtomicU64,
    /// Files that were cut while zeros were being written to one.
    hasty_cuts: AtomicU64,
}

#[derive(Debug)]
struct NotingFile {
    file: Arc<dyn File>,
    name: String,
    access: Access,
    notes: Arc<Notes>,
}

impl Noting {
    fn on(disk: Arc<dyn Disk>) -> (Arc<dyn Disk>, Arc<Notes>) {
        let notes = Arc::<Notes>::default();
        (Arc::new(Noting { disk, notes: Arc::clone(&notes) }), notes)
    }

    fn note(&self, name: &str, access: Access, file: Arc<dyn File>) -> Arc<dyn File> {
        if name.starts_with("log/") {
            Arc::new(NotingFile { file, name: name.to_owned(), access, notes: Arc::clone(&self.notes) })
        } else {
            file
        }
    }
}

impl Notes {
    /// Batches, and then zeros, that were written to the log, in order.
    fn take(&self) -> (Vec<Written>, Vec<Written>) {
        let writes = std::mem::take(&mut *self.writes.lock().unwrap());
        let writes = writes.into_iter().map(|(_, written)| written);
        let (zeros, others): (Vec<_>, Vec<_>) = writes.partition(|written| written.is_zeros);
        (others.into_iter().filter(|written| written.from_bytes >= HEADER_BYTES).collect(), zeros)
    }
}

impl Disk for Noting {
    fn create(&self, name: &str, len_bytes: u64, access: Access) -> io::Result<Arc<dyn File>> {
        self.disk.create(name, len_bytes, access).map(|file| self.note(name, access, file))
    }

    fn open(&self, name: &str, access: Access) -> io::Result<Arc<dyn File>> {
        self.disk.open(name, access).map(|file| self.note(name, access, file))
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

impl NotingFile {
    fn note(&self, bytes: &[u8], offset_bytes: u64, is_zeros: bool) {
        let to_bytes = offset_bytes + bytes.len() as u64;
        let written = Written { access: self.access, from_bytes: offset_bytes, to_bytes, is_zeros };
        self.notes.writes.lock().unwrap().push((self.name.clone(), written));
    }
}

impl File for NotingFile {
    fn read_at(&self, buffer: &mut [u8], offset_bytes: u64) -> io::Result<()> {
        self.file.read_at(buffer, offset_bytes)
    }

    fn write_at(&self, bytes: &[u8], offset_bytes: u64) -> io::Result<()> {
        let is_zeros = bytes.iter().all(|byte| *byte == 0);
        if is_zeros {
            self.notes.zeroing.fetch_add(1, Ordering::SeqCst);
            (0..YIELDS).for_each(|_| std::thread::yield_now());
        }
        let result = self.file.write_at(bytes, offset_bytes);
        if is_zeros {
            self.notes.zeroing.fetch_sub(1, Ordering::SeqCst);
        }
        self.note(bytes, offset_bytes, is_zeros);
        result
    }

    fn write_durably_at(&self, bytes: &[u8], offset_bytes: u64) -> Result<(), NotDurable> {
        self.note(bytes, offset_bytes, false);
        self.file.write_durably_at(bytes, offset_bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }

    fn allocate(&self, len_bytes: u64) -> io::Result<()> {
        self.file.allocate(len_bytes)
    }

    fn truncate(&self, len_bytes: u64) -> io::Result<()> {
        if self.notes.zeroing.load(Ordering::SeqCst) > 0 {
            self.notes.hasty_cuts.fetch_add(1, Ordering::SeqCst);
        }
        self.file.truncate(len_bytes)
    }

    fn len_bytes(&self) -> io::Result<u64> {
        self.file.len_bytes()
    }

    fn gains_from_zeros(&self) -> bool {
        self.file.gains_from_zeros()
    }
}

fn gaining() -> SimDisk {
    let disk = SimDisk::new();
    disk.set_gains_from_zeros();
    disk
}

fn open(disk: Arc<dyn Disk>, segment_bytes: u64, threading: Threading) -> Store {
    let options = Options { segment_bytes, reserve_bytes: 0, threading, ..Options::new([7; 48]) };
    Store::open(disk, options, NOW_MS).unwrap()
}

fn repository() -> RepositoryKey {
    RepositoryKey::new(5).unwrap()
}

fn blob(number: u64, len: usize) -> (Digest, Bytes) {
    let bytes = Bytes::from(noise(number + 1, len));
    (Digest::of(Algorithm::Sha256, &bytes), bytes)
}

fn put(store: &Store, number: u64, len: usize) -> Result<(), PutError> {
    let (digest, bytes) = blob(number, len);
    wait(store.put(repository(), &digest, bytes, &[], NOW_MS)).map(drop)
}

fn read(store: &Store, number: u64, len: usize) {
    let (digest, bytes) = blob(number, len);
    let mut reader = store.open_blob(repository(), &digest).unwrap();
    let mut read = Vec::new();
    while read.len() < len {
        read.extend_from_slice(&wait(reader.read(read.len() as u64, len as u64)).unwrap());
    }
    assert!(read == bytes, "blob {number}");
}

#[test]
fn batches_go_past_the_page_cache_where_zeros_were_written_before_and_through_it_elsewhere() {
    let (disk, notes) = Noting::on(Arc::new(gaining()));
    let store = open(disk, 32 << 20, Threading::Inline);
    let mut zeros_end_bytes = HEADER_BYTES;
    for number in 0..40 {
        let len = if number % 5 == 4 { LONG_BYTES } else { SMALL_BYTES };
        put(&store, number, len).unwrap();
        let mut seen = notes.writes.lock().unwrap().drain(..).map(|(_, it)| it).collect::<Vec<_>>();
        seen.retain(|written| written.from_bytes >= HEADER_BYTES);
        for written in seen {
            if written.is_zeros {
                assert_eq!(written.access, Access::Direct);
                assert_eq!(written.from_bytes, zeros_end_bytes, "zeros follow zeros, or a batch");
                zeros_end_bytes = written.to_bytes;
            } else if written.to_bytes <= zeros_end_bytes {
                assert_eq!(written.access, Access::Direct, "blob {number}: {written:?}");
            } else {
                assert_eq!(written.access, Access::Cached, "blob {number}: {written:?}");
                zeros_end_bytes = written.to_bytes;
            }
        }
    }
    for number in 0..40 {
        read(&store, number, if number % 5 == 4 { LONG_BYTES } else { SMALL_BYTES });
    }
}

#[test]
fn a_file_system_that_gains_nothing_gets_no_zeros_and_nothing_past_its_page_cache() {
    let (disk, notes) = Noting::on(Arc::new(SimDisk::new()));
    let store = open(disk, 1 << 20, Threading::Inline);
    (0..400).for_each(|number| put(&store, number, SMALL_BYTES).unwrap());
    let (batches, zeros) = notes.take();
    assert!(zeros.is_empty(), "{zeros:?}");
    assert!(batches.len() >= 400 && batches.iter().all(|batch| batch.access == Access::Cached));
}

/// Every commit has one flush, with zeros as without.
#[test]
fn zeros_cost_no_flush_and_are_no_further_ahead_than_one_window() {
    let flushes = |disk: &SimDisk| {
        let store = open(Arc::new(disk.clone()), 64 << 20, Threading::Inline);
        (0..50).for_each(|number| put(&store, number, SMALL_BYTES).unwrap());
        disk.counters().flushes
    };
    assert_eq!(flushes(&gaining()), flushes(&SimDisk::new()));
    let (disk, notes) = Noting::on(Arc::new(gaining()));
    let store = open(disk, 64 << 20, Threading::Inline);
    (0..50).for_each(|number| put(&store, number, SMALL_BYTES).unwrap());
    let (batches, zeros) = notes.take();
    let (end, ahead) = (batches.last().unwrap().to_bytes, zeros.last().unwrap().to_bytes);
    assert!(ahead > end + AHEAD_BYTES_MAX / 2 && ahead <= end + AHEAD_BYTES_MAX, "{end} to {ahead}");
    // Nobody commits, nothing is written.
    drop(store);
    assert!(notes.take().1.is_empty());
}

/// What is written in long batches would only be written twice.
#[test]
fn long_batches_ask_for_no_more_zeros() {
    let (disk, notes) = Noting::on(Arc::new(gaining()));
    let store = open(disk, 64 << 20, Threading::Inline);
    (0..20).for_each(|number| put(&store, number, LONG_BYTES).unwrap());
    let zeroed: u64 = notes.take().1.iter().map(|zeros| zeros.to_bytes - zeros.from_bytes).sum();
    assert!(zeroed <= LONG_BYTES as u64, "{zeroed} bytes of zeros before 20 batches of 1 MiB");
}

#[test]
fn zeros_that_cannot_be_written_are_done_without_until_the_next_segment() {
    for error in [FaultError::Io, FaultError::NoSpace, FaultError::Quota, FaultError::ReadOnly] {
        let sim = gaining();
        let (disk, notes) = Noting::on(Arc::new(sim.clone()));
        let store = open(disk, 1 << 20, Threading::Inline);
        // The header comes before them.
        sim.inject(Fault::on(&[Call::Write], error).within("log/").after(1).times(1));
        for number in 0..50 {
            put(&store, number, SMALL_BYTES).unwrap_or_else(|refused| panic!("{error:?}: {refused}"));
        }
        let (batches, zeros) = notes.take();
        assert_eq!(zeros.len(), 1, "{error:?}: the ones that failed");
        assert!(batches.iter().all(|batch| batch.access == Access::Cached), "{error:?}");
        assert_eq!(store.state(), StoreState::Writable, "{error:?}");
        (50..300).for_each(|number| put(&store, number, SMALL_BYTES).unwrap());
        let (batches, zeros) = notes.take();
        assert!(!zeros.is_empty() && batches.iter().any(|batch| batch.access == Access::Direct));
        (0..300).for_each(|number| read(&store, number, SMALL_BYTES));
    }
}

/// What a refused batch left in the page cache may be written out at any time, over what went past it.
#[test]
fn after_a_refused_batch_its_segment_is_written_through_the_page_cache_alone() {
    let sim = gaining();
    let (disk, notes) = Noting::on(Arc::new(sim.clone()));
    let store = open(disk, 32 << 20, Threading::Inline);
    // The header and one piece of zeros come before it, and it is longer than that piece.
    sim.inject(Fault::on(&[Call::Write], FaultError::NoSpace).within("log/").after(2).times(1));
    put(&store, 0, LONG_BYTES).unwrap_err();
    let (batches, _) = notes.take();
    assert_eq!(batches.last().map(|batch| batch.access), Some(Access::Cached));
    (1..100).for_each(|number| put(&store, number, SMALL_BYTES).unwrap());
    let (batches, zeros) = notes.take();
    assert!(zeros.is_empty() && batches.iter().all(|batch| batch.access == Access::Cached));
    (1..100).for_each(|number| read(&store, number, SMALL_BYTES));
}

#[test]
fn a_flush_that_fails_past_the_page_cache_poisons() {
    let sim = gaining();
    let store = open(Arc::new(sim.clone()), 1 << 20, Threading::Inline);
    put(&store, 0, SMALL_BYTES).unwrap();
    sim.inject(Fault::on(&[Call::Sync], FaultError::NoSpace).within("log/").times(1));
    put(&store, 1, SMALL_BYTES).unwrap_err();
    assert!(matches!(store.state(), StoreState::Poisoned { .. }));
}

/// A write that is durable when it returns says nothing of others. The header of a segment is another one.
#[test]
fn a_durable_write_leaves_what_was_written_beside_it_as_it_was() {
    let sim = SimDisk::new();
    let cached = sim.create("a", 4 * DIRECT_ALIGN_BYTES as u64, Access::Cached).unwrap();
    cached.sync().unwrap();
    sim.sync_dir("").unwrap();
    let direct = sim.open("a", Access::Direct).unwrap();
    cached.write_at(&[1; DIRECT_ALIGN_BYTES], 0).unwrap();
    cached.write_at(&[2; DIRECT_ALIGN_BYTES], DIRECT_ALIGN_BYTES as u64).unwrap();
    let mut buffer = sim.lend(DIRECT_ALIGN_BYTES);
    buffer.as_mut_slice().fill(3);
    direct.write_durably_at(buffer.as_slice(), DIRECT_ALIGN_BYTES as u64).unwrap();
    let after: BTreeSet<(u8, u8)> = (0..100)
        .map(|seed| sim.crash(seed).contents("a").unwrap())
        .map(|contents| (contents[0], contents[DIRECT_ALIGN_BYTES]))
        .collect();
    assert_eq!(after, BTreeSet::from([(0, 3), (1, 3)]));
}

/// A piece under way when the segment was cut made it long again, and the next segment's header would speak of another end than the file.
#[test]
fn a_segment_is_cut_when_nobody_writes_zeros_to_it() {
    let sim = gaining();
    let (disk, notes) = Noting::on(Arc::new(sim.clone()));
    let (mut stores, mut pieces) = (0, 0);
    // On a busy machine few pieces are begun before their segment ends.
    while pieces < 40 {
        assert!(stores < 2_000, "{pieces} pieces in {stores} stores");
        let store = open(Arc::clone(&disk), 4 << 20, Threading::Pool { storage_threads: 2 });
        // Each asks for a piece, the last one just before its segment ends.
        (0..3).for_each(|part| put(&store, 3 * stores + part, SMALL_BYTES).unwrap());
        store.close().unwrap();
        stores += 1;
        pieces += notes.take().1.len();
    }
    assert_eq!(notes.hasty_cuts.load(Ordering::SeqCst), 0);
    for (name, len_bytes) in sim.files().into_iter().filter(|(name, _)| name.starts_with("log/")) {
        let contents = sim.contents(&name).unwrap();
        let last = contents[contents.len() - 4096..].iter().any(|byte| *byte != 0);
        assert!(last, "{name} of {len_bytes} bytes ends with zeros");
    }
}

/// What the log does: zeros past the page cache while somebody reads beside them, then batches over them in either way.
#[test]
fn what_is_written_past_the_page_cache_is_read_through_it_and_the_other_way_around() {
    const PAGES: usize = 64;
    let folder = tempfile::tempdir().unwrap();
    let disk = ThreadsDisk::open(folder.path()).unwrap();
    let cached = disk.create("a", (PAGES * DIRECT_ALIGN_BYTES) as u64, Access::Cached).unwrap();
    let direct = disk.open("a", Access::Direct).unwrap();
    let mut buffer = disk.lend(PAGES * DIRECT_ALIGN_BYTES);
    let mut expected = vec![0; PAGES * DIRECT_ALIGN_BYTES];
    let mut seen = expected.clone();
    cached.read_at(&mut seen, 0).unwrap();
    direct.write_at(buffer.as_slice(), 0).unwrap();
    for page in 0..PAGES {
        let (from, number) = (page * DIRECT_ALIGN_BYTES, u8::try_from(page + 1).unwrap());
        let bytes = &mut buffer.as_mut_slice()[..DIRECT_ALIGN_BYTES];
        bytes.fill(number);
        match page % 4 {
            0 => cached.write_at(bytes, from as u64).and_then(|()| cached.sync()).unwrap(),
            // Dirty in the page cache, and then written over past it.
            1 => {
                cached.write_at(&vec![255; 3 * DIRECT_ALIGN_BYTES], from as u64).unwrap();
                direct.write_durably_at(bytes, from as u64).unwrap();
                expected[from..from + 3 * DIRECT_ALIGN_BYTES].fill(255);
            }
            _ => direct.write_durably_at(bytes, from as u64).unwrap(),
        }
        expected[from..from + DIRECT_ALIGN_BYTES].fill(number);
        cached.read_at(&mut seen, 0).unwrap();
        assert!(seen == expected, "page {page}");
    }
    cached.sync().unwrap();
    direct.read_at(buffer.as_mut_slice(), 0).unwrap();
    assert!(buffer.as_slice() == expected);
}

/// Reads of what is in the page cache, beside writes past it.
#[test]
fn what_went_past_the_page_cache_of_real_files_is_read_back_through_it() {
    let folder = tempfile::tempdir().unwrap();
    let files = Arc::new(ThreadsDisk::open(folder.path()).unwrap());
    let (disk, notes) = Noting::on(files);
    let store = open(Arc::clone(&disk), 4 << 20, Threading::Pool { storage_threads: 2 });
    for number in 0..300_u64 {
        put(&store, number, SMALL_BYTES).unwrap();
        // Everything that there is of the newest segment, zeros ahead as well, comes into the page cache.
        let name = disk.list("log").unwrap().into_iter().max().unwrap();
        let file = disk.open(&format!("log/{name}"), Access::Cached).unwrap();
        let mut all = vec![0; usize::try_from(file.len_bytes().unwrap()).unwrap()];
        file.read_at(&mut all, 0).unwrap();
        read(&store, number, SMALL_BYTES);
        read(&store, number / 2, SMALL_BYTES);
    }
    let (batches, zeros) = notes.take();
    let past = batches.iter().filter(|batch| batch.access == Access::Direct).count();
    // On a file system that gains nothing, there is nothing to be seen here.
    assert_eq!(past > 0, !zeros.is_empty());
    drop(store);
    let store = open(disk, 4 << 20, Threading::Inline);
    (0..300).for_each(|number| read(&store, number, SMALL_BYTES));
}
