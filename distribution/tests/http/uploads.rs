//! Uploads, in every form that clients send them, and in the forms that none should.

use bytes::Bytes;
use taffrail_blobstore::{Algorithm, Digest};

use crate::client::{Answer, End, Frames, Scene, sha256};

const CONTENT: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyz";

fn digest() -> Digest {
    sha256(CONTENT)
}

fn stands_at(answer: &Answer, location: &str, offset: usize) {
    assert_eq!(answer.header("location"), location, "{}", answer.what);
    assert_eq!(answer.header("range"), format!("0-{}", offset.saturating_sub(1)), "{}", answer.what);
    assert_eq!(answer.header("docker-upload-uuid"), location.rsplit('/').next().unwrap());
}

async fn session_bytes(scene: &Scene) -> Vec<u8> {
    scene.blobs.with(|inner| inner.sessions.values().next().unwrap().bytes.to_vec())
}

async fn finished(scene: &Scene, answer: &Answer) {
    assert_eq!(answer.header("location"), format!("/v2/pa/app/blobs/{}", digest()));
    assert_eq!(answer.header("docker-content-digest"), digest().to_string());
    assert_eq!(answer.header("content-length"), "0");
    assert!(scene.links("pa/app", &digest()));
    assert!(scene.blobs.with(|inner| inner.sessions.is_empty()));
    // docker looks at once whether the blob is there, and wants its length.
    let head = scene.head("dev", answer.header("location")).expect(200).await;
    assert_eq!(head.header("content-length"), CONTENT.len().to_string());
    assert_eq!(scene.get("dev", answer.header("location")).expect(200).await.bytes(), CONTENT);
}

#[tokio::test]
async fn a_session_begins_at_zero_and_answers_for_itself() {
    let scene = Scene::new();
    for path in ["/v2/pa/app/blobs/uploads/", "/v2/pa/app/blobs/uploads"] {
        let answer = scene.post("dev", path).expect(202).await;
        let location = answer.header("location").to_owned();
        stands_at(&answer, &location, 0);
        assert!(location.starts_with("/v2/pa/app/blobs/uploads/"));
        stands_at(&scene.get("dev", &location).expect(204).await, &location, 0);
        stands_at(&scene.head("dev", &location).expect(204).await, &location, 0);
    }
    scene.post("dev", "/v2/pa/app/blobs/uploads/?digest-algorithm=sha512").expect(202).await;
    scene.post("dev", "/v2/pa/app/blobs/uploads/?digest-algorithm=blake3").expect(202).await;
    for algorithm in ["md5", "SHA256", "", "sha256%00"] {
        let path = format!("/v2/pa/app/blobs/uploads/?digest-algorithm={algorithm}");
        scene.post("dev", path).refused(400, "DIGEST_INVALID").await;
    }
}

/// containerd, buildkit, oras, helm.
#[tokio::test]
async fn post_and_one_put_make_a_blob() {
    let scene = Scene::new();
    let location = scene.begin("dev", "pa/app").await;
    let put = scene.put("dev", format!("{location}?digest={}", digest())).body(CONTENT);
    finished(&scene, &put.expect(201).await).await;
}

/// docker: a chunked PATCH without a range, an empty PUT.
#[tokio::test]
async fn a_chunked_patch_without_a_range_and_an_empty_put_make_a_blob() {
    let scene = Scene::new();
    let location = scene.begin("dev", "pa/app").await;
    let frames = CONTENT.chunks(7).map(Bytes::from_static);
    let patch = scene.patch("dev", &location).frames(Frames::chunked(frames, End::Clean));
    let answer = patch.expect(202).await;
    stands_at(&answer, &location, CONTENT.len());
    let put = scene.put("dev", format!("{}?digest={}", answer.header("location"), digest()));
    finished(&scene, &put.expect(201).await).await;
}

/// crane, skopeo: a PATCH with a length and no range. A second one appends.
#[tokio::test]
async fn patches_with_a_length_and_no_range_append() {
    let scene = Scene::new();
    let location = scene.begin("dev", "pa/app").await;
    let answer = scene.patch("dev", &location).body(&CONTENT[..10]).expect(202).await;
    stands_at(&answer, &location, 10);
    let answer = scene.patch("dev", &location).body(&CONTENT[10..]).expect(202).await;
    stands_at(&answer, &location, CONTENT.len());
    let put = scene.put("dev", format!("{location}?digest={}", digest()));
    finished(&scene, &put.expect(201).await).await;
}

#[tokio::test]
async fn patches_with_a_range_in_any_form_append_and_a_put_may_bring_the_last_bytes() {
    for form in ["{a}-{b}", "bytes {a}-{b}/36", "{a}-{b}/36", "bytes {a}-{b}/*", "bytes={a}-{b}"] {
        let scene = Scene::new();
        let location = scene.begin("dev", "pa/app").await;
        let range = |from: usize, to: usize| {
            form.replace("{a}", &from.to_string()).replace("{b}", &(to - 1).to_string())
        };
        for (from, to) in [(0, 10), (10, 20)] {
            let patch = scene.patch("dev", &location).header("Content-Range", &range(from, to));
            stands_at(&patch.body(&CONTENT[from..to]).expect(202).await, &location, to);
        }
        // The same without a length: chunked, with a range.
        let frames = Frames::chunked([Bytes::from_static(&CONTENT[20..25])], End::Clean);
        let patch = scene.patch("dev", &location).header("Content-Range", &range(20, 25)).frames(frames);
        stands_at(&patch.expect(202).await, &location, 25);
        let put = scene.put("dev", format!("{location}?digest={}", digest()));
        let put = put.header("Content-Range", &range(25, 36)).body(&CONTENT[25..]);
        finished(&scene, &put.expect(201).await).await;
    }
}

/// S-95, and what the conformance program sends: chunks ahead, chunks again, and a last chunk in a PUT.
#[tokio::test]
async fn a_chunk_elsewhere_is_416_with_the_true_offset_and_changes_nothing() {
    let scene = Scene::new();
    let location = scene.begin("dev", "pa/app").await;
    scene.patch("dev", &location).body(&CONTENT[..20]).expect(202).await;
    let target = format!("{location}?digest={}", digest());
    for (range, body) in [
        ("30-35", &CONTENT[30..]),
        ("10-29", &CONTENT[10..30]),
        ("0-19", &CONTENT[..20]),
        ("0-9", &CONTENT[..10]),
        ("19-25", &CONTENT[19..26]),
        ("21-25", &CONTENT[21..26]),
        ("9223372036854775000-9223372036854775005", &CONTENT[..6]),
    ] {
        for call in [scene.patch("dev", &location), scene.put("dev", &target)] {
            let frames = Frames::announced(Bytes::copy_from_slice(body));
            let taken = frames.taken();
            let answer =
                call.header("Content-Range", range).frames(frames).refused(416, "RANGE_INVALID").await;
            stands_at(&answer, &location, 20);
            assert_eq!(taken.load(std::sync::atomic::Ordering::SeqCst), 0, "refused before the body is read");
            assert_eq!(session_bytes(&scene).await, &CONTENT[..20]);
        }
    }
    for range in [
        "",
        "x",
        "5",
        "5-",
        "-5",
        "9-5",
        "0x10-0x20",
        "20-99999999999999999999",
        "20-9223372036854775808",
        "a-b/c",
    ] {
        for call in [scene.patch("dev", &location), scene.put("dev", &target)] {
            call.header("Content-Range", range).body(&b"zz"[..]).refused(400, "RANGE_INVALID").await;
            assert_eq!(session_bytes(&scene).await, &CONTENT[..20], "{range}");
        }
    }
    let put = scene.put("dev", target).header("Content-Range", "20-35").body(&CONTENT[20..]);
    finished(&scene, &put.expect(201).await).await;
}

#[tokio::test]
async fn a_body_of_another_length_than_its_range_is_refused_and_taken_back() {
    let scene = Scene::new();
    let location = scene.begin("dev", "pa/app").await;
    scene.patch("dev", &location).body(&CONTENT[..20]).expect(202).await;
    for body in [&CONTENT[20..22], &CONTENT[20..36]] {
        let patch = scene.patch("dev", &location).header("Content-Range", "20-29").body(body);
        patch.refused(400, "SIZE_INVALID").await;
        let frames = body.chunks(3).map(Bytes::copy_from_slice).collect::<Vec<_>>();
        let patch = scene.patch("dev", &location).header("Content-Range", "20-29");
        patch.frames(Frames::chunked(frames, End::Clean)).refused(400, "SIZE_INVALID").await;
        assert_eq!(session_bytes(&scene).await, &CONTENT[..20]);
    }
    let put = scene.put("dev", format!("{location}?digest={}", digest())).body(&CONTENT[20..]);
    finished(&scene, &put.expect(201).await).await;
}

#[tokio::test]
async fn a_chunk_from_zero_that_brings_more_than_there_is_starts_over() {
    let scene = Scene::new();
    let location = scene.begin("dev", "pa/app").await;
    scene.patch("dev", &location).body(&b"garbage"[..]).expect(202).await;
    let patch = scene.patch("dev", &location).header("Content-Range", "0-19").body(&CONTENT[..20]);
    stands_at(&patch.expect(202).await, &location, 20);
    assert_eq!(session_bytes(&scene).await, &CONTENT[..20]);
    let put = scene.put("dev", format!("{location}?digest={}", digest()));
    let put = put.header("Content-Range", "0-35").body(CONTENT);
    finished(&scene, &put.expect(201).await).await;
}

#[tokio::test]
async fn a_put_with_a_wrong_digest_keeps_the_session_where_it_stood() {
    let scene = Scene::new();
    let location = scene.begin("dev", "pa/app").await;
    scene.patch("dev", &location).body(&CONTENT[..20]).expect(202).await;
    let target = format!("{location}?digest={}", digest());
    let wrong = scene.put("dev", &target).body(&b"wrong bytes"[..]);
    let answer = wrong.refused(400, "DIGEST_INVALID").await;
    assert!(answer.message().contains("sha256:"));
    stands_at(&scene.get("dev", &location).expect(204).await, &location, 20);
    // No digest, two of them, one that is none: nothing is read.
    for query in [
        String::new(),
        "?digest=".to_owned(),
        "?digest=sha256:x".to_owned(),
        format!("?digest=md5:{}", "0".repeat(32)),
        format!("?digest={}&digest={}", digest(), digest()),
        format!("?digest={}", digest().to_string().to_uppercase()),
    ] {
        let frames = Frames::announced(Bytes::from_static(&CONTENT[20..]));
        let taken = frames.taken();
        let put = scene.put("dev", format!("{location}{query}")).frames(frames);
        put.refused(400, "DIGEST_INVALID").await;
        assert_eq!(taken.load(std::sync::atomic::Ordering::SeqCst), 0, "{query}");
    }
    stands_at(&scene.get("dev", &location).expect(204).await, &location, 20);
    let put = scene.put("dev", target).body(&CONTENT[20..]);
    finished(&scene, &put.expect(201).await).await;
}

#[tokio::test]
async fn a_session_ends_once_finished_or_cancelled() {
    let scene = Scene::new();
    let location = scene.begin("dev", "pa/app").await;
    scene.patch("dev", &location).body(CONTENT).expect(202).await;
    scene.delete("dev", &location).expect(204).await;
    let finished = scene.begin("dev", "pa/app").await;
    scene.put("dev", format!("{finished}?digest={}", digest())).body(CONTENT).expect(201).await;
    for location in [location, finished] {
        let target = format!("{location}?digest={}", digest());
        scene.get("dev", &location).refused(404, "BLOB_UPLOAD_UNKNOWN").await;
        scene.head("dev", &location).expect(404).await;
        scene.patch("dev", &location).body(CONTENT).refused(404, "BLOB_UPLOAD_UNKNOWN").await;
        scene.put("dev", target).body(CONTENT).refused(404, "BLOB_UPLOAD_UNKNOWN").await;
        scene.delete("dev", &location).refused(404, "BLOB_UPLOAD_UNKNOWN").await;
    }
    assert!(scene.blobs.with(|inner| inner.sessions.is_empty()));
}

#[tokio::test]
async fn a_monolithic_post_makes_a_blob_or_leaves_nothing() {
    let scene = Scene::new();
    let target = format!("/v2/pa/app/blobs/uploads/?digest={}", digest());
    let answer = scene.post("dev", &target).body(&b"wrong"[..]).refused(400, "DIGEST_INVALID").await;
    assert!(answer.headers.get("location").is_none());
    assert!(scene.blobs.with(|inner| inner.sessions.is_empty() && inner.blobs.is_empty()));
    scene.post("dev", "/v2/pa/app/blobs/uploads/?digest=sha256:x").refused(400, "DIGEST_INVALID").await;
    let twice = format!("{target}&digest={}", digest());
    scene.post("dev", twice).body(CONTENT).refused(400, "DIGEST_INVALID").await;
    let frames = Frames::chunked(CONTENT.chunks(5).map(Bytes::from_static), End::Clean);
    finished(&scene, &scene.post("dev", &target).frames(frames).expect(201).await).await;
    finished(&scene, &scene.post("dev", &target).body(CONTENT).expect(201).await).await;
    // Percent-encoded, as Go's url.Values writes it.
    let encoded = target.replace("sha256:", "sha256%3A");
    finished(&scene, &scene.post("dev", encoded).body(CONTENT).expect(201).await).await;
}

/// F-01: a client that went away in the middle left a session that nobody knew of, until it expired.
#[tokio::test]
async fn a_monolithic_post_that_is_given_up_or_breaks_off_leaves_no_session() {
    let scene = Scene::new();
    let target = format!("/v2/pa/app/blobs/uploads/?digest={}", digest());
    let frames = |end| Frames::chunked(CONTENT[..20].chunks(5).map(Bytes::from_static), end);
    scene.post("dev", &target).frames(frames(End::Silent)).hang_up().await;
    assert!(scene.blobs.with(|inner| inner.bytes_hashed == 20 && inner.sessions.is_empty()));
    scene.post("dev", &target).frames(frames(End::Broken)).expect(400).await;
    assert!(scene.blobs.with(|inner| inner.sessions.is_empty()));
    finished(&scene, &scene.post("dev", &target).body(CONTENT).expect(201).await).await;
}

/// S-43: bytes that the registry has elsewhere are received and hashed like any other.
#[tokio::test]
async fn an_upload_of_bytes_that_exist_elsewhere_is_read_and_hashed_to_the_end() {
    let scene = Scene::new();
    scene.push_blob("alice", "pa/secret", CONTENT).await;
    let other: Vec<u8> = CONTENT.iter().rev().copied().collect();
    for content in [CONTENT, &other] {
        let digest = sha256(content);
        let before = scene.blobs.with(|inner| inner.bytes_hashed);
        let frames = Frames::announced(Bytes::copy_from_slice(content));
        let taken = frames.taken();
        let target = format!("/v2/pb/app/blobs/uploads/?digest={digest}");
        let answer = scene.post("bob", target).frames(frames).expect(201).await;
        assert_eq!(answer.header("location"), format!("/v2/pb/app/blobs/{digest}"));
        assert_eq!(taken.load(std::sync::atomic::Ordering::SeqCst), content.len() as u64);
        assert_eq!(scene.blobs.with(|inner| inner.bytes_hashed) - before, content.len() as u64);
    }
}

/// S-56, S-57: a session belongs to its repository.
#[tokio::test]
async fn a_session_is_unknown_outside_its_repository_and_to_whoever_may_not_push() {
    let scene = Scene::new();
    let location = scene.begin("alice", "pa/secret").await;
    scene.patch("alice", &location).body(&CONTENT[..20]).expect(202).await;
    scene.begin("bob", "pb/app").await;
    let id = location.rsplit('/').next().unwrap();
    let moved = format!("/v2/pb/app/blobs/uploads/{id}");
    let target = format!("{moved}?digest={}", digest());
    scene.get("bob", &moved).refused(404, "BLOB_UPLOAD_UNKNOWN").await;
    scene.patch("bob", &moved).body(CONTENT).refused(404, "BLOB_UPLOAD_UNKNOWN").await;
    scene.put("bob", &target).body(CONTENT).refused(404, "BLOB_UPLOAD_UNKNOWN").await;
    scene.delete("bob", &moved).refused(404, "BLOB_UPLOAD_UNKNOWN").await;
    // A guest may pull there, not push.
    for call in [
        scene.get("guest", &location),
        scene.patch("guest", &location).body(CONTENT),
        scene.put("guest", format!("{location}?digest={}", digest())).body(CONTENT),
        scene.delete("guest", &location),
    ] {
        call.refused(403, "DENIED").await;
    }
    // Every other spelling of the id names no session.
    for byte in 0..id.len() {
        let mut flipped = id.as_bytes().to_vec();
        flipped[byte] ^= 1;
        let flipped = String::from_utf8(flipped).unwrap();
        let answer = scene.get("alice", format!("/v2/pa/secret/blobs/uploads/{flipped}")).send().await;
        assert!(matches!(answer.status.as_u16(), 400 | 404), "{flipped}");
    }
    for id in ["..", "%2e%2e", "..%2f..%2fetc", "x", "30313233-3435-3637-3839-6a6b6c6d6e6f0"] {
        let answer = scene.get("alice", format!("/v2/pa/secret/blobs/uploads/{id}")).send().await;
        assert_eq!(answer.status.as_u16(), 404, "{id}");
    }
    let put = scene.put("alice", format!("{location}?digest={}", digest())).body(&CONTENT[20..]);
    assert_eq!(put.expect(201).await.header("docker-content-digest"), digest().to_string());
}

/// F-01: what came before the connection broke is kept, and the client is told where to go on.
#[tokio::test]
async fn a_broken_connection_costs_only_what_was_not_received() {
    let scene = Scene::new();
    let location = scene.begin("dev", "pa/app").await;
    for target in [location.clone(), format!("{location}?digest={}", digest())] {
        let method = if target.contains('?') { http::Method::PUT } else { http::Method::PATCH };
        let offset = session_bytes(&scene).await.len();
        let frames = CONTENT[offset..offset + 10].chunks(4).map(Bytes::from_static);
        let call = scene.call("dev", method, target).frames(Frames::chunked(frames, End::Broken));
        call.expect(400).await;
        stands_at(&scene.get("dev", &location).expect(204).await, &location, offset + 10);
    }
    let put = scene.put("dev", format!("{location}?digest={}", digest())).body(&CONTENT[20..]);
    finished(&scene, &put.expect(201).await).await;
}

/// F-05: one writer at a time.
#[tokio::test]
async fn a_second_writer_of_a_session_is_told_so() {
    let scene = Scene::new();
    let location = scene.begin("dev", "pa/app").await;
    scene.blobs.with(|inner| inner.sessions.values_mut().for_each(|session| session.busy = true));
    scene.patch("dev", &location).body(CONTENT).refused(409, "BLOB_UPLOAD_INVALID").await;
    scene.put("dev", format!("{location}?digest={}", digest())).refused(409, "BLOB_UPLOAD_INVALID").await;
    scene.delete("dev", &location).refused(409, "BLOB_UPLOAD_INVALID").await;
}

#[tokio::test]
async fn too_many_sessions_are_429() {
    let scene = Scene::new();
    scene.blobs.with(|inner| inner.sessions_max = Some(2));
    scene.begin("dev", "pa/app").await;
    scene.begin("dev", "pa/app").await;
    let answer = scene.post("dev", "/v2/pa/app/blobs/uploads/").refused(429, "TOOMANYREQUESTS").await;
    assert_eq!(answer.header("retry-after"), "30");
}

#[tokio::test]
async fn the_algorithm_of_the_digest_decides_whatever_the_session_began_with() {
    let scene = Scene::new();
    for algorithm in Algorithm::ALL {
        let digest = Digest::of(algorithm, CONTENT);
        let location = scene.begin("dev", "pa/app").await;
        scene.patch("dev", &location).body(&CONTENT[..3]).expect(202).await;
        let put = scene.put("dev", format!("{location}?digest={digest}")).body(&CONTENT[3..]);
        assert_eq!(put.expect(201).await.header("docker-content-digest"), digest.to_string());
        assert!(scene.links("pa/app", &digest));
    }
}

/// A look made a repository, which was then in the way of mounts.
#[tokio::test]
async fn a_session_of_a_repository_that_is_not_there_is_unknown_and_makes_none() {
    let scene = Scene::new();
    let id = "30313233-3435-3637-3839-6a6b6c6d6e6f";
    for id in [id, "no-id"] {
        let path = format!("/v2/pa/none/blobs/uploads/{id}");
        scene.get("dev", &path).refused(404, "BLOB_UPLOAD_UNKNOWN").await;
        scene.head("dev", &path).expect(404).await;
        scene.patch("dev", &path).body(CONTENT).refused(404, "BLOB_UPLOAD_UNKNOWN").await;
        let put = scene.put("dev", format!("{path}?digest={}", digest())).body(CONTENT);
        put.refused(404, "BLOB_UPLOAD_UNKNOWN").await;
        scene.delete("dev", &path).refused(404, "BLOB_UPLOAD_UNKNOWN").await;
    }
    assert!(scene.names.all().is_empty());
    scene.begin("dev", "pa/none").await;
    assert_eq!(scene.names.all().len(), 1);
    // An index of nothing needs no blobs.
    let index = serde_json::json!({
        "schemaVersion": 2, "mediaType": taffrail_distribution::manifest::OCI_INDEX, "manifests": [],
    });
    scene.push_manifest("dev", "pa/index", "one", &index).await;
    assert_eq!(scene.names.all().len(), 2);
}
