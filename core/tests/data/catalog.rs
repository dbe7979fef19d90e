//! Manifests, tags and preconditions: what is visible after what.

use taffrail_blobstore::Digest;
use taffrail_distribution::access::Grant;
use taffrail_distribution::catalog::{Catalog, CatalogError, ManifestEntry, Precondition};
use taffrail_distribution::name::Reference;

use crate::world::{World, digest, image, index, key, somebody, tag};

async fn by_tag(world: &World, grant: &Grant, name: &str) -> Option<Digest> {
    match world.catalog.manifest(grant, &Reference::Tag(tag(name))).await {
        Ok(entry) => Some(entry.digest),
        Err(CatalogError::ManifestUnknown) => None,
        Err(error) => panic!("{error}"),
    }
}

async fn by_digest(world: &World, grant: &Grant, digest: Digest) -> Option<ManifestEntry> {
    match world.catalog.manifest(grant, &Reference::Digest(digest)).await {
        Ok(entry) => Some(entry),
        Err(CatalogError::ManifestUnknown) => None,
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test]
async fn a_manifest_is_found_by_tag_and_by_digest_in_its_repository_only() {
    let world = World::new().await;
    let (here, there) = (world.grant("p/here").await, world.grant("p/there").await);
    world.put(&here, image("m", &["layer"], &["latest", "v1"])).await.unwrap();

    let entry = by_digest(&world, &here, digest("m")).await.unwrap();
    assert_eq!(entry.digest, digest("m"));
    assert_eq!(entry.media_type, "application/vnd.oci.image.manifest.v1+json");
    assert_eq!(entry.len_bytes, 100);
    assert_eq!(by_tag(&world, &here, "latest").await, Some(digest("m")));
    assert_eq!(by_tag(&world, &here, "v1").await, Some(digest("m")));
    assert_eq!(by_tag(&world, &here, "v2").await, None);
    assert_eq!(by_digest(&world, &there, digest("m")).await, None);
    assert_eq!(by_tag(&world, &there, "latest").await, None);
}

#[tokio::test]
async fn a_tag_moves_and_the_manifest_it_left_stays() {
    let world = World::new().await;
    let grant = world.grant("p/r").await;
    world.put(&grant, image("one", &[], &["latest"])).await.unwrap();
    world.put(&grant, image("two", &[], &["latest"])).await.unwrap();
    assert_eq!(by_tag(&world, &grant, "latest").await, Some(digest("two")));
    assert!(by_digest(&world, &grant, digest("one")).await.is_some());
    assert_eq!(world.outbox.waiting().await.unwrap(), 0);
}

#[tokio::test]
async fn putting_the_same_manifest_again_only_moves_tags() {
    let world = World::new().await;
    let grant = world.grant("p/r").await;
    world.put(&grant, image("m", &["layer"], &["a"])).await.unwrap();
    world.put(&grant, image("m", &["layer"], &["b"])).await.unwrap();
    assert_eq!(by_tag(&world, &grant, "a").await, Some(digest("m")));
    assert_eq!(by_tag(&world, &grant, "b").await, Some(digest("m")));
    // One artifact, so that one deletion ends it.
    world.catalog.delete_manifest(&grant, &somebody(), &digest("m"), Precondition::None).await.unwrap();
    assert_eq!(by_digest(&world, &grant, digest("m")).await, None);
    assert!(!world.outbox.is_named(grant.repository, &digest("layer")).await.unwrap());
}

/// A foreign layer need not be there when its manifest is put. It was never named when it came later, and collected under it.
#[tokio::test]
async fn a_manifest_that_is_put_again_names_what_came_since() {
    let world = World::new().await;
    let grant = world.grant("p/r").await;
    world.put(&grant, image("m", &["layer"], &["a"])).await.unwrap();
    assert!(!world.catalog.uses_blob(&grant, &digest("foreign")).await.unwrap());
    world.put(&grant, image("m", &["layer", "foreign"], &["a"])).await.unwrap();
    assert!(world.catalog.uses_blob(&grant, &digest("foreign")).await.unwrap());
    // What was named once stays named: the blob may be on its way from another client.
    world.put(&grant, image("m", &["layer"], &["a"])).await.unwrap();
    assert!(world.catalog.uses_blob(&grant, &digest("foreign")).await.unwrap());
    world.catalog.delete_manifest(&grant, &somebody(), &digest("m"), Precondition::None).await.unwrap();
    assert!(!world.catalog.uses_blob(&grant, &digest("foreign")).await.unwrap());
    let due = world.outbox.due(100).await.unwrap();
    assert!(due.iter().any(|row| row.digest == digest("foreign")), "{due:?}");
}

#[tokio::test]
async fn a_layer_that_a_manifest_names_twice_is_one_reference() {
    let world = World::new().await;
    let grant = world.grant("p/r").await;
    world.put(&grant, image("m", &["same", "same"], &["a"])).await.unwrap();
    assert!(world.catalog.uses_blob(&grant, &digest("same")).await.unwrap());
}

#[tokio::test]
async fn an_index_without_its_children_leaves_nothing_behind() {
    let world = World::new().await;
    let grant = world.grant("p/r").await;
    world.put(&grant, image("child", &[], &[])).await.unwrap();
    let refused = world.put(&grant, index("index", &["child", "absent"], &["latest", "v1"])).await;
    assert!(matches!(refused, Err(CatalogError::ReferenceUnknown(missing)) if missing == digest("absent")));
    assert_eq!(by_digest(&world, &grant, digest("index")).await, None);
    assert_eq!(by_tag(&world, &grant, "latest").await, None);
    assert_eq!(by_tag(&world, &grant, "v1").await, None);
    assert!(!world.outbox.is_named(grant.repository, &digest("index")).await.unwrap());

    world.put(&grant, image("absent", &[], &[])).await.unwrap();
    world.put(&grant, index("index", &["child", "absent"], &["latest"])).await.unwrap();
    assert_eq!(by_tag(&world, &grant, "latest").await, Some(digest("index")));
}

#[tokio::test]
async fn a_child_in_another_repository_is_no_child() {
    let world = World::new().await;
    let (here, there) = (world.grant("p/here").await, world.grant("p/there").await);
    world.put(&there, image("child", &[], &[])).await.unwrap();
    let refused = world.put(&here, index("index", &["child"], &[])).await;
    assert!(matches!(refused, Err(CatalogError::ReferenceUnknown(_))));
}

#[tokio::test]
async fn a_repository_that_is_gone_takes_no_manifest() {
    let world = World::new().await;
    let mut grant = world.grant("p/r").await;
    grant.repository = key(1);
    let refused = world.put(&grant, image("m", &[], &["latest"])).await;
    assert!(matches!(refused, Err(CatalogError::RepositoryUnknown)));
    assert!(matches!(
        world.catalog.repository_name(grant.repository).await,
        Err(CatalogError::RepositoryUnknown)
    ));
}

#[tokio::test]
async fn a_precondition_is_judged_against_what_the_reference_names() {
    let world = World::new().await;
    let grant = world.grant("p/r").await;
    let with = |name: &str, precondition| {
        let mut manifest = image(name, &[], &["t"]);
        manifest.precondition = precondition;
        world.put(&grant, manifest)
    };
    let one = vec![digest("one")];
    let refused =
        |result: Result<(), CatalogError>| assert!(matches!(result, Err(CatalogError::Precondition)));

    refused(with("one", Precondition::Is(Vec::new())).await);
    refused(with("one", Precondition::Is(one.clone())).await);
    assert_eq!(by_digest(&world, &grant, digest("one")).await, None);

    with("one", Precondition::Absent).await.unwrap();
    refused(with("two", Precondition::Absent).await);
    refused(with("two", Precondition::IsNot(one.clone())).await);
    refused(with("two", Precondition::Is(vec![digest("three")])).await);
    assert_eq!(by_tag(&world, &grant, "t").await, Some(digest("one")));
    assert_eq!(by_digest(&world, &grant, digest("two")).await, None);

    with("two", Precondition::Is(vec![digest("three"), digest("one")])).await.unwrap();
    with("three", Precondition::IsNot(one)).await.unwrap();
    with("four", Precondition::Is(Vec::new())).await.unwrap();
    assert_eq!(by_tag(&world, &grant, "t").await, Some(digest("four")));
}

#[tokio::test]
async fn of_two_writers_that_demand_absence_one_loses() {
    let world = World::new().await;
    let grant = world.grant("p/r").await;
    let mut writers = Vec::new();
    for number in 0..8 {
        let mut manifest = image(&format!("m{number}"), &[], &["t"]);
        manifest.precondition = Precondition::Absent;
        writers.push(world.put(&grant, manifest));
    }
    let results = futures_util::future::join_all(writers).await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    assert_eq!(results.iter().filter(|result| matches!(result, Err(CatalogError::Precondition))).count(), 7);
}

#[tokio::test]
async fn deletions_honour_preconditions_and_change_nothing_when_refused() {
    let world = World::new().await;
    let grant = world.grant("p/r").await;
    world.put(&grant, image("m", &[], &["t"])).await.unwrap();
    let other = || Precondition::Is(vec![digest("other")]);
    let refused = world.catalog.delete_tag(&grant, &somebody(), &tag("t"), other()).await;
    assert!(matches!(refused, Err(CatalogError::Precondition)));
    let refused = world.catalog.delete_manifest(&grant, &somebody(), &digest("m"), other()).await;
    assert!(matches!(refused, Err(CatalogError::Precondition)));
    assert_eq!(by_tag(&world, &grant, "t").await, Some(digest("m")));
    assert_eq!(world.outbox.waiting().await.unwrap(), 0);
}

#[tokio::test]
async fn deleting_a_tag_keeps_the_manifest() {
    let world = World::new().await;
    let grant = world.grant("p/r").await;
    world.put(&grant, image("m", &[], &["t", "u"])).await.unwrap();
    world.catalog.delete_tag(&grant, &somebody(), &tag("t"), Precondition::None).await.unwrap();
    assert_eq!(by_tag(&world, &grant, "t").await, None);
    assert_eq!(by_tag(&world, &grant, "u").await, Some(digest("m")));
    assert!(by_digest(&world, &grant, digest("m")).await.is_some());
    let again = world.catalog.delete_tag(&grant, &somebody(), &tag("t"), Precondition::None).await;
    assert!(matches!(again, Err(CatalogError::ManifestUnknown)));
}

#[tokio::test]
async fn deleting_a_manifest_takes_its_tags_and_leaves_the_rest_to_the_outbox() {
    let world = World::new().await;
    let grant = world.grant("p/r").await;
    world.put(&grant, image("one", &["shared", "own"], &["a", "b"])).await.unwrap();
    world.put(&grant, image("two", &["shared"], &["c"])).await.unwrap();
    world.catalog.delete_manifest(&grant, &somebody(), &digest("one"), Precondition::None).await.unwrap();

    assert_eq!(by_digest(&world, &grant, digest("one")).await, None);
    assert_eq!(by_tag(&world, &grant, "a").await, None);
    assert_eq!(by_tag(&world, &grant, "b").await, None);
    assert_eq!(by_tag(&world, &grant, "c").await, Some(digest("two")));
    let mut due: Vec<Digest> =
        world.outbox.due(100).await.unwrap().into_iter().map(|row| row.digest).collect();
    let mut expected = vec![digest("one"), digest("one.config"), digest("shared"), digest("own")];
    due.sort_unstable();
    expected.sort_unstable();
    assert_eq!(due, expected);
    assert!(world.outbox.is_named(grant.repository, &digest("shared")).await.unwrap());
    assert!(!world.outbox.is_named(grant.repository, &digest("own")).await.unwrap());
    let again = world.catalog.delete_manifest(&grant, &somebody(), &digest("one"), Precondition::None).await;
    assert!(matches!(again, Err(CatalogError::ManifestUnknown)));
}

#[tokio::test]
async fn a_child_manifest_that_was_deleted_is_in_use_as_long_as_its_index_names_it() {
    let world = World::new().await;
    let grant = world.grant("p/r").await;
    world.put(&grant, image("child", &["layer"], &[])).await.unwrap();
    world.put(&grant, index("index", &["child"], &[])).await.unwrap();
    world.catalog.delete_manifest(&grant, &somebody(), &digest("child"), Precondition::None).await.unwrap();
    assert!(world.outbox.is_named(grant.repository, &digest("child")).await.unwrap());
    assert!(world.catalog.uses_blob(&grant, &digest("child")).await.unwrap());
    assert!(!world.catalog.uses_blob(&grant, &digest("layer")).await.unwrap());
    world.catalog.delete_manifest(&grant, &somebody(), &digest("index"), Precondition::None).await.unwrap();
    assert!(!world.catalog.uses_blob(&grant, &digest("child")).await.unwrap());
}

#[tokio::test]
async fn one_manifest_costs_one_commit() {
    let world = World::new().await;
    let grant = world.grant("p/r").await;
    // Each commit appends frames to the log and ends with one that carries the size of the database; counting those counts
    // commits (SQLite file format, section 4.1).
    let log = world.directory.path().join("taffrail.db-wal");
    let before = commits(&std::fs::read(&log).unwrap());
    world.put(&grant, image("m", &["a", "b", "c", "d"], &["t", "u", "v"])).await.unwrap();
    assert_eq!(commits(&std::fs::read(&log).unwrap()) - before, 1);
}

fn commits(log: &[u8]) -> usize {
    let word = |bytes: &[u8], at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
    let page_bytes = word(log, 8) as usize;
    let salt = &log[16..24];
    log[32..]
        .chunks_exact(24 + page_bytes)
        .take_while(|frame| frame[8..16] == *salt)
        .filter(|frame| word(frame, 4) != 0)
        .count()
}

#[tokio::test]
async fn an_index_of_thousands_needs_each_of_its_children() {
    let world = World::new().await;
    let grant = world.grant("p/r").await;
    // Past what one statement takes.
    let names: Vec<String> = (0..1_201).map(|number| format!("child {number}")).collect();
    for name in &names[..names.len() - 1] {
        let mut child = image(name, &[], &[]);
        child.references.clear();
        world.put(&grant, child).await.unwrap();
    }
    let children: Vec<&str> = names.iter().map(String::as_str).collect();
    let refused = world.put(&grant, index("index", &children, &["t"])).await;
    assert!(
        matches!(refused, Err(CatalogError::ReferenceUnknown(missing)) if missing == digest("child 1200"))
    );
    world.put(&grant, index("index", &children[..1_200], &["t"])).await.unwrap();
    assert_eq!(by_tag(&world, &grant, "t").await, Some(digest("index")));
    assert!(world.outbox.is_named(grant.repository, &digest("child 1199")).await.unwrap());
    // Named by nothing but the index.
    world
        .catalog
        .delete_manifest(&grant, &somebody(), &digest("child 1199"), Precondition::None)
        .await
        .unwrap();
    assert!(world.outbox.is_named(grant.repository, &digest("child 1199")).await.unwrap());
}

#[tokio::test]
async fn a_write_whose_request_is_dropped_is_seen_like_any_other() {
    let world = World::new().await;
    let grant = world.grant("p/r").await;
    world.put(&grant, image("one", &[], &["t"])).await.unwrap();
    for polls in 1..40 {
        let name = format!("m{polls}");
        let ended = {
            let put = std::pin::pin!(world.put(&grant, image(&name, &[], &["t"])));
            cut(put, polls).await
        };
        // Whatever the cache says, the table says the same, now and when the write has ended: the one writer ends it first.
        drop(world.database.write().await.unwrap());
        let seen = by_tag(&world, &grant, "t").await;
        let fresh = world.catalog_without_memory();
        let read = fresh.manifest(&grant, &Reference::Tag(tag("t"))).await.unwrap().digest;
        assert_eq!(seen, Some(read));
        assert!(!ended || read == digest(&name));
    }
}

/// Polls a future up to so often, then drops it. Says whether it ended.
async fn cut<T>(mut future: std::pin::Pin<&mut impl Future<Output = T>>, polls: usize) -> bool {
    let mut left = polls;
    std::future::poll_fn(|context| {
        if left == 0 {
            return std::task::Poll::Ready(false);
        }
        left -= 1;
        future.as_mut().poll(context).map(|_| true)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_reader_sees_an_older_manifest_than_one_that_was_acknowledged() {
    let world = World::new().await;
    let grant = world.grant("p/r").await;
    world.put(&grant, image("0", &[], &["t"])).await.unwrap();
    let acknowledged = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let names: Vec<Digest> = (0..200_usize).map(|number| digest(&number.to_string())).collect();
    let reader = {
        let (catalog, grant) = (world.catalog.clone(), grant.clone());
        let (acknowledged, names) = (std::sync::Arc::clone(&acknowledged), names.clone());
        tokio::spawn(async move {
            loop {
                let before = acknowledged.load(std::sync::atomic::Ordering::SeqCst);
                let entry = catalog.manifest(&grant, &Reference::Tag(tag("t"))).await.unwrap();
                let seen = names.iter().position(|digest| *digest == entry.digest).unwrap();
                assert!(seen >= before, "{seen} after {before} was acknowledged");
                if before + 1 == names.len() {
                    return;
                }
                tokio::task::yield_now().await;
            }
        })
    };
    for number in 1..names.len() {
        world.put(&grant, image(&number.to_string(), &[], &["t"])).await.unwrap();
        acknowledged.store(number, std::sync::atomic::Ordering::SeqCst);
    }
    reader.await.unwrap();
}

#[tokio::test]
async fn a_full_disk_is_told_from_a_broken_one_and_heals() {
    let world = World::new().await;
    let grant = world.grant("p/r").await;
    let pages = async |max: i64| {
        let mut write = world.database.write().await.unwrap();
        let set: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(format!("PRAGMA max_page_count = {max}")))
            .fetch_one(&mut *write)
            .await
            .unwrap();
        write.commit().await.unwrap();
        set
    };
    // Lower than the file is, which SQLite takes for "no page more".
    pages(1).await;
    let mut refusals = 0;
    for number in 0..200 {
        match world.put(&grant, image(&format!("m{number}"), &[], &["t"])).await {
            Ok(()) => assert_eq!(refusals, 0),
            Err(CatalogError::NoSpace) => refusals += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(refusals > 0);
    let seen = by_tag(&world, &grant, "t").await.unwrap();
    assert_eq!(seen, digest(&format!("m{}", 199 - refusals)), "the last one that was taken");
    pages(1_000_000).await;
    world.put(&grant, image("healed", &[], &["t"])).await.unwrap();
    assert_eq!(by_tag(&world, &grant, "t").await, Some(digest("healed")));
}
