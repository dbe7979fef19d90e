//! Manifests of a repository: read (end-3), put (end-7) and delete (end-9).
//!
//! What must stay true: the stored bytes go out exactly as they came in, whatever `Accept` says: there is one
//! representation, it is labelled truthfully, and RFC 9110 section 12.4.1 lets a server disregard `Accept` then. (Answers
//! of 404 to clients that list too few types are what users of distribution report as bugs.)
//!
//! A put makes the bytes and links durable first, pinned, and the catalog's transaction second; a crash between leaves
//! surplus only.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use http::{HeaderValue, Response, StatusCode};
use taffrail_blobstore::{Algorithm, Digest};
use tokio::time::timeout;

use crate::access::Grant;
use crate::answer::{self, DOCKER_CONTENT_DIGEST, Lifetime, OCI_SUBJECT, OCI_TAG};
use crate::blobs::BlobError;
use crate::body::{self, CollectError, Incoming, Piece, ResponseBody};
use crate::catalog::{CatalogError, ManifestEntry, NewManifest, Precondition};
use crate::conditional::{self, Verdict};
use crate::error::Error;
use crate::limits::{MANIFEST_WAIT, TAG_PARAMETERS_MAX};
use crate::manifest::Manifest;
use crate::name::{Reference, Tag};
use crate::range::ByteRange;
use crate::registry::{Call, Registry};

/// Manifests up to this many bytes are hashed and parsed on the spot (under a millisecond); longer ones elsewhere, so that
/// they hold nobody up.
const PARSE_INLINE_BYTES_MAX: usize = 64 << 10;

/// `GET`, `HEAD`. A HEAD leases the bytes: its caller may now leave out a push.
pub(crate) async fn read(
    registry: &Registry,
    call: &Call<'_>,
    grant: &Grant,
    reference: &Reference,
) -> Result<Response<ResponseBody>, Error> {
    let entry = registry.catalog.manifest(grant, reference).await;
    let entry = entry.map_err(|error| Error::catalog(error, &grant.name))?;
    let verdict = conditional::read(call.headers(), &entry.digest);
    if verdict == Verdict::Failed {
        return Err(Error::Precondition);
    }
    if call.is_head() || verdict == Verdict::NotModified {
        let stat = registry.blobs.stat(grant.repository, &entry.digest).await;
        stat.map_err(Error::manifest_bytes)?;
        if verdict == Verdict::NotModified {
            let mut response = answer::empty(StatusCode::NOT_MODIFIED);
            answer::content_headers(response.headers_mut(), &entry.digest, lifetime(reference));
            return Ok(response);
        }
        return Ok(whole(body::empty(), &entry, reference));
    }
    let reader = registry.blobs.open(grant.repository, &entry.digest).await.map_err(Error::manifest_bytes)?;
    let pieces = vec![Piece::Blob(ByteRange { start_bytes: 0, end_bytes: reader.len_bytes() })];
    let body = body::of_blob(reader, pieces).await.map_err(Error::manifest_bytes)?;
    Ok(whole(body, &entry, reference))
}

fn whole(body: ResponseBody, entry: &ManifestEntry, reference: &Reference) -> Response<ResponseBody> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    answer::content_headers(headers, &entry.digest, lifetime(reference));
    headers.insert(CONTENT_TYPE, answer::value(entry.media_type.clone()));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(entry.len_bytes));
    response
}

fn lifetime(reference: &Reference) -> Lifetime {
    match reference {
        Reference::Digest(_) => Lifetime::Forever,
        Reference::Tag(_) => Lifetime::UntilMoved,
    }
}

/// `PUT`.
pub(crate) async fn put(
    registry: &Registry,
    call: &Call<'_>,
    grant: &Grant,
    reference: &Reference,
    body: Incoming,
) -> Result<Response<ResponseBody>, Error> {
    let parameters = tag_parameters(call)?;
    let precondition = conditional::write(call.headers())?;
    refuse_by_precondition(registry, grant, reference, &precondition).await?;
    let limit_bytes = registry.limits.manifest_bytes_max;
    let bytes = body.collect(limit_bytes).await.map_err(|error| match error {
        CollectError::TooLarge => Error::ManifestTooLarge { limit_bytes },
        CollectError::Receive(error) => error.into(),
    })?;
    let len_bytes = bytes.len() as u64;
    let (digest, manifest) = examine(registry, call, reference, &bytes).await?;
    registry.confirm(call, grant).await?;

    let mut references = manifest.references;
    for foreign in manifest.foreign {
        // A foreign layer that somebody did push is kept like any other; one that nobody pushed is not missed.
        match registry.blobs.stat(grant.repository, &foreign.digest).await {
            Ok(_) => references.push(foreign),
            Err(BlobError::Unknown | BlobError::Corrupt(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let mut seen = HashSet::with_capacity(references.len());
    let links: Vec<(Digest, u64)> = references
        .iter()
        .filter(|reference| seen.insert(reference.digest))
        .map(|reference| (reference.digest, reference.len_bytes))
        .collect();

    let mut tags = parameters.clone();
    if let Reference::Tag(tag) = reference
        && !tags.contains(tag)
    {
        tags.push(tag.clone());
    }
    let new = NewManifest {
        digest,
        media_type: manifest.media_type,
        len_bytes,
        artifact_type: manifest.artifact_type,
        subject: manifest.subject,
        annotations: manifest.annotations,
        references,
        tags,
        precondition,
    };
    let (blobs, catalog) = (Arc::clone(&registry.blobs), Arc::clone(&registry.catalog));
    let (granted, identity, reference) = (grant.clone(), call.identity.clone(), reference.clone());
    // A task of its own: when the client hangs up, or is told that it takes too long, the pins must hold until the catalog's
    // transaction has ended all the same.
    let put = tokio::spawn(async move {
        let pins = blobs.put(granted.repository, &digest, bytes, &links).await?;
        let result = catalog.put_manifest(&granted, &identity, &reference, new).await;
        drop(pins);
        result.map_err(|error| Error::catalog(error, &granted.name))
    });
    let put = timeout(MANIFEST_WAIT, put).await;
    let put = put.map_err(|_| BlobError::Unavailable("putting a manifest takes too long".to_owned()))?;
    put.map_err(|error| BlobError::Unavailable(format!("putting a manifest: {error}")))??;

    let mut response = answer::empty(StatusCode::CREATED);
    let headers = response.headers_mut();
    headers.insert(LOCATION, answer::value(format!("/v2/{}/manifests/{digest}", grant.name)));
    headers.insert(DOCKER_CONTENT_DIGEST, answer::value(digest.to_string()));
    if let Some(subject) = manifest.subject {
        headers.insert(OCI_SUBJECT, answer::value(subject.to_string()));
    }
    for tag in parameters {
        headers.append(OCI_TAG, answer::value(tag.as_str().to_owned()));
    }
    Ok(response)
}

/// The tags of `?tag=`, each once.
fn tag_parameters(call: &Call<'_>) -> Result<Vec<Tag>, Error> {
    let texts = call.query.all("tag")?;
    if texts.len() > TAG_PARAMETERS_MAX {
        return Err(Error::TooManyTags { max: TAG_PARAMETERS_MAX });
    }
    let mut tags = Vec::with_capacity(texts.len());
    for text in texts {
        let tag = Tag::parse(&text)?;
        if !tags.contains(&tag) {
            tags.push(tag);
        }
    }
    Ok(tags)
}

/// Refuses before the body is read what the catalog would refuse after; the catalog still judges, in its transaction.
async fn refuse_by_precondition(
    registry: &Registry,
    grant: &Grant,
    reference: &Reference,
    precondition: &Precondition,
) -> Result<(), Error> {
    if *precondition == Precondition::None {
        return Ok(());
    }
    let current = match registry.catalog.manifest(grant, reference).await {
        Ok(entry) => Some(entry.digest),
        Err(CatalogError::ManifestUnknown) => None,
        Err(error) => return Err(Error::catalog(error, &grant.name)),
    };
    conditional::check(precondition, current.as_ref())
}

/// Hashes and parses: the digest of the bytes, in the algorithm of the reference, and what they say.
async fn examine(
    registry: &Registry,
    call: &Call<'_>,
    reference: &Reference,
    bytes: &Bytes,
) -> Result<(Digest, Manifest), Error> {
    let content_type = call.headers().get(CONTENT_TYPE);
    let content_type = content_type.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let wanted = match reference {
        Reference::Digest(digest) => Some(*digest),
        Reference::Tag(_) => None,
    };
    let extra_types = registry.limits.extra_manifest_types.clone();
    let document = bytes.clone();
    let examine = move || {
        let algorithm = wanted.map_or(Algorithm::Sha256, |digest| digest.algorithm());
        let digest = Digest::of(algorithm, &document);
        if wanted.is_some_and(|wanted| wanted != digest) {
            return Err(Error::ManifestDigest { actual: digest });
        }
        let manifest = Manifest::parse(&document, content_type.as_deref(), &extra_types)?;
        Ok((digest, manifest))
    };
    if bytes.len() <= PARSE_INLINE_BYTES_MAX {
        return examine();
    }
    let task = tokio::task::spawn_blocking(examine);
    task.await.map_err(|error| Error::Unavailable(format!("examining a manifest: {error}")))?
}

/// `DELETE` by tag (the manifest stays) or by digest (its tags go too). 202 in both cases.
pub(crate) async fn delete(
    registry: &Registry,
    call: &Call<'_>,
    grant: &Grant,
    reference: &Reference,
) -> Result<Response<ResponseBody>, Error> {
    let precondition = conditional::write(call.headers())?;
    let result = match reference {
        Reference::Tag(tag) => registry.catalog.delete_tag(grant, call.identity, tag, precondition).await,
        Reference::Digest(digest) => {
            registry.catalog.delete_manifest(grant, call.identity, digest, precondition).await
        }
    };
    result.map_err(|error| Error::catalog(error, &grant.name))?;
    Ok(answer::empty(StatusCode::ACCEPTED))
}
