//! `ping`, `health`, `systeminfo`.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::json;

use crate::api::extract::Caller;
use crate::api::{ApiState, Classified, Needs};

/// The routes.
pub fn routes() -> Vec<Classified> {
    vec![
        Classified { path: "/api/v2.0/ping", methods: &[("GET", Needs::Nothing)], handler: get(ping) },
        Classified { path: "/api/v2.0/health", methods: &[("GET", Needs::Nothing)], handler: get(health) },
        Classified { path: "/api/v2.0/systeminfo", methods: &[("GET", Needs::Nothing)], handler: get(info) },
    ]
}

async fn ping() -> &'static str {
    "Pong"
}

/// Harbor's shape: a status for the whole and one for each part.
async fn health(State(state): State<ApiState>) -> Response {
    let database = state.database.ping().await;
    if let Err(error) = &database {
        tracing::error!(%error, "the database does not answer");
    }
    let word = |healthy: bool| if healthy { "healthy" } else { "unhealthy" };
    let body = json!({
        "status": word(database.is_ok()),
        "components": [
            { "name": "core", "status": "healthy" },
            { "name": "database", "status": word(database.is_ok()) },
        ],
    });
    Json(body).into_response()
}

/// The version is for those who are known: a stranger has no use for it but a bad one.
async fn info(State(state): State<ApiState>, Caller(identity): Caller) -> Response {
    let known = identity.user().is_some();
    let mut body = json!({
        "auth_mode": "db_auth",
        "primary_auth_mode": true,
        "self_registration": false,
        "banner_message": "",
    });
    if let Some(fields) = body.as_object_mut().filter(|_| known) {
        fields
            .insert("harbor_version".to_owned(), concat!("v", env!("CARGO_PKG_VERSION"), "-taffrail").into());
        if let Some(url) = &state.external_url {
            fields.insert("external_url".to_owned(), url.clone().into());
            let host = url.split_once("://").map_or(url.as_str(), |(_, host)| host);
            fields.insert("registry_url".to_owned(), host.into());
        }
    }
    Json(body).into_response()
}
