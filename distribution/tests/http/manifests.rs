//! Manifests: PUT, GET, HEAD, DELETE.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use serde_json::json;
use taffrail_blobstore::{Algorithm, Digest};
use taffrail_distribution::limits::TAG_PARAMETERS_MAX;
use taffrail_distribution::manifest::{DOCKER_IMAGE, DOCKER_LIST, OCI_IMAGE, OCI_INDEX};

use crate::client::{Call, End, Frames, Scene, image, sha256};

async fn scene() -> (Scene, serde_json::Value) {
    let scene = Scene::new();
    let config = scene.push_blob("alice", "pa/app", b"{}").await;
    let layer = scene.push_blob("alice", "pa/app", b"layer").await;
    (scene, image(&[(config, 2), (layer, 5)]))
}

fn put(scene: &Scene, reference: &str, content: impl Into<Bytes>) -> Call {
    scene
        .put("alice", format!("/v2/pa/app/manifests/{reference}"))
        .header("Content-Type", OCI_IMAGE)
        .body(content)
}

/// Nothing of the repository's names or links changed.
fn state(scene: &Scene) -> (usize, usize, usize) {
    let (manifests, tags) = scene.catalog.with(|inner| (inner.manifests.len(), inner.tags.len()));
    (manifests, tags, scene.blobs.with(|inner| inner.links.len()))
}

#[tokio::test]
async fn a_manifest_comes_back_exactly_as_it_was_sent() {
    let (scene, document) = scene().await;
    // S-83: odd white space, order of keys and escapes are the client's.
    let text = document.to_string();
    let odd = format!(
        "\n\t {{ \"x\\u0079\" : [1.50, \"\\u00e9\\ud83d\\ude00\"],{}   \r\n",
        text.strip_prefix('{').unwrap()
    );
    let digest = sha256(odd.as_bytes());
    let answer = put(&scene, "v1", odd.clone()).expect(201).await;
    assert_eq!(answer.header("location"), format!("/v2/pa/app/manifests/{digest}"));
    assert_eq!(answer.header("docker-content-digest"), digest.to_string());
    assert!(answer.headers.get("oci-subject").is_none() && answer.headers.get("oci-tag").is_none());
    for (reference, cache) in
        [("v1".to_owned(), "private, no-cache"), (digest.to_string(), "private, max-age=31536000, immutable")]
    {
        let path = format!("/v2/pa/app/manifests/{reference}");
        let get = scene.get("guest", &path).expect(200).await;
        assert_eq!(get.bytes(), odd.as_bytes());
        let head = scene.head("guest", &path).expect(200).await;
        for answer in [get, head] {
            for (name, value) in [
                ("content-type", OCI_IMAGE),
                ("content-length", &odd.len().to_string()),
                ("docker-content-digest", &digest.to_string()),
                ("etag", &format!("\"{digest}\"")),
                ("cache-control", cache),
                ("content-security-policy", "default-src 'none'; sandbox"),
            ] {
                assert_eq!(answer.header(name), value, "{name}");
            }
        }
    }
    assert!(scene.links("pa/app", &digest));
    assert_eq!(scene.blobs.with(|inner| inner.pins), 0, "pins end with the transaction");
    // Whoever was told by a HEAD that the manifest is there may rely on it.
    assert!(scene.blobs.with(|inner| inner.leases.iter().any(|(_, leased)| *leased == digest)));
}

#[tokio::test]
async fn what_is_stored_is_answered_whatever_accept_says() {
    let (scene, document) = scene().await;
    let digest = scene.push_manifest("alice", "pa/app", "v1", &document).await;
    for accept in
        ["", "*/*", "application/json", OCI_IMAGE, OCI_INDEX, DOCKER_IMAGE, "text/html;q=0.1", "garbage,,;"]
    {
        for reference in ["v1".to_owned(), digest.to_string()] {
            let call = scene.get("guest", format!("/v2/pa/app/manifests/{reference}"));
            let answer = call.header("Accept", accept).expect(200).await;
            assert_eq!(answer.header("content-type"), OCI_IMAGE, "{accept}");
            assert_eq!(sha256(answer.bytes()), digest);
        }
    }
}

#[tokio::test]
async fn every_type_and_every_algorithm_can_be_pushed() {
    let (scene, document) = scene().await;
    for media_type in [OCI_IMAGE, DOCKER_IMAGE] {
        let mut document = document.clone();
        document["mediaType"] = json!(media_type);
        let content = document.to_string();
        for algorithm in Algorithm::ALL {
            let digest = Digest::of(algorithm, content.as_bytes());
            let path = format!("/v2/pa/app/manifests/{digest}");
            let call = scene.put("alice", &path).header("Content-Type", media_type).body(content.clone());
            let answer = call.expect(201).await;
            assert_eq!(answer.header("docker-content-digest"), digest.to_string());
            let answer = scene.get("alice", &path).expect(200).await;
            assert_eq!(answer.header("content-type"), media_type);
            assert_eq!(answer.text(), content);
        }
        let child = scene.push_manifest("alice", "pa/app", "child", &document).await;
        let list_type = if media_type == OCI_IMAGE { OCI_INDEX } else { DOCKER_LIST };
        let index = json!({
            "schemaVersion": 2,
            "mediaType": list_type,
            "manifests": [{
                "mediaType": media_type, "digest": child.to_string(), "size": content.len(),
                "platform": { "architecture": "amd64", "os": "linux" },
            }],
        });
        scene.push_manifest("alice", "pa/app", "multi", &index).await;
    }
}

#[tokio::test]
async fn references_must_be_there_in_the_stated_length() {
    let (scene, document) = scene().await;
    let before = state(&scene);
    // S-46: what only another repository holds is missing.
    let secret = scene.push_blob("admin", "pb/secret", b"secret").await;
    let before = (before.0, before.1, before.2 + 1);
    for (pointer, digest, size) in
        [("/config", secret, 6), ("/layers/0", secret, 6), ("/layers/0", sha256(b"nobody has this"), 15)]
    {
        let mut document = document.clone();
        document.pointer_mut(pointer).unwrap()["digest"] = json!(digest.to_string());
        document.pointer_mut(pointer).unwrap()["size"] = json!(size);
        let answer = put(&scene, "v1", document.to_string()).refused(404, "MANIFEST_BLOB_UNKNOWN").await;
        assert_eq!(answer.json()["errors"][0]["detail"], json!([{ "digest": digest.to_string() }]));
        assert_eq!(state(&scene), before);
        scene.get("alice", format!("/v2/pa/app/blobs/{digest}")).refused(404, "BLOB_UNKNOWN").await;
    }
    // S-84: a wrong size.
    for size in [0, 4, 6, i64::MAX] {
        let mut document = document.clone();
        document["layers"][0]["size"] = json!(size);
        put(&scene, "v1", document.to_string()).refused(400, "SIZE_INVALID").await;
        assert_eq!(state(&scene), before);
    }
    // A child that is in the repository as a blob only is no manifest there.
    let content = document.to_string();
    let blob = scene.push_blob("alice", "pa/app", content.as_bytes()).await;
    let index = json!({
        "schemaVersion": 2, "mediaType": OCI_INDEX,
        "manifests": [{ "mediaType": OCI_IMAGE, "digest": blob.to_string(), "size": content.len() }],
    });
    let call = scene.put("alice", "/v2/pa/app/manifests/v1").header("Content-Type", OCI_INDEX);
    call.body(index.to_string()).refused(404, "MANIFEST_BLOB_UNKNOWN").await;
    assert_eq!(scene.catalog.with(|inner| inner.manifests.len()), 0);
    assert_eq!(scene.blobs.with(|inner| inner.pins), 0);
}

#[tokio::test]
async fn foreign_layers_need_not_be_there_and_are_kept_when_they_are() {
    let (scene, document) = scene().await;
    let foreign = |content: &[u8]| {
        json!({
            "mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            "digest": sha256(content).to_string(), "size": content.len(),
            "urls": ["http://169.254.169.254/latest/meta-data"],
        })
    };
    let pushed = scene.push_blob("alice", "pa/app", b"pushed all the same").await;
    let mut document = document;
    document["layers"] = json!([foreign(b"never pushed"), foreign(b"pushed all the same")]);
    let digest = scene.push_manifest("alice", "pa/app", "v1", &document).await;
    let key = scene.key("pa/app");
    let references = scene.catalog.with(|inner| inner.manifests[&(key, digest)].references.clone());
    assert_eq!(references.len(), 2);
    assert!(references.iter().any(|reference| reference.digest == pushed));
}

#[tokio::test]
async fn a_document_that_is_no_manifest_is_refused_with_a_sentence_and_changes_nothing() {
    let (scene, document) = scene().await;
    let before = state(&scene);
    let mut both = document.clone();
    both["manifests"] = json!([]);
    for content in
        [b"".to_vec(), b"{}".to_vec(), b"[]".to_vec(), b"\xff\xfe".to_vec(), both.to_string().into_bytes()]
    {
        put(&scene, "v1", content).refused(400, "MANIFEST_INVALID").await;
    }
    for header in ["", "application/json", "text/html", OCI_INDEX, DOCKER_IMAGE, "x; y=z"] {
        let call = scene.put("alice", "/v2/pa/app/manifests/v1").header("Content-Type", header);
        let status = if header.is_empty() { 201 } else { 400 };
        let answer = call.body(document.to_string()).expect(status).await;
        if status == 400 {
            assert_eq!(answer.code(), "MANIFEST_INVALID", "{header}");
        } else {
            scene
                .delete("alice", format!("/v2/pa/app/manifests/{}", sha256(document.to_string().as_bytes())))
                .expect(202)
                .await;
            let key = scene.key("pa/app");
            let digest = sha256(document.to_string().as_bytes());
            scene.blobs.with(|inner| inner.links.remove(&(key, digest)));
        }
    }
    let schema1 = json!({ "schemaVersion": 1, "name": "a", "tag": "b", "fsLayers": [], "history": [] });
    let call = scene
        .put("alice", "/v2/pa/app/manifests/v1")
        .header("Content-Type", "application/vnd.docker.distribution.manifest.v1+prettyjws");
    let answer = call.body(schema1.to_string()).refused(400, "MANIFEST_INVALID").await;
    assert!(answer.message().contains("push with Docker 1.10 or newer"));
    assert_eq!(state(&scene), before);
}

#[tokio::test]
async fn a_manifest_put_by_digest_must_have_it() {
    let (scene, document) = scene().await;
    let before = state(&scene);
    let digest = sha256(document.to_string().as_bytes());
    let content = format!("{document}  ");
    put(&scene, &digest.to_string(), content).refused(400, "DIGEST_INVALID").await;
    put(&scene, "sha256:baddigeststring", document.to_string()).refused(400, "DIGEST_INVALID").await;
    scene.get("alice", "/v2/pa/app/manifests/sha256:baddigeststring").refused(400, "DIGEST_INVALID").await;
    assert_eq!(state(&scene), before);
}

/// S-80: the limit, one more, an endless body, and refusal before reading where the length says so.
#[tokio::test]
async fn a_manifest_has_at_most_4_mib_and_not_much_more_is_read_of_a_longer_one() {
    const LIMIT: usize = 4 << 20;
    let (scene, document) = scene().await;
    let before = state(&scene);
    let padded = |len: usize| {
        let mut content = document.to_string();
        content.push_str(&" ".repeat(len - content.len()));
        Bytes::from(content)
    };
    put(&scene, "big", padded(LIMIT)).expect(201).await;
    let answer = scene.get("alice", "/v2/pa/app/manifests/big").expect(200).await;
    assert_eq!(answer.bytes().len(), LIMIT);
    let frames = Frames::announced(padded(LIMIT + 1));
    let taken = frames.taken();
    let call = scene.put("alice", "/v2/pa/app/manifests/over").header("Content-Type", OCI_IMAGE);
    call.frames(frames).refused(413, "SIZE_INVALID").await;
    assert_eq!(taken.load(Ordering::SeqCst), 0);
    let endless = Frames::chunked((0..1000).map(|_| Bytes::from(vec![b' '; 64 << 10])), End::Silent);
    let taken = endless.taken();
    let call = scene.put("alice", "/v2/pa/app/manifests/over").header("Content-Type", OCI_IMAGE);
    call.frames(endless).refused(413, "SIZE_INVALID").await;
    assert!(taken.load(Ordering::SeqCst) <= (LIMIT + (64 << 10)) as u64);
    scene.get("alice", "/v2/pa/app/manifests/over").refused(404, "MANIFEST_UNKNOWN").await;
    assert_eq!(state(&scene), (before.0 + 1, before.1 + 1, before.2 + 1));
}

#[tokio::test]
async fn tag_parameters_move_all_tags_or_none() {
    let (scene, document) = scene().await;
    let digest = sha256(document.to_string().as_bytes());
    let answer = put(&scene, &format!("{digest}?tag=a&tag=b&tag=a&tag=c-1.2_3"), document.to_string())
        .expect(201)
        .await;
    let tags: Vec<&str> =
        answer.headers.get_all("oci-tag").iter().map(|value| value.to_str().unwrap()).collect();
    assert_eq!(tags, ["a", "b", "c-1.2_3"]);
    for tag in tags {
        let head = scene.head("guest", format!("/v2/pa/app/manifests/{tag}")).expect(200).await;
        assert_eq!(head.header("docker-content-digest"), digest.to_string());
    }
    // A tag in the path and others as parameters.
    put(&scene, "d?tag=e", document.to_string()).expect(201).await;
    assert_eq!(scene.catalog.with(|inner| inner.tags.len()), 5);

    let list = |count: usize| {
        let tags: Vec<String> = (0..count).map(|number| format!("tag=t{number}")).collect();
        format!("{digest}?{}", tags.join("&"))
    };
    put(&scene, &list(TAG_PARAMETERS_MAX), document.to_string()).expect(201).await;
    let before = state(&scene);
    put(&scene, &list(TAG_PARAMETERS_MAX + 1), document.to_string()).refused(414, "NAME_INVALID").await;
    for tag in ["-x", "", "a/b", "a%0d%0ab", "%ff", "a%20b"] {
        let answer = put(&scene, &format!("{digest}?tag=ok&tag={tag}"), document.to_string()).send().await;
        answer.demand(400);
        assert_eq!(state(&scene), before, "{tag}");
    }
    // S-49: one immutable tag among others, and none moves.
    scene.catalog.with(|inner| inner.immutable.push("b".parse_tag()));
    let mut other = document.clone();
    other["annotations"] = json!({ "other": "yes" });
    let other_digest = sha256(other.to_string().as_bytes());
    let answer = put(&scene, &format!("{other_digest}?tag=new&tag=b"), other.to_string()).expect(412).await;
    assert!(answer.message().contains("immutable"));
    scene.get("alice", "/v2/pa/app/manifests/new").refused(404, "MANIFEST_UNKNOWN").await;
    scene.get("alice", format!("/v2/pa/app/manifests/{other_digest}")).refused(404, "MANIFEST_UNKNOWN").await;
    put(&scene, "b", other.to_string()).expect(412).await;
    let head = scene.head("alice", "/v2/pa/app/manifests/b").expect(200).await;
    assert_eq!(head.header("docker-content-digest"), digest.to_string());
}

trait ParseTag {
    fn parse_tag(&self) -> taffrail_distribution::name::Tag;
}

impl ParseTag for str {
    fn parse_tag(&self) -> taffrail_distribution::name::Tag {
        taffrail_distribution::name::Tag::parse(self).unwrap()
    }
}

#[tokio::test]
async fn preconditions_make_create_only_tags_and_safe_updates() {
    let (scene, first) = scene().await;
    let mut second = first.clone();
    second["annotations"] = json!({ "second": "yes" });
    let (first, second) = (first.to_string(), second.to_string());
    let tag = |content: &str| format!("\"{}\"", sha256(content.as_bytes()));
    let (first_tag, second_tag) = (tag(&first), tag(&second));
    let before = state(&scene);
    // Refused before the body is read.
    let frames = Frames::announced(Bytes::from(first.clone()));
    let taken = frames.taken();
    let call = scene.put("alice", "/v2/pa/app/manifests/v1").header("If-Match", "*");
    call.frames(frames).refused(412, "PRECONDITION_FAILED").await;
    assert_eq!(taken.load(Ordering::SeqCst), 0);
    assert_eq!(state(&scene), before);

    put(&scene, "v1", first.clone()).header("If-None-Match", "*").expect(201).await;
    put(&scene, "v1", second.clone()).header("If-None-Match", "*").refused(412, "PRECONDITION_FAILED").await;
    put(&scene, "v1", second.clone())
        .header("If-None-Match", &first_tag)
        .refused(412, "PRECONDITION_FAILED")
        .await;
    put(&scene, "v1", second.clone())
        .header("If-Match", &second_tag)
        .refused(412, "PRECONDITION_FAILED")
        .await;
    put(&scene, "v1", second.clone()).header("If-Match", "\"x\"").refused(412, "PRECONDITION_FAILED").await;
    put(&scene, "v1", second.clone()).header("If-Match", &first_tag).expect(201).await;
    put(&scene, "v1", first.clone()).header("If-Match", "*").header("If-None-Match", "*").expect(400).await;

    let path = "/v2/pa/app/manifests/v1";
    let answer = scene.get("alice", path).header("If-None-Match", &second_tag).expect(304).await;
    assert_eq!(answer.header("etag"), second_tag);
    scene.get("alice", path).header("If-None-Match", &first_tag).expect(200).await;
    scene.get("alice", path).header("If-Match", &first_tag).refused(412, "PRECONDITION_FAILED").await;
    scene.delete("alice", path).header("If-Match", &first_tag).refused(412, "PRECONDITION_FAILED").await;
    scene.get("alice", path).expect(200).await;
    scene.delete("alice", path).header("If-Match", &second_tag).expect(202).await;
    scene.get("alice", path).refused(404, "MANIFEST_UNKNOWN").await;
}

#[tokio::test]
async fn deleting_a_tag_keeps_the_manifest_and_deleting_a_manifest_takes_its_tags() {
    let (scene, document) = scene().await;
    let digest = scene.push_manifest("alice", "pa/app", "v1", &document).await;
    scene.push_manifest("alice", "pa/app", "v2", &document).await;
    for path in ["/v2/pa/app/manifests/v1".to_owned(), format!("/v2/pa/app/manifests/{digest}")] {
        // S-09: pull and push are not delete.
        scene.delete("dev", path).refused(403, "DENIED").await;
    }
    scene.delete("alice", "/v2/pa/app/manifests/v1").expect(202).await;
    scene.get("alice", "/v2/pa/app/manifests/v1").refused(404, "MANIFEST_UNKNOWN").await;
    scene.delete("alice", "/v2/pa/app/manifests/v1").refused(404, "MANIFEST_UNKNOWN").await;
    scene.get("alice", "/v2/pa/app/manifests/v2").expect(200).await;
    scene.catalog.with(|inner| inner.immutable.push("v2".parse_tag()));
    scene.delete("alice", "/v2/pa/app/manifests/v2").expect(412).await;
    scene.delete("alice", format!("/v2/pa/app/manifests/{digest}")).expect(412).await;
    scene.get("alice", "/v2/pa/app/manifests/v2").expect(200).await;
    scene.catalog.with(|inner| inner.immutable.clear());
    scene.delete("alice", format!("/v2/pa/app/manifests/{digest}")).expect(202).await;
    for reference in ["v2".to_owned(), digest.to_string()] {
        let path = format!("/v2/pa/app/manifests/{reference}");
        scene.get("alice", &path).refused(404, "MANIFEST_UNKNOWN").await;
        scene.head("alice", &path).expect(404).await;
    }
}

/// P-05: bytes that the store lost are unknown, so that the next push brings them back.
#[tokio::test]
async fn a_manifest_whose_bytes_are_gone_is_unknown_and_heals_by_a_push() {
    let (scene, document) = scene().await;
    let digest = scene.push_manifest("alice", "pa/app", "v1", &document).await;
    scene.blobs.with(|inner| inner.blobs.remove(&digest));
    scene.get("alice", "/v2/pa/app/manifests/v1").refused(404, "MANIFEST_UNKNOWN").await;
    scene.head("alice", "/v2/pa/app/manifests/v1").expect(404).await;
    scene.push_manifest("alice", "pa/app", "v1", &document).await;
    scene.get("alice", "/v2/pa/app/manifests/v1").expect(200).await;
}

/// S-85: an index of 10,000 children is one put; indexes inside indexes are looked into one level at a time.
#[tokio::test]
async fn large_and_deep_indexes_are_put_without_walking_them() {
    let (scene, document) = scene().await;
    let child = scene.push_manifest("alice", "pa/app", "child", &document).await;
    let key = scene.key("pa/app");
    let entry = scene.catalog.with(|inner| inner.manifests[&(key, child)].clone());
    let mut children = Vec::new();
    for number in 0..10_000 {
        let content = Bytes::from(format!("child {number}"));
        let digest = sha256(&content);
        children.push(json!({ "mediaType": OCI_IMAGE, "digest": digest.to_string(), "size": content.len() }));
        scene.blobs.with(|inner| {
            inner.blobs.insert(digest, content);
            inner.links.insert((key, digest));
        });
        scene.catalog.with(|inner| inner.manifests.insert((key, digest), entry.clone()));
    }
    let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": children });
    let digest = scene.push_manifest("alice", "pa/app", "wide", &index).await;
    assert_eq!(scene.catalog.with(|inner| inner.manifests[&(key, digest)].references.len()), 10_000);

    let (mut inner, mut len) = (child, document.to_string().len());
    for _ in 0..100 {
        let index = json!({
            "schemaVersion": 2, "mediaType": OCI_INDEX,
            "manifests": [{ "mediaType": OCI_INDEX, "digest": inner.to_string(), "size": len }],
        });
        len = index.to_string().len();
        inner = scene.push_manifest("alice", "pa/app", "deep", &index).await;
    }
    scene.get("guest", "/v2/pa/app/manifests/deep").expect(200).await;
}
