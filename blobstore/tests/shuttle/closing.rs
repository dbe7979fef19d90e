//! Ends: whoever waits is told, whatever was acknowledged is durable, and every thread goes. The checker calls it a deadlock when
//! somebody waits for ever.

use shuttle::future::block_on;
use shuttle::thread;
use taffrail_blobstore::Refusal;
use taffrail_blobstore::UploadError;

use crate::checks::check;
use crate::scene::{
    NOW_MS, after_power_loss, large, open, prepared, push, read, repository, small, uploaded,
};

#[test]
fn an_upload_that_meets_the_closing_of_the_store_is_acknowledged_or_refused() {
    let image = prepared(|_| {});
    check("commit against closing", move || {
        let disk = image.fork();
        let store = open(&disk, 0);
        let upload = uploaded(&store, repository(0), 1, &small());
        let committing = thread::spawn(move || block_on(upload.commit(&small().0, NOW_MS)));
        store.close().unwrap();
        let committed = committing.join().unwrap();
        let is_told = matches!(committed, Ok(_) | Err(UploadError::Refused(Refusal::Closing)));
        assert!(is_told, "{committed:?}");
        let store = after_power_loss(&disk, 1);
        assert!(committed.is_err() || read(&store, repository(0), &small()).is_ok(), "it was acknowledged");
    });
}

/// Several at once: each is told of its own, and nobody sleeps through it.
#[test]
fn everybody_who_commits_together_is_woken() {
    let image = prepared(|_| {});
    check("group commit", move || {
        let disk = image.fork();
        let store = std::sync::Arc::new(open(&disk, 0));
        let putting: Vec<_> = (0..3_u8)
            .map(|number| {
                let store = std::sync::Arc::clone(&store);
                let blob = crate::scene::blob(20 + number, 200);
                thread::spawn(move || assert!(crate::scene::put(&store, repository(0), &blob)))
            })
            .collect();
        for putting in putting {
            putting.join().unwrap();
        }
        drop(store);
        let store = after_power_loss(&disk, 1);
        for number in 0..3 {
            read(&store, repository(0), &crate::scene::blob(20 + number, 200)).unwrap();
        }
    });
}

/// A reader outlives the store; the last job on a storage thread may be the last user of the engine.
#[test]
fn the_storage_threads_end_when_the_last_reader_goes_wherever_it_goes() {
    let image = prepared(|store| push(store, repository(0), 1, &large()));
    check("reading against the end of the pool", move || {
        let disk = image.fork();
        let store = open(&disk, 0);
        let mut reader = store.open_blob(repository(0), &large().0).unwrap();
        let reading = thread::spawn(move || {
            for from in [0, 300_000] {
                let bytes = block_on(reader.read(from, reader.len_bytes())).unwrap();
                let at = usize::try_from(from).unwrap();
                assert!(bytes == large().1[at..at + bytes.len()]);
            }
        });
        drop(store);
        reading.join().unwrap();
        // The lock goes with the last of them.
        let store = open(&disk, 0);
        read(&store, repository(0), &large()).unwrap();
    });
}
