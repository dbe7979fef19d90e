//! The one authorizer. Every read and write of a resource asks here; what is not allowed is denied.
//!
//! What must stay true: decisions are taken on immutable ids, on rights as they are now, and on what the credential names; an
//! absent project and a forbidden one get the same answer.

use taffrail_distribution::access::{AccessError, Action, Grant};
use taffrail_distribution::name::RepositoryName;

use crate::db::DbError;
use crate::identity::{Credential, Epoch, Identity, Subject};
use crate::project::ProjectId;
use crate::project::store::Visibility;

pub mod access_control;
pub mod credentials;
pub mod directory;
pub mod role_table;

use directory::{Directory, ProjectFacts};
use role_table::{ProjectAction, Standing, SystemAction};

/// The authorizer.
#[derive(Clone, Debug)]
pub struct Authorizer {
    directory: Directory,
}

/// Why somebody may not do something through the REST API.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// Nobody is known: 401.
    #[error("this needs a login")]
    Unauthenticated,
    /// It does not exist, or must look so: 404.
    #[error("not found")]
    NotFound,
    /// Known, visible, but not allowed: 403.
    #[error("forbidden")]
    Forbidden,
    /// The database does not answer: 503.
    #[error(transparent)]
    Database(#[from] DbError),
}

impl Authorizer {
    /// Over a directory.
    pub const fn new(directory: Directory) -> Authorizer {
        Authorizer { directory }
    }

    /// The directory, to be told of changes.
    pub const fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Which of a subject's passwords is theirs today; none of a user who is gone.
    ///
    /// # Errors
    /// Faults of the database.
    pub async fn epoch(&self, subject: &Subject) -> Result<Option<Epoch>, DbError> {
        match subject {
            Subject::Anonymous => Ok(Some(Epoch::NONE)),
            Subject::User(user) => Ok(self.directory.user(*user).await?.map(|facts| facts.epoch)),
        }
    }

    /// As what a subject stands to a project; outside of any with `None`. A deleted user is nobody.
    async fn standing(&self, subject: &Subject, project: Option<ProjectId>) -> Result<Standing, DbError> {
        let Subject::User(user) = subject else { return Ok(Standing::Anonymous) };
        let Some(facts) = self.directory.user(*user).await? else { return Ok(Standing::Anonymous) };
        if facts.sysadmin {
            return Ok(Standing::SystemAdmin);
        }
        let Some(project) = project else { return Ok(Standing::Outsider) };
        let role = self.directory.role(*user, project).await?;
        Ok(role.map_or(Standing::Outsider, Standing::Member))
    }

    /// Which of the `wanted` actions a subject may do in the repository, and in which project it lies.
    ///
    /// # Errors
    /// Faults of the database.
    pub async fn allowed(
        &self,
        subject: &Subject,
        repository: &RepositoryName,
        wanted: &[Action],
    ) -> Result<Option<(ProjectId, Vec<Action>)>, DbError> {
        let Some(project) = self.project_of(repository).await? else { return Ok(None) };
        let standing = self.standing(subject, Some(project.id)).await?;
        let allowed = |action: &Action| role_table::may(standing, project_action(*action), project.public);
        Ok(Some((project.id, wanted.iter().copied().filter(allowed).collect())))
    }

    async fn project_of(&self, repository: &RepositoryName) -> Result<Option<ProjectFacts>, DbError> {
        match repository.split_first() {
            Some((project, _)) => self.directory.project(project).await,
            None => Ok(None),
        }
    }

    /// Leave to do `action` in a repository, through the distribution API.
    ///
    /// # Errors
    /// See [`AccessError`].
    pub async fn authorize_repository(
        &self,
        identity: &Identity,
        action: Action,
        name: &RepositoryName,
    ) -> Result<Grant, AccessError> {
        let project = self.project_of(name).await.map_err(unavailable)?;
        let Some(project) = project else { return Err(refuse(identity, action, name)) };
        let standing = self.standing(&identity.subject, Some(project.id)).await.map_err(unavailable)?;
        if !role_table::may(standing, project_action(action), project.public) {
            return Err(refuse(identity, action, name));
        }
        if let Credential::Token(token) = &identity.credential
            && !token.names(name.as_str(), project.id, action)
        {
            let message = format!("the token does not allow to {} {name}; ask for another", action.scope());
            return Err(AccessError::Unauthenticated { error: Some("insufficient_scope"), message });
        }
        if matches!(identity.credential, Credential::None) {
            // What anybody may do, too, is done with a token: clients get one without being asked for a password.
            let message = format!("get a token to {} {name}", action.scope());
            return Err(AccessError::Unauthenticated { error: None, message });
        }
        let repository = match action {
            Action::Push => self.directory.repository_for_push(project.id, name).await,
            Action::Pull | Action::Delete => self.directory.repository(project.id, name).await,
        };
        match repository.map_err(unavailable)? {
            Some(repository) => Ok(Grant { repository: repository.key, name: name.clone(), action }),
            None => Err(AccessError::UnknownRepository { name: name.clone() }),
        }
    }

    /// Whether a subject may pull from a repository, known by its key.
    ///
    /// # Errors
    /// Faults of the database.
    pub async fn may_pull(
        &self,
        subject: &Subject,
        repository: taffrail_blobstore::RepositoryKey,
    ) -> Result<bool, DbError> {
        let Some(repository) = self.directory.repository_by_key(repository).await? else { return Ok(false) };
        let Some(project) = self.directory.project_by_id(repository.project).await? else { return Ok(false) };
        let standing = self.standing(subject, Some(project.id)).await?;
        Ok(role_table::may(standing, ProjectAction::Pull, project.public))
    }

    /// What a subject sees in lists.
    ///
    /// # Errors
    /// Faults of the database.
    pub async fn visibility(&self, subject: &Subject) -> Result<Visibility, DbError> {
        Ok(match (self.standing(subject, None).await?, subject) {
            (Standing::SystemAdmin, _) => Visibility::All,
            (Standing::Member(_) | Standing::Outsider, Subject::User(user)) => Visibility::Member(*user),
            (Standing::Member(_) | Standing::Outsider | Standing::Anonymous, _) => Visibility::Public,
        })
    }

    /// May `identity` do `action` in a project, through the REST API?
    ///
    /// # Errors
    /// `NotFound` when they may not even see it.
    pub async fn authorize_project(
        &self,
        identity: &Identity,
        action: ProjectAction,
        project: ProjectId,
    ) -> Result<(), Refused> {
        let facts = self.directory.project_by_id(project).await?.ok_or_else(|| hidden(identity))?;
        let standing = self.standing(&identity.subject, Some(project)).await?;
        if role_table::may(standing, action, facts.public) {
            Ok(())
        } else if role_table::may(standing, ProjectAction::Read, facts.public) {
            Err(if standing == Standing::Anonymous { Refused::Unauthenticated } else { Refused::Forbidden })
        } else {
            Err(hidden(identity))
        }
    }

    /// May `identity` do `action` outside of any project?
    ///
    /// # Errors
    /// `Unauthenticated`, `Forbidden`.
    pub async fn authorize_system(&self, identity: &Identity, action: SystemAction) -> Result<(), Refused> {
        let standing = self.standing(&identity.subject, None).await?;
        if role_table::may_in_system(standing, action) {
            Ok(())
        } else if standing == Standing::Anonymous {
            Err(Refused::Unauthenticated)
        } else {
            Err(Refused::Forbidden)
        }
    }
}

/// What does not exist and what must look so.
const fn hidden(identity: &Identity) -> Refused {
    match identity.subject {
        Subject::Anonymous => Refused::Unauthenticated,
        Subject::User(_) => Refused::NotFound,
    }
}

const fn project_action(action: Action) -> ProjectAction {
    match action {
        Action::Pull => ProjectAction::Pull,
        Action::Push => ProjectAction::Push,
        Action::Delete => ProjectAction::Delete,
    }
}

/// The one answer for a project that does not exist and one that is forbidden. Docker prints it.
fn refuse(identity: &Identity, action: Action, name: &RepositoryName) -> AccessError {
    let may_not = match action {
        Action::Pull => "pull from",
        Action::Push => "push to",
        Action::Delete => "delete from",
    };
    let message = match name.split_first() {
        Some((project, _)) => format!("project {project} does not exist or you may not {may_not} it"),
        None => format!("{name} names no project; repositories are called PROJECT/NAME"),
    };
    match (&identity.subject, &identity.credential) {
        (Subject::Anonymous, Credential::Token(_)) => {
            AccessError::Unauthenticated { error: Some("insufficient_scope"), message }
        }
        (Subject::Anonymous, Credential::None | Credential::Password(_)) => {
            AccessError::Unauthenticated { error: None, message }
        }
        // Clients look before they push, by HEAD, whose answer has no text. 404 has them go on to the upload, whose answer has.
        (Subject::User(_), _) if action == Action::Pull => {
            AccessError::UnknownRepository { name: name.clone() }
        }
        (Subject::User(_), _) => AccessError::Denied { message },
    }
}

fn unavailable(error: DbError) -> AccessError {
    tracing::error!(%error, "an access decision could not be taken");
    AccessError::Unavailable
}
