//! Referrers: index, filter, pages; and never an oracle.

use serde_json::{Value, json};
use taffrail_blobstore::Digest;
use taffrail_distribution::limits::Limits;
use taffrail_distribution::manifest::{OCI_IMAGE, OCI_INDEX};

use crate::client::{Answer, Scene, image, sha256};

/// Pushes a manifest with a subject and returns its descriptor as a listing shows it.
async fn attach(scene: &Scene, subject: &Digest, artifact_type: &str, number: usize, note: &str) -> Value {
    let config = scene.push_blob("alice", "pa/app", b"{}").await;
    let mut document = image(&[(config, 2)]);
    document["subject"] = json!({ "mediaType": OCI_IMAGE, "digest": subject.to_string(), "size": 1 });
    document["annotations"] = json!({ "number": number.to_string(), "note": note });
    if !artifact_type.is_empty() {
        document["artifactType"] = json!(artifact_type);
    }
    let content = document.to_string();
    let digest = sha256(content.as_bytes());
    let call = scene.put("alice", format!("/v2/pa/app/manifests/{digest}"));
    let answer = call.header("Content-Type", OCI_IMAGE).body(content.clone()).expect(201).await;
    assert_eq!(answer.header("oci-subject"), subject.to_string());
    let artifact_type =
        if artifact_type.is_empty() { "application/vnd.oci.image.config.v1+json" } else { artifact_type };
    json!({
        "mediaType": OCI_IMAGE,
        "digest": digest.to_string(),
        "size": content.len(),
        "artifactType": artifact_type,
        "annotations": document["annotations"],
    })
}

fn listed(answer: &Answer) -> Vec<Value> {
    assert_eq!(answer.header("content-type"), OCI_INDEX);
    let json = answer.json();
    assert_eq!(json["schemaVersion"], 2);
    assert_eq!(json["mediaType"], OCI_INDEX);
    json["manifests"].as_array().unwrap().clone()
}

fn next(answer: &Answer) -> Option<String> {
    let link = answer.header("link");
    if link.is_empty() {
        return None;
    }
    let target = link.strip_prefix('<').unwrap().strip_suffix(">; rel=\"next\"").unwrap();
    Some(target.to_owned())
}

fn sorted(mut descriptors: Vec<Value>) -> Vec<Value> {
    descriptors.sort_by_key(|descriptor| descriptor["digest"].as_str().unwrap().to_owned());
    descriptors
}

#[tokio::test]
async fn referrers_are_listed_with_type_and_annotations_and_filtered() {
    let scene = Scene::new();
    let subject = scene.push_image("alice", "pa/app", "v1").await;
    let path = format!("/v2/pa/app/referrers/{subject}");
    assert!(listed(&scene.get("guest", &path).expect(200).await).is_empty());
    let mut all = Vec::new();
    for (number, artifact_type) in ["application/a+json", "application/b", ""].iter().enumerate() {
        all.push(attach(&scene, &subject, artifact_type, number, "é\u{2028}\"<script>").await);
    }
    let answer = scene.get("guest", &path).expect(200).await;
    assert_eq!(listed(&answer), sorted(all.clone()));
    assert_eq!(answer.header("oci-filters-applied"), "");
    assert_eq!(next(&answer), None);
    // As Go escapes the plus, and as scripts forget to.
    for query in ["application%2Fa%2Bjson", "application/a+json"] {
        let answer = scene.get("guest", format!("{path}?artifactType={query}")).expect(200).await;
        assert_eq!(listed(&answer), [all[0].clone()]);
        assert_eq!(answer.header("oci-filters-applied"), "artifactType");
    }
    let config_type = "application/vnd.oci.image.config.v1%2Bjson";
    let answer = scene.get("guest", format!("{path}?artifactType={config_type}")).expect(200).await;
    assert_eq!(listed(&answer), [all[2].clone()]);
    let answer = scene.get("guest", format!("{path}?artifactType=application/none")).expect(200).await;
    assert!(listed(&answer).is_empty());
    // Several filters are not defined: none is applied, and none is claimed.
    let two = format!("{path}?artifactType=application/b&artifactType=application/c");
    let answer = scene.get("guest", two).expect(200).await;
    assert_eq!(listed(&answer).len(), 3);
    assert_eq!(answer.header("oci-filters-applied"), "");
    scene.head("guest", &path).expect(200).await;
    // A deleted referrer is gone from the list.
    scene
        .delete("alice", format!("/v2/pa/app/manifests/{}", all[0]["digest"].as_str().unwrap()))
        .expect(202)
        .await;
    assert_eq!(listed(&scene.get("guest", &path).expect(200).await).len(), 2);
}

#[tokio::test]
async fn a_subject_need_not_exist() {
    let scene = Scene::new();
    let subject = sha256(b"comes later, or never");
    let descriptor = attach(&scene, &subject, "application/x", 0, "").await;
    let answer = scene.get("guest", format!("/v2/pa/app/referrers/{subject}")).expect(200).await;
    assert_eq!(listed(&answer), [descriptor]);
}

/// S-47 and Rule N: what is forbidden looks like what does not exist, and both are an empty list.
#[tokio::test]
async fn an_unknown_subject_repository_or_project_is_an_empty_list() {
    let scene = Scene::new();
    let subject = scene.push_image("alice", "pa/app", "v1").await;
    attach(&scene, &subject, "application/x", 0, "").await;
    scene.begin("bob", "pb/app").await;
    let mut answers = Vec::new();
    for path in [
        format!("/v2/pa/app/referrers/{subject}"),
        format!("/v2/pa/none/referrers/{subject}"),
        format!("/v2/pz/none/referrers/{subject}"),
        format!("/v2/pb/app/referrers/{subject}"),
        format!("/v2/pb/none/referrers/{subject}"),
    ] {
        let answer = scene.get("bob", &path).expect(200).await;
        assert!(listed(&answer).is_empty(), "{path}");
        answers.push((answer.headers.clone(), answer.text()));
    }
    assert!(answers.windows(2).all(|pair| pair[0] == pair[1]));
    scene.get("", format!("/v2/pa/app/referrers/{subject}")).refused(401, "UNAUTHORIZED").await;
    for query in ["?n=x", "?last=x", "?artifactType=%ff"] {
        for name in ["pa/app", "pa/none", "pb/app"] {
            scene.get("bob", format!("/v2/{name}/referrers/{subject}{query}")).expect(400).await;
        }
    }
    for digest in ["latest", "sha256:x", "md5:d41d8cd98f00b204e9800998ecf8427e"] {
        scene.get("alice", format!("/v2/pa/app/referrers/{digest}")).refused(400, "DIGEST_INVALID").await;
    }
}

#[tokio::test]
async fn pages_hold_n_entries_and_link_to_the_next_with_the_filter() {
    let scene = Scene::new();
    let subject = scene.push_image("alice", "pa/app", "v1").await;
    let mut all = Vec::new();
    for number in 0..300 {
        let artifact_type = if number % 3 == 0 { "application/a+json" } else { "application/b" };
        all.push(attach(&scene, &subject, artifact_type, number, "").await);
    }
    let all = sorted(all);
    let path = format!("/v2/pa/app/referrers/{subject}");
    for (n, filter) in
        [(1, ""), (7, ""), (100, ""), (299, ""), (300, ""), (1000, ""), (7, "application/a+json")]
    {
        let expected: Vec<Value> = all
            .iter()
            .filter(|descriptor| filter.is_empty() || descriptor["artifactType"] == filter)
            .cloned()
            .collect();
        let filter = if filter.is_empty() { "" } else { "&artifactType=application%2Fa%2Bjson" };
        let mut found = Vec::new();
        let mut target = Some(format!("{path}?n={n}{filter}"));
        scene.catalog.with(|inner| inner.referrers_read = 0);
        while let Some(page) = target {
            let answer = scene.get("guest", &page).expect(200).await;
            let entries = listed(&answer);
            assert!(entries.len() <= n);
            assert_eq!(answer.header("oci-filters-applied").is_empty(), filter.is_empty());
            found.extend(entries);
            target = next(&answer);
        }
        assert_eq!(found, expected, "n={n}");
        assert_eq!(
            scene.catalog.with(|inner| inner.referrers_read),
            expected.len(),
            "each entry is read once"
        );
    }
    assert_eq!(listed(&scene.get("guest", format!("{path}?n=0")).expect(200).await).len(), 0);
    assert_eq!(listed(&scene.get("guest", &path).expect(200).await).len(), 300);
    // A position that is no entry any more is still a position.
    let middle = all[150]["digest"].as_str().unwrap().to_owned();
    scene.delete("alice", format!("/v2/pa/app/manifests/{middle}")).expect(202).await;
    let answer = scene.get("guest", format!("{path}?last={middle}")).expect(200).await;
    assert_eq!(listed(&answer), all[151..]);
}

/// S-88: a page is bounded in bytes too, and the first entry always fits, so that paging ends.
#[tokio::test]
async fn a_page_of_large_annotations_ends_early_and_links_on() {
    let limits = Limits { referrers_page_bytes_max: 100_000, ..Limits::default() };
    let scene = Scene::with(limits);
    let subject = scene.push_image("alice", "pa/app", "v1").await;
    for number in 0..40 {
        let len = if number == 20 { 150_000 } else { 10_000 };
        attach(&scene, &subject, "application/x", number, &"x".repeat(len)).await;
    }
    let mut target = Some(format!("/v2/pa/app/referrers/{subject}"));
    let (mut pages, mut entries) = (0, 0);
    while let Some(page) = target {
        let answer = scene.get("guest", &page).expect(200).await;
        let list = listed(&answer);
        assert!(answer.bytes().len() <= 100_100 || list.len() == 1, "{}", answer.bytes().len());
        assert!(!list.is_empty());
        entries += list.len();
        pages += 1;
        target = next(&answer);
    }
    assert_eq!(entries, 40);
    assert!(pages >= 5);
}
