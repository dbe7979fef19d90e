//! A catalog of very many names, made in seconds: rows written straight into the database of a running server.
//!
//! One image is pushed through the front door; its tags are as good as any, since they name it. Repositories and referrers get a row
//! each for an artifact whose bytes nobody holds: their pages are made from rows alone, and only a pull or the hourly comparison
//! of catalog and store would find out. Nothing else of a server may be tested on such a catalog.

use std::path::Path;

use anyhow::{Context as _, Result};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _};

use crate::images::Image;
use crate::scene;
use crate::server::Server;

/// The repository with very many tags, and very many referrers of the manifest that they name.
pub const CROWDED: &str = "library/crowd";

/// The private project that holds the very many repositories.
pub const HIDDEN: &str = "aaa-hidden";

/// How many of each there are to be.
#[derive(Debug, Clone, Copy)]
pub struct Crowd {
    /// Tags of [`CROWDED`].
    pub tags: u64,
    /// Repositories in [`HIDDEN`].
    pub repositories: u64,
    /// Referrers of the manifest in [`CROWDED`].
    pub referrers: u64,
}

impl Crowd {
    /// Makes them; gives the digest of the manifest that all tags name and all referrers refer to.
    ///
    /// # Errors
    /// When the server refuses the image, or its database is none that we know.
    pub fn gather(self, server: &Server) -> Result<String> {
        let admin = server.admin()?;
        scene::create_project(&admin, HIDDEN, false)?;
        let digest = Image::unique(&[1_000])?.push(&admin, CROWDED, "first")?;
        let database = server.data_dir().join("catalog/taffrail.db");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(self.write(&database, &digest)).context("filling the catalog")?;
        Ok(digest)
    }

    /// The `number`th tag, from 1 on.
    #[must_use]
    pub fn tag(number: u64) -> String {
        format!("t{number:08}")
    }

    /// The `number`th repository, from 1 on.
    #[must_use]
    pub fn repository(number: u64) -> String {
        format!("{HIDDEN}/r{number:08}")
    }

    async fn write(self, database: &Path, digest: &str) -> Result<()> {
        let mut connection: SqliteConnection =
            SqliteConnectOptions::new().filename(database).foreign_keys(true).connect().await?;
        let mut transaction = connection.begin().await?;
        // Numbers and a digest only: nothing here comes from outside.
        let count = |most: u64| {
            format!("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {most})")
        };
        let crowded = format!("(SELECT key FROM repositories WHERE name = '{CROWDED}')");
        let statements = [
            (
                self.tags,
                format!(
                    "{} INSERT INTO tags (repository_key, name, artifact_id, moved_us)
                     SELECT a.repository_key, printf('t%08d', i), a.id, 0 FROM n, artifacts a
                     WHERE a.repository_key = {crowded} AND a.digest = '{digest}'",
                    count(self.tags)
                ),
            ),
            (
                self.repositories,
                format!(
                    "{} INSERT INTO repositories (key, project_id, name, created_us)
                     SELECT i, p.id, printf('{HIDDEN}/r%08d', i), 0 FROM n, projects p WHERE p.name = '{HIDDEN}'",
                    count(self.repositories)
                ),
            ),
            (
                self.repositories,
                format!(
                    "{} INSERT INTO artifacts (repository_key, digest, media_type, len_bytes, pushed_us)
                     SELECT i, printf('sha256:%064x', i), 'application/vnd.oci.image.manifest.v1+json', 500, 0 FROM n",
                    count(self.repositories)
                ),
            ),
            (
                self.referrers,
                format!(
                    "{} INSERT INTO artifacts
                     (repository_key, digest, media_type, len_bytes, artifact_type, subject, annotations, pushed_us)
                     SELECT {crowded}, printf('sha256:%064x', i), 'application/vnd.oci.image.manifest.v1+json', 500,
                         'application/vnd.example.signature', '{digest}', NULL, 0 FROM n",
                    count(self.referrers)
                ),
            ),
        ];
        for (most, statement) in statements {
            if most > 0 {
                sqlx::query(AssertSqlSafe(statement)).execute(&mut *transaction).await?;
            }
        }
        transaction.commit().await?;
        Ok(connection.close().await?)
    }
}
