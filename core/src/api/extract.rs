//! What handlers take out of a request: who calls, and a JSON body.

use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use serde::de::DeserializeOwned;
use taffrail_distribution::access::ClientAddress;

use super::ApiState;
use super::error::ApiError;
use crate::authorizer::access_control::{Given, given, name_and_password};
use crate::identity::Identity;

/// Who calls the REST API: a user by name and password, or nobody. A bearer token is for `/v2` alone, and is refused.
#[derive(Clone, Debug)]
pub struct Caller(pub Identity);

impl FromRequestParts<ApiState> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &ApiState) -> Result<Caller, ApiError> {
        let client = parts.extensions.get::<ClientAddress>().map(|client| client.0);
        match given(&parts.headers) {
            Given::Nothing => Ok(Caller(Identity::ANONYMOUS)),
            Given::Basic(encoded) => {
                let (name, password) = name_and_password(encoded).ok_or_else(|| {
                    ApiError::Unauthenticated("the Basic credentials are malformed".to_owned())
                })?;
                let verified = state.accounts.verify(&name, &password, client).await?;
                Ok(Caller(Identity::of_password(verified.user.id, verified.epoch)))
            }
            Given::Bearer(_) | Given::Odd => {
                Err(ApiError::Unauthenticated("the API takes Basic credentials".to_owned()))
            }
        }
    }
}

/// The parameters in a path.
#[derive(Clone, Copy, Debug)]
pub struct Segments<T>(pub T);

impl<T: DeserializeOwned + Send> FromRequestParts<ApiState> for Segments<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &ApiState) -> Result<Segments<T>, ApiError> {
        match Path::<T>::from_request_parts(parts, state).await {
            Ok(Path(segments)) => Ok(Segments(segments)),
            Err(_) => {
                Err(ApiError::BadRequest("the path is not what this takes: ids are numbers".to_owned()))
            }
        }
    }
}

/// A JSON body of a known shape, sent as JSON; a field that is not of it is refused.
#[derive(Clone, Copy, Debug)]
pub struct Body<T>(pub T);

impl<T: DeserializeOwned> FromRequest<ApiState> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &ApiState) -> Result<Body<T>, ApiError> {
        // Nothing that takes a body is for the anonymous: they are told so before a byte of it is read.
        if !request.headers().contains_key(AUTHORIZATION) {
            return Err(ApiError::Unauthenticated("log in to do this".to_owned()));
        }
        if !is_json(request.headers()) {
            return Err(ApiError::NotJson);
        }
        let bytes = bytes::Bytes::from_request(request, state).await.map_err(|rejection| {
            if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
                ApiError::TooLarge
            } else {
                ApiError::BadRequest("the body could not be read".to_owned())
            }
        })?;
        serde_json::from_slice(&bytes)
            .map(Body)
            .map_err(|error| ApiError::BadRequest(format!("the body is not what this takes: {error}")))
    }
}

/// Whether a body says that it is JSON: `application/json` or another type in its syntax (RFC 6839 section 3.1), with any parameters.
///
/// A page of another site can have a browser send what an HTML form can send, and the password that the browser remembers along
/// with it; for this type the browser asks us first (Fetch, "CORS-safelisted request-header"), and gets no leave.
fn is_json(headers: &HeaderMap) -> bool {
    let Some(kind) = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()) else { return false };
    let kind = kind.split_once(';').map_or(kind, |(kind, _)| kind).trim().to_ascii_lowercase();
    kind.strip_prefix("application/").is_some_and(|subtype| subtype == "json" || subtype.ends_with("+json"))
}
