//! Blobs: GET, HEAD, ranges, conditions, DELETE.

use std::sync::Arc;

use taffrail_blobstore::{Algorithm, Digest};

use crate::client::{Scene, image, sha256};

/// 10,000 bytes that are different everywhere.
fn content() -> Vec<u8> {
    (0..2500_u32).flat_map(|number| number.wrapping_mul(2_654_435_761).to_be_bytes()).collect()
}

async fn scene() -> (Scene, Vec<u8>, Digest, String) {
    let scene = Scene::new();
    let content = content();
    let digest = scene.push_blob("alice", "pa/app", &content).await;
    let path = format!("/v2/pa/app/blobs/{digest}");
    (scene, content, digest, path)
}

#[tokio::test]
async fn get_and_head_carry_the_headers_that_clients_rely_on() {
    let (scene, content, digest, path) = scene().await;
    let get = scene.get("guest", &path).expect(200).await;
    assert_eq!(get.bytes(), content);
    let head = scene.head("guest", &path).expect(200).await;
    for answer in [&get, &head] {
        for (name, value) in [
            ("content-length", "10000"),
            ("content-type", "application/octet-stream"),
            ("docker-content-digest", &digest.to_string()),
            ("etag", &format!("\"{digest}\"")),
            ("accept-ranges", "bytes"),
            ("cache-control", "private, max-age=31536000, immutable"),
            ("content-security-policy", "default-src 'none'; sandbox"),
            ("content-disposition", "attachment"),
        ] {
            assert_eq!(answer.header(name), value, "{name}");
        }
    }
    assert!(scene.blobs.with(|inner| inner.leases.contains(&(scene.names.all()[0].1, digest))));
}

#[tokio::test]
async fn every_algorithm_and_the_empty_blob_are_served() {
    let scene = Scene::new();
    for algorithm in Algorithm::ALL {
        for content in [&b""[..], b"{}", b"abc"] {
            let digest = Digest::of(algorithm, content);
            let path = format!("/v2/pa/app/blobs/uploads/?digest={digest}");
            let answer = scene.post("alice", path).body(content.to_vec()).expect(201).await;
            assert_eq!(answer.header("docker-content-digest"), digest.to_string());
            assert_eq!(answer.header("location"), format!("/v2/pa/app/blobs/{digest}"));
            let answer = scene.get("alice", format!("/v2/pa/app/blobs/{digest}")).expect(200).await;
            assert_eq!(answer.bytes(), content);
            // F-45: the same bytes under another algorithm are another blob.
        }
    }
    let digest = Digest::of(Algorithm::Sha512, b"only sha256 of this is here");
    scene.push_blob("alice", "pa/app", b"only sha256 of this is here").await;
    scene.get("alice", format!("/v2/pa/app/blobs/{digest}")).refused(404, "BLOB_UNKNOWN").await;
}

#[tokio::test]
async fn single_ranges_are_served() {
    let (scene, content, digest, path) = scene().await;
    for (range, from, to) in [
        ("bytes=0-0", 0, 1),
        ("bytes=500-1499", 500, 1500),
        ("bytes=500-", 500, 10_000),
        ("bytes=-500", 9500, 10_000),
        ("bytes=9000-20000", 9000, 10_000),
        ("bytes=0-99999999999999999999", 0, 10_000),
    ] {
        let answer = scene.get("guest", &path).header("Range", range).expect(206).await;
        assert_eq!(answer.bytes(), &content[from..to], "{range}");
        assert_eq!(answer.header("content-range"), format!("bytes {from}-{}/10000", to - 1));
        assert_eq!(answer.header("content-length"), (to - from).to_string());
        assert_eq!(answer.header("docker-content-digest"), digest.to_string());
        assert_eq!(answer.header("accept-ranges"), "bytes");
        assert_eq!(answer.header("content-type"), "application/octet-stream");
    }
    for range in ["bytes=500-0", "bytes=10000-", "bytes=20000-30000", "bytes=-0", "bytes=x", "bytes=", "junk"]
    {
        let answer = scene.get("guest", &path).header("Range", range).refused(416, "RANGE_INVALID").await;
        assert_eq!(answer.header("content-range"), "bytes */10000", "{range}");
    }
    let answer = scene.get("guest", &path).header("Range", "items=0-1").expect(200).await;
    assert_eq!(answer.bytes(), content);
    // RFC 9110 defines Range for GET only.
    let answer = scene.head("guest", &path).header("Range", "bytes=0-0").expect(200).await;
    assert_eq!(answer.header("content-length"), "10000");
}

#[tokio::test]
async fn a_range_reads_no_more_of_the_blob_than_it_sends() {
    let (scene, _, _, path) = scene().await;
    scene.blobs.with(|inner| inner.bytes_read = 0);
    scene.get("guest", &path).header("Range", "bytes=5000-5009").expect(206).await;
    assert_eq!(scene.blobs.with(|inner| inner.bytes_read), 10);
}

/// Takes the parts out of a `multipart/byteranges` body: (Content-Range, bytes).
fn parts(body: &[u8], content_type: &str) -> Vec<(String, Vec<u8>)> {
    let boundary = content_type.strip_prefix("multipart/byteranges; boundary=").unwrap();
    let find = |haystack: &[u8], needle: &[u8]| {
        haystack.windows(needle.len()).position(|window| window == needle).unwrap()
    };
    let mut parts = Vec::new();
    let mut rest = body.strip_prefix(format!("--{boundary}\r\n").as_bytes()).unwrap();
    loop {
        let end_of_head = find(rest, b"\r\n\r\n");
        let head = String::from_utf8(rest[..end_of_head].to_vec()).unwrap();
        let range = head.lines().find_map(|line| line.strip_prefix("Content-Range: ")).unwrap().to_owned();
        rest = &rest[end_of_head + 4..];
        let end_of_part = find(rest, format!("\r\n--{boundary}").as_bytes());
        parts.push((range, rest[..end_of_part].to_vec()));
        rest = &rest[end_of_part + 4 + boundary.len()..];
        if rest == b"--\r\n" {
            return parts;
        }
        rest = rest.strip_prefix(b"\r\n").unwrap();
    }
}

#[tokio::test]
async fn several_ranges_come_as_parts_in_the_order_asked() {
    let (scene, content, _, path) = scene().await;
    let answer = scene.get("guest", &path).header("Range", "bytes=2000-2999, 0-9,-5").expect(206).await;
    let parts = parts(answer.bytes(), answer.header("content-type"));
    assert_eq!(
        parts,
        [
            ("bytes 2000-2999/10000".to_owned(), content[2000..3000].to_vec()),
            ("bytes 0-9/10000".to_owned(), content[..10].to_vec()),
            ("bytes 9995-9999/10000".to_owned(), content[9995..].to_vec()),
        ]
    );
    assert_eq!(answer.header("content-range"), "");
    // One satisfiable range of several comes alone.
    let answer = scene.get("guest", &path).header("Range", "bytes=0-9,20000-").expect(206).await;
    assert_eq!(answer.bytes(), &content[..10]);
    assert_eq!(answer.header("content-range"), "bytes 0-9/10000");
}

/// S-94: however ranges overlap, the answer has at most as many bytes as the blob.
#[tokio::test]
async fn a_thousand_overlapping_ranges_never_cost_more_than_the_blob() {
    let scene = Scene::new();
    let content: Vec<u8> = content().repeat(100);
    let digest = scene.push_blob("alice", "pa/app", &content).await;
    let path = format!("/v2/pa/app/blobs/{digest}");
    let ranges = |list: Vec<String>| format!("bytes={}", list.join(","));
    for header in [
        ranges(vec!["0-".to_owned(); 1000]),
        ranges((0..1000).map(|index| format!("{index}-")).collect()),
        ranges((0..1000).map(|index| format!("{}-{}", index * 2, index * 2)).collect()),
        ranges((0..1000).map(|index| format!("{}-{}", index * 100, index * 100 + 150)).collect()),
        ranges((0..1024).rev().map(|index| format!("{}-{}", index * 900, index * 900 + 5)).collect()),
    ] {
        scene.blobs.with(|inner| inner.bytes_read = 0);
        let answer = scene.get("guest", &path).header("Range", &header).send().await;
        assert!(matches!(answer.status.as_u16(), 200 | 206), "{}", answer.status);
        assert!(answer.bytes().len() <= content.len());
        assert!(scene.blobs.with(|inner| inner.bytes_read) <= content.len() as u64);
    }
    let many = ranges((0..1024).map(|index| format!("{}-{}", index * 900, index * 900 + 5)).collect());
    let answer = scene.get("guest", &path).header("Range", &many).expect(206).await;
    let parts = parts(answer.bytes(), answer.header("content-type"));
    assert_eq!(parts.len(), 1024);
    for (index, (_, part)) in parts.iter().enumerate() {
        assert_eq!(part, &content[index * 900..index * 900 + 6]);
    }
    let too_many = ranges((0..1025).map(|index| format!("{}-{}", index * 900, index * 900)).collect());
    scene.get("guest", &path).header("Range", &too_many).refused(416, "RANGE_INVALID").await;
    // Where the parts with their headers would be longer than a small blob, the blob comes whole.
    let small = scene.push_blob("alice", "pa/app", b"0123456789").await;
    let path = format!("/v2/pa/app/blobs/{small}");
    let answer = scene.get("guest", &path).header("Range", "bytes=0-0,5-5").expect(200).await;
    assert_eq!(answer.bytes(), b"0123456789");
}

#[tokio::test]
async fn conditions_are_judged_by_the_digest() {
    let (scene, content, digest, path) = scene().await;
    let tag = format!("\"{digest}\"");
    for call in [scene.get("guest", &path), scene.head("guest", &path)] {
        let answer = call.header("If-None-Match", &tag).expect(304).await;
        assert_eq!(answer.header("etag"), tag);
        assert!(answer.bytes().is_empty());
        assert_eq!(answer.header("content-length"), "");
    }
    scene.get("guest", &path).header("If-None-Match", "\"other\"").expect(200).await;
    scene.get("guest", &path).header("If-Match", &tag).expect(200).await;
    scene.get("guest", &path).header("If-Match", "\"other\"").refused(412, "PRECONDITION_FAILED").await;
    scene.head("guest", &path).header("If-Match", "\"other\"").expect(412).await;
    let ranged =
        |if_range: &str| scene.get("guest", &path).header("Range", "bytes=0-9").header("If-Range", if_range);
    assert_eq!(ranged(&tag).expect(206).await.bytes(), &content[..10]);
    assert_eq!(ranged("\"other\"").expect(200).await.bytes(), content);
    assert_eq!(ranged("Wed, 21 Oct 2015 07:28:00 GMT").expect(200).await.bytes(), content);
}

#[tokio::test]
async fn a_blob_is_deleted_unless_a_manifest_uses_it() {
    let (scene, _, digest, path) = scene().await;
    scene.delete("dev", &path).refused(403, "DENIED").await;
    assert!(scene.links("pa/app", &digest));
    scene.delete("alice", &path).header("If-Match", "\"other\"").refused(412, "PRECONDITION_FAILED").await;
    scene.blobs.with(|inner| inner.leases.clear());
    scene.delete("alice", &path).expect(202).await;
    assert!(!scene.links("pa/app", &digest));
    assert!(scene.blobs.with(|inner| inner.leases.is_empty()), "nobody was told to rely on it");
    scene.get("alice", &path).refused(404, "BLOB_UNKNOWN").await;
    scene.delete("alice", &path).refused(404, "BLOB_UNKNOWN").await;

    let config = scene.push_blob("alice", "pa/app", b"{}").await;
    let layer = scene.push_blob("alice", "pa/app", b"layer").await;
    let manifest = scene.push_manifest("alice", "pa/app", "v1", &image(&[(config, 2), (layer, 5)])).await;
    for used in [config, layer, manifest] {
        let answer = scene.delete("alice", format!("/v2/pa/app/blobs/{used}")).refused(405, "DENIED").await;
        assert_eq!(answer.header("allow"), "GET, HEAD");
        assert!(scene.links("pa/app", &used));
    }
    scene.delete("alice", format!("/v2/pa/app/manifests/{manifest}")).expect(202).await;
    scene.delete("alice", format!("/v2/pa/app/blobs/{layer}")).expect(202).await;
}

/// A manifest may be put between the question whether any uses the blob and the removal of its link. It was acknowledged, so
/// its layer stays. (Found by review: the link was removed whatever its generation.)
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_that_a_manifest_took_up_during_its_deletion_stays() {
    let scene = Arc::new(scene().await.0);
    let config = scene.push_blob("alice", "pa/app", b"{}").await;
    let (sender, receiver) = std::sync::mpsc::channel();
    let pushing = Arc::clone(&scene);
    let runtime = tokio::runtime::Handle::current();
    scene.catalog.with(|inner| {
        inner.after_uses_blob = Some(Box::new(move || {
            let push =
                async move { pushing.push_manifest("dev", "pa/app", "v1", &image(&[(config, 2)])).await };
            runtime.spawn(async move { sender.send(push.await).unwrap() });
            receiver.recv().unwrap();
        }));
    });
    scene.delete("alice", format!("/v2/pa/app/blobs/{config}")).refused(405, "DENIED").await;
    assert!(scene.links("pa/app", &config));
    scene.get("guest", "/v2/pa/app/manifests/v1").expect(200).await;
    scene.get("guest", format!("/v2/pa/app/blobs/{config}")).expect(200).await;
}

/// S-48: a deleted blob is gone in that repository, whoever else has it.
#[tokio::test]
async fn a_deleted_blob_stays_in_other_repositories_only() {
    let (scene, content, digest, path) = scene().await;
    scene.push_blob("bob", "pb/app", &content).await;
    scene.delete("alice", &path).expect(202).await;
    scene.get("alice", &path).refused(404, "BLOB_UNKNOWN").await;
    scene.get("bob", format!("/v2/pb/app/blobs/{digest}")).expect(200).await;
    scene.get("alice", &path).refused(404, "BLOB_UNKNOWN").await;
    scene.head("alice", &path).expect(404).await;
}

#[tokio::test]
async fn a_reader_that_is_dropped_half_way_leaves_nothing_behind() {
    let (scene, _, digest, path) = scene().await;
    let request = http::Request::get(path.as_str())
        .header("Authorization", "User guest")
        .body(http_body_util::Empty::<bytes::Bytes>::new())
        .unwrap();
    let response = Arc::clone(&scene.registry).handle(request).await;
    drop(response);
    // 1024 bytes were read ahead for the first frame; nothing goes on behind the client's back.
    assert!(scene.blobs.with(|inner| inner.bytes_read) <= 1024);
    assert_eq!(sha256(&content()), digest);
}
