//! What reconciliation remembers.

use std::collections::HashSet;

use taffrail_core::reconciliation::{Acquaintance, NamedPosition, StoreIdentity, Unclaimed};

use crate::world::{START_US, World, digest, image, index, key};

fn link(repository: u64, name: &str, generation: u64) -> Unclaimed {
    Unclaimed { repository: key(repository), digest: digest(name), generation }
}

#[tokio::test]
async fn an_unclaimed_link_keeps_its_time_until_it_is_renewed_or_forgotten() {
    let world = World::new().await;
    let tables = &world.reconciliation;
    assert_eq!(tables.unclaimed_since(&[link(1, "a", 5)]).await.unwrap(), [START_US]);
    world.clock.advance(10);
    let since = tables.unclaimed_since(&[link(1, "a", 5), link(2, "a", 5), link(1, "b", 6)]).await.unwrap();
    assert_eq!(since, [START_US, START_US + 10, START_US + 10]);
    world.clock.advance(10);
    assert_eq!(tables.unclaimed_since(&[link(1, "a", 9)]).await.unwrap(), [START_US + 20]);
    // The older generation is no longer what is remembered.
    tables.forget(&[link(1, "a", 5)]).await.unwrap();
    assert_eq!(tables.remembered(None, 10).await.unwrap().len(), 3);
    tables.forget(&[link(1, "a", 9)]).await.unwrap();
    world.clock.advance(10);
    assert_eq!(tables.unclaimed_since(&[link(1, "a", 9)]).await.unwrap(), [START_US + 30]);
}

#[tokio::test]
async fn remembered_links_come_page_by_page() {
    let world = World::new().await;
    let links: Vec<Unclaimed> =
        (1..=3).flat_map(|repository| ["a", "b", "c"].map(|name| link(repository, name, 1))).collect();
    world.reconciliation.unclaimed_since(&links).await.unwrap();
    let mut seen = Vec::new();
    loop {
        let page = world.reconciliation.remembered(seen.last(), 2).await.unwrap();
        if page.is_empty() {
            break;
        }
        seen.extend(page);
    }
    assert_eq!(seen.len(), links.len());
    assert_eq!(seen.iter().collect::<HashSet<_>>(), links.iter().collect::<HashSet<_>>());
}

#[tokio::test]
async fn everything_named_is_walked_once() {
    let world = World::new().await;
    let (one, two) = (world.grant("p/one").await, world.grant("p/two").await);
    world.put(&one, image("m", &["layer"], &["t"])).await.unwrap();
    world.put(&one, index("i", &["m"], &[])).await.unwrap();
    world.put(&two, image("m", &["layer"], &["t"])).await.unwrap();
    for limit in [1, 2, 100] {
        let mut seen = HashSet::new();
        let mut position = NamedPosition::default();
        while let (page, Some(next)) = world.reconciliation.named(position, limit).await.unwrap() {
            seen.extend(page.into_iter().map(|named| (named.repository, named.digest)));
            position = next;
        }
        let expected: HashSet<_> = [
            (&one, "m"),
            (&one, "m.config"),
            (&one, "layer"),
            (&one, "i"),
            (&two, "m"),
            (&two, "m.config"),
            (&two, "layer"),
        ]
        .into_iter()
        .map(|(grant, name)| (grant.repository, digest(name)))
        .collect();
        assert_eq!(seen, expected, "pages of {limit}");
    }
}

#[tokio::test]
async fn a_store_that_is_not_the_one_remembered_is_told_from_it() {
    let world = World::new().await;
    let tables = &world.reconciliation;
    let store = StoreIdentity { uuid: [1; 16], next_lsn: 10, links: 0 };
    let filled = StoreIdentity { links: 3, ..store };
    assert_eq!(tables.meet(&filled).await.unwrap(), Acquaintance::Stranger);
    assert_eq!(tables.meet(&filled).await.unwrap(), Acquaintance::Stranger, "and stays one");
    assert_eq!(tables.meet(&store).await.unwrap(), Acquaintance::New);
    assert_eq!(tables.meet(&filled).await.unwrap(), Acquaintance::Same);
    tables.adopt(&StoreIdentity { next_lsn: 20, ..filled }).await.unwrap();
    assert_eq!(tables.meet(&filled).await.unwrap(), Acquaintance::Earlier { remembered_lsn: 20 });
    let later = StoreIdentity { next_lsn: 21, ..filled };
    assert_eq!(tables.meet(&later).await.unwrap(), Acquaintance::Same);
    let other = StoreIdentity { uuid: [2; 16], ..later };
    assert_eq!(tables.meet(&other).await.unwrap(), Acquaintance::Other { remembered: [1; 16] });
    tables.adopt(&other).await.unwrap();
    assert_eq!(tables.meet(&other).await.unwrap(), Acquaintance::Same);
}
