//! Mounts across repositories, and what they must not tell (S-44, S-45).

use taffrail_blobstore::Digest;

use crate::client::{Answer, Scene, sha256};

const CONTENT: &[u8] = b"a layer";

async fn mount(scene: &Scene, user: &str, query: &str) -> Answer {
    scene.post(user, format!("/v2/pb/app/blobs/uploads/?{query}")).send().await
}

/// 202 with a session that works, and no link.
fn refused(scene: &Scene, answer: &Answer, digest: &Digest) {
    answer.demand(202);
    assert!(!scene.links("pb/app", digest), "{}", answer.what);
    assert_eq!(answer.header("range"), "0-0");
    assert!(answer.header("location").starts_with("/v2/pb/app/blobs/uploads/"));
    assert!(answer.headers.get("docker-content-digest").is_none());
}

fn mounted(scene: &Scene, answer: &Answer, digest: &Digest) {
    answer.demand(201);
    assert!(scene.links("pb/app", digest));
    assert_eq!(answer.header("location"), format!("/v2/pb/app/blobs/{digest}"));
    assert_eq!(answer.header("docker-content-digest"), digest.to_string());
    assert!(scene.blobs.with(|inner| inner.sessions.is_empty()));
}

#[tokio::test]
async fn a_mount_needs_pull_on_a_source_that_holds_the_blob() {
    let scene = Scene::new();
    let digest = scene.push_blob("alice", "pa/secret", CONTENT).await;
    scene.push_blob("bob", "pb/other", b"something else").await;
    for query in [
        format!("mount={digest}&from=pa/secret"),
        format!("mount={digest}"),
        format!("mount={digest}&from="),
        format!("mount={digest}&from=../"),
        format!("mount={digest}&from=pa/secret%00"),
        format!("mount={digest}&from=pb/other"),
        format!("mount={digest}&from=pb/never"),
        format!("mount={digest}&from=PA/secret"),
        "mount=sha256:x&from=pa/secret".to_owned(),
        "mount=&from=pa/secret".to_owned(),
        format!("mount={}&from=pb/other", sha256(b"nobody has this")),
    ] {
        let answer = mount(&scene, "bob", &query).await;
        refused(&scene, &answer, &digest);
        // The answer for what is forbidden is that for what does not exist.
        let absent = mount(&scene, "bob", &format!("mount={}&from=pa/none", sha256(b"absent"))).await;
        let names = |answer: &Answer| {
            let mut names: Vec<String> = answer.headers.keys().map(ToString::to_string).collect();
            names.sort();
            names
        };
        assert_eq!(names(&answer), names(&absent));
    }
    // The session that a refused mount gives is good for an upload.
    let answer = mount(&scene, "bob", &format!("mount={digest}&from=pa/secret")).await;
    let target = format!("{}?digest={digest}", answer.header("location"));
    scene.put("bob", target).body(CONTENT).expect(201).await;
    assert!(scene.links("pb/app", &digest));
}

#[tokio::test]
async fn a_mount_with_a_readable_source_links_without_a_byte() {
    let scene = Scene::new();
    let digest = scene.push_blob("admin", "pa/secret", CONTENT).await;
    let hashed = scene.blobs.with(|inner| inner.bytes_hashed);
    // docker, crane (which adds origin), containerd (ns).
    for extra in ["", "&origin=other.example", "&ns=docker.io"] {
        let answer = mount(&scene, "admin", &format!("mount={digest}&from=pa/secret{extra}")).await;
        mounted(&scene, &answer, &digest);
    }
    assert_eq!(scene.blobs.with(|inner| inner.bytes_hashed), hashed);
    let digest = scene.push_blob("alice", "pub/hello", b"public").await;
    mounted(&scene, &mount(&scene, "bob", &format!("from=pub/hello&mount={digest}")).await, &digest);
}

#[tokio::test]
async fn a_mount_without_a_source_looks_where_the_caller_may_pull() {
    let scene = Scene::new();
    let secret = scene.push_blob("alice", "pa/secret", CONTENT).await;
    let public = scene.push_blob("alice", "pub/hello", b"public").await;
    refused(&scene, &mount(&scene, "bob", &format!("mount={secret}")).await, &secret);
    scene.blobs.with(|inner| inner.sessions.clear());
    // A source that does not hold the blob, or that the caller's token does not name, is a hint that did not help.
    for from in ["", "&from=pb/never", "&from=pa/secret", "&from=../"] {
        mounted(&scene, &mount(&scene, "bob", &format!("mount={public}{from}")).await, &public);
        let key = scene.key("pb/app");
        scene.blobs.with(|inner| inner.links.remove(&(key, public)));
    }
    mounted(&scene, &mount(&scene, "admin", &format!("mount={secret}")).await, &secret);
}

/// A bound on the holders that were looked at hid the one that the caller could read behind those that they could not.
#[tokio::test]
async fn a_source_is_found_however_many_others_hold_the_blob() {
    let scene = Scene::new();
    for number in 0..300 {
        scene.push_blob("alice", &format!("pa/r{number}"), CONTENT).await;
    }
    let digest = scene.push_blob("bob", "pb/last", CONTENT).await;
    mounted(&scene, &mount(&scene, "bob", &format!("mount={digest}")).await, &digest);
}

#[tokio::test]
async fn whoever_may_pull_from_everywhere_mounts_from_anywhere() {
    let scene = Scene::new();
    let digest = scene.push_blob("alice", "pa/secret", CONTENT).await;
    mounted(&scene, &mount(&scene, "captain", &format!("mount={digest}")).await, &digest);
    refused(&scene, &mount(&scene, "captain", &format!("mount={}", sha256(b"none"))).await, &sha256(b"none"));
}

/// S-43: who holds a blob must not show in what a mount does, or its time would tell.
#[tokio::test]
async fn a_search_does_the_same_whether_others_hold_the_blob_or_nobody_does() {
    let scene = Scene::new();
    for name in ["pb/one", "pb/two", "pub/hello"] {
        let owner = if name == "pub/hello" { "alice" } else { "bob" };
        scene.push_blob(owner, name, name.as_bytes()).await;
    }
    let held = scene.push_blob("alice", "pa/secret", CONTENT).await;
    let mut looks = Vec::new();
    for (digest, from) in [
        (held, ""),
        (held, "&from=pa/secret"),
        (sha256(b"nobody's"), ""),
        (sha256(b"nobody's"), "&from=pa/none"),
    ] {
        scene.blobs.with(|inner| inner.looked_in.clear());
        refused(&scene, &mount(&scene, "bob", &format!("mount={digest}{from}")).await, &digest);
        looks.push(scene.blobs.with(|inner| inner.looked_in.clone()));
    }
    assert!(looks[0].len() >= 3, "{looks:?}");
    assert!(!looks[0].contains(&scene.key("pa/secret")));
    assert!(looks.iter().all(|look| *look == looks[0]), "{looks:?}");
}

/// S-45.
#[tokio::test]
async fn rights_on_the_source_are_looked_up_at_the_moment_of_the_mount() {
    let scene = Scene::new();
    let digest = scene.push_blob("admin", "pa/secret", CONTENT).await;
    scene.begin("admin", "pb/app").await;
    scene.access.revoke("admin", "pa");
    refused(&scene, &mount(&scene, "admin", &format!("mount={digest}&from=pa/secret")).await, &digest);
    refused(&scene, &mount(&scene, "admin", &format!("mount={digest}")).await, &digest);
}

#[tokio::test]
async fn a_mount_without_push_on_the_target_is_refused_and_the_challenge_names_both_repositories() {
    let scene = Scene::new();
    let digest = scene.push_blob("alice", "pa/secret", CONTENT).await;
    let answer = mount(&scene, "", &format!("mount={digest}&from=pa/secret")).await;
    answer.demand(401);
    assert!(
        answer
            .header("www-authenticate")
            .contains("scope=\"repository:pb/app:pull,push repository:pa/secret:pull\"")
    );
    let answer = mount(&scene, "alice", &format!("mount={digest}&from=pa/secret")).await;
    answer.demand(403);
    assert_eq!(answer.code(), "DENIED");
    assert!(!scene.links("pb/app", &digest));
}
