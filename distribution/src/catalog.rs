//! The boundary to the catalog: names (tags, artifacts, references between manifests), never bytes.
//!
//! What must stay true: a manifest becomes visible in one transaction with its references and tags
//! ([`Catalog::put_manifest`]); pages cost what the page holds, not what the repository holds; order is bytewise.

use async_trait::async_trait;
use taffrail_blobstore::{Digest, RepositoryKey};

use crate::access::{Grant, Identity};
use crate::name::{Reference, RepositoryName, Tag};

/// What the catalog knows of a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestEntry {
    /// Its digest.
    pub digest: Digest,
    /// The media type it was pushed with.
    pub media_type: String,
    /// Its length in bytes.
    pub len_bytes: u64,
}

/// A manifest about to become visible. Its bytes and links are durable already.
#[derive(Clone, Debug)]
pub struct NewManifest {
    /// Its digest, of the algorithm that the client chose.
    pub digest: Digest,
    /// The media type of the request, checked against the document.
    pub media_type: String,
    /// Its length in bytes.
    pub len_bytes: u64,
    /// `artifactType`, or for an image manifest without one, the config's media type (distribution-spec, "Listing
    /// referrers").
    pub artifact_type: Option<String>,
    /// The manifest this one refers to; it need not exist.
    pub subject: Option<Digest>,
    /// The document's annotations as a JSON object, for referrers listings. At most as long as the manifest.
    pub annotations: Option<String>,
    /// Every config, layer and child manifest.
    pub references: Vec<ManifestReference>,
    /// The tags that shall point to it, all or none.
    pub tags: Vec<Tag>,
    /// What the client demands of the state before.
    pub precondition: Precondition,
}

/// An edge from a manifest to what it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestReference {
    /// What is referred to.
    pub digest: Digest,
    /// As what.
    pub kind: ReferenceKind,
    /// Length as the descriptor says, in bytes.
    pub len_bytes: u64,
}

/// What a manifest refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReferenceKind {
    /// The config blob.
    Config,
    /// A layer blob.
    Layer,
    /// A manifest of an index.
    Manifest,
}

/// A condition on the manifest that a reference names now (RFC 9110 section 13, on manifests).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Precondition {
    /// None.
    #[default]
    None,
    /// `If-None-Match: *`: the reference must not exist.
    Absent,
    /// `If-Match`: the reference must name one of these; empty means `*`, any.
    Is(Vec<Digest>),
    /// `If-None-Match` with digests: the reference must name none of these.
    IsNot(Vec<Digest>),
}

/// A manifest that refers to another by `subject`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Referrer {
    /// Its digest.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// Its length in bytes.
    pub len_bytes: u64,
    /// Its artifact type, if it has one.
    pub artifact_type: Option<String>,
    /// Its annotations as a JSON object.
    pub annotations: Option<String>,
}

/// Where a page starts and how long it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageRequest<T> {
    /// The position after which the page starts; it need not exist (any more).
    pub after: Option<T>,
    /// At most so many entries; at least 1.
    pub limit: u32,
}

/// A page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T> {
    /// The entries, in bytewise order.
    pub entries: Vec<T>,
    /// Whether there are more behind the last one.
    pub more: bool,
}

/// Why the catalog refuses.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CatalogError {
    /// The reference names nothing in this repository.
    #[error("manifest unknown")]
    ManifestUnknown,
    /// The repository is gone (deleted after the grant was given).
    #[error("repository unknown")]
    RepositoryUnknown,
    /// A child manifest is not in this repository.
    #[error("manifest {0} is not in this repository")]
    ReferenceUnknown(Digest),
    /// The [`Precondition`] does not hold: 412.
    #[error("the precondition does not hold")]
    Precondition,
    /// A rule forbids it (immutable tag, read-only): 412 or 405 with this sentence.
    #[error("{message}")]
    Forbidden {
        /// For the client.
        message: String,
    },
    /// The disk of the catalog is full: 507.
    #[error("no space for the catalog")]
    NoSpace,
    /// The catalog does not answer: 503. The text goes to the log only.
    #[error("catalog unavailable: {0}")]
    Unavailable(String),
}

/// Names of a registry. Implemented by core over SQL, and in memory for distribution's own tests.
#[async_trait]
pub trait Catalog: Send + Sync + 'static {
    /// What `reference` names. A digest is found when a manifest of that digest was put in this repository.
    ///
    /// # Errors
    /// `ManifestUnknown` and faults.
    async fn manifest(&self, grant: &Grant, reference: &Reference) -> Result<ManifestEntry, CatalogError>;

    /// Makes a manifest visible in one transaction: artifact, references, tags, referrer edge, outbox rows. Putting the
    /// same manifest again only moves the tags. Child manifests of an index that are missing here are
    /// `ReferenceUnknown` (blobs were checked by the engine when it linked them). The precondition is judged against
    /// `reference`, within the transaction.
    ///
    /// # Errors
    /// See [`CatalogError`]; after an error nothing has changed.
    async fn put_manifest(
        &self,
        grant: &Grant,
        identity: &Identity,
        reference: &Reference,
        manifest: NewManifest,
    ) -> Result<(), CatalogError>;

    /// Removes a tag; the manifest stays.
    ///
    /// # Errors
    /// `ManifestUnknown`, `Precondition`, `Forbidden` and faults.
    async fn delete_tag(
        &self,
        grant: &Grant,
        identity: &Identity,
        tag: &Tag,
        precondition: Precondition,
    ) -> Result<(), CatalogError>;

    /// Removes a manifest with every tag on it, and leaves to the outbox the unlinking of what nothing else in the
    /// repository references.
    ///
    /// # Errors
    /// `ManifestUnknown`, `Precondition`, `Forbidden` and faults.
    async fn delete_manifest(
        &self,
        grant: &Grant,
        identity: &Identity,
        digest: &Digest,
        precondition: Precondition,
    ) -> Result<(), CatalogError>;

    /// Whether any manifest of the repository refers to `digest` as config or layer, or is it.
    ///
    /// # Errors
    /// Faults.
    async fn uses_blob(&self, grant: &Grant, digest: &Digest) -> Result<bool, CatalogError>;

    /// A page of tags in bytewise order. An existing but empty repository has none; it is no error.
    ///
    /// # Errors
    /// Faults.
    async fn tags(&self, grant: &Grant, page: PageRequest<String>) -> Result<Page<Tag>, CatalogError>;

    /// A page of the manifests whose subject is `subject`, ordered by digest, filtered by artifact type.
    ///
    /// # Errors
    /// Faults; an unknown subject is an empty page.
    async fn referrers(
        &self,
        grant: &Grant,
        subject: &Digest,
        artifact_type: Option<&str>,
        page: PageRequest<Digest>,
    ) -> Result<Page<Referrer>, CatalogError>;

    /// A page of the names of repositories that `identity` may see and that hold at least one manifest.
    ///
    /// # Errors
    /// Faults.
    async fn repositories(
        &self,
        identity: &Identity,
        page: PageRequest<String>,
    ) -> Result<Page<RepositoryName>, CatalogError>;

    /// The name of a repository by its key, for logs and reports.
    ///
    /// # Errors
    /// `RepositoryUnknown` and faults.
    async fn repository_name(&self, repository: RepositoryKey) -> Result<RepositoryName, CatalogError>;
}
