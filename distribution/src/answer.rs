//! Answers: the headers that every one of a kind carries, in one place.

use bytes::Bytes;
use http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE,
    ETAG, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use taffrail_blobstore::Digest;

use crate::body::{self, ResponseBody};

/// The digest of what is answered.
pub(crate) const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
/// Tells Docker clients that they talk to a v2 registry.
pub(crate) const DOCKER_API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
/// The id of an upload session.
pub(crate) const DOCKER_UPLOAD_UUID: HeaderName = HeaderName::from_static("docker-upload-uuid");
/// The subject of a manifest just pushed (distribution-spec, "Pushing manifests with subject").
pub(crate) const OCI_SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
/// A tag just moved by `?tag=` (distribution-spec main, end-7b).
pub(crate) const OCI_TAG: HeaderName = HeaderName::from_static("oci-tag");
/// Filters that a referrers listing has applied.
pub(crate) const OCI_FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");

/// What is named by its digest never changes. `private`: an answer to one caller is not for another (S-48).
const CACHE_IMMUTABLE: HeaderValue = HeaderValue::from_static("private, max-age=31536000, immutable");
/// A tag moves; its answer may be kept, but must be revalidated by its `ETag`.
const CACHE_REVALIDATE: HeaderValue = HeaderValue::from_static("private, no-cache");

/// Headers that an answer with content has by the time it is sent, rounded up.
const HEADERS_MAX: usize = 14;

/// A header value of text that we made; what a header cannot carry becomes empty rather than an error, and no text of a
/// client gets here unparsed.
pub(crate) fn value(text: String) -> HeaderValue {
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""))
}

/// `Range` of an upload session, without `bytes=` (docker parses `%d-%d`). An empty session says `0-0`, as distribution
/// does: the form has no way to say "nothing".
pub(crate) fn upload_range(offset_bytes: u64) -> HeaderValue {
    value(format!("0-{}", offset_bytes.saturating_sub(1)))
}

/// An answer without a body.
pub(crate) fn empty(status: StatusCode) -> Response<ResponseBody> {
    let mut response = Response::new(body::empty());
    *response.status_mut() = status;
    // 204 and 304 must not, or need not, have a length (RFC 9110 sections 8.6, 15.4.5).
    if !matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
    response
}

/// A JSON answer.
pub(crate) fn json(status: StatusCode, json: Vec<u8>) -> Response<ResponseBody> {
    with_type(status, HeaderValue::from_static("application/json"), json)
}

/// An answer of the given media type.
pub(crate) fn with_type(
    status: StatusCode,
    media_type: HeaderValue,
    content: Vec<u8>,
) -> Response<ResponseBody> {
    let mut headers = HeaderMap::with_capacity(8);
    headers.insert(CONTENT_TYPE, media_type);
    headers.insert(CONTENT_LENGTH, HeaderValue::from(content.len()));
    let mut response = Response::new(body::full(Bytes::from(content)));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// How long what is answered stays true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lifetime {
    /// Named by its digest.
    Forever,
    /// Named by a tag.
    UntilMoved,
}

/// `Docker-Content-Digest`, `ETag`, `Cache-Control`, and what keeps a browser from running stored content (S-74).
pub(crate) fn content_headers(headers: &mut HeaderMap, digest: &Digest, lifetime: Lifetime) {
    // At once: growing step by step is dearer than what is put in.
    headers.reserve(HEADERS_MAX);
    let (entity_tag, digest) = digest_values(digest);
    headers.insert(ETAG, entity_tag);
    headers.insert(DOCKER_CONTENT_DIGEST, digest);
    headers.insert(
        CACHE_CONTROL,
        match lifetime {
            Lifetime::Forever => CACHE_IMMUTABLE,
            Lifetime::UntilMoved => CACHE_REVALIDATE,
        },
    );
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; sandbox"));
}

/// A digest in quotes and without, in one piece of memory: every answer with content has both.
fn digest_values(digest: &Digest) -> (HeaderValue, HeaderValue) {
    let quoted = Bytes::from(format!("\"{digest}\""));
    let plain = quoted.slice(1..quoted.len() - 1);
    let value = |bytes: Bytes| HeaderValue::from_maybe_shared(bytes).unwrap_or(HeaderValue::from_static(""));
    (value(quoted), value(plain))
}

/// What a blob has besides [`content_headers`].
pub(crate) fn blob_headers(headers: &mut HeaderMap, digest: &Digest) {
    content_headers(headers, digest, Lifetime::Forever);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(CONTENT_DISPOSITION, HeaderValue::from_static("attachment"));
    // oras seeks only when this is on the answer to the GET.
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
}

/// What every answer has, refusals too.
pub(crate) fn common_headers(headers: &mut HeaderMap) {
    headers.insert(DOCKER_API_VERSION, HeaderValue::from_static("registry/2.0"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
}
