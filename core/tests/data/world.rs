//! A database in a directory of its own, with a clock that stands still and a seeded source of random bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use taffrail_blobstore::{Algorithm, Digest, RepositoryKey};
use taffrail_core::artifact::{SqlCatalog, VisibilityOf};
use taffrail_core::context::{Clock, Context, Entropy};
use taffrail_core::db::Database;
use taffrail_core::member::store::MemberStore;
use taffrail_core::outbox::Outbox;
use taffrail_core::project::store::{ProjectStore, Visibility};
use taffrail_core::project::{ProjectFacts, ProjectId, ProjectName, ProjectRef};
use taffrail_core::reconciliation::ReconciliationStore;
use taffrail_core::repository::store::RepositoryStore;
use taffrail_core::user::store::UserStore;
use taffrail_core::user::{NewUser, StoredPassword, UserId, Username};
use taffrail_distribution::access::{Action, Grant, Identity};
use taffrail_distribution::catalog::{
    Catalog, CatalogError, ManifestReference, NewManifest, Precondition, ReferenceKind,
};
use taffrail_distribution::name::{Reference, RepositoryName, Tag};
use tempfile::TempDir;

/// Where every clock starts, in microseconds since 1970.
pub(crate) const START_US: i64 = 1_700_000_000_000_000;

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

/// splitmix64: deterministic, and good enough that no two keys collide.
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

pub(crate) struct World {
    pub(crate) database: Database,
    pub(crate) clock: Arc<SteppedClock>,
    pub(crate) users: UserStore,
    pub(crate) projects: ProjectStore,
    pub(crate) members: MemberStore,
    pub(crate) repositories: RepositoryStore,
    pub(crate) catalog: SqlCatalog,
    pub(crate) outbox: Outbox,
    pub(crate) reconciliation: ReconciliationStore,
    pub(crate) directory: TempDir,
    context: Context,
}

impl World {
    pub(crate) async fn new() -> World {
        let directory = TempDir::new().unwrap();
        let database = Database::open(&directory.path().join("taffrail.db")).await.unwrap();
        let clock = Arc::new(SteppedClock(AtomicI64::new(START_US)));
        let context = Context {
            clock: Arc::clone(&clock) as Arc<dyn Clock>,
            entropy: Arc::new(Seeded(AtomicU64::new(7))),
        };
        World {
            users: UserStore::new(database.clone(), context.clone()),
            projects: ProjectStore::new(database.clone(), context.clone()),
            members: MemberStore::new(database.clone(), context.clone()),
            repositories: RepositoryStore::new(database.clone(), context.clone()),
            catalog: catalog(&database, &context),
            outbox: Outbox::new(database.clone(), context.clone()),
            reconciliation: ReconciliationStore::new(database.clone(), context.clone()),
            database,
            clock,
            directory,
            context,
        }
    }

    pub(crate) fn context(&self) -> Context {
        self.context.clone()
    }

    /// A catalog that has nothing in memory yet.
    pub(crate) fn catalog_without_memory(&self) -> SqlCatalog {
        catalog(&self.database, &self.context)
    }

    pub(crate) async fn user(&self, name: &str) -> UserId {
        self.users.create(&new_user(name), &StoredPassword("phc".to_owned())).await.unwrap()
    }

    pub(crate) async fn project(&self, name: &str, public: bool, owner: UserId) -> ProjectId {
        self.projects.create(&ProjectName::parse(name).unwrap(), public, owner).await.unwrap()
    }

    pub(crate) async fn project_named(&self, name: &str) -> Option<ProjectFacts> {
        let name = ProjectRef::Name(ProjectName::parse(name).unwrap());
        self.projects.facts(&name, None).await.unwrap()
    }

    /// A grant for a repository in a project that is made when it does not exist.
    pub(crate) async fn grant(&self, name: &str) -> Grant {
        let name = RepositoryName::parse(name).unwrap();
        let (project, _) = name.split_first().unwrap();
        let project = match self.project_named(project).await {
            Some(project) => project.id,
            None => {
                let owner = match self.users.by_name("owner").await.unwrap() {
                    Some((owner, _)) => owner.id,
                    None => self.user("owner").await,
                };
                self.project(project, false, owner).await
            }
        };
        let repository = self.repositories.find_or_create(project, &name).await.unwrap();
        Grant { repository: repository.key, name, action: Action::Push }
    }

    pub(crate) async fn put(&self, grant: &Grant, manifest: NewManifest) -> Result<(), CatalogError> {
        let reference = match manifest.tags.first() {
            Some(tag) => Reference::Tag(tag.clone()),
            None => Reference::Digest(manifest.digest),
        };
        self.catalog.put_manifest(grant, &somebody(), &reference, manifest).await
    }
}

fn catalog(database: &Database, context: &Context) -> SqlCatalog {
    let visibility_of: VisibilityOf = Arc::new(|identity| {
        let visibility = *identity.downcast::<Visibility>().unwrap_or(&Visibility::Public);
        Box::pin(std::future::ready(Ok(visibility)))
    });
    SqlCatalog::new(database.clone(), context.clone(), visibility_of)
}

pub(crate) fn new_user(name: &str) -> NewUser {
    NewUser {
        username: Username::parse(name).unwrap(),
        email: None,
        realname: String::new(),
        comment: String::new(),
        sysadmin: false,
    }
}

pub(crate) fn somebody() -> Identity {
    Identity::new(Visibility::All)
}

pub(crate) fn digest(text: &str) -> Digest {
    Digest::of(Algorithm::Sha256, text.as_bytes())
}

pub(crate) fn tag(text: &str) -> Tag {
    Tag::parse(text).unwrap()
}

pub(crate) fn key(number: u64) -> RepositoryKey {
    RepositoryKey::new(number).unwrap()
}

/// An image with a config and layers of these names.
pub(crate) fn image(name: &str, layers: &[&str], tags: &[&str]) -> NewManifest {
    let config = reference(&format!("{name}.config"), ReferenceKind::Config);
    let layers = layers.iter().map(|layer| reference(layer, ReferenceKind::Layer));
    NewManifest {
        digest: digest(name),
        media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
        len_bytes: 100,
        artifact_type: None,
        subject: None,
        annotations: None,
        references: std::iter::once(config).chain(layers).collect(),
        tags: tags.iter().map(|name| tag(name)).collect(),
        precondition: Precondition::None,
    }
}

/// An index of manifests of these names.
pub(crate) fn index(name: &str, children: &[&str], tags: &[&str]) -> NewManifest {
    NewManifest {
        media_type: "application/vnd.oci.image.index.v1+json".to_owned(),
        references: children.iter().map(|child| reference(child, ReferenceKind::Manifest)).collect(),
        ..image(name, &[], tags)
    }
}

/// An artifact about another manifest.
pub(crate) fn referrer(name: &str, subject: &str, artifact_type: &str) -> NewManifest {
    NewManifest {
        subject: Some(digest(subject)),
        artifact_type: Some(artifact_type.to_owned()),
        annotations: Some(format!("{{\"name\":\"{name}\"}}")),
        ..image(name, &[], &[])
    }
}

fn reference(name: &str, kind: ReferenceKind) -> ManifestReference {
    ManifestReference { digest: digest(name), kind, len_bytes: 10 }
}
