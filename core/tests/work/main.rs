//! What an answer takes to come about, counted in statements of the database: what is hidden and what is absent must take the
//! same, or the time of the answer tells them apart (rule N, S-40, S-54).
//!
//! A binary of its own, because the statements of all databases of a process come to one listener.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

#[path = "../auth/harbour.rs"]
#[expect(dead_code, reason = "shared with the tests of who may do what")]
mod harbour;
mod statements;
#[path = "../auth/world.rs"]
#[expect(dead_code, reason = "shared with the tests of who may do what")]
mod world;

use http::HeaderValue;
use taffrail_distribution::access::Action;

use harbour::{ADMIN, Harbour, NOBODY, Who, basic, bearer};
use statements::Listening;

const OUTSIDER: Who = Some(("oscar", "Gangway-63"));

/// A harbour with an outsider, and as many hidden projects as a test looks at, each with repositories to be counted.
async fn harbour() -> (Harbour, Vec<i64>) {
    let harbour = Harbour::open().await;
    harbour.user("oscar", "Gangway-63").await;
    let mut ids = Vec::new();
    for number in 0..4 {
        ids.push(harbour.project(ADMIN, &format!("hidden{number}"), false).await);
        let repository = format!("hidden{number}/app");
        let admin = Some(basic("admin", "Capstan-12"));
        harbour.v2(admin, Action::Push, &repository).await.unwrap();
    }
    // What the outsider is, and that he gave his password, is known from here on.
    harbour.api(OUTSIDER, "GET", "/projects/library", None).await.expect(200);
    (harbour, ids)
}

#[tokio::test]
async fn a_hidden_project_and_an_absent_one_take_the_same_statements_over_rest() {
    let listening = Listening::begin().await;
    for who in [OUTSIDER, NOBODY] {
        let (harbour, ids) = harbour().await;
        for (index, (method, rest)) in
            [("GET", ""), ("DELETE", ""), ("GET", "/members"), ("GET", "/members/1")].into_iter().enumerate()
        {
            let hidden = format!("/projects/hidden{index}{rest}");
            let absent = format!("/projects/absent{index}{rest}");
            for time in ["first", "second"] {
                let take = async |path: &str| {
                    listening
                        .during(harbour.core.database(), async { harbour.api(who, method, path, None).await })
                        .await
                };
                let (seen, due) = (take(&hidden).await, take(&absent).await);
                assert_eq!(seen.1.status, due.1.status);
                assert_eq!(seen.0, due.0, "the {time} {method} {hidden}");
                assert!(time == "first" || seen.0.len() <= 1, "{:?}", seen.0);
            }
        }
        let take = async |path: String| {
            listening
                .during(harbour.core.database(), async { harbour.api(who, "GET", &path, None).await })
                .await
                .0
        };
        let hidden = take(format!("/projects/{}", ids[3])).await;
        assert_eq!(hidden, take("/projects/4711".to_owned()).await);
        assert!(who.is_none() || !hidden.is_empty(), "this counts nothing");
        let head = async |name: &str| {
            let path = format!("/projects?project_name={name}");
            listening
                .during(harbour.core.database(), async { harbour.api(who, "HEAD", &path, None).await })
                .await
                .0
        };
        assert_eq!(head("hidden3").await, head("absent3").await);
    }
}

#[tokio::test]
async fn a_hidden_project_and_an_absent_one_take_the_same_statements_under_v2() {
    let listening = Listening::begin().await;
    let (harbour, _) = harbour().await;
    let credentials: [fn(&str) -> HeaderValue; 2] = [|_| basic("oscar", "Gangway-63"), bearer];
    let token = harbour.token(OUTSIDER, "").await;
    let mut number = 0;
    for credential in credentials {
        for action in [Action::Push, Action::Pull] {
            for time in ["first", "second"] {
                let take = async |name: String| {
                    let asked = harbour.v2(Some(credential(&token)), action, &name);
                    let (statements, refused) = listening.during(harbour.core.database(), asked).await;
                    assert!(refused.is_err());
                    statements
                };
                let hidden = take(format!("hidden{number}/app")).await;
                let absent = take(format!("absent{number}/app")).await;
                assert_eq!(hidden, absent, "the {time} {action:?}");
                assert!(time == "second" || hidden.iter().any(|sql| sql.contains("projects")), "{hidden:?}");
            }
            number += 1;
        }
    }
}

#[tokio::test]
async fn a_token_for_a_hidden_project_takes_the_statements_of_one_for_an_absent_project() {
    let listening = Listening::begin().await;
    let (harbour, _) = harbour().await;
    for time in ["first", "second"] {
        let take = async |name: &str| {
            let query = format!("scope=repository:{name}/app:pull,push");
            let (statements, answer) = listening
                .during(harbour.core.database(), async { harbour.ask_token(OUTSIDER, &query).await })
                .await;
            assert_eq!(answer.status, 200);
            statements
        };
        assert_eq!(take("hidden0").await, take("absent0").await, "the {time} token");
    }
}

/// What is remembered as absent is there the moment that it is made.
#[tokio::test]
async fn a_project_is_seen_as_soon_as_it_is_made() {
    let _listening = Listening::begin().await;
    let (harbour, _) = harbour().await;
    let admin = || Some(basic("admin", "Capstan-12"));
    for _ in 0..2 {
        harbour.api(ADMIN, "GET", "/projects/later", None).await.expect(404);
        harbour.api(OUTSIDER, "GET", "/projects/later", None).await.expect(404);
        harbour.v2(admin(), Action::Push, "later/app").await.unwrap_err();
    }
    let id = harbour.project(OUTSIDER, "later", false).await;
    harbour.api(ADMIN, "GET", "/projects/later", None).await.expect(200);
    harbour.api(OUTSIDER, "GET", &format!("/projects/{id}"), None).await.expect(200);
    harbour.v2(Some(basic("oscar", "Gangway-63")), Action::Push, "later/app").await.unwrap();
    harbour.api(OUTSIDER, "GET", &format!("/projects/{}", id + 1), None).await.expect(404);
    let next = harbour.project(OUTSIDER, "next", false).await;
    assert_eq!(next, id + 1);
    harbour.api(OUTSIDER, "GET", &format!("/projects/{next}"), None).await.expect(200);
}
