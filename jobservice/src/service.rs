//! Starts the jobs, and stops them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use taffrail_blobstore::Store;
use taffrail_core::context::Context;
use taffrail_core::db::{Database, DbError};
use taffrail_core::outbox::Outbox;
use taffrail_core::reconciliation::{Acquaintance, ReconciliationStore, StoreIdentity};
use taffrail_core::repository::store::RepositoryStore;
use taffrail_core::scrub::ScrubStore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::checkpoint::{Checkpoint, REPLAY_BYTES_MAX};
use crate::collection::Collection;
use crate::compaction::{BYTES_PER_SEC, Compaction};
use crate::counters::Counters;
use crate::expiry::Expiry;
use crate::job::Job;
use crate::mark::Mark;
use crate::outbox::OutboxJob;
use crate::quarantine::Quarantine;
use crate::reconcile::Reconcile;
use crate::runner::{Pace, run};
use crate::scrub::{Scrub, ScrubOptions};

/// How often each job looks for work.
#[derive(Clone, Debug)]
pub struct JobsOptions {
    /// Links to drop. A look is one indexed query that finds nothing.
    pub outbox_pause: Duration,
    /// Upload sessions to end.
    pub expiry_pause: Duration,
    /// Garbage to collect.
    pub collection_pause: Duration,
    /// Log segments to compact.
    pub compaction_pause: Duration,
    /// What compaction may read and write in a second, in bytes; 0 for no compaction.
    pub compaction_bytes_per_sec: u64,
    /// Log to bound.
    pub checkpoint_pause: Duration,
    /// Catalog and links to compare: a pass reads all of both.
    pub reconcile_pause: Duration,
    /// How the store is read again; `None`: not at all.
    pub scrub: Option<ScrubOptions>,
    /// The operator's word that this store belongs to this catalog, although the catalog remembers another one or a later state.
    pub trust_store: bool,
}

impl Default for JobsOptions {
    fn default() -> JobsOptions {
        JobsOptions {
            outbox_pause: Duration::from_secs(1),
            expiry_pause: Duration::from_secs(60),
            collection_pause: Duration::from_secs(10),
            compaction_pause: Duration::from_secs(10),
            compaction_bytes_per_sec: BYTES_PER_SEC,
            checkpoint_pause: Duration::from_secs(10),
            reconcile_pause: Duration::from_secs(3_600),
            scrub: None,
            trust_store: false,
        }
    }
}

/// How often the scrub looks whether it is time, at most: a look reads five facts.
const SCRUB_PAUSE_MAX: Duration = Duration::from_secs(60);

/// How often blobs that were set aside are looked for: there are none, and then a look costs nothing.
const QUARANTINE_PAUSE: Duration = Duration::from_secs(5);

/// How often the store's progress is written down.
const MARK_PAUSE: Duration = Duration::from_secs(60);

/// The tables that jobs work on.
#[derive(Clone, Debug)]
pub struct Sources {
    /// Links to drop.
    pub outbox: Outbox,
    /// What reconciliation remembers.
    pub reconciliation: ReconciliationStore,
    /// What the scrub remembers.
    pub scrubs: ScrubStore,
    /// Names of repositories, for reports.
    pub repositories: RepositoryStore,
}

impl Sources {
    /// Those of a database.
    pub fn new(database: &Database, context: &Context) -> Sources {
        Sources {
            outbox: Outbox::new(database.clone(), context.clone()),
            reconciliation: ReconciliationStore::new(database.clone(), context.clone()),
            scrubs: ScrubStore::new(database.clone()),
            repositories: RepositoryStore::new(database.clone(), context.clone()),
        }
    }
}

/// Why nothing is deleted: catalog and store do not belong together, or are of different times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Held {
    /// The catalog knows no store, but this one holds blobs.
    #[error("the catalog is new, but the store holds {links} links")]
    CatalogIsNew {
        /// How many.
        links: u64,
    },
    /// The catalog remembers another store.
    #[error("the catalog belongs to the store {}", hex(.remembered))]
    OtherStore {
        /// Its uuid.
        remembered: [u8; 16],
    },
    /// The catalog remembers a later state of the store.
    #[error("the store is at record {lsn}, but the catalog has seen it at {remembered_lsn}")]
    StoreIsOlder {
        /// What the catalog has seen.
        remembered_lsn: u64,
        /// Where the store is.
        lsn: u64,
    },
}

fn hex(bytes: &[u8; 16]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Jobs that run.
#[derive(Debug)]
pub struct Jobs {
    stop: CancellationToken,
    tasks: JoinSet<()>,
    counters: Arc<Counters>,
    held: Option<Held>,
}

/// Starts all jobs on the current runtime. When catalog and store do not belong together, those that delete are not started:
/// see [`Jobs::held`].
///
/// # Errors
/// When the catalog does not answer.
pub async fn start(
    options: JobsOptions,
    store: Arc<Store>,
    sources: Sources,
    context: Context,
) -> Result<Jobs, DbError> {
    let identity = identity_of(&store);
    if options.trust_store {
        sources.reconciliation.adopt(&identity).await?;
    }
    let held = held(sources.reconciliation.meet(&identity).await?, &identity);
    let mut starter = Starter {
        stop: CancellationToken::new(),
        tasks: JoinSet::new(),
        counters: Arc::default(),
        store: Arc::clone(&store),
    };
    let counters = Arc::clone(&starter.counters);
    let expiry =
        Expiry { store: Arc::clone(&store), context: context.clone(), counters: Arc::clone(&counters) };
    starter.start(expiry, options.expiry_pause);
    let checkpoint = Checkpoint {
        store: Arc::clone(&store),
        counters: Arc::clone(&counters),
        floor_bytes: 0,
        replay_bytes_max: REPLAY_BYTES_MAX,
    };
    starter.start(checkpoint, options.checkpoint_pause);
    starter.start_watching(&options, &sources, &context);
    if let Some(held) = &held {
        tracing::error!(
            reason = %held,
            "catalog and store do not belong together; nothing is deleted until the operator trusts this store"
        );
    } else {
        starter.start_deleting(&options, &sources, &context);
    }
    Ok(Jobs { stop: starter.stop, tasks: starter.tasks, counters, held })
}

struct Starter {
    stop: CancellationToken,
    tasks: JoinSet<()>,
    counters: Arc<Counters>,
    store: Arc<Store>,
}

impl Starter {
    /// Jobs that look for damage, and delete nothing.
    fn start_watching(&mut self, options: &JobsOptions, sources: &Sources, context: &Context) {
        let quarantine = Quarantine {
            store: Arc::clone(&self.store),
            scrubs: sources.scrubs.clone(),
            repositories: sources.repositories.clone(),
            named: BTreeSet::new(),
        };
        self.start(quarantine, QUARANTINE_PAUSE);
        if let Some(options) = options.scrub {
            let scrub = Scrub {
                store: Arc::clone(&self.store),
                scrubs: sources.scrubs.clone(),
                context: context.clone(),
                counters: Arc::clone(&self.counters),
                options,
                pass: None,
            };
            self.start(scrub, SCRUB_PAUSE_MAX.min(options.period));
        }
    }

    fn start_deleting(&mut self, options: &JobsOptions, sources: &Sources, context: &Context) {
        let store = Arc::clone(&self.store);
        let counters = Arc::clone(&self.counters);
        let outbox = sources.outbox.clone();
        self.start(OutboxJob { store, outbox, context: context.clone(), counters }, options.outbox_pause);
        let store = Arc::clone(&self.store);
        let counters = Arc::clone(&self.counters);
        self.start(Collection { store, context: context.clone(), counters }, options.collection_pause);
        let compaction = Compaction {
            store: Arc::clone(&self.store),
            context: context.clone(),
            counters: Arc::clone(&self.counters),
            bytes_per_sec: options.compaction_bytes_per_sec,
        };
        self.start(compaction, options.compaction_pause);
        let reconcile = Reconcile {
            store: Arc::clone(&self.store),
            outbox: sources.outbox.clone(),
            reconciliation: sources.reconciliation.clone(),
            repositories: sources.repositories.clone(),
            context: context.clone(),
            counters: Arc::clone(&self.counters),
        };
        self.start(reconcile, options.reconcile_pause);
        let store = Arc::clone(&self.store);
        let reconciliation = sources.reconciliation.clone();
        self.start(Mark { store, reconciliation, read_lsn: 0, written_lsn: 0 }, MARK_PAUSE);
    }

    /// The first look is taken a pause after the start, so that a start is not the busiest moment.
    fn start(&mut self, job: impl Job, pause: Duration) {
        let pace = Pace { pause, first: pause };
        let (store, counters) = (Arc::clone(&self.store), Arc::clone(&self.counters));
        self.tasks.spawn(run(job, pace, store, counters, self.stop.clone()));
    }
}

impl Jobs {
    /// What they did.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// Why nothing is deleted, if so.
    pub fn held(&self) -> Option<Held> {
        self.held
    }

    /// Stops all jobs, dropping what they are at, and waits until the last one let go of the store.
    pub async fn stop(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(error = %error, "a job panicked");
            }
        }
    }
}

fn held(acquaintance: Acquaintance, identity: &StoreIdentity) -> Option<Held> {
    match acquaintance {
        Acquaintance::New | Acquaintance::Same => None,
        Acquaintance::Stranger => Some(Held::CatalogIsNew { links: identity.links }),
        Acquaintance::Other { remembered } => Some(Held::OtherStore { remembered }),
        Acquaintance::Earlier { remembered_lsn } => {
            Some(Held::StoreIsOlder { remembered_lsn, lsn: identity.next_lsn })
        }
    }
}

/// What the catalog knows a store by.
pub(crate) fn identity_of(store: &Store) -> StoreIdentity {
    StoreIdentity { uuid: store.uuid(), next_lsn: store.next_lsn(), links: store.stats().links }
}
