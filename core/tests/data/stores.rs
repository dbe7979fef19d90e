//! Users, projects, members and repositories.

use taffrail_core::db::{Database, DbError};
use taffrail_core::project::store::{DeleteError, ProjectFilter, Visibility};
use taffrail_core::project::{ProjectFacts, ProjectId, ProjectName, ProjectRef, Role};
use taffrail_core::user::{StoredPassword, UserId};
use taffrail_distribution::catalog::{Catalog, Precondition};
use taffrail_distribution::name::RepositoryName;

use crate::world::{START_US, World, digest, image, new_user, somebody};

fn everything() -> ProjectFilter {
    ProjectFilter { visibility: Visibility::All, name_contains: None, name: None, public: None, owner: None }
}

async fn names(world: &World, filter: &ProjectFilter) -> Vec<String> {
    let (projects, total) = world.projects.list(filter, 0, 100).await.unwrap();
    assert_eq!(i64::try_from(projects.len()).unwrap(), total);
    projects.into_iter().map(|project| project.name).collect()
}

#[tokio::test]
async fn what_was_committed_is_there_when_the_file_is_opened_again() {
    let world = World::new().await;
    let grant = world.grant("p/r").await;
    world.put(&grant, image("m", &[], &["t"])).await.unwrap();
    world.database.close().await;
    let database = Database::open(&world.directory.path().join("taffrail.db")).await.unwrap();
    database.ping().await.unwrap();
    let again = taffrail_core::outbox::Outbox::new(database.clone(), world.context());
    assert!(again.is_named(grant.repository, &digest("m")).await.unwrap());
    database.close().await;
}

#[tokio::test]
async fn readers_cannot_write() {
    let world = World::new().await;
    let written = sqlx::query("DELETE FROM users").execute(world.database.readers()).await;
    assert!(written.is_err());
}

#[tokio::test]
async fn users_are_unique_by_name_and_by_address() {
    let world = World::new().await;
    let password = StoredPassword("phc".to_owned());
    let mut alice = new_user("alice");
    alice.email = Some("a@example.com".to_owned());
    let id = world.users.create(&alice, &password).await.unwrap();
    assert!(matches!(world.users.create(&new_user("alice"), &password).await, Err(DbError::Conflict)));
    let mut bob = new_user("bob");
    bob.email = alice.email.clone();
    assert!(matches!(world.users.create(&bob, &password).await, Err(DbError::Conflict)));
    // Users without an address do not collide.
    world.user("carol").await;
    let dave = world.user("dave").await;
    let taken = world.users.update_profile(dave, Some("a@example.com"), "", "").await;
    assert!(matches!(taken, Err(DbError::Conflict)));

    let (found, stored) = world.users.by_name("alice").await.unwrap().unwrap();
    assert_eq!((found.id, found.created_us, found.sysadmin), (id, START_US, false));
    assert_eq!(stored, password);
    assert!(world.users.by_name("Alice").await.unwrap().is_none());
    let (page, total) = world.users.list(Some("a"), 1, 1).await.unwrap();
    assert_eq!(total, 3, "alice, carol, dave");
    assert_eq!(page[0].username, "carol");
}

#[tokio::test]
async fn what_is_changed_of_a_user_is_read_back() {
    let world = World::new().await;
    let id = world.user("alice").await;
    let unknown = UserId(id.0 + 1);
    world.clock.advance(5);
    assert!(world.users.set_password(id, &StoredPassword("new".to_owned())).await.unwrap());
    assert!(world.users.set_sysadmin(id, true).await.unwrap());
    assert!(world.users.update_profile(id, Some("a@example.com"), "Alice", "hello").await.unwrap());
    let (user, password) = world.users.by_id(id).await.unwrap().unwrap();
    assert_eq!(password.0, "new");
    assert!(user.sysadmin);
    assert_eq!(
        (user.email.as_deref(), user.realname.as_str(), user.comment.as_str()),
        (Some("a@example.com"), "Alice", "hello")
    );
    assert_eq!((user.created_us, user.updated_us), (START_US, START_US + 5));
    assert_eq!(world.users.sysadmins().await.unwrap(), 1);
    assert!(!world.users.set_password(unknown, &password).await.unwrap());
    assert!(!world.users.set_sysadmin(unknown, true).await.unwrap());
    assert!(!world.users.delete(unknown).await.unwrap());
}

#[tokio::test]
async fn a_deleted_user_leaves_projects_but_no_memberships_and_no_id() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let project = world.project("p", false, alice).await;
    assert!(world.users.delete(alice).await.unwrap());
    let found = world.projects.by_id(project).await.unwrap().unwrap();
    assert_eq!((found.owner, found.owner_name), (None, None));
    assert_eq!(world.members.list(project, None, 0, 10).await.unwrap().1, 0);
    let again = world.user("alice").await;
    assert_ne!(again, alice, "a user made anew under an old name is another user");
}

#[tokio::test]
async fn who_makes_a_project_is_its_admin() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let project = world.project("p", true, alice).await;
    assert_eq!(world.projects.role_in(project, alice).await.unwrap(), Some(Role::Admin));
    let taken = world.projects.create(&ProjectName::parse("p").unwrap(), false, alice).await;
    assert!(matches!(taken, Err(DbError::Conflict)));
    let facts = |role| Some(ProjectFacts { id: project, public: true, role });
    assert_eq!(world.project_named("p").await, facts(None));
    assert_eq!(world.project_named("q").await, None);
    let by_id = ProjectRef::Id(project);
    assert_eq!(world.projects.facts(&by_id, Some(alice)).await.unwrap(), facts(Some(Role::Admin)));
    let absent = ProjectRef::Id(ProjectId(project.0 + 1));
    assert_eq!(world.projects.facts(&absent, Some(alice)).await.unwrap(), None);
    let found = world.projects.by_id(project).await.unwrap().unwrap();
    assert_eq!(found.owner_name.as_deref(), Some("alice"));
    assert!(found.public);
}

#[tokio::test]
async fn lists_of_projects_show_what_the_filter_says() {
    let world = World::new().await;
    let (alice, bob) = (world.user("alice").await, world.user("bob").await);
    world.project("open", true, alice).await;
    world.project("closed", false, alice).await;
    world.project("mine", false, bob).await;
    assert_eq!(names(&world, &everything()).await, ["closed", "mine", "open"]);
    let public = ProjectFilter { visibility: Visibility::Public, ..everything() };
    assert_eq!(names(&world, &public).await, ["open"]);
    let bobs = ProjectFilter { visibility: Visibility::Member(bob), ..everything() };
    assert_eq!(names(&world, &bobs).await, ["mine", "open"]);
    let private = ProjectFilter { public: Some(false), ..everything() };
    assert_eq!(names(&world, &private).await, ["closed", "mine"]);
    let named = ProjectFilter { name_contains: Some("ne".to_owned()), ..everything() };
    assert_eq!(names(&world, &named).await, ["mine"]);
    let percent = ProjectFilter { name_contains: Some("%".to_owned()), ..everything() };
    assert!(names(&world, &percent).await.is_empty(), "no character is a wildcard");
    let exact = ProjectFilter { name: Some("open".to_owned()), ..everything() };
    assert_eq!(names(&world, &exact).await, ["open"]);
    let owned = ProjectFilter { owner: Some("alice".to_owned()), ..everything() };
    assert_eq!(names(&world, &owned).await, ["closed", "open"]);
    let (page, total) = world.projects.list(&everything(), 1, 1).await.unwrap();
    assert_eq!((page[0].name.as_str(), page.len(), total), ("mine", 1, 3));
}

#[tokio::test]
async fn a_project_with_artifacts_stays_and_an_empty_one_goes_for_good() {
    let world = World::new().await;
    let grant = world.grant("p/r").await;
    let id = world.project_named("p").await.unwrap().id;
    let project = world.projects.by_id(id).await.unwrap().unwrap();
    assert_eq!(project.repo_count, 0, "a repository without artifacts does not count");
    world.put(&grant, image("m", &[], &[])).await.unwrap();
    assert_eq!(world.projects.by_id(project.id).await.unwrap().unwrap().repo_count, 1);
    assert!(matches!(world.projects.delete(project.id).await, Err(DeleteError::NotEmpty(1))));

    world.catalog.delete_manifest(&grant, &somebody(), &digest("m"), Precondition::None).await.unwrap();
    world.projects.delete(project.id).await.unwrap();
    assert!(matches!(world.projects.delete(project.id).await, Err(DeleteError::Unknown)));
    assert!(world.repositories.by_key(grant.repository).await.unwrap().is_none());

    let again = world.grant("p/r").await;
    assert_ne!(again.repository, grant.repository, "a repository made anew has another key");
    assert_ne!(world.project_named("p").await.unwrap().id, project.id);
}

#[tokio::test]
async fn members_are_found_in_their_own_project_only() {
    let world = World::new().await;
    let (alice, bob) = (world.user("alice").await, world.user("bob").await);
    let (one, two) = (world.project("one", false, alice).await, world.project("two", false, alice).await);
    let member = world.members.add(one, bob, Role::Guest).await.unwrap();
    assert!(matches!(world.members.add(one, bob, Role::Developer).await, Err(DbError::Conflict)));
    assert!(world.members.by_id(two, member).await.unwrap().is_none());
    assert!(!world.members.set_role(two, member, Role::Admin).await.unwrap());
    assert!(!world.members.remove(two, member).await.unwrap());
    assert_eq!(world.projects.role_in(one, bob).await.unwrap(), Some(Role::Guest));
    assert!(world.members.set_role(one, member, Role::Maintainer).await.unwrap());
    let found = world.members.by_id(one, member).await.unwrap().unwrap();
    assert_eq!((found.user, found.username.as_str(), found.role), (bob, "bob", Role::Maintainer));
    let (page, total) = world.members.list(one, Some("bo"), 0, 10).await.unwrap();
    assert_eq!((page, total), (vec![found], 1));
    assert!(world.members.remove(one, member).await.unwrap());
    assert_eq!(world.projects.role_in(one, bob).await.unwrap(), None);
}

#[tokio::test]
async fn members_of_what_does_not_exist_are_refused() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let project = world.project("p", false, alice).await;
    assert!(world.members.add(ProjectId(project.0 + 1), alice, Role::Guest).await.is_err());
    assert!(world.members.add(project, UserId(alice.0 + 1), Role::Guest).await.is_err());
}

#[tokio::test]
async fn a_repository_is_made_once_under_contention() {
    let world = World::new().await;
    let owner = world.user("owner").await;
    let project = world.project("p", false, owner).await;
    let name = RepositoryName::parse("p/r").unwrap();
    let made =
        futures_util::future::join_all((0..16).map(|_| world.repositories.find_or_create(project, &name)))
            .await;
    let keys: std::collections::HashSet<_> = made.into_iter().map(|made| made.unwrap().key).collect();
    assert_eq!(keys.len(), 1);
    let gone = world
        .repositories
        .find_or_create(ProjectId(project.0 + 1), &RepositoryName::parse("q/r").unwrap())
        .await;
    assert!(matches!(gone, Err(DbError::Conflict)));
}
