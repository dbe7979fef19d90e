//! Paths under `/v2`: what a request is about, and what it needs before it may be served.
//!
//! The parser reads the raw path. It normalises nothing (`//`, `.`, `..`, case), and decodes `%XX` in the last segment
//! only, whose decoded text must then be a digest, a tag or a session id, none of which can hold a `/`. So no spelling of
//! a path reaches a route that another spelling was checked for.
//!
//! What must stay true: every [`Endpoint`] has its [`Needs`]; `needs` matches without a wildcard, so that a new endpoint
//! does not compile until somebody has decided who may use it.

use std::borrow::Cow;

use http::Method;
use percent_encoding::percent_decode_str;
use taffrail_blobstore::{Digest, SessionId};

use crate::access::{Action, Missing};
use crate::error::Error;
use crate::name::{Reference, RepositoryName, Tag};

/// A parsed path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// `/v2/`
    Base,
    /// `/v2/_catalog`
    Catalog,
    /// `/v2/_oci/ext/discover`
    Discover,
    /// `/v2/NAME/_oci/ext/discover`
    RepositoryDiscover(RepositoryName),
    /// `/v2/NAME/tags/list`
    Tags(RepositoryName),
    /// `/v2/NAME/manifests/REFERENCE`
    Manifest(RepositoryName, Reference),
    /// `/v2/NAME/blobs/DIGEST`
    Blob(RepositoryName, Digest),
    /// `/v2/NAME/blobs/uploads/`
    Uploads(RepositoryName),
    /// `/v2/NAME/blobs/uploads/ID`; `None` when the id is malformed, which is answered like one that does not exist.
    Upload(RepositoryName, Option<SessionId>),
    /// `/v2/NAME/referrers/DIGEST`
    Referrers(RepositoryName, Digest),
}

/// A route and a method together: what is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// `GET /v2/` (end-1).
    Base,
    /// `GET /v2/_catalog`.
    Catalog,
    /// `GET /v2/_oci/ext/discover`.
    Discover,
    /// `GET /v2/NAME/_oci/ext/discover`.
    RepositoryDiscover,
    /// `GET /v2/NAME/tags/list` (end-8).
    Tags,
    /// `GET`, `HEAD` of a manifest (end-3).
    ManifestRead,
    /// `PUT` of a manifest (end-7).
    ManifestPut,
    /// `DELETE` of a tag or manifest (end-9).
    ManifestDelete,
    /// `GET`, `HEAD` of a blob (end-2).
    BlobRead,
    /// `DELETE` of a blob (end-10).
    BlobDelete,
    /// `POST` of an upload, monolithic upload or mount (end-4, end-11).
    UploadBegin,
    /// `GET`, `HEAD` of an upload session (end-13).
    UploadStatus,
    /// `PATCH` of an upload session (end-5).
    UploadAppend,
    /// `PUT` of an upload session (end-6).
    UploadFinish,
    /// `DELETE` of an upload session (end-14).
    UploadCancel,
    /// `GET` of referrers (end-12).
    Referrers,
}

/// What somebody needs to use an [`Endpoint`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// To be allowed to use the API at all.
    Base,
    /// To be allowed to list repositories.
    Catalog,
    /// A grant for the action in the repository of the path.
    Repository(Action),
}

impl Endpoint {
    /// Every endpoint.
    pub const ALL: [Endpoint; 16] = [
        Endpoint::Base,
        Endpoint::Catalog,
        Endpoint::Discover,
        Endpoint::RepositoryDiscover,
        Endpoint::Tags,
        Endpoint::ManifestRead,
        Endpoint::ManifestPut,
        Endpoint::ManifestDelete,
        Endpoint::BlobRead,
        Endpoint::BlobDelete,
        Endpoint::UploadBegin,
        Endpoint::UploadStatus,
        Endpoint::UploadAppend,
        Endpoint::UploadFinish,
        Endpoint::UploadCancel,
        Endpoint::Referrers,
    ];

    /// What it needs. An upload session belongs to whoever may push to its repository: its status and its end too.
    pub const fn needs(self) -> Needs {
        match self {
            Endpoint::Base | Endpoint::Discover => Needs::Base,
            Endpoint::Catalog => Needs::Catalog,
            Endpoint::RepositoryDiscover
            | Endpoint::Tags
            | Endpoint::ManifestRead
            | Endpoint::BlobRead
            | Endpoint::Referrers => Needs::Repository(Action::Pull),
            Endpoint::ManifestPut
            | Endpoint::UploadBegin
            | Endpoint::UploadStatus
            | Endpoint::UploadAppend
            | Endpoint::UploadFinish
            | Endpoint::UploadCancel => Needs::Repository(Action::Push),
            Endpoint::ManifestDelete | Endpoint::BlobDelete => Needs::Repository(Action::Delete),
        }
    }

    /// What becomes of a repository that is not there. Only what a push begins with makes one, so that no look at something makes
    /// rows that others must pass over.
    pub const fn missing(self) -> Missing {
        match self {
            Endpoint::ManifestPut | Endpoint::UploadBegin => Missing::Make,
            Endpoint::Base
            | Endpoint::Catalog
            | Endpoint::Discover
            | Endpoint::RepositoryDiscover
            | Endpoint::Tags
            | Endpoint::ManifestRead
            | Endpoint::ManifestDelete
            | Endpoint::BlobRead
            | Endpoint::BlobDelete
            | Endpoint::UploadStatus
            | Endpoint::UploadAppend
            | Endpoint::UploadFinish
            | Endpoint::UploadCancel
            | Endpoint::Referrers => Missing::Refuse,
        }
    }

    /// A short name for logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Endpoint::Base => "base",
            Endpoint::Catalog => "catalog",
            Endpoint::Discover => "discover",
            Endpoint::RepositoryDiscover => "repository_discover",
            Endpoint::Tags => "tags",
            Endpoint::ManifestRead => "manifest_read",
            Endpoint::ManifestPut => "manifest_put",
            Endpoint::ManifestDelete => "manifest_delete",
            Endpoint::BlobRead => "blob_read",
            Endpoint::BlobDelete => "blob_delete",
            Endpoint::UploadBegin => "upload_begin",
            Endpoint::UploadStatus => "upload_status",
            Endpoint::UploadAppend => "upload_append",
            Endpoint::UploadFinish => "upload_finish",
            Endpoint::UploadCancel => "upload_cancel",
            Endpoint::Referrers => "referrers",
        }
    }
}

impl Route {
    /// Parses the raw path of a request.
    ///
    /// # Errors
    /// `UnknownPath` (404), or what is wrong with the name, tag or digest in a path that is otherwise known (400).
    pub fn parse(path: &str) -> Result<Route, Error> {
        let rest = match path.strip_prefix("/v2") {
            Some("") => "",
            Some(rest) => rest.strip_prefix('/').ok_or(Error::UnknownPath)?,
            None => return Err(Error::UnknownPath),
        };
        match rest {
            "" => return Ok(Route::Base),
            "_catalog" => return Ok(Route::Catalog),
            "_oci/ext/discover" => return Ok(Route::Discover),
            _ => {}
        }
        if let Some(name) = rest.strip_suffix("/_oci/ext/discover") {
            return Ok(Route::RepositoryDiscover(repository(name)?));
        }
        if let Some(name) = rest.strip_suffix("/tags/list") {
            return Ok(Route::Tags(repository(name)?));
        }
        // Clients that forget the last slash are served all the same: a redirect would lose the body of a POST.
        if let Some(name) = rest.strip_suffix("/blobs/uploads/").or(rest.strip_suffix("/blobs/uploads")) {
            return Ok(Route::Uploads(repository(name)?));
        }
        let (head, last) = rest.rsplit_once('/').ok_or(Error::UnknownPath)?;
        if let Some(name) = head.strip_suffix("/blobs/uploads") {
            return Ok(Route::Upload(repository(name)?, SessionId::parse(last)));
        }
        if let Some(name) = head.strip_suffix("/manifests") {
            return Ok(Route::Manifest(repository(name)?, reference(&decode(last))?));
        }
        if let Some(name) = head.strip_suffix("/blobs") {
            return Ok(Route::Blob(repository(name)?, Digest::parse(&decode(last))?));
        }
        if let Some(name) = head.strip_suffix("/referrers") {
            return Ok(Route::Referrers(repository(name)?, Digest::parse(&decode(last))?));
        }
        Err(Error::UnknownPath)
    }

    /// What `method` means on this route.
    ///
    /// # Errors
    /// `MethodNotAllowed` (405) with the methods that would do.
    pub fn endpoint(&self, method: &Method) -> Result<Endpoint, Error> {
        let read = method == Method::GET || method == Method::HEAD;
        let read_only = |endpoint: Endpoint| {
            if read { Ok(endpoint) } else { Err(Error::MethodNotAllowed { allow: "GET, HEAD" }) }
        };
        match self {
            Route::Base => read_only(Endpoint::Base),
            Route::Catalog => read_only(Endpoint::Catalog),
            Route::Discover => read_only(Endpoint::Discover),
            Route::RepositoryDiscover(_) => read_only(Endpoint::RepositoryDiscover),
            Route::Tags(_) => read_only(Endpoint::Tags),
            Route::Referrers(..) => read_only(Endpoint::Referrers),
            Route::Manifest(..) if read => Ok(Endpoint::ManifestRead),
            Route::Manifest(..) if method == Method::PUT => Ok(Endpoint::ManifestPut),
            Route::Manifest(..) if method == Method::DELETE => Ok(Endpoint::ManifestDelete),
            Route::Manifest(..) => Err(Error::MethodNotAllowed { allow: "GET, HEAD, PUT, DELETE" }),
            Route::Blob(..) if read => Ok(Endpoint::BlobRead),
            Route::Blob(..) if method == Method::DELETE => Ok(Endpoint::BlobDelete),
            Route::Blob(..) => Err(Error::MethodNotAllowed { allow: "GET, HEAD, DELETE" }),
            Route::Uploads(_) if method == Method::POST => Ok(Endpoint::UploadBegin),
            Route::Uploads(_) => Err(Error::MethodNotAllowed { allow: "POST" }),
            Route::Upload(..) if read => Ok(Endpoint::UploadStatus),
            Route::Upload(..) if method == Method::PATCH => Ok(Endpoint::UploadAppend),
            Route::Upload(..) if method == Method::PUT => Ok(Endpoint::UploadFinish),
            Route::Upload(..) if method == Method::DELETE => Ok(Endpoint::UploadCancel),
            Route::Upload(..) => Err(Error::MethodNotAllowed { allow: "GET, HEAD, PATCH, PUT, DELETE" }),
        }
    }

    /// The repository in the path.
    pub const fn repository(&self) -> Option<&RepositoryName> {
        match self {
            Route::Base | Route::Catalog | Route::Discover => None,
            Route::RepositoryDiscover(name)
            | Route::Tags(name)
            | Route::Manifest(name, _)
            | Route::Blob(name, _)
            | Route::Uploads(name)
            | Route::Upload(name, _)
            | Route::Referrers(name, _) => Some(name),
        }
    }
}

/// Parses the reference of a manifest: with a colon it must be a digest, without one a tag.
///
/// # Errors
/// `DigestInvalid` or `NameInvalid`.
pub fn reference(text: &str) -> Result<Reference, Error> {
    if text.contains(':') {
        Ok(Reference::Digest(Digest::parse(text)?))
    } else {
        Ok(Reference::Tag(Tag::parse(text)?))
    }
}

fn repository(name: &str) -> Result<RepositoryName, Error> {
    if name.is_empty() { Err(Error::UnknownPath) } else { Ok(RepositoryName::parse(name)?) }
}

/// Decodes the last segment. Bytes that are no UTF-8 become U+FFFD, which no digest and no tag contains.
fn decode(segment: &str) -> Cow<'_, str> {
    if !segment.contains('%') {
        return Cow::Borrowed(segment);
    }
    percent_decode_str(segment).decode_utf8_lossy()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    const ID: &str = "30313233-3435-3637-3839-6a6b6c6d6e6f";

    fn name(text: &str) -> RepositoryName {
        RepositoryName::parse(text).unwrap()
    }

    fn status(path: &str) -> u16 {
        match Route::parse(path) {
            Ok(_) => 200,
            Err(error) => error.status().as_u16(),
        }
    }

    #[test]
    fn every_path_of_the_spec_is_parsed() {
        let digest = Digest::parse(&format!("sha256:{HEX}")).unwrap();
        let id = SessionId::parse(ID);
        assert!(id.is_some());
        let cases = [
            ("/v2/".to_owned(), Route::Base),
            ("/v2".to_owned(), Route::Base),
            ("/v2/_catalog".to_owned(), Route::Catalog),
            ("/v2/_oci/ext/discover".to_owned(), Route::Discover),
            ("/v2/a/b/_oci/ext/discover".to_owned(), Route::RepositoryDiscover(name("a/b"))),
            ("/v2/a/tags/list".to_owned(), Route::Tags(name("a"))),
            (
                "/v2/a/b/manifests/v1.0".to_owned(),
                Route::Manifest(name("a/b"), Reference::Tag(Tag::parse("v1.0").unwrap())),
            ),
            (
                format!("/v2/a/b/manifests/sha256:{HEX}"),
                Route::Manifest(name("a/b"), Reference::Digest(digest)),
            ),
            (
                format!("/v2/a/b/manifests/sha256%3A{HEX}"),
                Route::Manifest(name("a/b"), Reference::Digest(digest)),
            ),
            (format!("/v2/a/blobs/sha256:{HEX}"), Route::Blob(name("a"), digest)),
            ("/v2/a/blobs/uploads/".to_owned(), Route::Uploads(name("a"))),
            ("/v2/a/blobs/uploads".to_owned(), Route::Uploads(name("a"))),
            (format!("/v2/a/blobs/uploads/{ID}"), Route::Upload(name("a"), id)),
            ("/v2/a/blobs/uploads/x".to_owned(), Route::Upload(name("a"), None)),
            (format!("/v2/a/referrers/sha256:{HEX}"), Route::Referrers(name("a"), digest)),
            // Words of the grammar may be parts of a name.
            ("/v2/manifests/tags/list".to_owned(), Route::Tags(name("manifests"))),
            ("/v2/a/tags/list/tags/list".to_owned(), Route::Tags(name("a/tags/list"))),
            (
                "/v2/a/blobs/uploads/manifests/x".to_owned(),
                Route::Manifest(name("a/blobs/uploads"), Reference::Tag(Tag::parse("x").unwrap())),
            ),
        ];
        for (path, route) in cases {
            assert_eq!(Route::parse(&path).unwrap(), route, "{path}");
        }
    }

    #[test]
    fn no_odd_spelling_reaches_a_route() {
        for path in [
            "",
            "/",
            "/v1/",
            "/v22",
            "/v2x/_catalog",
            "//v2/_catalog",
            "/v2//_catalog",
            "/v2//",
            "/v2/_catalog/",
            "/v2/./_catalog",
            "/v2/x/../_catalog",
            "/v2/%5fcatalog",
            "/v2/%5Fcatalog",
            "/V2/_catalog",
            "/v2/_catalog;x",
            "/v2/_Catalog",
            "/v2/_oci/ext/discover/",
            "/v2/tags/list",
            "/v2//tags/list",
            "/v2/a/tags/list/",
            "/v2/a/manifests",
            "/v2/a",
            "/v2/a/blobs",
            "/v2/a/blobs/uploads//",
        ] {
            assert!(matches!(status(path), 404 | 400), "{path}");
            assert!(!matches!(Route::parse(path), Ok(Route::Catalog | Route::Base)), "{path}");
        }
        for path in ["/v2/_catalog/", "//v2/_catalog", "/v2//_catalog", "/v2/./_catalog", "/V2/_catalog"] {
            assert_eq!(status(path), 404, "{path}");
        }
    }

    #[test]
    fn malformed_names_digests_and_tags_are_400() {
        let long_name = "a".repeat(256);
        let long_tag = "t".repeat(129);
        for path in [
            "/v2/A/tags/list".to_owned(),
            "/v2/a%2Fb/tags/list".to_owned(),
            "/v2/../tags/list".to_owned(),
            "/v2/a/../b/tags/list".to_owned(),
            "/v2/a\\b/tags/list".to_owned(),
            "/v2/a//b/tags/list".to_owned(),
            "/v2/pa/secret//tags/list".to_owned(),
            "/v2/pa/secret%00/tags/list".to_owned(),
            format!("/v2/{long_name}/tags/list"),
            format!("/v2/a/manifests/{long_tag}"),
            "/v2/a/manifests/..".to_owned(),
            "/v2/a/manifests/%2e%2e%2f".to_owned(),
            "/v2/a/manifests/..%2f".to_owned(),
            "/v2/a/manifests/%252e".to_owned(),
            "/v2/a/manifests/a%0d%0ab".to_owned(),
            "/v2/a/manifests/%ff".to_owned(),
            "/v2/a/manifests/%00".to_owned(),
            "/v2/a/manifests/\u{430}".to_owned(),
            "/v2/a/manifests/".to_owned(),
            "/v2/a/manifests/sha256:baddigeststring".to_owned(),
            "/v2/a/blobs/sha256:../x".to_owned(),
            format!("/v2/a/blobs/md5:{HEX}"),
            format!("/v2/a/blobs/sha256:{}", &HEX[1..]),
            format!("/v2/a/blobs/sha256:{HEX}0"),
            format!("/v2/a/blobs/sha256:{}", HEX.to_uppercase()),
            format!("/v2/a/referrers/sha256:{HEX}/"),
            "/v2/a/referrers/latest".to_owned(),
        ] {
            assert!(matches!(status(&path), 400 | 404), "{path}: {}", status(&path));
            assert!(Route::parse(&path).is_err(), "{path}");
        }
        assert_eq!(status("/v2/a/manifests/sha256:baddigeststring"), 400);
        assert_eq!(status("/v2/A/tags/list"), 400);
    }

    #[test]
    fn every_endpoint_is_classified_and_reached_by_some_route_and_method() {
        let routes = [
            "/v2/".to_owned(),
            "/v2/_catalog".to_owned(),
            "/v2/_oci/ext/discover".to_owned(),
            "/v2/a/_oci/ext/discover".to_owned(),
            "/v2/a/tags/list".to_owned(),
            "/v2/a/manifests/x".to_owned(),
            format!("/v2/a/blobs/sha256:{HEX}"),
            "/v2/a/blobs/uploads/".to_owned(),
            format!("/v2/a/blobs/uploads/{ID}"),
            format!("/v2/a/referrers/sha256:{HEX}"),
        ];
        let methods = [
            Method::GET,
            Method::HEAD,
            Method::POST,
            Method::PUT,
            Method::PATCH,
            Method::DELETE,
            Method::OPTIONS,
            Method::TRACE,
            Method::CONNECT,
        ];
        let mut reached = Vec::new();
        for path in &routes {
            let route = Route::parse(path).unwrap();
            for method in &methods {
                match route.endpoint(method) {
                    Ok(endpoint) => {
                        // Whatever changes something needs more than pull, and whatever names a repository needs a grant.
                        let needs = endpoint.needs();
                        let writes = !matches!(*method, Method::GET | Method::HEAD);
                        assert!(!writes || matches!(needs, Needs::Repository(Action::Push | Action::Delete)));
                        assert_eq!(route.repository().is_some(), matches!(needs, Needs::Repository(_)));
                        reached.push(endpoint);
                    }
                    Err(error) => {
                        assert_eq!(error.status(), 405, "{method} {path}");
                        let Error::MethodNotAllowed { allow } = error else { panic!("{error}") };
                        assert!(!allow.split(", ").any(|allowed| allowed == method.as_str()));
                    }
                }
            }
        }
        for endpoint in Endpoint::ALL {
            assert!(reached.contains(&endpoint), "{endpoint:?} is not reached");
        }
        assert!(reached.iter().all(|endpoint| Endpoint::ALL.contains(endpoint)));
    }
}
