//! Referrers of a manifest (end-12): an image index made at the moment it is asked for.
//!
//! What must stay true: an unknown subject, an unknown repository and a forbidden one give the same empty index; a page
//! ends at `n` entries or at [`crate::limits::Limits::referrers_page_bytes_max`], whichever comes first.

use http::header::LINK;
use http::{HeaderValue, Response, StatusCode};
use serde::Serialize;
use serde_json::value::RawValue;
use taffrail_blobstore::Digest;

use crate::access::Grant;
use crate::answer::{self, OCI_FILTERS_APPLIED};
use crate::body::ResponseBody;
use crate::catalog::{PageRequest, Referrer};
use crate::error::Error;
use crate::manifest::OCI_INDEX;
use crate::page::{self, Limit};
use crate::registry::{Call, Registry};

/// Entries asked of the catalog at a time: each may carry annotations of a whole manifest, 4 MiB by default.
const BATCH_ENTRIES: u32 = 16;

/// Entries asked at a time while they are small.
const BATCH_ENTRIES_SMALL: u32 = 256;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor<'a> {
    media_type: &'a str,
    digest: String,
    size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    artifact_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    annotations: Option<&'a RawValue>,
}

pub(crate) async fn list(
    registry: &Registry,
    call: &Call<'_>,
    grant: &Grant,
    subject: &Digest,
) -> Result<Response<ResponseBody>, Error> {
    let limits = &registry.limits;
    let limit = page::limit(call.query, limits.referrers_page_default, limits.referrers_page_max)?;
    let filter = filter(call)?;
    let mut after = match call.query.first("last")? {
        Some(last) => Some(Digest::parse(&last)?),
        None => None,
    };
    let Limit::Entries(entries) = limit else { return none(call) };
    let mut listing = Listing::new();
    let mut more = true;
    let mut batch = BATCH_ENTRIES;
    while more && listing.entries < entries && listing.json.len() < limits.referrers_page_bytes_max {
        let request = PageRequest { after, limit: batch.min(entries - listing.entries) };
        let page = registry.catalog.referrers(grant, subject, filter.as_deref(), request).await;
        let page = page.map_err(|error| Error::catalog(error, &grant.name))?;
        more = page.more;
        let before = listing.json.len();
        for referrer in &page.entries {
            if !listing.add(referrer, limits.referrers_page_bytes_max)? {
                more = true;
                break;
            }
            after = Some(referrer.digest);
        }
        if page.entries.is_empty() || listing.full {
            break;
        }
        let small = (listing.json.len() - before) / page.entries.len() < 4096;
        batch = if small { BATCH_ENTRIES_SMALL } else { BATCH_ENTRIES };
    }
    let mut response = index(listing.finish());
    if filter.is_some() {
        response.headers_mut().insert(OCI_FILTERS_APPLIED, HeaderValue::from_static("artifactType"));
    }
    if let (true, Some(last)) = (more, after) {
        let path = format!("/v2/{}/referrers/{subject}", grant.name);
        let extra = match &filter {
            Some(filter) => format!("artifactType={}&", page::escape(filter)),
            None => String::new(),
        };
        response.headers_mut().insert(LINK, page::link(&path, &extra, entries, &last));
    }
    Ok(response)
}

/// The empty index.
///
/// # Errors
/// What is wrong with the query, so that the answer does not depend on whether the repository exists.
pub(crate) fn none(call: &Call<'_>) -> Result<Response<ResponseBody>, Error> {
    page::limit(call.query, 1, 1)?;
    if let Some(last) = call.query.first("last")? {
        Digest::parse(&last)?;
    }
    let mut response = index(Listing::new().finish());
    if filter(call)?.is_some() {
        response.headers_mut().insert(OCI_FILTERS_APPLIED, HeaderValue::from_static("artifactType"));
    }
    Ok(response)
}

/// The one artifact type to filter by. Of several, which the spec does not define, none is applied: the client sees that
/// `OCI-Filters-Applied` is missing and filters for itself.
fn filter(call: &Call<'_>) -> Result<Option<String>, Error> {
    let mut filters = call.query.all("artifactType")?;
    filters.dedup();
    Ok(match filters.as_slice() {
        [filter] if !filter.is_empty() => Some(filter.clone().into_owned()),
        _ => None,
    })
}

/// go-containerregistry takes a listing only with exactly this type.
fn index(json: Vec<u8>) -> Response<ResponseBody> {
    answer::with_type(StatusCode::OK, HeaderValue::from_static(OCI_INDEX), json)
}

/// The index as it grows.
struct Listing {
    json: Vec<u8>,
    entries: u32,
    full: bool,
}

impl Listing {
    fn new() -> Listing {
        let json = format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":["#).into_bytes();
        Listing { json, entries: 0, full: false }
    }

    /// Adds a referrer; false when it goes to the next page. The first one always fits.
    fn add(&mut self, referrer: &Referrer, bytes_max: usize) -> Result<bool, Error> {
        let annotations =
            referrer.annotations.as_deref().map(serde_json::from_str::<&RawValue>).transpose().map_err(
                |error| Error::Unavailable(format!("annotations of {}: {error}", referrer.digest)),
            )?;
        let descriptor = Descriptor {
            media_type: &referrer.media_type,
            digest: referrer.digest.to_string(),
            size: referrer.len_bytes,
            artifact_type: referrer.artifact_type.as_deref(),
            annotations,
        };
        let before = self.json.len();
        if self.entries > 0 {
            self.json.push(b',');
        }
        serde_json::to_writer(&mut self.json, &descriptor)
            .map_err(|error| Error::Unavailable(error.to_string()))?;
        if self.entries > 0 && self.json.len() > bytes_max {
            self.json.truncate(before);
            self.full = true;
            return Ok(false);
        }
        self.entries += 1;
        Ok(true)
    }

    fn finish(mut self) -> Vec<u8> {
        self.json.extend_from_slice(b"]}");
        self.json
    }
}
