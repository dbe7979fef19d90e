//! The listener's answers: the page of metrics at `/metrics`, and nothing else.

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;

use super::Metrics;
use crate::connection::{Answer, Answers, Caller};
use crate::gate::Gate;

/// Media type of OpenMetrics 1.0.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Answers scrapes.
pub(crate) struct Page {
    /// What is shown.
    pub(crate) metrics: Arc<Metrics>,
    /// Counts the registry's connections.
    pub(crate) gate: Arc<Gate>,
}

impl Answers for Page {
    fn answer(self: Arc<Self>, request: Request<Incoming>, caller: Caller) -> Answer {
        caller.vitals.request_begins();
        let (status, kind, text) = match (request.method(), request.uri().path()) {
            (&Method::GET | &Method::HEAD, "/metrics") => {
                self.metrics.connections_open.set(i64::try_from(self.gate.open()).unwrap_or(i64::MAX));
                (StatusCode::OK, OPEN_METRICS, self.metrics.page())
            }
            (_, "/metrics") => (StatusCode::METHOD_NOT_ALLOWED, "text/plain", "GET only\n".to_owned()),
            _ => (StatusCode::NOT_FOUND, "text/plain", "see /metrics\n".to_owned()),
        };
        let body = Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync();
        let mut response = Response::new(body);
        *response.status_mut() = status;
        response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
        // The text is in memory: from here on only the client can be slow, and the wire watches that.
        caller.vitals.request_ends();
        Box::pin(std::future::ready(response))
    }
}
