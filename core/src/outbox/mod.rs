//! The outbox: what the catalog leaves to be done in the engine, written in the transaction that makes it necessary.
//!
//! A row says "nothing may name this digest in this repository any more; look, and drop the link". Doing a row twice is
//! harmless: whoever does it looks again.

use sqlx::{FromRow, Sqlite, Transaction};
use taffrail_blobstore::{Digest, RepositoryKey};

use crate::context::Context;
use crate::db::{Database, DbError};
use crate::repository::store::{key_of_sql, sql_key};

/// A row that could not be done yet is tried again after this time, doubled with each attempt, in microseconds.
const RETRY_FIRST_US: i64 = 10_000_000;

/// And never later than this: a lease lasts an hour, so that a quarter of it is soon enough.
const RETRY_MAX_US: i64 = 900_000_000;

/// The question of [`Outbox::is_named`].
pub(crate) const IS_NAMED: &str =
    "SELECT EXISTS (SELECT 1 FROM artifacts WHERE repository_key = $1 AND digest = $2)
                 OR EXISTS (SELECT 1 FROM artifact_references WHERE repository_key = $1 AND digest = $2)";

/// The outbox.
#[derive(Clone, Debug)]
pub struct Outbox {
    database: Database,
    context: Context,
}

/// A link that may be dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutboxRow {
    /// Which row.
    pub id: i64,
    /// In which repository.
    pub repository: RepositoryKey,
    /// Which blob.
    pub digest: Digest,
    /// How often it was tried.
    pub attempts: i64,
}

#[derive(FromRow)]
struct Row {
    id: i64,
    repository_key: i64,
    digest: String,
    attempts: i64,
}

impl Outbox {
    /// The outbox of a database.
    pub fn new(database: Database, context: Context) -> Outbox {
        Outbox { database, context }
    }

    /// Adds a row to the caller's transaction.
    pub(crate) async fn add(
        transaction: &mut Transaction<'static, Sqlite>,
        repository: RepositoryKey,
        digest: &str,
        now_us: i64,
    ) -> Result<(), DbError> {
        sqlx::query(
            "INSERT INTO outbox (repository_key, digest, attempts, due_us, created_us) VALUES ($1, $2, 0, $3, $3)",
        )
        .bind(sql_key(repository))
        .bind(digest)
        .bind(now_us)
        .execute(&mut **transaction)
        .await?;
        Ok(())
    }

    /// Rows that are due, the longest waiting first, at most `limit`.
    ///
    /// # Errors
    /// Faults of the database.
    pub async fn due(&self, limit: i64) -> Result<Vec<OutboxRow>, DbError> {
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT id, repository_key, digest, attempts FROM outbox WHERE due_us <= $1 ORDER BY due_us LIMIT $2",
        )
        .bind(self.context.now_micros())
        .bind(limit)
        .fetch_all(self.database.readers())
        .await?;
        Ok(rows
            .into_iter()
            .filter_map(|row| {
                Some(OutboxRow {
                    id: row.id,
                    repository: key_of_sql(row.repository_key)?,
                    digest: Digest::parse(&row.digest).ok()?,
                    attempts: row.attempts,
                })
            })
            .collect())
    }

    /// How many rows wait.
    ///
    /// # Errors
    /// Faults of the database.
    pub async fn waiting(&self) -> Result<i64, DbError> {
        Ok(sqlx::query_scalar("SELECT COUNT(*) FROM outbox").fetch_one(self.database.readers()).await?)
    }

    /// Takes rows off that were done, and puts off those that were not, in one transaction.
    ///
    /// # Errors
    /// Faults of the database.
    pub async fn settle(&self, done: &[i64], later: &[OutboxRow]) -> Result<(), DbError> {
        let mut transaction = self.database.write().await?;
        for id in done {
            sqlx::query("DELETE FROM outbox WHERE id = $1").bind(id).execute(&mut *transaction).await?;
        }
        let now_us = self.context.now_micros();
        for row in later {
            let wait_us = RETRY_FIRST_US.saturating_mul(1 << row.attempts.clamp(0, 20)).min(RETRY_MAX_US);
            sqlx::query("UPDATE outbox SET attempts = attempts + 1, due_us = $2 WHERE id = $1")
                .bind(row.id)
                .bind(now_us.saturating_add(wait_us))
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    /// Whether anything in the repository names the digest: an artifact of that digest, or a reference of one.
    ///
    /// # Errors
    /// Faults of the database.
    pub async fn is_named(&self, repository: RepositoryKey, digest: &Digest) -> Result<bool, DbError> {
        let digest = digest.to_string();
        let named: bool = sqlx::query_scalar(IS_NAMED)
            .bind(sql_key(repository))
            .bind(&digest)
            .fetch_one(self.database.readers())
            .await?;
        Ok(named)
    }
}
