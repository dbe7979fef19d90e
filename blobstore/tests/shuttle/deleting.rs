//! Bytes go only when nobody was promised them: links, leases, pins and open blobs against condemning and collecting.

use std::sync::Arc;

use shuttle::future::block_on;
use shuttle::thread;
use taffrail_blobstore::ReadError;
use taffrail_blobstore::disk::sim::SimDisk;

use crate::checks::check;
use crate::scene::{
    LEASE_MS, NOW_MS, after_power_loss, large, open, prepared, push, put, read, read_on, repository, small,
    unlink, uploaded,
};

/// A store in which nobody holds the small and the large blob any more.
fn with_garbage() -> SimDisk {
    prepared(|store| {
        for (id, blob) in [(1, small()), (2, large())] {
            push(store, repository(0), id, &blob);
            assert!(unlink(store, repository(0), &blob.0));
        }
    })
}

/// A store in which one repository holds both.
fn with_links() -> SimDisk {
    prepared(|store| {
        for (id, blob) in [(1, small()), (2, large())] {
            push(store, repository(0), id, &blob);
        }
    })
}

/// Garbage that is linked again, or condemned: one of them comes first, and the other sees it.
#[test]
fn a_push_of_garbage_that_is_being_collected_is_kept() {
    let image = with_garbage();
    check("push of garbage against collection", move || {
        let disk = image.fork();
        let store = Arc::new(open(&disk, 0));
        let collecting = {
            let store = Arc::clone(&store);
            thread::spawn(move || block_on(store.collect(NOW_MS, 10)).unwrap())
        };
        assert!(put(&store, repository(1), &small()));
        collecting.join().unwrap();
        read(&store, repository(1), &small()).unwrap();
        block_on(store.collect(NOW_MS, 10)).unwrap();
        read(&store, repository(1), &small()).unwrap();
        drop(store);
        read(&after_power_loss(&disk, 1), repository(1), &small()).unwrap();
    });
}

#[test]
fn an_upload_of_garbage_with_a_file_of_its_own_is_kept_when_it_is_being_collected() {
    let image = with_garbage();
    check("upload of solo garbage against collection", move || {
        let disk = image.fork();
        let store = Arc::new(open(&disk, 0));
        let upload = uploaded(&store, repository(1), 9, &large());
        let collecting = {
            let store = Arc::clone(&store);
            thread::spawn(move || block_on(store.collect(NOW_MS, 10)).unwrap())
        };
        block_on(upload.commit(&large().0, NOW_MS)).unwrap();
        collecting.join().unwrap();
        read(&store, repository(1), &large()).unwrap();
        drop(store);
        read(&after_power_loss(&disk, 1), repository(1), &large()).unwrap();
    });
}

#[test]
fn a_mount_of_what_is_being_deleted_gives_it_or_says_that_it_is_unknown() {
    let image = with_links();
    check("mount against unlink and collection", move || {
        let disk = image.fork();
        let store = Arc::new(open(&disk, 0));
        let deleting = {
            let store = Arc::clone(&store);
            thread::spawn(move || {
                assert!(unlink(&store, repository(0), &small().0));
                block_on(store.collect(NOW_MS, 10)).unwrap();
            })
        };
        let mounted = block_on(store.mount(repository(0), repository(1), &small().0, NOW_MS)).is_ok();
        deleting.join().unwrap();
        block_on(store.collect(NOW_MS, 10)).unwrap();
        let found = read(&store, repository(1), &small());
        assert_eq!(found.is_ok(), mounted, "{found:?}");
        drop(store);
        assert_eq!(read(&after_power_loss(&disk, 1), repository(1), &small()).is_ok(), mounted);
    });
}

/// What a client was told of stays for a lease time, although the outbox wants it gone.
#[test]
fn what_was_leased_is_there_for_the_manifest_that_needs_it() {
    let image = with_links();
    check("lease against unlink_if and collection", move || {
        let store = Arc::new(open(&image.fork(), LEASE_MS));
        let reclaiming = {
            let store = Arc::clone(&store);
            thread::spawn(move || {
                if let Some(generation) = store.link_generation(repository(0), &small().0) {
                    block_on(store.unlink_if(repository(0), &small().0, generation, NOW_MS)).unwrap();
                }
                block_on(store.collect(NOW_MS, 10)).unwrap();
            })
        };
        let told = store.stat(repository(0), &small().0, NOW_MS).is_ok();
        // Whatever the outbox wants has come to its end before the manifest does.
        reclaiming.join().unwrap();
        let needs = [(small().0, small().1.len() as u64)];
        let manifest = crate::scene::blob(7, 300);
        let stored = block_on(store.put(repository(0), &manifest.0, manifest.1.clone(), &needs, NOW_MS));
        assert_eq!(stored.is_ok(), told, "{stored:?}");
        drop(stored);
        assert_eq!(read(&store, repository(0), &small()).is_ok(), told);
    });
}

/// The outbox looked at the link before the push renewed it: the generation it names is not the link's any more.
#[test]
fn a_link_that_a_push_renewed_is_not_removed_by_who_looked_before() {
    let image = with_links();
    check("unlink_if against a renewed link", move || {
        let disk = image.fork();
        // Leases are long over: the generation and the pins alone speak for the link.
        let store = Arc::new(open(&disk, 0));
        let generation = store.link_generation(repository(0), &small().0).unwrap();
        let reclaiming = {
            let store = Arc::clone(&store);
            thread::spawn(move || {
                block_on(store.unlink_if(repository(0), &small().0, generation, NOW_MS)).unwrap();
                block_on(store.collect(NOW_MS, 10)).unwrap();
            })
        };
        assert!(put(&store, repository(0), &small()));
        reclaiming.join().unwrap();
        read(&store, repository(0), &small()).unwrap();
        drop(store);
        read(&after_power_loss(&disk, 1), repository(0), &small()).unwrap();
    });
}

/// Whoever has a blob open reads it to its end or learns that it is gone. Nothing whole is taken for damaged.
#[test]
fn a_blob_that_is_deleted_while_it_is_read_is_whole_or_unknown() {
    let image = with_links();
    check("reading against deletion", move || {
        let store = Arc::new(open(&image.fork(), 0));
        let deleting = {
            let store = Arc::clone(&store);
            thread::spawn(move || {
                for digest in [small().0, large().0] {
                    assert!(unlink(&store, repository(0), &digest));
                }
                block_on(store.collect(NOW_MS, 10)).unwrap();
            })
        };
        for blob in [large(), small()] {
            let found = read(&store, repository(0), &blob);
            assert!(matches!(found, Ok(()) | Err(ReadError::Unknown)), "{found:?}");
        }
        deleting.join().unwrap();
        assert_eq!(store.stats().quarantines, 0);
    });
}

/// Where the blob lies is looked up when it is opened, and its file is opened for the first block: in between the file may go, and
/// another may come. Opened before the others begin, or no schedule with few changes of mind would come to it.
fn an_open_blob_is_whole_or_unknown(name: &'static str, is_pushed_again: bool) {
    let image = with_links();
    check(name, move || {
        let store = Arc::new(open(&image.fork(), 0));
        let mut reader = store.open_blob(repository(0), &large().0).unwrap();
        let deleting = {
            let store = Arc::clone(&store);
            thread::spawn(move || {
                assert!(unlink(&store, repository(0), &large().0));
                block_on(store.collect(NOW_MS, 10)).unwrap();
                if is_pushed_again {
                    push(&store, repository(0), 9, &large());
                }
            })
        };
        let found = read_on(&mut reader, &large());
        assert!(matches!(found, Ok(()) | Err(ReadError::Unknown)), "{found:?}");
        deleting.join().unwrap();
        assert_eq!(read(&store, repository(0), &large()).is_ok(), is_pushed_again);
        assert_eq!((store.stats().quarantines, store.quarantined().unwrap().len()), (0, 0));
    });
}

#[test]
fn a_reader_whose_blob_goes_before_its_first_block_learns_that_it_is_unknown() {
    an_open_blob_is_whole_or_unknown("open reader against deletion", false);
}

#[test]
fn a_reader_whose_blob_goes_and_comes_again_before_its_first_block_finds_it() {
    an_open_blob_is_whole_or_unknown("open reader against deletion and push", true);
}
