//! From the deletion of a manifest to the bytes.

use taffrail_blobstore::disk::sim::{Call, Fault, FaultError};

use super::world::{HOUR_US, LEASE_US, World, digest, exhaust};
use crate::job::Job;

#[tokio::test]
async fn what_only_the_deleted_manifest_named_is_unlinked_and_collected() {
    let world = World::new().await;
    world.push("one", &["shared", "own"]).await;
    world.push("two", &["shared"]).await;
    world.delete("one").await;
    world.clock.advance(LEASE_US);
    exhaust(&mut world.outbox()).await;
    assert!(!world.is_linked("one") && !world.is_linked("own"));
    assert!(world.is_linked("two") && world.is_linked("shared"));
    assert_eq!(world.sources.outbox.waiting().await.unwrap(), 0);
    assert_eq!(world.counters.unlinked(), 2);

    world.clock.advance(LEASE_US);
    exhaust(&mut world.collection()).await;
    assert_eq!(world.counters.collected_blobs(), 2);
    assert_eq!(world.store.stats().blobs, 2);
}

#[tokio::test]
async fn a_leased_link_waits_for_the_end_of_its_lease() {
    let world = World::new().await;
    world.push("m", &["layer"]).await;
    world.delete("m").await;
    exhaust(&mut world.outbox()).await;
    assert!(world.is_linked("layer"), "a client was told a moment ago that it exists");
    assert_eq!(world.sources.outbox.waiting().await.unwrap(), 2);
    assert!(world.counters.put_off() > 0);
    world.clock.advance(LEASE_US);
    exhaust(&mut world.outbox()).await;
    assert!(!world.is_linked("layer"));
    assert_eq!(world.sources.outbox.waiting().await.unwrap(), 0);
}

#[tokio::test]
async fn a_push_after_the_deletion_keeps_its_layers() {
    let world = World::new().await;
    world.push("one", &["layer"]).await;
    world.delete("one").await;
    world.clock.advance(LEASE_US);
    world.push("two", &["layer"]).await;
    world.clock.advance(LEASE_US);
    exhaust(&mut world.outbox()).await;
    assert!(world.is_linked("layer") && world.is_linked("two"));
    assert!(!world.is_linked("one"));
    assert_eq!(world.sources.outbox.waiting().await.unwrap(), 0);
}

#[tokio::test]
async fn a_manifest_between_link_and_catalog_keeps_its_layers() {
    let world = World::new().await;
    world.push("one", &["layer"]).await;
    world.delete("one").await;
    world.clock.advance(LEASE_US);
    let bytes = bytes::Bytes::from_static(b"two");
    let references = [(digest("layer"), 5)];
    let now_ms = world.context.now_ms();
    let pins = world.store.put(world.repository(), &digest("two"), bytes, &references, now_ms).await.unwrap();
    // Long past any lease: only the pins hold it now.
    world.clock.advance(24 * HOUR_US);
    exhaust(&mut world.outbox()).await;
    assert!(world.is_linked("layer"));
    assert_eq!(world.sources.outbox.waiting().await.unwrap(), 1);
    drop(pins);
}

#[tokio::test]
async fn rows_stay_while_the_store_takes_no_writes() {
    let world = World::new().await;
    world.push("m", &["layer"]).await;
    world.delete("m").await;
    world.clock.advance(LEASE_US);
    world.disk.inject(Fault::on(&[Call::Sync], FaultError::Io));
    assert!(world.outbox().round().await.is_err());
    assert_eq!(world.sources.outbox.waiting().await.unwrap(), 2);
}

#[tokio::test]
async fn more_rows_than_one_round_takes_are_done_in_several() {
    let world = World::new().await;
    let layers: Vec<String> = (0..300).map(|number| format!("layer {number}")).collect();
    let layers: Vec<&str> = layers.iter().map(String::as_str).collect();
    world.push("m", &layers).await;
    world.delete("m").await;
    world.clock.advance(LEASE_US);
    exhaust(&mut world.outbox()).await;
    assert_eq!(world.store.stats().links, 0);
    assert_eq!(world.counters.unlinked(), 301);
}
