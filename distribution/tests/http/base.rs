//! `/v2/`, extensions, unknown paths and methods.

use http::Method;
use taffrail_distribution::route::Endpoint;

use crate::client::Scene;

#[tokio::test]
async fn the_base_answers_whoever_is_known_and_challenges_the_others() {
    let scene = Scene::new();
    for path in ["/v2/", "/v2"] {
        let answer = scene.get("alice", path).expect(200).await;
        assert_eq!(answer.text(), "{}");
        assert_eq!(answer.header("content-type"), "application/json");
        assert_eq!(answer.endpoint, Some(Endpoint::Base));
        scene.head("alice", path).expect(200).await;
        let answer = scene.get("", path).header("Host", "reg.example").refused(401, "UNAUTHORIZED").await;
        assert_eq!(
            answer.header("www-authenticate"),
            "Bearer realm=\"http://reg.example/service/token\",service=\"test\""
        );
        let answer = scene.get("mallory", path).refused(401, "UNAUTHORIZED").await;
        assert!(answer.header("www-authenticate").contains("error=\"invalid_token\""));
    }
}

#[tokio::test]
async fn there_are_no_extensions_and_the_registry_says_so() {
    let scene = Scene::new();
    let answer = scene.get("alice", "/v2/_oci/ext/discover").expect(200).await;
    assert_eq!(answer.text(), r#"{"extensions":[]}"#);
    scene.get("", "/v2/_oci/ext/discover").refused(401, "UNAUTHORIZED").await;
    scene.push_image("alice", "pa/app", "latest").await;
    scene.get("alice", "/v2/pa/app/_oci/ext/discover").expect(200).await;
    scene.get("bob", "/v2/pa/app/_oci/ext/discover").refused(404, "NAME_UNKNOWN").await;
}

#[tokio::test]
async fn a_known_path_with_another_method_is_405_and_says_what_would_do() {
    let scene = Scene::new();
    let digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let id = "30313233-3435-3637-3839-6a6b6c6d6e6f";
    let others = [
        Method::POST,
        Method::PUT,
        Method::PATCH,
        Method::DELETE,
        Method::GET,
        Method::OPTIONS,
        Method::TRACE,
    ];
    for (path, allow) in [
        ("/v2/".to_owned(), "GET, HEAD"),
        ("/v2/_catalog".to_owned(), "GET, HEAD"),
        ("/v2/_oci/ext/discover".to_owned(), "GET, HEAD"),
        ("/v2/pa/a/tags/list".to_owned(), "GET, HEAD"),
        (format!("/v2/pa/a/referrers/{digest}"), "GET, HEAD"),
        ("/v2/pa/a/manifests/latest".to_owned(), "GET, HEAD, PUT, DELETE"),
        (format!("/v2/pa/a/blobs/{digest}"), "GET, HEAD, DELETE"),
        ("/v2/pa/a/blobs/uploads/".to_owned(), "POST"),
        (format!("/v2/pa/a/blobs/uploads/{id}"), "GET, HEAD, PATCH, PUT, DELETE"),
    ] {
        for method in &others {
            if allow.split(", ").any(|allowed| allowed == method.as_str()) {
                continue;
            }
            let answer = scene.call("alice", method.clone(), &path).expect(405).await;
            assert_eq!(answer.header("allow"), allow, "{method} {path}");
            assert_eq!(answer.code(), "UNSUPPORTED");
        }
    }
    // A header that wants to be a method is none.
    let call = scene.get("alice", "/v2/").header("X-HTTP-Method-Override", "DELETE");
    call.expect(200).await;
}

/// S-51: no spelling of the catalog's path gives a list to somebody who may not have it.
#[tokio::test]
async fn no_spelling_of_the_catalog_gives_a_list_to_the_anonymous() {
    let scene = Scene::new();
    scene.push_image("alice", "pa/app", "latest").await;
    for path in [
        "/v2/_catalog",
        "/v2/_catalog/",
        "//v2/_catalog",
        "/v2//_catalog",
        "/v2/./_catalog",
        "/v2/x/../_catalog",
        "/v2/%5fcatalog",
        "/V2/_catalog",
        "/v2/_catalog;x",
        "/v2/_catalog%20",
        "/v2/_catalog%00",
        "/v2/_catalog?n=1",
    ] {
        for method in [Method::GET, Method::HEAD, Method::OPTIONS] {
            let answer = scene.call("", method.clone(), path).send().await;
            assert!(matches!(answer.status.as_u16(), 400 | 401 | 404 | 405), "{method} {path}");
            assert!(!answer.text().contains("pa/app"));
        }
    }
    for path in ["/v1/", "/", "/v2x/", "/v2/x", "/v2/a/b/c"] {
        scene.get("alice", path).refused(404, "UNSUPPORTED").await;
    }
}
