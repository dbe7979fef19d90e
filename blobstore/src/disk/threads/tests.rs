//! The files of the operating system, on a real file system.

use std::os::unix::fs::PermissionsExt;

use super::*;

fn disk() -> (tempfile::TempDir, ThreadsDisk) {
    let dir = tempfile::tempdir().unwrap();
    let disk = ThreadsDisk::open(dir.path()).unwrap();
    (dir, disk)
}

#[test]
fn what_was_written_is_read_back_and_a_read_past_the_end_says_so() {
    let (_dir, disk) = disk();
    let file = disk.create("a", 0, Access::Cached).unwrap();
    file.write_at(b"hello", 3).unwrap();
    file.sync().unwrap();
    let mut buffer = [9; 8];
    file.read_at(&mut buffer, 0).unwrap();
    assert_eq!(&buffer, b"\0\0\0hello");
    assert_eq!(file.read_at(&mut buffer, 1).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(file.len_bytes().unwrap(), 8);
    assert_eq!(
        disk.counters(),
        Counters { flushes: 1, written_bytes: 5, read_bytes: 8, ..Counters::default() }
    );
}

#[test]
fn buffers_are_filled_one_after_the_other_and_a_read_past_the_end_says_so() {
    let (_dir, disk) = disk();
    let file = disk.create("a", 0, Access::Cached).unwrap();
    file.write_at(b"0123456789", 0).unwrap();
    let (mut first, mut second, mut third) = ([0; 3], [0; 1], [0; 4]);
    let mut buffers = [&mut first[..], &mut second, &mut third].map(IoSliceMut::new);
    file.read_vectored_at(&mut buffers, 1).unwrap();
    file.will_read(0, 1 << 40);
    let error = file.read_vectored_at(&mut [IoSliceMut::new(&mut [0; 9])], 2).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!((&first, &second, &third), (b"123", b"4", b"5678"));
    assert_eq!(disk.counters().read_bytes, 8);
}

#[test]
fn direct_files_take_aligned_writes_on_whatever_file_system_this_is() {
    let (_dir, disk) = disk();
    let file = disk.create("a", 3 * DIRECT_ALIGN_BYTES as u64, Access::Direct).unwrap();
    let mut room = vec![7_u8; 2 * DIRECT_ALIGN_BYTES];
    let start = room.as_ptr().align_offset(DIRECT_ALIGN_BYTES);
    let aligned = &mut room[start..start + DIRECT_ALIGN_BYTES];
    file.write_at(aligned, DIRECT_ALIGN_BYTES as u64).unwrap();
    file.sync().unwrap();
    aligned.fill(0);
    file.read_at(aligned, DIRECT_ALIGN_BYTES as u64).unwrap();
    assert!(aligned.iter().all(|byte| *byte == 7));
    file.read_at(aligned, 2 * DIRECT_ALIGN_BYTES as u64).unwrap();
    assert!(aligned.iter().all(|byte| *byte == 0), "reserved space reads as zeros");
}

#[test]
fn a_file_system_that_refuses_direct_access_late_is_used_through_its_cache() {
    let (_dir, disk) = disk();
    let flags = OFlags::RDWR | OFlags::CREATE;
    let file = fs::openat(&disk.root, "a", flags, Mode::from_raw_mode(FILE_MODE)).unwrap();
    if fs::fcntl_setfl(&file, OFlags::DIRECT).is_err() {
        return;
    }
    let shared = Arc::clone(&disk.shared);
    let has_written_durably = AtomicBool::new(false);
    let file = Arc::new(file);
    let file = ThreadsFile { file, name: "a".to_owned(), writable: true, has_written_durably, shared };
    let mut calls = 0;
    let transfer = || {
        calls += 1;
        if calls == 1 { Err(Errno::INVAL) } else { Ok(calls) }
    };
    assert_eq!(file.direct_or_cached(true, transfer).unwrap(), 2);
    assert!(disk.shared.direct_refused.load(Ordering::Relaxed));
    assert!(!fs::fcntl_getfl(&file.file).unwrap().contains(OFlags::DIRECT));
}

#[test]
fn a_durable_write_is_one_flush_on_a_file_of_either_access() {
    let (dir, disk) = disk();
    for (name, access) in [("a", Access::Cached), ("b", Access::Direct)] {
        let file = disk.create(name, 2 * DIRECT_ALIGN_BYTES as u64, access).unwrap();
        let before = disk.counters();
        let buffer = crate::buffer::AlignedBuffer::zeroed(DIRECT_ALIGN_BYTES);
        file.write_durably_at(buffer.as_slice(), DIRECT_ALIGN_BYTES as u64).unwrap();
        let after = disk.counters();
        assert_eq!((after.flushes, after.written_bytes), (before.flushes + 1, before.written_bytes + 4096));
    }
    let reader = ThreadsDisk::open_read_only(dir.path()).unwrap();
    let error = reader.open("a", Access::Direct).unwrap().write_durably_at(&[], 0).unwrap_err();
    assert!(matches!(error, NotDurable::Write(_)), "nothing was begun that a flush could tell of");
}

/// What a durable write says on a thread to which the kernel answers `errno` for such writes, and for no others.
#[cfg(target_arch = "x86_64")]
fn written_durably_where(file: &Arc<dyn File>, errno: Errno) -> Result<(), NotDurable> {
    use seccompiler::{
        BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
        SeccompRule,
    };
    const SYS_PWRITEV2: i64 = 328;
    const RWF_DSYNC: u64 = 2;
    let file = Arc::clone(file);
    let forbidden = move || {
        let flag = SeccompCmpOp::MaskedEq(RWF_DSYNC);
        let condition = SeccompCondition::new(5, SeccompCmpArgLen::Dword, flag, RWF_DSYNC).unwrap();
        let rules = vec![SeccompRule::new(vec![condition]).unwrap()];
        let answer = SeccompAction::Errno(errno.raw_os_error().unsigned_abs());
        let arch = std::env::consts::ARCH.try_into().unwrap();
        let rules = [(SYS_PWRITEV2, rules)].into_iter().collect();
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, answer, arch).unwrap();
        seccompiler::apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
        let mut buffer = crate::buffer::AlignedBuffer::zeroed(DIRECT_ALIGN_BYTES);
        buffer.as_mut_slice().fill(7);
        file.write_durably_at(buffer.as_slice(), 0)
    };
    std::thread::spawn(forbidden).join().unwrap()
}

#[cfg(target_arch = "x86_64")]
#[test]
fn an_error_of_a_durable_write_is_one_of_its_flush_unless_the_kernel_never_knew_such_writes() {
    for access in [Access::Cached, Access::Direct] {
        let unknown = [Errno::INVAL, Errno::OPNOTSUPP, Errno::NOSYS, Errno::PERM];
        for errno in unknown {
            let (_dir, disk) = disk();
            let file = disk.create("a", DIRECT_ALIGN_BYTES as u64, access).unwrap();
            written_durably_where(&file, errno).unwrap();
            let mut read = crate::buffer::AlignedBuffer::zeroed(DIRECT_ALIGN_BYTES);
            file.read_at(read.as_mut_slice(), 0).unwrap();
            assert!(read.as_slice().iter().all(|byte| *byte == 7), "{errno}");
        }
        let (_dir, disk) = disk();
        let file = disk.create("a", DIRECT_ALIGN_BYTES as u64, access).unwrap();
        let buffer = crate::buffer::AlignedBuffer::zeroed(DIRECT_ALIGN_BYTES);
        let refused = [Errno::IO, Errno::NOSPC, Errno::DQUOT, Errno::ROFS, Errno::INTR];
        for errno in refused {
            let written = written_durably_where(&file, errno);
            assert!(matches!(written, Err(NotDurable::Flush(_))), "{errno}: {written:?}");
        }
        file.write_durably_at(buffer.as_slice(), 0).unwrap();
        for errno in unknown {
            let written = written_durably_where(&file, errno);
            assert!(
                matches!(written, Err(NotDurable::Flush(_))),
                "{errno} after one that worked: {written:?}"
            );
        }
    }
}

/// One such request made every later look past the page cache one at the page cache, for the whole process.
#[test]
fn a_request_that_is_not_aligned_says_nothing_of_the_file_system() {
    let (_dir, disk) = disk();
    let file = disk.create("a", 0, Access::Direct).unwrap();
    let before = disk.shared.direct_refused.load(Ordering::Relaxed);
    file.write_at(b"odd", 1).unwrap();
    let mut buffer = [0; 3];
    disk.open("a", Access::Direct).unwrap().read_at(&mut buffer, 1).unwrap();
    assert_eq!(&buffer, b"odd");
    let mut room = vec![0_u8; 2 * DIRECT_ALIGN_BYTES];
    let start = room.as_ptr().align_offset(DIRECT_ALIGN_BYTES);
    let page = &mut room[start..start + DIRECT_ALIGN_BYTES];
    // The file ends within the page: what is left of the read is not aligned.
    let error = disk.open("a", Access::Direct).unwrap().read_at(page, 0).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(disk.shared.direct_refused.load(Ordering::Relaxed), before);
}

#[test]
fn a_file_is_mapped_through_the_page_cache_alone() {
    let (_dir, disk) = disk();
    let file = disk.create("a", 0, Access::Cached).unwrap();
    assert!(file.map().is_none(), "there is nothing to map");
    file.write_at(b"mapped", 0).unwrap();
    let mapping = file.map().unwrap();
    drop(file);
    disk.remove("a").unwrap();
    assert_eq!(mapping.bytes(), &b"mapped"[..]);
    let direct = disk.create("b", DIRECT_ALIGN_BYTES as u64, Access::Direct).unwrap();
    assert_eq!(direct.map().is_none(), !disk.shared.direct_refused.load(Ordering::Relaxed));
}

#[test]
fn reserving_extends_and_never_shortens() {
    let (_dir, disk) = disk();
    let file = disk.create("a", 10_000, Access::Cached).unwrap();
    assert_eq!(file.len_bytes().unwrap(), 10_000);
    file.allocate(5_000).unwrap();
    assert_eq!(file.len_bytes().unwrap(), 10_000);
    file.allocate(20_000).unwrap();
    assert_eq!(file.len_bytes().unwrap(), 20_000);
    file.truncate(1).unwrap();
    assert_eq!(file.len_bytes().unwrap(), 1);
}

/// The server could not open what root had made in its store.
#[test]
fn root_is_refused_in_the_folder_of_another_user() {
    let dir = tempfile::tempdir().unwrap();
    require_own(dir.path()).unwrap();
    if !rustix::process::geteuid().is_root() {
        return;
    }
    std::os::unix::fs::chown(dir.path(), Some(54_321), Some(54_322)).unwrap();
    let error = require_own(dir.path()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    assert!(error.to_string().contains("user 54321"), "{error}");
}

#[test]
fn a_file_that_cannot_be_had_in_full_is_not_made_at_all() {
    let (_dir, disk) = disk();
    let error = disk.create("a", 1 << 60, Access::Cached).unwrap_err();
    assert!(matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::FileTooLarge), "{error}");
    assert!(disk.list("").unwrap().is_empty());
}

#[test]
fn folders_are_made_with_their_parents_and_list_files_alone() {
    let (dir, disk) = disk();
    disk.create_dir("solo/3f").unwrap();
    disk.create_dir("solo/3f").unwrap();
    disk.create("solo/3f/x.seg", 0, Access::Cached).unwrap();
    std::os::unix::fs::symlink("x.seg", dir.path().join("solo/3f/link")).unwrap();
    disk.create_dir("solo/3f/folder").unwrap();
    disk.sync_dir("solo/3f").unwrap();
    assert_eq!(disk.list("solo/3f").unwrap(), ["x.seg"]);
    assert!(disk.list("solo").unwrap().is_empty());
    assert!(disk.list("nowhere").unwrap().is_empty());
    let mode = |path: &str| dir.path().join(path).metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("solo"), mode("solo/3f"), mode("solo/3f/x.seg")), (0o700, 0o700, 0o600));
}

#[test]
fn a_removed_file_stays_readable_through_its_handle() {
    let (_dir, disk) = disk();
    let file = disk.create("a", 0, Access::Cached).unwrap();
    file.write_at(b"still here", 0).unwrap();
    disk.remove("a").unwrap();
    let mut buffer = [0; 10];
    file.read_at(&mut buffer, 0).unwrap();
    assert_eq!(&buffer, b"still here");
    assert_eq!(disk.open("a", Access::Cached).unwrap_err().kind(), io::ErrorKind::NotFound);
    assert_eq!(disk.remove("a").unwrap_err().kind(), io::ErrorKind::NotFound);
}

#[test]
fn a_second_lock_is_refused_and_names_the_first() {
    let (dir, disk) = disk();
    let held = disk.lock("taffrail serve").unwrap();
    let other = ThreadsDisk::open(dir.path()).unwrap();
    let Err(LockError::Held { holder }) = other.lock("taffrail-fsck repair") else {
        panic!("locked twice");
    };
    assert_eq!(holder, format!("process {} (taffrail serve)", std::process::id()));
    assert!(disk.list("").unwrap().is_empty(), "the lock file is not part of the store");
    drop(held);
    other.lock("taffrail-fsck repair").unwrap();
}

#[test]
fn a_disk_opened_for_reading_changes_nothing() {
    let (dir, disk) = disk();
    disk.create("a", 4, Access::Cached).unwrap();
    let reader = ThreadsDisk::open_read_only(dir.path()).unwrap();
    let read_only = |result: io::Result<()>| {
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
    };
    let file = reader.open("a", Access::Cached).unwrap();
    file.read_at(&mut [0; 4], 0).unwrap();
    read_only(file.write_at(b"x", 0));
    read_only(file.allocate(8));
    read_only(file.truncate(0));
    read_only(file.sync());
    read_only(reader.create("b", 0, Access::Cached).map(drop));
    read_only(reader.remove("a"));
    read_only(reader.create_dir("d"));
    let _lock = reader.lock("reader").unwrap();
    assert!(!dir.path().join(LOCK_NAME).exists());
    assert!(matches!(reader.lock("second reader"), Err(LockError::Held { .. })));
}

#[test]
fn the_store_folder_is_made_with_its_parents() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("data/store");
    assert_eq!(ThreadsDisk::open(&root).unwrap_err().kind(), io::ErrorKind::NotFound);
    let disk = ThreadsDisk::open_or_create(&root).unwrap();
    assert!(disk.free_bytes().unwrap() > 0);
    assert_eq!(root.metadata().unwrap().permissions().mode() & 0o777, 0o700);
}
