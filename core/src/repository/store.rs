//! Repositories in SQL.

use sqlx::FromRow;
use taffrail_blobstore::RepositoryKey;
use taffrail_distribution::name::RepositoryName;

use super::Repository;
use crate::context::Context;
use crate::db::{Database, DbError};
use crate::project::ProjectId;
use crate::user::UserId;

/// Repositories.
#[derive(Clone, Debug)]
pub struct RepositoryStore {
    database: Database,
    context: Context,
}

#[derive(FromRow)]
struct Row {
    key: i64,
    project_id: i64,
    name: String,
}

impl Row {
    fn repository(self) -> Option<Repository> {
        Some(Repository {
            key: key_of_sql(self.key)?,
            project: ProjectId(self.project_id),
            name: RepositoryName::parse(&self.name).ok()?,
        })
    }
}

const OF_MEMBER: &str = "SELECT r.key FROM members m JOIN repositories r ON r.project_id = m.project_id
         WHERE m.user_id = $1 LIMIT $2";

const PUBLIC: &str = "SELECT r.key FROM projects p JOIN repositories r ON r.project_id = p.id
         WHERE p.public = 1 AND EXISTS (SELECT 1 FROM artifacts a WHERE a.repository_key = r.key) LIMIT $1";

impl RepositoryStore {
    /// The repositories of a database.
    pub fn new(database: Database, context: Context) -> RepositoryStore {
        RepositoryStore { database, context }
    }

    /// The repository of that name.
    ///
    /// # Errors
    /// Faults of the database.
    pub async fn find(&self, name: &RepositoryName) -> Result<Option<Repository>, DbError> {
        let row: Option<Row> =
            sqlx::query_as("SELECT key, project_id, name FROM repositories WHERE name = $1")
                .bind(name.as_str())
                .fetch_optional(self.database.readers())
                .await?;
        Ok(row.and_then(Row::repository))
    }

    /// The repository of that key.
    ///
    /// # Errors
    /// Faults of the database.
    pub async fn by_key(&self, key: RepositoryKey) -> Result<Option<Repository>, DbError> {
        let row: Option<Row> =
            sqlx::query_as("SELECT key, project_id, name FROM repositories WHERE key = $1")
                .bind(sql_key(key))
                .fetch_optional(self.database.readers())
                .await?;
        Ok(row.and_then(Row::repository))
    }

    /// Repositories of the projects where `member` is one, then those of public projects that hold an artifact, which may repeat
    /// some; at most `limit` in all. Neither statement touches what they may not see. An empty repository costs nothing to make:
    /// strangers' would else leave no room for those that hold something.
    ///
    /// # Errors
    /// Faults of the database.
    pub async fn seen(&self, member: Option<UserId>, limit: usize) -> Result<Vec<RepositoryKey>, DbError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        // An id that nobody has.
        let member = member.map_or(-1, |member| member.0);
        let mut keys: Vec<i64> =
            sqlx::query_scalar(OF_MEMBER).bind(member).bind(limit).fetch_all(self.database.readers()).await?;
        let left = limit.saturating_sub(i64::try_from(keys.len()).unwrap_or(i64::MAX));
        let public: Vec<i64> =
            sqlx::query_scalar(PUBLIC).bind(left).fetch_all(self.database.readers()).await?;
        keys.extend(public);
        Ok(keys.into_iter().filter_map(key_of_sql).collect())
    }

    /// The repository of that name; made, in that project, when there is none.
    ///
    /// # Errors
    /// `Conflict` when the project is gone; faults of the database.
    pub async fn find_or_create(
        &self,
        project: ProjectId,
        name: &RepositoryName,
    ) -> Result<Repository, DbError> {
        if let Some(found) = self.find(name).await? {
            return Ok(found);
        }
        let mut transaction = self.database.write().await?;
        let exists: Option<i64> = sqlx::query_scalar("SELECT id FROM projects WHERE id = $1")
            .bind(project.0)
            .fetch_optional(&mut *transaction)
            .await?;
        if exists.is_none() {
            return Err(DbError::Conflict);
        }
        sqlx::query(
            "INSERT INTO repositories (key, project_id, name, created_us) VALUES ($1, $2, $3, $4)
             ON CONFLICT (name) DO NOTHING",
        )
        .bind(sql_key(self.random_key()))
        .bind(project.0)
        .bind(name.as_str())
        .bind(self.context.now_micros())
        .execute(&mut *transaction)
        .await?;
        let row: Row = sqlx::query_as("SELECT key, project_id, name FROM repositories WHERE name = $1")
            .bind(name.as_str())
            .fetch_one(&mut *transaction)
            .await?;
        transaction.commit().await?;
        row.repository().ok_or_else(|| DbError::Unavailable(format!("repository {name} has an invalid row")))
    }

    /// 63 random bits: two of 100 million repositories share a key with a chance of one in two thousand, and then the insert
    /// fails.
    fn random_key(&self) -> RepositoryKey {
        loop {
            let number = u64::from_le_bytes(self.context.random()) >> 1;
            if let Some(key) = RepositoryKey::new(number) {
                return key;
            }
        }
    }
}

/// The key as SQL has it: it fits by construction.
pub(crate) fn sql_key(key: RepositoryKey) -> i64 {
    key.number().cast_signed()
}

/// The key from SQL; `None` for a number that no code of ours wrote.
pub(crate) fn key_of_sql(number: i64) -> Option<RepositoryKey> {
    RepositoryKey::new(u64::try_from(number).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_somebody_sees_is_found_without_a_look_at_what_they_do_not() {
        let directory = tempfile::TempDir::new().unwrap();
        let database = Database::open(&directory.path().join("taffrail.db")).await.unwrap();
        for (sql, index) in [(OF_MEMBER, "members_by_user"), (PUBLIC, "projects_public")] {
            let plan = sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}"));
            let steps: Vec<(i64, i64, i64, String)> =
                sqlx::query_as(plan).fetch_all(database.readers()).await.unwrap();
            assert!(steps[0].3.contains(index), "{steps:?}");
            assert!(steps[1].3.contains("repositories_by_project"), "{steps:?}");
            // Whether there are artifacts takes one entry of their index.
            assert_eq!(steps.len(), if sql == PUBLIC { 3 } else { 2 }, "{steps:?}");
            let artifacts = steps.get(2).is_none_or(|step| step.3.contains("EXISTS USING COVERING INDEX"));
            assert!(artifacts, "{steps:?}");
        }
    }
}
