//! The database: one writer, several readers, migrations.
//!
//! What must stay true: a write transaction is begun as one (`BEGIN IMMEDIATE`) and is durable when its commit returns
//! (`synchronous=FULL`); readers never wait for the writer (WAL). Nobody who answers a client waits for longer than
//! [`STATEMENT_TIMEOUT`], whatever the disk does: reads are bounded by [`Readers`], writes by [`in_time`].

mod readers;

use std::path::Path;
use std::time::Duration;

use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{Sqlite, Transaction};
use tokio::time::timeout;

pub use readers::Readers;
use readers::STATEMENT_TIMEOUT;

/// How long a statement waits for a lock before it gives up. With one writer only another process can hold it.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Reading connections: more than cores gain nothing on one file.
const READERS_MAX: u32 = 8;

/// How long a request waits for a connection: a stalled database must not pile requests up.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the database did not do as told.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DbError {
    /// Its disk is full.
    #[error("no space for the database")]
    NoSpace,
    /// A value that must be unique exists already.
    #[error("it exists already")]
    Conflict,
    /// Anything else; the text is for the log.
    #[error("database: {0}")]
    Unavailable(String),
}

/// `SQLITE_FULL`, and `SQLITE_IOERR_WRITE` and its kin do not say "full": only this does.
const SQLITE_FULL: &str = "13";

impl From<sqlx::Error> for DbError {
    fn from(error: sqlx::Error) -> DbError {
        match error.as_database_error() {
            // What a row refers to was deleted meanwhile: the same answer as for any other lost race.
            Some(database) if database.is_unique_violation() || database.is_foreign_key_violation() => {
                DbError::Conflict
            }
            Some(database) if database.code().as_deref() == Some(SQLITE_FULL) => DbError::NoSpace,
            _ => DbError::Unavailable(error.to_string()),
        }
    }
}

/// Waits for work on the database, at most as long as for a statement. A write that is to come to its end nonetheless runs in a task of
/// its own, and this waits for the task.
///
/// # Errors
/// `Unavailable` when it took too long: whether it was done is then not known. Otherwise what the work says.
pub(crate) async fn in_time<T, E: From<DbError>>(work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    timeout(STATEMENT_TIMEOUT, work)
        .await
        .unwrap_or_else(|_| Err(DbError::Unavailable("it took too long".to_owned()).into()))
}

/// An open database. Cloning it is cheap.
#[derive(Clone, Debug)]
pub struct Database {
    readers: SqlitePool,
    writer: SqlitePool,
}

impl Database {
    /// Opens the database file, making it when it does not exist, and brings its tables up to date.
    ///
    /// # Errors
    /// When the file cannot be opened or a migration fails.
    pub async fn open(path: &Path) -> Result<Database, DbError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT);
        // A connection to a file does not go stale: no ping before each use, no end of life.
        let pool = |connections| {
            SqlitePoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(ACQUIRE_TIMEOUT)
                .test_before_acquire(false)
                .idle_timeout(None)
                .max_lifetime(None)
        };
        let writer = pool(1).connect_with(options.clone()).await?;
        sqlx::migrate!("migrations/sqlite")
            .run(&writer)
            .await
            .map_err(|error| DbError::Unavailable(error.to_string()))?;
        let readers =
            pool(READERS_MAX).connect_with(options.read_only(true).create_if_missing(false)).await?;
        Ok(Database { readers, writer })
    }

    /// For reading, within bounds of time.
    pub const fn readers(&self) -> Readers<'_> {
        Readers(&self.readers)
    }

    /// Begins a transaction that writes. Dropping it rolls back.
    ///
    /// # Errors
    /// When no connection is free in time.
    pub async fn write(&self) -> Result<Transaction<'static, Sqlite>, DbError> {
        in_time(async { Ok(self.writer.begin_with("BEGIN IMMEDIATE").await?) }).await
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// What it says.
    pub async fn ping(&self) -> Result<(), DbError> {
        sqlx::query("SELECT 1").execute(self.readers()).await?;
        Ok(())
    }

    /// Closes all connections; the log is folded into the file.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}
