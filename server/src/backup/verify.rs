//! Whether a restored registry is whole: every record of the log, every byte of every blob against its digest, everything that the catalog
//! names against the store.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures_util::stream::{self, StreamExt as _};
use indicatif::BinaryBytes;
use serde_json::{Value, json};
use taffrail_blobstore::{Digest, Hasher, ReadError, RepositoryKey, Store, StoreState};
use taffrail_core::backup::{CatalogFigures, figures, problems};
use taffrail_core::db::Database;
use taffrail_core::reconciliation::{Acquaintance, NamedPosition, ReconciliationStore, StoreIdentity};
use taffrail_core::repository::store::RepositoryStore;

use super::runtime;
use super::shelf::Marker;
use crate::config::Config;
use crate::control::hex;
use crate::data_dir::DataDir;
use crate::progress::Progress;
use crate::{ambient, store};

/// Blobs read at once.
const BLOBS_AT_ONCE: usize = 8;
/// Artifacts whose names are looked up at once.
const ROWS: i64 = 512;
/// Problems that the text names; the JSON form names all.
const PROBLEMS_IN_TEXT_MAX: usize = 100;

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Verified {
    blobs: u64,
    bytes: u64,
    links: u64,
    catalog: CatalogFigures,
    names: u64,
    problems: Vec<String>,
    took: Duration,
}

impl Verified {
    /// Whether nothing is missing.
    pub(crate) fn is_whole(&self) -> bool {
        self.problems.is_empty()
    }

    /// As a part of a document.
    pub(crate) fn json(&self) -> Value {
        json!({
            "whole": self.is_whole(),
            "blobs": self.blobs,
            "bytes": self.bytes,
            "links": self.links,
            "repositories": self.catalog.repositories,
            "manifests": self.catalog.artifacts,
            "tags": self.catalog.tags,
            "names": self.names,
            "problems": self.problems,
            "seconds": self.took.as_secs_f64(),
        })
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let mut lines: Vec<String> = self
            .problems
            .iter()
            .take(PROBLEMS_IN_TEXT_MAX)
            .map(|problem| format!("lost: {problem}"))
            .collect();
        if let Some(more) = self.problems.len().checked_sub(PROBLEMS_IN_TEXT_MAX).filter(|more| *more > 0) {
            lines.push(format!("lost: {more} more (see --json)"));
        }
        let verdict = if self.is_whole() { "whole" } else { "NOT whole" };
        lines.push(format!(
            "verified in {:.1} s: {verdict}; {} blobs of {}, {} links, {} repositories, {} manifests, {} tags, all that {} names need",
            self.took.as_secs_f64(),
            self.blobs,
            BinaryBytes(self.bytes),
            self.links,
            self.catalog.repositories,
            self.catalog.artifacts,
            self.catalog.tags,
            self.names
        ));
        lines.join("\n") + "\n"
    }
}

/// Looks everything over. Opens the store, which replays its log, and closes it with a checkpoint.
///
/// # Errors
/// When it cannot be opened at all.
pub(crate) fn verify(
    dir: &DataDir,
    config: &Config,
    marker: &Marker,
    progress: &Progress,
) -> anyhow::Result<Verified> {
    let begun = Instant::now();
    let mut verified = Verified::default();
    let store = Arc::new(store::open(&dir.store(), config)?);
    if let StoreState::ReadOnly { damage } = store.state() {
        verified.problems.extend(damage.iter().map(ToString::to_string));
    }
    if hex(&store.uuid()) != marker.uuid {
        verified.problems.push(format!("the store is {}, not {}", hex(&store.uuid()), marker.uuid));
    }
    if store.next_lsn() != marker.next_lsn {
        let problem = format!("the log ends at record {}, not {}", store.next_lsn(), marker.next_lsn);
        verified.problems.push(problem);
    }
    let runtime = runtime()?;
    let outcome = runtime.block_on(async {
        let identity =
            StoreIdentity { uuid: store.uuid(), next_lsn: store.next_lsn(), links: store.stats().links };
        read_blobs(&store, progress, &mut verified).await?;
        let database = Database::open(&dir.database()).await.context("cannot open the catalog")?;
        let looked = look_at_names(&database, &store, &identity, &mut verified).await;
        database.close().await;
        looked
    });
    drop(runtime);
    outcome?;
    if let Ok(store) = Arc::try_unwrap(store) {
        // A store that is damaged takes no writes; nothing is lost by it.
        let _ = store.close();
    }
    verified.took = begun.elapsed();
    Ok(verified)
}

async fn read_blobs(store: &Arc<Store>, progress: &Progress, verified: &mut Verified) -> anyhow::Result<()> {
    progress.begin("verify", store.stats().blob_bytes);
    let mut pages = stream::iter(0..Store::LINK_PAGES)
        .flat_map(|page| match store.links_page(page) {
            Ok(links) => {
                let count = links.len() as u64;
                let mut seen = HashSet::new();
                let firsts = links
                    .into_iter()
                    .filter(|link| seen.insert(link.digest))
                    .map(|link| Ok((0, Some((link.repository, link.digest)))));
                stream::iter([Ok((count, None))].into_iter().chain(firsts).collect::<Vec<_>>())
            }
            Err(error) => stream::iter(vec![Err(error)]),
        })
        .map(|listed: io::Result<(u64, Option<(RepositoryKey, Digest)>)>| {
            let (store, progress) = (Arc::clone(store), progress.clone());
            async move {
                let (links, first) = listed.context("the index of the store cannot be read")?;
                let Some((repository, digest)) = first else { return Ok((links, None)) };
                let read =
                    tokio::spawn(async move { read_blob(&store, repository, digest, &progress).await });
                anyhow::Ok((0, Some((digest, read.await.context("a blob's task ended")?))))
            }
        })
        .buffer_unordered(BLOBS_AT_ONCE);
    while let Some(read) = pages.next().await {
        let (links, blob) = read?;
        verified.links += links;
        match blob {
            None => {}
            Some((_, Ok(len_bytes))) => {
                verified.blobs += 1;
                verified.bytes += len_bytes;
            }
            Some((digest, Err(problem))) => verified.problems.push(format!("blob {digest}: {problem}")),
        }
    }
    Ok(())
}

/// Reads a blob whole, and holds it against its digest; gives its length.
async fn read_blob(
    store: &Store,
    repository: RepositoryKey,
    digest: Digest,
    progress: &Progress,
) -> Result<u64, String> {
    let opened = store.open_blob(repository, &digest);
    let mut reader = opened.map_err(|error| {
        if matches!(error, ReadError::Unknown) {
            "its record is lost, or it was set aside as damaged".to_owned()
        } else {
            error.to_string()
        }
    })?;
    let mut hasher = Hasher::new(digest.algorithm());
    let (mut at, len_bytes) = (0, reader.len_bytes());
    while at < len_bytes {
        let bytes = reader.read(at, len_bytes).await.map_err(|error| error.to_string())?;
        hasher.update(&bytes);
        at += bytes.len() as u64;
        progress.advance(bytes.len() as u64);
    }
    let actual = hasher.finish();
    if actual == digest { Ok(len_bytes) } else { Err(format!("its bytes have the digest {actual}")) }
}

async fn look_at_names(
    database: &Database,
    store: &Store,
    identity: &StoreIdentity,
    verified: &mut Verified,
) -> anyhow::Result<()> {
    let catalog_problems = problems(database).await.context("cannot read the catalog")?;
    verified.problems.extend(catalog_problems.into_iter().map(|problem| format!("catalog: {problem}")));
    verified.catalog = figures(database).await?;
    let reconciliation = ReconciliationStore::new(database.clone(), ambient::context());
    match reconciliation.meet(identity).await? {
        Acquaintance::New | Acquaintance::Same => {}
        Acquaintance::Stranger | Acquaintance::Other { .. } => {
            verified.problems.push("the catalog belongs to another store".to_owned());
        }
        Acquaintance::Earlier { remembered_lsn } => verified.problems.push(format!(
            "the store is at record {}, but the catalog has seen it at {remembered_lsn}",
            identity.next_lsn
        )),
    }
    let repositories = RepositoryStore::new(database.clone(), ambient::context());
    let mut position = NamedPosition::default();
    loop {
        let (page, next) = reconciliation.named(position, ROWS).await?;
        for named in &page {
            verified.names += 1;
            if store.link_generation(named.repository, &named.digest).is_none() {
                let repository = repositories.by_key(named.repository).await?;
                let name =
                    repository.map_or_else(|| "?".to_owned(), |repository| repository.name.to_string());
                verified
                    .problems
                    .push(format!("{name} needs {}, and the store does not hold it", named.digest));
            }
        }
        match next {
            Some(next) => position = next,
            None => return Ok(()),
        }
    }
}
