//! Names in memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use taffrail_blobstore::{Digest, RepositoryKey};
use taffrail_distribution::access::{Grant, Identity};
use taffrail_distribution::catalog::{
    Catalog, CatalogError, ManifestEntry, NewManifest, Page, PageRequest, Precondition, ReferenceKind,
    Referrer,
};
use taffrail_distribution::name::{Reference, RepositoryName, Tag};

use tokio::sync::Notify;

use super::Names;

/// A catalog in memory. The fields are public: tests look at what a call left behind.
pub(crate) struct MemoryCatalog {
    names: Arc<Names>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
pub(crate) struct Inner {
    pub(crate) manifests: BTreeMap<(RepositoryKey, Digest), NewManifest>,
    pub(crate) tags: BTreeMap<(RepositoryKey, Tag), Digest>,
    /// Tags that no rule lets anybody move or delete.
    pub(crate) immutable: Vec<Tag>,
    /// What every call fails with.
    pub(crate) unavailable: bool,
    pub(crate) no_space: bool,
    /// A manifest waits for it.
    pub(crate) stall: Option<Arc<Notify>>,
    /// What happens between the answer of `uses_blob` and whatever the caller does with it.
    pub(crate) after_uses_blob: Option<Box<dyn FnOnce() + Send>>,
    /// Referrers entries handed out, to see that pages cost what they hold.
    pub(crate) referrers_read: usize,
}

impl MemoryCatalog {
    pub(crate) fn new(names: Arc<Names>) -> MemoryCatalog {
        MemoryCatalog { names, inner: Mutex::default() }
    }

    pub(crate) fn with<T>(&self, look: impl FnOnce(&mut Inner) -> T) -> T {
        look(&mut self.inner.lock().unwrap())
    }
}

impl Inner {
    fn up(&self) -> Result<(), CatalogError> {
        if self.unavailable {
            Err(CatalogError::Unavailable("SELECT secret FROM table".to_owned()))
        } else if self.no_space {
            Err(CatalogError::NoSpace)
        } else {
            Ok(())
        }
    }

    fn resolve(&self, repository: RepositoryKey, reference: &Reference) -> Option<Digest> {
        match reference {
            Reference::Digest(digest) => {
                self.manifests.contains_key(&(repository, *digest)).then_some(*digest)
            }
            Reference::Tag(tag) => self.tags.get(&(repository, tag.clone())).copied(),
        }
    }

    fn judge(&self, current: Option<Digest>, precondition: &Precondition) -> Result<(), CatalogError> {
        let holds = match precondition {
            Precondition::None => true,
            Precondition::Absent => current.is_none(),
            Precondition::Is(digests) => {
                current.is_some_and(|current| digests.is_empty() || digests.contains(&current))
            }
            Precondition::IsNot(digests) => current.is_none_or(|current| !digests.contains(&current)),
        };
        if holds { Ok(()) } else { Err(CatalogError::Precondition) }
    }

    fn movable(&self, tag: &Tag) -> Result<(), CatalogError> {
        if self.immutable.contains(tag) {
            return Err(CatalogError::Forbidden { message: format!("tag {tag} is immutable") });
        }
        Ok(())
    }
}

fn page<T>(mut entries: Vec<T>, limit: u32) -> Page<T> {
    assert!(limit > 0, "the contract of PageRequest");
    let limit = usize::try_from(limit).unwrap();
    let more = entries.len() > limit;
    entries.truncate(limit);
    Page { entries, more }
}

#[async_trait]
impl Catalog for MemoryCatalog {
    async fn manifest(&self, grant: &Grant, reference: &Reference) -> Result<ManifestEntry, CatalogError> {
        self.with(|inner| {
            inner.up()?;
            let digest = inner.resolve(grant.repository, reference).ok_or(CatalogError::ManifestUnknown)?;
            let manifest = &inner.manifests[&(grant.repository, digest)];
            Ok(ManifestEntry {
                digest,
                media_type: manifest.media_type.clone(),
                len_bytes: manifest.len_bytes,
            })
        })
    }

    async fn put_manifest(
        &self,
        grant: &Grant,
        _identity: &Identity,
        reference: &Reference,
        manifest: NewManifest,
    ) -> Result<(), CatalogError> {
        let stall = self.with(|inner| inner.stall.clone());
        if let Some(stall) = stall {
            stall.notified().await;
        }
        self.with(|inner| {
            inner.up()?;
            inner.judge(inner.resolve(grant.repository, reference), &manifest.precondition)?;
            for reference in &manifest.references {
                let child = (grant.repository, reference.digest);
                if reference.kind == ReferenceKind::Manifest && !inner.manifests.contains_key(&child) {
                    return Err(CatalogError::ReferenceUnknown(reference.digest));
                }
            }
            for tag in &manifest.tags {
                inner.movable(tag)?;
            }
            for tag in &manifest.tags {
                inner.tags.insert((grant.repository, tag.clone()), manifest.digest);
            }
            inner.manifests.insert((grant.repository, manifest.digest), manifest);
            Ok(())
        })
    }

    async fn delete_tag(
        &self,
        grant: &Grant,
        _identity: &Identity,
        tag: &Tag,
        precondition: Precondition,
    ) -> Result<(), CatalogError> {
        self.with(|inner| {
            inner.up()?;
            let current = inner.tags.get(&(grant.repository, tag.clone())).copied();
            current.ok_or(CatalogError::ManifestUnknown)?;
            inner.judge(current, &precondition)?;
            inner.movable(tag)?;
            inner.tags.remove(&(grant.repository, tag.clone()));
            Ok(())
        })
    }

    async fn delete_manifest(
        &self,
        grant: &Grant,
        _identity: &Identity,
        digest: &Digest,
        precondition: Precondition,
    ) -> Result<(), CatalogError> {
        self.with(|inner| {
            inner.up()?;
            if !inner.manifests.contains_key(&(grant.repository, *digest)) {
                return Err(CatalogError::ManifestUnknown);
            }
            inner.judge(Some(*digest), &precondition)?;
            for ((repository, tag), tagged) in &inner.tags {
                if *repository == grant.repository && tagged == digest {
                    inner.movable(tag)?;
                }
            }
            inner.manifests.remove(&(grant.repository, *digest));
            inner.tags.retain(|(repository, _), tagged| *repository != grant.repository || tagged != digest);
            Ok(())
        })
    }

    async fn uses_blob(&self, grant: &Grant, digest: &Digest) -> Result<bool, CatalogError> {
        let (answer, after) = self.with(|inner| {
            inner.up()?;
            let used = inner.manifests.iter().any(|((repository, own), manifest)| {
                *repository == grant.repository
                    && (own == digest
                        || manifest.references.iter().any(|reference| reference.digest == *digest))
            });
            Ok::<_, CatalogError>((used, inner.after_uses_blob.take()))
        })?;
        if let Some(after) = after {
            after();
        }
        Ok(answer)
    }

    async fn tags(&self, grant: &Grant, request: PageRequest<String>) -> Result<Page<Tag>, CatalogError> {
        self.with(|inner| {
            inner.up()?;
            let tags = inner.tags.keys().filter(|(repository, tag)| {
                *repository == grant.repository
                    && request.after.as_deref().is_none_or(|after| tag.as_str() > after)
            });
            Ok(page(tags.map(|(_, tag)| tag.clone()).collect(), request.limit))
        })
    }

    async fn referrers(
        &self,
        grant: &Grant,
        subject: &Digest,
        artifact_type: Option<&str>,
        request: PageRequest<Digest>,
    ) -> Result<Page<Referrer>, CatalogError> {
        self.with(|inner| {
            inner.up()?;
            let manifests = inner.manifests.iter().filter(|((repository, digest), manifest)| {
                *repository == grant.repository
                    && manifest.subject == Some(*subject)
                    && artifact_type.is_none_or(|wanted| manifest.artifact_type.as_deref() == Some(wanted))
                    && request.after.is_none_or(|after| *digest > after)
            });
            let page = page(
                manifests
                    .map(|((_, digest), manifest)| Referrer {
                        digest: *digest,
                        media_type: manifest.media_type.clone(),
                        len_bytes: manifest.len_bytes,
                        artifact_type: manifest.artifact_type.clone(),
                        annotations: manifest.annotations.clone(),
                    })
                    .collect(),
                request.limit,
            );
            inner.referrers_read += page.entries.len();
            Ok(page)
        })
    }

    async fn repositories(
        &self,
        identity: &Identity,
        request: PageRequest<String>,
    ) -> Result<Page<RepositoryName>, CatalogError> {
        let user = identity.downcast::<String>().unwrap();
        let visible = |name: &RepositoryName| match name.as_str().split('/').next() {
            Some("pa") => ["alice", "dev", "guest", "admin"].contains(&user.as_str()),
            Some("pb") => ["bob", "admin"].contains(&user.as_str()),
            _ => true,
        };
        let names = self.names.all();
        self.with(|inner| {
            inner.up()?;
            let held = names.into_iter().filter(|(name, key)| {
                visible(name)
                    && inner.manifests.keys().any(|(repository, _)| repository == key)
                    && request.after.as_deref().is_none_or(|after| name.as_str() > after)
            });
            Ok(page(held.map(|(name, _)| name).collect(), request.limit))
        })
    }

    async fn repository_name(&self, repository: RepositoryKey) -> Result<RepositoryName, CatalogError> {
        let names = self.names.all();
        let found = names.into_iter().find(|(_, key)| *key == repository);
        found.map(|(name, _)| name).ok_or(CatalogError::RepositoryUnknown)
    }
}
