//! Taking a planned repository in: its blobs, several at once, then its manifests, level by level, with their tags.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use bytes::BytesMut;
use futures_util::stream::{self, StreamExt as _};
use taffrail_blobstore::{Digest, LinkError, PutError, RepositoryKey, SessionId, Shared, Store, UploadError};
use taffrail_core::operator::{Operator, ProjectWas};
use taffrail_core::project::ProjectName;
use taffrail_distribution::access::Grant;
use taffrail_distribution::catalog::{Catalog, CatalogError, NewManifest, Precondition};
use taffrail_distribution::name::{Reference, Tag};

use super::plan::{self, Planned, PlannedManifest, Source};
use super::report::{Refused, Report, What};
use super::tree::{Flaw, Tree, blob_path};
use crate::ambient;
use crate::cli::ImportMode;
use crate::progress::Progress;

/// Blobs taken in at once: small ones share flushes, large ones keep disk and processors busy.
const BLOBS_AT_ONCE: usize = 8;
/// Manifests put at once; they share flushes of the log.
const MANIFESTS_AT_ONCE: usize = 16;
/// Bytes read at once.
const READ_BYTES: usize = 1 << 20;
/// Log that a next opening would have to replay, past which a checkpoint is written.
const REPLAY_BYTES_MAX: u64 = 1 << 30;

/// What becomes of tags that name something else here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tags {
    Kept,
    Moved,
}

/// How things are taken in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct How {
    pub(crate) mode: ImportMode,
    pub(crate) moved: Tags,
    /// Of the configuration, as for a push.
    pub(crate) manifest_bytes_max: usize,
}

/// Decides how bytes are taken in: whether extents can be shared is found out by sharing some.
///
/// # Errors
/// When sharing was asked for and cannot be.
pub(crate) fn mode(wanted: Option<ImportMode>, tree: &Tree, store: &Path) -> anyhow::Result<ImportMode> {
    if wanted == Some(ImportMode::Copy) {
        return Ok(ImportMode::Copy);
    }
    match (can_share(tree, store), wanted) {
        (Ok(()), _) => Ok(ImportMode::Reflink),
        (Err(_), None) => Ok(ImportMode::Copy),
        (Err(error), Some(_)) => Err(error).context(
            "the file systems cannot share extents between the tree and the data directory; leave --mode out, or say \
             --mode copy",
        ),
    }
}

/// Shares the extents of any blob with a file that is gone at once.
fn can_share(tree: &Tree, store: &Path) -> anyhow::Result<()> {
    let some = any_blob(tree)?;
    let flags = rustix::fs::OFlags::TMPFILE | rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
    let probe = rustix::fs::open(store, flags, rustix::fs::Mode::from_raw_mode(0o600))?;
    Ok(rustix::fs::ioctl_ficlone(&probe, &some)?)
}

fn any_blob(tree: &Tree) -> anyhow::Result<File> {
    for algorithm in tree.names("blobs")? {
        for part in tree.names(&format!("blobs/{}", algorithm.name))? {
            for blob in tree.names(&format!("blobs/{}/{}", algorithm.name, part.name))? {
                let digest = Digest::parse(&format!("{}:{}", algorithm.name, blob.name));
                if let Ok(Ok((file, 1..))) = digest.map(|digest| tree.blob(&digest)) {
                    return Ok(file);
                }
            }
        }
    }
    bail!("there is no blob to try it with")
}

/// What came of a blob.
enum Taken {
    /// Its bytes were taken in.
    New,
    /// The store held it, and links it here now.
    Linked,
    /// It was linked here.
    There,
    /// It is not what it is called, or cannot be read.
    Refused(String),
}

/// What came of a manifest.
enum Put {
    New { tags: u64 },
    There { tags: u64, tags_there: u64 },
    Refused(String),
}

/// What becomes of a manifest's tags.
struct Tagging {
    /// To be set.
    tags: Vec<Tag>,
    /// Set already.
    tags_there: u64,
    /// They name something else here, and stay.
    conflicts: Vec<Refused>,
}

/// Takes repositories in, one after the other.
pub(crate) struct Taker<'a> {
    tree: &'a Tree,
    store: Arc<Store>,
    catalog: Arc<dyn Catalog>,
    operator: Operator,
    how: How,
    progress: &'a Progress,
    projects: HashSet<ProjectName>,
    /// Blobs that count in the progress already.
    seen: HashSet<Digest>,
    /// Blobs that were refused; each is reported once.
    bad: BTreeMap<Digest, String>,
}

impl<'a> Taker<'a> {
    pub(crate) fn new(
        tree: &'a Tree,
        store: Arc<Store>,
        catalog: Arc<dyn Catalog>,
        operator: Operator,
        how: How,
        progress: &'a Progress,
    ) -> Taker<'a> {
        Taker {
            tree,
            store,
            catalog,
            operator,
            how,
            progress,
            projects: HashSet::new(),
            seen: HashSet::new(),
            bad: BTreeMap::new(),
        }
    }

    /// Takes a repository in.
    ///
    /// # Errors
    /// What nothing can go on after: the store or the catalog takes no more.
    pub(crate) async fn take(
        &mut self,
        source: &Source,
        planned: Planned,
        report: &mut Report,
    ) -> anyhow::Result<()> {
        report.repositories += 1;
        report.layers_gone += planned.layers_gone;
        report.refused.extend(planned.refused);
        if planned.levels.is_empty() && planned.unreferenced.is_empty() {
            return Ok(());
        }
        if self.projects.insert(source.project.clone())
            && self.operator.ensure_project(&source.project).await? == ProjectWas::Made
        {
            report.projects_made.push(source.project.to_string());
        }
        let grant = self.operator.push_to(&source.name).await;
        let grant = grant.with_context(|| format!("cannot push to {}", source.name))?;
        planned.unreferenced.values().for_each(|len_bytes| report.unreferenced.add(*len_bytes));
        let blobs = planned.blobs.into_iter().chain(planned.unreferenced).collect();
        self.take_blobs(&grant, blobs, report).await?;
        let mut stands = HashSet::new();
        for level in &planned.levels {
            self.put_level(source, &grant, level, &mut stands, report).await?;
        }
        if self.store.replay_bytes() > REPLAY_BYTES_MAX {
            self.store.checkpoint().await?;
        }
        Ok(())
    }

    async fn take_blobs(
        &mut self,
        grant: &Grant,
        blobs: Vec<(Digest, u64)>,
        report: &mut Report,
    ) -> anyhow::Result<()> {
        let (wanted, known): (Vec<_>, Vec<_>) =
            blobs.into_iter().partition(|(digest, _)| !self.bad.contains_key(digest));
        drop(known);
        let mut news = Vec::new();
        for (digest, len_bytes) in wanted {
            let shown = if self.seen.insert(digest) { self.progress.clone() } else { Progress::new(true) };
            news.push((digest, len_bytes, shown));
        }
        let (store, repository, mode) = (&self.store, grant.repository, self.how.mode);
        let mut takes = stream::iter(news)
            .map(|(digest, len_bytes, shown)| {
                // Opened here, so that the tree needs not outlive us.
                let opened = self.tree.blob(&digest);
                let work = take_blob(Arc::clone(store), repository, digest, len_bytes, opened, mode, shown);
                let task = tokio::spawn(work);
                async move { (digest, len_bytes, task.await) }
            })
            .buffer_unordered(BLOBS_AT_ONCE);
        while let Some((digest, len_bytes, taken)) = takes.next().await {
            match taken.context("a blob's task ended")?? {
                Taken::New => report.blobs.add(len_bytes),
                Taken::Linked => report.deduplicated.add(len_bytes),
                Taken::There => report.blobs_skipped.add(len_bytes),
                Taken::Refused(reason) => {
                    report.refused.push(Refused {
                        what: What::Blob,
                        repository: String::new(),
                        name: digest.to_string(),
                        path: blob_path(&digest),
                        reason: reason.clone(),
                    });
                    self.bad.insert(digest, reason);
                }
            }
            let done = report.blobs.count + report.deduplicated.count + report.blobs_skipped.count;
            self.progress.say(format!("{done} blobs, {} manifests", report.manifests));
        }
        Ok(())
    }

    async fn put_level(
        &self,
        source: &Source,
        grant: &Grant,
        level: &[PlannedManifest],
        stands: &mut HashSet<Digest>,
        report: &mut Report,
    ) -> anyhow::Result<()> {
        let mut put_now = Vec::new();
        for manifest in level {
            match manifest.children().find(|child| !stands.contains(*child)) {
                None => put_now.push(manifest),
                Some(child) => {
                    refuse(
                        source,
                        manifest,
                        format!("it needs the manifest {child}, which is refused"),
                        report,
                    );
                }
            }
        }
        let mut puts = stream::iter(put_now)
            .map(async |manifest| (manifest, self.put(source, grant, manifest).await))
            .buffer_unordered(MANIFESTS_AT_ONCE);
        while let Some((manifest, outcome)) = puts.next().await {
            let (put, conflicts) = outcome?;
            report.refused.extend(conflicts);
            match put {
                Put::New { tags } => {
                    report.manifests += 1;
                    report.tags += tags;
                }
                Put::There { tags, tags_there } => {
                    report.manifests_skipped += 1;
                    report.tags += tags;
                    report.tags_skipped += tags_there;
                }
                Put::Refused(reason) => {
                    refuse(source, manifest, reason, report);
                    continue;
                }
            }
            stands.insert(manifest.digest);
        }
        Ok(())
    }

    /// Puts one manifest as a push does: bytes and links, pinned, then the catalog's transaction.
    async fn put(
        &self,
        source: &Source,
        grant: &Grant,
        planned: &PlannedManifest,
    ) -> anyhow::Result<(Put, Vec<Refused>)> {
        let Tagging { tags, tags_there, conflicts } = self.tagging(source, grant, planned).await?;
        let is_there = self.named(grant, &Reference::Digest(planned.digest)).await?.is_some()
            && self.store.link_generation(grant.repository, &planned.digest).is_some();
        if is_there && tags.is_empty() {
            return Ok((Put::There { tags: 0, tags_there }, conflicts));
        }
        let tags_new = tags.len() as u64;
        Ok(match self.push(grant, &planned.digest, tags).await? {
            Err(reason) => (Put::Refused(reason), Vec::new()),
            Ok(()) if is_there => (Put::There { tags: tags_new, tags_there }, conflicts),
            Ok(()) => (Put::New { tags: tags_new }, conflicts),
        })
    }

    /// Which of a manifest's tags are to be set.
    async fn tagging(
        &self,
        source: &Source,
        grant: &Grant,
        planned: &PlannedManifest,
    ) -> anyhow::Result<Tagging> {
        let mut tagging = Tagging { tags: Vec::new(), tags_there: 0, conflicts: Vec::new() };
        for tag in &planned.tags {
            match self.named(grant, &Reference::Tag(tag.clone())).await? {
                Some(digest) if digest == planned.digest => tagging.tags_there += 1,
                Some(digest) if self.how.moved == Tags::Kept => {
                    tagging.conflicts.push(conflict(source, tag, &digest));
                }
                Some(_) | None => tagging.tags.push(tag.clone()),
            }
        }
        Ok(tagging)
    }

    /// Pushes the manifest, or says why it is refused.
    async fn push(
        &self,
        grant: &Grant,
        digest: &Digest,
        tags: Vec<Tag>,
    ) -> anyhow::Result<Result<(), String>> {
        let read = plan::read_manifest(self.tree, digest, self.how.manifest_bytes_max)
            .and_then(|bytes| Ok((plan::parse(&bytes)?, bytes)));
        let (manifest, bytes) = match read {
            Ok(read) => read,
            Err(reason) => return Ok(Err(reason)),
        };
        let mut references = manifest.references;
        let is_here = |digest: &Digest| self.store.link_generation(grant.repository, digest).is_some();
        references.extend(manifest.foreign.into_iter().filter(|foreign| is_here(&foreign.digest)));
        let mut seen = HashSet::new();
        let links: Vec<(Digest, u64)> = references
            .iter()
            .filter(|reference| seen.insert(reference.digest))
            .map(|reference| (reference.digest, reference.len_bytes))
            .collect();
        let len_bytes = bytes.len() as u64;
        let pins = match self.store.put(grant.repository, digest, bytes, &links, ambient::now_ms()).await {
            Ok(pins) => pins,
            Err(PutError::Missing(missing)) => return Ok(Err(self.why_missing(&missing))),
            Err(error @ (PutError::Length { .. } | PutError::TooLarge(_) | PutError::Mismatch(_))) => {
                return Ok(Err(error.to_string()));
            }
            Err(error) => return Err(error.into()),
        };
        let new = NewManifest {
            digest: *digest,
            media_type: manifest.media_type,
            len_bytes,
            artifact_type: manifest.artifact_type,
            subject: manifest.subject,
            annotations: manifest.annotations,
            references,
            tags,
            precondition: Precondition::None,
        };
        let reference = Reference::Digest(*digest);
        let put = self.catalog.put_manifest(grant, self.operator.identity(), &reference, new).await;
        drop(pins);
        match put {
            Ok(()) => Ok(Ok(())),
            Err(error @ (CatalogError::ReferenceUnknown(_) | CatalogError::Forbidden { .. })) => {
                Ok(Err(error.to_string()))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn why_missing(&self, missing: &[Digest]) -> String {
        let Some(digest) = missing.first() else { return "something that it needs is missing".to_owned() };
        let why = self.bad.get(digest).map_or("is missing", String::as_str);
        format!("it needs {digest}, and {} {why}", blob_path(digest))
    }

    async fn named(&self, grant: &Grant, reference: &Reference) -> anyhow::Result<Option<Digest>> {
        match self.catalog.manifest(grant, reference).await {
            Ok(entry) => Ok(Some(entry.digest)),
            Err(CatalogError::ManifestUnknown) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

fn refuse(source: &Source, manifest: &PlannedManifest, reason: String, report: &mut Report) {
    report.refused.push(plan::of_manifest(source, &manifest.digest, reason));
    report.refused.extend(plan::tags_of(source, manifest));
}

fn conflict(source: &Source, tag: &Tag, digest: &Digest) -> Refused {
    Refused {
        what: What::Tag,
        repository: source.path.clone(),
        name: tag.to_string(),
        path: format!("repositories/{}/_manifests/tags/{tag}/current/link", source.path),
        reason: format!("{}:{tag} names {digest} here already; --move-tags moves it", source.name),
    }
}

/// Sees to it that the repository holds the blob. Hashing and reading block the thread: this runtime has nothing else to do.
async fn take_blob(
    store: Arc<Store>,
    repository: RepositoryKey,
    digest: Digest,
    len_bytes: u64,
    opened: Result<(File, u64), Flaw>,
    mode: ImportMode,
    shown: Progress,
) -> anyhow::Result<Taken> {
    let now_ms = ambient::now_ms();
    let is_same = |held: taffrail_blobstore::BlobStat| held.len_bytes == len_bytes;
    if store.stat(repository, &digest, now_ms).is_ok_and(is_same) {
        shown.advance(len_bytes);
        return Ok(Taken::There);
    }
    let file = match opened {
        Ok((file, actual_bytes)) if actual_bytes == len_bytes => file,
        Ok((_, actual_bytes)) => {
            return Ok(Taken::Refused(format!("has {actual_bytes} bytes now, and had {len_bytes}")));
        }
        Err(flaw) => return Ok(Taken::Refused(flaw.to_string())),
    };
    if let Some(holder) = store.holders(&digest, 1).first() {
        match store.mount(*holder, repository, &digest, now_ms).await {
            Ok(_) => {
                shown.advance(len_bytes);
                return Ok(Taken::Linked);
            }
            Err(LinkError::Unknown) => {}
            Err(error) => return Err(error.into()),
        }
    }
    match upload(&store, repository, digest, len_bytes, file, mode, &shown).await {
        Ok(()) => Ok(Taken::New),
        Err(Failed::Source(error)) => Ok(Taken::Refused(Flaw::Io(error).to_string())),
        Err(Failed::Store(UploadError::Mismatch { actual })) => {
            Ok(Taken::Refused(format!("is damaged: its bytes have the digest {actual}")))
        }
        Err(Failed::Store(error @ UploadError::TooLarge { .. })) => Ok(Taken::Refused(error.to_string())),
        Err(Failed::Store(error)) => Err(error).with_context(|| blob_path(&digest)),
    }
}

enum Failed {
    Source(std::io::Error),
    Store(UploadError),
}

impl From<UploadError> for Failed {
    fn from(error: UploadError) -> Failed {
        Failed::Store(error)
    }
}

async fn upload(
    store: &Store,
    repository: RepositoryKey,
    digest: Digest,
    len_bytes: u64,
    mut file: File,
    mode: ImportMode,
    shown: &Progress,
) -> Result<(), Failed> {
    let id = SessionId::new(ambient::random_bytes());
    store.begin_upload(repository, digest.algorithm(), id, ambient::now_ms())?;
    let mut upload = store.open_upload(repository, id, ambient::now_ms()).await?;
    upload.end_when_dropped();
    if mode == ImportMode::Reflink {
        let source = file.try_clone().map_err(Failed::Source)?;
        if upload.share(source, len_bytes, ambient::now_ms()).await? == Shared::Whole {
            upload.commit(&digest, ambient::now_ms()).await?;
            shown.advance(len_bytes);
            return Ok(());
        }
    }
    let mut left = len_bytes;
    while left > 0 {
        let len = usize::try_from(left).unwrap_or(READ_BYTES).min(READ_BYTES);
        let mut buffer = BytesMut::zeroed(len);
        file.read_exact(&mut buffer).map_err(Failed::Source)?;
        upload.write(buffer.freeze(), ambient::now_ms()).await?;
        left -= len as u64;
        shown.advance(len as u64);
    }
    upload.commit(&digest, ambient::now_ms()).await?;
    Ok(())
}
