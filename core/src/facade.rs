//! Core as the server sees it: opened once, handed out in parts.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use taffrail_distribution::access::AccessControl;
use taffrail_distribution::catalog::Catalog;

use crate::api::{self, ApiState};
use crate::artifact::SqlCatalog;
use crate::authorizer::Authorizer;
use crate::authorizer::access_control::{CoreAccess, Realm, identity_of};
use crate::authorizer::directory::Directory;
use crate::context::Context;
use crate::db::{Database, DbError};
use crate::identity::accounts::{AccountError, Accounts};
use crate::identity::password::{self, PasswordError};
use crate::member::store::MemberStore;
use crate::operator::Operator;
use crate::outbox::Outbox;
use crate::project::ProjectName;
use crate::project::store::{ProjectFilter, ProjectStore, Visibility};
use crate::repository::store::RepositoryStore;
use crate::token::claims::Tokens;
use crate::token::keys::{KeyError, Keyset};
use crate::user::store::UserStore;
use crate::user::{NewUser, Username};

/// Name of the first administrator, as in Harbor.
pub const ADMIN: &str = "admin";

/// The public project that every registry begins with, as in Harbor.
const LIBRARY: &str = "library";

/// Issuer of tokens when no external URL is configured.
const ISSUER_DEFAULT: &str = "taffrail";

/// Gives the first administrator's password; asked only when there is no administrator yet.
pub type FirstPassword = Box<dyn FnOnce() -> Result<String, String> + Send>;

/// What an opener chooses.
pub struct CoreOptions {
    /// The database file.
    pub database: PathBuf,
    /// Folder of the signing keys.
    pub key_dir: PathBuf,
    /// The URL under which clients reach the registry, without a slash at its end.
    pub external_url: Option<String>,
    /// Whether this process speaks TLS.
    pub tls: bool,
    /// See [`FirstPassword`].
    pub first_password: FirstPassword,
    /// Passwords hashed at once; as many as cores.
    pub hashes_max: usize,
    /// Time and randomness.
    pub context: Context,
}

/// Why core did not open.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CoreError {
    /// The database.
    #[error(transparent)]
    Database(#[from] DbError),
    /// The signing keys.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// The first administrator's password was not had.
    #[error("the first administrator's password: {0}")]
    FirstPassword(String),
    /// It is none that may be set.
    #[error("the administrator's password: {0}")]
    Password(#[from] PasswordError),
    /// It could not be hashed.
    #[error(transparent)]
    Account(#[from] AccountError),
    /// There is no user of that name.
    #[error("there is no user {0}")]
    UnknownUser(String),
}

/// Core, open.
#[derive(Clone, Debug)]
pub struct Core {
    state: ApiState,
    access: CoreAccess,
    catalog: SqlCatalog,
    outbox: Outbox,
}

impl Core {
    /// Opens the database and the keys; on the first start makes the administrator and the project `library`.
    ///
    /// # Errors
    /// See [`CoreError`].
    pub async fn open(options: CoreOptions) -> Result<Core, CoreError> {
        let CoreOptions { database, key_dir, external_url, tls, first_password, hashes_max, context } =
            options;
        let keys = Keyset::load_or_make(&key_dir)?;
        let database = Database::open(&database).await?;
        let users = UserStore::new(database.clone(), context.clone());
        let projects = ProjectStore::new(database.clone(), context.clone());
        let repositories = RepositoryStore::new(database.clone(), context.clone());
        let tokens = Tokens::new(keys, context.clone(), external_url.as_deref().unwrap_or(ISSUER_DEFAULT));
        let directory = Directory::new(projects.clone(), repositories, users.clone());
        let accounts = Accounts::new(users.clone(), directory.clone(), context.clone(), hashes_max);
        let authorizer = Authorizer::new(directory);
        begin(&users, &projects, &accounts, first_password).await?;
        let realm = Realm { external_url: external_url.clone(), tls };
        let access = CoreAccess::new(authorizer.clone(), accounts.clone(), tokens.clone(), realm);
        let seer = authorizer.clone();
        let visibility_of: crate::artifact::VisibilityOf = Arc::new(move |identity| {
            let (seer, identity) = (seer.clone(), identity_of(identity));
            Box::pin(async move { seer.visibility(&identity.subject).await })
        });
        let catalog = SqlCatalog::new(database.clone(), context.clone(), visibility_of);
        let outbox = Outbox::new(database.clone(), context.clone());
        let members = MemberStore::new(database.clone(), context.clone());
        let state = ApiState {
            authorizer,
            accounts,
            tokens,
            projects,
            members,
            users,
            database,
            context,
            external_url,
        };
        Ok(Core { state, access, catalog, outbox })
    }

    /// The catalog that distribution works on.
    pub fn catalog(&self) -> Arc<dyn Catalog> {
        Arc::new(self.catalog.clone())
    }

    /// The authorizer that distribution asks.
    pub fn access_control(&self) -> Arc<dyn AccessControl> {
        Arc::new(self.access.clone())
    }

    /// Who works on the data directory while no server runs; `None` when the registry has no administrator.
    ///
    /// # Errors
    /// Faults of the database.
    pub async fn operator(&self) -> Result<Option<Operator>, DbError> {
        let ApiState { authorizer, projects, users, .. } = &self.state;
        Operator::of(users, projects.clone(), authorizer.directory().clone(), self.access.clone()).await
    }

    /// `/api/v2.0` and `/service/token`.
    pub fn router(&self) -> Router {
        api::router(self.state.clone())
    }

    /// What the catalog leaves to be done.
    pub const fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    /// The database, for the jobs.
    pub const fn database(&self) -> &Database {
        &self.state.database
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// What it says.
    pub async fn health(&self) -> Result<(), DbError> {
        self.state.database.ping().await
    }

    /// Passwords hashed since the start, for the figures.
    pub fn password_hashes(&self) -> u64 {
        self.state.accounts.hashes()
    }

    /// Closes the database.
    pub async fn close(&self) {
        self.state.database.close().await;
    }
}

/// What a registry begins with. Safe to be interrupted and done again.
async fn begin(
    users: &UserStore,
    projects: &ProjectStore,
    accounts: &Accounts,
    first_password: FirstPassword,
) -> Result<(), CoreError> {
    if users.sysadmins().await? == 0 {
        let given = first_password().map_err(CoreError::FirstPassword)?;
        password::check(&given)?;
        let stored = accounts.hash(&given).await?;
        match users.by_name(ADMIN).await? {
            Some((admin, _)) => {
                users.set_password(admin.id, &stored).await?;
                users.set_sysadmin(admin.id, true).await?;
            }
            None => {
                users.create(&first_admin()?, &stored).await?;
            }
        }
    }
    // Only a registry without any project is new: who deleted `library` meant it.
    let everything = ProjectFilter {
        visibility: Visibility::All,
        name_contains: None,
        name: None,
        public: None,
        owner: None,
    };
    let (_, count) = projects.list(&everything, 0, 1).await?;
    if count == 0
        && let Some((admin, _)) = users.by_name(ADMIN).await?
        && let Ok(name) = ProjectName::parse(LIBRARY)
    {
        projects.create(&name, true, admin.id).await?;
    }
    Ok(())
}

fn first_admin() -> Result<NewUser, CoreError> {
    let username = Username::parse(ADMIN).map_err(|_| CoreError::UnknownUser(ADMIN.to_owned()))?;
    Ok(NewUser {
        username,
        email: None,
        realname: "system admin".to_owned(),
        comment: String::new(),
        sysadmin: true,
    })
}

/// Sets a user's password, without a running server. The caller sees to it that none runs.
///
/// # Errors
/// See [`CoreError`].
pub async fn reset_password(
    database: &std::path::Path,
    context: Context,
    username: &str,
    new: &str,
) -> Result<(), CoreError> {
    password::check(new)?;
    let database = Database::open(database).await?;
    let users = UserStore::new(database.clone(), context.clone());
    let (user, _) =
        users.by_name(username).await?.ok_or_else(|| CoreError::UnknownUser(username.to_owned()))?;
    // Nobody else waits for this thread.
    let stored = password::hash(new, &context.random()).ok_or(AccountError::Unavailable)?;
    users.set_password(user.id, &stored).await?;
    database.close().await;
    Ok(())
}
