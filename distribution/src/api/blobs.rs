//! Blobs of a repository: read (end-2) and delete (end-10).

use http::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RANGE};
use http::{HeaderValue, Response, StatusCode};
use taffrail_blobstore::Digest;

use crate::access::Grant;
use crate::answer;
use crate::body::{self, OnlySent, Piece, ResponseBody};
use crate::conditional::{self, Verdict};
use crate::error::Error;
use crate::range::{self, ByteRange, Wanted};
use crate::registry::{Call, Registry};

/// `GET`, `HEAD`. A HEAD ignores `Range`, which RFC 9110 section 14.2 defines for GET alone, and leases the blob: its caller
/// may now leave out an upload.
pub(crate) async fn read(
    registry: &Registry,
    call: &Call<'_>,
    grant: &Grant,
    digest: &Digest,
) -> Result<Response<ResponseBody>, Error> {
    if call.is_head() {
        let stat = registry.blobs.stat(grant.repository, digest).await?;
        return match conditional::read(call.headers(), digest) {
            Verdict::Send => Ok(whole(body::empty(), digest, stat.len_bytes)),
            Verdict::NotModified => Ok(not_modified(digest)),
            Verdict::Failed => Err(Error::Precondition),
        };
    }
    let mut reader = registry.blobs.open(grant.repository, digest).await?;
    if call.parts.extensions.get::<OnlySent>().is_some() {
        reader.only_send();
    }
    match conditional::read(call.headers(), digest) {
        Verdict::Send => {}
        Verdict::NotModified => return Ok(not_modified(digest)),
        Verdict::Failed => return Err(Error::Precondition),
    }
    let len_bytes = reader.len_bytes();
    let wanted = match call.headers().get(RANGE) {
        Some(value) if conditional::range_applies(call.headers(), digest) => {
            value.to_str().map_or(Wanted::Unsatisfiable, |text| range::wanted(text, len_bytes))
        }
        Some(_) | None => Wanted::Whole,
    };
    let partial = match wanted {
        Wanted::Whole => None,
        Wanted::Unsatisfiable => return Err(Error::RangeUnsatisfiable { len_bytes }),
        Wanted::Ranges(ranges) => range::partial(&ranges, digest, len_bytes),
    };
    let Some(partial) = partial else {
        let pieces = vec![Piece::Blob(ByteRange { start_bytes: 0, end_bytes: len_bytes })];
        return Ok(whole(body::of_blob(reader, pieces).await?, digest, len_bytes));
    };
    let mut response = Response::new(body::of_blob(reader, partial.pieces).await?);
    *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    let headers = response.headers_mut();
    answer::blob_headers(headers, digest);
    headers.insert(CONTENT_LENGTH, HeaderValue::from(partial.len_bytes));
    if let Some(content_range) = partial.content_range {
        headers.insert(CONTENT_RANGE, content_range);
    }
    if let Some(content_type) = partial.content_type {
        headers.insert(CONTENT_TYPE, content_type);
    }
    Ok(response)
}

fn whole(body: ResponseBody, digest: &Digest, len_bytes: u64) -> Response<ResponseBody> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    answer::blob_headers(headers, digest);
    headers.insert(CONTENT_LENGTH, HeaderValue::from(len_bytes));
    response
}

fn not_modified(digest: &Digest) -> Response<ResponseBody> {
    let mut response = answer::empty(StatusCode::NOT_MODIFIED);
    answer::blob_headers(response.headers_mut(), digest);
    response.headers_mut().remove(CONTENT_TYPE);
    response.headers_mut().remove(ACCEPT_RANGES);
    response
}

/// `DELETE`: 202, or 405 while a manifest of the repository uses the blob.
///
/// The generation of the link is read before the catalog is asked: a manifest that is put after the answer renews the link,
/// and the removal of the old one is refused. No look at the blob leases it: its bytes shall not stay for an hour.
pub(crate) async fn delete(
    registry: &Registry,
    call: &Call<'_>,
    grant: &Grant,
    digest: &Digest,
) -> Result<Response<ResponseBody>, Error> {
    let generation = registry.blobs.link_generation(grant.repository, digest).await?;
    conditional::check(&conditional::write(call.headers())?, Some(digest))?;
    let used = registry.catalog.uses_blob(grant, digest).await;
    if used.map_err(|error| Error::catalog(error, &grant.name))? {
        return Err(Error::BlobInUse);
    }
    registry.blobs.unlink(grant.repository, digest, generation).await?;
    Ok(answer::empty(StatusCode::ACCEPTED))
}
