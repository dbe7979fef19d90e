//! `GET /v2/`: is this a registry, and who am I to it (end-1)?

use http::{Response, StatusCode};

use crate::answer;
use crate::body::ResponseBody;

/// What distribution answers too; some clients parse it.
pub(crate) fn answer() -> Response<ResponseBody> {
    answer::json(StatusCode::OK, b"{}".to_vec())
}
