//! Tags of a repository (end-8).

use http::header::LINK;
use http::{Response, StatusCode};
use serde::Serialize;

use crate::access::Grant;
use crate::answer;
use crate::body::ResponseBody;
use crate::catalog::{Page, PageRequest};
use crate::error::Error;
use crate::name::Tag;
use crate::page::{self, Limit};
use crate::registry::{Call, Registry};

#[derive(Serialize)]
struct Listing<'a> {
    name: &'a str,
    tags: Vec<&'a str>,
}

pub(crate) async fn list(
    registry: &Registry,
    call: &Call<'_>,
    grant: &Grant,
) -> Result<Response<ResponseBody>, Error> {
    let limits = &registry.limits;
    let limit = page::limit(call.query, limits.tags_page_default, limits.tags_page_max)?;
    let after = call.query.first("last")?.map(std::borrow::Cow::into_owned);
    let (page, entries) = match limit {
        Limit::Zero => (Page { entries: Vec::<Tag>::new(), more: false }, 0),
        Limit::Entries(entries) => {
            let request = PageRequest { after, limit: entries };
            let page = registry.catalog.tags(grant, request).await;
            (page.map_err(|error| Error::catalog(error, &grant.name))?, entries)
        }
    };
    let listing = Listing { name: grant.name.as_str(), tags: page.entries.iter().map(Tag::as_str).collect() };
    let json = serde_json::to_vec(&listing).map_err(|error| Error::Unavailable(error.to_string()))?;
    let mut response = answer::json(StatusCode::OK, json);
    if let (true, Some(last)) = (page.more, page.entries.last()) {
        let path = format!("/v2/{}/tags/list", grant.name);
        response.headers_mut().insert(LINK, page::link(&path, "", entries, last));
    }
    Ok(response)
}
