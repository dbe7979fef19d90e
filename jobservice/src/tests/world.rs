//! A store, a catalog, and what pushes and deletes between them.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use bytes::Bytes;
use taffrail_blobstore::disk::sim::SimDisk;
use taffrail_blobstore::{Algorithm, Digest, Options, RepositoryKey, SessionId, Store, Threading};
use taffrail_core::artifact::{SqlCatalog, VisibilityOf};
use taffrail_core::context::{Clock, Context, Entropy};
use taffrail_core::db::Database;
use taffrail_core::project::ProjectName;
use taffrail_core::project::store::{ProjectStore, Visibility};
use taffrail_core::repository::store::RepositoryStore;
use taffrail_core::user::store::UserStore;
use taffrail_core::user::{NewUser, StoredPassword, Username};
use taffrail_distribution::access::{Action, Grant, Identity};
use taffrail_distribution::catalog::{Catalog, ManifestReference, NewManifest, Precondition, ReferenceKind};
use taffrail_distribution::name::{Reference, RepositoryName, Tag};
use tempfile::TempDir;

use crate::Sources;
use crate::collection::Collection;
use crate::compaction::Compaction;
use crate::counters::Counters;
use crate::expiry::Expiry;
use crate::job::{Job, Round};
use crate::outbox::OutboxJob;
use crate::reconcile::Reconcile;

/// An hour, in microseconds.
pub(crate) const HOUR_US: i64 = 3_600_000_000;

/// No lease granted before stands after this, nor any grace time: the engine's defaults are an hour, and it rounds leases up.
pub(crate) const LEASE_US: i64 = 2 * HOUR_US;

/// The clock starts late enough that everything before it is old.
const START_US: i64 = 1_700_000_000_000_000;

pub(crate) struct SteppedClock(AtomicI64);

impl SteppedClock {
    pub(crate) fn advance(&self, us: i64) {
        self.0.fetch_add(us, Ordering::SeqCst);
    }
}

impl Clock for SteppedClock {
    fn now_micros(&self) -> i64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// splitmix64.
struct Seeded(AtomicU64);

impl Entropy for Seeded {
    fn fill(&self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let mut word = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::SeqCst);
            word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            chunk.copy_from_slice(&(word ^ (word >> 31)).to_le_bytes()[..chunk.len()]);
        }
    }
}

/// Options of a store on a simulated disk.
pub(crate) fn options(seed: u8) -> Options {
    Options { segment_bytes: 1 << 20, threading: Threading::Inline, ..Options::new([seed; 48]) }
}

pub(crate) struct World {
    pub(crate) disk: SimDisk,
    pub(crate) store: Arc<Store>,
    pub(crate) clock: Arc<SteppedClock>,
    pub(crate) context: Context,
    pub(crate) catalog: SqlCatalog,
    pub(crate) sources: Sources,
    pub(crate) counters: Arc<Counters>,
    /// Where `push` and `delete` work.
    pub(crate) grant: Grant,
    _directory: TempDir,
}

impl World {
    /// Opens everything; the fence after an opening has passed already.
    pub(crate) async fn new() -> World {
        let directory = TempDir::new().unwrap();
        let database = Database::open(&directory.path().join("taffrail.db")).await.unwrap();
        let clock = Arc::new(SteppedClock(AtomicI64::new(START_US)));
        let context = Context {
            clock: Arc::clone(&clock) as Arc<dyn Clock>,
            entropy: Arc::new(Seeded(AtomicU64::new(7))),
        };
        let disk = SimDisk::new();
        let store = Store::open(Arc::new(disk.clone()), options(1), context.now_ms()).unwrap();
        clock.advance(LEASE_US);
        let visibility_of: VisibilityOf = Arc::new(|_| Box::pin(std::future::ready(Ok(Visibility::All))));
        let grant = grant(&database, &context).await;
        World {
            disk,
            store: Arc::new(store),
            sources: Sources::new(&database, &context),
            catalog: SqlCatalog::new(database, context.clone(), visibility_of),
            clock,
            context,
            counters: Arc::default(),
            grant,
            _directory: directory,
        }
    }

    pub(crate) fn repository(&self) -> RepositoryKey {
        self.grant.repository
    }

    /// Puts bytes and their link into the store, and nothing into the catalog.
    pub(crate) async fn upload(&self, content: &str) -> Digest {
        self.upload_bytes(content.to_owned().into()).await
    }

    pub(crate) async fn upload_bytes(&self, bytes: Bytes) -> Digest {
        let digest = Digest::of(Algorithm::Sha256, &bytes);
        drop(self.store.put(self.repository(), &digest, bytes, &[], self.context.now_ms()).await.unwrap());
        digest
    }

    /// Pushes an image of these layers under a tag of its own name.
    pub(crate) async fn push(&self, name: &str, layers: &[&str]) -> Digest {
        let mut references = Vec::new();
        for layer in layers {
            let digest = self.upload(layer).await;
            references.push(ManifestReference {
                digest,
                kind: ReferenceKind::Layer,
                len_bytes: layer.len() as u64,
            });
        }
        let digest = digest(name);
        let linked: Vec<(Digest, u64)> =
            references.iter().map(|reference| (reference.digest, reference.len_bytes)).collect();
        let bytes = Bytes::from(name.to_owned());
        let now_ms = self.context.now_ms();
        let pins = self.store.put(self.repository(), &digest, bytes, &linked, now_ms).await.unwrap();
        let tag = Tag::parse(name).unwrap();
        let manifest = NewManifest {
            digest,
            media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
            len_bytes: name.len() as u64,
            artifact_type: None,
            subject: None,
            annotations: None,
            references,
            tags: vec![tag.clone()],
            precondition: Precondition::None,
        };
        let reference = Reference::Tag(tag);
        self.catalog.put_manifest(&self.grant, &nobody(), &reference, manifest).await.unwrap();
        drop(pins);
        digest
    }

    pub(crate) async fn delete(&self, name: &str) {
        let digest = digest(name);
        self.catalog.delete_manifest(&self.grant, &nobody(), &digest, Precondition::None).await.unwrap();
    }

    pub(crate) fn is_linked(&self, content: &str) -> bool {
        self.store.link_generation(self.repository(), &digest(content)).is_some()
    }

    /// Begins an upload session.
    pub(crate) fn begin(&self) -> SessionId {
        let id = SessionId::new(self.context.random());
        let now_ms = self.context.now_ms();
        self.store.begin_upload(self.repository(), Algorithm::Sha256, id, now_ms).unwrap();
        id
    }

    /// Begins a session and gives it its first bytes.
    pub(crate) async fn begin_with_bytes(&self) -> SessionId {
        let (id, now_ms) = (self.begin(), self.context.now_ms());
        let mut upload = self.store.open_upload(self.repository(), id, now_ms).await.unwrap();
        upload.write(Bytes::from_static(b"first"), now_ms).await.unwrap();
        upload.acknowledge(now_ms).await.unwrap();
        id
    }

    pub(crate) fn outbox(&self) -> OutboxJob {
        OutboxJob {
            store: Arc::clone(&self.store),
            outbox: self.sources.outbox.clone(),
            context: self.context.clone(),
            counters: Arc::clone(&self.counters),
        }
    }

    pub(crate) fn reconcile(&self) -> Reconcile {
        Reconcile {
            store: Arc::clone(&self.store),
            outbox: self.sources.outbox.clone(),
            reconciliation: self.sources.reconciliation.clone(),
            repositories: self.sources.repositories.clone(),
            context: self.context.clone(),
            counters: Arc::clone(&self.counters),
        }
    }

    pub(crate) fn expiry(&self) -> Expiry {
        Expiry {
            store: Arc::clone(&self.store),
            context: self.context.clone(),
            counters: Arc::clone(&self.counters),
        }
    }

    pub(crate) fn compaction(&self, bytes_per_sec: u64) -> Compaction {
        Compaction {
            store: Arc::clone(&self.store),
            context: self.context.clone(),
            counters: Arc::clone(&self.counters),
            bytes_per_sec,
        }
    }

    pub(crate) fn collection(&self) -> Collection {
        Collection {
            store: Arc::clone(&self.store),
            context: self.context.clone(),
            counters: Arc::clone(&self.counters),
        }
    }
}

async fn grant(database: &Database, context: &Context) -> Grant {
    let owner = NewUser {
        username: Username::parse("owner").unwrap(),
        email: None,
        realname: String::new(),
        comment: String::new(),
        sysadmin: false,
    };
    let users = UserStore::new(database.clone(), context.clone());
    let owner = users.create(&owner, &StoredPassword(String::new())).await.unwrap();
    let projects = ProjectStore::new(database.clone(), context.clone());
    let project = projects.create(&ProjectName::parse("p").unwrap(), false, owner).await.unwrap();
    let name = RepositoryName::parse("p/r").unwrap();
    let repositories = RepositoryStore::new(database.clone(), context.clone());
    let repository = repositories.find_or_create(project, &name).await.unwrap().key;
    Grant { repository, name, action: Action::Push }
}

pub(crate) fn nobody() -> Identity {
    Identity::new(())
}

pub(crate) fn digest(content: &str) -> Digest {
    Digest::of(Algorithm::Sha256, content.as_bytes())
}

/// Runs a job until it has nothing to do.
pub(crate) async fn exhaust(job: &mut impl Job) {
    while job.round().await.unwrap() != Round::Idle {}
}
