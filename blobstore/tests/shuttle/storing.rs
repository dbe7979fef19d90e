//! What is acknowledged is there: pushes of one digest at once, checkpoints beside commits, scrubs beside pushes that heal.

use std::sync::Arc;

use shuttle::future::block_on;
use shuttle::thread;
use taffrail_blobstore::{ScrubDepth, ScrubPosition, StoreState};

use crate::checks::check;
use crate::scene::{
    NOW_MS, after_power_loss, blob, large, open, prepared, push, put, read, repository, small, uploaded,
};

#[test]
fn two_uploads_of_one_large_blob_are_both_acknowledged_and_both_hold_it() {
    let image = prepared(|_| {});
    check("two uploads of one solo blob", move || {
        let disk = image.fork();
        let store = Arc::new(open(&disk, 0));
        let first = uploaded(&store, repository(0), 1, &large());
        let second = uploaded(&store, repository(1), 2, &large());
        let committing = thread::spawn(move || block_on(first.commit(&large().0, NOW_MS)).unwrap());
        block_on(second.commit(&large().0, NOW_MS)).unwrap();
        committing.join().unwrap();
        for number in [0, 1] {
            read(&store, repository(number), &large()).unwrap();
        }
        assert_eq!((store.stats().blobs, store.stats().links, store.stats().sessions), (1, 2, 0));
        drop(store);
        // One file is the blob's, the other one was surplus, or not its name's removal is durable yet.
        let store = after_power_loss(&disk, 1);
        for number in [0, 1] {
            read(&store, repository(number), &large()).unwrap();
        }
    });
}

#[test]
fn two_puts_of_one_small_blob_and_its_deletion_leave_what_was_acknowledged_last() {
    let image = prepared(|_| {});
    check("two puts of one inline blob", move || {
        let disk = image.fork();
        let store = Arc::new(open(&disk, 0));
        let putting = {
            let store = Arc::clone(&store);
            thread::spawn(move || assert!(put(&store, repository(0), &small())))
        };
        assert!(put(&store, repository(1), &small()));
        assert!(crate::scene::unlink(&store, repository(1), &small().0));
        block_on(store.collect(NOW_MS, 10)).unwrap();
        putting.join().unwrap();
        read(&store, repository(0), &small()).unwrap();
        drop(store);
        read(&after_power_loss(&disk, 1), repository(0), &small()).unwrap();
    });
}

/// A checkpoint says what was applied before its place in the log; what comes behind is replayed.
#[test]
fn a_checkpoint_beside_commits_loses_none_of_them() {
    let image = prepared(|store| push(store, repository(0), 1, &small()));
    check("checkpoint against commits", move || {
        let disk = image.fork();
        let store = Arc::new(open(&disk, 0));
        let checkpointing = {
            let store = Arc::clone(&store);
            thread::spawn(move || block_on(store.checkpoint()).unwrap())
        };
        let blobs: Vec<_> = (10..13).map(|number| blob(number, 500)).collect();
        for blob in &blobs {
            assert!(put(&store, repository(2), blob));
        }
        assert!(crate::scene::unlink(&store, repository(2), &blobs[1].0));
        checkpointing.join().unwrap();
        drop(store);
        let store = after_power_loss(&disk, 1);
        for (number, blob) in blobs.iter().enumerate() {
            assert_eq!(read(&store, repository(2), blob).is_ok(), number != 1, "blob {number}");
        }
        read(&store, repository(0), &small()).unwrap();
    });
}

/// The scrub finds a bad copy while a push brings a whole one: whatever comes first, the whole one is served in the end.
#[test]
fn a_push_that_meets_the_scrub_s_find_is_served_once_it_is_acknowledged_after_it() {
    let image = prepared(|store| push(store, repository(0), 1, &small()));
    let (name, offset_bytes) = image
        .files()
        .into_iter()
        .find_map(|(name, _)| {
            let file = image.contents(&name)?;
            let at = file.windows(32).position(|window| window == &small().1[..32])?;
            Some((name, at as u64))
        })
        .unwrap();
    assert!(image.flip_bit(&name, offset_bytes + 100, 1));
    check("scrub against a push that heals", move || {
        let disk = image.fork();
        let store = Arc::new(open(&disk, 0));
        let scrubbing = {
            let store = Arc::clone(&store);
            thread::spawn(move || {
                let mut scrubber = store.scrub(ScrubPosition::START, ScrubDepth::Checksums).unwrap();
                let mut bad = 0;
                loop {
                    let step = block_on(scrubber.step(1)).unwrap();
                    bad += step.bad.len();
                    if step.is_complete {
                        break bad;
                    }
                }
            })
        };
        // Whoever finds it first sets it aside; the other one comes too late, and must not mean the copy that is pushed next.
        let reading = {
            let store = Arc::clone(&store);
            thread::spawn(move || drop(read(&store, repository(0), &small())))
        };
        // As clients do: what is there is not sent again.
        while store.stat(repository(0), &small().0, NOW_MS).is_ok() {
            thread::yield_now();
        }
        assert!(put(&store, repository(0), &small()));
        read(&store, repository(0), &small()).unwrap();
        assert!(scrubbing.join().unwrap() <= 1);
        reading.join().unwrap();
        read(&store, repository(0), &small()).unwrap();
        assert_eq!((store.quarantined().unwrap().len(), store.state()), (0, StoreState::Writable));
        drop(store);
        read(&after_power_loss(&disk, 1), repository(0), &small()).unwrap();
    });
}

/// Zeros that came over a batch would undo it, and a piece under way when its segment is cut would make the file long again.
#[test]
fn commits_over_zeros_and_beside_them_are_there_and_their_segments_end_where_they_end() {
    let image = prepared(|_| {});
    image.set_gains_from_zeros();
    // The second one is longer than the zeros that there can be for it.
    let blobs = [blob(10, 500), blob(11, 700_000), blob(12, 500), blob(13, 600_000)];
    check("commits against zeros", move || {
        let disk = image.fork();
        let store = Arc::new(open(&disk, 0));
        let putting = {
            let (store, blobs) = (Arc::clone(&store), blobs.clone());
            thread::spawn(move || assert!(blobs[2..].iter().all(|blob| put(&store, repository(1), blob))))
        };
        assert!(blobs[..2].iter().all(|blob| put(&store, repository(0), blob)));
        putting.join().unwrap();
        for (number, blob) in blobs.iter().enumerate() {
            read(&store, repository(u64::from(number >= 2)), blob).unwrap();
        }
        Arc::into_inner(store).unwrap().close().unwrap();
        for (name, _) in disk.files().into_iter().filter(|(name, _)| name.starts_with("log/")) {
            let contents = disk.contents(&name).unwrap();
            assert!(
                contents[contents.len() - 4096..].iter().any(|byte| *byte != 0),
                "{name} ends with zeros"
            );
        }
        let store = after_power_loss(&disk, 1);
        for (number, blob) in blobs.iter().enumerate() {
            read(&store, repository(u64::from(number >= 2)), blob).unwrap();
        }
    });
}
