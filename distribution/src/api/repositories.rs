//! `GET /v2/_catalog`: the repositories that the caller may see.

use http::header::LINK;
use http::{Response, StatusCode};
use serde::Serialize;

use crate::answer;
use crate::body::ResponseBody;
use crate::catalog::{CatalogError, Page, PageRequest};
use crate::error::Error;
use crate::name::RepositoryName;
use crate::page::{self, Limit};
use crate::registry::{Call, Registry};

#[derive(Serialize)]
struct Listing<'a> {
    repositories: Vec<&'a str>,
}

pub(crate) async fn list(registry: &Registry, call: &Call<'_>) -> Result<Response<ResponseBody>, Error> {
    let limits = &registry.limits;
    let limit = page::limit(call.query, limits.catalog_page_default, limits.catalog_page_max)?;
    let after = call.query.first("last")?.map(std::borrow::Cow::into_owned);
    let (page, entries) = match limit {
        Limit::Zero => (Page { entries: Vec::<RepositoryName>::new(), more: false }, 0),
        Limit::Entries(entries) => {
            let request = PageRequest { after, limit: entries };
            let page = registry.catalog.repositories(call.identity, request).await.map_err(fault)?;
            (page, entries)
        }
    };
    let listing = Listing { repositories: page.entries.iter().map(RepositoryName::as_str).collect() };
    let json = serde_json::to_vec(&listing).map_err(|error| Error::Unavailable(error.to_string()))?;
    let mut response = answer::json(StatusCode::OK, json);
    if let (true, Some(last)) = (page.more, page.entries.last()) {
        response.headers_mut().insert(LINK, page::link("/v2/_catalog", "", entries, last));
    }
    Ok(response)
}

/// A listing of repositories fails with faults only; anything else would be the catalog's mistake.
fn fault(error: CatalogError) -> Error {
    if matches!(error, CatalogError::NoSpace) {
        Error::NoSpace
    } else {
        Error::Unavailable(error.to_string())
    }
}
