//! Pages of tags, referrers and repositories.

use taffrail_blobstore::Digest;
use taffrail_core::project::Role;
use taffrail_core::project::store::Visibility;
use taffrail_distribution::access::Identity;
use taffrail_distribution::catalog::{Catalog, PageRequest};

use crate::world::{World, digest, image, referrer};

#[tokio::test]
async fn tags_come_in_bytewise_order_page_by_page() {
    let world = World::new().await;
    let grant = world.grant("p/r").await;
    let names = ["a", "B", "_x", "1.10", "1.9", "b", "A", "a-b", "a.b", "a_b"];
    for name in names {
        world.put(&grant, image("m", &[], &[name])).await.unwrap();
    }
    let mut expected = names.map(str::to_owned).to_vec();
    expected.sort_unstable();
    for limit in [1_u32, 3, 10, 11] {
        let mut seen = Vec::new();
        let mut after = None;
        loop {
            let page = world.catalog.tags(&grant, PageRequest { after, limit }).await.unwrap();
            assert!(page.entries.len() <= limit as usize);
            seen.extend(page.entries.iter().map(|tag| tag.as_str().to_owned()));
            if !page.more {
                break;
            }
            after = seen.last().cloned();
        }
        assert_eq!(seen, expected, "pages of {limit}");
    }
    let page =
        world.catalog.tags(&grant, PageRequest { after: Some("aa".to_owned()), limit: 5 }).await.unwrap();
    assert_eq!(page.entries.first().unwrap().as_str(), "b", "a position need not exist");
    let empty = world.grant("p/empty").await;
    let page = world.catalog.tags(&empty, PageRequest { after: None, limit: 5 }).await.unwrap();
    assert!(page.entries.is_empty() && !page.more);
}

#[tokio::test]
async fn referrers_are_listed_by_subject_and_type() {
    let world = World::new().await;
    let grant = world.grant("p/r").await;
    for number in 0..5 {
        let kind = if number % 2 == 0 { "sbom" } else { "signature" };
        world.put(&grant, referrer(&format!("r{number}"), "subject", kind)).await.unwrap();
    }
    world.put(&grant, referrer("elsewhere", "other", "sbom")).await.unwrap();
    let of = async |kind: Option<&str>, after: Option<Digest>, limit| {
        world.catalog.referrers(&grant, &digest("subject"), kind, PageRequest { after, limit }).await.unwrap()
    };
    let all = of(None, None, 10).await;
    assert_eq!(all.entries.len(), 5);
    assert!(all.entries.windows(2).all(|pair| pair[0].digest.to_string() < pair[1].digest.to_string()));
    let sboms = of(Some("sbom"), None, 10).await;
    assert_eq!(sboms.entries.len(), 3);
    assert!(sboms.entries.iter().all(|entry| entry.artifact_type.as_deref() == Some("sbom")));
    let entry = all.entries.iter().find(|entry| entry.digest == digest("r1")).unwrap();
    assert_eq!(entry.annotations.as_deref(), Some("{\"name\":\"r1\"}"));
    let first = of(None, None, 2).await;
    assert!(first.more);
    let rest = of(None, Some(first.entries[1].digest), 3).await;
    assert!(!rest.more);
    assert_eq!([first.entries, rest.entries].concat(), all.entries);
    let none = world
        .catalog
        .referrers(&grant, &digest("unknown"), None, PageRequest { after: None, limit: 10 })
        .await
        .unwrap();
    assert!(none.entries.is_empty());
}

#[tokio::test]
async fn repositories_are_listed_when_they_hold_something_and_may_be_seen() {
    let world = World::new().await;
    let owner = world.user("owner").await;
    let member = world.user("member").await;
    let stranger = world.user("stranger").await;
    world.project("open", true, owner).await;
    let closed = world.project("closed", false, owner).await;
    world.members.add(closed, member, Role::LimitedGuest).await.unwrap();
    for name in ["open/z", "open/a", "closed/x"] {
        let grant = world.grant(name).await;
        world.put(&grant, image(name, &[], &[])).await.unwrap();
    }
    world.grant("open/empty").await;
    let seen = async |visibility: Visibility, after: Option<&str>, limit| {
        let request = PageRequest { after: after.map(str::to_owned), limit };
        let page = world.catalog.repositories(&Identity::new(visibility), request).await.unwrap();
        let names: Vec<String> = page.entries.iter().map(ToString::to_string).collect();
        (names, page.more)
    };
    let (all, open) = (["closed/x", "open/a", "open/z"], ["open/a", "open/z"]);
    assert_eq!(seen(Visibility::All, None, 10).await, (all.map(str::to_owned).to_vec(), false));
    assert_eq!(seen(Visibility::Member(member), None, 10).await.0, all);
    assert_eq!(seen(Visibility::Member(stranger), None, 10).await.0, open);
    assert_eq!(seen(Visibility::Public, None, 10).await.0, open);
    assert_eq!(seen(Visibility::All, Some("closed/x"), 1).await, (vec!["open/a".to_owned()], true));
}
