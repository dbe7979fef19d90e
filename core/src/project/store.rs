//! Projects in SQL.

use sqlx::FromRow;

use super::{Project, ProjectFacts, ProjectId, ProjectName, ProjectRef, Role};
use crate::context::Context;
use crate::db::{Database, DbError};
use crate::user::UserId;

/// Projects.
#[derive(Clone, Debug)]
pub struct ProjectStore {
    database: Database,
    context: Context,
}

/// Who looks at a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visibility {
    /// Sees everything.
    All,
    /// Sees what is public.
    Public,
    /// Sees what is public, and where they are a member.
    Member(UserId),
}

/// What a list shows.
#[derive(Clone, Debug)]
pub struct ProjectFilter {
    /// To whom.
    pub visibility: Visibility,
    /// Only projects with this in their name.
    pub name_contains: Option<String>,
    /// Only the project of this name.
    pub name: Option<String>,
    /// Only public, or only private ones.
    pub public: Option<bool>,
    /// Only those made by the user of this name.
    pub owner: Option<String>,
}

/// Why a project stays.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeleteError {
    /// There is none of that id.
    #[error("project unknown")]
    Unknown,
    /// It holds repositories with artifacts.
    #[error("the project holds {0} repositories; delete them first")]
    NotEmpty(i64),
    /// The database failed.
    #[error(transparent)]
    Database(#[from] DbError),
}

/// What a [`Row`] is read from, of projects `p` and their owners `u`.
macro_rules! columns {
    () => {
        "SELECT p.id, p.name, p.public, p.owner_id, u.username AS owner_name, p.created_us, p.updated_us,
                (SELECT COUNT(*) FROM repositories r WHERE r.project_id = p.id
                 AND EXISTS (SELECT 1 FROM artifacts a WHERE a.repository_key = r.key)) AS repo_count "
    };
}

/// The projects of a [`ProjectFilter`].
macro_rules! listed {
    () => {
        "FROM projects p LEFT JOIN users u ON u.id = p.owner_id
         WHERE ($1 = 0 OR p.public = 1 OR ($1 = 2 AND EXISTS
                (SELECT 1 FROM members m WHERE m.project_id = p.id AND m.user_id = $2)))
           AND ($3 IS NULL OR instr(p.name, $3) > 0)
           AND ($4 IS NULL OR p.name = $4)
           AND ($5 IS NULL OR p.public = $5)
           AND ($6 IS NULL OR u.username = $6)"
    };
}

#[derive(FromRow)]
struct Row {
    id: i64,
    name: String,
    public: bool,
    owner_id: Option<i64>,
    owner_name: Option<String>,
    repo_count: i64,
    created_us: i64,
    updated_us: i64,
}

impl From<Row> for Project {
    fn from(row: Row) -> Project {
        Project {
            id: ProjectId(row.id),
            name: row.name,
            public: row.public,
            owner: row.owner_id.map(UserId),
            owner_name: row.owner_name,
            repo_count: row.repo_count,
            created_us: row.created_us,
            updated_us: row.updated_us,
        }
    }
}

#[derive(FromRow)]
struct FactsRow {
    id: Option<i64>,
    public: Option<bool>,
    role: Option<i64>,
}

impl FactsRow {
    fn facts(self) -> Option<ProjectFacts> {
        Some(ProjectFacts {
            id: ProjectId(self.id?),
            public: self.public?,
            role: self.role.and_then(Role::from_number),
        })
    }
}

/// A [`FactsRow`] of the project with `$on`.
macro_rules! facts {
    ($on:literal) => {
        concat!(
            "SELECT p.id, p.public, m.role FROM (SELECT 1) LEFT JOIN projects p ON ",
            $on,
            " LEFT JOIN members m ON m.project_id = p.id AND m.user_id = $2"
        )
    };
}

const FACTS_BY_ID: &str = facts!("p.id = $1");

const FACTS_BY_NAME: &str = facts!("p.name = $1");

impl ProjectStore {
    /// The projects of a database.
    pub fn new(database: Database, context: Context) -> ProjectStore {
        ProjectStore { database, context }
    }

    /// Makes a project; its owner becomes its admin.
    ///
    /// # Errors
    /// `Conflict` when the name is taken.
    pub async fn create(
        &self,
        name: &ProjectName,
        public: bool,
        owner: UserId,
    ) -> Result<ProjectId, DbError> {
        let now_us = self.context.now_micros();
        let mut transaction = self.database.write().await?;
        let id: i64 = sqlx::query_scalar(
            "INSERT INTO projects (name, owner_id, public, created_us, updated_us)
             VALUES ($1, $2, $3, $4, $4) RETURNING id",
        )
        .bind(name.as_str())
        .bind(owner.0)
        .bind(public)
        .bind(now_us)
        .fetch_one(&mut *transaction)
        .await?;
        sqlx::query("INSERT INTO members (project_id, user_id, role, created_us) VALUES ($1, $2, $3, $4)")
            .bind(id)
            .bind(owner.0)
            .bind(Role::Admin.number())
            .bind(now_us)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(ProjectId(id))
    }

    /// What decisions need of a project when `user` asks, or nobody known.
    ///
    /// One row comes back whether there is such a project or not, and nothing is counted: what is absent takes as long as what is
    /// hidden.
    ///
    /// # Errors
    /// Faults of the database.
    pub async fn facts(
        &self,
        project: &ProjectRef,
        user: Option<UserId>,
    ) -> Result<Option<ProjectFacts>, DbError> {
        let query = match project {
            ProjectRef::Id(id) => sqlx::query_as::<_, FactsRow>(FACTS_BY_ID).bind(id.0),
            ProjectRef::Name(name) => sqlx::query_as(FACTS_BY_NAME).bind(name.as_str().to_owned()),
        };
        let row = query.bind(user.map(|user| user.0)).fetch_one(self.database.readers()).await?;
        Ok(row.facts())
    }

    /// The project of that id. Counts its repositories: for who may see it.
    ///
    /// # Errors
    /// Faults of the database.
    pub async fn by_id(&self, id: ProjectId) -> Result<Option<Project>, DbError> {
        let row: Option<Row> = sqlx::query_as(concat!(
            columns!(),
            "FROM projects p LEFT JOIN users u ON u.id = p.owner_id WHERE p.id = $1"
        ))
        .bind(id.0)
        .fetch_optional(self.database.readers())
        .await?;
        Ok(row.map(Project::from))
    }

    /// A page of projects in the order of their names, and how many there are in all.
    ///
    /// # Errors
    /// Faults of the database.
    pub async fn list(
        &self,
        filter: &ProjectFilter,
        offset: i64,
        limit: i64,
    ) -> Result<(Vec<Project>, i64), DbError> {
        let (kind, user) = match filter.visibility {
            Visibility::All => (0_i64, 0_i64),
            Visibility::Public => (1, 0),
            Visibility::Member(user) => (2, user.0),
        };
        let total: i64 = sqlx::query_scalar(concat!("SELECT COUNT(*) ", listed!()))
            .bind(kind)
            .bind(user)
            .bind(&filter.name_contains)
            .bind(&filter.name)
            .bind(filter.public)
            .bind(&filter.owner)
            .fetch_one(self.database.readers())
            .await?;
        let rows: Vec<Row> =
            sqlx::query_as(concat!(columns!(), listed!(), " ORDER BY p.name LIMIT $7 OFFSET $8"))
                .bind(kind)
                .bind(user)
                .bind(&filter.name_contains)
                .bind(&filter.name)
                .bind(filter.public)
                .bind(&filter.owner)
                .bind(limit)
                .bind(offset)
                .fetch_all(self.database.readers())
                .await?;
        Ok((rows.into_iter().map(Project::from).collect(), total))
    }

    /// Makes a project public or private. Says whether there is one of that id.
    ///
    /// # Errors
    /// Faults of the database.
    pub async fn set_public(&self, id: ProjectId, public: bool) -> Result<bool, DbError> {
        let mut transaction = self.database.write().await?;
        let changed = sqlx::query("UPDATE projects SET public = $2, updated_us = $3 WHERE id = $1")
            .bind(id.0)
            .bind(public)
            .bind(self.context.now_micros())
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(changed.rows_affected() > 0)
    }

    /// Deletes a project without artifacts. Its id and the keys of its repositories are never used again.
    ///
    /// # Errors
    /// See [`DeleteError`].
    pub async fn delete(&self, id: ProjectId) -> Result<(), DeleteError> {
        let mut transaction = self.database.write().await?;
        let filled: i64 = sqlx::query_scalar(
            "SELECT COUNT(*) FROM repositories r WHERE r.project_id = $1
             AND EXISTS (SELECT 1 FROM artifacts a WHERE a.repository_key = r.key)",
        )
        .bind(id.0)
        .fetch_one(&mut *transaction)
        .await
        .map_err(DbError::from)?;
        if filled > 0 {
            return Err(DeleteError::NotEmpty(filled));
        }
        let deleted = sqlx::query("DELETE FROM projects WHERE id = $1")
            .bind(id.0)
            .execute(&mut *transaction)
            .await
            .map_err(DbError::from)?;
        if deleted.rows_affected() == 0 {
            return Err(DeleteError::Unknown);
        }
        Ok(transaction.commit().await.map_err(DbError::from)?)
    }

    /// The role of a user in a project.
    ///
    /// # Errors
    /// Faults of the database.
    pub async fn role_in(&self, project: ProjectId, user: UserId) -> Result<Option<Role>, DbError> {
        let role: Option<i64> =
            sqlx::query_scalar("SELECT role FROM members WHERE project_id = $1 AND user_id = $2")
                .bind(project.0)
                .bind(user.0)
                .fetch_optional(self.database.readers())
                .await?;
        Ok(role.and_then(Role::from_number))
    }
}
