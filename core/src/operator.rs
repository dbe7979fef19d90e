//! The operator: whoever works on a registry's data while no server runs. What they do is done as by an administrator.

use taffrail_distribution::access::{AccessControl as _, AccessError, Action, Grant, Identity, Missing};
use taffrail_distribution::name::RepositoryName;

use crate::authorizer::access_control::CoreAccess;
use crate::authorizer::directory::Directory;
use crate::db::DbError;
use crate::facade::ADMIN;
use crate::identity::{Epoch, Identity as CoreIdentity};
use crate::project::store::ProjectStore;
use crate::project::{ProjectName, ProjectRef};
use crate::user::store::UserStore;
use crate::user::{StoredPassword, User, UserId};

/// Users of one page while an administrator is looked for.
const USERS: i64 = 100;

/// The operator.
#[derive(Clone, Debug)]
pub struct Operator {
    user: UserId,
    identity: Identity,
    projects: ProjectStore,
    directory: Directory,
    access: CoreAccess,
}

/// Whether a project was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProjectWas {
    /// It was.
    There,
    /// It was made: private, owned by the administrator.
    Made,
}

impl Operator {
    /// In the name of the first administrator; without one, of any.
    pub(crate) async fn of(
        users: &UserStore,
        projects: ProjectStore,
        directory: Directory,
        access: CoreAccess,
    ) -> Result<Option<Operator>, DbError> {
        let Some((user, stored)) = administrator(users).await? else { return Ok(None) };
        let identity = Identity::new(CoreIdentity::of_password(user.id, Epoch::of(&stored)));
        Ok(Some(Operator { user: user.id, identity, projects, directory, access }))
    }

    /// As the catalog wants to know who does something.
    pub const fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Whether there is a project of that name that anybody may pull from.
    ///
    /// # Errors
    /// Faults of the database.
    pub async fn is_public(&self, name: &ProjectName) -> Result<bool, DbError> {
        let facts = self.projects.facts(&ProjectRef::Name(name.clone()), Some(self.user)).await?;
        Ok(facts.is_some_and(|facts| facts.public))
    }

    /// Makes a project unless there is one of that name.
    ///
    /// # Errors
    /// Faults of the database.
    pub async fn ensure_project(&self, name: &ProjectName) -> Result<ProjectWas, DbError> {
        let named = ProjectRef::Name(name.clone());
        if self.projects.facts(&named, Some(self.user)).await?.is_some() {
            return Ok(ProjectWas::There);
        }
        let (projects, name, user) = (self.projects.clone(), name.clone(), self.user);
        let make = async move { projects.create(&name, false, user).await };
        self.directory.change(make).await??;
        Ok(ProjectWas::Made)
    }

    /// Leave to push to a repository, which is made when there is none.
    ///
    /// # Errors
    /// As any push's.
    pub async fn push_to(&self, name: &RepositoryName) -> Result<Grant, AccessError> {
        self.access.authorize(&self.identity, Action::Push, name, Missing::Make).await
    }
}

async fn administrator(users: &UserStore) -> Result<Option<(User, StoredPassword)>, DbError> {
    if let Some((user, stored)) = users.by_name(ADMIN).await?
        && user.sysadmin
    {
        return Ok(Some((user, stored)));
    }
    let mut offset = 0;
    loop {
        let (page, _) = users.list(None, offset, USERS).await?;
        if page.is_empty() {
            return Ok(None);
        }
        if let Some(user) = page.iter().find(|user| user.sysadmin) {
            return users.by_id(user.id).await;
        }
        offset += USERS;
    }
}
