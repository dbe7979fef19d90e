//! Who may do what, and that a refusal comes first and tells nothing.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::Method;
use taffrail_distribution::access::{AccessError, Action};
use taffrail_distribution::manifest::OCI_IMAGE;

use crate::client::{Answer, Frames, Scene, sha256};

/// Every endpoint of a repository: method, path below `/v2/NAME`, and the action it needs.
fn endpoints(digest: &str) -> Vec<(Method, String, Action)> {
    let id = "30313233-3435-3637-3839-6a6b6c6d6e6f";
    let mut endpoints = Vec::new();
    for method in [Method::GET, Method::HEAD] {
        for path in [
            "_oci/ext/discover".to_owned(),
            "tags/list".to_owned(),
            "manifests/v1".to_owned(),
            format!("manifests/{digest}"),
            format!("blobs/{digest}"),
        ] {
            endpoints.push((method.clone(), path, Action::Pull));
        }
        endpoints.push((method, format!("blobs/uploads/{id}"), Action::Push));
    }
    endpoints.push((Method::PUT, "manifests/v1".to_owned(), Action::Push));
    endpoints.push((Method::PUT, format!("manifests/{digest}?tag=v1"), Action::Push));
    endpoints.push((Method::POST, "blobs/uploads/".to_owned(), Action::Push));
    endpoints.push((Method::POST, format!("blobs/uploads/?digest={digest}"), Action::Push));
    endpoints.push((Method::POST, format!("blobs/uploads/?mount={digest}&from=pub/hello"), Action::Push));
    endpoints.push((Method::PATCH, format!("blobs/uploads/{id}"), Action::Push));
    endpoints.push((Method::PUT, format!("blobs/uploads/{id}?digest={digest}"), Action::Push));
    endpoints.push((Method::DELETE, format!("blobs/uploads/{id}"), Action::Push));
    endpoints.push((Method::DELETE, "manifests/v1".to_owned(), Action::Delete));
    endpoints.push((Method::DELETE, format!("manifests/{digest}"), Action::Delete));
    endpoints.push((Method::DELETE, format!("blobs/{digest}"), Action::Delete));
    endpoints
}

fn fingerprint(scene: &Scene) -> (usize, usize, usize, usize) {
    let (manifests, tags) = scene.catalog.with(|inner| (inner.manifests.len(), inner.tags.len()));
    let (links, sessions) = scene.blobs.with(|inner| (inner.links.len(), inner.sessions.len()));
    (manifests, tags, links, sessions)
}

#[tokio::test]
async fn every_endpoint_asks_for_its_action_in_the_repository_of_its_path_and_reads_no_body_before() {
    let scene = Scene::new();
    let digest = scene.push_image("alice", "pa/secret", "v1").await.to_string();
    let before = fingerprint(&scene);
    for user in ["", "mallory", "bob", "guest", "dev"] {
        for (method, path, action) in endpoints(&digest) {
            let allowed = match user {
                "guest" => action == Action::Pull,
                "dev" => action != Action::Delete,
                _ => false,
            };
            if allowed {
                continue;
            }
            scene.access.asked.lock().unwrap().clear();
            let frames = Frames::announced(Bytes::from_static(b"a body that nobody should read"));
            let taken = frames.taken();
            let call = scene.call(user, method.clone(), format!("/v2/pa/secret/{path}"));
            let answer = call.header("Content-Type", OCI_IMAGE).frames(frames).send().await;
            let what = format!("{user} {method} {path}");
            let expected = match (user, action) {
                ("" | "mallory", _) => 401,
                ("bob", Action::Pull) => 404,
                _ => 403,
            };
            answer.demand(expected);
            assert_eq!(taken.load(Ordering::SeqCst), 0, "{what}");
            assert_eq!(fingerprint(&scene), before, "{what}");
            let asked = scene.access.asked.lock().unwrap().clone();
            if user == "mallory" {
                assert!(asked.is_empty(), "{what}");
            } else {
                assert_eq!(asked, [(user.to_owned(), action, "pa/secret".to_owned())], "{what}");
            }
            if expected == 401 {
                let actions = match action {
                    Action::Pull => "pull",
                    Action::Push => "pull,push",
                    Action::Delete => "delete",
                };
                let challenge = answer.header("www-authenticate").to_owned();
                assert!(
                    challenge.contains(&format!("repository:pa/secret:{actions}")),
                    "{what}: {challenge}"
                );
                assert_eq!(challenge.contains("invalid_token"), user == "mallory", "{what}");
            } else {
                assert!(answer.headers.get("www-authenticate").is_none(), "{what}");
            }
        }
    }
}

/// The answer with every name replaced, for comparison.
fn anonymised(answer: &Answer, name: &str) -> (u16, String, Vec<(String, String)>) {
    let replace = |text: &str| text.replace(name, "NAME");
    let mut headers: Vec<(String, String)> = answer
        .headers
        .iter()
        .filter(|(header, _)| *header != "content-length")
        .map(|(header, value)| (header.to_string(), replace(value.to_str().unwrap())))
        .collect();
    headers.sort();
    (answer.status.as_u16(), replace(&answer.text()), headers)
}

/// Rule N: for whoever may not see it, a repository looks like one that never existed.
#[tokio::test]
async fn a_forbidden_repository_answers_like_one_that_never_existed() {
    let scene = Scene::new();
    let digest = scene.push_image("alice", "pa/secret", "v1").await.to_string();
    for user in ["", "bob"] {
        for (method, path, _) in endpoints(&digest) {
            let mut answers = Vec::new();
            for name in ["pa/secret", "pa/absent", "pq/absent"] {
                let call = scene.call(user, method.clone(), format!("/v2/{name}/{path}"));
                answers.push(anonymised(&call.body(&b"{}"[..]).send().await, name));
            }
            assert!(
                answers.windows(2).all(|pair| pair[0] == pair[1]),
                "{user} {method} {path}: {answers:#?}"
            );
        }
    }
}

/// S-42: a digest that only another repository holds is unknown.
#[tokio::test]
async fn content_of_another_repository_is_unknown_in_ones_own() {
    let scene = Scene::new();
    let manifest = scene.push_image("alice", "pa/secret", "v1").await;
    let blob = scene.push_blob("alice", "pa/secret", b"secret bytes").await;
    scene.push_image("bob", "pb/app", "v1").await;
    let absent = sha256(b"absent");
    for (digest, kind, code) in [(blob, "blobs", "BLOB_UNKNOWN"), (manifest, "manifests", "MANIFEST_UNKNOWN")]
    {
        for range in ["", "bytes=0-0", "bytes=-1", "bytes=0-0,2-2"] {
            let call = scene.get("bob", format!("/v2/pb/app/{kind}/{digest}")).header("Range", range);
            let answer = call.refused(404, code).await;
            let call = scene.get("bob", format!("/v2/pb/app/{kind}/{absent}")).header("Range", range);
            let other = call.refused(404, code).await;
            assert_eq!(
                anonymised(&answer, &digest.to_string()),
                anonymised(&other, &absent.to_string()),
                "{kind} {range}"
            );
        }
        scene.head("bob", format!("/v2/pb/app/{kind}/{digest}")).expect(404).await;
        scene.delete("bob", format!("/v2/pb/app/{kind}/{digest}")).refused(404, code).await;
    }
    scene.get("alice", format!("/v2/pa/secret/blobs/{blob}")).expect(200).await;
}

/// S-10: a right on one name is no right on names that look alike.
#[tokio::test]
async fn rights_are_for_the_exact_name() {
    let scene = Scene::new();
    let digest = scene.push_image("alice", "pa/secret", "v1").await;
    for name in [
        "pa/secret2",
        "pa/secret/",
        "pa//secret",
        "PA/secret",
        "pa%2Fsecret",
        "pa/secret%00",
        "pa/./secret",
        "pa/x/../secret",
        "/pa/secret",
        "pa\\secret",
        "pa/secret;x",
        "pa/s%65cret",
    ] {
        for suffix in ["manifests/v1".to_owned(), format!("blobs/{digest}"), "tags/list".to_owned()] {
            let answer = scene.get("guest", format!("/v2/{name}/{suffix}")).send().await;
            assert!(matches!(answer.status.as_u16(), 400 | 401 | 404), "{name}: {}", answer.status);
        }
    }
}

#[tokio::test]
async fn too_many_requests_and_an_unavailable_authorizer_say_when_to_try_again() {
    let scene = Scene::new();
    *scene.access.failure.lock().unwrap() = Some(AccessError::TooMany { retry_after_secs: 7 });
    let answer = scene.get("alice", "/v2/pa/app/tags/list").refused(429, "TOOMANYREQUESTS").await;
    assert_eq!(answer.header("retry-after"), "7");
    *scene.access.failure.lock().unwrap() = Some(AccessError::Unavailable);
    let answer = scene.get("alice", "/v2/pa/app/tags/list").refused(503, "UNAVAILABLE").await;
    assert_eq!(answer.header("retry-after"), "5");
    *scene.access.failure.lock().unwrap() = Some(AccessError::Unauthenticated {
        error: Some("insufficient_scope"),
        message: "the token lacks a scope".to_owned(),
    });
    let answer = scene.get("alice", "/v2/pa/app/tags/list").refused(401, "UNAUTHORIZED").await;
    assert!(answer.header("www-authenticate").contains("error=\"insufficient_scope\""));
}
