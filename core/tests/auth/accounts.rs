//! Users, their passwords, and what guessing them costs.

use http::{HeaderMap, header};
use serde_json::json;
use taffrail_distribution::access::{AccessError, Action};

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
