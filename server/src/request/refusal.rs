//! What the server itself refuses, before or instead of a handler.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use taffrail_distribution::body::ResponseBody;

/// A refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The request line is too long.
    LineTooLong {
        /// The bound in bytes.
        bytes_max: u64,
    },
    /// The header fields are too long.
    HeadersTooLarge {
        /// The bound in bytes.
        bytes_max: u64,
    },
    /// There are too many header fields.
    TooManyHeaders {
        /// The bound.
        fields_max: u64,
    },
    /// No `Host`, more than one, or one that is none.
    Host,
    /// The target is not a path.
    Target,
    /// A method that no resource here has.
    Method,
    /// Nothing is there.
    NotFound,
    /// The body is too long.
    BodyTooLarge {
        /// The bound in bytes.
        bytes_max: u64,
    },
    /// The body came too slowly.
    BodyTooSlow,
    /// The handler panicked.
    Panicked,
}

impl Refusal {
    fn choose(self) -> (StatusCode, &'static str, String) {
        match self {
            Self::LineTooLong { bytes_max } => (
                StatusCode::URI_TOO_LONG,
                "UNSUPPORTED",
                format!("a request line has at most {bytes_max} bytes"),
            ),
            Self::HeadersTooLarge { bytes_max } => (
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "UNSUPPORTED",
                format!("the header fields of a request have at most {bytes_max} bytes"),
            ),
            Self::TooManyHeaders { fields_max } => (
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "UNSUPPORTED",
                format!("a request has at most {fields_max} header fields"),
            ),
            Self::Host => {
                (StatusCode::BAD_REQUEST, "UNSUPPORTED", "exactly one Host header is needed".to_owned())
            }
            Self::Target => {
                (StatusCode::BAD_REQUEST, "UNSUPPORTED", "the request target must be a path".to_owned())
            }
            Self::Method => {
                (StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "no resource here has this method".to_owned())
            }
            Self::NotFound => {
                (StatusCode::NOT_FOUND, "NOT_FOUND", "there is nothing at this path".to_owned())
            }
            Self::BodyTooLarge { bytes_max } => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "SIZE_INVALID",
                format!("the body of this request has at most {bytes_max} bytes"),
            ),
            Self::BodyTooSlow => {
                (StatusCode::REQUEST_TIMEOUT, "UNKNOWN", "the body came too slowly; send it again".to_owned())
            }
            Self::Panicked => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "UNKNOWN",
                "the registry failed; its log has the reason under the id in X-Request-Id".to_owned(),
            ),
        }
    }

    /// The answer, in the error format that OCI clients and Harbor's API share.
    pub(crate) fn into_response(self) -> Response<ResponseBody> {
        let (status, code, message) = self.choose();
        let text = serde_json::json!({ "errors": [{ "code": code, "message": message }] }).to_string();
        let body = Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync();
        let mut response = Response::new(body);
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(
                header::ALLOW,
                HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"),
            );
        }
        response
    }
}
