//! The REST API: Harbor's paths and shapes under `/api/v2.0`, and the token service.
//!
//! What must stay true: every route is in [`routes`], with what it needs; each handler asks the authorizer before it reads or
//! writes. What is not built answers 501. A browser that remembers a password does nothing with it for pages of other sites: what
//! changes something takes JSON, which a form cannot send, and is refused when the browser says that another site is behind it.

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::{HeaderValue, Method, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::MethodRouter;

pub mod error;
pub mod extract;
pub mod page;

use error::ApiError;

use crate::authorizer::Authorizer;
use crate::authorizer::role_table::{ProjectAction, SystemAction};
use crate::context::Context;
use crate::db::Database;
use crate::identity::accounts::Accounts;
use crate::member::store::MemberStore;
use crate::project::store::ProjectStore;
use crate::token::claims::Tokens;
use crate::user::store::UserStore;
use crate::{member, project, system, token, user};

/// Prefix of Harbor's API.
pub const PREFIX: &str = "/api/v2.0";

/// Largest JSON body in bytes; nothing in the API needs a tenth of it.
pub const JSON_BYTES_MAX: usize = 1024 * 1024;

/// What the handlers share.
#[derive(Clone, Debug)]
pub struct ApiState {
    /// Who may.
    pub authorizer: Authorizer,
    /// Names and passwords.
    pub accounts: Accounts,
    /// Tokens.
    pub tokens: Tokens,
    /// Projects.
    pub projects: ProjectStore,
    /// Members.
    pub members: MemberStore,
    /// Users.
    pub users: UserStore,
    /// The database, for its health.
    pub database: Database,
    /// Time and randomness.
    pub context: Context,
    /// The name under which clients reach the registry, for `systeminfo`.
    pub external_url: Option<String>,
}

/// What a route asks of who calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Nothing: it tells nothing that is not public.
    Nothing,
    /// A right outside of projects.
    System(SystemAction),
    /// A right in the project of the path.
    Project(ProjectAction),
}

/// A route with what each of its methods needs.
pub struct Classified {
    /// Path, in axum's syntax.
    pub path: &'static str,
    /// What each method needs.
    pub methods: &'static [(&'static str, Needs)],
    /// Who answers.
    pub handler: MethodRouter<ApiState>,
}

/// Every route.
pub fn routes() -> Vec<Classified> {
    let mut routes = system::api::routes();
    routes.extend(project::api::routes());
    routes.extend(member::api::routes());
    routes.extend(user::api::routes());
    routes.extend(token::service::routes());
    routes
}

/// All of it as one router.
pub fn router(state: ApiState) -> Router {
    let mut router = Router::new();
    for route in routes() {
        router = router.route(route.path, route.handler);
    }
    router
        .route(PREFIX, axum::routing::any(not_built))
        .route("/api/v2.0/", axum::routing::any(not_built))
        .route("/api/v2.0/{*rest}", axum::routing::any(not_built))
        .fallback(unknown_path)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(DefaultBodyLimit::max(JSON_BYTES_MAX))
        .layer(axum::middleware::from_fn(refuse_other_sites))
        .layer(axum::middleware::map_response(with_security_headers))
        .with_state(state)
}

async fn not_built(uri: Uri) -> ApiError {
    ApiError::NotImplemented(format!("{} is not built yet", uri.path()))
}

async fn unknown_path() -> ApiError {
    ApiError::NotFound("no such path".to_owned())
}

async fn method_not_allowed() -> ApiError {
    ApiError::MethodNotAllowed
}

/// Refuses what changes something when a browser sends it for a page of another site (W3C Fetch Metadata, "Sec-Fetch-Site"). Clients
/// other than browsers do not send the header. The token service changes nothing, and its answer is not for that page to read.
async fn refuse_other_sites(request: Request, next: Next) -> Result<Response, ApiError> {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    let crosses = request.headers().get("sec-fetch-site").is_some_and(|site| site == "cross-site");
    if crosses && !reads && request.uri().path().starts_with(PREFIX) {
        return Err(ApiError::CrossSite);
    }
    Ok(next.run(request).await)
}

/// Headers that keep a browser from doing anything with an answer but showing it to the page that asked.
async fn with_security_headers(response: Response) -> Response {
    let mut response = response.into_response();
    let headers = response.headers_mut();
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "same-origin"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}
