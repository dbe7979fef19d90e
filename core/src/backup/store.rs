//! Copying the database, and looking a copy over, in SQL.

use std::path::Path;

use sqlx::Connection as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};

use crate::context::Context;
use crate::db::{Database, DbError};
use crate::reconciliation::{ReconciliationStore, StoreIdentity};

/// Names the first 20 problems: a database that has more is not mended by reading on.
const INTEGRITY: &str = "PRAGMA integrity_check(20)";

/// Rows that are read at once, in one short transaction.
const ROWS: i64 = 4096;

/// What is named behind a row, once per repository. Both tables have an index in this order, so that nothing is sorted in memory.
const NAMED: &str = "SELECT repository_key, digest FROM artifacts WHERE (repository_key, digest) > ($1, $2)
     UNION SELECT repository_key, digest FROM artifact_references WHERE (repository_key, digest) > ($1, $2)
     ORDER BY 1, 2 LIMIT $3";

/// A line of what a catalog names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// A repository's name.
    Repository {
        /// Its key.
        key: i64,
        /// Its name.
        name: String,
    },
    /// Something that it names.
    Reference {
        /// The repository's key.
        key: i64,
        /// What.
        digest: String,
    },
}

/// Gives all repositories and then everything that they name to `take`, in order, each once. `take` says whether to go on, and may take
/// as long as it likes.
///
/// A server may be writing meanwhile. What was named from the beginning to the end of the list is in it; what was named or forgotten
/// meanwhile may be in it or not. One transaction for all would give one moment, and keep the server from cutting its write-ahead log
/// until the slowest reader has seen the last line.
///
/// # Errors
/// Faults of the database.
pub async fn list(database: &Path, mut take: impl FnMut(Line) -> bool) -> Result<(), DbError> {
    let options = SqliteConnectOptions::new().filename(database).read_only(true);
    let mut connection = SqliteConnection::connect_with(&options).await?;
    let mut last_key = i64::MIN;
    loop {
        let rows: Vec<(i64, String)> =
            sqlx::query_as("SELECT key, name FROM repositories WHERE key > $1 ORDER BY key LIMIT $2")
                .bind(last_key)
                .bind(ROWS)
                .fetch_all(&mut connection)
                .await?;
        let Some((key, _)) = rows.last() else { break };
        last_key = *key;
        if !rows.into_iter().all(|(key, name)| take(Line::Repository { key, name })) {
            return Ok(connection.close().await?);
        }
    }
    let mut last = (i64::MIN, String::new());
    loop {
        let rows: Vec<(i64, String)> =
            sqlx::query_as(NAMED).bind(last.0).bind(&last.1).bind(ROWS).fetch_all(&mut connection).await?;
        let Some(end) = rows.last() else { break };
        last = end.clone();
        if !rows.into_iter().all(|(key, digest)| take(Line::Reference { key, digest })) {
            break;
        }
    }
    Ok(connection.close().await?)
}

/// How much a catalog names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CatalogFigures {
    /// Repositories.
    pub repositories: i64,
    /// Manifests.
    pub artifacts: i64,
    /// Tags.
    pub tags: i64,
}

/// Copies the database as it is at this moment to a file that does not exist; a server may be writing to it meanwhile, and is not held
/// up. Does not flush the copy.
///
/// # Errors
/// Faults of the database.
pub async fn copy_database(from: &Path, to: &Path) -> Result<(), DbError> {
    // Not by way of `Database`: that would bring the tables of a running server's database up to date with this program.
    let options = SqliteConnectOptions::new().filename(from).read_only(true);
    let mut connection = SqliteConnection::connect_with(&options).await?;
    let to = to.to_string_lossy().into_owned();
    sqlx::query("VACUUM INTO $1").bind(to).execute(&mut connection).await?;
    connection.close().await?;
    Ok(())
}

/// Writes into a copy which store it belongs to and how far that had come: what it names is in that store, from that LSN on.
///
/// # Errors
/// Faults of the database.
pub async fn mark_copy(copy: &Path, context: Context, store: &StoreIdentity) -> Result<(), DbError> {
    let database = Database::open(copy).await?;
    let marked = ReconciliationStore::new(database.clone(), context).adopt(store).await;
    database.close().await;
    marked
}

/// What SQLite finds wrong with a database; empty when it is sound. Reads all of it.
///
/// # Errors
/// Faults of the database.
pub async fn problems(database: &Database) -> Result<Vec<String>, DbError> {
    // Each of these reads all of it, which may take longer than a request may wait for a statement.
    let mut reader = database.readers().acquire().await?;
    let found: Vec<String> = sqlx::query_scalar(INTEGRITY).fetch_all(&mut *reader).await?;
    let mut problems: Vec<String> = found.into_iter().filter(|line| line != "ok").collect();
    let dangling: Vec<String> = sqlx::query_scalar("SELECT DISTINCT \"table\" FROM pragma_foreign_key_check")
        .fetch_all(&mut *reader)
        .await?;
    problems.extend(dangling.into_iter().map(|table| format!("rows of {table} refer to what is not there")));
    Ok(problems)
}

/// Counts what the catalog names.
///
/// # Errors
/// Faults of the database.
pub async fn figures(database: &Database) -> Result<CatalogFigures, DbError> {
    let mut reader = database.readers().acquire().await?;
    let (repositories, artifacts, tags): (i64, i64, i64) = sqlx::query_as(
        "SELECT (SELECT COUNT(*) FROM repositories), (SELECT COUNT(*) FROM artifacts), (SELECT COUNT(*) FROM tags)",
    )
    .fetch_one(&mut *reader)
    .await?;
    Ok(CatalogFigures { repositories, artifacts, tags })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::context::{Clock, Entropy};
    use crate::reconciliation::Acquaintance;

    struct Still;
    impl Clock for Still {
        fn now_micros(&self) -> i64 {
            1
        }
    }
    impl Entropy for Still {
        fn fill(&self, bytes: &mut [u8]) {
            bytes.fill(1);
        }
    }

    #[tokio::test]
    async fn a_copy_is_made_beside_a_writer_and_says_which_store_it_belongs_to() {
        let scratch = tempfile::tempdir().unwrap();
        let context = Context { clock: Arc::new(Still), entropy: Arc::new(Still) };
        let (from, to) = (scratch.path().join("taffrail.db"), scratch.path().join("copy.db"));
        let database = Database::open(&from).await.unwrap();
        let writing = database.write().await.unwrap();
        copy_database(&from, &to).await.unwrap();
        assert!(copy_database(&from, &to).await.is_err(), "a copy is never written over");
        drop(writing);
        let store = StoreIdentity { uuid: [3; 16], next_lsn: 40, links: 1 };
        mark_copy(&to, context.clone(), &store).await.unwrap();
        let names: Vec<_> =
            std::fs::read_dir(scratch.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(!names.iter().any(|name| name.to_string_lossy().starts_with("copy.db-")), "{names:?}");
        let copy = Database::open(&to).await.unwrap();
        let known = ReconciliationStore::new(copy.clone(), context);
        let older = StoreIdentity { next_lsn: 39, ..store };
        assert_eq!(known.meet(&store).await.unwrap(), Acquaintance::Same);
        assert_eq!(known.meet(&older).await.unwrap(), Acquaintance::Earlier { remembered_lsn: 40 });
        assert_eq!(problems(&copy).await.unwrap(), Vec::<String>::new());
        assert_eq!(figures(&copy).await.unwrap(), CatalogFigures::default());
    }
}
