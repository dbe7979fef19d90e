//! What the check pushes: images, indexes and artifacts of every shape that the specification knows.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256, Sha512};

use super::Version;
use crate::http::{OCI_INDEX, OCI_MANIFEST};
use crate::images::noise;

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const EMPTY: &str = "application/vnd.oci.empty.v1+json";
const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const LAYER_FOREIGN: &str = "application/vnd.oci.image.layer.nondistributable.v1.tar";
const OCTETS: &str = "application/octet-stream";
const FIRST_TYPE: &str = "application/vnd.taffrail.conformance.first.v1";
const SECOND_TYPE: &str = "application/vnd.taffrail.conformance.second.v1";

/// Annotations that make a manifest just short of 4 MB, the size that every registry has to take.
const LARGE_ANNOTATIONS: usize = 390;
const LARGE_ANNOTATION_BYTES: usize = 10_000;

/// A hash that the registry has to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Algorithm {
    Sha256,
    Sha512,
}

impl Algorithm {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    pub(super) fn digest(self, bytes: &[u8]) -> String {
        let hex = match self {
            Self::Sha256 => hex::encode(Sha256::digest(bytes)),
            Self::Sha512 => hex::encode(Sha512::digest(bytes)),
        };
        format!("{}:{hex}", self.name())
    }

    /// The algorithm of a digest made here.
    pub(super) fn of(digest: &str) -> Self {
        if digest.starts_with("sha512:") { Self::Sha512 } else { Self::Sha256 }
    }
}

/// What a referrers list has to contain.
#[derive(Debug, Clone)]
pub(super) struct Referrer {
    pub(super) descriptor: Value,
    pub(super) artifact_type: String,
}

/// One set of things that belong together.
#[derive(Debug, Default)]
pub(super) struct DataSet {
    pub(super) name: String,
    /// Bytes by the digest under which they are pushed. For a set that must be refused the two do not belong together.
    pub(super) blobs: BTreeMap<String, Vec<u8>>,
    pub(super) manifests: BTreeMap<String, Vec<u8>>,
    /// Manifests in the order in which they can be pushed.
    pub(super) order: Vec<String>,
    pub(super) tags: BTreeMap<String, String>,
    pub(super) referrers: BTreeMap<String, Vec<Referrer>>,
    pub(super) tags_pushed: BTreeSet<String>,
    /// Push tags as `?tag=` of the push by digest.
    pub(super) tag_parameters: bool,
    /// The manifest does not fit its digest, and must be refused.
    pub(super) bad_digest: bool,
}

/// How a manifest is to be made.
#[derive(Debug, Clone)]
struct Recipe {
    algorithm: Algorithm,
    annotations: Map<String, Value>,
    unique: bool,
    artifact_type: Option<&'static str>,
    /// Media type and bytes of a configuration that is not an image's.
    config: Option<(&'static str, &'static [u8])>,
    layer_count: usize,
    layer_type: &'static str,
    layer_bytes: Option<&'static [u8]>,
    embed: bool,
    extra_field: bool,
    subject: Option<Value>,
    tag: Option<String>,
}

impl Recipe {
    fn image() -> Self {
        Self {
            algorithm: Algorithm::Sha256,
            annotations: Map::new(),
            unique: false,
            artifact_type: None,
            config: None,
            layer_count: 2,
            layer_type: LAYER_GZIP,
            layer_bytes: None,
            embed: false,
            extra_field: false,
            subject: None,
            tag: None,
        }
    }

    fn tagged(tag: &str) -> Self {
        Self { tag: Some(tag.to_owned()), ..Self::image() }
    }

    fn artifact(tag: &str, artifact_type: &'static str) -> Self {
        Self {
            artifact_type: Some(artifact_type),
            config: Some((EMPTY, b"{}")),
            layer_count: 1,
            layer_type: artifact_type,
            ..Self::tagged(tag)
        }
    }

    fn referring(tag: &str, artifact_type: &'static str, subject: &Value) -> Self {
        let mut annotations = Map::new();
        annotations.insert("org.opencontainers.conformance".to_owned(), json!("hello"));
        Self {
            annotations,
            unique: true,
            subject: Some(subject.clone()),
            ..Self::artifact(tag, artifact_type)
        }
    }
}

impl DataSet {
    pub(super) fn named(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    /// Adds a blob of random bytes and returns its digest.
    pub(super) fn random_blob(&mut self, algorithm: Algorithm, bytes: usize) -> String {
        let content = noise(rand::random(), bytes);
        let digest = algorithm.digest(&content);
        self.blobs.insert(digest.clone(), content);
        digest
    }

    fn descriptor(&mut self, recipe: &Recipe, media_type: &str, content: Vec<u8>) -> Value {
        use base64::Engine as _;
        let digest = recipe.algorithm.digest(&content);
        let mut descriptor = json!({"mediaType": media_type, "digest": digest, "size": content.len()});
        if recipe.embed {
            descriptor["data"] = json!(base64::engine::general_purpose::STANDARD.encode(&content));
        }
        self.blobs.insert(digest, content);
        descriptor
    }

    /// Makes an image or artifact manifest with its blobs; returns its descriptor.
    fn manifest(&mut self, recipe: &Recipe, architecture: &str) -> Value {
        let layers: Vec<Value> = (0..recipe.layer_count)
            .map(|_| {
                let content = recipe.layer_bytes.map_or_else(|| noise(rand::random(), 2048), <[u8]>::to_vec);
                self.descriptor(recipe, recipe.layer_type, content)
            })
            .collect();
        let config = match recipe.config {
            Some((media_type, bytes)) => self.descriptor(recipe, media_type, bytes.to_vec()),
            None => {
                // As in the program, so that images of one platform share their configuration and the totals fit.
                let diff_ids = vec![Algorithm::Sha256.digest(b""); layers.len()];
                let config = json!({
                    "author": "taffrail conformance", "architecture": architecture, "os": "linux",
                    "rootfs": {"type": "layers", "diff_ids": diff_ids},
                });
                let content = with_extra(recipe, config).to_string().into_bytes();
                self.descriptor(recipe, CONFIG, content)
            }
        };
        let artifact_type =
            recipe.artifact_type.unwrap_or(config["mediaType"].as_str().unwrap_or_default()).to_owned();
        let body = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers});
        self.finish(recipe, OCI_MANIFEST, body, &artifact_type)
    }

    /// Makes an index of `manifests`.
    fn index(&mut self, recipe: &Recipe, manifests: &[Value]) -> Value {
        let body = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests});
        self.finish(recipe, OCI_INDEX, body, recipe.artifact_type.unwrap_or_default())
    }

    /// Makes an index of one manifest for each architecture, all by one recipe.
    fn index_full(&mut self, recipe: &Recipe, architectures: &[&str]) -> Value {
        let manifests: Vec<Value> = architectures
            .iter()
            .map(|architecture| {
                let mut descriptor = self.manifest(recipe, architecture);
                descriptor["platform"] = json!({"os": "linux", "architecture": architecture});
                descriptor
            })
            .collect();
        self.index(recipe, &manifests)
    }

    fn finish(&mut self, recipe: &Recipe, media_type: &str, mut body: Value, artifact_type: &str) -> Value {
        let mut annotations = recipe.annotations.clone();
        if recipe.unique {
            annotations.insert(format!("org.example.{:x}", rand::random::<u64>()), json!("unique"));
        }
        if !annotations.is_empty() {
            body["annotations"] = Value::Object(annotations.clone());
        }
        if let Some(artifact_type) = recipe.artifact_type {
            body["artifactType"] = json!(artifact_type);
        }
        if let Some(subject) = &recipe.subject {
            body["subject"] = subject.clone();
        }
        let content = with_extra(recipe, body).to_string().into_bytes();
        let digest = recipe.algorithm.digest(&content);
        let descriptor = json!({"mediaType": media_type, "digest": digest, "size": content.len()});
        if let Some(subject) = recipe.subject.as_ref().and_then(|subject| subject["digest"].as_str()) {
            let mut due = descriptor.clone();
            due["annotations"] = Value::Object(annotations);
            let referrer = Referrer { descriptor: due, artifact_type: artifact_type.to_owned() };
            self.referrers.entry(subject.to_owned()).or_default().push(referrer);
        }
        if let Some(tag) = &recipe.tag {
            self.tags.insert(tag.clone(), digest.clone());
        }
        self.manifests.insert(digest.clone(), content);
        self.order.push(digest);
        descriptor
    }
}

fn with_extra(recipe: &Recipe, mut body: Value) -> Value {
    if recipe.extra_field {
        body[format!("org.{:x}", rand::random::<u64>())] = json!("a field that nobody knows");
    }
    body
}

/// All sets for a version of the specification, in the order of the program.
pub(super) fn sets(version: Version) -> Vec<DataSet> {
    const BOTH: [&str; 2] = ["amd64", "arm64"];
    let mut all = Vec::new();
    let mut add = |name: &str, make: &dyn Fn(&mut DataSet)| {
        let mut set = DataSet::named(name);
        make(&mut set);
        all.push(set);
    };
    add("image", &|set| {
        set.manifest(&Recipe::tagged("image"), "amd64");
    });
    add("image-uncompressed", &|set| {
        set.manifest(&Recipe { layer_type: LAYER, ..Recipe::tagged("image-uncompressed") }, "amd64");
    });
    add("large-manifest", &|set| {
        let annotations = (0..LARGE_ANNOTATIONS)
            .map(|number| (format!("large-annotation-{number}"), json!("A".repeat(LARGE_ANNOTATION_BYTES))))
            .collect();
        set.manifest(&Recipe { annotations, ..Recipe::tagged("large-manifest") }, "amd64");
    });
    add("index", &|set| {
        set.index_full(&Recipe::tagged("index"), &BOTH);
    });
    add("nested-index", &|set| {
        let inner = [set.index_full(&Recipe::image(), &BOTH), set.index_full(&Recipe::image(), &BOTH)];
        set.index(&Recipe::tagged("index-of-index"), &inner);
    });
    add("empty-index", &|set| {
        set.index_full(&Recipe::tagged("index"), &[]);
    });
    add("artifact", &|set| {
        set.manifest(&Recipe::artifact("artifact", FIRST_TYPE), "amd64");
    });
    add("artifact-index", &|set| {
        set.index_full(&Recipe::artifact("artifact-index", FIRST_TYPE), &BOTH);
    });
    add("artifact-without-layers", &|set| {
        let recipe = Recipe::artifact("artifact-without-layers", FIRST_TYPE);
        set.manifest(&Recipe { layer_bytes: Some(b"{}"), layer_type: EMPTY, ..recipe }, "amd64");
    });
    add("artifacts-with-subject", &|set| {
        let subject = set.manifest(&Recipe::tagged("image"), "amd64");
        set.manifest(&Recipe { subject: Some(subject.clone()), ..Recipe::image() }, "amd64");
        set.manifest(&Recipe::referring("tagged-artifact1", FIRST_TYPE, &subject), "amd64");
        let second = Recipe::referring("tagged-artifact2", SECOND_TYPE, &subject);
        set.manifest(&Recipe { layer_type: OCTETS, ..second }, "amd64");
    });
    add("index-with-subject", &|set| {
        let subject = set.index_full(&Recipe::tagged("index"), &BOTH);
        set.index_full(&Recipe::referring("tagged-artifact", FIRST_TYPE, &subject), &BOTH);
    });
    add("missing-subject", &|set| {
        let digest = Algorithm::Sha256.digest(b"missing content");
        let subject = json!({"mediaType": OCI_MANIFEST, "digest": digest, "size": 123});
        set.manifest(&Recipe::referring("tagged-artifact", FIRST_TYPE, &subject), "amd64");
    });
    add("data-field", &|set| {
        set.manifest(&Recipe { embed: true, ..Recipe::tagged("data-field") }, "amd64");
    });
    add("non-distributable-layers", &non_distributable);
    add("custom-fields", &|set| {
        set.index_full(&Recipe { extra_field: true, ..Recipe::tagged("custom-fields") }, &BOTH);
    });
    add("no-layers", &|set| {
        set.manifest(&Recipe { layer_count: 0, ..Recipe::tagged("no-layers") }, "amd64");
    });
    add("sha512", &|set| {
        set.index_full(&Recipe { algorithm: Algorithm::Sha512, ..Recipe::image() }, &BOTH);
    });
    if version == Version::Development {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let tag = format!("tag-param-{}", algorithm.name());
            add(&tag, &|set| {
                set.tag_parameters = true;
                set.index_full(&Recipe { algorithm, ..Recipe::tagged(&tag) }, &BOTH);
                for (number, digest) in set.order.iter().enumerate() {
                    set.tags.insert(format!("{tag}-{number}"), digest.clone());
                }
            });
        }
    }
    add("bad-digest-image", &|set| {
        set.bad_digest = true;
        set.manifest(&Recipe::image(), "amd64");
        for manifest in set.manifests.values_mut() {
            manifest.extend_from_slice(b"  ");
        }
    });
    all
}

/// An image of one layer, whose digest the check then misspells.
pub(super) fn for_a_bad_reference() -> DataSet {
    let mut set = DataSet::named("invalid-manifest-digest");
    set.manifest(&Recipe { layer_count: 1, ..Recipe::image() }, "amd64");
    set
}

/// Two layers that may not be pushed and lie elsewhere, and one that is pushed.
fn non_distributable(set: &mut DataSet) {
    let recipe = Recipe::tagged("non-distributable-image");
    let foreign = |media_type: String, size: u32| {
        let digest = Algorithm::Sha256.digest(&noise(rand::random(), 256));
        let url = format!("https://store.example.com/blobs/{digest}");
        json!({"mediaType": media_type, "digest": digest, "size": size, "urls": [url]})
    };
    let own = set.descriptor(&recipe, LAYER_GZIP, noise(rand::random(), 2048));
    let layers =
        [foreign(format!("{LAYER_FOREIGN}+gzip"), 123_456), foreign(LAYER_FOREIGN.to_owned(), 12_345), own];
    let diff_ids: Vec<&Value> = layers.iter().map(|layer| &layer["digest"]).collect();
    let config = json!({
        "author": "taffrail conformance", "architecture": "amd64", "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = set.descriptor(&recipe, CONFIG, config.to_string().into_bytes());
    let body = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers});
    set.finish(&recipe, OCI_MANIFEST, body, CONFIG);
}
