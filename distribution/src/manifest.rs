//! Manifests: what a document must be to be stored, and what is read out of it.
//!
//! The bytes are kept exactly; nothing here is ever serialised back. Two passes: the first ([`walk`]) bounds the document
//! (depth, number of values, no key twice) and rejects what only some parsers accept, the second reads the few fields that
//! a registry needs. Unknown fields and unknown media types inside descriptors are fine, as image-spec demands.
//!
//! What must stay true: a document that could be taken for an image by one client and for an index by another is refused
//! (CVE-2021-41190); `urls` are never fetched; every length in a descriptor fits 63 bits.

mod walk;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::marker::PhantomData;

use base64::Engine as _;
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use taffrail_blobstore::{Digest, DigestError};

use crate::catalog::{ManifestReference, ReferenceKind};

/// Descriptors in one manifest. 16 thousand fill a document of 4 MiB with ordinary ones; Docker images have at most 127.
pub const DESCRIPTORS_MAX: usize = 16_384;

/// OCI image manifest.
pub const OCI_IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Docker image manifest, schema 2.
pub const DOCKER_IMAGE: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker manifest list.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// Docker manifest schema 1, plain and signed: recognised only to be refused with a sentence that helps.
const DOCKER_SCHEMA1: [&str; 2] = [
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
];

/// Layers that are not to be distributed: they need not be in the repository.
const FOREIGN_LAYERS: [&str; 2] =
    ["application/vnd.oci.image.layer.nondistributable.", "application/vnd.docker.image.rootfs.foreign."];

/// Why a document is no manifest that may be stored. The sentences reach the client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// Docker schema 1.
    #[error(
        "Docker manifest schema 1 is not supported; push with Docker 1.10 or newer, or convert the image with \
         `skopeo copy --format v2s2`"
    )]
    Schema1,
    /// No `Content-Type` and no `mediaType`.
    #[error("the manifest has no media type; send it as Content-Type")]
    NoMediaType,
    /// A media type that is not accepted here.
    #[error(
        "manifests of media type {0:?} are not accepted here; an administrator may add them to limits.extra_manifest_types"
    )]
    MediaType(String),
    /// `Content-Type` and `mediaType` differ.
    #[error("Content-Type is {header:?}, but the manifest's mediaType is {document:?}")]
    MediaTypeMismatch {
        /// Of the request.
        header: String,
        /// In the document.
        document: String,
    },
    /// Not JSON, or not within bounds.
    #[error("the manifest is not acceptable JSON: {0}")]
    Json(String),
    /// A field is missing.
    #[error("the manifest has no {0}")]
    Missing(&'static str),
    /// A field that this type must not have.
    #[error("a manifest of this media type must not have {0}")]
    Excess(&'static str),
    /// `schemaVersion` is not 2.
    #[error("schemaVersion must be 2")]
    SchemaVersion,
    /// A digest in a descriptor.
    #[error("{place}: {error}")]
    Digest {
        /// Where.
        place: &'static str,
        /// What is wrong.
        error: DigestError,
    },
    /// A size in a descriptor.
    #[error("{0}: size must be a whole number from 0 to 2^63 - 1")]
    Size(&'static str),
    /// The same digest with two sizes.
    #[error("{0} is given two different sizes")]
    TwoSizes(Digest),
    /// `data` is not the content of its descriptor.
    #[error("{0}: data is not the content that digest and size name")]
    Data(&'static str),
    /// Too many descriptors.
    #[error("a manifest has at most {DESCRIPTORS_MAX} descriptors")]
    TooManyDescriptors,
}

/// What a registry needs to know of a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Its media type: one of the four above, or one of the configured ones.
    pub media_type: String,
    /// `artifactType`, or for an image manifest without one, the media type of its config.
    pub artifact_type: Option<String>,
    /// The manifest it refers to.
    pub subject: Option<Digest>,
    /// Its annotations as a JSON object.
    pub annotations: Option<String>,
    /// Config, layers and child manifests, each (digest, kind) once. They must be in the repository.
    pub references: Vec<ManifestReference>,
    /// Layers that need not be in the repository.
    pub foreign: Vec<ManifestReference>,
}

impl Manifest {
    /// Parses a document sent with `content_type` (its parameters are ignored). `extra_types` are accepted besides OCI's and
    /// Docker's.
    ///
    /// Costs two passes over the bytes and memory of about three times their number.
    ///
    /// # Errors
    /// See [`ManifestError`].
    pub fn parse(
        bytes: &[u8],
        content_type: Option<&str>,
        extra_types: &[String],
    ) -> Result<Manifest, ManifestError> {
        let header = content_type.map(essence).filter(|essence| !essence.is_empty());
        if header.as_deref().is_some_and(|header| DOCKER_SCHEMA1.contains(&header)) {
            return Err(ManifestError::Schema1);
        }
        walk::check(bytes).map_err(|error| ManifestError::Json(public(&error)))?;
        let Object(document): Object<Document<'_>> =
            serde_json::from_slice(bytes).map_err(|error| ManifestError::Json(public(&error)))?;
        if document.fs_layers.is_some() || document.schema_version == Some(SchemaVersion(1)) {
            return Err(ManifestError::Schema1);
        }
        let media_type = document.media_type(header.as_deref())?;
        let shape = Shape::of(&media_type, extra_types)
            .ok_or_else(|| ManifestError::MediaType(media_type.clone()))?;
        document.check(shape)?;
        document.into_manifest(media_type)
    }
}

/// The media type without parameters, in lower case as RFC 9110 section 8.3.1 compares them.
fn essence(content_type: &str) -> String {
    content_type.split(';').next().unwrap_or("").trim().to_ascii_lowercase()
}

/// The text of a JSON error: serde names the field, the line and the column, all of it the client's own.
fn public(error: &serde_json::Error) -> String {
    error.to_string()
}

/// What a media type makes of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    OciImage,
    DockerImage,
    OciIndex,
    DockerList,
    Other,
}

impl Shape {
    fn of(media_type: &str, extra_types: &[String]) -> Option<Shape> {
        match media_type {
            OCI_IMAGE => Some(Shape::OciImage),
            DOCKER_IMAGE => Some(Shape::DockerImage),
            OCI_INDEX => Some(Shape::OciIndex),
            DOCKER_LIST => Some(Shape::DockerList),
            other => extra_types.iter().any(|extra| extra == other).then_some(Shape::Other),
        }
    }
}

/// Whether a descriptor of that media type names a manifest. All others in an index are blobs: BuildKit keeps layers and
/// its cache configuration in one.
fn is_manifest_type(media_type: &str) -> bool {
    matches!(media_type, OCI_IMAGE | OCI_INDEX | DOCKER_IMAGE | DOCKER_LIST)
}

/// A struct that is written as a JSON object. Left alone, serde would also take an array of its fields in their order.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Object<T>, D::Error> {
        struct Fields<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }

        deserializer.deserialize_map(Fields(PhantomData))
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a> {
    schema_version: Option<SchemaVersion>,
    #[serde(borrow)]
    media_type: Option<Cow<'a, str>>,
    #[serde(borrow)]
    artifact_type: Option<Cow<'a, str>>,
    #[serde(borrow)]
    config: Option<Object<Descriptor<'a>>>,
    #[serde(borrow)]
    layers: Option<Vec<Object<Descriptor<'a>>>>,
    #[serde(borrow)]
    blobs: Option<Vec<Object<Descriptor<'a>>>>,
    // `Some(None)` is an explicit null, which Go programs write for an empty list.
    #[serde(borrow, default, deserialize_with = "present")]
    manifests: Option<Option<Vec<Object<Descriptor<'a>>>>>,
    #[serde(borrow)]
    subject: Option<Object<Descriptor<'a>>>,
    #[serde(borrow)]
    annotations: Option<BTreeMap<Cow<'a, str>, Cow<'a, str>>>,
    fs_layers: Option<serde::de::IgnoredAny>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
struct SchemaVersion(u64);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor<'a> {
    #[serde(borrow)]
    media_type: Option<Cow<'a, str>>,
    #[serde(borrow)]
    digest: Cow<'a, str>,
    size: serde_json::Number,
    #[serde(borrow)]
    data: Option<Cow<'a, str>>,
}

fn present<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::<T>::deserialize(deserializer).map(Some)
}

impl Document<'_> {
    /// The one media type that header and document agree on.
    fn media_type(&self, header: Option<&str>) -> Result<String, ManifestError> {
        let document = self.media_type.as_deref().filter(|media_type| !media_type.is_empty());
        if document.is_some_and(|document| DOCKER_SCHEMA1.contains(&document)) {
            return Err(ManifestError::Schema1);
        }
        match (header, document) {
            (None, None) => Err(ManifestError::NoMediaType),
            (Some(header), Some(document)) if header != document => Err(ManifestError::MediaTypeMismatch {
                header: header.to_owned(),
                document: document.to_owned(),
            }),
            // Docker always wrote the field; without it the document is somebody's mistake (OCI made it optional).
            (Some(header @ (DOCKER_IMAGE | DOCKER_LIST)), None) => {
                Err(ManifestError::MediaTypeMismatch { header: header.to_owned(), document: String::new() })
            }
            (Some(media_type), _) | (None, Some(media_type)) => Ok(media_type.to_owned()),
        }
    }

    fn check(&self, shape: Shape) -> Result<(), ManifestError> {
        match shape {
            // Nothing but the field tells what such a document is: without it somebody may read it as something else (CVE-2021-41190).
            Shape::Other => {
                return self.media_type.as_ref().map(|_| ()).ok_or(ManifestError::Missing("mediaType"));
            }
            Shape::OciImage | Shape::DockerImage => {
                if self.manifests.is_some() {
                    return Err(ManifestError::Excess("manifests"));
                }
                if self.config.is_none() {
                    return Err(ManifestError::Missing("config"));
                }
            }
            Shape::OciIndex | Shape::DockerList => {
                if self.config.is_some() {
                    return Err(ManifestError::Excess("config"));
                }
                if self.layers.is_some() {
                    return Err(ManifestError::Excess("layers"));
                }
                if self.manifests.is_none() {
                    return Err(ManifestError::Missing("manifests"));
                }
            }
        }
        if self.blobs.is_some() {
            return Err(ManifestError::Excess("blobs"));
        }
        if self.schema_version != Some(SchemaVersion(2)) {
            return Err(ManifestError::SchemaVersion);
        }
        Ok(())
    }

    fn into_manifest(self, media_type: String) -> Result<Manifest, ManifestError> {
        let mut collected = Collected::default();
        if let Some(Object(config)) = &self.config {
            collected.add("config", config, ReferenceKind::Config)?;
        }
        for Object(layer) in self.layers.iter().flatten() {
            collected.add("layers", layer, ReferenceKind::Layer)?;
        }
        for Object(blob) in self.blobs.iter().flatten() {
            collected.add("blobs", blob, ReferenceKind::Layer)?;
        }
        for Object(child) in self.manifests.iter().flatten().flatten() {
            // A child without a media type can only be a manifest: Docker lists had no other children.
            let kind = match child.media_type.as_deref() {
                Some(media_type) if !is_manifest_type(media_type) => ReferenceKind::Layer,
                _ => ReferenceKind::Manifest,
            };
            collected.add("manifests", child, kind)?;
        }
        let subject = self.subject.as_ref().map(|Object(subject)| subject.read("subject")).transpose()?;
        let artifact_type = self
            .artifact_type
            .filter(|artifact_type| !artifact_type.is_empty())
            .or_else(|| self.config.and_then(|Object(config)| config.media_type))
            .filter(|artifact_type| !artifact_type.is_empty())
            .map(Cow::into_owned);
        let annotations = match self.annotations {
            Some(annotations) if !annotations.is_empty() => Some(
                serde_json::to_string(&annotations).map_err(|error| ManifestError::Json(public(&error)))?,
            ),
            Some(_) | None => None,
        };
        Ok(Manifest {
            media_type,
            artifact_type,
            subject: subject.map(|(digest, _)| digest),
            annotations,
            references: collected.references,
            foreign: collected.foreign,
        })
    }
}

/// References on their way into a [`Manifest`]: each (digest, kind) once, each digest with one length.
#[derive(Default)]
struct Collected {
    lengths: HashMap<Digest, u64>,
    seen: HashSet<(Digest, ReferenceKind)>,
    references: Vec<ManifestReference>,
    foreign: Vec<ManifestReference>,
}

impl Collected {
    fn add(
        &mut self,
        place: &'static str,
        descriptor: &Descriptor<'_>,
        kind: ReferenceKind,
    ) -> Result<(), ManifestError> {
        let (digest, len_bytes) = descriptor.read(place)?;
        if *self.lengths.entry(digest).or_insert(len_bytes) != len_bytes {
            return Err(ManifestError::TwoSizes(digest));
        }
        if !self.seen.insert((digest, kind)) {
            return Ok(());
        }
        if self.seen.len() > DESCRIPTORS_MAX {
            return Err(ManifestError::TooManyDescriptors);
        }
        let reference = ManifestReference { digest, kind, len_bytes };
        let foreign = descriptor
            .media_type
            .as_deref()
            .is_some_and(|media_type| FOREIGN_LAYERS.iter().any(|prefix| media_type.starts_with(prefix)));
        if foreign {
            self.foreign.push(reference)
        } else {
            self.references.push(reference)
        }
        Ok(())
    }
}

impl Descriptor<'_> {
    fn read(&self, place: &'static str) -> Result<(Digest, u64), ManifestError> {
        let digest = Digest::parse(&self.digest).map_err(|error| ManifestError::Digest { place, error })?;
        let len_bytes = self
            .size
            .as_u64()
            .filter(|size| i64::try_from(*size).is_ok())
            .ok_or(ManifestError::Size(place))?;
        if let Some(data) = self.data.as_deref() {
            // Clients take `data` for the content without asking us, so it must be the content.
            let content = base64::engine::general_purpose::STANDARD
                .decode(data)
                .map_err(|_| ManifestError::Data(place))?;
            if content.len() as u64 != len_bytes || Digest::of(digest.algorithm(), &content) != digest {
                return Err(ManifestError::Data(place));
            }
        }
        Ok((digest, len_bytes))
    }
}

#[cfg(test)]
mod tests;
