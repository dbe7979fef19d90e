//! `GET /v2/_oci/ext/discover`: which extensions there are (distribution-spec, `extensions/_oci.md`). None so far.

use http::{Response, StatusCode};

use crate::answer;
use crate::body::ResponseBody;

pub(crate) fn answer() -> Response<ResponseBody> {
    answer::json(StatusCode::OK, br#"{"extensions":[]}"#.to_vec())
}
