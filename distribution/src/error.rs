//! Refusals: the only place where an HTTP status and an OCI error code are chosen.
//!
//! What must stay true: [`Error`]'s `Display` is the sentence that the client reads, so it names what the client sent or
//! what it may know, never a path, an SQL text or another repository. What only the operator may read is in
//! [`Error::internal`] and goes to the log.

use http::header::{ALLOW, CONTENT_RANGE, LOCATION, RANGE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use serde::Serialize;
use taffrail_blobstore::{Digest, DigestError};

use crate::access::AccessError;
use crate::answer::{self, DOCKER_UPLOAD_UUID};
use crate::blobs::{BlobError, PutError, UploadError, UploadStatus};
use crate::body::{ReceiveError, ResponseBody};
use crate::catalog::CatalogError;
use crate::manifest::ManifestError;
use crate::name::{NameError, RepositoryName, TAG_CHARS_MAX};

/// Seconds after which a client may try again when the store or the catalog is unavailable. Long enough to restart.
const RETRY_AFTER_SECS: u32 = 5;

/// Seconds after which to try again when there are too many upload sessions. They end by themselves or expire.
const SESSIONS_RETRY_AFTER_SECS: u32 = 30;

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No such path.
    #[error("no such path in the registry API")]
    UnknownPath,
    /// The path exists, the method does not.
    #[error("method not allowed here; use one of: {allow}")]
    MethodNotAllowed {
        /// Value of `Allow`.
        allow: &'static str,
    },
    /// A repository name or tag against the grammar.
    #[error("{0}")]
    NameInvalid(#[from] NameError),
    /// A digest against the grammar.
    #[error("{0}")]
    DigestInvalid(#[from] DigestError),
    /// `digest=` is missing or there are several.
    #[error("the request needs exactly one digest parameter, as in ?digest=sha256:…")]
    DigestParameter,
    /// `digest-algorithm=` names none that the registry knows.
    #[error("unsupported digest algorithm; use sha256, sha512 or blake3")]
    DigestAlgorithm,
    /// The query is no percent-encoded UTF-8.
    #[error("the query is not percent-encoded UTF-8")]
    Query,
    /// `n=` is no number.
    #[error("n must be a number from 0 on")]
    PageNumber,
    /// More `tag=` than one request may have.
    #[error("a request carries at most {max} tag parameters")]
    TooManyTags {
        /// The limit.
        max: usize,
    },

    /// Nobody known is asking. The challenges are the values of `WWW-Authenticate`.
    #[error("{message}")]
    Unauthenticated {
        /// What to do.
        message: String,
        /// Values of `WWW-Authenticate`.
        challenges: Vec<String>,
    },
    /// Known, but not allowed.
    #[error("{message}")]
    Denied {
        /// What to do.
        message: String,
    },
    /// The repository is not there, or must look so.
    #[error("repository {0} is not known to this registry")]
    RepositoryUnknown(RepositoryName),
    /// Too many requests of this identity.
    #[error("too many requests; try again in {retry_after_secs} s")]
    TooManyRequests {
        /// Seconds.
        retry_after_secs: u32,
    },
    /// Credentials cannot be verified now.
    #[error("the registry cannot verify credentials at this moment; try again")]
    AccessUnavailable,

    /// No such blob in this repository.
    #[error("blob unknown to this repository")]
    BlobUnknown,
    /// A manifest needs the blob.
    #[error("a manifest of this repository uses the blob; delete the manifest first")]
    BlobInUse,
    /// A backup copies the catalog, and what that names must stay.
    #[error("a backup is being made, and nothing is deleted for a moment; try again")]
    BlobHeld,
    /// No range of `Range` is in the blob.
    #[error("no requested range is within the {len_bytes} bytes of the blob")]
    RangeUnsatisfiable {
        /// Length of the blob.
        len_bytes: u64,
    },

    /// No such session in this repository.
    #[error("upload session unknown to this repository; start again with POST")]
    UploadUnknown,
    /// Somebody else writes to it.
    #[error("another request is writing to this upload session; ask for its status and go on from there")]
    UploadBusy,
    /// Too many sessions.
    #[error("too many open upload sessions; finish or cancel some, or try again later")]
    TooManyUploads,
    /// The range does not begin where the session stands.
    #[error("the upload session stands at byte {}; go on from there", status.offset_bytes)]
    UploadOffset {
        /// Where it stands.
        status: UploadStatus,
        /// Where to go on.
        location: String,
    },
    /// `Content-Range` cannot be read.
    #[error("Content-Range must have the form <first>-<last>, both inclusive")]
    ContentRange,
    /// The body is not as long as `Content-Range` says.
    #[error("the body has another length than Content-Range says")]
    ContentLength,
    /// The bytes hash to something else.
    #[error(
        "the uploaded bytes have the digest {actual}; the session stands where it stood before this request"
    )]
    DigestMismatch {
        /// What they hash to.
        actual: Digest,
    },
    /// Blob too large.
    #[error("a blob has at most {limit_bytes} bytes here")]
    BlobTooLarge {
        /// The limit.
        limit_bytes: u64,
    },

    /// The reference names nothing.
    #[error("manifest unknown to this repository")]
    ManifestUnknown,
    /// Manifest too large.
    #[error("a manifest has at most {limit_bytes} bytes here")]
    ManifestTooLarge {
        /// The limit.
        limit_bytes: usize,
    },
    /// Not a manifest that may be stored.
    #[error("{0}")]
    ManifestInvalid(#[from] ManifestError),
    /// The body is not what the path names.
    #[error("the manifest sent has the digest {actual}, not the one in the path")]
    ManifestDigest {
        /// What it hashes to.
        actual: Digest,
    },
    /// What the manifest refers to is not in this repository.
    #[error("the manifest refers to content that is not in this repository; push it first")]
    ReferencesUnknown(Vec<Digest>),
    /// A descriptor states a wrong length.
    #[error("{digest} has {actual_bytes} bytes, but its descriptor says {stated_bytes}")]
    ReferenceLength {
        /// Which.
        digest: Digest,
        /// As stored.
        actual_bytes: u64,
        /// As stated.
        stated_bytes: u64,
    },
    /// `If-Match` or `If-None-Match` does not hold.
    #[error("the precondition of the request does not hold")]
    Precondition,
    /// A combination of preconditions that cannot be judged in one step.
    #[error("send either If-Match or If-None-Match, not both")]
    PreconditionForm,
    /// A rule of the project forbids it.
    #[error("{message}")]
    Forbidden {
        /// Which, for the client.
        message: String,
    },

    /// The body came too slowly.
    #[error("the request body came too slowly; an upload session goes on from where its status says")]
    Stalled,
    /// The body broke off.
    #[error("the request body broke off")]
    BodyBroken,
    /// No space.
    #[error("the registry has no space left; nothing was stored")]
    NoSpace,
    /// Store or catalog do not answer. The text goes to the log.
    #[error("the registry cannot do that at this moment; try again")]
    Unavailable(String),
    /// Stored bytes are damaged; the next push of them heals it.
    #[error("content unknown to this repository")]
    Damaged(Digest),
}

impl Error {
    /// The status of the answer.
    pub fn status(&self) -> StatusCode {
        self.choose().0
    }

    /// The OCI (or Docker) code of the answer.
    pub fn code(&self) -> &'static str {
        self.choose().1
    }

    fn choose(&self) -> (StatusCode, &'static str) {
        match self {
            Error::UnknownPath => (StatusCode::NOT_FOUND, "UNSUPPORTED"),
            Error::MethodNotAllowed { .. } => (StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED"),
            Error::NameInvalid(_) => (StatusCode::BAD_REQUEST, "NAME_INVALID"),
            Error::DigestInvalid(_)
            | Error::DigestParameter
            | Error::DigestAlgorithm
            | Error::DigestMismatch { .. }
            | Error::ManifestDigest { .. } => (StatusCode::BAD_REQUEST, "DIGEST_INVALID"),
            Error::Query => (StatusCode::BAD_REQUEST, "UNSUPPORTED"),
            Error::PageNumber => (StatusCode::BAD_REQUEST, "PAGINATION_NUMBER_INVALID"),
            Error::TooManyTags { .. } => (StatusCode::URI_TOO_LONG, "NAME_INVALID"),
            Error::Unauthenticated { .. } => (StatusCode::UNAUTHORIZED, "UNAUTHORIZED"),
            Error::Denied { .. } => (StatusCode::FORBIDDEN, "DENIED"),
            Error::RepositoryUnknown(_) => (StatusCode::NOT_FOUND, "NAME_UNKNOWN"),
            Error::TooManyRequests { .. } | Error::TooManyUploads => {
                (StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS")
            }
            Error::BlobUnknown | Error::Damaged(_) => (StatusCode::NOT_FOUND, "BLOB_UNKNOWN"),
            Error::BlobInUse => (StatusCode::METHOD_NOT_ALLOWED, "DENIED"),
            Error::RangeUnsatisfiable { .. } | Error::UploadOffset { .. } => {
                (StatusCode::RANGE_NOT_SATISFIABLE, "RANGE_INVALID")
            }
            Error::UploadUnknown => (StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN"),
            Error::UploadBusy => (StatusCode::CONFLICT, "BLOB_UPLOAD_INVALID"),
            Error::ContentRange => (StatusCode::BAD_REQUEST, "RANGE_INVALID"),
            Error::ContentLength | Error::ReferenceLength { .. } => (StatusCode::BAD_REQUEST, "SIZE_INVALID"),
            Error::BlobTooLarge { .. } | Error::ManifestTooLarge { .. } => {
                (StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID")
            }
            Error::ManifestUnknown => (StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN"),
            Error::ManifestInvalid(_) => (StatusCode::BAD_REQUEST, "MANIFEST_INVALID"),
            Error::ReferencesUnknown(_) => (StatusCode::NOT_FOUND, "MANIFEST_BLOB_UNKNOWN"),
            Error::Precondition => (StatusCode::PRECONDITION_FAILED, "PRECONDITION_FAILED"),
            Error::PreconditionForm => (StatusCode::BAD_REQUEST, "UNSUPPORTED"),
            Error::Forbidden { .. } => (StatusCode::PRECONDITION_FAILED, "DENIED"),
            Error::Stalled => (StatusCode::REQUEST_TIMEOUT, "BLOB_UPLOAD_INVALID"),
            Error::BodyBroken => (StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID"),
            Error::NoSpace => (StatusCode::INSUFFICIENT_STORAGE, "UNAVAILABLE"),
            Error::Unavailable(_) | Error::AccessUnavailable | Error::BlobHeld => {
                (StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE")
            }
        }
    }

    /// What the operator has to know and the client must not: one line for the log.
    #[expect(clippy::wildcard_enum_match_arm, reason = "all other refusals have none")]
    pub fn internal(&self) -> Option<String> {
        match self {
            Error::Unavailable(text) => Some(text.clone()),
            Error::Damaged(digest) => Some(format!("{digest} is damaged on disk")),
            Error::NoSpace => Some("no space left".to_owned()),
            Error::AccessUnavailable => Some("access control unavailable".to_owned()),
            _ => None,
        }
    }

    /// The answer.
    pub fn into_response(self) -> Response<ResponseBody> {
        let (status, code) = self.choose();
        let message = self.to_string();
        let detail = self.detail();
        let body = Body { errors: [Entry { code, message: &message, detail: &detail }] };
        let json = serde_json::to_vec(&body).unwrap_or_else(|_| br#"{"errors":[]}"#.to_vec());
        let mut response = answer::json(status, json);
        self.headers(response.headers_mut());
        response
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "all other refusals have none")]
    fn detail(&self) -> serde_json::Value {
        match self {
            Error::ReferencesUnknown(digests) => {
                digests.iter().map(|digest| serde_json::json!({ "digest": digest.to_string() })).collect()
            }
            Error::RepositoryUnknown(name) => serde_json::json!({ "name": name.as_str() }),
            Error::NameInvalid(NameError::Tag) => serde_json::json!({ "chars_max": TAG_CHARS_MAX }),
            _ => serde_json::Value::Null,
        }
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "all other refusals have none")]
    fn headers(&self, headers: &mut HeaderMap) {
        match self {
            Error::MethodNotAllowed { allow } => {
                headers.insert(ALLOW, HeaderValue::from_static(allow));
            }
            Error::BlobInUse => {
                headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            }
            Error::Unauthenticated { challenges, .. } => {
                for challenge in challenges {
                    headers.append(WWW_AUTHENTICATE, answer::value(challenge.clone()));
                }
            }
            Error::TooManyRequests { retry_after_secs } => {
                headers.insert(RETRY_AFTER, HeaderValue::from(*retry_after_secs));
            }
            Error::TooManyUploads => {
                headers.insert(RETRY_AFTER, HeaderValue::from(SESSIONS_RETRY_AFTER_SECS));
            }
            Error::Unavailable(_) | Error::AccessUnavailable | Error::BlobHeld => {
                headers.insert(RETRY_AFTER, HeaderValue::from(RETRY_AFTER_SECS));
            }
            Error::RangeUnsatisfiable { len_bytes } => {
                headers.insert(CONTENT_RANGE, answer::value(format!("bytes */{len_bytes}")));
            }
            Error::UploadOffset { status, location } => {
                headers.insert(RANGE, answer::upload_range(status.offset_bytes));
                headers.insert(LOCATION, answer::value(location.clone()));
                headers.insert(DOCKER_UPLOAD_UUID, answer::value(status.id.to_string()));
            }
            _ => {}
        }
    }

    /// The refusal of an access control; `challenges` are used for `Unauthenticated`.
    pub fn access(error: AccessError, challenges: Vec<String>) -> Error {
        match error {
            AccessError::Unauthenticated { message, .. } => Error::Unauthenticated { message, challenges },
            AccessError::Denied { message } => Error::Denied { message },
            AccessError::UnknownRepository { name } => Error::RepositoryUnknown(name),
            AccessError::TooMany { retry_after_secs } => Error::TooManyRequests { retry_after_secs },
            AccessError::Unavailable => Error::AccessUnavailable,
        }
    }

    /// The refusal of a catalog, in the repository `name`.
    pub fn catalog(error: CatalogError, name: &RepositoryName) -> Error {
        match error {
            CatalogError::ManifestUnknown => Error::ManifestUnknown,
            CatalogError::RepositoryUnknown => Error::RepositoryUnknown(name.clone()),
            CatalogError::ReferenceUnknown(digest) => Error::ReferencesUnknown(vec![digest]),
            CatalogError::Precondition => Error::Precondition,
            CatalogError::Forbidden { message } => Error::Forbidden { message },
            CatalogError::NoSpace => Error::NoSpace,
            CatalogError::Unavailable(text) => Error::Unavailable(text),
        }
    }

    /// The refusal of a manifest's bytes: what is unknown as a blob is unknown as a manifest.
    pub fn manifest_bytes(error: BlobError) -> Error {
        match error {
            BlobError::Unknown => Error::ManifestUnknown,
            BlobError::Corrupt(digest) => {
                tracing::error!(%digest, "a manifest is damaged on disk");
                Error::ManifestUnknown
            }
            error @ (BlobError::InUse | BlobError::Held | BlobError::NoSpace | BlobError::Unavailable(_)) => {
                error.into()
            }
        }
    }
}

impl From<BlobError> for Error {
    fn from(error: BlobError) -> Error {
        match error {
            BlobError::Unknown => Error::BlobUnknown,
            BlobError::Corrupt(digest) => Error::Damaged(digest),
            BlobError::InUse => Error::BlobInUse,
            BlobError::Held => Error::BlobHeld,
            BlobError::NoSpace => Error::NoSpace,
            BlobError::Unavailable(text) => Error::Unavailable(text),
        }
    }
}

impl From<UploadError> for Error {
    fn from(error: UploadError) -> Error {
        match error {
            UploadError::Unknown => Error::UploadUnknown,
            UploadError::Busy => Error::UploadBusy,
            UploadError::TooMany => Error::TooManyUploads,
            UploadError::Mismatch { actual } => Error::DigestMismatch { actual },
            UploadError::TooLarge { limit_bytes } => Error::BlobTooLarge { limit_bytes },
            UploadError::NoSpace => Error::NoSpace,
            UploadError::Unavailable(text) => Error::Unavailable(text),
        }
    }
}

impl From<PutError> for Error {
    fn from(error: PutError) -> Error {
        match error {
            PutError::Missing(digests) => Error::ReferencesUnknown(digests),
            PutError::Length { digest, actual_bytes, stated_bytes } => {
                Error::ReferenceLength { digest, actual_bytes, stated_bytes }
            }
            PutError::TooLarge { limit_bytes } => Error::ManifestTooLarge { limit_bytes },
            PutError::NoSpace => Error::NoSpace,
            PutError::Unavailable(text) => Error::Unavailable(text),
        }
    }
}

impl From<ReceiveError> for Error {
    fn from(error: ReceiveError) -> Error {
        match error {
            ReceiveError::Stalled => Error::Stalled,
            ReceiveError::Broken(_) => Error::BodyBroken,
        }
    }
}

#[derive(Serialize)]
struct Body<'a> {
    errors: [Entry<'a>; 1],
}

#[derive(Serialize)]
struct Entry<'a> {
    code: &'static str,
    message: &'a str,
    #[serde(skip_serializing_if = "serde_json::Value::is_null")]
    detail: &'a serde_json::Value,
}
