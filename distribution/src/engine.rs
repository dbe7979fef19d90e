//! The bytes of a registry in the local engine: [`Blobs`] over [`taffrail_blobstore::Store`].
//!
//! Nothing is decided here: calls are handed on with the time, and errors are translated. What the engine says about its
//! disk becomes text for the log ([`BlobError::Unavailable`]), never for a client.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use taffrail_blobstore::{
    Algorithm, Digest, LinkError, PutError as StorePutError, ReadError, Refusal, RepositoryKey, SessionId,
    Store, UnlinkError, UploadError as StoreUploadError, Uploader,
};

use crate::blobs::{
    BlobError, BlobReader, BlobStat, Blobs, Pins, PutError, Upload, UploadError, UploadStatus,
};

/// Milliseconds since 1970, from whoever owns the clock.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// A source of random session ids.
pub type SessionIds = Arc<dyn Fn() -> SessionId + Send + Sync>;

/// How long a client's deletion waits for a backup that copies the catalog. Most are copied within that; who waits longer is better told
/// than left without an answer, for which proxies have a minute at most.
const HELD_WAIT: Duration = Duration::from_secs(5);

/// The local engine as [`Blobs`]. Cloning it is cheap.
#[derive(Clone)]
pub struct Engine {
    store: Arc<Store>,
    clock: Clock,
    session_ids: SessionIds,
}

impl Engine {
    /// The engine over an open store.
    pub fn new(store: Arc<Store>, clock: Clock, session_ids: SessionIds) -> Engine {
        Engine { store, clock, session_ids }
    }

    /// The store, for the work that no client asks for: collection, checkpoints, figures.
    pub const fn store(&self) -> &Arc<Store> {
        &self.store
    }

    fn now_ms(&self) -> u64 {
        (self.clock)()
    }
}

struct Reader(taffrail_blobstore::BlobReader);

#[async_trait]
impl BlobReader for Reader {
    fn len_bytes(&self) -> u64 {
        self.0.len_bytes()
    }

    fn only_send(&mut self) {
        self.0.only_send();
    }

    async fn read(&mut self, offset_bytes: u64, end_bytes: u64) -> Result<Bytes, BlobError> {
        Ok(self.0.read(offset_bytes, end_bytes).await?)
    }
}

struct Writer {
    upload: taffrail_blobstore::Upload,
    clock: Clock,
}

#[async_trait]
impl Upload for Writer {
    fn offset_bytes(&self) -> u64 {
        self.upload.offset_bytes()
    }

    fn end_when_dropped(&mut self) {
        self.upload.end_when_dropped();
    }

    async fn write(&mut self, bytes: Bytes) -> Result<(), UploadError> {
        Ok(self.upload.write(bytes, (self.clock)()).await?)
    }

    async fn restart(&mut self) -> Result<(), UploadError> {
        Ok(self.upload.restart((self.clock)()).await?)
    }

    fn rewind(&mut self) {
        self.upload.rewind();
    }

    async fn acknowledge(self: Box<Self>) -> Result<UploadStatus, UploadError> {
        let status = self.upload.acknowledge((self.clock)()).await?;
        Ok(UploadStatus { id: status.id, offset_bytes: status.offset_bytes })
    }

    async fn commit(self: Box<Self>, digest: &Digest) -> Result<BlobStat, UploadError> {
        let stat = self.upload.commit(digest, (self.clock)()).await?;
        Ok(BlobStat { digest: stat.digest, len_bytes: stat.len_bytes })
    }
}

struct Pinned {
    _pins: taffrail_blobstore::Pins,
}

impl Pins for Pinned {}

#[async_trait]
impl Blobs for Engine {
    async fn stat(&self, repository: RepositoryKey, digest: &Digest) -> Result<BlobStat, BlobError> {
        let stat = self.store.stat(repository, digest, self.now_ms())?;
        Ok(BlobStat { digest: stat.digest, len_bytes: stat.len_bytes })
    }

    async fn open(
        &self,
        repository: RepositoryKey,
        digest: &Digest,
    ) -> Result<Box<dyn BlobReader>, BlobError> {
        Ok(Box::new(Reader(self.store.open_blob(repository, digest)?)))
    }

    async fn holders(&self, digest: &Digest, limit: usize) -> Vec<RepositoryKey> {
        self.store.holders(digest, limit)
    }

    async fn mount(
        &self,
        from: RepositoryKey,
        to: RepositoryKey,
        digest: &Digest,
    ) -> Result<BlobStat, BlobError> {
        let stat = self.store.mount(from, to, digest, self.now_ms()).await?;
        Ok(BlobStat { digest: stat.digest, len_bytes: stat.len_bytes })
    }

    async fn link_generation(&self, repository: RepositoryKey, digest: &Digest) -> Result<u64, BlobError> {
        self.store.link_generation(repository, digest).ok_or(BlobError::Unknown)
    }

    async fn unlink(
        &self,
        repository: RepositoryKey,
        digest: &Digest,
        generation: u64,
    ) -> Result<(), BlobError> {
        // Whether or not links may go by then, the engine has the last word.
        let _ = tokio::time::timeout(HELD_WAIT, self.store.links_may_go()).await;
        Ok(self.store.unlink(repository, digest, generation, self.now_ms()).await?)
    }

    async fn put(
        &self,
        repository: RepositoryKey,
        digest: &Digest,
        bytes: Bytes,
        references: &[(Digest, u64)],
    ) -> Result<Box<dyn Pins>, PutError> {
        let pins = self.store.put(repository, digest, bytes, references, self.now_ms()).await?;
        Ok(Box::new(Pinned { _pins: pins }))
    }

    async fn begin_upload(
        &self,
        uploader: Uploader,
        repository: RepositoryKey,
        algorithm: Algorithm,
    ) -> Result<UploadStatus, UploadError> {
        let id = (self.session_ids)();
        let status = self.store.begin_upload_of(uploader, repository, algorithm, id, self.now_ms())?;
        Ok(UploadStatus { id: status.id, offset_bytes: status.offset_bytes })
    }

    async fn upload_status(
        &self,
        repository: RepositoryKey,
        id: SessionId,
    ) -> Result<UploadStatus, UploadError> {
        let status = self.store.upload_status(repository, id, self.now_ms())?;
        Ok(UploadStatus { id: status.id, offset_bytes: status.offset_bytes })
    }

    async fn open_upload(
        &self,
        repository: RepositoryKey,
        id: SessionId,
    ) -> Result<Box<dyn Upload>, UploadError> {
        let upload = self.store.open_upload(repository, id, self.now_ms()).await?;
        Ok(Box::new(Writer { upload, clock: Arc::clone(&self.clock) }))
    }

    async fn abort_upload(&self, repository: RepositoryKey, id: SessionId) -> Result<(), UploadError> {
        Ok(self.store.abort_upload(repository, id, self.now_ms()).await?)
    }
}

impl From<Refusal> for BlobError {
    fn from(refusal: Refusal) -> BlobError {
        if refusal == Refusal::NoSpace {
            BlobError::NoSpace
        } else {
            BlobError::Unavailable(refusal.to_string())
        }
    }
}

impl From<ReadError> for BlobError {
    #[expect(clippy::wildcard_enum_match_arm, reason = "whatever else fails there is for the log")]
    fn from(error: ReadError) -> BlobError {
        match error {
            ReadError::Unknown => BlobError::Unknown,
            ReadError::Corrupt { digest, .. } => BlobError::Corrupt(digest),
            other => BlobError::Unavailable(other.to_string()),
        }
    }
}

impl From<LinkError> for BlobError {
    fn from(error: LinkError) -> BlobError {
        match error {
            LinkError::Unknown => BlobError::Unknown,
            LinkError::Refused(refusal) => refusal.into(),
            other => BlobError::Unavailable(other.to_string()),
        }
    }
}

impl From<UnlinkError> for BlobError {
    fn from(error: UnlinkError) -> BlobError {
        match error {
            UnlinkError::Unknown => BlobError::Unknown,
            UnlinkError::Pinned => BlobError::InUse,
            UnlinkError::Held => BlobError::Held,
            UnlinkError::Refused(refusal) => refusal.into(),
            other => BlobError::Unavailable(other.to_string()),
        }
    }
}

impl From<StorePutError> for PutError {
    #[expect(clippy::wildcard_enum_match_arm, reason = "whatever else fails there is for the log")]
    fn from(error: StorePutError) -> PutError {
        match error {
            StorePutError::Missing(digests) => PutError::Missing(digests),
            StorePutError::Length { digest, actual_bytes, stated_bytes } => {
                PutError::Length { digest, actual_bytes, stated_bytes }
            }
            StorePutError::TooLarge(_) => {
                PutError::TooLarge { limit_bytes: taffrail_blobstore::format::INLINE_BYTES_MAX }
            }
            StorePutError::Refused(Refusal::NoSpace) => PutError::NoSpace,
            other => PutError::Unavailable(other.to_string()),
        }
    }
}

impl From<StoreUploadError> for UploadError {
    #[expect(clippy::wildcard_enum_match_arm, reason = "whatever else fails there is for the log")]
    fn from(error: StoreUploadError) -> UploadError {
        match error {
            StoreUploadError::Unknown => UploadError::Unknown,
            StoreUploadError::Busy => UploadError::Busy,
            StoreUploadError::TooMany => UploadError::TooMany,
            StoreUploadError::Mismatch { actual } => UploadError::Mismatch { actual },
            StoreUploadError::TooLarge { limit_bytes } => UploadError::TooLarge { limit_bytes },
            StoreUploadError::Refused(Refusal::NoSpace) => UploadError::NoSpace,
            other => UploadError::Unavailable(other.to_string()),
        }
    }
}
