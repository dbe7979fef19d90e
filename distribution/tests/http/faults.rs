//! Faults of store and catalog, slow and oversized bodies.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use taffrail_distribution::limits::Limits;
use taffrail_distribution::manifest::OCI_IMAGE;
use tokio::sync::Notify;

use crate::client::{End, Frames, Scene, image, sha256};
use crate::memory::Fault;

#[tokio::test]
async fn a_full_store_is_507_and_reads_go_on() {
    let scene = Scene::new();
    let manifest = scene.push_image("alice", "pa/app", "v1").await;
    let config = scene.push_blob("alice", "pa/app", b"{}").await;
    let location = scene.begin("alice", "pa/app").await;
    scene.blobs.with(|inner| inner.fault = Some(Fault::NoSpace));
    let digest = sha256(b"x");
    scene.post("alice", "/v2/pa/app/blobs/uploads/").refused(507, "UNAVAILABLE").await;
    let target = format!("/v2/pa/app/blobs/uploads/?digest={digest}");
    scene.post("alice", &target).body(&b"x"[..]).refused(507, "UNAVAILABLE").await;
    scene.patch("alice", &location).body(&b"x"[..]).refused(507, "UNAVAILABLE").await;
    // The engine gave the session's bytes back.
    scene.get("alice", &location).refused(404, "BLOB_UPLOAD_UNKNOWN").await;
    let document = image(&[(config, 2)]).to_string();
    let call = scene.put("alice", "/v2/pa/app/manifests/v2").header("Content-Type", OCI_IMAGE);
    call.body(document).refused(507, "UNAVAILABLE").await;
    scene.get("alice", format!("/v2/pa/app/manifests/{manifest}")).expect(200).await;
    scene.get("alice", format!("/v2/pa/app/blobs/{config}")).expect(200).await;
    scene.blobs.with(|inner| inner.fault = None);
    scene.post("alice", target).body(&b"x"[..]).expect(201).await;
}

#[tokio::test]
async fn a_store_that_takes_no_writes_is_503_and_tells_clients_no_more() {
    let scene = Scene::new();
    let location = scene.begin("alice", "pa/app").await;
    let blob = scene.push_blob("alice", "pa/app", b"x").await;
    scene.blobs.with(|inner| inner.fault = Some(Fault::Unavailable));
    for call in [
        scene.post("alice", "/v2/pa/app/blobs/uploads/"),
        scene.patch("alice", &location).body(&b"x"[..]),
        scene.put("alice", format!("{location}?digest={}", sha256(b""))),
        scene.delete("alice", format!("/v2/pa/app/blobs/{blob}")),
    ] {
        let answer = call.refused(503, "UNAVAILABLE").await;
        assert_eq!(answer.header("retry-after"), "5");
        assert_eq!(answer.message(), "the registry cannot do that at this moment; try again");
    }
    scene.get("alice", format!("/v2/pa/app/blobs/{blob}")).expect(200).await;
}

#[tokio::test]
async fn faults_of_the_catalog_are_503_and_507() {
    let scene = Scene::new();
    let manifest = scene.push_image("alice", "pa/app", "v1").await;
    let config = scene.push_blob("alice", "pa/app", b"{}").await;
    for (status, unavailable) in [(503, true), (507, false)] {
        scene.catalog.with(|inner| {
            inner.unavailable = unavailable;
            inner.no_space = !unavailable;
        });
        let document = image(&[(config, 2)]).to_string();
        let put = scene.put("alice", "/v2/pa/app/manifests/v2").header("Content-Type", OCI_IMAGE);
        for call in [
            put.body(document),
            scene.get("alice", "/v2/pa/app/manifests/v1"),
            scene.delete("alice", "/v2/pa/app/manifests/v1"),
            scene.delete("alice", format!("/v2/pa/app/manifests/{manifest}")),
            scene.delete("alice", format!("/v2/pa/app/blobs/{config}")),
            scene.get("alice", "/v2/pa/app/tags/list"),
            scene.get("alice", "/v2/_catalog"),
            scene.get("alice", format!("/v2/pa/app/referrers/{manifest}")),
        ] {
            call.refused(status, "UNAVAILABLE").await;
        }
        assert_eq!(scene.blobs.with(|inner| inner.pins), 0);
        // Blobs need no catalog.
        scene.get("alice", format!("/v2/pa/app/blobs/{config}")).expect(200).await;
    }
}

/// The client is answered, and the transaction goes on: were the pins dropped with the answer, the layers could go before it names
/// them.
#[tokio::test(start_paused = true)]
async fn pins_outlive_an_answer_that_did_not_wait_for_the_catalog() {
    let scene = Scene::new();
    let config = scene.push_blob("alice", "pa/app", b"{}").await;
    let stall = Arc::new(Notify::new());
    scene.catalog.with(|inner| inner.stall = Some(Arc::clone(&stall)));
    let document = image(&[(config, 2)]).to_string();
    let put = scene.put("alice", "/v2/pa/app/manifests/v1").header("Content-Type", OCI_IMAGE);
    put.body(document).refused(503, "UNAVAILABLE").await;
    assert!(scene.blobs.with(|inner| inner.pins) > 0, "the transaction may still come through");
    stall.notify_one();
    while scene.blobs.with(|inner| inner.pins) > 0 {
        tokio::task::yield_now().await;
    }
    scene.get("alice", "/v2/pa/app/manifests/v1").expect(200).await;
}

/// P-04: damage at the start is an answer, damage later cuts the connection; wrong bytes never go out as complete.
#[tokio::test]
async fn damaged_bytes_are_never_completed() {
    let scene = Scene::new();
    let content = vec![b'x'; 10_000];
    let digest = scene.push_blob("alice", "pa/app", &content).await;
    let path = format!("/v2/pa/app/blobs/{digest}");
    scene.blobs.with(|inner| inner.damaged.insert(digest, 0));
    scene.get("alice", &path).refused(404, "BLOB_UNKNOWN").await;
    scene.blobs.with(|inner| inner.damaged.insert(digest, 5000));
    let answer = scene.get("alice", &path).expect(200).await;
    let error = answer.content.unwrap_err();
    assert!(error.to_string().contains("damaged"));
    let call = scene.get("alice", &path).header("Range", "bytes=0-999,4000-6000");
    assert!(call.expect(206).await.content.is_err());
    scene.get("alice", &path).header("Range", "bytes=0-999").expect(206).await.bytes();
}

#[tokio::test]
async fn a_blob_over_the_limit_is_413_before_it_is_read_or_as_soon_as_it_is_seen() {
    let limits = Limits { blob_bytes_max: 1000, ..Limits::default() };
    let scene = Scene::with(limits);
    let location = scene.begin("alice", "pa/app").await;
    scene.patch("alice", &location).body(vec![b'x'; 600]).expect(202).await;
    let target = format!("{location}?digest={}", sha256(&[b'x'; 1000]));
    let monolithic = format!("/v2/pa/app/blobs/uploads/?digest={}", sha256(&[b'x'; 1001]));
    for (call, len) in [
        (scene.patch("alice", &location), 401),
        (scene.put("alice", &target), 401),
        (scene.patch("alice", &location).header("Content-Range", "600-1000"), 401),
        (scene.post("alice", &monolithic), 1001),
    ] {
        let frames = Frames::announced(Bytes::from(vec![b'x'; len]));
        let taken = frames.taken();
        call.frames(frames).refused(413, "SIZE_INVALID").await;
        assert_eq!(taken.load(Ordering::SeqCst), 0);
    }
    for (call, len) in [(scene.patch("alice", &location), 401), (scene.post("alice", &monolithic), 1001)] {
        let frames =
            Frames::chunked((0..len).map(|_| Bytes::from_static(b"x")).chain([Bytes::new()]), End::Silent);
        call.frames(frames).refused(413, "SIZE_INVALID").await;
    }
    assert_eq!(scene.get("alice", &location).expect(204).await.header("range"), "0-599");
    assert_eq!(scene.blobs.with(|inner| inner.sessions.len()), 1);
    scene.put("alice", target).body(vec![b'x'; 400]).expect(201).await;
}

/// `limits.body_bytes_per_sec_min`: at least 1 KiB/s over each 30 s of waiting, else 408; the session keeps what came.
#[tokio::test(start_paused = true)]
async fn a_body_that_stops_is_408_and_the_session_keeps_what_came() {
    let scene = Scene::new();
    let location = scene.begin("alice", "pa/app").await;
    let began = tokio::time::Instant::now();
    let frames = Frames::chunked([Bytes::from(vec![b'x'; 1000])], End::Silent);
    scene.patch("alice", &location).frames(frames).expect(408).await;
    assert_eq!(began.elapsed().as_secs(), 30);
    assert_eq!(scene.get("alice", &location).expect(204).await.header("range"), "0-999");
    // Enough came in the first window, nothing in the second.
    let began = tokio::time::Instant::now();
    let frames = Frames::chunked([Bytes::from(vec![b'x'; 40_000])], End::Silent);
    scene.patch("alice", &location).frames(frames).expect(408).await;
    assert_eq!(began.elapsed().as_secs(), 60);
    assert_eq!(scene.get("alice", &location).expect(204).await.header("range"), "0-40999");
    let call = scene.put("alice", "/v2/pa/app/manifests/v1").header("Content-Type", OCI_IMAGE);
    call.frames(Frames::chunked([Bytes::from_static(b"{")], End::Silent)).expect(408).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
}
