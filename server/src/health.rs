//! `/healthz`: the process runs. `/readyz`: it can do its work, and is not about to end.

use std::pin::Pin;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use taffrail_blobstore::{Store, StoreState};
use taffrail_distribution::body::ResponseBody;

use crate::drain::Drain;

/// Asks the database whether it is there.
pub(crate) type DatabaseProbe = Box<dyn Fn() -> Pin<Box<dyn Future<Output = bool> + Send>> + Send + Sync>;

/// Answers health checks. They need no login, so they say little: which part fails, not how.
pub(crate) struct Health {
    drain: Drain,
    store: Weak<Store>,
    database: DatabaseProbe,
}

impl Health {
    /// Health of these parts.
    pub(crate) fn new(drain: Drain, store: &Arc<Store>, database: DatabaseProbe) -> Self {
        Self { drain, store: Arc::downgrade(store), database }
    }

    /// Answers `/healthz` and `/readyz`; `None` for other paths.
    pub(crate) async fn answer(&self, method: &Method, path: &str) -> Option<Response<ResponseBody>> {
        let failing = match path {
            "/healthz" => Vec::new(),
            "/readyz" => self.failing().await,
            _ => return None,
        };
        if !matches!(*method, Method::GET | Method::HEAD) {
            return None;
        }
        let (status, text) = if failing.is_empty() {
            (StatusCode::OK, "ok\n".to_owned())
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", failing.join(", ")))
        };
        let body = Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync();
        let mut response = Response::new(body);
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Some(response)
    }

    async fn failing(&self) -> Vec<&'static str> {
        let mut failing = Vec::new();
        if self.drain.has_begun() {
            failing.push("draining");
        }
        match self.store.upgrade().map(|store| store.state()) {
            Some(StoreState::Writable) => {}
            Some(StoreState::ReadOnly { .. }) => failing.push("store is read-only"),
            Some(StoreState::Poisoned { .. }) => failing.push("store failed"),
            None => failing.push("store is closed"),
        }
        if !(self.database)().await {
            failing.push("database");
        }
        failing
    }
}
