//! Pages of tags and of repositories (S-52, S-53).

use crate::client::{Answer, Scene, image};

fn next(answer: &Answer) -> Option<String> {
    let link = answer.header("link");
    if link.is_empty() {
        return None;
    }
    Some(link.strip_prefix('<').unwrap().strip_suffix(">; rel=\"next\"").unwrap().to_owned())
}

fn strings(answer: &Answer, field: &str) -> Vec<String> {
    let json = answer.json();
    json[field].as_array().unwrap().iter().map(|entry| entry.as_str().unwrap().to_owned()).collect()
}

async fn walk(scene: &Scene, user: &str, first: String, field: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut target = Some(first);
    while let Some(page) = target {
        let answer = scene.get(user, &page).expect(200).await;
        found.extend(strings(&answer, field));
        target = next(&answer);
    }
    found
}

#[tokio::test]
async fn tags_are_listed_in_order_page_by_page() {
    let scene = Scene::new();
    let config = scene.push_blob("alice", "pa/app", b"{}").await;
    let path = "/v2/pa/app/tags/list";
    let answer = scene.get("guest", path).expect(200).await;
    assert_eq!(answer.text(), r#"{"name":"pa/app","tags":[]}"#);
    let mut tags: Vec<String> =
        ["v1", "v1.0", "v1-a", "V1", "_x", "0", "10", "9", "a", "aa"].map(str::to_owned).to_vec();
    tags.extend((0..200).map(|number| format!("t{number}")));
    for tag in &tags {
        scene.push_manifest("alice", "pa/app", tag, &image(&[(config, 2)])).await;
    }
    // "ASCIIbetical", as the spec has it.
    tags.sort();
    for n in [1, 2, 7, 209, 210, 211, 5000] {
        assert_eq!(walk(&scene, "guest", format!("{path}?n={n}"), "tags").await, tags, "n={n}");
    }
    let answer = scene.get("guest", path).expect(200).await;
    assert_eq!(strings(&answer, "tags"), tags);
    assert_eq!(answer.header("content-type"), "application/json");
    assert_eq!(next(&answer), None);
    // n=0: an empty list and no link.
    let answer = scene.get("guest", format!("{path}?n=0")).expect(200).await;
    assert!(strings(&answer, "tags").is_empty() && next(&answer).is_none());
    // `last` is a position: one that was never there, or is no more, will do.
    let answer = scene.get("guest", format!("{path}?last=v1.")).expect(200).await;
    assert_eq!(strings(&answer, "tags"), ["v1.0"]);
    scene.delete("alice", "/v2/pa/app/manifests/t99").expect(202).await;
    let answer = scene.get("guest", format!("{path}?last=t99&n=1")).expect(200).await;
    assert_eq!(strings(&answer, "tags"), ["v1"]);
    let answer = scene.get("guest", format!("{path}?last=%C3%BF%0D%0A")).expect(200).await;
    assert!(strings(&answer, "tags").is_empty());
}

#[tokio::test]
async fn a_number_that_is_none_is_refused_and_a_large_one_is_clamped() {
    let scene = Scene::new();
    let subject = scene.push_image("alice", "pa/app", "v1").await;
    for path in [
        "/v2/pa/app/tags/list".to_owned(),
        "/v2/_catalog".to_owned(),
        format!("/v2/pa/app/referrers/{subject}"),
    ] {
        for n in ["-1", "abc", "1e11", "", "1.5", "%31x", "0x10", "+1", "%00"] {
            let call = scene.get("alice", format!("{path}?n={n}"));
            call.refused(400, "PAGINATION_NUMBER_INVALID").await;
        }
        for n in ["1", "1001", "100000000000", "9223372036854775808", &"9".repeat(5000)] {
            scene.get("alice", format!("{path}?n={n}")).expect(200).await;
        }
        scene.get("alice", format!("{path}?n=%ff")).refused(400, "UNSUPPORTED").await;
        scene.get("alice", format!("{path}?last=%ff")).refused(400, "UNSUPPORTED").await;
    }
}

#[tokio::test]
async fn the_catalog_lists_what_the_caller_may_see_each_once() {
    let scene = Scene::new();
    let names = ["pa/m", "pa/math", "pa/math-voila", "pa/math/x", "pb/app", "pub/hello"];
    for name in names {
        scene.push_image("admin", name, "v1").await;
    }
    scene.begin("admin", "pa/only-an-upload").await;
    for n in [1, 2, 7] {
        assert_eq!(walk(&scene, "admin", format!("/v2/_catalog?n={n}"), "repositories").await, names);
        assert_eq!(
            walk(&scene, "bob", format!("/v2/_catalog?n={n}"), "repositories").await,
            ["pb/app", "pub/hello"]
        );
    }
    let answer = scene.get("bob", "/v2/_catalog?last=pa/zzz").expect(200).await;
    assert_eq!(answer.text(), r#"{"repositories":["pb/app","pub/hello"]}"#);
    let answer = scene.get("bob", "/v2/_catalog?n=0").expect(200).await;
    assert_eq!(answer.text(), r#"{"repositories":[]}"#);
    let answer = scene.get("admin", "/v2/_catalog?n=2").expect(200).await;
    assert_eq!(answer.header("link"), "</v2/_catalog?n=2&last=pa%2Fmath>; rel=\"next\"");
    let answer = scene.get("", "/v2/_catalog").refused(401, "UNAUTHORIZED").await;
    assert!(answer.header("www-authenticate").contains("scope=\"registry:catalog:*\""));
}
