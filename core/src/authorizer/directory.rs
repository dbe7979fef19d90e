//! What the authorizer must know, kept in memory: projects, repositories, roles.
//!
//! What must stay true: a change is seen by the next request. Every administrative write goes through
//! [`Directory::change`], which empties the caches; a reader who looked before the change does not put what it saw in after.
//! What is absent is remembered like what is there, so that the time of an answer does not tell them apart.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use moka::sync::Cache;
use taffrail_blobstore::RepositoryKey;
use taffrail_distribution::name::RepositoryName;

use crate::db::{DbError, in_time};
use crate::identity::Epoch;
use crate::project::store::ProjectStore;
use crate::project::{ProjectFacts, ProjectId, ProjectRef};
use crate::repository::Repository;
use crate::repository::store::RepositoryStore;
use crate::user::UserId;
use crate::user::store::UserStore;

/// Entries of each cache, about 200 bytes each, and a name of at most 255. Of many names that are asked for once
/// few get in: the cache prefers what is asked for often.
const CACHED_MAX: u64 = 100_000;

/// Entries are read again after so long, should another process have changed the database.
const CACHED_FOR: Duration = Duration::from_secs(60);

/// A user, as the authorizer sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserFacts {
    /// Whether they may do everything.
    pub sysadmin: bool,
    /// Which password is theirs today.
    pub epoch: Epoch,
}

/// The caches over the stores.
#[derive(Clone)]
pub struct Directory {
    projects: ProjectStore,
    repositories: RepositoryStore,
    users: UserStore,
    inner: Arc<Inner>,
}

struct Inner {
    generation: AtomicU64,
    /// Held for reading while something is put in, for writing while everything is thrown out.
    turn: RwLock<()>,
    by_asked: Cache<(Option<UserId>, ProjectRef), Option<ProjectFacts>>,
    by_repository: Cache<RepositoryName, Repository>,
    by_user: Cache<UserId, UserFacts>,
}

impl std::fmt::Debug for Directory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Directory")
    }
}

fn cache<K, V>() -> Cache<K, V>
where
    K: std::hash::Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    Cache::builder().max_capacity(CACHED_MAX).time_to_live(CACHED_FOR).build()
}

impl Directory {
    /// Over these stores.
    pub fn new(projects: ProjectStore, repositories: RepositoryStore, users: UserStore) -> Directory {
        let inner = Inner {
            generation: AtomicU64::new(0),
            turn: RwLock::default(),
            by_asked: cache(),
            by_repository: cache(),
            by_user: cache(),
        };
        Directory { projects, repositories, users, inner: Arc::new(inner) }
    }

    /// Does a change of a project, a membership or a user, and sees to it that nothing that was read before counts any more.
    ///
    /// Both in a task of their own: a handler is dropped when its client hangs up, and a change that was committed but not made
    /// known would leave open what it closed.
    ///
    /// # Errors
    /// `Unavailable` when the task died, or takes too long.
    pub async fn change<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, DbError> {
        let directory = self.clone();
        let task = tokio::spawn(async move {
            let done = work.await;
            directory.changed();
            done
        });
        // Whoever asked is told that it takes too long; the change is not given up.
        in_time(async { task.await.map_err(|error| DbError::Unavailable(error.to_string())) }).await
    }

    fn changed(&self) {
        let _turn = self.inner.turn.write().unwrap_or_else(PoisonError::into_inner);
        self.inner.generation.fetch_add(1, Ordering::AcqRel);
        self.inner.by_asked.invalidate_all();
        self.inner.by_repository.invalidate_all();
        self.inner.by_user.invalidate_all();
    }

    fn generation(&self) -> u64 {
        self.inner.generation.load(Ordering::Acquire)
    }

    /// Runs `put` unless something changed since `generation` was read.
    fn put(&self, generation: u64, put: impl FnOnce(&Inner)) {
        let _turn = self.inner.turn.read().unwrap_or_else(PoisonError::into_inner);
        if self.generation() == generation {
            put(&self.inner);
        }
    }

    /// A project, and what `user` is in it; nobody known without one.
    ///
    /// Remembered for each user by themselves: an outsider could else tell a hidden project that its members use just now, and
    /// that is remembered therefore, from one that is not there.
    ///
    /// # Errors
    /// Faults of the database.
    pub async fn project(
        &self,
        user: Option<UserId>,
        project: ProjectRef,
    ) -> Result<Option<ProjectFacts>, DbError> {
        let asked = (user, project);
        if let Some(facts) = self.inner.by_asked.get(&asked) {
            return Ok(facts);
        }
        let generation = self.generation();
        let facts = self.projects.facts(&asked.1, user).await?;
        self.put(generation, |inner| inner.by_asked.insert(asked, facts));
        Ok(facts)
    }

    /// The repository of that name in that project.
    ///
    /// # Errors
    /// Faults of the database.
    pub async fn repository(
        &self,
        project: ProjectId,
        name: &RepositoryName,
    ) -> Result<Option<Repository>, DbError> {
        if let Some(found) = self.inner.by_repository.get(name) {
            return Ok(Some(found).filter(|found| found.project == project));
        }
        let generation = self.generation();
        let Some(found) = self.repositories.find(name).await? else { return Ok(None) };
        self.put(generation, |inner| inner.by_repository.insert(name.clone(), found.clone()));
        Ok(Some(found).filter(|found| found.project == project))
    }

    /// The repository of that name in that project; made when there is none.
    ///
    /// # Errors
    /// Faults of the database.
    pub async fn repository_for_push(
        &self,
        project: ProjectId,
        name: &RepositoryName,
    ) -> Result<Option<Repository>, DbError> {
        if let Some(found) = self.repository(project, name).await? {
            return Ok(Some(found));
        }
        match in_time(self.repositories.find_or_create(project, name)).await {
            Ok(made) => Ok(Some(made).filter(|made| made.project == project)),
            // The project went meanwhile.
            Err(DbError::Conflict) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// See [`RepositoryStore::seen`]. Not remembered: a push makes repositories at any time, and a mount is for what was just
    /// pushed.
    ///
    /// # Errors
    /// Faults of the database.
    pub async fn seen(&self, member: Option<UserId>, limit: usize) -> Result<Vec<RepositoryKey>, DbError> {
        self.repositories.seen(member, limit).await
    }

    /// The user of that id.
    ///
    /// # Errors
    /// Faults of the database.
    pub async fn user(&self, id: UserId) -> Result<Option<UserFacts>, DbError> {
        if let Some(facts) = self.inner.by_user.get(&id) {
            return Ok(Some(facts));
        }
        let generation = self.generation();
        let Some((user, stored)) = self.users.by_id(id).await? else { return Ok(None) };
        let facts = UserFacts { sysadmin: user.sysadmin, epoch: Epoch::of(&stored) };
        self.put(generation, |inner| inner.by_user.insert(id, facts));
        Ok(Some(facts))
    }
}
