//! The token service, and what its tokens open on `/v2`.

use http::{HeaderMap, HeaderValue, Method, header};
use serde_json::{Value, json};
use taffrail_distribution::access::{AccessError, Action, Missing, Sources};
use taffrail_distribution::name::RepositoryName;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::harbour::{ADMIN, Answer, Harbour, NOBODY, Who, basic, bearer};

const ALICE: Who = Some(("alice", "Mainsail-7"));
const BOB: Who = Some(("bob", "Foresail-8"));

/// Alice is developer of the private project `pa`, Bob admin of his own, `pb`.
async fn harbour() -> Harbour {
    let harbour = Harbour::open().await;
    harbour.user("alice", "Mainsail-7").await;
    harbour.user("bob", "Foresail-8").await;
    harbour.project(ADMIN, "pa", false).await;
    harbour.member("pa", "alice", 2).await;
    harbour.project(BOB, "pb", false).await;
    harbour
}

/// What a token grants, as `name:action,action`.
fn granted(token: &str) -> Vec<String> {
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
    let claims: Value = serde_json::from_slice(&claims).unwrap();
    let entry = |entry: &Value| {
        let actions: Vec<&str> =
            entry["actions"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        format!("{}:{}", entry["name"].as_str().unwrap(), actions.join(","))
    };
    claims["access"].as_array().unwrap().iter().map(entry).collect()
}

async fn form(harbour: &Harbour, body: &str) -> Answer {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
    harbour.send(Method::POST, "/service/token", headers, body.as_bytes().to_vec()).await
}

fn is_401(error: &AccessError, wanted: Option<&str>) -> bool {
    matches!(error, AccessError::Unauthenticated { error, .. } if *error == wanted)
}

#[tokio::test]
async fn a_token_answer_has_what_old_and_new_clients_read() {
    let harbour = harbour().await;
    let answer = harbour.ask_token(ALICE, "scope=repository:pa/app:pull,push").await.expect(200);
    let body = answer.json();
    assert_eq!(body["token"], body["access_token"]);
    assert_eq!(body["expires_in"], 300);
    assert_eq!(body["issued_at"], "2023-11-14T22:13:20Z");
    assert_eq!(answer.headers[header::CACHE_CONTROL], "no-store");
    assert_eq!(granted(body["token"].as_str().unwrap()), ["pa/app:pull,push"]);

    let keys =
        harbour.send(Method::GET, "/service/token/jwks", HeaderMap::new(), Vec::new()).await.expect(200);
    let key = &keys.json()["keys"][0];
    assert_eq!((&key["kty"], &key["crv"], &key["alg"]), (&json!("EC"), &json!("P-256"), &json!("ES256")));
    assert!(key["kid"].is_string() && key.get("d").is_none(), "{key}");
}

#[tokio::test]
async fn s_11_a_token_grants_what_one_has_and_no_more() {
    let harbour = harbour().await;
    for (who, scope, due) in [
        (ALICE, "repository:pa/app:pull,push,delete", vec!["pa/app:pull,push"]),
        (ALICE, "repository:pa/app:*", vec!["pa/app:pull,push"]),
        (ADMIN, "repository:pa/app:pull,push,delete", vec!["pa/app:pull,push,delete"]),
        (BOB, "repository:pa/app:pull,push,delete", vec![]),
        (NOBODY, "repository:pa/app:pull", vec![]),
        (NOBODY, "repository:library/app:pull,push", vec!["library/app:pull"]),
        (BOB, "repository:library/app:pull,push", vec!["library/app:pull"]),
        (BOB, "repository:absent/app:pull,push", vec![]),
        (BOB, "registry:catalog:*", vec!["catalog:*"]),
        (NOBODY, "registry:catalog:*", vec![]),
        (BOB, "repository:pa/app:pull%20repository:pb/app:pull", vec!["pb/app:pull"]),
        (BOB, "repository:pb/app:pull&scope=repository:pb/other:push", vec!["pb/app:pull", "pb/other:push"]),
        (BOB, "", vec![]),
        (BOB, "*", vec![]),
        (BOB, "nonsense", vec![]),
        (BOB, "repository::pull", vec![]),
        (BOB, "repository:*:*", vec![]),
        (BOB, "repository:pb/*:pull", vec![]),
        (BOB, "repository:PB/app:pull", vec![]),
        (BOB, "repository:pb:pull", vec![]),
        (BOB, "repository:pb/app%00:pull", vec![]),
        (BOB, "repository:127.0.0.1:5000/pb/app:pull", vec![]),
        (BOB, "repository:pb/app:fly", vec![]),
        (BOB, "%ff", vec![]),
    ] {
        assert_eq!(granted(&harbour.token(who, scope).await), due, "{scope}");
    }
    let many = |count: usize| vec!["repository:pb/app:pull"; count].join("&scope=");
    harbour.ask_token(BOB, &format!("scope={}", many(64))).await.expect(200);
    harbour.ask_token(BOB, &format!("scope={}", many(65))).await.expect(400);
    // 64 scopes of the longest names would make a header that no server takes.
    let long = (0..64).map(|n| format!("scope=repository:pb/{}{n:02}:pull,push", "x".repeat(240)));
    harbour.ask_token(BOB, &long.collect::<Vec<_>>().join("&")).await.expect(400);
}

#[tokio::test]
async fn the_oauth2_form_takes_a_password_and_nothing_else() {
    let harbour = harbour().await;
    let scope = "scope=repository%3Apb%2Fapp%3Apull+repository%3Apa%2Fapp%3Apull&service=taffrail-registry";
    let good = format!("grant_type=password&username=bob&password=Foresail-8&client_id=c&{scope}");
    let answer = form(&harbour, &good).await;
    assert_eq!(granted(answer.expect(200).json()["access_token"].as_str().unwrap()), ["pb/app:pull"]);
    form(&harbour, &format!("grant_type=password&username=bob&password=Wrong-1x&{scope}")).await.expect(401);
    form(&harbour, &format!("grant_type=password&username=nobody&password=Wrong-1x&{scope}"))
        .await
        .expect(401);
    form(&harbour, &format!("grant_type=refresh_token&refresh_token=x&{scope}")).await.expect(400);
    form(&harbour, "").await.expect(400);
    let too_long = format!("grant_type=password&username=bob&password={}", "x".repeat(70_000));
    form(&harbour, &too_long).await.expect(413);
    let json = harbour.send(Method::POST, "/service/token", HeaderMap::new(), b"{}".to_vec()).await;
    assert_eq!(json.status, 400);
}

#[tokio::test]
async fn s_21_a_wrong_password_and_an_unknown_name_get_the_same_answer() {
    let harbour = harbour().await;
    let before = harbour.core.password_hashes();
    let wrong = harbour.ask_token(Some(("alice", "Wrong-Pass-1")), "").await.expect(401);
    let between = harbour.core.password_hashes();
    let unknown = harbour.ask_token(Some(("nobody-at-all", "Wrong-Pass-1")), "").await.expect(401);
    assert_eq!(wrong.text, unknown.text);
    assert_eq!((between - before, harbour.core.password_hashes() - between), (1, 1), "one hash each");
    let too_long = "x".repeat(257);
    for name in ["alice", "nobody-at-all"] {
        let before = harbour.core.password_hashes();
        harbour.ask_token(Some((name, &too_long)), "").await.expect(401);
        assert_eq!(harbour.core.password_hashes(), before, "nothing that long is hashed");
    }
}

#[tokio::test]
async fn what_a_token_does_not_name_it_does_not_open() {
    let harbour = harbour().await;
    let token = harbour.token(ADMIN, "repository:pa/app:pull,push").await;
    let grant = harbour.v2(Some(bearer(&token)), Action::Push, "pa/app").await.unwrap();
    let pull = harbour.v2(Some(bearer(&token)), Action::Pull, "pa/app").await.unwrap();
    assert_eq!(grant.repository, pull.repository);
    for (action, repository) in [
        (Action::Delete, "pa/app"),
        (Action::Pull, "pa/app2"),
        (Action::Pull, "pa/app/x"),
        (Action::Pull, "library/app"),
    ] {
        let error = harbour.v2(Some(bearer(&token)), action, repository).await.unwrap_err();
        assert!(is_401(&error, Some("insufficient_scope")), "{action:?} {repository}: {error:?}");
    }
    // A client that asked for too little is told what to ask for.
    let challenge = harbour.access.challenge(
        Some("registry.example:5000"),
        &["repository:pa/app:pull,push".to_owned(), "repository:pb/app:pull".to_owned()],
        Some("insufficient_scope"),
    );
    assert_eq!(
        challenge,
        ["Bearer realm=\"http://registry.example:5000/service/token\",service=\"taffrail-registry\",\
          scope=\"repository:pa/app:pull,push repository:pb/app:pull\",error=\"insufficient_scope\""]
    );
    for odd in [None, Some("evil\"x"), Some("a b"), Some("a/b"), Some("")] {
        let challenge = harbour.access.challenge(odd, &[], None).concat();
        assert!(challenge.starts_with("Bearer realm=\"") && !challenge.contains("evil"), "{challenge}");
        assert_eq!(challenge.matches('"').count(), 4, "{challenge}");
    }
}

#[tokio::test]
async fn an_absent_and_a_forbidden_project_are_refused_in_the_same_words() {
    let harbour = harbour().await;
    for action in [Action::Pull, Action::Push, Action::Delete] {
        for credential in [basic("bob", "Foresail-8"), bearer(&harbour.token(BOB, "").await)] {
            let hidden = harbour.v2(Some(credential.clone()), action, "pa/app").await.unwrap_err();
            let absent = harbour.v2(Some(credential), action, "no/app").await.unwrap_err();
            assert_eq!(hidden.to_string().replace("pa", "no"), absent.to_string());
            assert_eq!(std::mem::discriminant(&hidden), std::mem::discriminant(&absent));
        }
        for credential in [None, Some(bearer(&harbour.token(NOBODY, "").await))] {
            let hidden = harbour.v2(credential.clone(), action, "pa/app").await.unwrap_err();
            let absent = harbour.v2(credential, action, "no/app").await.unwrap_err();
            assert!(matches!(hidden, AccessError::Unauthenticated { .. }), "{hidden:?}");
            assert_eq!(hidden.to_string().replace("pa", "no"), absent.to_string());
        }
    }
    let refused = harbour.v2(Some(basic("bob", "Foresail-8")), Action::Push, "no/app").await.unwrap_err();
    assert_eq!(
        refused,
        AccessError::Denied { message: "project no does not exist or you may not push to it".to_owned() }
    );
    harbour.v2(Some(basic("bob", "Foresail-8")), Action::Push, "toplevel").await.unwrap_err();
}

#[tokio::test]
async fn anybody_pulls_from_a_public_project_with_an_anonymous_token() {
    let harbour = harbour().await;
    harbour.v2(Some(basic(ADMIN.unwrap().0, ADMIN.unwrap().1)), Action::Push, "library/app").await.unwrap();
    let error = harbour.v2(None, Action::Pull, "library/app").await.unwrap_err();
    assert!(is_401(&error, None), "without a token clients are sent to get one: {error:?}");
    let token = harbour.token(NOBODY, "repository:library/app:pull,push").await;
    harbour.v2(Some(bearer(&token)), Action::Pull, "library/app").await.unwrap();
    harbour.v2(Some(bearer(&token)), Action::Push, "library/app").await.unwrap_err();
    let absent = harbour.token(NOBODY, "repository:library/none:pull").await;
    let error = harbour.v2(Some(bearer(&absent)), Action::Pull, "library/none").await.unwrap_err();
    assert!(matches!(error, AccessError::UnknownRepository { .. }), "{error:?}");

    let mut headers = HeaderMap::new();
    let nobody = harbour.access.identify(&headers, None).await.unwrap();
    assert!(harbour.access.authorize_base(&nobody).is_err(), "docker login relies on the 401");
    headers.insert(header::AUTHORIZATION, bearer(&token));
    let anonymous = harbour.access.identify(&headers, None).await.unwrap();
    assert!(harbour.access.authorize_base(&anonymous).is_ok());
    assert!(harbour.access.authorize_catalog(&anonymous).await.is_err());
    assert!(harbour.access.authorize_catalog(&nobody).await.is_err());
}

#[tokio::test]
async fn odd_authorization_headers_are_401() {
    let harbour = harbour().await;
    for value in [
        "",
        "Basic",
        "Basic !!!",
        "Basic Zm9v",
        "Basic Og==",
        "Basic YWxpY2U6",
        "Bearer",
        "Bearer ",
        "Bearer x y",
        "Negotiate abc",
        "Digest username=\"alice\"",
        &format!("Bearer {}", ".".repeat(30 << 10)),
        &format!("Basic {}", "A".repeat(30 << 10)),
    ] {
        let error = harbour
            .v2(Some(HeaderValue::from_str(value).unwrap()), Action::Pull, "pa/app")
            .await
            .unwrap_err();
        let shown: String = value.chars().take(40).collect();
        assert!(matches!(error, AccessError::Unauthenticated { .. }), "{shown}: {error:?}");
    }
    let mut headers = HeaderMap::new();
    headers.append(header::AUTHORIZATION, basic("alice", "Mainsail-7"));
    headers.append(header::AUTHORIZATION, basic("bob", "Foresail-8"));
    assert!(harbour.access.identify(&headers, None).await.is_err(), "two of them");
    headers.remove(header::AUTHORIZATION);
    headers.insert(header::AUTHORIZATION, HeaderValue::from_bytes(b"Basic \xff").unwrap());
    assert!(harbour.access.identify(&headers, None).await.is_err());
}

#[tokio::test]
async fn s_08_a_token_dies_with_its_project() {
    let harbour = harbour().await;
    let token = harbour.token(ADMIN, "repository:pa/app:pull,push").await;
    let old = harbour.v2(Some(bearer(&token)), Action::Push, "pa/app").await.unwrap();
    harbour.api(ADMIN, "DELETE", "/projects/pa", None).await.expect(200);
    harbour.v2(Some(bearer(&token)), Action::Push, "pa/app").await.unwrap_err();
    harbour.project(BOB, "pa", false).await;
    let new = harbour.v2(Some(basic("bob", "Foresail-8")), Action::Push, "pa/app").await.unwrap();
    assert_ne!(old.repository, new.repository);
    for action in [Action::Pull, Action::Push] {
        let error = harbour.v2(Some(bearer(&token)), action, "pa/app").await.unwrap_err();
        assert!(is_401(&error, Some("insufficient_scope")), "{error:?}");
    }
}

#[tokio::test]
async fn s_13_rights_that_were_taken_back_are_gone_with_the_next_request() {
    let harbour = harbour().await;
    let app = |action| (action, "pa/app");
    let token = harbour.token(ALICE, "repository:pa/app:pull,push").await;
    let use_token = async |(action, repository)| harbour.v2(Some(bearer(&token)), action, repository).await;
    use_token(app(Action::Push)).await.unwrap();

    let members = harbour.api(ADMIN, "GET", "/projects/pa/members?entityname=alice", None).await.json();
    let member = format!("/projects/pa/members/{}", members[0]["id"]);
    harbour.api(ADMIN, "PUT", &member, Some(json!({"role_id": 3}))).await.expect(200);
    use_token(app(Action::Push)).await.unwrap_err();
    use_token(app(Action::Pull)).await.unwrap();
    harbour.api(ADMIN, "DELETE", &member, None).await.expect(200);
    use_token(app(Action::Pull)).await.unwrap_err();
    assert_eq!(granted(&harbour.token(ALICE, "repository:pa/app:pull").await), Vec::<String>::new());

    // A project that becomes private is closed to everybody.
    harbour.project(ADMIN, "pier", true).await;
    harbour.v2(Some(basic("admin", "Capstan-12")), Action::Push, "pier/app").await.unwrap();
    let anonymous = harbour.token(NOBODY, "repository:pier/app:pull").await;
    harbour.v2(Some(bearer(&anonymous)), Action::Pull, "pier/app").await.unwrap();
    let body = json!({"metadata": {"public": "false"}});
    harbour.api(ADMIN, "PUT", "/projects/pier", Some(body)).await.expect(200);
    harbour.v2(Some(bearer(&anonymous)), Action::Pull, "pier/app").await.unwrap_err();
}

#[tokio::test]
async fn l_17_a_pull_with_a_known_token_needs_no_database() {
    let harbour = harbour().await;
    harbour.v2(Some(basic("alice", "Mainsail-7")), Action::Push, "pa/app").await.unwrap();
    let token = harbour.token(ALICE, "repository:pa/app:pull").await;
    harbour.v2(Some(bearer(&token)), Action::Pull, "pa/app").await.unwrap();
    harbour.core.close().await;
    harbour.v2(Some(bearer(&token)), Action::Pull, "pa/app").await.unwrap();
    // What is not known is not decided: neither granted nor called wrong.
    let unknown = harbour.v2(Some(bearer(&token)), Action::Pull, "pa/other").await.unwrap_err();
    assert!(is_401(&unknown, Some("insufficient_scope")), "{unknown:?}");
    let login = harbour.v2(Some(basic("bob", "Foresail-8")), Action::Pull, "pb/app").await.unwrap_err();
    assert_eq!(login, AccessError::Unavailable);
    harbour.ask_token(ALICE, "").await.expect(503);
}

#[tokio::test]
async fn s_12_a_registry_token_does_not_open_the_api_nor_the_token_service() {
    let harbour = harbour().await;
    let token = harbour.token(ADMIN, "repository:pa/app:pull&scope=registry:catalog:*").await;
    let mut headers = HeaderMap::new();
    headers.insert(header::AUTHORIZATION, bearer(&token));
    for path in ["/api/v2.0/users/current", "/api/v2.0/projects", "/api/v2.0/users", "/service/token"] {
        let answer = harbour.send(Method::GET, path, headers.clone(), Vec::new()).await;
        assert_eq!(answer.status, 401, "{path}");
    }
}

#[tokio::test]
async fn a_mount_without_a_source_looks_where_one_may_pull_and_nowhere_else() {
    let harbour = harbour().await;
    let admin = || Some(basic("admin", "Capstan-12"));
    let mut keys = Vec::new();
    for name in ["pa/app", "pb/app", "library/app"] {
        keys.push(harbour.v2(admin(), Action::Push, name).await.unwrap().repository);
    }
    // What anybody makes and leaves empty is in nobody's way.
    for number in 0..20 {
        harbour.v2(admin(), Action::Push, &format!("library/a{number}")).await.unwrap();
    }
    harbour.artifact("library/app").await;
    let sources = async |credential: Option<HeaderValue>, limit: usize| {
        let mut headers = HeaderMap::new();
        if let Some(credential) = credential {
            headers.insert(header::AUTHORIZATION, credential);
        }
        let identity = harbour.access.identify(&headers, None).await.unwrap();
        harbour.access.sources(&identity, limit).await
    };
    let these = |indexes: &[usize]| Sources::These(indexes.iter().map(|index| keys[*index]).collect());
    let alice = || Some(basic("alice", "Mainsail-7"));
    assert_eq!(sources(alice(), 9).await, these(&[0, 2]));
    // The token's subject counts, not what the token names.
    assert_eq!(sources(Some(bearer(&harbour.token(BOB, "").await)), 9).await, these(&[1, 2]));
    assert_eq!(sources(None, 9).await, these(&[2]));
    assert_eq!(sources(admin(), 9).await, Sources::Everywhere);
    // One's own come first.
    assert_eq!(sources(alice(), 1).await, these(&[0]));
    // Rights that were taken back count at once, and so does a repository that was made just now.
    let made = harbour.v2(alice(), Action::Push, "pa/new").await.unwrap().repository;
    assert_eq!(sources(alice(), 9).await, Sources::These(vec![keys[0], made, keys[2]]));
    let members = harbour.api(ADMIN, "GET", "/projects/pa/members?entityname=alice", None).await.json();
    let member = format!("/projects/pa/members/{}", members[0]["id"]);
    harbour.api(ADMIN, "DELETE", &member, None).await.expect(200);
    assert_eq!(sources(alice(), 9).await, these(&[2]));
}

/// A look at an upload session of a repository that is not there made one.
#[tokio::test]
async fn a_repository_is_made_by_what_begins_a_push_and_by_nothing_else() {
    let harbour = harbour().await;
    let headers = HeaderMap::from_iter([(header::AUTHORIZATION, basic("alice", "Mainsail-7"))]);
    let alice = harbour.access.identify(&headers, None).await.unwrap();
    let name = RepositoryName::parse("pa/app").unwrap();
    let rows = async || {
        let count = sqlx::query_scalar::<_, i64>("SELECT COUNT(*) FROM repositories");
        count.fetch_one(harbour.core.database().readers()).await.unwrap()
    };
    for (action, missing) in
        [(Action::Push, Missing::Refuse), (Action::Pull, Missing::Refuse), (Action::Pull, Missing::Make)]
    {
        let refusal = harbour.access.authorize(&alice, action, &name, missing).await.unwrap_err();
        assert!(matches!(refusal, AccessError::UnknownRepository { .. }), "{refusal:?}");
        assert_eq!(rows().await, 0);
    }
    let made = harbour.access.authorize(&alice, Action::Push, &name, Missing::Make).await.unwrap();
    let found = harbour.access.authorize(&alice, Action::Push, &name, Missing::Refuse).await.unwrap();
    assert_eq!((made.repository, rows().await), (found.repository, 1));
}
