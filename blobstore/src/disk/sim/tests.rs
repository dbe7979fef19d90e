//! Each sentence of the fault model, held against the simulated disk.

use std::collections::BTreeSet;

use super::*;

const SEEDS: u64 = 400;

fn file(disk: &SimDisk, name: &str, len_bytes: u64) -> Arc<dyn File> {
    disk.create(name, len_bytes, Access::Cached).unwrap()
}

/// A file with `len_bytes` of zeros, durable with its name.
fn durable(disk: &SimDisk, name: &str, len_bytes: u64) -> Arc<dyn File> {
    let made = file(disk, name, len_bytes);
    made.sync().unwrap();
    disk.sync_dir(split(name).0).unwrap();
    made
}

/// All that may be found of `name` after power loss.
fn outcomes(disk: &SimDisk, name: &str) -> BTreeSet<Option<Vec<u8>>> {
    (0..SEEDS).map(|seed| disk.crash(seed).contents(name)).collect()
}

#[test]
fn a_synced_file_with_a_synced_name_survives_every_crash() {
    let disk = SimDisk::new();
    let a = durable(&disk, "a", 0);
    a.write_at(b"kept", 0).unwrap();
    a.sync().unwrap();
    assert_eq!(outcomes(&disk, "a"), BTreeSet::from([Some(b"kept".to_vec())]));
}

#[test]
fn a_name_that_was_not_synced_may_be_lost_with_all_the_file_held() {
    let disk = SimDisk::new();
    let a = file(&disk, "a", 0);
    a.write_at(b"kept", 0).unwrap();
    a.sync().unwrap();
    assert_eq!(outcomes(&disk, "a"), BTreeSet::from([None, Some(b"kept".to_vec())]));
}

#[test]
fn a_removal_that_was_not_synced_may_be_undone() {
    let disk = SimDisk::new();
    let a = durable(&disk, "a", 0);
    a.write_at(b"back", 0).unwrap();
    a.sync().unwrap();
    drop(a);
    disk.remove("a").unwrap();
    assert_eq!(outcomes(&disk, "a"), BTreeSet::from([None, Some(b"back".to_vec())]));
    disk.sync_dir("").unwrap();
    assert_eq!(outcomes(&disk, "a"), BTreeSet::from([None]));
    assert_eq!(disk.used_bytes(), 0);
}

#[test]
fn an_unsynced_write_survives_whole_torn_or_not_at_all() {
    let disk = SimDisk::new();
    let a = durable(&disk, "a", 1024);
    a.write_at(&[1; 1024], 0).unwrap();
    let found: BTreeSet<(u8, u8)> =
        outcomes(&disk, "a").into_iter().flatten().map(|bytes| (bytes[0], bytes[1023])).collect();
    assert_eq!(found, BTreeSet::from([(0, 0), (0, 1), (1, 0), (1, 1)]));
    for bytes in outcomes(&disk, "a").into_iter().flatten() {
        assert!(bytes[..512].iter().all(|byte| *byte == bytes[0]), "a sector is never torn");
    }
}

#[test]
fn unsynced_writes_survive_in_any_order_and_independently() {
    let disk = SimDisk::new();
    let a = durable(&disk, "a", 1024);
    a.write_at(&[1; 512], 0).unwrap();
    a.write_at(&[2; 512], 0).unwrap();
    a.write_at(&[3; 512], 512).unwrap();
    let found: BTreeSet<(u8, u8)> =
        outcomes(&disk, "a").into_iter().flatten().map(|bytes| (bytes[0], bytes[512])).collect();
    assert_eq!(found, BTreeSet::from([(0, 0), (0, 3), (1, 0), (1, 3), (2, 0), (2, 3)]));
}

#[test]
fn a_length_may_survive_without_its_data_and_data_without_the_write_before() {
    let disk = SimDisk::new();
    let a = durable(&disk, "a", 0);
    a.write_at(&[1; 512], 0).unwrap();
    a.write_at(&[2; 512], 512).unwrap();
    let found: BTreeSet<(usize, u8, u8)> = outcomes(&disk, "a")
        .into_iter()
        .flatten()
        .map(|bytes| (bytes.len(), *bytes.first().unwrap_or(&9), *bytes.get(512).unwrap_or(&9)))
        .collect();
    for expected in [(0, 9, 9), (512, 1, 9), (512, 0, 9), (1024, 0, 2), (1024, 1, 0), (1024, 1, 2)] {
        assert!(found.contains(&expected), "{expected:?} in {found:?}");
    }
}

#[test]
fn a_truncation_is_pending_until_synced() {
    let disk = SimDisk::new();
    let a = durable(&disk, "a", 4096);
    a.truncate(100).unwrap();
    let lengths: BTreeSet<usize> =
        outcomes(&disk, "a").into_iter().flatten().map(|bytes| bytes.len()).collect();
    assert_eq!(lengths, BTreeSet::from([100, 4096]));
    a.sync().unwrap();
    let lengths: BTreeSet<usize> =
        outcomes(&disk, "a").into_iter().flatten().map(|bytes| bytes.len()).collect();
    assert_eq!(lengths, BTreeSet::from([100]));
}

#[test]
fn one_seed_gives_one_outcome() {
    let disk = SimDisk::new();
    let a = durable(&disk, "a", 0);
    for number in 0..50_u8 {
        a.write_at(&[number; 700], u64::from(number) * 300).unwrap();
    }
    for seed in 0..SEEDS {
        assert_eq!(disk.crash(seed).contents("a"), disk.crash(seed).contents("a"));
    }
}

#[test]
fn a_killed_process_loses_nothing_that_was_completed_but_power_loss_after_it_may() {
    let disk = SimDisk::new();
    let a = file(&disk, "a", 0);
    a.write_at(b"completed", 0).unwrap();
    let killed = disk.kill(1);
    assert_eq!(killed.contents("a").unwrap(), b"completed");
    assert!(outcomes(&killed, "a").contains(&None));
}

#[test]
fn the_write_under_way_when_the_power_goes_is_done_in_part_and_all_later_calls_fail() {
    let disk = SimDisk::new();
    let a = durable(&disk, "a", 1024);
    disk.crash_after(1);
    a.write_at(&[1; 512], 0).unwrap();
    assert!(SimDisk::is_power_gone(&a.write_at(&[2; 1024], 0).unwrap_err()));
    assert!(SimDisk::is_power_gone(&a.read_at(&mut [0; 1], 0).unwrap_err()));
    assert!(SimDisk::is_power_gone(&disk.open("a", Access::Cached).unwrap_err()));
    assert!(SimDisk::is_power_gone(&disk.sync_dir("").unwrap_err()));
    let found: BTreeSet<(u8, u8)> =
        outcomes(&disk, "a").into_iter().flatten().map(|bytes| (bytes[0], bytes[512])).collect();
    assert_eq!(found, BTreeSet::from([(0, 0), (0, 2), (1, 0), (1, 2), (2, 0), (2, 2)]));
    let killed: BTreeSet<(u8, u8)> = (0..SEEDS)
        .filter_map(|seed| disk.kill(seed).contents("a"))
        .map(|bytes| (bytes[0], bytes[512]))
        .collect();
    assert_eq!(killed, BTreeSet::from([(1, 0), (2, 0), (2, 2)]), "a kill keeps what was completed");
}

#[test]
fn the_tape_holds_the_disk_at_every_change() {
    let disk = SimDisk::new();
    disk.start_tape();
    let a = durable(&disk, "a", 512);
    a.write_at(&[1; 512], 0).unwrap();
    a.sync().unwrap();
    a.read_at(&mut [0; 1], 0).unwrap();
    let tape = disk.take_tape();
    assert_eq!(tape.len(), 5, "create, sync, sync_dir, write, sync");
    assert_eq!(outcomes(&tape[3], "a"), BTreeSet::from([Some(vec![0; 512]), Some(vec![1; 512])]));
    assert_eq!(outcomes(&tape[4], "a"), BTreeSet::from([Some(vec![0; 512]), Some(vec![1; 512])]));
    assert_eq!(disk.tape_len(), 0);
}

#[test]
fn folders_are_durable_when_made_and_interrupted_at_any_level() {
    let disk = SimDisk::new();
    assert_eq!(disk.create("a/b/c", 0, Access::Cached).unwrap_err().kind(), io::ErrorKind::NotFound);
    disk.create_dir("a/b").unwrap();
    for seed in 0..SEEDS {
        disk.crash(seed).create("a/b/c", 0, Access::Cached).unwrap();
    }
    disk.crash_after(0);
    disk.create_dir("x/y").unwrap_err();
    let made: BTreeSet<(bool, bool)> = (0..SEEDS)
        .map(|seed| {
            let found = disk.crash(seed);
            let there = |folder| found.create(&format!("{folder}/f"), 0, Access::Cached).is_ok();
            (there("x"), there("x/y"))
        })
        .collect();
    assert_eq!(made, BTreeSet::from([(false, false), (true, false), (true, true)]));
}

#[test]
fn what_a_failed_flush_left_is_not_made_durable_by_the_next() {
    let disk = SimDisk::new();
    let a = durable(&disk, "a", 1024);
    a.write_at(&[1; 512], 0).unwrap();
    disk.inject(Fault::on(&[Call::Sync], FaultError::Io).times(1));
    assert_eq!(a.sync().unwrap_err().raw_os_error(), Some(5));
    assert_eq!(disk.contents("a").unwrap()[0], 1, "the cache still shows it");
    a.write_at(&[2; 512], 512).unwrap();
    a.sync().unwrap();
    for bytes in outcomes(&disk, "a").into_iter().flatten() {
        assert_eq!((bytes[0], bytes[512]), (0, 2));
    }
}

#[test]
fn faults_strike_the_calls_they_name_and_are_healed() {
    let disk = SimDisk::new();
    disk.create_dir("log").unwrap();
    let a = file(&disk, "a", 0);
    let b = file(&disk, "log/b", 0);
    disk.inject(Fault::on(&[Call::Write], FaultError::NoSpace).within("log/").after(1).times(2));
    a.write_at(b"x", 0).unwrap();
    b.write_at(b"x", 0).unwrap();
    assert_eq!(b.write_at(b"x", 0).unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert_eq!(b.write_at(b"x", 0).unwrap_err().kind(), io::ErrorKind::StorageFull);
    b.write_at(b"x", 0).unwrap();
    disk.inject(Fault::on(&[Call::Read], FaultError::Io));
    assert_eq!(b.read_at(&mut [0], 0).unwrap_err().raw_os_error(), Some(5));
    disk.heal();
    b.read_at(&mut [0], 0).unwrap();
    disk.set_read_only(true);
    assert_eq!(a.write_at(b"x", 0).unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
    assert_eq!(disk.remove("a").unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
    assert_eq!(disk.count(Call::Write), 6);
}

#[test]
fn a_full_disk_refuses_growth_alone_and_removed_files_keep_their_space_while_open() {
    let disk = SimDisk::new();
    disk.set_capacity(16 * 4096);
    let a = file(&disk, "a", 10 * 4096);
    assert_eq!(disk.create("b", 7 * 4096, Access::Cached).unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert!(disk.list("").unwrap() == ["a"], "a file that does not fit is not made");
    assert_eq!(a.allocate(17 * 4096).unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert_eq!(a.write_at(&[1; 4097], 15 * 4096).unwrap_err().kind(), io::ErrorKind::StorageFull);
    a.write_at(&[1; 4096], 9 * 4096).unwrap();
    assert_eq!(disk.free_bytes().unwrap(), 6 * 4096);
    disk.remove("a").unwrap();
    assert_eq!(disk.free_bytes().unwrap(), 6 * 4096);
    drop(a);
    assert_eq!(disk.free_bytes().unwrap(), 16 * 4096);
}

#[test]
fn a_misdirected_write_is_acknowledged_and_lands_elsewhere() {
    let disk = SimDisk::new();
    let a = file(&disk, "a", 1024);
    let b = file(&disk, "b", 1024);
    disk.misdirect(0, Landing::At { offset_bytes: 512 });
    disk.misdirect(1, Landing::In { name: "b".to_owned(), offset_bytes: 0 });
    disk.misdirect(2, Landing::Nowhere);
    for value in 1..=3 {
        a.write_at(&[value; 512], 0).unwrap();
    }
    let mut bytes = [9; 1024];
    a.read_at(&mut bytes, 0).unwrap();
    assert_eq!((bytes[0], bytes[512]), (0, 1));
    b.read_at(&mut bytes, 0).unwrap();
    assert_eq!((bytes[0], bytes[512]), (2, 0));
}

#[test]
fn a_lying_flush_keeps_nothing_of_what_it_names() {
    let disk = SimDisk::new();
    disk.create_dir("log").unwrap();
    disk.lie_about_flushes(Call::Sync, "log/");
    durable(&disk, "log/a", 512);
    durable(&disk, "b", 512);
    assert_eq!(outcomes(&disk, "log/a"), BTreeSet::from([Some(vec![]), Some(vec![0; 512])]));
    assert_eq!(outcomes(&disk, "b"), BTreeSet::from([Some(vec![0; 512])]));
    disk.lie_about_flushes(Call::SyncDir, "log");
    durable(&disk, "log/c", 512);
    assert!(outcomes(&disk, "log/c").contains(&None));
}

#[test]
fn rot_is_seen_by_reads_and_after_crashes() {
    let disk = SimDisk::new();
    let a = durable(&disk, "a", 1024);
    assert!(disk.flip_bit("a", 700, 3));
    assert!(!disk.flip_bit("a", 1024, 3) && !disk.flip_bit("b", 0, 0));
    let mut byte = [0];
    a.read_at(&mut byte, 700).unwrap();
    assert_eq!(byte, [8]);
    assert_eq!(disk.crash(1).contents("a").unwrap()[700], 8);
    disk.plant("log/7.seg", b"garbage");
    assert_eq!(disk.crash(1).contents("log/7.seg").unwrap(), b"garbage");
    assert!(disk.cut("log/7.seg", 3) && disk.uproot("a"));
    assert_eq!(disk.crash(1).files(), [("log/7.seg".to_owned(), 3)]);
}

#[test]
fn direct_files_refuse_what_real_ones_refuse() {
    let disk = SimDisk::new();
    let a = disk.create("a", 8192, Access::Direct).unwrap();
    let mut room = vec![7_u8; 3 * DIRECT_ALIGN_BYTES];
    let start = room.as_ptr().align_offset(DIRECT_ALIGN_BYTES);
    a.write_at(&room[start..start + DIRECT_ALIGN_BYTES], 4096).unwrap();
    for (from, to, offset) in
        [(start, start + 100, 0), (start, start + 4096, 8), (start + 8, start + 8 + 4096, 0)]
    {
        assert_eq!(a.write_at(&room[from..to], offset).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(a.read_at(&mut room[from..to], offset).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}

#[test]
fn a_second_lock_is_refused_until_the_first_is_dropped() {
    let disk = SimDisk::new();
    let held = disk.lock("one").unwrap();
    assert!(matches!(disk.lock("two"), Err(LockError::Held { holder }) if holder.contains("one")));
    disk.fork().lock("a fork is another disk").unwrap();
    drop(held);
    disk.lock("two").unwrap();
}

#[test]
fn copies_do_not_share_what_is_written_later() {
    let disk = SimDisk::new();
    let a = durable(&disk, "a", 512);
    let fork = disk.fork();
    a.write_at(&[1; 512], 0).unwrap();
    assert_eq!(fork.contents("a").unwrap(), [0; 512]);
}
