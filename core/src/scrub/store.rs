//! The scrub's memory in SQL.

use sqlx::FromRow;
use taffrail_blobstore::{Digest, RepositoryKey};

use super::{Harmed, PassState, ScrubState};
use crate::db::{Database, DbError};
use crate::repository::store::sql_key;

/// The facts that hold a state, each in decimal or as the engine writes it.
const FACT_BEGUN: &str = "scrub_begun_us";
const FACT_COMPLETED: &str = "scrub_completed_us";
const FACT_DIGESTS: &str = "scrub_digests_us";
const FACT_POSITION: &str = "scrub_position";
const FACT_DEPTH: &str = "scrub_depth";

/// Values of [`FACT_DEPTH`].
const DEEP: &str = "digests";
const SHALLOW: &str = "checksums";

/// The blob itself or what refers to it, then what refers to that, as indexes refer to manifests.
const HARMED: &str = "WITH RECURSIVE harmed (id, digest, depth) AS (
         SELECT id, digest, 0 FROM artifacts WHERE repository_key = $1 AND digest = $2
         UNION SELECT a.id, a.digest, 0 FROM artifact_references x JOIN artifacts a ON a.id = x.artifact_id
             WHERE x.repository_key = $1 AND x.digest = $2
         UNION SELECT a.id, a.digest, h.depth + 1
             FROM harmed h
             JOIN artifact_references x ON x.repository_key = $1 AND x.digest = h.digest
             JOIN artifacts a ON a.id = x.artifact_id
             WHERE h.depth < $3
     )
     SELECT DISTINCT r.name AS repository, h.digest AS manifest, t.name AS tag
     FROM harmed h JOIN repositories r ON r.key = $1 LEFT JOIN tags t ON t.artifact_id = h.id
     ORDER BY t.name IS NULL, t.name, h.digest LIMIT $4";

/// Indexes in indexes that are followed: one more than is in use.
const DEPTH_MAX: i64 = 3;

/// The state of the scrub, and the names of what it found.
#[derive(Clone, Debug)]
pub struct ScrubStore {
    database: Database,
}

#[derive(FromRow)]
struct HarmedRow {
    repository: String,
    manifest: String,
    tag: Option<String>,
}

impl ScrubStore {
    /// Over a database.
    pub fn new(database: Database) -> ScrubStore {
        ScrubStore { database }
    }

    /// The state that was kept.
    ///
    /// # Errors
    /// Faults of the database.
    pub async fn load(&self) -> Result<ScrubState, DbError> {
        let time = |text: Option<String>| text.and_then(|text| text.parse().ok());
        let position = self.fact(FACT_POSITION).await?;
        let is_deep = self.fact(FACT_DEPTH).await?.as_deref() == Some(DEEP);
        Ok(ScrubState {
            begun_us: time(self.fact(FACT_BEGUN).await?),
            completed_us: time(self.fact(FACT_COMPLETED).await?),
            digests_us: time(self.fact(FACT_DIGESTS).await?),
            pass: position.map(|position| PassState { position, is_deep }),
        })
    }

    /// Keeps a state.
    ///
    /// # Errors
    /// Faults of the database.
    pub async fn save(&self, state: &ScrubState) -> Result<(), DbError> {
        let pass = state.pass.as_ref();
        let depth = pass.map(|pass| if pass.is_deep { DEEP } else { SHALLOW }.to_owned());
        let facts = [
            (FACT_BEGUN, state.begun_us.map(|time| time.to_string())),
            (FACT_COMPLETED, state.completed_us.map(|time| time.to_string())),
            (FACT_DIGESTS, state.digests_us.map(|time| time.to_string())),
            (FACT_POSITION, pass.map(|pass| pass.position.clone())),
            (FACT_DEPTH, depth),
        ];
        let mut write = self.database.write().await?;
        for (name, value) in facts {
            let statement = match &value {
                Some(_) => {
                    "INSERT INTO facts (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = $2"
                }
                None => "DELETE FROM facts WHERE name = $1",
            };
            sqlx::query(statement).bind(name).bind(value).execute(&mut *write).await?;
        }
        write.commit().await?;
        Ok(())
    }

    /// The images of a repository that a blob is part of, those with tags first; at most `limit`.
    ///
    /// # Errors
    /// Faults of the database.
    pub async fn harmed(
        &self,
        repository: RepositoryKey,
        digest: &Digest,
        limit: i64,
    ) -> Result<Vec<Harmed>, DbError> {
        let rows: Vec<HarmedRow> = sqlx::query_as(HARMED)
            .bind(sql_key(repository))
            .bind(digest.to_string())
            .bind(DEPTH_MAX)
            .bind(limit)
            .fetch_all(self.database.readers())
            .await?;
        let harmed =
            |row: HarmedRow| Harmed { repository: row.repository, manifest: row.manifest, tag: row.tag };
        Ok(rows.into_iter().map(harmed).collect())
    }

    async fn fact(&self, name: &str) -> Result<Option<String>, DbError> {
        Ok(sqlx::query_scalar("SELECT value FROM facts WHERE name = $1")
            .bind(name)
            .fetch_optional(self.database.readers())
            .await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_state_is_the_same_after_it_was_kept() {
        let directory = tempfile::TempDir::new().unwrap();
        let database = Database::open(&directory.path().join("taffrail.db")).await.unwrap();
        let store = ScrubStore::new(database);
        assert_eq!(store.load().await.unwrap(), ScrubState::default());
        let pass = Some(PassState { position: "log 1 4096".to_owned(), is_deep: true });
        let begun = ScrubState { begun_us: Some(5), pass, ..ScrubState::default() };
        let over = ScrubState { completed_us: Some(9), digests_us: Some(9), pass: None, ..begun.clone() };
        for state in [begun, over, ScrubState::default()] {
            store.save(&state).await.unwrap();
            assert_eq!(store.load().await.unwrap(), state);
        }
    }
}
