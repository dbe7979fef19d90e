//! The one authorizer. Every read and write of a resource asks here; what is not allowed is denied.
//!
//! What must stay true: decisions are taken on immutable ids, on rights as they are now, and on what the credential names; an
//! absent project and a forbidden one get the same answer after the same lookups, in the database as in memory.

use taffrail_distribution::access::{AccessError, Action, Grant, Missing, Sources};
use taffrail_distribution::name::RepositoryName;

use crate::db::DbError;
use crate::identity::{Credential, Epoch, Identity, Subject};
use crate::project::store::Visibility;
use crate::project::{ProjectFacts, ProjectId, ProjectName, ProjectRef};

pub mod access_control;
pub mod credentials;
pub mod directory;
pub mod role_table;

use directory::Directory;
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

    /// As what a subject stands to everything that is in no project. A deleted user is nobody.
    async fn standing(&self, subject: &Subject) -> Result<Standing, DbError> {
        let Subject::User(user) = subject else { return Ok(Standing::Anonymous) };
        Ok(match self.directory.user(*user).await? {
            Some(facts) if facts.sysadmin => Standing::SystemAdmin,
            Some(_) => Standing::Outsider,
            None => Standing::Anonymous,
        })
    }

    /// A project, and as what the subject stands to it.
    async fn look(
        &self,
        subject: &Subject,
        project: ProjectRef,
    ) -> Result<Option<(ProjectFacts, Standing)>, DbError> {
        let standing = self.standing(subject).await?;
        let user = match subject {
            Subject::User(user) => Some(*user),
            Subject::Anonymous => None,
        };
        let Some(facts) = self.directory.project(user, project).await? else { return Ok(None) };
        let standing = match (standing, facts.role) {
            (Standing::Outsider, Some(role)) => Standing::Member(role),
            (standing, _) => standing,
        };
        Ok(Some((facts, standing)))
    }

    /// The same, of the project that a repository's name begins with.
    async fn look_by_repository(
        &self,
        subject: &Subject,
        repository: &RepositoryName,
    ) -> Result<Option<(ProjectFacts, Standing)>, DbError> {
        // What is no name is nobody's, as the caller can tell as well.
        let name = repository.split_first().and_then(|(project, _)| ProjectName::parse(project).ok());
        match name {
            Some(name) => self.look(subject, ProjectRef::Name(name)).await,
            None => Ok(None),
        }
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
        let looked = self.look_by_repository(subject, repository).await?;
        let Some((project, standing)) = looked else { return Ok(None) };
        let allowed = |action: &Action| role_table::may(standing, project_action(*action), project.public);
        Ok(Some((project.id, wanted.iter().copied().filter(allowed).collect())))
    }

    /// Leave to do `action` in a repository, through the distribution API. What was verified when a long body began counts only as
    /// long as the password behind it is the user's.
    ///
    /// # Errors
    /// See [`AccessError`].
    pub async fn authorize_repository(
        &self,
        identity: &Identity,
        action: Action,
        name: &RepositoryName,
        missing: Missing,
    ) -> Result<Grant, AccessError> {
        if matches!(identity.credential, Credential::None) {
            // What anybody may do, too, is done with a token: clients get one without being asked for a password. Nothing is
            // looked up before they have.
            let message = format!("get a token to {} {name}", action.scope());
            return Err(AccessError::Unauthenticated { error: None, message });
        }
        // A pull is decided right after its credentials were verified; a push is decided again when its body is there.
        if action != Action::Pull {
            let epoch = self.epoch(&identity.subject).await.map_err(unavailable)?;
            if epoch != Some(identity.epoch()) {
                return Err(ended(identity));
            }
        }
        let looked = self.look_by_repository(&identity.subject, name).await.map_err(unavailable)?;
        let Some((project, standing)) = looked else { return Err(refuse(identity, action, name)) };
        if !role_table::may(standing, project_action(action), project.public) {
            return Err(refuse(identity, action, name));
        }
        if let Credential::Token(token) = &identity.credential
            && !token.names(name.as_str(), project.id, action)
        {
            let message = format!("the token does not allow to {} {name}; ask for another", action.scope());
            return Err(AccessError::Unauthenticated { error: Some("insufficient_scope"), message });
        }
        let repository = match (action, missing) {
            (Action::Push, Missing::Make) => self.directory.repository_for_push(project.id, name).await,
            (Action::Push, Missing::Refuse) | (Action::Pull | Action::Delete, _) => {
                self.directory.repository(project.id, name).await
            }
        };
        match repository.map_err(unavailable)? {
            Some(repository) => Ok(Grant { repository: repository.key, name: name.clone(), action }),
            None => Err(AccessError::UnknownRepository { name: name.clone() }),
        }
    }

    /// Where a subject may pull from. Whoever sees a repository in lists may pull from it: every role may, and anybody may from
    /// what is public (a test in [`role_table`] holds this).
    ///
    /// # Errors
    /// Faults of the database.
    pub async fn sources(&self, subject: &Subject, limit: usize) -> Result<Sources, DbError> {
        let member = match self.visibility(subject).await? {
            Visibility::All => return Ok(Sources::Everywhere),
            Visibility::Member(user) => Some(user),
            Visibility::Public => None,
        };
        Ok(Sources::These(self.directory.seen(member, limit).await?))
    }

    /// What a subject sees in lists.
    ///
    /// # Errors
    /// Faults of the database.
    pub async fn visibility(&self, subject: &Subject) -> Result<Visibility, DbError> {
        Ok(match (self.standing(subject).await?, subject) {
            (Standing::SystemAdmin, _) => Visibility::All,
            (Standing::Member(_) | Standing::Outsider, Subject::User(user)) => Visibility::Member(*user),
            (Standing::Member(_) | Standing::Outsider | Standing::Anonymous, _) => Visibility::Public,
        })
    }

    /// May `identity` do `action` in a project, through the REST API? Gives the project's id.
    ///
    /// # Errors
    /// `NotFound` when they may not even see it.
    pub async fn authorize_project(
        &self,
        identity: &Identity,
        action: ProjectAction,
        project: ProjectRef,
    ) -> Result<ProjectId, Refused> {
        let looked = self.look(&identity.subject, project).await?;
        let (facts, standing) = looked.ok_or_else(|| hidden(identity))?;
        if role_table::may(standing, action, facts.public) {
            Ok(facts.id)
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
        let standing = self.standing(&identity.subject).await?;
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

/// The answer to who came with a password, or a token of it, that is theirs no more.
fn ended(identity: &Identity) -> AccessError {
    match identity.credential {
        Credential::Token(_) => access_control::invalid_token(),
        Credential::None | Credential::Password(_) => AccessError::Unauthenticated {
            error: None,
            message: "the password was changed meanwhile; log in again".to_owned(),
        },
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
