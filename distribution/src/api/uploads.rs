//! Uploads: sessions from `POST` to `PUT` (end-4, end-5, end-6, end-13, end-14), monolithic uploads (end-4b) and mounts
//! (end-11).
//!
//! What must stay true: a failed request never costs the client more than that request. What arrived before the connection
//! broke is acknowledged; a wrong chunk or digest puts the session back to where the request found it.

use http::header::{CONTENT_RANGE, LOCATION, RANGE};
use http::{Response, StatusCode};
use taffrail_blobstore::{Algorithm, Digest, SessionId};

use crate::access::{Action, Grant, Missing, Sources};
use crate::answer::{self, DOCKER_CONTENT_DIGEST, DOCKER_UPLOAD_UUID};
use crate::blobs::{Upload, UploadStatus};
use crate::body::{Incoming, ResponseBody};
use crate::error::Error;
use crate::limits::{MOUNT_HOLDERS_MAX, MOUNT_SOURCES_AT_ONCE, MOUNT_SOURCES_MAX};
use crate::name::RepositoryName;
use crate::range::{self, ByteRange};
use crate::registry::{Call, Registry};

/// `POST`: a mount, a monolithic upload, or a new session.
pub(crate) async fn begin(
    registry: &Registry,
    call: &Call<'_>,
    grant: &Grant,
    body: Incoming,
) -> Result<Response<ResponseBody>, Error> {
    if let Some(mount) = call.query.first("mount")? {
        // Whatever keeps a mount from happening, the answer is a session to upload into: it tells nothing of what other
        // repositories hold.
        if let Ok(digest) = Digest::parse(&mount)
            && mount_from_any(registry, call, grant, &digest).await?
        {
            return Ok(created(&grant.name, &digest));
        }
        let algorithm = Digest::parse(&mount).map_or(Algorithm::Sha256, |digest| digest.algorithm());
        return open_session(registry, call, grant, algorithm).await;
    }
    let digests = call.query.all("digest")?;
    match digests.as_slice() {
        [] => {
            let algorithm = match call.query.first("digest-algorithm")? {
                None => Algorithm::Sha256,
                Some(name) => Algorithm::from_name(&name).ok_or(Error::DigestAlgorithm)?,
            };
            open_session(registry, call, grant, algorithm).await
        }
        [digest] => monolithic(registry, call, grant, &Digest::parse(digest)?, body).await,
        _ => Err(Error::DigestParameter),
    }
}

/// Mounts from `from`, or else from any repository that the caller may read.
///
/// `from` is a hint and no more (distribution-spec, "Mounting a blob from another repository"): a caller who may read the blob
/// elsewhere could as well have left it out. Clients that keep one token per repository ask with a token that does not name
/// the source; what counts then is what its owner may read.
///
/// The search starts from what the caller may pull from and asks of each whether it holds the blob. The other way round, from
/// the holders to the caller's rights, who holds a blob would show in the time that looking up the holders takes, and a bound on
/// them could cut off the one that the caller may read. What depends on the digest is one lookup in memory for each source,
/// which is made whether anybody holds it or not.
async fn mount_from_any(
    registry: &Registry,
    call: &Call<'_>,
    grant: &Grant,
    digest: &Digest,
) -> Result<bool, Error> {
    if let Some(from) = call.query.first("from")?
        && let Ok(from) = RepositoryName::parse(&from)
        && let Ok(source) =
            registry.access.authorize(call.identity, Action::Pull, &from, Missing::Refuse).await
        && registry.blobs.mount(source.repository, grant.repository, digest).await.is_ok()
    {
        return Ok(true);
    }
    let sources = match registry.access.sources(call.identity, MOUNT_SOURCES_MAX).await {
        Sources::Everywhere => registry.blobs.holders(digest, MOUNT_HOLDERS_MAX).await,
        Sources::These(sources) => sources,
    };
    for (count, source) in sources.into_iter().enumerate() {
        if count % MOUNT_SOURCES_AT_ONCE == MOUNT_SOURCES_AT_ONCE - 1 {
            tokio::task::yield_now().await;
        }
        if registry.blobs.link_generation(source, digest).await.is_ok()
            && registry.blobs.mount(source, grant.repository, digest).await.is_ok()
        {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn open_session(
    registry: &Registry,
    call: &Call<'_>,
    grant: &Grant,
    algorithm: Algorithm,
) -> Result<Response<ResponseBody>, Error> {
    let uploader = registry.access.uploader(call.identity);
    let status = registry.blobs.begin_upload(uploader, grant.repository, algorithm).await?;
    Ok(session(StatusCode::ACCEPTED, &grant.name, &status))
}

/// `POST ?digest=`: the whole blob in one request. When it fails or is given up, its session goes too: nobody was told of it.
async fn monolithic(
    registry: &Registry,
    call: &Call<'_>,
    grant: &Grant,
    digest: &Digest,
    mut body: Incoming,
) -> Result<Response<ResponseBody>, Error> {
    refuse_announced(registry, 0, &body)?;
    let uploader = registry.access.uploader(call.identity);
    let status = registry.blobs.begin_upload(uploader, grant.repository, digest.algorithm()).await?;
    let mut upload = registry.blobs.open_upload(grant.repository, status.id).await?;
    upload.end_when_dropped();
    while let Some(bytes) = body.next().await? {
        let len_bytes = upload.offset_bytes().saturating_add(bytes.len() as u64);
        refuse_too_large(registry, len_bytes)?;
        upload.write(bytes).await?;
    }
    registry.confirm(call, grant).await?;
    upload.commit(digest).await?;
    Ok(created(&grant.name, digest))
}

/// `GET`, `HEAD` of a session.
pub(crate) async fn status(
    registry: &Registry,
    grant: &Grant,
    id: SessionId,
) -> Result<Response<ResponseBody>, Error> {
    let status = registry.blobs.upload_status(grant.repository, id).await?;
    Ok(session(StatusCode::NO_CONTENT, &grant.name, &status))
}

/// `PATCH`: more bytes, in every form that clients send them: with `Content-Range`, with a length alone, with neither.
pub(crate) async fn append(
    registry: &Registry,
    call: &Call<'_>,
    grant: &Grant,
    id: SessionId,
    body: Incoming,
) -> Result<Response<ResponseBody>, Error> {
    let upload = receive(registry, call, grant, id, body).await?;
    let status = upload.acknowledge().await?;
    Ok(session(StatusCode::ACCEPTED, &grant.name, &status))
}

/// `PUT ?digest=`: the last bytes, if any, and the end of the session.
pub(crate) async fn finish(
    registry: &Registry,
    call: &Call<'_>,
    grant: &Grant,
    id: SessionId,
    body: Incoming,
) -> Result<Response<ResponseBody>, Error> {
    let digests = call.query.all("digest")?;
    let [digest] = digests.as_slice() else { return Err(Error::DigestParameter) };
    let digest = Digest::parse(digest)?;
    let upload = receive(registry, call, grant, id, body).await?;
    registry.confirm(call, grant).await?;
    upload.commit(&digest).await?;
    Ok(created(&grant.name, &digest))
}

/// `DELETE` of a session.
pub(crate) async fn cancel(
    registry: &Registry,
    grant: &Grant,
    id: SessionId,
) -> Result<Response<ResponseBody>, Error> {
    registry.blobs.abort_upload(grant.repository, id).await?;
    Ok(answer::empty(StatusCode::NO_CONTENT))
}

/// Opens the session, checks what the request announces, and takes the body in.
async fn receive(
    registry: &Registry,
    call: &Call<'_>,
    grant: &Grant,
    id: SessionId,
    mut body: Incoming,
) -> Result<Box<dyn Upload>, Error> {
    let range = match call.headers().get(CONTENT_RANGE) {
        None => None,
        Some(value) => Some(value.to_str().ok().and_then(range::of_upload).ok_or(Error::ContentRange)?),
    };
    let mut upload = registry.blobs.open_upload(grant.repository, id).await?;
    let mut offset_bytes = upload.offset_bytes();
    if let Some(range) = range {
        if range.start_bytes != offset_bytes && !starts_over(range, offset_bytes) {
            let status = UploadStatus { id, offset_bytes };
            return Err(Error::UploadOffset { status, location: session_path(&grant.name, id) });
        }
        if body.announced_bytes().is_some_and(|announced| announced != range.len_bytes()) {
            return Err(Error::ContentLength);
        }
        refuse_too_large(registry, range.end_bytes)?;
        if range.start_bytes != offset_bytes {
            upload.restart().await?;
            offset_bytes = 0;
        }
    }
    refuse_announced(registry, offset_bytes, &body)?;
    let mut received_bytes = 0_u64;
    loop {
        let bytes = match body.next().await {
            Ok(Some(bytes)) => bytes,
            Ok(None) => break,
            Err(error) => {
                // The client comes back and asks where to go on; what is here is not asked for twice.
                upload.acknowledge().await?;
                return Err(error.into());
            }
        };
        received_bytes = received_bytes.saturating_add(bytes.len() as u64);
        if range.is_some_and(|range| received_bytes > range.len_bytes()) {
            upload.rewind();
            return Err(Error::ContentLength);
        }
        if let Err(error) = refuse_too_large(registry, offset_bytes.saturating_add(received_bytes)) {
            upload.rewind();
            return Err(error);
        }
        upload.write(bytes).await?;
    }
    if range.is_some_and(|range| received_bytes != range.len_bytes()) {
        upload.rewind();
        return Err(Error::ContentLength);
    }
    Ok(upload)
}

/// Whether a chunk that does not begin where the session stands begins anew: it starts at byte 0 and brings everything that
/// is there and more. (Only then: the spec wants 416 for a chunk that merely repeats what is there.)
fn starts_over(range: ByteRange, offset_bytes: u64) -> bool {
    range.start_bytes == 0 && range.end_bytes > offset_bytes
}

/// Refuses by the announced length, before a byte of the body is read.
fn refuse_announced(registry: &Registry, offset_bytes: u64, body: &Incoming) -> Result<(), Error> {
    refuse_too_large(registry, offset_bytes.saturating_add(body.announced_bytes().unwrap_or(0)))
}

fn refuse_too_large(registry: &Registry, len_bytes: u64) -> Result<(), Error> {
    let limit_bytes = registry.limits.blob_bytes_max;
    if len_bytes > limit_bytes { Err(Error::BlobTooLarge { limit_bytes }) } else { Ok(()) }
}

fn session_path(name: &RepositoryName, id: SessionId) -> String {
    format!("/v2/{name}/blobs/uploads/{id}")
}

/// The answer that says where a session stands. `Location` is relative: it survives proxies and every client takes it.
fn session(status: StatusCode, name: &RepositoryName, upload: &UploadStatus) -> Response<ResponseBody> {
    let mut response = answer::empty(status);
    let headers = response.headers_mut();
    headers.insert(LOCATION, answer::value(session_path(name, upload.id)));
    headers.insert(RANGE, answer::upload_range(upload.offset_bytes));
    headers.insert(DOCKER_UPLOAD_UUID, answer::value(upload.id.to_string()));
    response
}

fn created(name: &RepositoryName, digest: &Digest) -> Response<ResponseBody> {
    let mut response = answer::empty(StatusCode::CREATED);
    let headers = response.headers_mut();
    headers.insert(LOCATION, answer::value(format!("/v2/{name}/blobs/{digest}")));
    headers.insert(DOCKER_CONTENT_DIGEST, answer::value(digest.to_string()));
    response
}
