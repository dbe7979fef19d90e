//! Snapshots: what hard links of the listed files hold, whatever the store does afterwards.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Waker};

use taffrail_blobstore::disk::threads::ThreadsDisk;
use taffrail_blobstore::{
    HoldError, Options, ScrubDepth, ScrubPosition, SessionId, Snapshot, Store, Threading, UnlinkError,
};

use crate::catalog::{ALL, content, repository};
use crate::world::{options, wait};

const NOW_MS: u64 = 1_000_000;

fn open(root: &Path) -> Store {
    let disk = Arc::new(ThreadsDisk::open_or_create(root).unwrap());
    let threading = Threading::Pool { storage_threads: 2 };
    let options = Options { lease_ms: 0, grace_ms: 0, threading, ..options() };
    Store::open(disk, options, NOW_MS).unwrap()
}

fn push(store: &Store, blob: u8, round: u8) {
    let wanted = content(blob);
    let id = SessionId::new([blob + 1 + round * 32; 16]);
    store.begin_upload(repository(0), wanted.digest.algorithm(), id, NOW_MS).unwrap();
    let mut upload = wait(store.open_upload(repository(0), id, NOW_MS)).unwrap();
    wait(upload.write(wanted.bytes.clone(), NOW_MS)).unwrap();
    wait(upload.commit(&wanted.digest, NOW_MS)).unwrap();
}

fn unlink(store: &Store, blob: u8) -> bool {
    let digest = &content(blob).digest;
    let generation = store.link_generation(repository(0), digest).unwrap();
    wait(store.unlink_if(repository(0), digest, generation, NOW_MS)).unwrap()
}

/// Links the files of a snapshot, as a backup does.
fn link(snapshot: &Snapshot, from: &Path, to: &Path) {
    for file in &snapshot.files {
        let (from, to) = (from.join(&file.name), to.join(&file.name));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::hard_link(from, &to).unwrap();
        assert!(file.len_bytes.is_none_or(|len_bytes| fs::metadata(&to).unwrap().len() == len_bytes));
    }
    fs::write(to.join(snapshot.superblock.0), &snapshot.superblock.1).unwrap();
}

fn contents(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut contents = BTreeMap::new();
    let mut open = vec![root.to_path_buf()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                contents.insert(path.to_string_lossy().into_owned(), fs::read(&path).unwrap());
            }
        }
    }
    contents
}

fn assert_holds_everything(store: &Store) {
    for blob in 0..ALL {
        let wanted = content(blob);
        let mut reader = store.open_blob(repository(0), &wanted.digest).unwrap();
        let (mut at, end) = (0, wanted.bytes.len() as u64);
        while at < end {
            let bytes = wait(reader.read(at, end)).unwrap();
            let from = usize::try_from(at).unwrap();
            assert!(bytes == wanted.bytes[from..from + bytes.len()], "blob {blob} at {at}");
            at += bytes.len() as u64;
        }
    }
}

#[test]
fn what_was_linked_stays_as_it_was_and_opens_as_the_store_of_that_moment() {
    let scratch = tempfile::tempdir().unwrap();
    let (root, copy) = (scratch.path().join("store"), scratch.path().join("copy"));
    let store = open(&root);
    for blob in 0..ALL {
        push(&store, blob, 0);
    }
    wait(store.checkpoint()).unwrap();
    let hold = wait(store.hold_removals()).unwrap();
    let snapshot = wait(hold.snapshot()).unwrap();
    // Between the listing and the links everything is deleted and collected, as far as it is let.
    for blob in 0..ALL {
        assert!(unlink(&store, blob), "links may go again");
    }
    let deferred = wait(store.collect(NOW_MS + 1, 100)).unwrap();
    assert_eq!((deferred.blobs, deferred.segments), (0, 0));
    link(&snapshot, &root, &copy);
    let linked = contents(&copy);
    drop(hold);
    assert_eq!(wait(store.collect(NOW_MS + 2, 100)).unwrap().blobs, u64::from(ALL));
    for round in 1..4 {
        for blob in 0..ALL {
            push(&store, blob, round);
        }
        wait(store.checkpoint()).unwrap();
        for blob in 0..ALL {
            assert!(unlink(&store, blob));
        }
        wait(store.collect(NOW_MS + 3, 100)).unwrap();
    }
    store.close().unwrap();
    drop(open(&root));
    assert!(contents(&copy) == linked, "a linked file changed");

    let store = open(&copy);
    assert_eq!(store.next_lsn(), snapshot.next_lsn);
    assert_eq!(store.uuid(), snapshot.uuid);
    assert_holds_everything(&store);
    // And from the log alone.
    drop(store);
    fs::remove_dir_all(copy.join("index")).unwrap();
    assert_holds_everything(&open(&copy));
}

#[test]
fn links_are_held_until_the_snapshot_and_whoever_must_remove_one_is_told() {
    let scratch = tempfile::tempdir().unwrap();
    let store = open(&scratch.path().join("store"));
    push(&store, 0, 0);
    let hold = wait(store.hold_removals()).unwrap();
    assert!(!unlink(&store, 0), "held");
    let digest = content(0).digest;
    let generation = store.link_generation(repository(0), &digest).unwrap();
    let key = repository(0);
    let refused = wait(store.unlink(key, &digest, generation, NOW_MS));
    assert!(matches!(refused, Err(UnlinkError::Held)), "{refused:?}");
    let mut waiting = std::pin::pin!(store.links_may_go());
    assert!(waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    assert!(matches!(wait(store.hold_removals()), Err(HoldError::Busy)));
    wait(hold.snapshot()).unwrap();
    wait(waiting);
    wait(store.unlink(key, &digest, generation, NOW_MS)).unwrap();
    assert_eq!(store.link_generation(repository(0), &digest), None);
    drop(hold);
    // One that gives up early lets go as well.
    push(&store, 0, 1);
    drop(wait(store.hold_removals()).unwrap());
    assert!(unlink(&store, 0));
}

/// A blob whose file was lost or cut short, and that nobody pushed again, made every backup fail.
#[test]
fn a_blob_that_is_set_aside_is_no_obstacle() {
    for lost in [false, true] {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path().join("store");
        let store = open(&root);
        (0..ALL).for_each(|blob| push(&store, blob, 0));
        // The partition names them as they were.
        wait(store.checkpoint()).unwrap();
        let is_solo = |path: &&String| path.contains("/solo/");
        let file = contents(&root).keys().find(is_solo).map(std::path::PathBuf::from).unwrap();
        if lost {
            fs::remove_file(&file).unwrap();
        } else {
            fs::File::options().write(true).open(&file).unwrap().set_len(8192).unwrap();
        }
        let mut scrubber = store.scrub(ScrubPosition::START, ScrubDepth::Checksums).unwrap();
        while !wait(scrubber.step(1 << 30)).unwrap().is_complete {}
        assert_eq!(store.stats().quarantined, 1);
        let snapshot = wait(wait(store.hold_removals()).unwrap().snapshot()).unwrap();
        for listed in snapshot.files.iter().filter(|listed| !listed.name.starts_with("index/")) {
            let path = root.join(&listed.name);
            let len_bytes = fs::metadata(&path).ok().map(|found| found.len());
            assert_eq!(listed.len_bytes, len_bytes.filter(|_| path != file), "{}", listed.name);
        }
    }
}

/// The partition names files of blobs that went since; a snapshot named them too, and no backup could be made.
#[test]
fn what_went_since_the_index_was_written_is_not_listed() {
    let scratch = tempfile::tempdir().unwrap();
    let (root, copy) = (scratch.path().join("store"), scratch.path().join("copy"));
    let store = open(&root);
    (0..ALL).for_each(|blob| push(&store, blob, 0));
    wait(store.checkpoint()).unwrap();
    (0..ALL).for_each(|blob| assert!(unlink(&store, blob)));
    assert_eq!(wait(store.collect(NOW_MS + 1, 100)).unwrap().blobs, u64::from(ALL));
    let hold = wait(store.hold_removals()).unwrap();
    link(&wait(hold.snapshot()).unwrap(), &root, &copy);
    drop(hold);
    assert_eq!(open(&copy).stats().blobs, 0);
}

#[test]
fn an_empty_store_is_a_superblock() {
    let scratch = tempfile::tempdir().unwrap();
    let store = open(&scratch.path().join("store"));
    let hold = wait(store.hold_removals()).unwrap();
    let snapshot = wait(hold.snapshot()).unwrap();
    assert_eq!(snapshot.files, []);
    let copy = scratch.path().join("copy");
    fs::create_dir(&copy).unwrap();
    link(&snapshot, &scratch.path().join("store"), &copy);
    assert_eq!(open(&copy).uuid(), store.uuid());
}
