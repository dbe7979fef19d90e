//! The reading connections, as an executor whose statements end.
//!
//! What must stay true: whoever reads waits for [`STATEMENT_TIMEOUT`] at most, for a connection and for the statement together. A
//! disk that hangs holds the threads that are in the middle of a read, and nobody else: not the requests behind them, and not
//! those that come later and are handed the same connections.

use std::io;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{BoxStream, empty, unfold};
use futures_util::{FutureExt as _, StreamExt as _};
use sqlx::pool::PoolConnection;
use sqlx::sqlite::{SqlitePool, SqliteQueryResult, SqliteRow, SqliteStatement, SqliteTypeInfo};
use sqlx::{Describe, Either, Execute, Executor, SqlStr, Sqlite};
use tokio::time::{Instant, timeout, timeout_at};

use super::DbError;

/// How long a statement may take, its wait for a connection and for a lock included (L-17). A page takes milliseconds.
pub(crate) const STATEMENT_TIMEOUT: Duration = Duration::from_secs(10);

/// Reading connections; see the module.
#[derive(Clone, Copy, Debug)]
pub struct Readers<'p>(pub(super) &'p SqlitePool);

impl Readers<'_> {
    /// A connection for several statements, which then have no bound: for work that nobody waits for.
    ///
    /// # Errors
    /// When none is free in time.
    pub async fn acquire(self) -> Result<PoolConnection<Sqlite>, DbError> {
        Ok(self.0.acquire().await?)
    }

    /// How many there are at most.
    pub fn connections_max(self) -> u32 {
        self.0.options().get_max_connections()
    }
}

fn too_slow() -> sqlx::Error {
    sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, "a statement took too long"))
}

impl<'p> Executor<'p> for Readers<'p> {
    type Database = Sqlite;

    fn fetch_many<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxStream<'e, Result<Either<SqliteQueryResult, SqliteRow>, sqlx::Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Sqlite>,
    {
        let rows = self.0.fetch_many(query);
        let bounded = unfold((rows, None), |(mut rows, until)| async move {
            // From the first time that somebody asks for a row.
            let until = until.unwrap_or_else(|| Instant::now() + STATEMENT_TIMEOUT);
            match timeout_at(until, rows.next()).await {
                Ok(step) => step.map(|step| (step, (rows, Some(until)))),
                // It is over: the next look finds nothing.
                Err(_) => Some((Err(too_slow()), (empty().boxed(), None))),
            }
        });
        bounded.boxed()
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<SqliteRow>, sqlx::Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Sqlite>,
    {
        let row = self.0.fetch_optional(query);
        async move { timeout(STATEMENT_TIMEOUT, row).await.unwrap_or_else(|_| Err(too_slow())) }.boxed()
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [SqliteTypeInfo],
    ) -> BoxFuture<'e, Result<SqliteStatement, sqlx::Error>>
    where
        'p: 'e,
    {
        self.0.prepare_with(sql, parameters)
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<Sqlite>, sqlx::Error>>
    where
        'p: 'e,
    {
        self.0.describe(sql)
    }
}

#[cfg(test)]
mod tests {
    use crate::db::{Database, DbError};

    /// A statement in the middle of a read on a disk that hangs had no bound: the request waited for as long as the disk did, and
    /// each that came later and was handed the same connection waited with it.
    #[tokio::test]
    async fn l_17_a_statement_that_does_not_end_is_given_up_and_the_others_go_on() {
        let directory = tempfile::TempDir::new().unwrap();
        let database = Database::open(&directory.path().join("taffrail.db")).await.unwrap();
        // The runtime's clock does not wait for it: it goes on when no task has anything to do.
        const ENDLESS: &str =
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000000)
            SELECT count(*) FROM n";
        tokio::time::pause();
        let one: Result<Option<i64>, sqlx::Error> =
            sqlx::query_scalar(ENDLESS).fetch_optional(database.readers()).await;
        assert!(matches!(one.map_err(DbError::from), Err(DbError::Unavailable(_))));
        let many: Result<Vec<i64>, sqlx::Error> =
            sqlx::query_scalar(ENDLESS).fetch_all(database.readers()).await;
        assert!(matches!(many.map_err(DbError::from), Err(DbError::Unavailable(_))));
        tokio::time::resume();
        database.ping().await.unwrap();
    }
}
