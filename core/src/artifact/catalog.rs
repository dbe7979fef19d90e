//! The catalog that distribution works on, over SQL.
//!
//! What must stay true: a manifest becomes visible with its references and tags in one transaction, and goes with its tags
//! and outbox rows in one. Preconditions are judged within that transaction, so that of two writers one loses. A write that
//! was begun comes to its end although its request is dropped: the cache must hear of every commit.

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use taffrail_blobstore::{Digest, RepositoryKey};
use taffrail_distribution::access::{Grant, Identity};
use taffrail_distribution::catalog::{
    Catalog, CatalogError, ManifestEntry, NewManifest, Page, PageRequest, Precondition, Referrer,
};
use taffrail_distribution::name::{Reference, RepositoryName, Tag};

use super::cache::ManifestCache;
use super::store;
use crate::context::Context;
use crate::db::{Database, DbError, in_time};
use crate::outbox::Outbox;
use crate::project::store::Visibility;
use crate::repository::store::RepositoryStore;

/// What an identity may see in a list of repositories; supplied by the authorizer.
pub type VisibilityOf =
    std::sync::Arc<dyn Fn(&Identity) -> BoxFuture<'static, Result<Visibility, DbError>> + Send + Sync>;

/// The catalog.
#[derive(Clone)]
pub struct SqlCatalog {
    database: Database,
    context: Context,
    repositories: RepositoryStore,
    visibility_of: VisibilityOf,
    cache: ManifestCache,
    outbox: Outbox,
}

impl std::fmt::Debug for SqlCatalog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SqlCatalog")
    }
}

impl From<DbError> for CatalogError {
    fn from(error: DbError) -> CatalogError {
        match error {
            DbError::NoSpace => CatalogError::NoSpace,
            other @ (DbError::Conflict | DbError::Unavailable(_)) => {
                CatalogError::Unavailable(other.to_string())
            }
        }
    }
}

impl SqlCatalog {
    /// The catalog of a database.
    pub fn new(database: Database, context: Context, visibility_of: VisibilityOf) -> SqlCatalog {
        let repositories = RepositoryStore::new(database.clone(), context.clone());
        let outbox = Outbox::new(database.clone(), context.clone());
        SqlCatalog { database, context, repositories, visibility_of, cache: ManifestCache::new(), outbox }
    }

    /// Runs a write to a repository in a task of its own, to its end, and makes the cache forget before the outcome is known to
    /// anybody.
    async fn write_to_the_end(
        &self,
        repository: RepositoryKey,
        write: impl Future<Output = Result<(), CatalogError>> + Send + 'static,
    ) -> Result<(), CatalogError> {
        let cache = self.cache.clone();
        let task = tokio::spawn(async move {
            let outcome = write.await;
            cache.forget(repository);
            outcome
        });
        task.await.unwrap_or_else(|error| Err(CatalogError::Unavailable(error.to_string())))
    }

    /// The same; whoever asked is told when it takes too long, and the write is not given up.
    async fn write(
        &self,
        repository: RepositoryKey,
        write: impl Future<Output = Result<(), CatalogError>> + Send + 'static,
    ) -> Result<(), CatalogError> {
        in_time(self.write_to_the_end(repository, write)).await
    }
}

/// The write of [`Catalog::put_manifest`].
async fn put(
    database: Database,
    repository: RepositoryKey,
    reference: Reference,
    manifest: NewManifest,
    now_us: i64,
) -> Result<(), CatalogError> {
    let mut write = database.write().await?;
    if !store::repository_exists(&mut write, repository).await? {
        return Err(CatalogError::RepositoryUnknown);
    }
    if manifest.precondition != Precondition::None {
        let found = store::find_for_write(&mut write, repository, &reference).await?;
        if !store::holds(&manifest.precondition, found.as_ref()) {
            return Err(CatalogError::Precondition);
        }
    }
    if let Some(missing) = store::missing_child(&mut write, repository, &manifest).await? {
        return Err(CatalogError::ReferenceUnknown(missing));
    }
    let id = store::insert(&mut write, repository, &manifest, now_us).await?;
    for tag in &manifest.tags {
        store::move_tag(&mut write, repository, tag, id, now_us).await?;
    }
    Ok(write.commit().await.map_err(DbError::from)?)
}

/// The write of [`Catalog::delete_tag`].
async fn delete_tag(
    database: Database,
    repository: RepositoryKey,
    tag: Tag,
    precondition: Precondition,
) -> Result<(), CatalogError> {
    let mut write = database.write().await?;
    let found = store::find_for_write(&mut write, repository, &Reference::Tag(tag.clone())).await?;
    if found.is_none() {
        return Err(CatalogError::ManifestUnknown);
    }
    if !store::holds(&precondition, found.as_ref()) {
        return Err(CatalogError::Precondition);
    }
    store::remove_tag(&mut write, repository, &tag).await?;
    Ok(write.commit().await.map_err(DbError::from)?)
}

/// The write of [`Catalog::delete_manifest`].
async fn delete_manifest(
    database: Database,
    repository: RepositoryKey,
    digest: Digest,
    precondition: Precondition,
    now_us: i64,
) -> Result<(), CatalogError> {
    let mut write = database.write().await?;
    let found = store::find_for_write(&mut write, repository, &Reference::Digest(digest)).await?;
    let Some(found) = found else { return Err(CatalogError::ManifestUnknown) };
    if !store::holds(&precondition, Some(&found)) {
        return Err(CatalogError::Precondition);
    }
    store::remove(&mut write, repository, &found, now_us).await?;
    Ok(write.commit().await.map_err(DbError::from)?)
}

/// Cuts one entry too many off; it only says that there is more.
fn page<T>(mut entries: Vec<T>, limit: u32) -> Page<T> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = entries.len() > limit;
    entries.truncate(limit);
    Page { entries, more }
}

#[async_trait]
impl Catalog for SqlCatalog {
    async fn manifest(&self, grant: &Grant, reference: &Reference) -> Result<ManifestEntry, CatalogError> {
        if let Some(entry) = self.cache.find(grant.repository, reference) {
            return Ok(entry);
        }
        let epoch = self.cache.epoch(grant.repository);
        let found = store::find(&self.database, grant.repository, reference).await?;
        let entry = found.and_then(|found| found.entry()).ok_or(CatalogError::ManifestUnknown)?;
        self.cache.remember(grant.repository, reference, epoch, entry.clone());
        Ok(entry)
    }

    async fn put_manifest(
        &self,
        grant: &Grant,
        _identity: &Identity,
        reference: &Reference,
        manifest: NewManifest,
    ) -> Result<(), CatalogError> {
        let (database, now_us) = (self.database.clone(), self.context.now_micros());
        let write = put(database, grant.repository, reference.clone(), manifest, now_us);
        // However long it takes: the caller holds pins until it is over.
        self.write_to_the_end(grant.repository, write).await
    }

    async fn delete_tag(
        &self,
        grant: &Grant,
        _identity: &Identity,
        tag: &Tag,
        precondition: Precondition,
    ) -> Result<(), CatalogError> {
        let write = delete_tag(self.database.clone(), grant.repository, tag.clone(), precondition);
        self.write(grant.repository, write).await
    }

    async fn delete_manifest(
        &self,
        grant: &Grant,
        _identity: &Identity,
        digest: &Digest,
        precondition: Precondition,
    ) -> Result<(), CatalogError> {
        let (database, now_us) = (self.database.clone(), self.context.now_micros());
        let write = delete_manifest(database, grant.repository, *digest, precondition, now_us);
        self.write(grant.repository, write).await
    }

    async fn uses_blob(&self, grant: &Grant, digest: &Digest) -> Result<bool, CatalogError> {
        Ok(self.outbox.is_named(grant.repository, digest).await?)
    }

    async fn tags(&self, grant: &Grant, request: PageRequest<String>) -> Result<Page<Tag>, CatalogError> {
        let after = request.after.unwrap_or_default();
        let limit = i64::from(request.limit) + 1;
        let names = store::tags(&self.database, grant.repository, &after, limit).await?;
        let tags = names.iter().filter_map(|name| Tag::parse(name).ok()).collect();
        Ok(page(tags, request.limit))
    }

    async fn referrers(
        &self,
        grant: &Grant,
        subject: &Digest,
        artifact_type: Option<&str>,
        request: PageRequest<Digest>,
    ) -> Result<Page<Referrer>, CatalogError> {
        let after = request.after.map(|digest| digest.to_string()).unwrap_or_default();
        let limit = i64::from(request.limit) + 1;
        let entries =
            store::referrers(&self.database, grant.repository, subject, artifact_type, &after, limit).await?;
        Ok(page(entries, request.limit))
    }

    async fn repositories(
        &self,
        identity: &Identity,
        request: PageRequest<String>,
    ) -> Result<Page<RepositoryName>, CatalogError> {
        let after = request.after.unwrap_or_default();
        let limit = i64::from(request.limit) + 1;
        let visibility = (self.visibility_of)(identity).await?;
        let names = store::repositories(&self.database, visibility, &after, limit).await?;
        let names = names.iter().filter_map(|name| RepositoryName::parse(name).ok()).collect();
        Ok(page(names, request.limit))
    }

    async fn repository_name(&self, repository: RepositoryKey) -> Result<RepositoryName, CatalogError> {
        let found = self.repositories.by_key(repository).await?;
        found.map(|found| found.name).ok_or(CatalogError::RepositoryUnknown)
    }
}
