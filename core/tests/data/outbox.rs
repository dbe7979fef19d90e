//! Rows of the outbox: due, done, put off.

use taffrail_distribution::catalog::{Catalog, Precondition};

use crate::world::{World, digest, image, somebody};

#[tokio::test]
async fn a_row_that_is_put_off_comes_back_later_each_time() {
    let world = World::new().await;
    let grant = world.grant("p/r").await;
    world.put(&grant, image("m", &[], &[])).await.unwrap();
    world.catalog.delete_manifest(&grant, &somebody(), &digest("m"), Precondition::None).await.unwrap();
    let rows = world.outbox.due(100).await.unwrap();
    assert_eq!(rows.len(), 2);
    assert!(rows.iter().all(|row| row.repository == grant.repository && row.attempts == 0));

    world.outbox.settle(&[rows[0].id], &rows[1..]).await.unwrap();
    assert!(world.outbox.due(100).await.unwrap().is_empty());
    assert_eq!(world.outbox.waiting().await.unwrap(), 1);

    let mut waits_us = Vec::new();
    for attempts in 1..12 {
        let mut waited_us = 0;
        let row = loop {
            if let Some(row) = world.outbox.due(100).await.unwrap().first() {
                break *row;
            }
            world.clock.advance(5_000_000);
            waited_us += 5_000_000;
        };
        assert_eq!(row.attempts, attempts);
        assert_eq!(row.digest, rows[1].digest);
        waits_us.push(waited_us);
        world.outbox.settle(&[], &[row]).await.unwrap();
    }
    assert_eq!(waits_us[..4], [10_000_000, 20_000_000, 40_000_000, 80_000_000]);
    assert_eq!(waits_us[10], 900_000_000, "never later than a quarter of an hour");
}

#[tokio::test]
async fn rows_come_in_the_order_in_which_they_are_due() {
    let world = World::new().await;
    let grant = world.grant("p/r").await;
    for name in ["one", "two"] {
        world.put(&grant, image(name, &[], &[])).await.unwrap();
        world.catalog.delete_manifest(&grant, &somebody(), &digest(name), Precondition::None).await.unwrap();
        world.clock.advance(1);
    }
    let first = world.outbox.due(2).await.unwrap();
    assert!(first.iter().all(|row| row.digest == digest("one") || row.digest == digest("one.config")));
}
