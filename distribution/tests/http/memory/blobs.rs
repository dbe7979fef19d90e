//! Bytes in memory, with the promises of the boundary and switches for its faults.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use taffrail_blobstore::{Algorithm, Digest, RepositoryKey, SessionId, Uploader};
use taffrail_distribution::blobs::{
    BlobError, BlobReader, BlobStat, Blobs, Pins, PutError, Upload, UploadError, UploadStatus,
};

/// What goes wrong with every write from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    NoSpace,
    Unavailable,
}

/// A store in memory. The fields are public: tests look at what a call left behind.
#[derive(Default)]
pub(crate) struct MemoryBlobs(Arc<Mutex<Inner>>);

#[derive(Default)]
pub(crate) struct Inner {
    pub(crate) blobs: BTreeMap<Digest, Bytes>,
    pub(crate) links: BTreeSet<(RepositoryKey, Digest)>,
    /// How often each was linked.
    pub(crate) generations: BTreeMap<(RepositoryKey, Digest), u64>,
    pub(crate) leases: Vec<(RepositoryKey, Digest)>,
    pub(crate) sessions: BTreeMap<SessionId, Session>,
    pub(crate) sessions_max: Option<usize>,
    pub(crate) sessions_made: u64,
    pub(crate) bytes_hashed: u64,
    pub(crate) bytes_read: u64,
    /// Repositories in which a blob's link was looked for.
    pub(crate) looked_in: Vec<RepositoryKey>,
    pub(crate) pins: usize,
    pub(crate) fault: Option<Fault>,
    /// From this byte on the blob is damaged.
    pub(crate) damaged: BTreeMap<Digest, u64>,
}

pub(crate) struct Session {
    pub(crate) repository: RepositoryKey,
    pub(crate) bytes: BytesMut,
    pub(crate) busy: bool,
}

impl MemoryBlobs {
    pub(crate) fn with<T>(&self, look: impl FnOnce(&mut Inner) -> T) -> T {
        look(&mut self.0.lock().unwrap())
    }
}

impl Inner {
    fn link(&mut self, repository: RepositoryKey, digest: Digest) {
        self.links.insert((repository, digest));
        *self.generations.entry((repository, digest)).or_default() += 1;
    }

    fn generation(&self, repository: RepositoryKey, digest: &Digest) -> u64 {
        self.generations.get(&(repository, *digest)).copied().unwrap_or(0)
    }

    fn fails(&self) -> Option<Fault> {
        self.fault
    }

    fn find(&self, repository: RepositoryKey, digest: &Digest) -> Result<Bytes, BlobError> {
        if self.links.contains(&(repository, *digest)) {
            self.blobs.get(digest).cloned().ok_or(BlobError::Unknown)
        } else {
            Err(BlobError::Unknown)
        }
    }
}

fn unavailable() -> String {
    "disk at /var/lib/secret-path does not answer".to_owned()
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Failure {
        Failure(fault)
    }
}

struct Failure(Fault);

impl From<Failure> for BlobError {
    fn from(failure: Failure) -> BlobError {
        match failure.0 {
            Fault::NoSpace => BlobError::NoSpace,
            Fault::Unavailable => BlobError::Unavailable(unavailable()),
        }
    }
}

impl From<Failure> for UploadError {
    fn from(failure: Failure) -> UploadError {
        match failure.0 {
            Fault::NoSpace => UploadError::NoSpace,
            Fault::Unavailable => UploadError::Unavailable(unavailable()),
        }
    }
}

impl From<Failure> for PutError {
    fn from(failure: Failure) -> PutError {
        match failure.0 {
            Fault::NoSpace => PutError::NoSpace,
            Fault::Unavailable => PutError::Unavailable(unavailable()),
        }
    }
}

struct Reader {
    inner: Arc<Mutex<Inner>>,
    digest: Digest,
    bytes: Bytes,
}

#[async_trait]
impl BlobReader for Reader {
    fn len_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    async fn read(&mut self, offset_bytes: u64, end_bytes: u64) -> Result<Bytes, BlobError> {
        assert!(
            offset_bytes < end_bytes && end_bytes <= self.len_bytes(),
            "the contract of BlobReader::read"
        );
        // Blocks like those of the engine, so that answers have several frames.
        let end_bytes = end_bytes.min(offset_bytes + 1024);
        let mut inner = self.inner.lock().unwrap();
        if inner.damaged.get(&self.digest).is_some_and(|from| end_bytes > *from) {
            return Err(BlobError::Corrupt(self.digest));
        }
        inner.bytes_read += end_bytes - offset_bytes;
        Ok(self.bytes.slice(usize::try_from(offset_bytes).unwrap()..usize::try_from(end_bytes).unwrap()))
    }
}

struct Writer {
    inner: Arc<Mutex<Inner>>,
    id: SessionId,
    began_bytes: usize,
    ends: bool,
}

impl Writer {
    fn session<T>(&self, change: impl FnOnce(&mut Session) -> T) -> T {
        change(self.inner.lock().unwrap().sessions.get_mut(&self.id).unwrap())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let mut inner = self.inner.lock().unwrap();
        if self.ends {
            inner.sessions.remove(&self.id);
        } else if let Some(session) = inner.sessions.get_mut(&self.id) {
            session.busy = false;
        }
    }
}

#[async_trait]
impl Upload for Writer {
    fn offset_bytes(&self) -> u64 {
        self.session(|session| session.bytes.len() as u64)
    }

    fn end_when_dropped(&mut self) {
        self.ends = true;
    }

    async fn write(&mut self, bytes: Bytes) -> Result<(), UploadError> {
        let fault = self.inner.lock().unwrap().fails();
        if let Some(fault) = fault {
            if fault == Fault::NoSpace {
                self.inner.lock().unwrap().sessions.remove(&self.id);
            }
            return Err(Failure(fault).into());
        }
        self.inner.lock().unwrap().bytes_hashed += bytes.len() as u64;
        self.session(|session| session.bytes.extend_from_slice(&bytes));
        Ok(())
    }

    async fn restart(&mut self) -> Result<(), UploadError> {
        self.began_bytes = 0;
        self.session(|session| session.bytes.clear());
        Ok(())
    }

    fn rewind(&mut self) {
        let began_bytes = self.began_bytes;
        self.session(|session| session.bytes.truncate(began_bytes));
    }

    async fn acknowledge(self: Box<Self>) -> Result<UploadStatus, UploadError> {
        Ok(UploadStatus { id: self.id, offset_bytes: self.offset_bytes() })
    }

    async fn commit(mut self: Box<Self>, digest: &Digest) -> Result<BlobStat, UploadError> {
        let fault = self.inner.lock().unwrap().fails();
        if let Some(fault) = fault {
            return Err(Failure(fault).into());
        }
        let (repository, bytes) =
            self.session(|session| (session.repository, session.bytes.clone().freeze()));
        let actual = Digest::of(digest.algorithm(), &bytes);
        if actual != *digest {
            self.rewind();
            return Err(UploadError::Mismatch { actual });
        }
        let mut inner = self.inner.lock().unwrap();
        inner.sessions.remove(&self.id);
        let len_bytes = bytes.len() as u64;
        inner.blobs.insert(*digest, bytes);
        inner.link(repository, *digest);
        Ok(BlobStat { digest: *digest, len_bytes })
    }
}

struct Pinned(Arc<Mutex<Inner>>);

impl Pins for Pinned {}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.0.lock().unwrap().pins -= 1;
    }
}

#[async_trait]
impl Blobs for MemoryBlobs {
    async fn stat(&self, repository: RepositoryKey, digest: &Digest) -> Result<BlobStat, BlobError> {
        self.with(|inner| {
            let bytes = inner.find(repository, digest)?;
            inner.leases.push((repository, *digest));
            Ok(BlobStat { digest: *digest, len_bytes: bytes.len() as u64 })
        })
    }

    async fn open(
        &self,
        repository: RepositoryKey,
        digest: &Digest,
    ) -> Result<Box<dyn BlobReader>, BlobError> {
        let bytes = self.with(|inner| inner.find(repository, digest))?;
        Ok(Box::new(Reader { inner: Arc::clone(&self.0), digest: *digest, bytes }))
    }

    async fn holders(&self, digest: &Digest, limit: usize) -> Vec<RepositoryKey> {
        self.with(|inner| {
            let holders = inner.links.iter().filter(|(_, held)| held == digest);
            holders.map(|(repository, _)| *repository).take(limit).collect()
        })
    }

    async fn mount(
        &self,
        from: RepositoryKey,
        to: RepositoryKey,
        digest: &Digest,
    ) -> Result<BlobStat, BlobError> {
        self.with(|inner| {
            inner.looked_in.push(from);
            let bytes = inner.find(from, digest)?;
            inner.link(to, *digest);
            Ok(BlobStat { digest: *digest, len_bytes: bytes.len() as u64 })
        })
    }

    async fn link_generation(&self, repository: RepositoryKey, digest: &Digest) -> Result<u64, BlobError> {
        self.with(|inner| {
            inner.looked_in.push(repository);
            inner.find(repository, digest)?;
            Ok(inner.generation(repository, digest))
        })
    }

    async fn unlink(
        &self,
        repository: RepositoryKey,
        digest: &Digest,
        generation: u64,
    ) -> Result<(), BlobError> {
        self.with(|inner| {
            if let Some(fault) = inner.fails() {
                return Err(Failure(fault).into());
            }
            inner.find(repository, digest)?;
            if inner.pins > 0 || inner.generation(repository, digest) != generation {
                return Err(BlobError::InUse);
            }
            inner.links.remove(&(repository, *digest));
            Ok(())
        })
    }

    async fn put(
        &self,
        repository: RepositoryKey,
        digest: &Digest,
        bytes: Bytes,
        references: &[(Digest, u64)],
    ) -> Result<Box<dyn Pins>, PutError> {
        self.with(|inner| {
            if let Some(fault) = inner.fails() {
                return Err(Failure(fault).into());
            }
            let mut missing = Vec::new();
            for (reference, stated_bytes) in references {
                match inner.find(repository, reference) {
                    Ok(bytes) if bytes.len() as u64 != *stated_bytes => {
                        return Err(PutError::Length {
                            digest: *reference,
                            actual_bytes: bytes.len() as u64,
                            stated_bytes: *stated_bytes,
                        });
                    }
                    Ok(_) => {}
                    Err(_) => missing.push(*reference),
                }
            }
            if !missing.is_empty() {
                return Err(PutError::Missing(missing));
            }
            inner.blobs.insert(*digest, bytes);
            inner.link(repository, *digest);
            for (reference, _) in references {
                inner.link(repository, *reference);
            }
            inner.pins += 1;
            Ok::<Box<dyn Pins>, PutError>(Box::new(Pinned(Arc::clone(&self.0))))
        })
    }

    async fn begin_upload(
        &self,
        _uploader: Uploader,
        repository: RepositoryKey,
        _algorithm: Algorithm,
    ) -> Result<UploadStatus, UploadError> {
        self.with(|inner| {
            if let Some(fault) = inner.fails() {
                return Err(Failure(fault).into());
            }
            if inner.sessions_max.is_some_and(|max| inner.sessions.len() >= max) {
                return Err(UploadError::TooMany);
            }
            inner.sessions_made += 1;
            let mut bytes = [7_u8; 16];
            bytes[..8].copy_from_slice(&inner.sessions_made.to_le_bytes());
            let id = SessionId::new(bytes);
            inner.sessions.insert(id, Session { repository, bytes: BytesMut::new(), busy: false });
            Ok(UploadStatus { id, offset_bytes: 0 })
        })
    }

    async fn upload_status(
        &self,
        repository: RepositoryKey,
        id: SessionId,
    ) -> Result<UploadStatus, UploadError> {
        self.with(|inner| {
            let session = inner.sessions.get(&id).filter(|session| session.repository == repository);
            let session = session.ok_or(UploadError::Unknown)?;
            Ok(UploadStatus { id, offset_bytes: session.bytes.len() as u64 })
        })
    }

    async fn open_upload(
        &self,
        repository: RepositoryKey,
        id: SessionId,
    ) -> Result<Box<dyn Upload>, UploadError> {
        let began_bytes = self.with(|inner| {
            let session = inner.sessions.get_mut(&id).filter(|session| session.repository == repository);
            let session = session.ok_or(UploadError::Unknown)?;
            if session.busy {
                return Err(UploadError::Busy);
            }
            session.busy = true;
            Ok(session.bytes.len())
        })?;
        Ok(Box::new(Writer { inner: Arc::clone(&self.0), id, began_bytes, ends: false }))
    }

    async fn abort_upload(&self, repository: RepositoryKey, id: SessionId) -> Result<(), UploadError> {
        self.with(|inner| {
            let session = inner.sessions.get(&id).filter(|session| session.repository == repository);
            if session.ok_or(UploadError::Unknown)?.busy {
                return Err(UploadError::Busy);
            }
            inner.sessions.remove(&id);
            Ok(())
        })
    }
}
