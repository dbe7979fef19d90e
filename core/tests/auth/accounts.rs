//! Users, their passwords, and what guessing them costs.

use argon2::PasswordHasher as _;
use http::{HeaderMap, header};
use serde_json::json;
use taffrail_distribution::access::{AccessError, Action, Identity, Missing};
use taffrail_distribution::name::RepositoryName;

use crate::harbour::{ADMIN, HASHES_MAX, Harbour, NOBODY, Who, basic, bearer};

const ALICE: Who = Some(("alice", "Mainsail-7"));
const BOB: Who = Some(("bob", "Foresail-8"));

#[tokio::test]
async fn a_user_is_made_seen_changed_and_deleted() {
    let harbour = Harbour::open().await;
    let id = harbour.user("alice", "Mainsail-7").await;
    harbour.user("bob", "Foresail-8").await;
    let me = harbour.api(ALICE, "GET", "/users/current", None).await.expect(200).json();
    assert_eq!((&me["user_id"], &me["username"]), (&json!(id), &json!("alice")));
    assert_eq!((&me["sysadmin_flag"], &me["email"]), (&json!(false), &json!("alice@example.test")));
    assert!(me.get("password").is_none() && me.get("salt").is_none());
    harbour.api(NOBODY, "GET", "/users/current", None).await.expect(401);
    harbour.api(ALICE, "GET", "/users", None).await.expect(403);
    let all = harbour.api(ADMIN, "GET", "/users?page_size=2", None).await.expect(200);
    assert_eq!(all.headers["x-total-count"], "3");
    assert!(all.headers[header::LINK].to_str().unwrap().contains("page=2"));
    let again = json!({"username": "alice", "password": "Mainsail-7"});
    harbour.api(ADMIN, "POST", "/users", Some(again)).await.expect(409);
    // S-27: an address belongs to one user.
    let stolen = json!({"email": "bob@example.test", "realname": "Alice"});
    harbour.api(ALICE, "PUT", &format!("/users/{id}"), Some(stolen)).await.expect(409);
    let fine = json!({"email": "alice@sea.test", "realname": "Alice"});
    harbour.api(ALICE, "PUT", &format!("/users/{id}"), Some(fine)).await.expect(200);
    harbour.api(ADMIN, "DELETE", &format!("/users/{id}"), None).await.expect(200);
    harbour.api(ALICE, "GET", "/users/current", None).await.expect(401);
    harbour.api(ADMIN, "DELETE", &format!("/users/{id}"), None).await.expect(404);
}

#[tokio::test]
async fn s_26_fields_that_nobody_may_set_are_refused() {
    let harbour = Harbour::open().await;
    let id = harbour.user("alice", "Mainsail-7").await;
    for (field, value) in [
        ("has_admin_role", json!(true)),
        ("sysadmin_flag", json!(true)),
        ("sysadmin", json!(true)),
        ("admin_role_in_auth", json!(true)),
        ("role_id", json!(1)),
        ("user_id", json!(1)),
        ("creation_time", json!("2020-01-01T00:00:00Z")),
        ("salt", json!("x")),
    ] {
        let mut new = json!({"username": "eve", "password": "Mainsail-7"});
        new[field] = value.clone();
        harbour.api(ADMIN, "POST", "/users", Some(new)).await.expect(400);
        let mut profile = json!({"realname": "Alice"});
        profile[field] = value;
        harbour.api(ALICE, "PUT", &format!("/users/{id}"), Some(profile)).await.expect(400);
    }
    let me = harbour.api(ALICE, "GET", "/users/current", None).await.expect(200).json();
    assert_eq!(me["sysadmin_flag"], false);
}

#[tokio::test]
async fn s_16_and_24_names_and_passwords_that_could_mislead_are_refused() {
    let harbour = Harbour::open().await;
    for name in ["", "admin ", "admin\u{a0}", "\u{430}dmin", "robot$x", "a b", "a:b", "a\u{0}", "a,b", "a/b"]
    {
        let body = json!({"username": name, "password": "Mainsail-7"});
        harbour.api(ADMIN, "POST", "/users", Some(body)).await.expect(400);
    }
    let long = format!("Aa1{}", "x".repeat(254));
    for password in ["", "Short1", "alllower1", "ALLUPPER1", "NoDigits", "Harbor12345", long.as_str()] {
        let body = json!({"username": "eve", "password": password});
        let before = harbour.core.password_hashes();
        harbour.api(ADMIN, "POST", "/users", Some(body)).await.expect(400);
        assert!(harbour.core.password_hashes() <= before + 1, "only the caller's own was hashed");
    }
}

#[tokio::test]
async fn s_15_a_changed_password_ends_the_old_one_and_its_tokens_at_once() {
    let harbour = Harbour::open().await;
    let id = harbour.user("alice", "Mainsail-7").await;
    harbour.project(ALICE, "pa", false).await;
    let token = harbour.token(ALICE, "repository:pa/app:pull,push").await;
    harbour.v2(Some(bearer(&token)), Action::Push, "pa/app").await.unwrap();

    let path = format!("/users/{id}/password");
    let change = |old: &str, new: &str| Some(json!({"old_password": old, "new_password": new}));
    harbour.api(ALICE, "PUT", &path, change("Wrong-1234", "Foresail-8")).await.expect(400);
    harbour.api(ALICE, "PUT", &path, change("Mainsail-7", "Mainsail-7")).await.expect(400);
    harbour.api(ALICE, "PUT", &path, change("Mainsail-7", "weak")).await.expect(400);
    harbour.api(BOB, "PUT", &path, change("Mainsail-7", "Foresail-8")).await.expect(401);
    harbour.api(ALICE, "PUT", &path, change("Mainsail-7", "Foresail-8")).await.expect(200);

    harbour.api(ALICE, "GET", "/users/current", None).await.expect(401);
    harbour.ask_token(ALICE, "").await.expect(401);
    harbour.v2(Some(basic("alice", "Mainsail-7")), Action::Pull, "pa/app").await.unwrap_err();
    let error = harbour.v2(Some(bearer(&token)), Action::Pull, "pa/app").await.unwrap_err();
    assert!(matches!(error, AccessError::Unauthenticated { error: Some("invalid_token"), .. }), "{error:?}");

    let changed = Some(("alice", "Foresail-8"));
    harbour.api(changed, "GET", "/users/current", None).await.expect(200);
    let token = harbour.token(changed, "repository:pa/app:pull").await;
    harbour.v2(Some(bearer(&token)), Action::Pull, "pa/app").await.unwrap();
    harbour.api(ADMIN, "DELETE", &format!("/users/{id}"), None).await.expect(200);
    let error = harbour.v2(Some(bearer(&token)), Action::Pull, "pa/app").await.unwrap_err();
    assert!(matches!(error, AccessError::Unauthenticated { error: Some("invalid_token"), .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_one_password_hashes_it_a_few_times_and_turns_nobody_away() {
    let harbour = std::sync::Arc::new(Harbour::open().await);
    harbour.user("alice", "Mainsail-7").await;
    let before = harbour.core.password_hashes();
    let storm: Vec<_> = (0..200)
        .map(|_| {
            let harbour = std::sync::Arc::clone(&harbour);
            tokio::spawn(async move { harbour.ask_token(ALICE, "").await.status })
        })
        .collect();
    for answer in storm {
        assert_eq!(answer.await.unwrap(), 200);
    }
    let hashes = harbour.core.password_hashes() - before;
    assert!((1..=HASHES_MAX as u64).contains(&hashes), "{hashes} hashes");
}

#[tokio::test]
async fn a_password_is_hashed_once_in_five_minutes_and_a_wrong_one_each_time() {
    let harbour = Harbour::open().await;
    harbour.user("alice", "Mainsail-7").await;
    let before = harbour.core.password_hashes();
    for _ in 0..20 {
        harbour.ask_token(ALICE, "").await.expect(200);
    }
    assert_eq!(harbour.core.password_hashes() - before, 1);
    for _ in 0..3 {
        harbour.ask_token(Some(("alice", "Wrong-Pass-1")), "").await.expect(401);
    }
    assert_eq!(harbour.core.password_hashes() - before, 4);
}

#[tokio::test]
async fn s_22_who_guesses_is_slowed_down_and_who_knows_is_not() {
    let harbour = Harbour::open().await;
    harbour.user("alice", "Mainsail-7").await;
    harbour.user("bob", "Foresail-8").await;
    let from = |last: u8| Some(taffrail_distribution::access::ClientAddress([192, 0, 2, last].into()));
    let identify = async |name: &str, password: &str, last: u8| {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, basic(name, password));
        harbour.access.identify(&headers, from(last)).await.map(|_| ())
    };
    identify("alice", "Mainsail-7", 2).await.unwrap();
    let mut slowed = 0;
    let before = harbour.core.password_hashes();
    for _ in 0..40 {
        let error = identify("alice", "Wrong-Pass-1", 1).await.unwrap_err();
        if let AccessError::TooMany { retry_after_secs } = error {
            assert!((1..=60).contains(&retry_after_secs));
            slowed += 1;
        } else {
            assert!(matches!(error, AccessError::Unauthenticated { .. }), "{error:?}");
        }
    }
    let hashes = harbour.core.password_hashes() - before;
    assert!(slowed >= 25 && hashes <= 15, "{slowed} slowed down, {hashes} hashes");
    identify("alice", "Mainsail-7", 2).await.unwrap();
    identify("bob", "Foresail-8", 1).await.unwrap();
    harbour.clock.advance_secs(120);
    identify("alice", "Mainsail-7", 1).await.unwrap();
}

/// The cache was asked before the throttle: who was told to wait could try a thousand passwords a second meanwhile, and hear of the
/// right one.
#[tokio::test]
async fn s_22_the_cache_of_passwords_is_no_place_to_guess_at() {
    let harbour = Harbour::open().await;
    harbour.user("alice", "Mainsail-7").await;
    harbour.user("bob", "Foresail-8").await;
    let identify = async |name: &str, password: &str, last: u8| {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, basic(name, password));
        let from = taffrail_distribution::access::ClientAddress([192, 0, 2, last].into());
        harbour.access.identify(&headers, Some(from)).await.map(|_| ())
    };
    // A site behind one address, with the right password, as often as it likes.
    for _ in 0..500 {
        identify("alice", "Mainsail-7", 1).await.unwrap();
    }
    let guess =
        async |number: usize| identify("alice", &format!("Wrong-Pass-{number}"), 1).await.unwrap_err();
    let mut counted = 0;
    while !matches!(guess(counted).await, AccessError::TooMany { .. }) {
        counted += 1;
        assert!(counted <= 20, "guesses are not counted");
    }
    // Who knows it is not held up by a few guesses.
    for _ in 0..500 {
        identify("alice", "Mainsail-7", 1).await.unwrap();
    }
    for number in 0..60 {
        assert!(matches!(guess(number).await, AccessError::TooMany { .. }));
    }
    for number in 0..200 {
        assert!(matches!(guess(number).await, AccessError::TooMany { .. }));
        let right = identify("alice", "Mainsail-7", 1).await.unwrap_err();
        assert!(matches!(right, AccessError::TooMany { .. }), "the right guess is told from the wrong ones");
    }
    // Nobody elsewhere is locked out, nor anybody else here, and they for a minute.
    identify("alice", "Mainsail-7", 2).await.unwrap();
    identify("bob", "Foresail-8", 1).await.unwrap();
    harbour.clock.advance_secs(61);
    identify("alice", "Mainsail-7", 1).await.unwrap();
}

/// Guesses that wait for the hash are counted by what it says, and the look that each has before is counted at once: many at the
/// same time are not more than many one after the other.
#[tokio::test(flavor = "multi_thread")]
async fn s_22_guesses_at_the_same_time_are_counted_like_any() {
    let harbour = std::sync::Arc::new(Harbour::open().await);
    harbour.user("alice", "Mainsail-7").await;
    let identify = async |harbour: &Harbour, password: &str| {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, basic("alice", password));
        let from = taffrail_distribution::access::ClientAddress([192, 0, 2, 1].into());
        harbour.access.identify(&headers, Some(from)).await.map(|_| ())
    };
    identify(&harbour, "Mainsail-7").await.unwrap();
    let guesses: Vec<_> = (0..200)
        .map(|number| {
            let harbour = std::sync::Arc::clone(&harbour);
            tokio::spawn(async move { identify(&harbour, &format!("Wrong-Pass-{number}")).await })
        })
        .collect();
    for guess in guesses {
        guess.await.unwrap().unwrap_err();
    }
    let mut counted = 0;
    while !matches!(identify(&harbour, "Wrong-Pass-1").await, Err(AccessError::TooMany { .. })) {
        counted += 1;
        assert!(counted <= 20, "guesses are not counted");
    }
    let right = identify(&harbour, "Mainsail-7").await.unwrap_err();
    assert!(matches!(right, AccessError::TooMany { .. }), "{right:?}");
}

/// A body may take hours; what it was begun with counts until it is committed, when the right is asked for again.
#[tokio::test]
async fn s_15_a_push_that_outlives_its_password_is_refused() {
    let harbour = Harbour::open().await;
    let id = harbour.user("alice", "Mainsail-7").await;
    harbour.project(ALICE, "pa", false).await;
    let name = RepositoryName::parse("pa/app").unwrap();
    let push = async |identity: &Identity| {
        harbour.access.authorize(identity, Action::Push, &name, Missing::Make).await
    };
    let identified = async |password: &str| {
        let token = harbour.token(Some(("alice", password)), "repository:pa/app:pull,push").await;
        let mut identities = Vec::new();
        for credential in [basic("alice", password), bearer(&token)] {
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, credential)]);
            identities.push(harbour.access.identify(&headers, None).await.unwrap());
        }
        identities
    };
    let refused = async |identities: &[Identity]| {
        for (identity, due) in identities.iter().zip([None, Some("invalid_token")]) {
            let refusal = push(identity).await.unwrap_err();
            assert!(
                matches!(&refusal, AccessError::Unauthenticated { error, .. } if *error == due),
                "{refusal:?}"
            );
        }
    };
    let begun = identified("Mainsail-7").await;
    for identity in &begun {
        push(identity).await.unwrap();
    }
    let change = json!({"old_password": "Mainsail-7", "new_password": "Foresail-8"});
    harbour.api(ALICE, "PUT", &format!("/users/{id}/password"), Some(change)).await.expect(200);
    refused(&begun).await;

    let begun = identified("Foresail-8").await;
    for identity in &begun {
        push(identity).await.unwrap();
    }
    harbour.api(ADMIN, "DELETE", &format!("/users/{id}"), None).await.expect(200);
    refused(&begun).await;
}

/// The hash of a password, as a registry made it that spent less on hashing.
fn outdated(password: &str) -> String {
    let params = argon2::Params::new(4096, 1, 1, None).unwrap();
    let argon2 = argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params);
    let hash = argon2.hash_password_with_salt(password.as_bytes(), &[7; 16]).unwrap();
    hash.to_string()
}

async fn store(transaction: &mut sqlx::Transaction<'static, sqlx::Sqlite>, id: i64, password: &str) {
    let sql = "UPDATE users SET password = $2 WHERE id = $1";
    sqlx::query(sql).bind(id).bind(password).execute(&mut **transaction).await.unwrap();
}

#[tokio::test]
async fn a_hash_that_is_made_anew_is_the_users_from_that_moment() {
    let harbour = Harbour::open().await;
    let id = harbour.user("alice", "Mainsail-7").await;
    harbour.project(ADMIN, "pa", false).await;
    let headers = HeaderMap::from_iter([(header::AUTHORIZATION, basic("alice", "Mainsail-7"))]);
    let before = harbour.access.identify(&headers, None).await.unwrap();
    let old = outdated("Mainsail-7");
    let mut transaction = harbour.core.database().write().await.unwrap();
    store(&mut transaction, id, &old).await;
    transaction.commit().await.unwrap();
    harbour.member("pa", "alice", 2).await;
    // This has the directory read who she is, by the old hash.
    let name = RepositoryName::parse("pa/app").unwrap();
    harbour.access.authorize(&before, Action::Push, &name, Missing::Make).await.unwrap_err();
    let token = harbour.token(ALICE, "repository:pa/app:pull,push").await;
    harbour.v2(Some(bearer(&token)), Action::Push, "pa/app").await.unwrap();
    harbour.v2(Some(basic("alice", "Mainsail-7")), Action::Push, "pa/app").await.unwrap();
    let stored: String = sqlx::query_scalar("SELECT password FROM users WHERE id = $1")
        .bind(id)
        .fetch_one(harbour.core.database().readers())
        .await
        .unwrap();
    assert_ne!(stored, old);
}

/// A login with the old password that was hashing while the password changed wrote the old one back.
#[tokio::test(flavor = "multi_thread")]
async fn a_hash_that_is_made_anew_does_not_undo_a_change_of_the_password() {
    let harbour = std::sync::Arc::new(Harbour::open().await);
    let id = harbour.user("alice", "Mainsail-7").await;
    let mut transaction = harbour.core.database().write().await.unwrap();
    store(&mut transaction, id, &outdated("Mainsail-7")).await;
    transaction.commit().await.unwrap();

    let new = outdated("Foresail-8");
    let mut transaction = harbour.core.database().write().await.unwrap();
    store(&mut transaction, id, &new).await;
    let before = harbour.core.password_hashes();
    let late = std::sync::Arc::clone(&harbour);
    let late = tokio::spawn(async move { late.ask_token(ALICE, "").await.status });
    // It has verified the old password and makes its hash anew; what it writes must wait for us.
    while harbour.core.password_hashes() < before + 2 {
        assert!(!late.is_finished(), "nothing was made anew");
        tokio::task::yield_now().await;
    }
    transaction.commit().await.unwrap();
    late.await.unwrap();
    let stored: String = sqlx::query_scalar("SELECT password FROM users WHERE id = $1")
        .bind(id)
        .fetch_one(harbour.core.database().readers())
        .await
        .unwrap();
    assert_eq!(stored, new);
    harbour.api(ALICE, "GET", "/users/current", None).await.expect(401);
    harbour.api(Some(("alice", "Foresail-8")), "GET", "/users/current", None).await.expect(200);
}

/// S-54: users, projects and members are not to be listed by who has nothing to do with them.
#[tokio::test]
async fn s_54_nobody_is_enumerated_by_searching() {
    let harbour = Harbour::open().await;
    for name in ["alice", "alina", "al_c", "bob"] {
        harbour.user(name, "Mainsail-7").await;
    }
    harbour.project(ADMIN, "pa", false).await;
    harbour.member("pa", "bob", 2).await;
    let search = async |who, name: &str| {
        harbour.api(who, "GET", &format!("/users/search?username={name}"), None).await
    };
    for name in ["", "a", "al", "%25", "_", "*", "%25%25", "\\"] {
        search(ALICE, name).await.expect(400);
        search(NOBODY, name).await.expect(401);
    }
    for wild in ["%25%25%25", "___", "al%25", "a_i", "***", "al*", "ali%25", "%5C%5C%5C", "ali%00"] {
        assert_eq!(search(ALICE, wild).await.expect(200).json(), json!([]), "{wild}");
    }
    let found = search(ALICE, "ali").await.expect(200).json();
    assert_eq!(found.as_array().unwrap().len(), 2, "{found}");
    for user in found.as_array().unwrap() {
        let fields: Vec<&String> = user.as_object().unwrap().keys().collect();
        assert_eq!(fields, ["user_id", "username"], "no more than id and name");
    }
    assert_eq!(search(ALICE, "al_").await.expect(200).json()[0]["username"], "al_c");
    harbour.api(ALICE, "GET", "/users", None).await.expect(403);

    // A project of others, and who is in it, is as if it were not.
    for (method, hidden, absent) in [
        ("GET", "/projects/pa", "/projects/no"),
        ("HEAD", "/projects/pa", "/projects/no"),
        ("HEAD", "/projects?project_name=pa", "/projects?project_name=no"),
        ("HEAD", "/projects?project_name=%25", "/projects?project_name=no"),
        ("GET", "/projects/pa/members", "/projects/no/members"),
        ("GET", "/projects/pa/members?entityname=b", "/projects/no/members?entityname=b"),
        ("GET", "/projects/pa/members/1", "/projects/no/members/1"),
    ] {
        let (hidden, absent) =
            (harbour.api(ALICE, method, hidden, None).await, harbour.api(ALICE, method, absent, None).await);
        assert_eq!(hidden.status.as_u16(), 404, "{hidden:?}");
        assert_eq!((hidden.status, hidden.text), (absent.status, absent.text));
    }
    let named = harbour.api(ALICE, "GET", "/projects?name=pa", None).await.expect(200);
    assert_eq!(named.headers["x-total-count"], "0");
}

#[tokio::test]
async fn the_first_start_needs_a_password_that_is_no_default() {
    for (password, good) in [("Harbor12345", false), ("weak", false), ("", false), ("Capstan-12", true)] {
        let folder = tempfile::TempDir::new().unwrap();
        let (context, _) = crate::world::context(1);
        let opened = taffrail_core::facade::Core::open(taffrail_core::facade::CoreOptions {
            database: folder.path().join("taffrail.db"),
            key_dir: folder.path().to_owned(),
            external_url: None,
            tls: false,
            first_password: Box::new(move || Ok(password.to_owned())),
            hashes_max: 1,
            context,
        })
        .await;
        assert_eq!(opened.is_ok(), good, "{password}");
    }
}
