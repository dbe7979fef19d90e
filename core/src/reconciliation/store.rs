//! The reconciliation's memory in SQL.

use sqlx::FromRow;
use taffrail_blobstore::Digest;

use super::{Acquaintance, Named, NamedPosition, StoreIdentity, Unclaimed};
use crate::context::Context;
use crate::db::{Database, DbError};
use crate::repository::store::{key_of_sql, sql_key};

/// The fact that holds the store's uuid, in hex.
const FACT_UUID: &str = "store_uuid";

/// The fact that holds the highest LSN seen, in decimal.
const FACT_LSN: &str = "store_lsn";

/// Names beside links.
#[derive(Clone, Debug)]
pub struct ReconciliationStore {
    database: Database,
    context: Context,
}

#[derive(FromRow)]
struct UnclaimedRow {
    repository_key: i64,
    digest: String,
    generation: i64,
}

impl UnclaimedRow {
    fn unclaimed(&self) -> Option<Unclaimed> {
        Some(Unclaimed {
            repository: key_of_sql(self.repository_key)?,
            digest: Digest::parse(&self.digest).ok()?,
            generation: u64::try_from(self.generation).ok()?,
        })
    }
}

impl ReconciliationStore {
    /// Over a database.
    pub fn new(database: Database, context: Context) -> ReconciliationStore {
        ReconciliationStore { database, context }
    }

    /// Remembers that nothing names these links; gives for each the time since when, in microseconds since 1970. Writes only
    /// when one of them is new.
    ///
    /// # Errors
    /// Faults of the database.
    pub async fn unclaimed_since(&self, links: &[Unclaimed]) -> Result<Vec<i64>, DbError> {
        let now_us = self.context.now_micros();
        let mut since_us = Vec::with_capacity(links.len());
        let mut unseen = Vec::new();
        let mut reader = self.database.readers().acquire().await?;
        for link in links {
            let known: Option<i64> = sqlx::query_scalar(
                "SELECT first_seen_us FROM unclaimed_links
                 WHERE repository_key = $1 AND digest = $2 AND generation = $3",
            )
            .bind(sql_key(link.repository))
            .bind(link.digest.to_string())
            .bind(sql_lsn(link.generation))
            .fetch_optional(&mut *reader)
            .await?;
            if known.is_none() {
                unseen.push(link);
            }
            since_us.push(known.unwrap_or(now_us));
        }
        drop(reader);
        if unseen.is_empty() {
            return Ok(since_us);
        }
        let mut write = self.database.write().await?;
        for link in unseen {
            sqlx::query(
                "INSERT INTO unclaimed_links (repository_key, digest, generation, first_seen_us)
                 VALUES ($1, $2, $3, $4)
                 ON CONFLICT (repository_key, digest) DO UPDATE SET generation = $3, first_seen_us = $4",
            )
            .bind(sql_key(link.repository))
            .bind(link.digest.to_string())
            .bind(sql_lsn(link.generation))
            .bind(now_us)
            .execute(&mut *write)
            .await?;
        }
        write.commit().await?;
        Ok(since_us)
    }

    /// Forgets links that are named again, or gone.
    ///
    /// # Errors
    /// Faults of the database.
    pub async fn forget(&self, links: &[Unclaimed]) -> Result<(), DbError> {
        let mut write = self.database.write().await?;
        for link in links {
            sqlx::query(
                "DELETE FROM unclaimed_links WHERE repository_key = $1 AND digest = $2 AND generation = $3",
            )
            .bind(sql_key(link.repository))
            .bind(link.digest.to_string())
            .bind(sql_lsn(link.generation))
            .execute(&mut *write)
            .await?;
        }
        write.commit().await?;
        Ok(())
    }

    /// Links that are remembered, behind a position, at most `limit`.
    ///
    /// # Errors
    /// Faults of the database.
    pub async fn remembered(&self, after: Option<&Unclaimed>, limit: i64) -> Result<Vec<Unclaimed>, DbError> {
        // Keys are positive, so that -1 comes before all.
        let (key, digest) =
            after.map_or((-1, String::new()), |after| (sql_key(after.repository), after.digest.to_string()));
        let rows: Vec<UnclaimedRow> = sqlx::query_as(
            "SELECT repository_key, digest, generation FROM unclaimed_links
             WHERE (repository_key, digest) > ($1, $2) ORDER BY repository_key, digest LIMIT $3",
        )
        .bind(key)
        .bind(digest)
        .bind(limit)
        .fetch_all(self.database.readers())
        .await?;
        Ok(rows.iter().filter_map(UnclaimedRow::unclaimed).collect())
    }

    /// What up to `limit` artifacts behind a position name, themselves included, and where to go on; `None` at the end.
    ///
    /// # Errors
    /// Faults of the database.
    pub async fn named(
        &self,
        position: NamedPosition,
        limit: i64,
    ) -> Result<(Vec<Named>, Option<NamedPosition>), DbError> {
        let mut reader = self.database.readers().acquire().await?;
        let artifacts: Vec<(i64, i64, String)> = sqlx::query_as(
            "SELECT id, repository_key, digest FROM artifacts WHERE id > $1 ORDER BY id LIMIT $2",
        )
        .bind(position.0)
        .bind(limit)
        .fetch_all(&mut *reader)
        .await?;
        let Some((last, _, _)) = artifacts.last() else { return Ok((Vec::new(), None)) };
        let references: Vec<(i64, String)> = sqlx::query_as(
            "SELECT DISTINCT repository_key, digest FROM artifact_references
             WHERE artifact_id > $1 AND artifact_id <= $2",
        )
        .bind(position.0)
        .bind(last)
        .fetch_all(&mut *reader)
        .await?;
        let found = artifacts
            .iter()
            .map(|(_, key, digest)| (*key, digest))
            .chain(references.iter().map(|(key, digest)| (*key, digest)))
            .filter_map(|(key, digest)| {
                Some(Named { repository: key_of_sql(key)?, digest: Digest::parse(digest).ok()? })
            })
            .collect();
        Ok((found, Some(NamedPosition(*last))))
    }

    /// Compares a store with the one that is remembered, and remembers it when it is empty and none is.
    ///
    /// # Errors
    /// Faults of the database.
    pub async fn meet(&self, store: &StoreIdentity) -> Result<Acquaintance, DbError> {
        let uuid: Option<String> = self.fact(FACT_UUID).await?;
        let Some(uuid) = uuid else {
            if store.links > 0 {
                return Ok(Acquaintance::Stranger);
            }
            self.adopt(store).await?;
            return Ok(Acquaintance::New);
        };
        if uuid != hex::encode(store.uuid) {
            let mut remembered = [0; 16];
            hex::decode_to_slice(&uuid, &mut remembered)
                .map_err(|_| DbError::Unavailable(format!("the fact {FACT_UUID} is no uuid")))?;
            return Ok(Acquaintance::Other { remembered });
        }
        let remembered_lsn = self.fact(FACT_LSN).await?.and_then(|text| text.parse().ok()).unwrap_or(0);
        if store.next_lsn < remembered_lsn {
            return Ok(Acquaintance::Earlier { remembered_lsn });
        }
        Ok(Acquaintance::Same)
    }

    /// Remembers this store from now on, whatever was remembered: the operator's word after a restore, and how far the store
    /// has come while it runs.
    ///
    /// # Errors
    /// Faults of the database.
    pub async fn adopt(&self, store: &StoreIdentity) -> Result<(), DbError> {
        let mut write = self.database.write().await?;
        for (name, value) in [(FACT_UUID, hex::encode(store.uuid)), (FACT_LSN, store.next_lsn.to_string())] {
            sqlx::query(
                "INSERT INTO facts (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = $2",
            )
            .bind(name)
            .bind(value)
            .execute(&mut *write)
            .await?;
        }
        write.commit().await?;
        Ok(())
    }

    async fn fact(&self, name: &str) -> Result<Option<String>, DbError> {
        Ok(sqlx::query_scalar("SELECT value FROM facts WHERE name = $1")
            .bind(name)
            .fetch_optional(self.database.readers())
            .await?)
    }
}

/// LSNs are counted up from 1 and never come near 2^63.
fn sql_lsn(lsn: u64) -> i64 {
    i64::try_from(lsn).unwrap_or(i64::MAX)
}
