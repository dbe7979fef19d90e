//! Who answers what: the registry `/v2`, core its API and the token service, we ourselves the health checks.

use axum::Router;
use axum::body::Body;
use http::{Request, Response};
use http_body::Body as _;
use http_body_util::{BodyExt as _, Limited};
use taffrail_distribution::body::ResponseBody;
use taffrail_distribution::registry::Registry;
use tower::ServiceExt as _;

use crate::config::sections::Limits;
use crate::health::Health;
use crate::request::{Handles, ReceivedBody, Refusal};

/// How long bodies of the API may be. The registry bounds its own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BodyLimits {
    json_bytes_max: u64,
    login_bytes_max: u64,
    token_form_bytes_max: u64,
}

impl BodyLimits {
    /// The bounds that are configured.
    pub(crate) fn of(limits: &Limits) -> Self {
        Self {
            json_bytes_max: limits.json_bytes_max,
            login_bytes_max: limits.login_bytes_max,
            token_form_bytes_max: limits.token_form_bytes_max,
        }
    }

    fn of_path(&self, path: &str) -> u64 {
        match path {
            "/service/token" => self.token_form_bytes_max,
            "/c/login" => self.login_bytes_max,
            _ => self.json_bytes_max,
        }
    }
}

/// Everything behind the listener.
pub(crate) struct Routes {
    registry: Registry,
    api: Router,
    health: Health,
    limits: BodyLimits,
}

impl Routes {
    /// These three, and how long bodies may be.
    pub(crate) fn new(registry: Registry, api: Router, health: Health, limits: BodyLimits) -> Self {
        Self { registry, api, health, limits }
    }
}

impl Handles for Routes {
    /// The prefix decides, on the raw path: `/V2` and `//v2` are nobody's.
    async fn answer(&self, request: Request<ReceivedBody>) -> Response<ResponseBody> {
        let path = request.uri().path();
        if path == "/v2" || path.starts_with("/v2/") {
            return self.registry.handle(request.map(ReceivedBody::judged_by_reader)).await;
        }
        if let Some(response) = self.health.answer(request.method(), path).await {
            return response;
        }
        let bytes_max = self.limits.of_path(path);
        // What is announced is refused before it is read; what is not, once it is too long.
        if request.body().size_hint().lower() > bytes_max {
            return Refusal::BodyTooLarge { bytes_max }.into_response();
        }
        let bytes_max = usize::try_from(bytes_max).unwrap_or(usize::MAX);
        match self.api.clone().oneshot(request.map(|body| Body::new(Limited::new(body, bytes_max)))).await {
            Ok(response) => response.map(|body| body.map_err(Into::into).boxed_unsync()),
            Err(never) => match never {},
        }
    }
}
