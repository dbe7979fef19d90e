//! What is a manifest and what is not: S-81, S-82, S-84.

use serde_json::{Value, json};
use taffrail_blobstore::Algorithm;

use super::*;

fn digest(text: &str) -> Digest {
    Digest::of(Algorithm::Sha256, text.as_bytes())
}

fn descriptor(media_type: &str, text: &str) -> Value {
    json!({ "mediaType": media_type, "digest": digest(text).to_string(), "size": text.len() })
}

fn image() -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": OCI_IMAGE,
        "config": descriptor("application/vnd.oci.image.config.v1+json", "config"),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip", "layer")],
    })
}

fn index() -> Value {
    json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [descriptor(OCI_IMAGE, "child")] })
}

fn with(mut document: Value, key: &str, value: Value) -> Value {
    document[key] = value;
    document
}

fn without(mut document: Value, key: &str) -> Value {
    document.as_object_mut().unwrap().remove(key);
    document
}

fn parse(document: &Value, content_type: Option<&str>) -> Result<Manifest, ManifestError> {
    Manifest::parse(document.to_string().as_bytes(), content_type, &[])
}

#[test]
fn an_image_names_config_and_layers() {
    let manifest = parse(&image(), Some(OCI_IMAGE)).unwrap();
    assert_eq!(manifest.media_type, OCI_IMAGE);
    assert_eq!(manifest.artifact_type.as_deref(), Some("application/vnd.oci.image.config.v1+json"));
    assert_eq!(
        manifest.references,
        [
            ManifestReference { digest: digest("config"), kind: ReferenceKind::Config, len_bytes: 6 },
            ManifestReference { digest: digest("layer"), kind: ReferenceKind::Layer, len_bytes: 5 },
        ]
    );
    assert!(manifest.foreign.is_empty());
    assert_eq!(manifest.subject, None);
    assert_eq!(manifest.annotations, None);
}

#[test]
fn every_known_type_is_accepted_with_and_without_parameters() {
    for (document, media_type) in
        [(image(), OCI_IMAGE), (image(), DOCKER_IMAGE), (index(), OCI_INDEX), (index(), DOCKER_LIST)]
    {
        let document = with(document, "mediaType", json!(media_type));
        for header in [
            Some(media_type.to_owned()),
            Some(format!("{media_type}; charset=utf-8")),
            Some(media_type.to_uppercase()),
            None,
        ] {
            let manifest = parse(&document, header.as_deref()).unwrap();
            assert_eq!(manifest.media_type, media_type, "{header:?}");
        }
    }
    // OCI made mediaType optional; the header then decides.
    assert!(parse(&without(image(), "mediaType"), Some(OCI_IMAGE)).is_ok());
    assert!(parse(&without(index(), "mediaType"), Some(OCI_INDEX)).is_ok());
}

#[test]
fn lists_that_are_empty_null_or_missing_are_tolerated_where_go_writes_them() {
    assert!(parse(&with(image(), "layers", json!([])), Some(OCI_IMAGE)).is_ok());
    assert!(parse(&with(image(), "layers", Value::Null), Some(OCI_IMAGE)).is_ok());
    assert!(parse(&without(image(), "layers"), Some(OCI_IMAGE)).is_ok());
    assert!(parse(&with(index(), "manifests", json!([])), Some(OCI_INDEX)).is_ok());
    assert!(parse(&with(index(), "manifests", Value::Null), Some(OCI_INDEX)).is_ok());
    assert_eq!(
        parse(&without(index(), "manifests"), Some(OCI_INDEX)),
        Err(ManifestError::Missing("manifests"))
    );
}

#[test]
fn a_document_that_could_be_two_things_is_refused() {
    for (document, header, error) in [
        (with(image(), "manifests", json!([])), OCI_IMAGE, ManifestError::Excess("manifests")),
        (with(image(), "manifests", Value::Null), OCI_IMAGE, ManifestError::Excess("manifests")),
        (with(index(), "layers", json!([])), OCI_INDEX, ManifestError::Excess("layers")),
        (with(index(), "config", descriptor("a/b", "config")), OCI_INDEX, ManifestError::Excess("config")),
        (with(image(), "fsLayers", json!([])), OCI_IMAGE, ManifestError::Schema1),
        (with(image(), "schemaVersion", json!(1)), OCI_IMAGE, ManifestError::Schema1),
        (with(image(), "schemaVersion", json!(3)), OCI_IMAGE, ManifestError::SchemaVersion),
        (without(image(), "schemaVersion"), OCI_IMAGE, ManifestError::SchemaVersion),
        (without(image(), "config"), OCI_IMAGE, ManifestError::Missing("config")),
        (json!({}), OCI_IMAGE, ManifestError::Missing("config")),
    ] {
        assert_eq!(parse(&document, Some(header)), Err(error), "{document}");
    }
    assert!(matches!(parse(&image(), Some(OCI_INDEX)), Err(ManifestError::MediaTypeMismatch { .. })));
    assert!(matches!(parse(&image(), Some(DOCKER_IMAGE)), Err(ManifestError::MediaTypeMismatch { .. })));
    assert!(matches!(
        parse(&without(image(), "mediaType"), Some(DOCKER_IMAGE)),
        Err(ManifestError::MediaTypeMismatch { .. })
    ));
    assert!(matches!(
        parse(&image(), Some("application/json")),
        Err(ManifestError::MediaTypeMismatch { .. })
    ));
    assert_eq!(parse(&without(image(), "mediaType"), None), Err(ManifestError::NoMediaType));
    assert!(matches!(
        parse(&with(image(), "mediaType", json!("text/html")), Some("text/html")),
        Err(ManifestError::MediaType(_))
    ));
}

#[test]
fn schema_1_is_refused_with_a_sentence_that_says_what_to_do() {
    for header in DOCKER_SCHEMA1 {
        let error = Manifest::parse(b"{}", Some(header), &[]).unwrap_err();
        assert_eq!(error, ManifestError::Schema1);
        assert!(error.to_string().contains("skopeo copy --format v2s2"));
    }
    let document = json!({ "schemaVersion": 1, "name": "a", "tag": "b", "fsLayers": [], "history": [] });
    assert_eq!(parse(&document, Some(OCI_IMAGE)), Err(ManifestError::Schema1));
    assert_eq!(parse(&document, None), Err(ManifestError::Schema1));
}

#[test]
fn a_configured_type_is_read_by_its_known_fields() {
    let media_type = "application/vnd.oci.artifact.manifest.v1+json";
    let document = json!({
        "mediaType": media_type,
        "artifactType": "application/x",
        "blobs": [descriptor("a/b", "blob")],
        "subject": descriptor(OCI_IMAGE, "subject"),
    });
    assert!(matches!(parse(&document, Some(media_type)), Err(ManifestError::MediaType(_))));
    let manifest =
        Manifest::parse(document.to_string().as_bytes(), Some(media_type), &[media_type.to_owned()]).unwrap();
    assert_eq!(manifest.artifact_type.as_deref(), Some("application/x"));
    assert_eq!(manifest.subject, Some(digest("subject")));
    assert_eq!(manifest.references.len(), 1);
}

#[test]
fn json_that_parsers_disagree_on_or_that_is_a_bomb_is_refused() {
    let nested =
        |depth: usize| format!("{{\"schemaVersion\":2,\"x\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
    let array = format!("{{\"x\":[{}0]}}", "0,".repeat(1_000_000));
    let duplicates = format!("{{{}\"a\":0}}", "\"a\":0,".repeat(600_000));
    let distinct = {
        let members: Vec<String> = (0..300_000).map(|index| format!("\"{index:x}\":0")).collect();
        format!("{{{}}}", members.join(","))
    };
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("empty", b"".to_vec()),
        ("not JSON", b"hello".to_vec()),
        ("array at the top", b"[]".to_vec()),
        ("string at the top", b"\"a\"".to_vec()),
        ("depth 10,000", nested(10_000).into_bytes()),
        ("depth one past the limit", nested(walk::DEPTH_MAX).into_bytes()),
        ("10^6 elements", array.into_bytes()),
        ("duplicate keys", duplicates.into_bytes()),
        ("300,000 keys", distinct.into_bytes()),
        ("two keys alike deep inside", br#"{"x":[{"a":1,"a":2}]}"#.to_vec()),
        ("1e400", br#"{"x":1e400}"#.to_vec()),
        ("lone surrogate", br#"{"x":"\ud800"}"#.to_vec()),
        ("byte order mark", b"\xef\xbb\xbf{}".to_vec()),
        ("trailing data", b"{} {}".to_vec()),
        ("trailing comma", br#"{"x":1,}"#.to_vec()),
        ("comment", b"{/**/}".to_vec()),
        ("not UTF-8", b"{\"x\":\"\xff\"}".to_vec()),
        ("NUL", b"{\"x\":\"\0\"}".to_vec()),
        ("NaN", br#"{"x":NaN}"#.to_vec()),
        ("a document as an array", format!("[2,{:?}]", OCI_IMAGE).into_bytes()),
        ("a descriptor as an array", {
            let layer = json!(["a/b", digest("layer").to_string(), 5]);
            with(image(), "layers", json!([layer])).to_string().into_bytes()
        }),
        ("mediaType is a number", br#"{"mediaType":1}"#.to_vec()),
        ("annotations with a number", br#"{"annotations":{"a":1}}"#.to_vec()),
    ];
    for (what, bytes) in cases {
        assert!(
            matches!(Manifest::parse(&bytes, Some(OCI_IMAGE), &[]), Err(ManifestError::Json(_))),
            "{what}"
        );
    }
    // One less deep is fine, and unknown fields are.
    let deep = format!("{}{}", "[".repeat(walk::DEPTH_MAX - 1), "]".repeat(walk::DEPTH_MAX - 1));
    let document = with(image(), "x", serde_json::from_str(&deep).unwrap());
    assert!(parse(&document, Some(OCI_IMAGE)).is_ok());
}

#[test]
fn sizes_and_digests_of_descriptors_are_checked() {
    let sized = |size: &str| {
        let text = image().to_string().replacen("\"size\":5", &format!("\"size\":{size}"), 1);
        assert!(text.contains(&format!("\"size\":{size}")));
        Manifest::parse(text.as_bytes(), Some(OCI_IMAGE), &[])
    };
    assert!(sized("9223372036854775807").is_ok());
    for size in ["-1", "9223372036854775808", "18446744073709551616", "1.5", "1e3", "-0.0"] {
        assert_eq!(sized(size), Err(ManifestError::Size("layers")), "{size}");
    }
    for size in ["\"5\"", "null", "[]"] {
        assert!(matches!(sized(size), Err(ManifestError::Json(_))), "{size}");
    }
    for text in ["sha256:x", "md5:d41d8cd98f00b204e9800998ecf8427e", "../../etc/passwd", "", "sha256:a\r\nb"]
    {
        let layer = json!({ "mediaType": "a/b", "digest": text, "size": 1 });
        let document = with(image(), "layers", json!([layer]));
        assert!(matches!(parse(&document, Some(OCI_IMAGE)), Err(ManifestError::Digest { .. })), "{text}");
        let document = with(image(), "subject", json!({ "mediaType": "a/b", "digest": text, "size": 1 }));
        assert!(matches!(parse(&document, Some(OCI_IMAGE)), Err(ManifestError::Digest { .. })), "{text}");
    }
}

#[test]
fn duplicate_layers_count_once_and_must_agree_on_their_size() {
    let layer = descriptor("a/b", "layer");
    let manifest = parse(&with(image(), "layers", json!([layer, layer, layer])), Some(OCI_IMAGE)).unwrap();
    assert_eq!(manifest.references.len(), 2);
    let other = with(layer.clone(), "size", json!(6));
    assert_eq!(
        parse(&with(image(), "layers", json!([layer, other])), Some(OCI_IMAGE)),
        Err(ManifestError::TwoSizes(digest("layer")))
    );
}

#[test]
fn foreign_layers_are_kept_apart_and_urls_are_only_text() {
    for media_type in [
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    ] {
        let layer = with(
            descriptor(media_type, "foreign"),
            "urls",
            json!(["http://169.254.169.254/latest/meta-data"]),
        );
        let manifest = parse(&with(image(), "layers", json!([layer])), Some(OCI_IMAGE)).unwrap();
        assert_eq!(manifest.references.len(), 1);
        assert_eq!(manifest.foreign.len(), 1);
    }
}

#[test]
fn data_must_be_the_content() {
    let config = |data: &str| {
        let config = with(descriptor("a/b", "config"), "data", json!(data));
        parse(&with(image(), "config", config), Some(OCI_IMAGE))
    };
    assert!(config("Y29uZmln").is_ok());
    for data in ["Y29uZmlo", "", "Y29uZmlnZw==", "!!"] {
        assert_eq!(config(data), Err(ManifestError::Data("config")), "{data}");
    }
}

#[test]
fn an_index_may_hold_blobs_and_keeps_them_apart_from_manifests() {
    let document = with(
        index(),
        "manifests",
        json!([
            descriptor(OCI_IMAGE, "child"),
            descriptor("application/vnd.oci.image.layer.v1.tar+gzip", "cached layer"),
            descriptor("application/vnd.buildkit.cacheconfig.v0", "cache config"),
        ]),
    );
    let manifest = parse(&document, Some(OCI_INDEX)).unwrap();
    let kinds: Vec<ReferenceKind> = manifest.references.iter().map(|reference| reference.kind).collect();
    assert_eq!(kinds, [ReferenceKind::Manifest, ReferenceKind::Layer, ReferenceKind::Layer]);
    assert_eq!(manifest.artifact_type, None);
}

#[test]
fn an_index_of_10_000_children_is_read_and_one_descriptor_too_many_is_not() {
    let index_of = |count: usize| {
        let children: Vec<Value> =
            (0..count).map(|number| descriptor(OCI_IMAGE, &format!("child {number}"))).collect();
        parse(&with(index(), "manifests", Value::Array(children)), Some(OCI_INDEX))
    };
    assert_eq!(index_of(10_000).unwrap().references.len(), 10_000);
    assert_eq!(index_of(DESCRIPTORS_MAX).unwrap().references.len(), DESCRIPTORS_MAX);
    assert_eq!(index_of(DESCRIPTORS_MAX + 1), Err(ManifestError::TooManyDescriptors));
}

#[test]
fn artifact_type_annotations_and_subject_are_read() {
    let document = with(image(), "artifactType", json!("application/x"));
    let document = with(document, "annotations", json!({ "b": "\u{2028}", "a": "1" }));
    let document = with(document, "subject", descriptor(OCI_IMAGE, "subject"));
    let manifest = parse(&document, Some(OCI_IMAGE)).unwrap();
    assert_eq!(manifest.artifact_type.as_deref(), Some("application/x"));
    assert_eq!(manifest.annotations.as_deref(), Some("{\"a\":\"1\",\"b\":\"\u{2028}\"}"));
    assert_eq!(manifest.subject, Some(digest("subject")));
    let document = with(image(), "artifactType", json!(""));
    assert_eq!(
        parse(&document, Some(OCI_IMAGE)).unwrap().artifact_type.as_deref(),
        Some("application/vnd.oci.image.config.v1+json")
    );
}
