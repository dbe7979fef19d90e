//! A server with the people and projects that every client test wants to meet.
//!
//! | who | `library` (public) | `harbor-side` (private) |
//! |---|---|---|
//! | `admin` | everything | everything |
//! | `dora` | pull | developer: pull and push |
//! | `gus` | pull | guest: pull |
//! | `oscar` | pull | nothing: it does not exist for him |
//! | nobody (anonymous) | pull | nothing |

use anyhow::Result;
use reqwest::Method;
use serde_json::json;

use crate::http::Registry;
use crate::server::{ADMIN_PASSWORD, Options, Server, Tls};

/// The project that exists from the start and everybody may pull from.
pub const PUBLIC: &str = "library";
/// The private project.
pub const PRIVATE: &str = "harbor-side";

/// What clients print, in one form or another, when they may not do what they asked for.
pub const DENIED: [&str; 7] = [
    "denied",
    "unauthorized",
    "authentication required",
    "no basic auth",
    "authorization failed",
    "401",
    "403",
];

/// What they print about a repository that does not exist for them.
pub const HIDDEN: [&str; 4] = ["not found", "name unknown", "name_unknown", "404"];

/// The administrator, as name and password.
pub const ADMIN: (&str, &str) = ("admin", ADMIN_PASSWORD);
/// A developer of the private project.
pub const DEVELOPER: (&str, &str) = ("dora", "Windlass-41");
/// A guest of the private project.
pub const GUEST: (&str, &str) = ("gus", "Bowsprit-52");
/// A user with no part in the private project.
pub const OUTSIDER: (&str, &str) = ("oscar", "Gangway-63");

/// Harbor's role ids.
const ROLE_DEVELOPER: u8 = 2;
const ROLE_GUEST: u8 = 3;

/// A server, and the scene set on it.
#[derive(Debug)]
pub struct Scene {
    /// The server.
    pub server: Server,
}

impl Scene {
    /// Starts a server, makes the users, the private project and its members.
    ///
    /// # Errors
    /// When the server does not start or refuses any of it.
    pub fn set(tls: Tls) -> Result<Self> {
        let server = Server::start_with(Options { tls, ..Options::default() })?;
        let admin = server.admin()?;
        for (name, password) in [DEVELOPER, GUEST, OUTSIDER] {
            create_user(&admin, name, password)?;
        }
        create_project(&admin, PRIVATE, false)?;
        for (name, role) in [(DEVELOPER.0, ROLE_DEVELOPER), (GUEST.0, ROLE_GUEST)] {
            let body = json!({"role_id": role, "member_user": {"username": name}});
            admin.api(&Method::POST, &format!("/projects/{PRIVATE}/members"), Some(&body))?.expect(&[201])?;
        }
        Ok(Self { server })
    }

    /// `host/library/name:tag`.
    #[must_use]
    pub fn public(&self, name_and_tag: &str) -> String {
        format!("{}/{PUBLIC}/{name_and_tag}", self.server.host())
    }

    /// `host/harbor-side/name:tag`.
    #[must_use]
    pub fn private(&self, name_and_tag: &str) -> String {
        format!("{}/{PRIVATE}/{name_and_tag}", self.server.host())
    }
}

/// Creates a user over the REST API.
///
/// # Errors
/// When the server refuses it.
pub fn create_user(admin: &Registry, name: &str, password: &str) -> Result<()> {
    let body = json!({
        "username": name, "email": format!("{name}@example.test"), "realname": name, "password": password,
    });
    admin.api(&Method::POST, "/users", Some(&body))?.expect(&[201])?;
    Ok(())
}

/// Creates a project over the REST API.
///
/// # Errors
/// When the server refuses it.
pub fn create_project(admin: &Registry, name: &str, public: bool) -> Result<()> {
    let body = json!({"project_name": name, "metadata": {"public": public.to_string()}});
    admin.api(&Method::POST, "/projects", Some(&body))?.expect(&[201])?;
    Ok(())
}
