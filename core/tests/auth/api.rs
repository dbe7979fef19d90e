//! The shapes of the REST API: Harbor's.

use http::{HeaderMap, Method, header};
use serde_json::{Value, json};

use crate::harbour::{ADMIN, Harbour, NOBODY, Who, basic};

const ALICE: Who = Some(("alice", "Mainsail-7"));

fn code(text: &str) -> Value {
    let body: Value = serde_json::from_str(text).unwrap_or_else(|_| panic!("no JSON: {text}"));
    let message = body["errors"][0]["message"].as_str().unwrap_or_default();
    assert!(!message.is_empty(), "{body}");
    body["errors"][0]["code"].clone()
}

#[tokio::test]
async fn a_project_in_harbors_shape() {
    let harbour = Harbour::open().await;
    harbour.user("alice", "Mainsail-7").await;
    let made =
        harbour.api(ALICE, "POST", "/projects", Some(json!({"project_name": "hold"}))).await.expect(201);
    assert_eq!(made.headers[header::LOCATION], format!("/api/v2.0/projects/{}", made.id()));
    for path in ["/projects/hold".to_owned(), format!("/projects/{}", made.id())] {
        let shown = harbour.api(ALICE, "GET", &path, None).await.expect(200).json();
        assert_eq!((&shown["name"], &shown["project_id"]), (&json!("hold"), &json!(made.id())));
        assert_eq!((&shown["metadata"]["public"], &shown["owner_name"]), (&json!("false"), &json!("alice")));
        assert_eq!((&shown["repo_count"], &shown["current_user_role_id"]), (&json!(0), &json!(1)));
        assert_eq!(shown["creation_time"], "2023-11-14T22:13:20Z");
    }
    // What Harbor's own portal sends.
    let portal = json!({
        "project_name": "portal", "metadata": {"public": "true"}, "storage_limit": -1, "registry_id": null,
    });
    harbour.api(ALICE, "POST", "/projects", Some(portal)).await.expect(201);
    for unbuilt in
        [json!({"project_name": "x", "registry_id": 3}), json!({"project_name": "x", "storage_limit": 9})]
    {
        harbour.api(ALICE, "POST", "/projects", Some(unbuilt)).await.expect(501);
    }
    let again =
        harbour.api(ALICE, "POST", "/projects", Some(json!({"project_name": "hold"}))).await.expect(409);
    assert_eq!(code(&again.text), "CONFLICT");
    for body in [
        json!({"project_name": "Upper"}),
        json!({"project_name": ""}),
        json!({}),
        json!([]),
        json!({"project_name": "x", "owner_id": 1}),
        json!({"project_name": "x", "metadata": {"public": "maybe"}}),
        json!({"project_name": "x", "metadata": {"public": true}}),
        json!({"project_name": "x".repeat(256)}),
    ] {
        let refused = harbour.api(ALICE, "POST", "/projects", Some(body.clone())).await;
        assert_eq!((refused.status.as_u16(), code(&refused.text)), (400, json!("BAD_REQUEST")), "{body}");
    }
    harbour.api(ALICE, "DELETE", "/projects/hold", None).await.expect(200);
    harbour.api(ALICE, "DELETE", "/projects/hold", None).await.expect(404);
}

#[tokio::test]
async fn a_name_of_digits_is_a_name_when_the_header_says_so() {
    let harbour = Harbour::open().await;
    let id = harbour.project(ADMIN, "4711", true).await;
    harbour.api(ADMIN, "GET", "/projects/4711", None).await.expect(404);
    let mut headers = HeaderMap::new();
    headers.insert("x-is-resource-name", "true".parse().unwrap());
    let found = harbour.send(Method::GET, "/api/v2.0/projects/4711", headers, Vec::new()).await.expect(200);
    assert_eq!(found.json()["project_id"], id);
}

#[tokio::test]
async fn lists_come_in_pages_and_show_what_one_may_see() {
    let harbour = Harbour::open().await;
    harbour.user("alice", "Mainsail-7").await;
    for number in 0..12 {
        harbour.project(ADMIN, &format!("public{number:02}"), true).await;
    }
    harbour.project(ADMIN, "secret", false).await;
    harbour.project(ALICE, "own", false).await;
    let names = |answer: Value| -> Vec<String> {
        answer.as_array().unwrap().iter().map(|entry| entry["name"].as_str().unwrap().to_owned()).collect()
    };
    let total = async |who: Who<'_>, query: &str| {
        let answer = harbour.api(who, "GET", &format!("/projects{query}"), None).await.expect(200);
        answer.headers["x-total-count"].to_str().unwrap().parse::<i64>().unwrap()
    };
    assert_eq!(
        (total(NOBODY, "").await, total(ALICE, "").await, total(ADMIN, "").await),
        (13, 14, 15),
        "library, twelve, and what is one's own"
    );
    assert_eq!((total(ADMIN, "?public=false").await, total(ALICE, "?owner=alice").await), (2, 1));
    assert_eq!(total(ADMIN, "?name=public").await, 12);
    let mut seen = Vec::new();
    let mut query = "?page=1&page_size=5".to_owned();
    loop {
        let answer = harbour.api(ALICE, "GET", &format!("/projects{query}"), None).await.expect(200);
        let link = answer.headers.get(header::LINK).map(|link| link.to_str().unwrap().to_owned());
        seen.extend(names(answer.json()));
        let next = link.and_then(|link| {
            let next = link.split(" , ").find(|link| link.ends_with("rel=\"next\""))?.to_owned();
            let target = next.trim_start_matches('<').split('>').next()?.to_owned();
            Some(target.strip_prefix("/api/v2.0/projects")?.to_owned())
        });
        match next {
            Some(next) => query = next,
            None => break,
        }
    }
    let mut sorted = seen.clone();
    sorted.sort();
    sorted.dedup();
    assert_eq!((seen.len(), &sorted), (14, &seen));
    for query in ["?page=0", "?page=-1", "?page_size=0", "?page=abc", "?page=1e11", "?public=maybe"] {
        harbour.api(ALICE, "GET", &format!("/projects{query}"), None).await.expect(400);
    }
    harbour.api(ALICE, "GET", "/projects?page=9223372036854775807&page_size=100", None).await.expect(200);
}

#[tokio::test]
async fn members_in_harbors_shape() {
    let harbour = Harbour::open().await;
    harbour.user("alice", "Mainsail-7").await;
    let project = harbour.project(ADMIN, "hold", false).await;
    let body = json!({"role_id": 4, "member_user": {"username": "alice"}});
    let made = harbour.api(ADMIN, "POST", "/projects/hold/members", Some(body.clone())).await.expect(201);
    let path = format!("/projects/{project}/members/{}", made.id());
    assert_eq!(made.headers[header::LOCATION], format!("/api/v2.0{path}"));
    harbour.api(ADMIN, "POST", "/projects/hold/members", Some(body)).await.expect(409);
    let shown = harbour.api(ALICE, "GET", &path, None).await.expect(200).json();
    assert_eq!((&shown["entity_name"], &shown["entity_type"]), (&json!("alice"), &json!("u")));
    assert_eq!((&shown["role_id"], &shown["role_name"]), (&json!(4), &json!("maintainer")));
    for role in [0, 6, -1] {
        harbour.api(ADMIN, "PUT", &path, Some(json!({"role_id": role}))).await.expect(400);
    }
    harbour.user("bob", "Foresail-8").await;
    let zero = json!({"role_id": 3, "member_user": {"user_id": 0, "username": "bob"}});
    harbour.api(ADMIN, "POST", "/projects/hold/members", Some(zero)).await.expect(201);
    harbour.user("carol", "Topsail-95").await;
    let by_id = json!({"role_id": 3, "member_user": {"user_id": 4}});
    harbour.api(ADMIN, "POST", "/projects/hold/members", Some(by_id)).await.expect(201);
    let unknown = json!({"role_id": 2, "member_user": {"username": "nobody"}});
    harbour.api(ADMIN, "POST", "/projects/hold/members", Some(unknown)).await.expect(404);
    // The id of a member of one project means nothing in another.
    harbour.project(ALICE, "own", false).await;
    let foreign = format!("/projects/own/members/{}", made.id());
    harbour.api(ALICE, "PUT", &foreign, Some(json!({"role_id": 1}))).await.expect(404);
    harbour.api(ALICE, "DELETE", &foreign, None).await.expect(404);
    harbour.api(ADMIN, "DELETE", &path, None).await.expect(200);
    harbour.api(ADMIN, "DELETE", &path, None).await.expect(404);
    harbour.api(ALICE, "GET", &path, None).await.expect(404);
}

/// Ids are counted up: to add one after the other would tell a project's admin who is registered (S-54).
#[tokio::test]
async fn only_who_manages_users_names_them_by_id() {
    let harbour = Harbour::open().await;
    harbour.user("alice", "Mainsail-7").await;
    let bob = harbour.user("bob", "Foresail-8").await;
    harbour.project(ALICE, "own", false).await;
    let add = async |who: Who<'_>, user: Value| {
        let body = json!({"role_id": 3, "member_user": user});
        let answer = harbour.api(who, "POST", "/projects/own/members", Some(body)).await;
        (answer.status.as_u16(), answer.text)
    };
    let nobody = add(ALICE, json!({"username": "nobody-at-all"})).await;
    assert_eq!(nobody.0, 404);
    for user in [
        json!({"user_id": bob}),
        json!({"user_id": 1}),
        json!({"user_id": bob + 1}),
        json!({"user_id": -1}),
        json!({"user_id": bob, "username": "bob"}),
        json!({"user_id": bob + 1, "username": "bob"}),
    ] {
        assert_eq!(add(ALICE, user.clone()).await, nobody, "{user}");
    }
    let members = harbour.api(ALICE, "GET", "/projects/own/members", None).await.expect(200);
    assert_eq!(members.headers["x-total-count"], "1");
    assert_eq!(add(ADMIN, json!({"user_id": bob + 1})).await, nobody);
    assert_eq!(add(ADMIN, json!({"user_id": bob})).await.0, 201);
    assert_eq!(add(ALICE, json!({})).await.0, 400);
}

/// A project that is deleted between the look at it and the change: it was said to be changed.
#[tokio::test]
async fn a_change_of_a_project_that_went_meanwhile_finds_nothing() {
    let harbour = Harbour::open().await;
    harbour.project(ADMIN, "going", false).await;
    let body = || Some(json!({"metadata": {"public": "true"}}));
    harbour.api(ADMIN, "PUT", "/projects/going", body()).await.expect(200);
    // The update finds no row, as when another request has just deleted it.
    let mut write = harbour.core.database().write().await.unwrap();
    sqlx::query("CREATE TRIGGER gone BEFORE UPDATE ON projects BEGIN SELECT RAISE(IGNORE); END")
        .execute(&mut *write)
        .await
        .unwrap();
    write.commit().await.unwrap();
    let refused = harbour.api(ADMIN, "PUT", "/projects/going", body()).await.expect(404);
    let absent = harbour.api(ADMIN, "PUT", "/projects/absent", body()).await.expect(404);
    assert_eq!(refused.text, absent.text);
}

#[tokio::test]
async fn what_the_registry_says_of_itself() {
    let harbour = Harbour::open().await;
    harbour.user("alice", "Mainsail-7").await;
    assert_eq!(harbour.api(NOBODY, "GET", "/ping", None).await.expect(200).text, "Pong");
    let health = harbour.api(NOBODY, "GET", "/health", None).await.expect(200).json();
    assert_eq!(health["status"], "healthy");
    assert!(health["components"].as_array().is_some_and(|parts| !parts.is_empty()), "{health}");
    let info = harbour.api(NOBODY, "GET", "/systeminfo", None).await.expect(200).json();
    assert_eq!(info["auth_mode"], "db_auth");
    assert!(info.get("harbor_version").is_none(), "S-55: a stranger does not see the version: {info}");
    let info = harbour.api(ALICE, "GET", "/systeminfo", None).await.expect(200).json();
    assert!(info["harbor_version"].is_string(), "{info}");
}

#[tokio::test]
async fn every_refusal_of_the_api_has_a_code_and_a_sentence() {
    let harbour = Harbour::open().await;
    for (method, path, status) in [
        ("GET", "/replication/policies", 501),
        ("POST", "/robots", 501),
        ("GET", "/", 501),
        ("GET", "/projects/x/y/z", 501),
        ("DELETE", "/ping", 405),
        ("GET", "/users", 401),
        ("GET", "/users/abc", 400),
        ("GET", "/users/99999999999999999999", 400),
        ("GET", "/projects/library/members/abc", 400),
    ] {
        let answer = harbour.api(NOBODY, method, path, None).await.expect(status);
        code(&answer.text);
        assert_eq!(answer.headers[header::CONTENT_TYPE], "application/json", "{method} {path}");
        assert_eq!(answer.headers["x-content-type-options"], "nosniff", "{method} {path}");
    }
    let mut headers = HeaderMap::new();
    headers.insert(header::AUTHORIZATION, basic("admin", "Capstan-12"));
    headers.insert(header::CONTENT_TYPE, "application/json".parse().unwrap());
    for body in [b"".to_vec(), b"{".to_vec(), b"\xff".to_vec(), b"[".repeat(100_000)] {
        let answer =
            harbour.send(Method::POST, "/api/v2.0/projects", headers.clone(), body).await.expect(400);
        assert_eq!(code(&answer.text), "BAD_REQUEST");
    }
    // A stranger's body is not even looked at.
    for body in [b"{".to_vec(), vec![b' '; taffrail_core::api::JSON_BYTES_MAX + 1]] {
        let answer =
            harbour.send(Method::POST, "/api/v2.0/projects", HeaderMap::new(), body).await.expect(401);
        assert_eq!(code(&answer.text), "UNAUTHORIZED");
    }
    let body = vec![b' '; taffrail_core::api::JSON_BYTES_MAX + 1];
    let answer = harbour.send(Method::POST, "/api/v2.0/projects", headers, body).await.expect(413);
    code(&answer.text);
}

/// A browser that remembers a password sends it along with what a form of any page can send: those types, and none.
#[tokio::test]
async fn a_body_that_does_not_say_that_it_is_json_is_refused() {
    let harbour = Harbour::open().await;
    let send = async |kind: Option<&str>, name: &str| {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, basic("admin", "Capstan-12"));
        headers.insert(header::ORIGIN, "https://evil.example".parse().unwrap());
        if let Some(kind) = kind {
            headers.insert(header::CONTENT_TYPE, kind.parse().unwrap());
        }
        let body = json!({"project_name": name}).to_string().into_bytes();
        harbour.send(Method::POST, "/api/v2.0/projects", headers, body).await
    };
    for kind in [
        None,
        Some(""),
        Some("text/plain"),
        Some("text/plain; application/json"),
        Some("text/plain; charset=application/json"),
        Some("text/plain+json"),
        Some("application/x-www-form-urlencoded"),
        Some("multipart/form-data; boundary=json"),
        Some("application/jsonp"),
        Some("application"),
    ] {
        let refused = send(kind, "forged").await.expect(415);
        assert_eq!(code(&refused.text), "UNSUPPORTED_MEDIA_TYPE", "{kind:?}");
        assert!(refused.text.contains("Content-Type: application/json"), "{}", refused.text);
    }
    harbour.api(ADMIN, "GET", "/projects/forged", None).await.expect(404);
    for (number, kind) in [
        "application/json",
        "Application/JSON",
        "application/json; charset=utf-8",
        "application/json;charset=utf-8",
        "application/merge-patch+json",
    ]
    .into_iter()
    .enumerate()
    {
        send(Some(kind), &format!("made{number}")).await.expect(201);
    }
    // Who is not known is told so first.
    let anonymous = harbour.send(Method::POST, "/api/v2.0/projects", HeaderMap::new(), Vec::new()).await;
    anonymous.expect(401);
}

#[tokio::test]
async fn a_browser_changes_nothing_for_a_page_of_another_site() {
    let harbour = Harbour::open().await;
    harbour.project(ADMIN, "hold", false).await;
    let send = async |method: Method, path: &str, site: &str| {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, basic("admin", "Capstan-12"));
        headers.insert(header::CONTENT_TYPE, "application/json".parse().unwrap());
        headers.insert("sec-fetch-site", site.parse().unwrap());
        let body = json!({"project_name": "forged"}).to_string().into_bytes();
        harbour.send(method, path, headers, body).await
    };
    for (method, path) in [
        (Method::POST, "/api/v2.0/projects"),
        (Method::PUT, "/api/v2.0/projects/hold"),
        (Method::DELETE, "/api/v2.0/projects/hold"),
        (Method::PATCH, "/api/v2.0/projects/hold"),
        (Method::POST, "/api/v2.0/no/such/path"),
    ] {
        let refused = send(method, path, "cross-site").await.expect(403);
        assert_eq!(code(&refused.text), "FORBIDDEN", "{path}");
        assert_eq!(refused.headers[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
    }
    send(Method::GET, "/api/v2.0/projects/hold", "cross-site").await.expect(200);
    harbour.api(ADMIN, "GET", "/projects/forged", None).await.expect(404);
    send(Method::POST, "/api/v2.0/projects", "same-origin").await.expect(201);
    send(Method::DELETE, "/api/v2.0/projects/hold", "none").await.expect(200);
    // The token service changes nothing, and takes a form.
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, "application/x-www-form-urlencoded".parse().unwrap());
    headers.insert("sec-fetch-site", "cross-site".parse().unwrap());
    let form = b"grant_type=password&service=x&username=admin&password=Capstan-12".to_vec();
    harbour.send(Method::POST, "/service/token", headers, form).await.expect(200);
}
