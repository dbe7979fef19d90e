//! Rights that are lost while a body is on its way (S-48): they are asked for once more before anything is committed.

use std::sync::Arc;

use bytes::Bytes;
use taffrail_distribution::manifest::OCI_IMAGE;

use crate::client::{End, Frames, Scene, image, sha256};

const CONTENT: &[u8] = b"a long body";

/// A body after whose last byte the user has lost the project.
fn outliving(scene: &Scene, user: &'static str, content: impl Into<Bytes>) -> Frames {
    let access = Arc::clone(&scene.access);
    let frames = Frames::chunked([content.into()], End::Clean);
    frames.before_the_end(move || access.revoke(user, "pa"))
}

#[tokio::test]
async fn who_lost_the_right_while_a_blob_was_streaming_links_nothing() {
    let digest = sha256(CONTENT);
    for whole in [true, false] {
        let scene = Scene::new();
        let target = if whole {
            format!("/v2/pa/app/blobs/uploads/?digest={digest}")
        } else {
            format!("{}?digest={digest}", scene.begin("dev", "pa/app").await)
        };
        let frames = outliving(&scene, "dev", CONTENT);
        let taken = frames.taken();
        let call = if whole { scene.post("dev", target) } else { scene.put("dev", target) };
        call.frames(frames).refused(403, "DENIED").await;
        assert_eq!(taken.load(std::sync::atomic::Ordering::SeqCst), CONTENT.len() as u64);
        assert!(!scene.links("pa/app", &digest));
        assert!(scene.blobs.with(|inner| inner.blobs.is_empty()));
    }
}

#[tokio::test]
async fn who_lost_the_right_while_a_manifest_was_streaming_changes_no_tag() {
    let scene = Scene::new();
    let before = scene.push_image("alice", "pa/app", "latest").await;
    let config = scene.push_blob("alice", "pa/app", b"{}").await;
    let document = image(&[(config, 2)]).to_string();
    let digest = sha256(document.as_bytes());
    let put = scene.put("dev", "/v2/pa/app/manifests/latest").header("Content-Type", OCI_IMAGE);
    put.frames(outliving(&scene, "dev", document)).refused(403, "DENIED").await;
    assert!(!scene.links("pa/app", &digest));
    let latest = scene.head("alice", "/v2/pa/app/manifests/latest").expect(200).await;
    assert_eq!(latest.header("docker-content-digest"), before.to_string());
    scene.get("alice", format!("/v2/pa/app/manifests/{digest}")).refused(404, "MANIFEST_UNKNOWN").await;
}

/// A project that was deleted and made anew meanwhile is another one, and what was begun for the old one is not for it.
#[tokio::test]
async fn what_was_sent_to_a_repository_that_went_meanwhile_is_not_put_into_its_successor() {
    let scene = Scene::new();
    let digest = sha256(CONTENT);
    let old = {
        scene.begin("dev", "pa/app").await;
        scene.key("pa/app")
    };
    let names = Arc::clone(&scene.names);
    let frames = Frames::chunked([Bytes::from_static(CONTENT)], End::Clean);
    let frames = frames.before_the_end(move || names.renew("pa/app"));
    let target = format!("/v2/pa/app/blobs/uploads/?digest={digest}");
    scene.post("dev", target).frames(frames).refused(404, "NAME_UNKNOWN").await;
    assert_ne!(scene.key("pa/app"), old);
    assert!(scene.blobs.with(|inner| inner.links.is_empty()));
}
