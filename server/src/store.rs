//! The storage engine as the server runs it: opened before anything else, watched, and closed last.
//!
//! What must stay true: a store that failed (poisoned) lets reads go on for one drain period, then the process ends with an
//! error, so that a supervisor starts it anew and the store recovers (docs/operations/damage.md). A store that is damaged
//! (read-only) is served as it is: a new start would change nothing.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use taffrail_blobstore::disk::Disk;
use taffrail_blobstore::disk::threads::ThreadsDisk;
use taffrail_blobstore::disk::uring::{Ring, UringDisk};
use taffrail_blobstore::{Options, Store, StoreState, Threading};

use crate::ambient;
use crate::config::{Config, StorageIo};
use crate::drain::Drain;
use crate::gate;
use crate::supervisor;

/// How often the store is asked for its state. A failed store refuses writes by itself; this only ends the process.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// Storage threads for each processor, when nobody configures them: they wait for the disk most of the time.
const THREADS_PER_PROCESSOR: usize = 4;
/// Storage threads at least.
const THREADS_MIN: usize = 8;
/// Threads that hash uploads, at most. They make a few large uploads faster; many keep every processor busy without them.
const HASH_THREADS_MAX: usize = 8;
/// Damaged places that the log names at the start; `taffrail-fsck check` names all.
const DAMAGE_LOGGED_MAX: usize = 100;

/// Opens the store in `folder`, or makes it.
///
/// # Errors
/// When another process has it (the error names that process), or the disk fails.
pub(crate) fn open(folder: &Path, config: &Config) -> anyhow::Result<Store> {
    let files =
        ThreadsDisk::open_or_create(folder).with_context(|| format!("cannot use {}", folder.display()))?;
    let store = Store::open(disk(files, config.storage.io)?, options(config), ambient::now_ms())
        .with_context(|| format!("cannot open the store in {}", folder.display()))?;
    match store.state() {
        StoreState::Writable => {}
        StoreState::ReadOnly { damage } => {
            tracing::error!(
                places = damage.len(),
                "the log is damaged: pulls go on, pushes are refused until `taffrail-fsck repair` has run"
            );
            for damage in damage.iter().take(DAMAGE_LOGGED_MAX) {
                tracing::error!(%damage, "damaged");
            }
        }
        StoreState::Poisoned { reason } => tracing::error!(reason, "the store failed while it was opened"),
    }
    Ok(store)
}

/// The back end that was asked for, or that the system allows.
fn disk(files: ThreadsDisk, io: StorageIo) -> anyhow::Result<Arc<dyn Disk>> {
    let ring = match io {
        StorageIo::Threads => None,
        StorageIo::Uring => Some(Ring::start().context("storage.io is uring")?),
        StorageIo::Auto => Ring::start()
            .inspect_err(|reason| tracing::info!(io = "threads", %reason, "large writes go through threads"))
            .ok(),
    };
    match ring {
        Some(ring) => {
            tracing::info!(io = "uring", buffers = ring.buffers(), "large writes go through io_uring");
            Ok(Arc::new(UringDisk::new(files, ring)))
        }
        None => Ok(Arc::new(files)),
    }
}

fn options(config: &Config) -> Options {
    let millis = |secs: u64| secs.saturating_mul(1000);
    let count = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
    let mut options = Options::new(ambient::random_bytes());
    options.segment_bytes = config.storage.segment_bytes;
    options.reserve_bytes = config.storage.reserve_bytes;
    options.read_ahead_bytes_max = config.storage.read_ahead_bytes_max;
    options.recent_bytes_max = config.storage.recent_bytes_max;
    options.lease_ms = millis(config.storage.lease_secs);
    options.grace_ms = millis(config.storage.grace_secs);
    options.session_idle_ms = millis(config.uploads.idle_secs);
    options.sessions_per_repository_max = count(config.uploads.per_repository_max);
    options.sessions_per_uploader_max = count(config.uploads.per_user_max);
    options.sessions_max = count(config.uploads.total_max);
    options.session_memory_bytes_max = config.uploads.memory_bytes_max;
    options.blob_bytes_max = config.uploads.blob_bytes_max;
    options.open_files_max = options.open_files_max.min(gate::files_to_keep());
    options.threading = Threading::Pool { storage_threads: threads(count(config.storage.threads)) };
    // One processor receives; with only one there is nothing to gain.
    options.hash_threads = (processors() - 1).min(HASH_THREADS_MAX);
    options
}

fn threads(configured: usize) -> usize {
    match configured {
        0 => (processors() * THREADS_PER_PROCESSOR).max(THREADS_MIN),
        threads => threads,
    }
}

/// At least 1.
fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Watches the store for as long as the process runs, and ends the process when it failed.
pub(crate) async fn watch(store: std::sync::Weak<Store>, drain: Drain, patience: Duration) {
    let mut pace = tokio::time::interval(LOOK_INTERVAL);
    loop {
        pace.tick().await;
        let Some(state) = store.upgrade().map(|store| store.state()) else { return };
        if let StoreState::Poisoned { reason } = state {
            tracing::error!(
                reason,
                ends_in_secs = patience.as_secs(),
                "the store failed: nothing more is written, pulls go on until the process ends"
            );
            supervisor::status("the store failed; ending soon");
            tokio::time::sleep(patience).await;
            drain.begin_failed();
            return;
        }
    }
}

/// Closes the store, so that the next start needs no recovery.
pub(crate) fn close(store: Arc<Store>) {
    match Arc::try_unwrap(store) {
        Ok(store) => match store.close() {
            Ok(()) => tracing::info!("the store is closed"),
            Err(error) => {
                tracing::warn!(%error, "the store was not closed cleanly; the next start recovers it")
            }
        },
        Err(_) => tracing::warn!("the store is still in use; the next start recovers it"),
    }
}
