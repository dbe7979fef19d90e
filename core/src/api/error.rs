//! Refusals of the REST API, in Harbor's shape: `{"errors":[{"code":"NOT_FOUND","message":"…"}]}`.
//!
//! Status and code are chosen here. What is inside of the registry goes to the log.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::authorizer::Refused;
use crate::db::DbError;
use crate::identity::accounts::AccountError;

/// Why a request is refused.
#[derive(Debug)]
pub enum ApiError {
    /// It makes no sense: 400, with what to do.
    BadRequest(String),
    /// 401.
    Unauthenticated(String),
    /// 403.
    Forbidden,
    /// A page of another site had a browser ask for a change: 403.
    CrossSite,
    /// 404.
    NotFound(String),
    /// 405.
    MethodNotAllowed,
    /// 409.
    Conflict(String),
    /// 412: something must be done first.
    Precondition(String),
    /// 413.
    TooLarge,
    /// A body that does not say that it is JSON: 415.
    NotJson,
    /// 429.
    TooMany {
        /// Seconds.
        retry_after_secs: u32,
    },
    /// 500 without a cause of the client's; the text goes to the log.
    Internal(String),
    /// 501.
    NotImplemented(String),
    /// 503; the text goes to the log.
    Unavailable(String),
    /// 507.
    NoSpace,
}

impl From<DbError> for ApiError {
    fn from(error: DbError) -> ApiError {
        match error {
            DbError::NoSpace => ApiError::NoSpace,
            DbError::Conflict => ApiError::Conflict("it exists already".to_owned()),
            DbError::Unavailable(text) => ApiError::Unavailable(text),
        }
    }
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> ApiError {
        match refused {
            Refused::Unauthenticated => ApiError::Unauthenticated("log in to do this".to_owned()),
            Refused::NotFound => ApiError::NotFound("it does not exist, or you may not see it".to_owned()),
            Refused::Forbidden => ApiError::Forbidden,
            Refused::Database(error) => error.into(),
        }
    }
}

impl From<AccountError> for ApiError {
    fn from(error: AccountError) -> ApiError {
        match error {
            AccountError::Wrong => ApiError::Unauthenticated(error.to_string()),
            AccountError::Throttled { retry_after_secs } => ApiError::TooMany { retry_after_secs },
            AccountError::Unavailable => ApiError::Unavailable(error.to_string()),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let plain = |text: &str| text.to_owned();
        let (status, code, message) = match &self {
            ApiError::BadRequest(message) => (StatusCode::BAD_REQUEST, "BAD_REQUEST", message.clone()),
            ApiError::Unauthenticated(message) => (StatusCode::UNAUTHORIZED, "UNAUTHORIZED", message.clone()),
            ApiError::Forbidden => (StatusCode::FORBIDDEN, "FORBIDDEN", plain("you may not do this")),
            ApiError::CrossSite => {
                (StatusCode::FORBIDDEN, "FORBIDDEN", plain("changes are not taken from pages of other sites"))
            }
            ApiError::NotFound(message) => (StatusCode::NOT_FOUND, "NOT_FOUND", message.clone()),
            ApiError::MethodNotAllowed => (
                StatusCode::METHOD_NOT_ALLOWED,
                "METHOD_NOT_ALLOWED",
                plain("this path does not take this method"),
            ),
            ApiError::Conflict(message) => (StatusCode::CONFLICT, "CONFLICT", message.clone()),
            ApiError::Precondition(message) => {
                (StatusCode::PRECONDITION_FAILED, "PRECONDITION", message.clone())
            }
            ApiError::TooLarge => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "REQUEST_ENTITY_TOO_LARGE",
                format!("a body has at most {} bytes here", super::JSON_BYTES_MAX),
            ),
            ApiError::NotJson => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "UNSUPPORTED_MEDIA_TYPE",
                plain("send the body as JSON, with the header Content-Type: application/json"),
            ),
            ApiError::TooMany { retry_after_secs } => (
                StatusCode::TOO_MANY_REQUESTS,
                "TOO_MANY_REQUESTS",
                format!("too many wrong passwords; try again in {retry_after_secs} s"),
            ),
            ApiError::Internal(text) => {
                tracing::error!(error = %text, "an API request failed");
                (StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN", plain("internal error; the log has the cause"))
            }
            ApiError::NotImplemented(message) => {
                (StatusCode::NOT_IMPLEMENTED, "NOT_IMPLEMENTED", message.clone())
            }
            ApiError::Unavailable(text) => {
                tracing::error!(error = %text, "an API request could not be served");
                (
                    StatusCode::SERVICE_UNAVAILABLE,
                    "UNAVAILABLE",
                    plain("not possible at this moment; try again"),
                )
            }
            ApiError::NoSpace => {
                (StatusCode::INSUFFICIENT_STORAGE, "NO_SPACE", plain("the registry's disk is full"))
            }
        };
        let body = Json(json!({ "errors": [{ "code": code, "message": message }] }));
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        match self {
            ApiError::Unauthenticated(_) => {
                headers
                    .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"taffrail\""));
            }
            ApiError::TooMany { retry_after_secs } => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from(retry_after_secs));
            }
            ApiError::Unavailable(_) => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("2"));
            }
            ApiError::BadRequest(_)
            | ApiError::Forbidden
            | ApiError::CrossSite
            | ApiError::NotFound(_)
            | ApiError::MethodNotAllowed
            | ApiError::Conflict(_)
            | ApiError::Precondition(_)
            | ApiError::TooLarge
            | ApiError::NotJson
            | ApiError::Internal(_)
            | ApiError::NotImplemented(_)
            | ApiError::NoSpace => {}
        }
        response
    }
}
