//! Every route of the REST API, every principal, on a private, a public and an absent project, held against the published
//! table. A route that the table does not know fails here.

use serde_json::{Value, json};
use taffrail_core::api::{Needs, routes};
use taffrail_core::authorizer::role_table::{ProjectAction, Standing, SystemAction, may, may_in_system};
use taffrail_core::project::Role;

use crate::harbour::{ADMIN, Harbour, NOBODY, Who};

const PASSWORD: &str = "Mainsail-7";

const MEMBERS: [(&str, Role); 5] = [
    ("limited", Role::LimitedGuest),
    ("guest", Role::Guest),
    ("developer", Role::Developer),
    ("maintainer", Role::Maintainer),
    ("captain", Role::Admin),
];

fn principals() -> Vec<(Who<'static>, Standing)> {
    let mut principals =
        vec![(NOBODY, Standing::Anonymous), (Some(("outsider", PASSWORD)), Standing::Outsider)];
    principals.extend(MEMBERS.map(|(name, role)| (Some((name, PASSWORD)), Standing::Member(role))));
    principals.push((ADMIN, Standing::SystemAdmin));
    principals
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Private,
    Public,
    Absent,
}

/// A call that does what the route is for, on things made for it, and whether the target is an account of another user.
struct Call {
    path: String,
    body: Option<Value>,
    foreign_account: bool,
}

struct Stage {
    harbour: Harbour,
    made: usize,
}

impl Stage {
    async fn set() -> Stage {
        let harbour = Harbour::open().await;
        harbour.user("outsider", PASSWORD).await;
        for (name, _) in MEMBERS {
            harbour.user(name, PASSWORD).await;
        }
        Stage { harbour, made: 0 }
    }

    fn fresh(&mut self, kind: &str) -> String {
        self.made += 1;
        format!("{kind}{}", self.made)
    }

    /// A project with somebody in every role, and a member to be changed.
    async fn project(&mut self, place: Place) -> (String, i64) {
        let name = self.fresh("project");
        if place == Place::Absent {
            return (name, 1);
        }
        self.harbour.project(ADMIN, &name, place == Place::Public).await;
        for (member, role) in MEMBERS {
            self.harbour.member(&name, member, role.number()).await;
        }
        let bystander = self.fresh("bystander");
        self.harbour.user(&bystander, PASSWORD).await;
        let member = self.harbour.member(&name, &bystander, Role::Guest.number()).await;
        (name, member)
    }

    async fn call(&mut self, method: &str, route: &str, standing: (&str, i64)) -> Call {
        let (project, member) = standing;
        let mut path = route.replace("{project}", project).replace("{member}", &member.to_string());
        let foreign_account = path.contains("{user}");
        if foreign_account {
            let name = self.fresh("account");
            let id = self.harbour.user(&name, PASSWORD).await;
            path = path.replace("{user}", &id.to_string());
        }
        assert!(!path.contains('{'), "{route} has a parameter that this test does not know");
        if method == "HEAD" && route == "/api/v2.0/projects" {
            path.push_str("?project_name=library");
        }
        if route == "/api/v2.0/users/search" {
            path.push_str("?username=bystander");
        }
        let body = match (method, route) {
            ("POST", "/api/v2.0/projects") => Some(json!({"project_name": self.fresh("new")})),
            ("PUT", "/api/v2.0/projects/{project}") => Some(json!({})),
            ("POST", "/api/v2.0/projects/{project}/members") => {
                let name = self.fresh("joining");
                self.harbour.user(&name, PASSWORD).await;
                Some(json!({"role_id": 3, "member_user": {"username": name}}))
            }
            ("PUT", "/api/v2.0/projects/{project}/members/{member}") => Some(json!({"role_id": 5})),
            ("POST", "/api/v2.0/users") => {
                Some(json!({"username": self.fresh("account"), "password": PASSWORD}))
            }
            ("PUT", "/api/v2.0/users/{user}") => Some(json!({"realname": "x"})),
            ("PUT", "/api/v2.0/users/{user}/password") => Some(json!({"new_password": "Foresail-8"})),
            ("PUT", "/api/v2.0/users/{user}/sysadmin") => Some(json!({"sysadmin_flag": false})),
            ("POST", "/service/token") => None,
            ("POST" | "PUT" | "PATCH", other) => panic!("no body is known for {method} {other}"),
            _ => None,
        };
        Call { path, body, foreign_account }
    }
}

/// What the table demands: `None` for "whatever the handler says, but neither 401, 403 nor 404".
fn due(needs: Needs, standing: Standing, place: Place, foreign_account: bool) -> Option<u16> {
    let anonymous = standing == Standing::Anonymous;
    match needs {
        Needs::Nothing => None,
        Needs::System(action) if !may_in_system(standing, action) => Some(if anonymous { 401 } else { 403 }),
        // Another's account looks absent to who does not manage users.
        Needs::System(SystemAction::OwnAccount) if foreign_account => {
            (!may_in_system(standing, SystemAction::ManageUsers)).then_some(404)
        }
        Needs::System(_) => None,
        Needs::Project(action) => {
            let public = place == Place::Public;
            let seen = place != Place::Absent && may(standing, ProjectAction::Read, public);
            match (seen, place != Place::Absent && may(standing, action, public)) {
                (_, true) => None,
                (_, false) if anonymous => Some(401),
                (true, false) => Some(403),
                (false, false) => Some(404),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s_40_every_route_gives_every_principal_what_the_table_says() {
    let mut stage = Stage::set().await;
    let mut cells = 0;
    let standing_projects = [
        (Place::Private, stage.project(Place::Private).await),
        (Place::Public, stage.project(Place::Public).await),
        (Place::Absent, stage.project(Place::Absent).await),
    ];
    for route in routes() {
        for (method, needs) in route.methods {
            for (place, (project, member)) in &standing_projects {
                if !matches!(needs, Needs::Project(_)) && *place != Place::Private {
                    continue;
                }
                for (who, standing) in principals() {
                    // What is deleted is made for the cell.
                    let own = if *method == "DELETE" && matches!(needs, Needs::Project(_)) {
                        stage.project(*place).await
                    } else {
                        (project.clone(), *member)
                    };
                    let call = stage.call(method, route.path, (&own.0, own.1)).await;
                    let path = call.path.strip_prefix("/api/v2.0").map(str::to_owned);
                    let answer = match path {
                        Some(path) => stage.harbour.api(who, method, &path, call.body).await,
                        None => {
                            let method = method.parse().unwrap();
                            stage.harbour.send(method, &call.path, http::HeaderMap::new(), Vec::new()).await
                        }
                    };
                    let status = answer.status.as_u16();
                    let cell = format!("{method} {} by {} on {place:?}", route.path, standing.title());
                    match due(*needs, standing, *place, call.foreign_account) {
                        Some(due) => assert_eq!(status, due, "{cell}: {answer:?}"),
                        None => assert!(![401, 403, 404].contains(&status), "{cell}: {answer:?}"),
                    }
                    assert!(status < 500, "{cell}: {answer:?}");
                    cells += 1;
                }
            }
        }
    }
    assert!(cells >= 250, "only {cells} cells");
}

#[tokio::test]
async fn every_method_that_a_path_takes_is_classified() {
    let harbour = Harbour::open().await;
    for route in routes() {
        let path = ["{project}", "{member}", "{user}"]
            .iter()
            .fold(route.path.to_owned(), |path, parameter| path.replace(parameter, "1"));
        let known = |method: &str| route.methods.iter().any(|(known, _)| *known == method);
        for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
            let answer =
                harbour.send(method.parse().unwrap(), &path, http::HeaderMap::new(), Vec::new()).await;
            // Where there is GET, HEAD is the same without a body.
            let classified = known(method) || (method == "HEAD" && known("GET"));
            assert_eq!(answer.status != 405, classified, "{method} {path}: {answer:?}");
        }
    }
}

#[tokio::test]
async fn rule_n_an_absent_and_a_hidden_project_give_the_same_answer() {
    let harbour = Harbour::open().await;
    harbour.user("outsider", PASSWORD).await;
    let id = harbour.project(ADMIN, "hidden", false).await;
    for who in [NOBODY, Some(("outsider", PASSWORD))] {
        for (method, body) in [("GET", None), ("PUT", Some(json!({}))), ("DELETE", None)] {
            let (hidden, absent) = (
                harbour.api(who, method, "/projects/hidden", body.clone()).await,
                harbour.api(who, method, "/projects/absent", body.clone()).await,
            );
            assert_eq!((hidden.status, &hidden.text), (absent.status, &absent.text), "{method}");
            let by_id = harbour.api(who, method, &format!("/projects/{id}"), body.clone()).await;
            assert_eq!((by_id.status, &by_id.text), (absent.status, &absent.text), "{method}");
        }
        for path in ["members", "members/1"] {
            let hidden = harbour.api(who, "GET", &format!("/projects/hidden/{path}"), None).await;
            let absent = harbour.api(who, "GET", &format!("/projects/absent/{path}"), None).await;
            assert_eq!((hidden.status, &hidden.text), (absent.status, &absent.text), "{path}");
        }
    }
    let outsider = Some(("outsider", PASSWORD));
    let hidden = harbour.api(outsider, "HEAD", "/projects?project_name=hidden", None).await;
    let absent = harbour.api(outsider, "HEAD", "/projects?project_name=absent", None).await;
    assert_eq!((hidden.status.as_u16(), absent.status.as_u16()), (404, 404));
}
