//! A link whose removal is on its way: nobody is told of it any more, unless the removal fails.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use taffrail_blobstore::disk::sim::{Call, Fault, FaultError, SimDisk};
use taffrail_blobstore::{Algorithm, Digest, LinkError, PutError, ReadError, Store, UnlinkError};

use crate::catalog::{noise, repository};
use crate::world::{options, wait};

const NOW_MS: u64 = 1_000_000;
/// No lease of before stands then.
const LATER_MS: u64 = NOW_MS + 100 * 3_600_000;

fn is_pending<F: Future>(future: std::pin::Pin<&mut F>) -> bool {
    matches!(future.poll(&mut Context::from_waker(Waker::noop())), Poll::Pending)
}

fn stocked(disk: &SimDisk) -> (Store, Digest, Bytes) {
    let store = Store::open(Arc::new(disk.clone()), options(), NOW_MS).unwrap();
    let bytes = Bytes::from(noise(5, 3_000));
    let digest = Digest::of(Algorithm::Sha256, &bytes);
    drop(wait(store.put(repository(0), &digest, bytes.clone(), &[], NOW_MS)).unwrap());
    (store, digest, bytes)
}

/// A client asked while the UNLINK was being written: it was told that the blob exists, got a lease that came too late, and its
/// manifest was refused a moment later. A soak of the whole server met it.
#[test]
fn nobody_is_told_of_a_link_whose_removal_is_being_written() {
    let disk = SimDisk::new();
    let (store, digest, bytes) = stocked(&disk);
    let generation = store.link_generation(repository(0), &digest).unwrap();
    let hold = store.hold_commits();
    let mut going = pin!(store.unlink_if(repository(0), &digest, generation, LATER_MS));
    assert!(is_pending(going.as_mut()));
    assert!(matches!(store.stat(repository(0), &digest, LATER_MS), Err(ReadError::Unknown)));
    assert!(matches!(store.open_blob(repository(0), &digest), Err(ReadError::Unknown)));
    let mounted = wait(store.mount(repository(0), repository(1), &digest, LATER_MS));
    assert!(matches!(mounted, Err(LinkError::Unknown)));
    let manifest = Bytes::from_static(b"manifest");
    let manifest_digest = Digest::of(Algorithm::Sha256, &manifest);
    let needs = [(digest, bytes.len() as u64)];
    let put = wait(store.put(repository(0), &manifest_digest, manifest, &needs, LATER_MS));
    assert!(matches!(put, Err(PutError::Missing(missing)) if missing == [digest]));
    let again = wait(store.unlink(repository(0), &digest, generation, LATER_MS));
    assert!(matches!(again, Err(UnlinkError::Unknown)));
    assert!(!wait(store.unlink_if(repository(0), &digest, generation, LATER_MS)).unwrap());
    // A push that comes behind it stands.
    let mut pushed = pin!(store.put(repository(0), &digest, bytes, &[], LATER_MS));
    assert!(is_pending(pushed.as_mut()));
    drop(hold);
    assert!(wait(going).unwrap());
    drop(wait(pushed).unwrap());
    assert!(store.stat(repository(0), &digest, LATER_MS).is_ok());
}

#[test]
fn a_link_whose_removal_failed_is_there_again() {
    let disk = SimDisk::new();
    let (store, digest, _) = stocked(&disk);
    disk.inject(Fault::on(&[Call::Sync], FaultError::Io).within("log/"));
    let generation = store.link_generation(repository(0), &digest).unwrap();
    assert!(wait(store.unlink_if(repository(0), &digest, generation, LATER_MS)).is_err());
    assert!(store.stat(repository(0), &digest, LATER_MS).is_ok());
}

/// The catalog was asked while a manifest was on its way into it, after its push had renewed the link: it named nothing yet, and when it
/// did, and the pin was gone, the generation was the same. The link was dropped under the image. A soak of the whole server met it.
#[test]
fn a_link_that_a_manifest_on_its_way_needs_has_no_generation_to_drop() {
    let disk = SimDisk::new();
    let (store, digest, bytes) = stocked(&disk);
    let manifest = Bytes::from_static(b"manifest");
    let manifest_digest = Digest::of(Algorithm::Sha256, &manifest);
    let needs = [(digest, bytes.len() as u64)];
    let pins = wait(store.put(repository(0), &manifest_digest, manifest, &needs, NOW_MS)).unwrap();
    for pinned in [digest, manifest_digest] {
        let asked = store.droppable_generation(repository(0), &pinned);
        assert!(matches!(asked, Err(UnlinkError::Pinned)), "{asked:?}");
    }
    drop(pins);
    let generation = store.link_generation(repository(0), &digest).unwrap();
    assert_eq!(store.droppable_generation(repository(0), &digest).unwrap(), generation);
    let absent = store.droppable_generation(repository(1), &digest);
    assert!(matches!(absent, Err(UnlinkError::Unknown)), "{absent:?}");
}
