//! The registry: takes a request, finds out what it is and whether it may be, and has it answered.
//!
//! Order of refusals: path and method, name and digest syntax, credentials, rights, session, announced size; only then is
//! the body read. So nothing that a refused client sends is waited for, and `100 Continue` goes out only to who may go on.

use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, header};
use http_body_util::BodyExt;

use crate::access::{AccessControl, AccessError, Action, Grant, Identity, Missing};
use crate::answer;
use crate::api;
use crate::blobs::Blobs;
use crate::body::{self, BoxError, Incoming, RequestBody, ResponseBody};
use crate::catalog::Catalog;
use crate::error::Error;
use crate::limits::Limits;
use crate::name::{NameError, RepositoryName};
use crate::query::Query;
use crate::route::{Endpoint, Needs, Route};

/// The distribution API over three boundaries.
pub struct Registry {
    pub(crate) blobs: Arc<dyn Blobs>,
    pub(crate) catalog: Arc<dyn Catalog>,
    pub(crate) access: Arc<dyn AccessControl>,
    pub(crate) limits: Limits,
}

/// A request whose path, method and caller are known.
pub(crate) struct Call<'a> {
    pub(crate) parts: &'a Parts,
    pub(crate) query: Query<'a>,
    pub(crate) identity: &'a Identity,
}

impl Call<'_> {
    pub(crate) fn headers(&self) -> &HeaderMap {
        &self.parts.headers
    }

    pub(crate) fn is_head(&self) -> bool {
        self.parts.method == Method::HEAD
    }
}

impl Registry {
    /// A registry over these.
    pub fn new(
        blobs: Arc<dyn Blobs>,
        catalog: Arc<dyn Catalog>,
        access: Arc<dyn AccessControl>,
        limits: Limits,
    ) -> Registry {
        Registry { blobs, catalog, access, limits }
    }

    /// Answers a request whose path begins with `/v2`. The answer's extensions hold the [`Endpoint`], when there is one, for
    /// logs and metrics.
    ///
    /// Never fails: every refusal is an answer. May be dropped at any await; a session then stands at what it has received,
    /// and a manifest is either visible or not.
    pub async fn handle<B>(&self, request: Request<B>) -> Response<ResponseBody>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let (parts, body) = request.into_parts();
        // Most requests have none, and nothing costs no memory.
        let body = if body.is_end_stream() { body::empty() } else { body.map_err(Into::into).boxed_unsync() };
        self.answer(&parts, body).await
    }

    async fn answer(&self, parts: &Parts, body: RequestBody) -> Response<ResponseBody> {
        let mut endpoint = None;
        let result = self.serve(parts, body, &mut endpoint).await;
        let mut response = result.unwrap_or_else(|error| {
            let status = error.status().as_u16();
            match error.internal() {
                Some(text) => tracing::error!(status, code = error.code(), error = %text, "request failed"),
                None => tracing::debug!(status, code = error.code(), error = %error, "request refused"),
            }
            error.into_response()
        });
        answer::common_headers(response.headers_mut());
        if let Some(endpoint) = endpoint {
            response.extensions_mut().insert(endpoint);
        }
        if parts.method == Method::HEAD {
            // The headers, Content-Length among them, are those of the GET.
            *response.body_mut() = body::empty();
        }
        response
    }

    async fn serve(
        &self,
        parts: &Parts,
        body: RequestBody,
        found: &mut Option<Endpoint>,
    ) -> Result<Response<ResponseBody>, Error> {
        let route = Route::parse(parts.uri.path()).map_err(|error| absent_by_name(error, &parts.method))?;
        let endpoint = route.endpoint(&parts.method)?;
        *found = Some(endpoint);
        let query = Query::new(parts.uri.query());
        let scopes = || scopes(&route, endpoint, query);
        let identity = self
            .access
            .identify(&parts.headers, parts.extensions.get().copied())
            .await
            .map_err(|error| self.refusal(error, parts, &scopes()))?;
        let call = Call { parts, query, identity: &identity };
        // What takes a body is boxed: its timers and buffers would make the future of every small answer large.
        match (route, endpoint.needs()) {
            (Route::Base, _) => {
                self.access.authorize_base(&identity).map_err(|error| self.refusal(error, parts, &[]))?;
                Ok(api::base::answer())
            }
            (Route::Discover, _) => {
                self.access.authorize_base(&identity).map_err(|error| self.refusal(error, parts, &[]))?;
                Ok(api::extensions::answer())
            }
            (Route::Catalog, _) => {
                self.access
                    .authorize_catalog(&identity)
                    .await
                    .map_err(|error| self.refusal(error, parts, &[CATALOG_SCOPE.to_owned()]))?;
                api::repositories::list(self, &call).await
            }
            (Route::RepositoryDiscover(name), Needs::Repository(action)) => {
                self.grant(&call, action, &name, endpoint.missing(), &[]).await?;
                Ok(api::extensions::answer())
            }
            (Route::Tags(name), Needs::Repository(action)) => {
                let grant = self.grant(&call, action, &name, endpoint.missing(), &[]).await?;
                api::tags::list(self, &call, &grant).await
            }
            (Route::Referrers(name, subject), Needs::Repository(action)) => {
                match self.grant(&call, action, &name, endpoint.missing(), &[]).await {
                    Ok(grant) => api::referrers::list(self, &call, &grant, &subject).await,
                    // A listing of referrers is never 404 (distribution-spec, "Listing referrers"). What does not exist
                    // and what must look so have none.
                    Err(Error::RepositoryUnknown(_)) => api::referrers::none(&call),
                    Err(error) => Err(error),
                }
            }
            (Route::Manifest(name, reference), Needs::Repository(action)) => {
                let grant = self.grant(&call, action, &name, endpoint.missing(), &[]).await?;
                if endpoint == Endpoint::ManifestPut {
                    let body = Incoming::new(body, &self.limits);
                    Box::pin(api::manifests::put(self, &call, &grant, &reference, body)).await
                } else if endpoint == Endpoint::ManifestDelete {
                    api::manifests::delete(self, &call, &grant, &reference).await
                } else {
                    api::manifests::read(self, &call, &grant, &reference).await
                }
            }
            (Route::Blob(name, digest), Needs::Repository(action)) => {
                let grant = self.grant(&call, action, &name, endpoint.missing(), &[]).await?;
                if endpoint == Endpoint::BlobDelete {
                    api::blobs::delete(self, &call, &grant, &digest).await
                } else {
                    api::blobs::read(self, &call, &grant, &digest).await
                }
            }
            (Route::Uploads(name), Needs::Repository(action)) => {
                let grant =
                    self.grant(&call, action, &name, endpoint.missing(), &mount_source(query)).await?;
                Box::pin(api::uploads::begin(self, &call, &grant, Incoming::new(body, &self.limits))).await
            }
            (Route::Upload(name, id), Needs::Repository(action)) => {
                let grant = self.grant(&call, action, &name, endpoint.missing(), &[]).await;
                let grant = grant.map_err(no_session)?;
                let id = id.ok_or(Error::UploadUnknown)?;
                let body = Incoming::new(body, &self.limits);
                if endpoint == Endpoint::UploadAppend {
                    Box::pin(api::uploads::append(self, &call, &grant, id, body)).await
                } else if endpoint == Endpoint::UploadFinish {
                    Box::pin(api::uploads::finish(self, &call, &grant, id, body)).await
                } else if endpoint == Endpoint::UploadCancel {
                    api::uploads::cancel(self, &grant, id).await
                } else {
                    api::uploads::status(self, &grant, id).await
                }
            }
            // Only `Needs::Repository` goes with a name (a test in `route` holds this). Deny by default all the same.
            (
                Route::RepositoryDiscover(name)
                | Route::Tags(name)
                | Route::Referrers(name, _)
                | Route::Manifest(name, _)
                | Route::Blob(name, _)
                | Route::Uploads(name)
                | Route::Upload(name, _),
                Needs::Base | Needs::Catalog,
            ) => Err(Error::RepositoryUnknown(name)),
        }
    }

    /// Leave to do `action` in the repository `name`; `sources` are named in the challenge too.
    async fn grant(
        &self,
        call: &Call<'_>,
        action: Action,
        name: &RepositoryName,
        missing: Missing,
        sources: &[RepositoryName],
    ) -> Result<Grant, Error> {
        self.access.authorize(call.identity, action, name, missing).await.map_err(|error| {
            let mut scopes = vec![scope(name, action)];
            scopes.extend(sources.iter().map(|source| scope(source, Action::Pull)));
            self.refusal(error, call.parts, &scopes)
        })
    }

    /// Asks once more for the right behind a grant, right before something is committed by it: a body may take hours to arrive,
    /// and who lost the right meanwhile, or the password that they came with, links nothing. The token may have run out meanwhile;
    /// it was good when the request began.
    ///
    /// # Errors
    /// As without the right. `RepositoryUnknown` when the repository went meanwhile, or another has the name by now.
    pub(crate) async fn confirm(&self, call: &Call<'_>, grant: &Grant) -> Result<(), Error> {
        let now = self.grant(call, grant.action, &grant.name, Missing::Refuse, &[]).await?;
        if now.repository == grant.repository {
            Ok(())
        } else {
            Err(Error::RepositoryUnknown(grant.name.clone()))
        }
    }

    fn refusal(&self, error: AccessError, parts: &Parts, scopes: &[String]) -> Error {
        let challenges = match &error {
            AccessError::Unauthenticated { error, .. } => self.access.challenge(host(parts), scopes, *error),
            AccessError::Denied { .. }
            | AccessError::UnknownRepository { .. }
            | AccessError::TooMany { .. }
            | AccessError::Unavailable => Vec::new(),
        };
        Error::access(error, challenges)
    }
}

/// Scope of `/v2/_catalog` in a challenge (distribution token specification).
const CATALOG_SCOPE: &str = "registry:catalog:*";

/// The scopes that a request needs, for the challenge when not even its credentials are good.
fn scopes(route: &Route, endpoint: Endpoint, query: Query<'_>) -> Vec<String> {
    match (endpoint.needs(), route.repository()) {
        (Needs::Repository(action), Some(name)) => {
            let mut scopes = vec![scope(name, action)];
            if endpoint == Endpoint::UploadBegin {
                scopes.extend(mount_source(query).iter().map(|source| scope(source, Action::Pull)));
            }
            scopes
        }
        (Needs::Catalog, _) => vec![CATALOG_SCOPE.to_owned()],
        (Needs::Base | Needs::Repository(_), _) => Vec::new(),
    }
}

/// `repository:NAME:ACTIONS`. A push asks for pull too: clients look before they upload, with the same token.
fn scope(name: &RepositoryName, action: Action) -> String {
    let actions = match action {
        Action::Pull => "pull",
        Action::Push => "pull,push",
        Action::Delete => "delete",
    };
    format!("repository:{name}:{actions}")
}

/// What is no tag names no manifest: to who reads or deletes it is unknown. Only who would make it is told the rule.
fn absent_by_name(error: Error, method: &Method) -> Error {
    let no_tag = matches!(error, Error::NameInvalid(NameError::Tag));
    if no_tag && *method != Method::PUT { Error::ManifestUnknown } else { error }
}

/// A repository that is not there has no sessions: to who may push it is the session that is unknown.
fn no_session(error: Error) -> Error {
    if matches!(error, Error::RepositoryUnknown(_)) { Error::UploadUnknown } else { error }
}

/// The repository that a mount names as its source, when it is a name at all.
fn mount_source(query: Query<'_>) -> Vec<RepositoryName> {
    match (query.first("mount"), query.first("from")) {
        (Ok(Some(_)), Ok(Some(from))) => RepositoryName::parse(&from).ok().into_iter().collect(),
        _ => Vec::new(),
    }
}

/// The authority that the client used: of HTTP/2's `:authority`, or the `Host` header.
fn host(parts: &Parts) -> Option<&str> {
    match parts.uri.authority() {
        Some(authority) => Some(authority.as_str()),
        None => parts.headers.get(header::HOST)?.to_str().ok(),
    }
}
