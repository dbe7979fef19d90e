//! Links without names, names without links, and stores that are not the catalog's.

use std::sync::Arc;

use taffrail_blobstore::Store;
use taffrail_blobstore::disk::sim::SimDisk;

use super::world::{HOUR_US, LEASE_US, World, digest, exhaust, options};
use crate::mark::Mark;
use crate::service::identity_of;
use crate::{Held, JobsOptions, start};

#[tokio::test]
async fn a_link_that_nothing_names_lives_for_a_day() {
    let world = World::new().await;
    world.upload("stray").await;
    world.push("m", &["layer"]).await;
    let mut reconcile = world.reconcile();
    exhaust(&mut reconcile).await;
    assert_eq!(world.counters.unclaimed(), 1);
    world.clock.advance(24 * HOUR_US - 1);
    exhaust(&mut reconcile).await;
    assert!(world.is_linked("stray"));
    world.clock.advance(1);
    exhaust(&mut reconcile).await;
    assert!(!world.is_linked("stray"));
    assert!(world.is_linked("m") && world.is_linked("layer"));
    assert_eq!((world.counters.unclaimed(), world.counters.given_up()), (0, 1));
    assert!(world.sources.reconciliation.remembered(None, 10).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_link_lives_longer_while_its_repository_has_a_session() {
    let world = World::new().await;
    world.upload("stray").await;
    let mut reconcile = world.reconcile();
    exhaust(&mut reconcile).await;
    world.clock.advance(48 * HOUR_US);
    let session = world.begin();
    exhaust(&mut reconcile).await;
    assert!(world.is_linked("stray"));
    world.store.abort_upload(world.repository(), session, world.context.now_ms()).await.unwrap();
    exhaust(&mut reconcile).await;
    assert!(!world.is_linked("stray"));
}

#[tokio::test]
async fn a_link_that_is_renewed_begins_its_day_anew() {
    let world = World::new().await;
    world.upload("stray").await;
    let mut reconcile = world.reconcile();
    exhaust(&mut reconcile).await;
    world.clock.advance(24 * HOUR_US);
    world.upload("stray").await;
    // Past the lease as well, so that only the new generation speaks for it.
    world.clock.advance(LEASE_US);
    exhaust(&mut reconcile).await;
    assert!(world.is_linked("stray"));
    world.clock.advance(24 * HOUR_US);
    exhaust(&mut reconcile).await;
    assert!(!world.is_linked("stray"));
}

#[tokio::test]
async fn a_link_that_is_named_later_is_forgotten_as_unclaimed() {
    let world = World::new().await;
    world.upload("layer").await;
    exhaust(&mut world.reconcile()).await;
    assert_eq!(world.sources.reconciliation.remembered(None, 10).await.unwrap().len(), 1);
    world.push("m", &["layer"]).await;
    exhaust(&mut world.reconcile()).await;
    assert!(world.sources.reconciliation.remembered(None, 10).await.unwrap().is_empty());
    world.clock.advance(48 * HOUR_US);
    exhaust(&mut world.reconcile()).await;
    assert!(world.is_linked("layer"));
}

#[tokio::test]
async fn a_name_without_link_is_counted_as_damage_until_it_is_pushed_again() {
    let world = World::new().await;
    world.push("m", &["layer"]).await;
    exhaust(&mut world.reconcile()).await;
    assert_eq!(world.counters.missing(), 0);
    let (repository, layer) = (world.repository(), digest("layer"));
    let generation = world.store.link_generation(repository, &layer).unwrap();
    world.store.unlink(repository, &layer, generation, world.context.now_ms()).await.unwrap();
    exhaust(&mut world.reconcile()).await;
    exhaust(&mut world.reconcile()).await;
    assert_eq!(world.counters.missing(), 1, "a state, not a sum over passes");
    world.push("m", &["layer"]).await;
    exhaust(&mut world.reconcile()).await;
    assert_eq!(world.counters.missing(), 0);
    assert_eq!(world.counters.passes(), 4);
}

#[tokio::test]
async fn nothing_is_deleted_from_a_store_that_is_not_the_catalogs() {
    let world = World::new().await;
    let begin = async |store: &Arc<Store>, trust_store| {
        let options = JobsOptions { trust_store, ..JobsOptions::default() };
        let jobs =
            start(options, Arc::clone(store), world.sources.clone(), world.context.clone()).await.unwrap();
        let held = jobs.held();
        jobs.stop().await;
        held
    };
    assert_eq!(begin(&world.store, false).await, None);
    assert_eq!(begin(&world.store, false).await, None);

    let other = Store::open(Arc::new(SimDisk::new()), options(2), world.context.now_ms()).unwrap();
    let other = Arc::new(other);
    let remembered = world.store.uuid();
    assert_eq!(begin(&other, false).await, Some(Held::OtherStore { remembered }));
    assert_eq!(begin(&world.store, false).await, None, "the refusal changes nothing");
    assert_eq!(begin(&other, true).await, None);
    assert_eq!(begin(&other, false).await, None);
}

#[tokio::test]
async fn a_store_restored_from_an_older_backup_is_noticed() {
    let world = World::new().await;
    let backup = world.disk.fork();
    world.push("m", &["layer"]).await;
    world.sources.reconciliation.adopt(&identity_of(&world.store)).await.unwrap();
    let older = Store::open(Arc::new(backup), options(1), world.context.now_ms()).unwrap();
    let jobs = start(JobsOptions::default(), Arc::new(older), world.sources.clone(), world.context.clone())
        .await
        .unwrap();
    assert!(matches!(jobs.held(), Some(Held::StoreIsOlder { .. })));
    jobs.stop().await;
}

#[tokio::test]
async fn a_store_beside_a_new_catalog_is_left_alone() {
    let world = World::new().await;
    world.upload("somebody's").await;
    let jobs =
        start(JobsOptions::default(), Arc::clone(&world.store), world.sources.clone(), world.context.clone())
            .await
            .unwrap();
    assert_eq!(jobs.held(), Some(Held::CatalogIsNew { links: 1 }));
    jobs.stop().await;
}

#[tokio::test]
async fn what_is_written_down_of_a_stores_progress_is_a_round_old() {
    let world = World::new().await;
    let mut mark = Mark {
        store: Arc::clone(&world.store),
        reconciliation: world.sources.reconciliation.clone(),
        read_lsn: 0,
        written_lsn: 0,
    };
    exhaust(&mut mark).await;
    let first = identity_of(&world.store);
    world.push("m", &["layer"]).await;
    exhaust(&mut mark).await;
    assert_eq!(mark.written_lsn, first.next_lsn);
    exhaust(&mut mark).await;
    assert_eq!(mark.written_lsn, world.store.next_lsn());
    assert!(mark.written_lsn > first.next_lsn);
}
