//! Artifacts, references and tags in SQL: the statements behind [`super::SqlCatalog`].

use std::collections::HashSet;

use sqlx::{FromRow, QueryBuilder, Sqlite, Transaction};
use taffrail_blobstore::{Digest, RepositoryKey};
use taffrail_distribution::catalog::{ManifestEntry, NewManifest, Precondition, ReferenceKind, Referrer};
use taffrail_distribution::name::{Reference, Tag};

use crate::db::{Database, DbError};
use crate::outbox::Outbox;
use crate::project::store::Visibility;
use crate::repository::store::sql_key;

type Write = Transaction<'static, Sqlite>;

/// Rows of one statement: far below the 32,766 parameters that SQLite takes, and enough that an index of 10,000 children costs
/// 40 statements rather than 20,000.
const ROWS_PER_STATEMENT: usize = 500;

/// A row of an artifact, as far as a lookup needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) id: i64,
    pub(super) digest: String,
    pub(super) media_type: String,
    pub(super) len_bytes: i64,
}

#[derive(FromRow)]
struct FoundRow {
    id: i64,
    digest: String,
    media_type: String,
    len_bytes: i64,
}

impl From<FoundRow> for Found {
    fn from(row: FoundRow) -> Found {
        Found { id: row.id, digest: row.digest, media_type: row.media_type, len_bytes: row.len_bytes }
    }
}

impl Found {
    /// As the catalog's callers want it; `None` for a row that no code of ours wrote.
    pub(super) fn entry(&self) -> Option<ManifestEntry> {
        Some(ManifestEntry {
            digest: Digest::parse(&self.digest).ok()?,
            media_type: self.media_type.clone(),
            len_bytes: u64::try_from(self.len_bytes).ok()?,
        })
    }
}

const BY_DIGEST: &str =
    "SELECT id, digest, media_type, len_bytes FROM artifacts WHERE repository_key = $1 AND digest = $2";

const BY_TAG: &str = "SELECT a.id, a.digest, a.media_type, a.len_bytes FROM tags t
     JOIN artifacts a ON a.id = t.artifact_id WHERE t.repository_key = $1 AND t.name = $2";

/// What a reference names, as a reader sees it.
pub(super) async fn find(
    database: &Database,
    repository: RepositoryKey,
    reference: &Reference,
) -> Result<Option<Found>, DbError> {
    let query = match reference {
        Reference::Digest(digest) => {
            sqlx::query_as::<_, FoundRow>(BY_DIGEST).bind(sql_key(repository)).bind(digest.to_string())
        }
        Reference::Tag(tag) => sqlx::query_as(BY_TAG).bind(sql_key(repository)).bind(tag.as_str().to_owned()),
    };
    Ok(query.fetch_optional(database.readers()).await?.map(Found::from))
}

/// The same, within a transaction that writes.
pub(super) async fn find_for_write(
    write: &mut Write,
    repository: RepositoryKey,
    reference: &Reference,
) -> Result<Option<Found>, DbError> {
    let query = match reference {
        Reference::Digest(digest) => {
            sqlx::query_as::<_, FoundRow>(BY_DIGEST).bind(sql_key(repository)).bind(digest.to_string())
        }
        Reference::Tag(tag) => sqlx::query_as(BY_TAG).bind(sql_key(repository)).bind(tag.as_str().to_owned()),
    };
    Ok(query.fetch_optional(&mut **write).await?.map(Found::from))
}

/// Whether the repository still exists.
pub(super) async fn repository_exists(write: &mut Write, repository: RepositoryKey) -> Result<bool, DbError> {
    Ok(sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM repositories WHERE key = $1)")
        .bind(sql_key(repository))
        .fetch_one(&mut **write)
        .await?)
}

/// Whether a precondition holds against what a reference names now.
pub(super) fn holds(precondition: &Precondition, found: Option<&Found>) -> bool {
    let is = |digest: &Digest| found.is_some_and(|found| found.digest == digest.to_string());
    match precondition {
        Precondition::None => true,
        Precondition::Absent => found.is_none(),
        Precondition::Is(digests) if digests.is_empty() => found.is_some(),
        Precondition::Is(digests) => digests.iter().any(is),
        Precondition::IsNot(digests) => !digests.iter().any(is),
    }
}

/// Inserts an artifact with its references, or finds the one that is there; gives its id.
///
/// An artifact that is put again keeps what it names and may come to name more: a foreign layer is named from the put on that
/// finds it in the repository.
pub(super) async fn insert(
    write: &mut Write,
    repository: RepositoryKey,
    manifest: &NewManifest,
    now_us: i64,
) -> Result<i64, DbError> {
    let inserted: Option<i64> = sqlx::query_scalar(
        "INSERT INTO artifacts
             (repository_key, digest, media_type, len_bytes, artifact_type, subject, annotations, pushed_us)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (repository_key, digest) DO NOTHING RETURNING id",
    )
    .bind(sql_key(repository))
    .bind(manifest.digest.to_string())
    .bind(&manifest.media_type)
    .bind(sql_len(manifest.len_bytes))
    .bind(&manifest.artifact_type)
    .bind(manifest.subject.map(|subject| subject.to_string()))
    .bind(&manifest.annotations)
    .bind(now_us)
    .fetch_optional(&mut **write)
    .await?;
    let id = match inserted {
        Some(id) => id,
        None => find_for_write(write, repository, &Reference::Digest(manifest.digest))
            .await?
            .map(|found| found.id)
            .ok_or_else(|| DbError::Unavailable("an artifact vanished".to_owned()))?,
    };
    for references in manifest.references.chunks(ROWS_PER_STATEMENT) {
        let mut insert = QueryBuilder::<Sqlite>::new(
            "INSERT INTO artifact_references (artifact_id, repository_key, digest, kind, len_bytes) ",
        );
        insert.push_values(references, |mut row, reference| {
            row.push_bind(id)
                .push_bind(sql_key(repository))
                .push_bind(reference.digest.to_string())
                .push_bind(kind_number(reference.kind))
                .push_bind(sql_len(reference.len_bytes));
        });
        // A manifest may name a layer twice, and may have been put before.
        insert.push(" ON CONFLICT DO NOTHING");
        insert.build().persistent(false).execute(&mut **write).await?;
    }
    Ok(id)
}

/// The first child manifest that the repository does not hold.
pub(super) async fn missing_child(
    write: &mut Write,
    repository: RepositoryKey,
    manifest: &NewManifest,
) -> Result<Option<Digest>, DbError> {
    let children: Vec<Digest> = manifest
        .references
        .iter()
        .filter(|reference| reference.kind == ReferenceKind::Manifest)
        .map(|reference| reference.digest)
        .collect();
    for digests in children.chunks(ROWS_PER_STATEMENT) {
        let mut select = QueryBuilder::<Sqlite>::new("SELECT digest FROM artifacts WHERE repository_key = ");
        select.push_bind(sql_key(repository)).push(" AND digest IN (");
        let mut list = select.separated(", ");
        for digest in digests {
            list.push_bind(digest.to_string());
        }
        list.push_unseparated(")");
        let found: Vec<String> =
            select.build_query_scalar().persistent(false).fetch_all(&mut **write).await?;
        let found: HashSet<String> = found.into_iter().collect();
        if let Some(missing) = digests.iter().find(|digest| !found.contains(&digest.to_string())) {
            return Ok(Some(*missing));
        }
    }
    Ok(None)
}

/// Points a tag to an artifact.
pub(super) async fn move_tag(
    write: &mut Write,
    repository: RepositoryKey,
    tag: &Tag,
    artifact: i64,
    now_us: i64,
) -> Result<(), DbError> {
    sqlx::query(
        "INSERT INTO tags (repository_key, name, artifact_id, moved_us) VALUES ($1, $2, $3, $4)
         ON CONFLICT (repository_key, name) DO UPDATE SET artifact_id = $3, moved_us = $4",
    )
    .bind(sql_key(repository))
    .bind(tag.as_str())
    .bind(artifact)
    .bind(now_us)
    .execute(&mut **write)
    .await?;
    Ok(())
}

/// Removes a tag.
pub(super) async fn remove_tag(
    write: &mut Write,
    repository: RepositoryKey,
    tag: &Tag,
) -> Result<(), DbError> {
    sqlx::query("DELETE FROM tags WHERE repository_key = $1 AND name = $2")
        .bind(sql_key(repository))
        .bind(tag.as_str())
        .execute(&mut **write)
        .await?;
    Ok(())
}

const REFERENCED: &str = "SELECT DISTINCT digest FROM artifact_references WHERE artifact_id = $1";

/// Removes an artifact with tags and references, and leaves to the outbox what may be unlinked now.
pub(super) async fn remove(
    write: &mut Write,
    repository: RepositoryKey,
    found: &Found,
    now_us: i64,
) -> Result<(), DbError> {
    let referenced: Vec<String> =
        sqlx::query_scalar(REFERENCED).bind(found.id).fetch_all(&mut **write).await?;
    sqlx::query("DELETE FROM artifacts WHERE id = $1").bind(found.id).execute(&mut **write).await?;
    Outbox::add(write, repository, &found.digest, now_us).await?;
    for digest in &referenced {
        Outbox::add(write, repository, digest, now_us).await?;
    }
    Ok(())
}

const TAGS: &str = "SELECT name FROM tags WHERE repository_key = $1 AND name > $2 ORDER BY name LIMIT $3";

/// Tags after a position, in bytewise order.
pub(super) async fn tags(
    database: &Database,
    repository: RepositoryKey,
    after: &str,
    limit: i64,
) -> Result<Vec<String>, DbError> {
    Ok(sqlx::query_scalar(TAGS)
        .bind(sql_key(repository))
        .bind(after)
        .bind(limit)
        .fetch_all(database.readers())
        .await?)
}

#[derive(FromRow)]
struct ReferrerRow {
    digest: String,
    media_type: String,
    len_bytes: i64,
    artifact_type: Option<String>,
    annotations: Option<String>,
}

const REFERRERS: &str = "SELECT digest, media_type, len_bytes, artifact_type, annotations FROM artifacts
         WHERE repository_key = $1 AND subject = $2 AND digest > $3 AND ($4 IS NULL OR artifact_type = $4)
         ORDER BY digest LIMIT $5";

/// Referrers of a subject after a position, in the order of their digests as text.
pub(super) async fn referrers(
    database: &Database,
    repository: RepositoryKey,
    subject: &Digest,
    artifact_type: Option<&str>,
    after: &str,
    limit: i64,
) -> Result<Vec<Referrer>, DbError> {
    let rows: Vec<ReferrerRow> = sqlx::query_as(REFERRERS)
        .bind(sql_key(repository))
        .bind(subject.to_string())
        .bind(after)
        .bind(artifact_type)
        .bind(limit)
        .fetch_all(database.readers())
        .await?;
    Ok(rows
        .into_iter()
        .filter_map(|row| {
            Some(Referrer {
                digest: Digest::parse(&row.digest).ok()?,
                media_type: row.media_type,
                len_bytes: u64::try_from(row.len_bytes).ok()?,
                artifact_type: row.artifact_type,
                annotations: row.annotations,
            })
        })
        .collect())
}

const REPOSITORIES: &str = "SELECT r.name FROM repositories r
         WHERE r.name > $1 AND EXISTS (SELECT 1 FROM artifacts a WHERE a.repository_key = r.key)
         ORDER BY r.name LIMIT $2";

/// From the projects to their repositories, so that what is hidden costs one look for each project, and not one for each repository in
/// it (L-18). `CROSS JOIN` says so to SQLite.
const REPOSITORIES_SEEN: &str =
    "SELECT r.name FROM projects p CROSS JOIN repositories r ON r.project_id = p.id
         WHERE p.prefix >= $1 AND r.name > $2
           AND (p.public = 1 OR EXISTS
                (SELECT 1 FROM members m WHERE m.project_id = p.id AND m.user_id = $3))
           AND EXISTS (SELECT 1 FROM artifacts a WHERE a.repository_key = r.key)
         ORDER BY p.prefix, r.name LIMIT $4";

/// Names of repositories with artifacts, after a position, in bytewise order, as far as somebody may see them.
pub(super) async fn repositories(
    database: &Database,
    visibility: Visibility,
    after: &str,
    limit: i64,
) -> Result<Vec<String>, DbError> {
    let user = match visibility {
        Visibility::All => {
            let all = sqlx::query_scalar(REPOSITORIES).bind(after).bind(limit);
            return Ok(all.fetch_all(database.readers()).await?);
        }
        // An id that nobody has.
        Visibility::Public => -1,
        Visibility::Member(user) => user.0,
    };
    // The first project that may hold names behind the position.
    let prefix = after.split_inclusive('/').next().unwrap_or_default();
    Ok(sqlx::query_scalar(REPOSITORIES_SEEN)
        .bind(prefix)
        .bind(after)
        .bind(user)
        .bind(limit)
        .fetch_all(database.readers())
        .await?)
}

/// Number of a kind in SQL. Never reused.
const fn kind_number(kind: ReferenceKind) -> i64 {
    match kind {
        ReferenceKind::Config => 1,
        ReferenceKind::Layer => 2,
        ReferenceKind::Manifest => 3,
    }
}

/// Lengths are below 2^63: no file is longer.
fn sql_len(len_bytes: u64) -> i64 {
    i64::try_from(len_bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a statement does, in SQLite's words.
    async fn plan(database: &Database, sql: &'static str) -> Vec<String> {
        let sql = sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}"));
        let rows: Vec<(i64, i64, i64, String)> =
            sqlx::query_as(sql).fetch_all(database.readers()).await.unwrap();
        rows.into_iter().map(|(_, _, _, detail)| detail).collect()
    }

    #[tokio::test]
    async fn pages_and_lookups_cost_what_they_give() {
        let directory = tempfile::TempDir::new().unwrap();
        let database = Database::open(&directory.path().join("taffrail.db")).await.unwrap();
        for sql in [
            BY_DIGEST,
            BY_TAG,
            TAGS,
            REFERRERS,
            REPOSITORIES,
            REPOSITORIES_SEEN,
            REFERENCED,
            crate::outbox::IS_NAMED,
        ] {
            let steps = plan(&database, sql).await;
            assert!(!steps.is_empty());
            for step in steps {
                let reads_all = step.starts_with("SCAN") && step != "SCAN CONSTANT ROW";
                assert!(!reads_all && !step.contains("TEMP B-TREE"), "{step}: {sql}");
            }
        }
        // The index over all artifacts of the repository would do as well, at the cost of reading them all.
        assert!(plan(&database, REFERRERS).await.concat().contains("artifacts_by_subject"));
    }

    /// A page of who may see little looked at every repository that they may not see: 75 ms where there were 100,000.
    #[tokio::test]
    async fn l_18_a_page_of_the_catalog_looks_at_no_repository_that_is_hidden() {
        let directory = tempfile::TempDir::new().unwrap();
        let database = Database::open(&directory.path().join("taffrail.db")).await.unwrap();
        let steps = plan(&database, REPOSITORIES_SEEN).await;
        assert!(steps[0].contains("projects_by_prefix"), "{steps:?}");
        let repositories = steps.iter().find(|step| step.starts_with("SEARCH r ")).unwrap();
        assert!(repositories.contains("repositories_by_project"), "{steps:?}");
    }

    #[tokio::test]
    async fn s_53_a_catalog_is_in_the_order_of_whole_names_and_hides_what_is_hidden() {
        let directory = tempfile::TempDir::new().unwrap();
        let database = Database::open(&directory.path().join("taffrail.db")).await.unwrap();
        let mut write = database.write().await.unwrap();
        let run = async |write: &mut Write, sql: String| {
            sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&mut **write).await.unwrap();
        };
        run(&mut write, "INSERT INTO users VALUES (7, 'u', NULL, '', '', '', 0, 0, 0)".to_owned()).await;
        // Names whose order is not that of their projects' names, because `-` and `.` come before `/`.
        let names = ["a", "a-b", "a.b", "a0", "b", "b-hidden"];
        for (number, name) in names.iter().enumerate() {
            let (id, public) = (number + 1, i32::from(*name == "a" || *name == "a0"));
            let project = format!(
                "INSERT INTO projects (id, name, public, created_us, updated_us) VALUES ({id}, '{name}', {public}, 0, 0)"
            );
            run(&mut write, project).await;
            if ["a-b", "a.b", "b"].contains(name) {
                run(
                    &mut write,
                    format!(
                        "INSERT INTO members (project_id, user_id, role, created_us) VALUES ({id}, 7, 2, 0)"
                    ),
                )
                .await;
            }
            for second in 0..3 {
                let key = id * 10 + second;
                run(
                    &mut write,
                    format!("INSERT INTO repositories VALUES ({key}, {id}, '{name}/r{second}', 0)"),
                )
                .await;
                run(&mut write, format!("INSERT INTO artifacts (repository_key, digest, media_type, len_bytes, pushed_us) VALUES ({key}, 'd', 'm', 1, 0)")).await;
            }
        }
        write.commit().await.unwrap();
        let of = |seen: &[&str]| {
            let mut all: Vec<String> =
                seen.iter().flat_map(|name| (0..3).map(move |second| format!("{name}/r{second}"))).collect();
            all.sort_unstable();
            all
        };
        let cases = [
            (Visibility::All, of(&names)),
            (Visibility::Public, of(&["a", "a0"])),
            (Visibility::Member(crate::user::UserId(7)), of(&["a", "a-b", "a.b", "a0", "b"])),
        ];
        for (visibility, due) in cases {
            for limit in [1, 2, 4, 100] {
                let (mut found, mut after) = (Vec::<String>::new(), String::new());
                loop {
                    let page = repositories(&database, visibility, &after, limit).await.unwrap();
                    let Some(last) = page.last() else { break };
                    last.clone_into(&mut after);
                    found.extend(page);
                }
                assert_eq!(found, due, "{visibility:?} by {limit}");
            }
            // Behind something that is no name of a repository.
            let behind = repositories(&database, visibility, "a-", 100).await.unwrap();
            let due: Vec<_> = due.into_iter().filter(|name| name.as_str() > "a-").collect();
            assert_eq!(behind, due, "{visibility:?}");
        }
    }
}
