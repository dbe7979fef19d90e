//! `/service/token`: tokens for `/v2`, by distribution's token specification (GET) and its OAuth2 form (POST).
//!
//! What must stay true: a token grants the intersection of what was asked for and what the subject may do; what may not be
//! granted is left out without a word, because clients ask for more than they need.

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::json;
use taffrail_distribution::access::ClientAddress;

use super::claims::{Access, LIFE_SECS, TokenError};
use super::scope::{self, Scope};
use crate::api::error::ApiError;
use crate::api::extract::Caller;
use crate::api::page::Parameters;
use crate::api::{ApiState, Classified, Needs};
use crate::authorizer::role_table::SystemAction;
use crate::identity::Identity;

/// Largest form of a token request in bytes: 64 scopes of the longest names.
const FORM_BYTES_MAX: usize = 64 * 1024;

/// The routes of the token service.
pub fn routes() -> Vec<Classified> {
    vec![
        Classified {
            path: "/service/token",
            methods: &[("GET", Needs::Nothing), ("POST", Needs::Nothing)],
            handler: get(by_query).post(by_form),
        },
        Classified { path: "/service/token/jwks", methods: &[("GET", Needs::Nothing)], handler: get(keys) },
    ]
}

async fn by_query(
    State(state): State<ApiState>,
    Caller(identity): Caller,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let parameters = Parameters::parse(query.as_deref());
    issue(&state, &identity, &parameters).await
}

async fn by_form(
    State(state): State<ApiState>,
    client: Option<axum::Extension<ClientAddress>>,
    headers: HeaderMap,
    body: bytes::Bytes,
) -> Result<Response, ApiError> {
    if body.len() > FORM_BYTES_MAX {
        return Err(ApiError::TooLarge);
    }
    let form = headers.get("content-type").is_some_and(|kind| {
        kind.to_str().is_ok_and(|kind| kind.starts_with("application/x-www-form-urlencoded"))
    });
    let text = std::str::from_utf8(&body).ok().filter(|_| form);
    let text =
        text.ok_or_else(|| ApiError::BadRequest("send application/x-www-form-urlencoded".to_owned()))?;
    let parameters = Parameters::parse(Some(text));
    match parameters.first("grant_type") {
        Some("password") => {
            let (name, password) = (parameters.first("username"), parameters.first("password"));
            let (Some(name), Some(password)) = (name, password) else {
                return Err(ApiError::BadRequest(
                    "the password grant takes username and password".to_owned(),
                ));
            };
            let address = client.map(|client| client.0.0);
            let verified = state.accounts.verify(name, password, address).await?;
            issue(&state, &Identity::of_password(verified.user.id, verified.epoch), &parameters).await
        }
        // Clients that are told so ask again by GET, with the password.
        _ => Err(ApiError::BadRequest(
            "unsupported grant_type; use password, or GET with Basic credentials".to_owned(),
        )),
    }
}

async fn issue(state: &ApiState, identity: &Identity, parameters: &Parameters) -> Result<Response, ApiError> {
    let scopes =
        scope::parse_all(parameters.all("scope")).map_err(|error| ApiError::BadRequest(error.to_string()))?;
    let mut access = Vec::new();
    for scope in scopes {
        match scope {
            Scope::Repository { name, actions } => {
                let allowed = state.authorizer.allowed(&identity.subject, &name, &actions).await?;
                if let Some((project, actions)) = allowed.filter(|(_, actions)| !actions.is_empty()) {
                    access.push(Access::repository(name.as_str(), project, &actions));
                }
            }
            Scope::Catalog => {
                if state.authorizer.authorize_system(identity, SystemAction::Catalog).await.is_ok() {
                    access.push(Access::catalog());
                }
            }
        }
    }
    let issued =
        state.tokens.issue(&identity.subject, identity.epoch(), access).map_err(|error| match error {
            TokenError::TooLong => ApiError::BadRequest(error.to_string()),
            TokenError::Signing => ApiError::Internal(error.to_string()),
        })?;
    let issued_at = jiff::Timestamp::from_microsecond(issued.issued_us / 1_000_000 * 1_000_000)
        .map_or_else(|_| String::new(), |time| time.to_string());
    // Old clients read `token`, OAuth2 ones `access_token`.
    let body = json!({
        "token": issued.token,
        "access_token": issued.token,
        "expires_in": LIFE_SECS,
        "issued_at": issued_at,
    });
    Ok(Json(body).into_response())
}

async fn keys(State(state): State<ApiState>) -> Response {
    Json(json!({ "keys": state.tokens.keys().public() })).into_response()
}
