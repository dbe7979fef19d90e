//! The boundary to the bytes: implemented by the local engine ([`crate::engine::Engine`]), later by object storage.
//!
//! What must stay true: an answer never depends on what other repositories hold; `Ok` from [`Upload::commit`],
//! [`Blobs::put`] and [`Blobs::mount`] means durable.

use async_trait::async_trait;
use bytes::Bytes;
use taffrail_blobstore::{Algorithm, Digest, RepositoryKey, SessionId, Uploader};

/// What is known of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlobStat {
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub len_bytes: u64,
}

/// What is known of an upload session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UploadStatus {
    /// Its id.
    pub id: SessionId,
    /// Bytes received so far; the offset at which the client goes on.
    pub offset_bytes: u64,
}

/// Why a blob cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BlobError {
    /// Not linked in this repository, or quarantined: 404.
    #[error("blob unknown")]
    Unknown,
    /// These bytes do not match their checksum; the answer must be cut, not completed.
    #[error("{0} is damaged on disk")]
    Corrupt(Digest),
    /// A manifest on its way into the catalog needs it; only [`Blobs::unlink`] says so: 405.
    #[error("a manifest that is being pushed needs the blob")]
    InUse,
    /// A backup copies the catalog; only [`Blobs::unlink`] says so: 503, and soon it may be.
    #[error("a backup holds links")]
    Held,
    /// No space: 507.
    #[error("no space left in the store")]
    NoSpace,
    /// The store takes no writes (poisoned, read-only, draining) or does not answer: 503. The text goes to the log only.
    #[error("store unavailable: {0}")]
    Unavailable(String),
}

/// Why an upload does not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UploadError {
    /// No such session in this repository: 404 `BLOB_UPLOAD_UNKNOWN`.
    #[error("upload session unknown")]
    Unknown,
    /// Another request writes to it at this moment: 409.
    #[error("another request is writing to this upload session")]
    Busy,
    /// Too many open sessions of the repository or in total: 429.
    #[error("too many open upload sessions")]
    TooMany,
    /// The bytes do not hash to the digest: 400 `DIGEST_INVALID`; the session stands at the offset it had before the
    /// request.
    #[error("the uploaded bytes have the digest {actual}")]
    Mismatch {
        /// What they hash to (in the algorithm of the wanted digest).
        actual: Digest,
    },
    /// Longer than the configured limit: 413.
    #[error("a blob has at most {limit_bytes} bytes")]
    TooLarge {
        /// The limit.
        limit_bytes: u64,
    },
    /// No space: 507. The session is gone, its bytes are free again.
    #[error("no space left in the store")]
    NoSpace,
    /// See [`BlobError::Unavailable`].
    #[error("store unavailable: {0}")]
    Unavailable(String),
}

/// Why a manifest's bytes were not linked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PutError {
    /// These digests are not linked in the repository: 404 `MANIFEST_BLOB_UNKNOWN`.
    #[error("blobs unknown to the repository")]
    Missing(Vec<Digest>),
    /// A blob has another length than its descriptor says: 400.
    #[error("{digest} has {actual_bytes} bytes, not {stated_bytes}")]
    Length {
        /// Which.
        digest: Digest,
        /// As stored.
        actual_bytes: u64,
        /// As the descriptor says.
        stated_bytes: u64,
    },
    /// Longer than the store takes in one piece: 413. The configured limit for manifests should not let it come to this.
    #[error("a manifest has at most {limit_bytes} bytes")]
    TooLarge {
        /// The limit.
        limit_bytes: usize,
    },
    /// No space: 507.
    #[error("no space left in the store")]
    NoSpace,
    /// See [`BlobError::Unavailable`].
    #[error("store unavailable: {0}")]
    Unavailable(String),
}

/// Keeps what a manifest refers to from being unlinked, until the catalog transaction has ended. Dropping ends it.
pub trait Pins: Send + Sync {}

/// An open blob. Every byte it hands out has been checked against its checksum for this answer.
#[async_trait]
pub trait BlobReader: Send {
    /// Length of the whole blob in bytes.
    fn len_bytes(&self) -> u64;

    /// Says that what is read from now on is only sent: see [`crate::body::OnlySent`].
    fn only_send(&mut self) {}

    /// The bytes from `offset_bytes` on, at most to `end_bytes` (exclusive), at least one and as many as are convenient
    /// (at most 256 KiB). `offset_bytes < end_bytes <= len_bytes()`.
    ///
    /// # Errors
    /// `Corrupt`, `Unavailable`.
    async fn read(&mut self, offset_bytes: u64, end_bytes: u64) -> Result<Bytes, BlobError>;
}

/// An upload session while one request writes to it. Dropping it leaves the session at what was written so far, unless
/// [`Upload::end_when_dropped`] was called.
#[async_trait]
pub trait Upload: Send {
    /// Where the next byte goes.
    fn offset_bytes(&self) -> u64;

    /// From now on the session ends when this is dropped without a commit: for a session that nobody was told of. It must hold also
    /// for a request that is given up in the middle, which runs no code but destructors.
    fn end_when_dropped(&mut self);

    /// Appends bytes: hashes them and hands them to the disk; waits while too much is under way.
    ///
    /// # Errors
    /// `TooLarge`, `NoSpace`, `Unavailable`.
    async fn write(&mut self, bytes: Bytes) -> Result<(), UploadError>;

    /// Throws away every byte of the session: a client that starts over at offset 0.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn restart(&mut self) -> Result<(), UploadError>;

    /// Goes back to the offset that the session had when this request opened it.
    fn rewind(&mut self);

    /// Acknowledges what was written; the offset survives `kill -9` (docs/ARCHITECTURE.md, "Following a push").
    ///
    /// # Errors
    /// `NoSpace`, `Unavailable`.
    async fn acknowledge(self: Box<Self>) -> Result<UploadStatus, UploadError>;

    /// Ends the session: the bytes become a blob, linked in the session's repository, durable when this returns.
    ///
    /// # Errors
    /// `Mismatch` (the session goes back as [`Upload::rewind`] does), `NoSpace`, `Unavailable`.
    async fn commit(self: Box<Self>, digest: &Digest) -> Result<BlobStat, UploadError>;
}

/// The bytes of a registry.
#[async_trait]
pub trait Blobs: Send + Sync + 'static {
    /// Looks a blob up in a repository, and leases it there: the caller was told that it exists.
    ///
    /// # Errors
    /// `Unknown`, `Unavailable`.
    async fn stat(&self, repository: RepositoryKey, digest: &Digest) -> Result<BlobStat, BlobError>;

    /// Opens a blob for reading.
    ///
    /// # Errors
    /// `Unknown`, `Unavailable`.
    async fn open(
        &self,
        repository: RepositoryKey,
        digest: &Digest,
    ) -> Result<Box<dyn BlobReader>, BlobError>;

    /// Repositories that hold the blob, at most `limit`; for a mount without `from`. For the server's eyes only.
    async fn holders(&self, digest: &Digest, limit: usize) -> Vec<RepositoryKey>;

    /// Links a blob that `from` holds into `to` as well. Durable when this returns; costs one small commit whatever its size.
    ///
    /// # Errors
    /// `Unknown` when `from` does not hold it.
    async fn mount(
        &self,
        from: RepositoryKey,
        to: RepositoryKey,
        digest: &Digest,
    ) -> Result<BlobStat, BlobError>;

    /// The generation of the repository's link: another number whenever the blob is linked anew. Unlike [`Blobs::stat`] it
    /// leases nothing.
    ///
    /// # Errors
    /// `Unknown`, `Unavailable`.
    async fn link_generation(&self, repository: RepositoryKey, digest: &Digest) -> Result<u64, BlobError>;

    /// Removes the link of that generation, at the client's wish, even when it is leased. The caller reads the generation,
    /// then asks whether a manifest uses the blob, then calls this: a manifest that was put in between has renewed the link.
    ///
    /// # Errors
    /// `Unknown`; `InUse` when the link was renewed or is pinned; `Held`, `NoSpace`, `Unavailable`.
    async fn unlink(
        &self,
        repository: RepositoryKey,
        digest: &Digest,
        generation: u64,
    ) -> Result<(), BlobError>;

    /// Stores a manifest's bytes, links them and every digest of `references` (with the length its descriptor states) in one
    /// atomic batch, and pins them all until the result is dropped. `references` must be linked in the repository already.
    ///
    /// # Errors
    /// See [`PutError`]; after an error nothing is linked.
    async fn put(
        &self,
        repository: RepositoryKey,
        digest: &Digest,
        bytes: Bytes,
        references: &[(Digest, u64)],
    ) -> Result<Box<dyn Pins>, PutError>;

    /// Begins an upload session, which counts among those of `uploader`. `algorithm` is a guess that spares a second hashing when
    /// it is right.
    ///
    /// # Errors
    /// `TooMany`, `NoSpace`, `Unavailable`.
    async fn begin_upload(
        &self,
        uploader: Uploader,
        repository: RepositoryKey,
        algorithm: Algorithm,
    ) -> Result<UploadStatus, UploadError>;

    /// Where a session stands.
    ///
    /// # Errors
    /// `Unknown`.
    async fn upload_status(
        &self,
        repository: RepositoryKey,
        id: SessionId,
    ) -> Result<UploadStatus, UploadError>;

    /// Opens a session for writing; one request at a time.
    ///
    /// # Errors
    /// `Unknown`, `Busy`, `Unavailable`.
    async fn open_upload(
        &self,
        repository: RepositoryKey,
        id: SessionId,
    ) -> Result<Box<dyn Upload>, UploadError>;

    /// Ends a session and frees its bytes.
    ///
    /// # Errors
    /// `Unknown`, `Busy`, `Unavailable`.
    async fn abort_upload(&self, repository: RepositoryKey, id: SessionId) -> Result<(), UploadError>;
}
