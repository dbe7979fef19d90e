//! The boundary to whoever decides: distribution asks "may they?" and never learns why.
//!
//! What must stay true: every handler that reads or writes a repository holds a [`Grant`] for it, and a `Grant` comes only
//! from [`AccessControl::authorize`] (or, for a mount, [`AccessControl::sources`]). [`crate::catalog::Catalog`] and
//! [`crate::blobs::Blobs`] take what is inside a grant, never a name from the wire.

use std::any::Any;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use http::HeaderMap;
use taffrail_blobstore::{RepositoryKey, Uploader};

use crate::name::RepositoryName;

/// Who asks. Opaque here; core knows what is inside.
#[derive(Clone)]
pub struct Identity(Arc<dyn Any + Send + Sync>);

impl Identity {
    /// Wraps what the access control wants to see again.
    pub fn new<T: Any + Send + Sync>(subject: T) -> Identity {
        Identity(Arc::new(subject))
    }

    /// What was wrapped, when it is a `T`.
    pub fn downcast<T: Any + Send + Sync>(&self) -> Option<&T> {
        self.0.downcast_ref()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity")
    }
}

/// Where a request comes from, as far as it can be trusted. The server puts it into the request's extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientAddress(pub IpAddr);

/// What they want to do with a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Action {
    /// Read manifests, blobs, tags, referrers.
    Pull,
    /// Upload blobs, put manifests, move tags.
    Push,
    /// Delete tags, manifests, blobs.
    Delete,
}

impl Action {
    /// The word for it in a token scope (distribution token specification, "scope").
    pub const fn scope(self) -> &'static str {
        match self {
            Action::Pull => "pull",
            Action::Push => "push",
            Action::Delete => "delete",
        }
    }
}

/// What becomes of a repository that may be pushed to and is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// It is made.
    Make,
    /// It stays away: the answer is [`AccessError::UnknownRepository`].
    Refuse,
}

/// Leave to do one [`Action`] in one repository, resolved to its immutable key.
#[derive(Clone, Debug)]
pub struct Grant {
    /// The repository's key in engine and catalog. A repository made anew under an old name has another one.
    pub repository: RepositoryKey,
    /// Its name when the grant was given.
    pub name: RepositoryName,
    /// What may be done.
    pub action: Action,
}

/// Where somebody may pull from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sources {
    /// From every repository: nothing is hidden from them.
    Everywhere,
    /// From these.
    These(Vec<RepositoryKey>),
}

/// Why a request is refused. The sentences reach the client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AccessError {
    /// Nobody, or nobody that could be verified, is asking: 401 with a challenge. `error` is the `error` attribute of the
    /// challenge (RFC 6750 section 3.1), absent when there were no credentials.
    #[error("{message}")]
    Unauthenticated {
        /// `invalid_token`, `insufficient_scope`, or none.
        error: Option<&'static str>,
        /// What to do.
        message: String,
    },
    /// Known, but not allowed: 403 `DENIED`.
    #[error("{message}")]
    Denied {
        /// What to do.
        message: String,
    },
    /// The repository does not exist, or must look so to this caller: 404 `NAME_UNKNOWN`.
    #[error("repository {name} is not known to this registry")]
    UnknownRepository {
        /// The name asked for.
        name: RepositoryName,
    },
    /// Too many at once for this identity: 429 with `Retry-After`.
    #[error("too many requests; try again in {retry_after_secs} s")]
    TooMany {
        /// Seconds.
        retry_after_secs: u32,
    },
    /// The decision cannot be taken now: 503.
    #[error("the registry cannot verify credentials at this moment; try again")]
    Unavailable,
}

/// The one authorizer, as distribution sees it.
#[async_trait]
pub trait AccessControl: Send + Sync + 'static {
    /// Verifies the `Authorization` header. No header is the anonymous identity, not an error. `client` is whom failures are
    /// counted against.
    ///
    /// # Errors
    /// `Unauthenticated`, `TooMany`, `Unavailable`.
    async fn identify(
        &self,
        headers: &HeaderMap,
        client: Option<ClientAddress>,
    ) -> Result<Identity, AccessError>;

    /// May `identity` use the API at all? `GET /v2/` answers 401 to the anonymous, because `docker login` relies on it.
    ///
    /// # Errors
    /// `Unauthenticated`.
    fn authorize_base(&self, identity: &Identity) -> Result<(), AccessError>;

    /// Whose upload sessions those of `identity` are counted with: all of one user's together, by whatever credential.
    fn uploader(&self, identity: &Identity) -> Uploader;

    /// May `identity` do `action` in `repository`, with the credentials that they gave when the request began? `missing` counts for
    /// a push that its project allows.
    ///
    /// # Errors
    /// Any [`AccessError`]; deny is the default.
    async fn authorize(
        &self,
        identity: &Identity,
        action: Action,
        repository: &RepositoryName,
        missing: Missing,
    ) -> Result<Grant, AccessError>;

    /// May `identity` page through `/v2/_catalog`? What is listed is filtered by [`crate::catalog::Catalog::repositories`].
    ///
    /// # Errors
    /// `Unauthenticated`, `Denied`.
    async fn authorize_catalog(&self, identity: &Identity) -> Result<(), AccessError>;

    /// Where `identity` may pull from, at most `limit` repositories, those of their own projects first: what a mount without
    /// `from` looks at. What it does must depend on the caller alone.
    async fn sources(&self, identity: &Identity, limit: usize) -> Sources;

    /// The values of `WWW-Authenticate` for a 401 on the given scopes (`repository:NAME:pull,push`, joined by a space
    /// inside one quoted `scope`). `host` is the request's own authority, for a realm when no external URL is configured.
    fn challenge(&self, host: Option<&str>, scopes: &[String], error: Option<&str>) -> Vec<String>;
}
